//! *What does a unit say about code?* Functions, inlined calls, variables.

use super::{Context, Owner, Walk, small};
use crate::dwarf::die::{Die, Value, integer};
use crate::dwarf::places::{Fixed, is_list};
use crate::dwarf::raw::{RawCode, RawFunction, RawGlobal, RawInline, RawMember, RawVariable};
use crate::dwarf::units::DieRef;
use crate::facts::{FrameBase, Place};
use gimli::constants as c;

impl<'n, 'a: 'n> Walk<'_, 'n, 'a> {
    pub(super) fn function(&mut self, die: &Die<'a>, context: Context<'n>) -> Context<'n> {
        let index = self.facts.functions.len() as u32;
        let origin = die.origin.as_ref().map_or(DieRef::NONE, |value| {
            self.units.resolve(self.number, *value)
        });
        let own_name = self.string(&die.name);
        let (scope, name) = if own_name.is_empty() {
            ("", self.local_function_name(origin))
        } else if die.declaration {
            (context.scope, own_name)
        } else {
            ("", self.qualify(context.scope, own_name))
        };
        let mut ranges = Vec::new();
        self.evaluator.ranges(die, |start, end| {
            if (self.is_code)(start) {
                ranges.push((start, end));
            }
        });
        let frame_base = || {
            let stated = die.frame_base.as_ref();
            stated.map_or(FrameBase::Unknown, |value| self.evaluator.frame_base(value))
        };
        let code = (!ranges.is_empty()).then(|| {
            Box::new(RawCode {
                ranges,
                frame_base: frame_base(),
                inlines: Vec::new(),
                blocks: Vec::new(),
            })
        });
        self.facts.functions.push(RawFunction {
            offset: die.offset,
            scope,
            name,
            linkage_name: self.string(&die.linkage_name),
            result: self.type_ref(&die.r#type),
            origin,
            decl_file: small(die.decl_file),
            decl_line: small(die.decl_line),
            arguments: 0..0,
            code,
        });
        Context {
            scope: if is_c(self.facts.language) { "" } else { name },
            owner: Owner::Code,
            function: Some(index),
            inline: None,
            block: None,
            depth: 0,
            discriminant: None,
            is_declared: die.declaration,
        }
    }

    /// With the scope that it has for what it holds: that of a declaration is made for the few that hold types.
    pub(super) fn inside(&self, context: Context<'n>) -> Context<'n> {
        let functions = &self.facts.functions;
        let declared = (context.function)
            .filter(|_| context.is_declared && !context.scope.is_empty())
            .and_then(|function| functions.get(function as usize));
        let scope = declared.map(|function| self.qualify(function.scope, function.name));
        Context {
            scope: scope.unwrap_or(context.scope),
            ..context
        }
    }

    fn local_function_name(&self, origin: DieRef) -> &'n str {
        if origin.is_none() || origin.unit() != self.number {
            return "";
        }
        self.facts
            .function_at(origin.offset())
            .map_or("", |function| self.qualify(function.scope, function.name))
    }

