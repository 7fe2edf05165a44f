//! *Which numbers in a file may be addresses of code?* Whatever can hold one is read: relocations,
//! RIP-relative `lea`, and in files that are not relocated immediate operands and words of data.

use object::elf::{
    ET_EXEC, R_X86_64_64, R_X86_64_IRELATIVE, R_X86_64_RELATIVE, SHF_ALLOC, SHT_NOBITS, SHT_RELA,
    SHT_RELR,
};
use pointee_patch::arch::x86_64::decode::Map;

use crate::code::Code;

/// Numbers that may be addresses of code, or of jump tables.
#[derive(Default)]
pub(crate) struct Pointers {
    /// They can be nothing else.
    pub(crate) certain: Vec<u64>,
    /// They may as well be the address of data among code.
    pub(crate) taken: Vec<u64>,
    /// Where jump tables may begin, sorted.
    pub(crate) bases: Vec<u64>,
}

impl Pointers {
    /// Finds them.
    pub(crate) fn of(code: &Code<'_>) -> Self {
        let mut pointers = Self::default();
        let relocated = code.elf.file_kind() != ET_EXEC;
        for place in &code.places {
            // Only `lea` and, in files that are not relocated, immediates hold addresses.
            let Some(first) = code.bytes(place).first() else {
                continue;
            };
            let plain = matches!(first, 0x48..=0x4f | 0x8d);
            if !plain && relocated {
                continue;
            }
            let Some(instruction) = code.instruction(place) else {
                continue;
            };
            if instruction.is(Map::Primary, 0x8d)
                && let Some(offset) = instruction.rip_offset()
            {
                let address = place.at.wrapping_add_signed(offset);
                if code.is_executable(address) {
                    pointers.taken.push(address);
                }
                pointers.bases.push(address);
            } else if !relocated {
                let operands = [instruction.immediate, instruction.displacement];
                let numbers = operands.into_iter().flatten();
                for number in numbers
                    .filter(|field| field.len >= 4)
                    .map(|field| field.value as u64)
                {
                    pointers.bases.push(number & 0xffff_ffff);
                }
                // An address that is kept, to be jumped to some day, is moved or pushed.
                let keeps = matches!(instruction.opcode, 0xb8..=0xbf | 0xc7 | 0x68);
                let kept = instruction
                    .immediate
                    .filter(|_| keeps && instruction.map == Map::Primary);
                let address = kept.map_or(0, |field| field.value as u64);
                if code.is_executable(address) {
                    pointers.taken.push(address);
                }
            }
        }
        relocated_pointers(code, &mut pointers.certain);
        for section in code.elf.sections() {
            let holds_words = section.flags.0 & SHF_ALLOC.0 != 0
                && section.kind != SHT_NOBITS
                && (!relocated
                    || section.name == ".data.rel.ro"
                    || section.name == ".data"
                    || section.name.ends_with("_array"));
            let has_relr = code
                .elf
                .sections()
                .iter()
                .any(|section| section.kind == SHT_RELR);
            if section.is_code() || !holds_words || (relocated && !has_relr) {
                continue;
            }
            let words = code.elf.stored_bytes(section).chunks_exact(8);
            for word in words
                .filter_map(|word| word.try_into().ok())
                .map(u64::from_le_bytes)
            {
                if code.is_executable(word) {
                    pointers.certain.push(word);
                }
            }
        }
        pointers.bases.sort_unstable();
        pointers.bases.dedup();
        pointers
    }
}

/// What the loader will write, or call.
fn relocated_pointers(code: &Code<'_>, found: &mut Vec<u64>) {
    for section in code.elf.sections() {
        if section.kind != SHT_RELA || section.flags.0 & SHF_ALLOC.0 == 0 {
            continue;
        }
        for entry in code.elf.stored_bytes(section).chunks_exact(24) {
            let word = |at: usize| entry[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
            let kind = object::elf::RelocationType(word(8) as u32);
            // `R_X86_64_64` against a section or local symbol has its offset in the addend too;
            // the symbol itself is a function's start, which is marked already.
            if matches!(kind, R_X86_64_RELATIVE | R_X86_64_IRELATIVE | R_X86_64_64)
                && code.is_executable(word(16))
            {
                found.push(word(16));
            }
        }
    }
    const DT_INIT: u64 = 12;
    const DT_FINI: u64 = 13;
    let dynamic = code
        .elf
        .section(".dynamic")
        .map_or(&[][..], |section| code.elf.stored_bytes(section));
    for entry in dynamic.chunks_exact(16) {
        let word = |at: usize| entry[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        if matches!(word(0), DT_INIT | DT_FINI) {
            found.push(word(8));
        }
    }
}
