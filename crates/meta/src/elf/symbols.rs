//! *What names does the file give to its addresses?*
//!
//! The entries of `.symtab` and `.dynsym` in a compact form: names stay in the file's bytes.

use super::{FileBytes, Header, LE};
use object::elf::{
    SHN_ABS, SHN_LORESERVE, SHN_UNDEF, SHT_DYNSYM, SHT_SYMTAB, STB_LOCAL, STB_WEAK, STT_FUNC,
    STT_GNU_IFUNC, STT_OBJECT, STT_TLS, SectionType, SymbolBind, SymbolSection, SymbolType,
};
use object::read::elf::{FileHeader as _, Sym as _};

/// One symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Linker name, without version.
    pub name: &'a str,
    /// Link-time address (offset in the TLS block for thread-local ones).
    pub address: u64,
    /// Bytes; 0 if not stated.
    pub size: u64,
    /// `STT_*`.
    pub kind: SymbolType,
    /// `STB_*`.
    pub binding: SymbolBind,
    /// Section index `st_shndx`.
    pub section: SymbolSection,
    /// From `.dynsym`.
    pub dynamic: bool,
}

impl Symbol<'_> {
    /// Whether the file itself defines it.
    #[must_use]
    pub fn is_defined(&self) -> bool {
        self.section != SHN_UNDEF
    }

    /// Whether it names code (functions and IFUNC resolvers) of this file.
    #[must_use]
    pub fn is_function(&self) -> bool {
        matches!(self.kind, STT_FUNC | STT_GNU_IFUNC) && self.has_address()
    }

    /// Whether it names data of this file.
    #[must_use]
    pub fn is_object(&self) -> bool {
        matches!(self.kind, STT_OBJECT | STT_TLS) && self.has_address()
    }

    /// Whether it names code of this file that other files can call.
    #[must_use]
    pub fn is_exported(&self) -> bool {
        self.dynamic && self.kind == STT_FUNC && self.has_address() && !self.is_local()
    }

    fn has_address(&self) -> bool {
        self.is_defined() && (self.section.0 < SHN_LORESERVE || self.section == SHN_ABS)
    }

    /// Whether it is visible in its own object file only.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.binding == STB_LOCAL
    }

    /// Whether another definition takes precedence.
    #[must_use]
    pub fn is_weak(&self) -> bool {
        self.binding == STB_WEAK
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    name_start: u32,
    name_len: u16,
    section: SymbolSection,
    kind: SymbolType,
    binding: SymbolBind,
    address: u64,
    size: u64,
}

/// The symbols of one file.
#[derive(Debug, Default)]
pub(super) struct SymbolTable {
    static_symbols: Vec<Entry>,
    dynamic_symbols: Vec<Entry>,
}

impl SymbolTable {
    pub(super) fn read(header: &Header, data: &FileBytes) -> Self {
        Self {
            static_symbols: read_table(header, data, SHT_SYMTAB),
            dynamic_symbols: read_table(header, data, SHT_DYNSYM),
        }
    }

    pub(super) fn iter<'a>(&'a self, data: &'a FileBytes) -> impl Iterator<Item = Symbol<'a>> {
        self.static_symbols
            .iter()
            .map(|entry| (entry, false))
            .chain(self.dynamic_symbols.iter().map(|entry| (entry, true)))
            .map(|(entry, dynamic)| entry.symbol(data, dynamic))
    }

    /// The symbol a relocation's index means; index 0 is the undefined symbol.
    pub(super) fn dynamic<'a>(&'a self, index: u32, data: &'a FileBytes) -> Option<Symbol<'a>> {
        let entry = self.dynamic_symbols.get(index as usize)?;
        Some(entry.symbol(data, true))
    }
}

impl Entry {
    fn symbol<'a>(&self, data: &'a FileBytes, dynamic: bool) -> Symbol<'a> {
        let start = self.name_start as usize;
        let name = data
            .get(start..start + usize::from(self.name_len))
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .unwrap_or("");
        Symbol {
            name,
            address: self.address,
            size: self.size,
            kind: self.kind,
            binding: self.binding,
            section: self.section,
            dynamic,
        }
    }
}

fn read_table(header: &Header, data: &FileBytes, kind: SectionType) -> Vec<Entry> {
    let bytes: &[u8] = data;
    let Ok(table) = header
        .sections(LE, bytes)
        .and_then(|sections| sections.symbols(LE, bytes, kind))
    else {
        return Vec::new();
    };
    let base = bytes.as_ptr() as usize;
    table
        .symbols()
        .iter()
        .map(|symbol| {
            let name = symbol.name(LE, table.strings()).unwrap_or(b"");
            // Names beyond 64 KiB or outside the first 4 GiB of the file are given up, not cut.
            let place = (name.as_ptr() as usize).wrapping_sub(base);
            let (name_start, name_len) = match (u32::try_from(place), u16::try_from(name.len())) {
                (Ok(start), Ok(len)) => (start, len),
                _ => (0, 0),
            };
            Entry {
                name_start,
                name_len,
                section: symbol.st_shndx(LE),
                kind: symbol.st_type(),
                binding: symbol.st_bind(),
                address: symbol.st_value(LE),
                size: symbol.st_size(LE),
            }
        })
        .collect()
}
