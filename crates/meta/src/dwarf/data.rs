//! *What lies where there is data, when debug info does not say?* — symbols and sections.

use crate::elf::Elf;
use crate::facts::{Global, LoadedSection};
use crate::names::demangle;
use object::elf::{SHF_ALLOC, SHF_EXECINSTR, SHF_TLS, SHF_WRITE, SHT_NOBITS, STT_TLS, SectionType};
use pointee_model::image::section_flags;
use std::collections::HashSet;

/// Data that a symbol table names and that none of `globals` describes, in order of (thread-local, address).
pub(super) fn symbols<'e>(files: impl Iterator<Item = &'e Elf>, globals: &[Global]) -> Vec<Global> {
    let described: HashSet<(bool, u64)> = globals
        .iter()
        .filter(|global| global.size != 0)
        .map(|global| (global.thread_local, global.address))
        .collect();
    let mut found: Vec<(bool, u64, u64, &str)> = Vec::new();
    for elf in files {
        let data = elf
            .symbols()
            .filter(|symbol| symbol.is_object() && symbol.size != 0 && !symbol.name.is_empty());
        found.extend(data.map(|symbol| {
            let thread_local = symbol.kind == STT_TLS;
            (thread_local, symbol.address, symbol.size, symbol.name)
        }));
    }
    found.retain(|(thread_local, address, ..)| !described.contains(&(*thread_local, *address)));
    // Of several names for one address the largest counts, then the plainest.
    found.sort_by_key(|(thread_local, address, size, name)| {
        let plain = (name.starts_with('_'), name.len(), *name);
        (*thread_local, *address, std::cmp::Reverse(*size), plain)
    });
    found.dedup_by_key(|(thread_local, address, ..)| (*thread_local, *address));
    found
        .into_iter()
        .map(|(thread_local, address, size, name)| Global {
            address,
            size,
            name: demangle(name),
            r#type: None,
            thread_local,
        })
        .collect()
}

/// The sections of `elf` that are loaded, in order of address.
pub(super) fn sections(elf: &Elf) -> Vec<LoadedSection> {
    let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
    let loaded = elf
        .sections()
        .iter()
        .filter(|section| section.flags.0 & SHF_ALLOC.0 != 0 && section.size != 0);
    let mut sections: Vec<LoadedSection> = loaded
        .map(|section| LoadedSection {
            address: section.address,
            size: section.size,
            name: section.name.clone(),
            flags: flag(section.flags.0 & SHF_WRITE.0 != 0, section_flags::WRITABLE)
                | flag(section.flags.0 & SHF_EXECINSTR.0 != 0, section_flags::CODE)
                | flag(is_zeroed(section.kind), section_flags::ZEROED)
                | flag(
                    section.flags.0 & SHF_TLS.0 != 0,
                    section_flags::THREAD_LOCAL,
                ),
        })
        .collect();
    sections.sort_by_key(|section| section.address);
    sections
}

fn is_zeroed(kind: SectionType) -> bool {
    kind == SHT_NOBITS
}
