//! *Which functions, inlined calls and variables are there?*
//!
//! A concrete entry says little itself: its name, type and line stand at its abstract origin, whose
//! scope stands at *its* specification. [`Chain`] walks that road, across units where link-time
//! optimization or dwz has moved entries, and takes for each property the first entry that has it.

use super::lines::Lines;
use super::raw::{RawCode, RawFunction, RawGlobal, RawVariable, TypeRef, UnitFacts};
use super::types::UniqueTypes;
use super::units::DieRef;
use crate::facts::{Function, Global, Inline, Variable};
use crate::names::readable;
use pointee_model::image::{TypeIndex, TypeKind};
use rayon::prelude::*;
use std::borrow::Cow;

/// clone → abstract instance → declaration; anything longer is a cycle.
pub(super) const MAX_CHAIN: usize = 8;

/// All units, walked, with their types joined.
#[derive(Clone, Copy)]
pub(super) struct Joined<'j, 'n> {
    pub(super) units: &'j [UnitFacts<'n>],
    pub(super) types: &'j UniqueTypes,
    pub(super) lines: &'j Lines,
}

/// What is known of a function from an entry and everything it refers to.
struct Chain<'n> {
    name: Cow<'n, str>,
    linkage_name: &'n str,
    file: Option<u32>,
    line: u32,
    result: Option<TypeIndex>,
    arguments: Vec<TypeIndex>,
    language: u16,
}

impl<'j, 'n> Joined<'j, 'n> {
    /// Concrete functions in order of entry, one for each entry address.
    pub(super) fn functions(self) -> Vec<Function> {
        let mut functions: Vec<Function> = (0..self.units.len())
            .into_par_iter()
            .flat_map_iter(|unit| self.functions_of(unit))
            .collect();
        functions.sort_by_key(|function| function.entry);
        // Identical code folding leaves several functions at one address; the first one stays.
        functions.dedup_by_key(|function| function.entry);
        functions
    }

    fn functions_of(self, number: usize) -> Vec<Function> {
        let Some(unit) = self.units.get(number) else {
            return Vec::new();
        };
        let mut functions = Vec::new();
        let mut place_of = vec![None; unit.functions.len()];
        for (at, raw) in unit.functions.iter().enumerate() {
            let Some(code) = raw.code.as_deref() else {
                continue;
            };
            let Some((entry, _)) = code.ranges.first() else {
                continue;
            };
            let chain = self.function_chain(number, raw);
            place_of[at] = Some(functions.len());
            functions.push(Function {
                name: readable(&chain.name, chain.linkage_name, chain.language),
                linkage_name: first_of(chain.linkage_name, &chain.name).to_owned(),
                entry: *entry,
                ranges: code.ranges.clone(),
                file: chain.file,
                line: chain.line,
                result: chain.result,
                has_dwarf: true,
                variables: Vec::new(),
                inlines: self.inlines(number, code),
                blocks: code.blocks.clone(),
                frame_base: code.frame_base,
                language: chain.language,
                arguments: chain.arguments,
            });
        }
        for raw in &unit.variables {
            let place = raw
                .function
                .and_then(|function| place_of.get(function as usize).copied().flatten());
            let Some(function) = place.and_then(|place| functions.get_mut(place)) else {
                continue;
            };
            function.variables.push(self.variable(number, raw));
        }
        functions
    }

    fn inlines(self, number: usize, code: &RawCode) -> Vec<Inline> {
        code.inlines
            .iter()
            .map(|inline| {
                let chain = self.chain_at(inline.origin);
                Inline {
                    name: readable(&chain.name, chain.linkage_name, chain.language),
                    linkage_name: first_of(chain.linkage_name, &chain.name).to_owned(),
                    entry: inline.entry,
                    ranges: inline.ranges.clone(),
                    call_file: self.lines.file(number, inline.call_file),
                    call_line: inline.call_line,
                    depth: inline.depth,
                    parent: inline.parent,
                    result: chain.result,
                    arguments: chain.arguments,
                }
            })
            .collect()
    }

