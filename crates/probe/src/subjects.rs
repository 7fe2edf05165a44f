//! *Which instructions are about a thing with a name?* — those that write a variable, and those where an inlined function begins.
//!
//! Where a compiler has put a function's body into its callers, there is no entry to count at; memprof (Damato, 2009) found such
//! bodies by the global that each of them writes. So does [`writes`], for direct operands: a variable that is written through a pointer
//! is not seen. [`inlined`] asks the debug info.

use std::collections::BTreeMap;

use iced_x86::{
    Decoder, DecoderOptions, InstructionInfoFactory, InstructionInfoOptions, OpAccess, Register,
};
use pointee_meta::debug_files::{DebugFiles, Search};
use pointee_meta::dwarf::read_facts;
use pointee_meta::facts::{Facts, Global};

use crate::code::{Code, mark};

/// By instruction, its number among [`Code::places`]: the thing's name.
pub(crate) type Subjects = BTreeMap<usize, String>;

pub(crate) fn facts(code: &Code<'_>) -> Facts {
    read_facts(code.elf, &DebugFiles::find(code.elf, &Search::default()))
}

/// The first instruction of each inlined body of the functions for which `wanted` holds. Two that begin at one instruction are told by
/// the outer one.
pub(crate) fn inlined(code: &Code<'_>, facts: &Facts, wanted: impl Fn(&str) -> bool) -> Subjects {
    let mut subjects = Subjects::new();
    let inlines = facts
        .functions
        .iter()
        .flat_map(|function| &function.inlines);
    for inline in inlines.filter(|inline| wanted(&inline.name) || wanted(&inline.linkage_name)) {
        if let Some(place) = inline.entry.and_then(|entry| code.find(entry)) {
            subjects.entry(place).or_insert_with(|| inline.name.clone());
        }
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
    let mut infos = InstructionInfoFactory::new();
    for (at, place) in code.places.iter().enumerate() {
        if !place.is(mark::REACHED) {
            continue;
        }
        let instruction =
            Decoder::with_ip(64, code.bytes(place), place.at, DecoderOptions::NONE).decode();
        if instruction.memory_base() == Register::None && instruction.memory_displ_size() == 0 {
            continue;
        }
        let info = infos.info_options(&instruction, InstructionInfoOptions::NO_REGISTER_USAGE);
        let written = info.used_memory().iter().find(|memory| {
            let writes = matches!(
                memory.access(),
                OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite
            );
            // Of RIP-relative operands the factory gives the address itself.
            let direct = matches!(memory.base(), Register::None | Register::RIP);
            let flat = matches!(memory.segment(), Register::DS | Register::ES | Register::SS);
            writes && direct && flat
        });
        let Some(address) = written.map(|memory| memory.displacement()) else {
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
