//! *What does the debug info of a file state?* DWARF 4 and 5, as far as Pointee uses it.
//!
//! ```text
//!   sections ──units──▶ numbered units ──walk (all cores)──▶ UnitFacts of each
//!                                                                │
//!            lines (all cores) ◀── line programs                 ├──types + identity──▶ unique types
//!                  └───────────────────────┬─────────────────────┴──functions (all cores)──▶ Facts
//! ```
//!
//! Invariants: nothing here panics, hangs or grows beyond a multiple of the sections' bytes, whatever the
//! bytes say; what is not understood is left out and named in `Facts::diagnostics`. The result does
//! not depend on the number of threads.

mod data;
mod die;
mod functions;
mod identity;
mod lines;
mod made_names;
mod places;
mod raw;
mod reach;
mod sections;
mod split;
mod types;
mod units;
mod walk;

use crate::debug_files::DebugFiles;
use crate::elf::Elf;
use crate::facts::{Facts, Function, Type};
use crate::names::demangle;
use functions::Joined;
pub(crate) use identity::of_base;
use made_names::MadeNames;
use places::{Budget, Evaluator};
use pointee_model::image::{TypeIndex, TypeKind, type_flags};
use raw::UnitFacts;
use rayon::prelude::*;
use sections::{PackageSections, Sections};
use std::collections::HashMap;
use units::Units;

/// How many diagnostics are kept: a damaged file can have one for each unit.
const MAX_DIAGNOSTICS: usize = 200;

/// Reads everything that debug info and symbols state about `elf`.
#[must_use]
pub fn read_facts(elf: &Elf, debug: &DebugFiles) -> Facts {
    let mut facts = Facts::default();
    let source = debug.debug.as_ref().unwrap_or(elf);
    let code = CodeMap::of(elf);
    read_dwarf(source, debug, &code, &mut facts);
    let others = [Some(elf), debug.debug.as_ref(), debug.symbols_only.as_ref()];
    add_symbols(&mut facts, others.into_iter().flatten(), &code);
    crate::sites::declare_named(elf, &mut facts);
    facts.data_symbols = data::symbols(others.into_iter().flatten(), &facts.globals);
    facts.sections = data::sections(elf);
    facts.diagnostics.truncate(MAX_DIAGNOSTICS);
    facts
}

fn read_dwarf(source: &Elf, debug: &DebugFiles, code: &CodeMap, facts: &mut Facts) {
    let diagnostics = &mut facts.diagnostics;
    let main_sections = Sections::of(source, diagnostics);
    let alternate_sections = debug
        .alternate
        .as_ref()
        .map(|elf| Sections::of(elf, diagnostics));
    let split_files = split::open_files(&main_sections.dwarf(), debug);
    let split_sections: Vec<Sections<'_>> = split_files
        .iter()
        .map(|elf| Sections::of_split(elf, diagnostics))
        .collect();
    let package = debug
        .package
        .as_ref()
        .and_then(|elf| PackageSections::of(elf, diagnostics));
    let mut main = main_sections.dwarf();
    if let Some(sections) = &alternate_sections {
        main.set_sup(sections.dwarf());
    }
    let files = [
        Some(source),
        debug.alternate.as_ref(),
        debug.package.as_ref(),
    ];
    let bytes = files
        .into_iter()
        .flatten()
        .chain(&split_files)
        .map(|elf| elf.bytes().len())
        .sum();
    let budget = Budget::for_bytes(bytes);
    let mut units = Units::new();
    units.add_space(main, diagnostics);
    if let Some(sections) = &alternate_sections {
        let space = units.add_space(sections.dwarf(), diagnostics);
        units.set_supplement(space);
    }
    if !split_sections.is_empty() || package.is_some() {
        let main = main_sections.dwarf();
        split::add(
            &mut units,
            &main,
            &split_sections,
            package.as_ref(),
            diagnostics,
        );
    }
    if units.units.is_empty() {
        return;
    }
    facts.has_dwarf = true;
    let is_code = |address| code.contains(address);
    let lines = lines::read(&units, &is_code, diagnostics);
    let mut arenas: Vec<bumpalo::Bump> = Vec::new();
    arenas.resize_with(units.units.len(), bumpalo::Bump::new);
    let names = MadeNames::new();
    let walked: Vec<UnitFacts<'_>> = units
        .units
        .par_iter()
        .zip(arenas.par_iter_mut())
        .enumerate()
        .map(|(number, (entry, arena))| {
            if entry.replaced {
                return UnitFacts::default();
            }
            let evaluator = Evaluator {
                dwarf: &units.spaces[entry.space],
                unit: &entry.unit,
                budget: &budget,
            };
            walk::walk(&units, number, evaluator, &is_code, (&names, arena))
        })
        .collect();
    drop(names);
    for unit in &walked {
        diagnostics.extend(unit.diagnostics.iter().cloned());
    }
    let shared: Vec<bool> = units
        .units
        .iter()
        .map(|entry| units.is_supplement(entry.space))
        .collect();
    let types = types::unify(&walked, &shared);
    let joined = Joined {
        units: &walked,
        types: &types,
        lines: &lines,
    };
    facts.functions = joined.functions();
    facts.globals = joined.globals();
    facts.allocations = joined.allocations();
    let homes = joined.homes();
    facts.types = types.types;
    for (entry, home) in facts.types.iter_mut().zip(homes) {
        entry.file = home;
    }
    name_by_typedef(&mut facts.types);
    facts.lines = lines.rows;
    facts.files = lines.files;
}

