//! *How does one more section get into a finished file?*
//!
//! ```text
//!   before:  everything … │ section headers (anywhere) │ …
//!   after:   everything, byte for byte │ new bytes │ names, copied and extended │ section headers, copied and extended
//! ```
//!
//! Nothing that is loaded moves: only `e_shoff` and `e_shnum` of the header change. The old tables
//! stay where they were, unreferenced.

use super::{Elf, Header, LE};
use object::elf::{SHF_ALLOC, SHT_PROGBITS, SectionHeader64};
use object::read::elf::{FileHeader as _, SectionHeader as _};
use object::{LittleEndian, U16, U32, U64};

type Entry = SectionHeader64<LittleEndian>;

/// Numbers from here on are stored elsewhere (gABI, `SHN_LORESERVE`): such files are refused.
const MAX_SECTIONS: usize = 0xff00;

/// The bytes of `elf` with one more section, not loaded; `None` if its section headers are absent or damaged.
pub(crate) fn with_section(elf: &Elf, name: &str, contents: &[u8]) -> Option<Vec<u8>> {
    let old = elf.bytes();
    let header = Header::parse(old).ok()?;
    let entries = header.section_headers(LE, old).ok()?;
    let names_at = header.section_strings_index(LE, old).ok()?.0;
    let names_entry = *entries.get(names_at)?;
    if entries.is_empty() || entries.len() + 1 >= MAX_SECTIONS {
        return None;
    }
    let mut names = names_entry.data(LE, old).ok()?.to_vec();
    let name_at = u32::try_from(names.len()).ok()?;
    names.extend_from_slice(name.as_bytes());
    names.push(0);

    let mut new = old.to_vec();
    let contents_at = append(&mut new, contents);
    let moved_names_at = append(&mut new, &names);
    let mut table = entries.to_vec();
    let names_entry = table.get_mut(names_at)?;
    if names_entry.sh_flags(LE).0 & SHF_ALLOC.0 != 0 {
        return None;
    }
    names_entry.sh_offset = U64::new(LE, moved_names_at);
    names_entry.sh_size = U64::new(LE, names.len() as u64);
    table.push(Entry {
        sh_name: U32::new(LE, name_at),
        sh_type: U32::new(LE, SHT_PROGBITS),
        sh_flags: U64::new(LE, object::elf::SectionFlags(0)),
        sh_addr: U64::new(LE, 0),
        sh_offset: U64::new(LE, contents_at),
        sh_size: U64::new(LE, contents.len() as u64),
        sh_link: U32::new(LE, 0),
        sh_info: U32::new(LE, 0),
        sh_addralign: U64::new(LE, 8),
        sh_entsize: U64::new(LE, 0),
    });
    let table_at = append(&mut new, object::bytes_of_slice(&table));
    let (header, _) = object::from_bytes_mut::<Header>(&mut new).ok()?;
    header.e_shoff = U64::new(LE, table_at);
    header.e_shnum = U16::new(LE, u16::try_from(table.len()).ok()?);
    Some(new)
}

fn append(bytes: &mut Vec<u8>, more: &[u8]) -> u64 {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let at = bytes.len() as u64;
    bytes.extend_from_slice(more);
    at
}
