//! *Which instructions are about a thing with a name?* — those that write a variable, and those where an inlined function begins.
//!
//! Where a compiler has put a function's body into its callers, there is no entry to count at; memprof (Damato, 2009) found such
//! bodies by the global that each of them writes. So does [`writes`], by what instructions store
//! ([`pointee_patch::arch::x86_64::stores`]): a variable that is written through a pointer is not seen. [`inlined`] asks the debug info.

use std::collections::BTreeMap;

use pointee_meta::debug_files::{DebugFiles, Search};
use pointee_meta::dwarf::read_facts;
use pointee_meta::facts::{Facts, Function, Global, Inline};
use pointee_model::addr::LinkAddr;
use pointee_patch::arch::x86_64::stores::stored;
use pointee_patch::arch::x86_64::sweep::rip_target;

use crate::code::{Code, Place, mark};

/// By instruction, its number among [`Code::places`]: the thing's name.
pub(crate) type Subjects = BTreeMap<usize, String>;

pub(crate) fn facts(code: &Code<'_>) -> Facts {
    read_facts(code.elf, &DebugFiles::find(code.elf, &Search::default()))
}

/// An inlined body of which there is code.
#[derive(Clone, Copy)]
pub(crate) struct Instance<'f> {
    /// Its first instruction, by its number among [`Code::places`].
    pub(crate) place: usize,
    /// The function that it lies in.
    pub(crate) holder: &'f Function,
    /// Its number among the holder's.
    pub(crate) number: usize,
}

impl<'f> Instance<'f> {
    pub(crate) fn inline(&self) -> &'f Inline {
        &self.holder.inlines[self.number]
    }
}

/// The inlined bodies of the functions for which `wanted` holds; within a function outer ones before inner ones.
pub(crate) fn instances<'f>(
    code: &Code<'_>,
    facts: &'f Facts,
    wanted: impl Fn(&str) -> bool,
) -> Vec<Instance<'f>> {
    let mut instances = Vec::new();
    for holder in &facts.functions {
        for (number, inline) in holder.inlines.iter().enumerate() {
            if (wanted(&inline.name) || wanted(&inline.linkage_name))
                && let Some(place) = inline.entry.and_then(|entry| code.find(entry))
            {
                instances.push(Instance {
                    place,
                    holder,
                    number,
                });
            }
        }
    }
    instances
}

/// Their first instructions. Two that begin at one instruction are told by the outer one.
pub(crate) fn inlined(instances: &[Instance<'_>]) -> Subjects {
    let mut subjects = Subjects::new();
    for instance in instances {
        let name = || instance.inline().name.clone();
        subjects.entry(instance.place).or_insert_with(name);
    }
    subjects
}

/// The instructions that write a variable for which `wanted` holds, at an address that stands in the instruction: all of the variable, a part, or
/// an element by index.
pub(crate) fn writes(code: &Code<'_>, facts: &Facts, wanted: impl Fn(&str) -> bool) -> Subjects {
    let variables = facts.globals.iter().chain(&facts.data_symbols);
    let mut variables: Vec<&Global> = variables
        .filter(|global| !global.thread_local && global.size > 0 && wanted(&global.name))
        .collect();
    variables.sort_by_key(|variable| variable.address);
    let mut subjects = Subjects::new();
    if variables.is_empty() {
        return subjects;
    }
    for (at, place) in code.places.iter().enumerate() {
        let written = place.is(mark::REACHED).then(|| written(code, place));
        let Some(address) = written.flatten() else {
            continue;
        };
        let after = variables.partition_point(|variable| variable.address <= address);
        if let Some(variable) = after.checked_sub(1).map(|before| variables[before])
            && address - variable.address < variable.size
        {
            subjects.insert(at, variable.name.clone());
        }
    }
    subjects
}

/// The address that stands in an instruction for what it writes, or for the array in which it writes by index.
fn written(code: &Code<'_>, place: &Place) -> Option<u64> {
    let instruction = code.instruction(place)?;
    stored(&instruction)?;
    if let Some(target) = rip_target(LinkAddr(place.at), &instruction) {
        return Some(target.0);
    }
    // ModRM 0 with a SIB byte that names no base (Intel SDM 2, table 2-3): only code that is not relocated has such.
    let is_absolute = instruction.prefixes.segment.is_none()
        && instruction
            .modrm
            .is_some_and(|modrm| modrm.mode() == 0 && modrm.rm() == 4)
        && instruction.sib.is_some_and(|sib| sib & 7 == 5);
    is_absolute.then_some(instruction.displacement?.value as u64)
}