    fn variable(self, number: usize, raw: &RawVariable<'n>) -> Variable {
        let (name, r#type, line, parameter) = self.variable_chain(number, raw);
        let places = self
            .units
            .get(number)
            .and_then(|unit| {
                unit.places
                    .get(raw.places.start as usize..raw.places.end as usize)
            })
            .unwrap_or(&[])
            .to_vec();
        Variable {
            name: name.to_owned(),
            r#type,
            parameter,
            inline: raw.inline,
            block: raw.block,
            line,
            places,
        }
    }

    /// By unique type, the file that declares it, if it has a tag or is a typedef.
    pub(super) fn homes(self) -> Vec<Option<u32>> {
        let mut homes = vec![None; self.types.types.len()];
        for (number, unit) in self.units.iter().enumerate() {
            for (at, raw) in (0..).zip(&unit.types) {
                let unique = match raw.kind {
                    TypeKind::Struct
                    | TypeKind::Class
                    | TypeKind::Union
                    | TypeKind::Enum
                    | TypeKind::Typedef => self.types.of_unit(number, at),
                    _ => None,
                };
                if let Some(unique) = unique
                    && let Some(home @ None) = homes.get_mut(unique as usize)
                {
                    *home = self.lines.file(number, raw.decl_file);
                }
            }
        }
        homes
    }

    /// What calls allocate by the compiler's word, in order of return address; nothing where it is `void`.
    pub(super) fn allocations(self) -> Vec<(u64, TypeIndex)> {
        let units = self.units.iter().enumerate();
        let mut allocations: Vec<(u64, TypeIndex)> = units
            .flat_map(|(number, unit)| unit.allocations.iter().map(move |raw| (number, raw)))
            .filter_map(|(number, (after, raw))| {
                Some((*after, self.types.resolve(self.units, number, *raw)?))
            })
            .collect();
        allocations.sort_by_key(|(after, _)| *after);
        allocations.dedup_by_key(|(after, _)| *after);
        allocations
    }

    /// Variables with a fixed address, in order of address.
    pub(super) fn globals(self) -> Vec<Global> {
        let mut globals: Vec<Global> = Vec::new();
        for (number, unit) in self.units.iter().enumerate() {
            for raw in &unit.globals {
                let Some(variable) = unit.variables.get(raw.variable as usize) else {
                    continue;
                };
                let (name, r#type, ..) = self.variable_chain(number, variable);
                let size = r#type
                    .and_then(|index| self.types.types.get(index as usize)?.size)
                    .unwrap_or(0);
                let name = match self.scope_of(raw, variable) {
                    "" => name.to_owned(),
                    scope => format!("{scope}::{name}"),
                };
                globals.push(Global {
                    address: raw.address,
                    size,
                    name,
                    r#type,
                    thread_local: raw.thread_local,
                });
            }
        }
        globals.sort_by(|one, other| {
            (one.thread_local, one.address, one.r#type.is_none()).cmp(&(
                other.thread_local,
                other.address,
                other.r#type.is_none(),
            ))
        });
        globals.dedup_by_key(|global| (global.thread_local, global.address));
        globals
    }

    /// The function a static variable belongs to: where it was inlined, that is the function inlined.
    fn scope_of(self, raw: &RawGlobal<'n>, variable: &RawVariable<'n>) -> &'n str {
        let mut scope = raw.scope;
        let mut next = variable.origin;
        for _ in 0..MAX_CHAIN {
            let Some(unit) = self.unit_of(next) else {
                break;
            };
            let Some(origin) = unit.variable_at(next.offset()) else {
                break;
            };
            if let Some(function) = origin
                .function
                .and_then(|function| unit.functions.get(function as usize))
            {
                scope = function.name;
            }
            next = origin.origin;
        }
        scope
    }

    fn variable_chain(
        self,
        number: usize,
        raw: &RawVariable<'n>,
    ) -> (&'n str, Option<TypeIndex>, u32, Option<u16>) {
        let (mut name, mut line, mut parameter) = (raw.name, raw.line, raw.parameter);
        let mut r#type = self.types.resolve(self.units, number, raw.r#type);
        let mut next = raw.origin;
        for _ in 0..MAX_CHAIN {
            let Some(origin) = self
                .unit_of(next)
                .and_then(|unit| unit.variable_at(next.offset()))
            else {
                break;
            };
            name = first_of(name, origin.name);
            if line == 0 {
                line = origin.line;
            }
            if r#type.is_none() {
                r#type = self.types.resolve(self.units, next.unit(), origin.r#type);
            }
            // A clone may have lost parameters: the abstract instance knows which one this is.
            if parameter.is_some() && origin.parameter.is_some() {
                parameter = origin.parameter;
            }
            next = origin.origin;
        }
        (name, r#type, line, parameter)
    }

    fn function_chain(self, number: usize, raw: &RawFunction<'n>) -> Chain<'n> {
        let mut chain = Chain {
            name: Cow::Borrowed(""),
            linkage_name: "",
            file: None,
            line: 0,
            result: None,
            arguments: Vec::new(),
            language: self.units.get(number).map_or(0, |unit| unit.language),
        };
        self.add(&mut chain, number, raw);
        let mut next = raw.origin;
        self.follow(&mut chain, &mut next);
        chain
    }

    fn chain_at(self, origin: DieRef) -> Chain<'n> {
        let mut chain = Chain {
            name: Cow::Borrowed(""),
            linkage_name: "",
            file: None,
            line: 0,
            result: None,
            arguments: Vec::new(),
            language: 0,
        };
        if let Some(unit) = self.unit_of(origin) {
            chain.language = unit.language;
        }
        let mut next = origin;
        self.follow(&mut chain, &mut next);
        chain
    }

    fn unit_of(self, at: DieRef) -> Option<&'j UnitFacts<'n>> {
        if at.is_none() {
            return None;
        }
        self.units.get(at.unit())
    }

    fn follow(self, chain: &mut Chain<'n>, next: &mut DieRef) {
        for _ in 0..MAX_CHAIN {
            let Some(origin) = self
                .unit_of(*next)
                .and_then(|unit| unit.function_at(next.offset()))
            else {
                break;
            };
            self.add(chain, next.unit(), origin);
            *next = origin.origin;
        }
    }

    fn add(self, chain: &mut Chain<'n>, number: usize, raw: &RawFunction<'n>) {
        // A specification repeats the bare name; the declaration has the scope.
        let name = match raw.scope {
            "" => Cow::Borrowed(raw.name),
            scope => Cow::Owned(format!("{scope}::{}", raw.name)),
        };
        if name.len() > chain.name.len() {
            chain.name = name;
        }
        chain.linkage_name = first_of(chain.linkage_name, raw.linkage_name);
        if chain.line == 0 {
            chain.line = raw.decl_line;
            chain.file = self.lines.file(number, raw.decl_file);
        }
        if chain.result.is_none() && raw.result != TypeRef::Void {
            chain.result = self.types.resolve(self.units, number, raw.result);
        }
        if chain.arguments.is_empty()
            && let Some(unit) = self.units.get(number)
        {
            let range = raw.arguments.start as usize..raw.arguments.end as usize;
            chain.arguments.extend(
                unit.arguments
                    .get(range)
                    .unwrap_or(&[])
                    .iter()
                    .filter_map(|(_, argument)| self.types.resolve(self.units, number, *argument)),
            );
        }
    }
}

fn first_of<'n>(one: &'n str, other: &'n str) -> &'n str {
    if one.is_empty() { other } else { one }
}
