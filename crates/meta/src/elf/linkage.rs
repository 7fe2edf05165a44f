//! *Where does a call through a linkage table go?*
//!
//! ```text
//!   call stub ──▶ .plt / .plt.sec / .plt.got / .iplt:   [endbr64] [bnd] jmp *slot(%rip)
//!                 lazy half of a .plt with IBT:          [endbr64] push $n ; jmp .plt
//!   slot      ──▶ relocation:  JUMP_SLOT, GLOB_DAT, 64  → symbol (imported, or defined here)
//!                              RELATIVE, IRELATIVE      → address (of the resolver, for the latter)
//!   no relocation (RELR, static programs) ──▶ the address stored in the file itself
//! ```

use super::{Elf, LE};
use object::elf::{
    EM_X86_64, R_X86_64_64, R_X86_64_GLOB_DAT, R_X86_64_IRELATIVE, R_X86_64_JUMP_SLOT,
    R_X86_64_RELATIVE, Rela64, SHF_ALLOC, SHT_RELA,
};

/// What a linkage stub or slot leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callee<'a> {
    /// A symbol another file defines.
    Imported(&'a str),
    /// A link-time address in this file (of the resolver, for an IFUNC).
    Local(u64),
}

#[derive(Debug, Clone, Copy)]
enum Target {
    Symbol(u32),
    Address(u64),
}

/// The relocations that fill pointers, in order of slot.
#[derive(Debug, Default)]
pub(super) struct Linkage {
    slots: Vec<(u64, Target)>,
    /// Slots in the order of `.rela.plt`: what a lazy stub's number counts.
    lazy: Vec<u64>,
}

impl Linkage {
    pub(super) fn read(elf: &Elf) -> Self {
        let mut linkage = Self::default();
        if elf.machine() != EM_X86_64 {
            return linkage;
        }
        for section in elf.sections() {
            // Relocations of object files and of debug sections are not those of the loader.
            let loaded = section.flags.0 & SHF_ALLOC.0 != 0;
            if section.kind != SHT_RELA || !loaded {
                continue;
            }
            let stored = elf.stored_bytes(section);
            let count = stored.len() / size_of::<Rela64<object::LittleEndian>>();
            let Ok((relocations, _)) =
                object::pod::slice_from_bytes::<Rela64<object::LittleEndian>>(stored, count)
            else {
                continue;
            };
            let of_plt = section.name == ".rela.plt";
            for relocation in relocations {
                let slot = relocation.r_offset.get(LE);
                if of_plt {
                    linkage.lazy.push(slot);
                }
                let target = match relocation.r_type(LE, false) {
                    R_X86_64_JUMP_SLOT | R_X86_64_GLOB_DAT | R_X86_64_64 => {
                        Target::Symbol(relocation.r_sym(LE, false))
                    }
                    R_X86_64_RELATIVE | R_X86_64_IRELATIVE => {
                        Target::Address(relocation.r_addend.get(LE) as u64)
                    }
                    _ => continue,
                };
                linkage.slots.push((slot, target));
            }
        }
        linkage.slots.sort_by_key(|(slot, _)| *slot);
        linkage
    }

    pub(super) fn slot_target<'a>(&self, elf: &'a Elf, slot: u64) -> Option<Callee<'a>> {
        let found = self.slots.binary_search_by_key(&slot, |(at, _)| *at).ok();
        match found.and_then(|at| self.slots.get(at)) {
            Some((_, Target::Address(address))) => Some(Callee::Local(*address)),
            Some((_, Target::Symbol(index))) => {
                let symbol = elf.symbol_table().dynamic(*index, &elf.bytes)?;
                if symbol.is_defined() {
                    Some(Callee::Local(symbol.address))
                } else if symbol.name.is_empty() {
                    None
                } else {
                    Some(Callee::Imported(symbol.name))
                }
            }
            None => {
                let stored = elf.code_at(slot, 8)?.try_into().ok()?;
                let address = u64::from_le_bytes(stored);
                let in_table = elf
                    .sections()
                    .iter()
                    .any(|section| section.contains(slot) && !section.is_code());
                (in_table && elf.is_code(address)).then_some(Callee::Local(address))
            }
        }
    }

    pub(super) fn imported<'a>(&'a self, elf: &'a Elf) -> impl Iterator<Item = (u64, &'a str)> {
        self.slots.iter().filter_map(move |(slot, target)| {
            let Target::Symbol(index) = target else {
                return None;
            };
            let symbol = elf.symbol_table().dynamic(*index, &elf.bytes)?;
            (!symbol.is_defined() && !symbol.name.is_empty()).then_some((*slot, symbol.name))
        })
    }

    pub(super) fn stub_target<'a>(&self, elf: &'a Elf, address: u64) -> Option<Callee<'a>> {
        let code = elf.bytes_from(address)?;
        let mut at = 0;
        if code.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]) {
            at += 4; // endbr64
        }
        if code.get(at) == Some(&0xf2) {
            at += 1; // bnd
        }
        let operand = |from: usize| {
            code.get(from..from + 4)
                .and_then(|bytes| bytes.try_into().ok())
                .map(i32::from_le_bytes)
        };
        match (code.get(at)?, code.get(at + 1)?) {
            (0xff, 0x25) => {
                let next = address.wrapping_add(at as u64 + 6);
                let slot = next.wrapping_add_signed(i64::from(operand(at + 2)?));
                self.slot_target(elf, slot)
            }
            (0x68, _) if elf.section(".plt")?.contains(address) => {
                let number = usize::try_from(operand(at + 1)?).ok()?;
                self.slot_target(elf, *self.lazy.get(number)?)
            }
            _ => None,
        }
    }
}