/// Gives an anonymous type the name that its only typedef gives it, as programmers do (and as C++ does, for linkage).
/// Identity is not touched: it was taken from the structure.
fn name_by_typedef(types: &mut [Type]) {
    let mut names: HashMap<TypeIndex, Option<&str>> = HashMap::new();
    for entry in types.iter().filter(|entry| entry.kind == TypeKind::Typedef) {
        if let Some(target) = entry.target {
            let name = names.entry(target).or_insert(Some(&entry.name));
            if *name != Some(&entry.name) {
                *name = None;
            }
        }
    }
    let chosen: Vec<(TypeIndex, String)> = names
        .into_iter()
        .filter_map(|(target, name)| Some((target, name?.to_owned())))
        .collect();
    for (target, name) in chosen {
        if let Some(entry) = types.get_mut(target as usize)
            && entry.flags & type_flags::ANONYMOUS != 0
            && !name.is_empty()
        {
            entry.name = name;
        }
    }
}

/// Where code lies, to tell what the linker kept from what it threw away (and left at address 0).
struct CodeMap(Vec<(u64, u64)>);

impl CodeMap {
    fn of(elf: &Elf) -> Self {
        let mut ranges: Vec<(u64, u64)> = elf
            .text_sections()
            .filter(|section| section.address != 0)
            .map(|section| {
                (
                    section.address,
                    section.address.saturating_add(section.size),
                )
            })
            .collect();
        if ranges.is_empty() {
            ranges.extend(
                elf.segments()
                    .iter()
                    .filter(|segment| {
                        segment.kind == object::elf::PT_LOAD
                            && segment.flags.0 & object::elf::PF_X.0 != 0
                    })
                    .map(|segment| {
                        let end = segment.address.saturating_add(segment.memory_size);
                        (segment.address, end)
                    }),
            );
        }
        ranges.sort_unstable();
        Self(ranges)
    }

    fn contains(&self, address: u64) -> bool {
        self.end_of(address).is_some()
    }

    /// The end of the section that holds `address`.
    fn end_of(&self, address: u64) -> Option<u64> {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        let (_, end) = self.0.get(after.checked_sub(1)?)?;
        (address < *end).then_some(*end)
    }
}

/// Functions that only a symbol table knows, each up to its stated end or the next one's start.
fn add_symbols<'e>(facts: &mut Facts, files: impl Iterator<Item = &'e Elf>, code: &CodeMap) {
    let mut covered: Vec<(u64, u64)> = facts
        .functions
        .iter()
        .flat_map(|function| function.ranges.iter().copied())
        .collect();
    covered.sort_unstable();
    let is_covered = |address: u64| {
        let after = covered.partition_point(|(start, _)| *start <= address);
        after
            .checked_sub(1)
            .and_then(|at| covered.get(at))
            .is_some_and(|(_, end)| address < *end)
    };
    let mut found: Vec<(u64, u64, &str)> = Vec::new();
    for elf in files {
        found.extend(
            elf.symbols()
                .filter(|symbol| symbol.is_function() && code.contains(symbol.address))
                .map(|symbol| (symbol.address, symbol.size, symbol.name)),
        );
    }
    // Of several names for one address, prefer the sized and then the plainest one.
    found.sort_by_key(|(address, size, name)| {
        (
            *address,
            *size == 0,
            name.starts_with('_'),
            name.len(),
            *name,
        )
    });
    found.dedup_by_key(|(address, ..)| *address);
    let mut symbols = Vec::new();
    for (at, (address, size, name)) in found.iter().enumerate() {
        if is_covered(*address) || name.is_empty() {
            continue;
        }
        let next_symbol = found.get(at + 1).map_or(u64::MAX, |(next, ..)| *next);
        let next_function = covered
            .get(covered.partition_point(|(start, _)| *start <= *address))
            .map_or(u64::MAX, |(start, _)| *start);
        let limit = code.end_of(*address).unwrap_or(u64::MAX).min(next_function);
        let end = match size {
            0 => limit.min(next_symbol),
            size => address.saturating_add(*size).min(limit),
        };
        symbols.push(Function {
            name: demangle(name),
            linkage_name: (*name).to_owned(),
            entry: *address,
            ranges: vec![(*address, end)],
            ..Function::default()
        });
    }
    facts.functions.append(&mut symbols);
    facts.functions.sort_by_key(|function| function.entry);
}