    pub(super) fn inline(&mut self, die: &Die<'a>, context: Context<'n>) -> Context<'n> {
        let Some(function) = context.function else {
            return context;
        };
        let mut ranges = Vec::new();
        self.evaluator.ranges(die, |start, end| {
            if (self.is_code)(start) {
                ranges.push((start, end));
            }
        });
        let origin = die.origin.as_ref().map_or(DieRef::NONE, |value| {
            self.units.resolve(self.number, *value)
        });
        let owner = self.facts.functions.get_mut(function as usize);
        let Some(owner) = owner.and_then(|function| function.code.as_deref_mut()) else {
            return context;
        };
        let index = owner.inlines.len() as u32;
        let depth = context.depth.saturating_add(1);
        owner.inlines.push(RawInline {
            origin,
            entry: self
                .evaluator
                .entry(die)
                .or_else(|| ranges.first().map(|(start, _)| *start))
                .filter(|entry| (self.is_code)(*entry)),
            ranges,
            call_file: small(die.call_file),
            call_line: small(die.call_line),
            depth,
            parent: context.inline,
        });
        Context {
            owner: Owner::Code,
            inline: Some(index),
            block: None,
            depth,
            ..context
        }
    }

    /// A block of statements: what it declares is gone where it ends.
    pub(super) fn block(&mut self, die: &Die<'a>, context: Context<'n>) -> Context<'n> {
        let mut ranges = Vec::new();
        self.evaluator
            .ranges(die, |start, end| ranges.push((start, end)));
        let owner = context
            .function
            .and_then(|function| self.facts.functions.get_mut(function as usize))
            .and_then(|function| function.code.as_deref_mut());
        let block = owner.filter(|_| !ranges.is_empty()).map(|owner| {
            owner.blocks.push(ranges);
            owner.blocks.len() as u32 - 1
        });
        Context {
            owner: Owner::Code,
            block: block.or(context.block),
            ..context
        }
    }

    /// A call of which the compiler says what it allocates.
    pub(super) fn allocation(&mut self, die: &Die<'a>) {
        // GNU's form of call sites has the return address as its low end.
        let after = die.return_pc.as_ref().or(die.low_pc.as_ref());
        if let (Some(after), true) = (after, die.alloc_type.is_some())
            && let Some(after) = self.evaluator.address(after)
        {
            let r#type = self.type_ref(&die.alloc_type);
            self.facts.allocations.push((after, r#type));
        }
    }

    pub(super) fn variable(&mut self, die: &Die<'a>, context: Context<'n>) {
        let is_parameter = die.tag() == c::DW_TAG_formal_parameter;
        if is_parameter && let Owner::Type(owner) = context.owner {
            self.facts.members.push(RawMember {
                owner,
                name: self.string(&die.name),
                r#type: self.type_ref(&die.r#type),
                offset: 0,
                bit_size: 0,
                flags: 0,
                discriminant: 0,
            });
            return;
        }
        // Nothing refers to what stands in a declaration: a definition names its own.
        if context.is_declared {
            return;
        }
        let parameter = match context.function {
            Some(function) if is_parameter => Some(self.count_parameter(function, context.inline)),
            _ => None,
        };
        let first_place = self.facts.places.len() as u32;
        let index = self.facts.variables.len() as u32;
        if let Some(location) = &die.location {
            self.locate(location, index, context);
        } else if let Some(value) = die.const_value.as_ref().and_then(integer)
            && let Some(whole) = whole(&self.facts.functions, context)
        {
            let places = whole
                .iter()
                .map(|(start, end)| (*start, *end, Place::Constant(value)));
            self.facts.places.extend(places);
        }
        let own_name = self.string(&die.name);
        let name = if context.function.is_some() || own_name.is_empty() {
            own_name
        } else {
            self.qualify(context.scope, own_name)
        };
        self.facts.variables.push(RawVariable {
            offset: die.offset,
            name,
            r#type: self.type_ref(&die.r#type),
            origin: die.origin.as_ref().map_or(DieRef::NONE, |value| {
                self.units.resolve(self.number, *value)
            }),
            function: context.function,
            inline: context.inline,
            block: context.block,
            parameter,
            line: small(die.decl_line),
            places: first_place..self.facts.places.len() as u32,
        });
    }

    fn locate(&mut self, location: &Value<'a>, variable: u32, context: Context<'n>) {
        if !is_list(location) {
            let global = match self.evaluator.fixed(location) {
                Some(Fixed::Place(Place::Address(address))) => Some((address, false)),
                Some(Fixed::ThreadLocal(offset)) => Some((offset, true)),
                _ => None,
            };
            if let Some((address, thread_local)) = global {
                let scope = match context.function {
                    Some(function) => self
                        .facts
                        .functions
                        .get(function as usize)
                        .map_or("", |function| function.name),
                    None => "",
                };
                self.facts.globals.push(RawGlobal {
                    variable,
                    scope,
                    address,
                    thread_local,
                });
                if thread_local {
                    return;
                }
            }
        }
        let Some(whole) = whole(&self.facts.functions, context) else {
            return;
        };
        let places = &mut self.facts.places;
        self.evaluator.places(location, whole, |start, end, place| {
            places.push((start, end, place));
        });
    }

    fn count_parameter(&mut self, function: u32, inline: Option<u32>) -> u16 {
        // Entries nest, so the counter wanted is nearly always the last one.
        while let Some((owner, within, count)) = self.parameters.last_mut() {
            if (*owner, *within) == (function, inline) {
                let number = *count;
                *count = count.saturating_add(1);
                return number;
            }
            // Parameters come before the blocks and calls inside, so an older counter is done.
            self.parameters.pop();
        }
        self.parameters.push((function, inline, 1));
        0
    }
}

fn is_c(language: u16) -> bool {
    matches!(
        gimli::DwLang(language),
        c::DW_LANG_C | c::DW_LANG_C89 | c::DW_LANG_C99 | c::DW_LANG_C11 | c::DW_LANG_C17
    )
}

/// The code over which a location without a list holds.
fn whole<'f>(functions: &'f [RawFunction<'_>], context: Context<'_>) -> Option<&'f [(u64, u64)]> {
    let owner = functions.get(context.function? as usize)?.code.as_deref()?;
    Some(match context.inline {
        Some(inline) => owner
            .inlines
            .get(inline as usize)
            .map_or(&[][..], |inline| &inline.ranges),
        None => &owner.ranges,
    })
}
