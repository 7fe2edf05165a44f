//! *Which bytes does the DWARF parser read?*
//!
//! The unpacked `.debug_*` sections of one ELF file, kept together so that readers can borrow them.

use crate::elf::{Elf, ElfError};
use gimli::{Dwarf, DwarfPackage, DwarfPackageSections, DwarfSections, EndianSlice, LittleEndian};
use std::borrow::Cow;

/// How all DWARF is read here: borrowed, little-endian.
pub(super) type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// The debug sections of one ELF file.
pub(super) struct Sections<'a>(DwarfSections<Cow<'a, [u8]>>);

impl<'a> Sections<'a> {
    /// Unpacks the sections; a damaged one counts as empty and is named in `diagnostics`.
    pub(super) fn of(elf: &'a Elf, diagnostics: &mut Vec<String>) -> Self {
        let loaded = DwarfSections::load(|id| Ok::<_, ()>(bytes_of(elf, id.name(), diagnostics)));
        Self(loaded.unwrap_or_default())
    }

    /// The same for a `.dwo` file, whose sections are named `.debug_info.dwo` and so on.
    pub(super) fn of_split(elf: &'a Elf, diagnostics: &mut Vec<String>) -> Self {
        let loaded = DwarfSections::load(|id| {
            Ok::<_, ()>(id.dwo_name().map_or(Cow::Borrowed(&[][..]), |name| {
                checked(elf.joined_section_bytes(name), name, diagnostics)
            }))
        });
        Self(loaded.unwrap_or_default())
    }

    /// A parser's view.
    pub(super) fn dwarf(&self) -> Dwarf<Bytes<'_>> {
        self.0.borrow(|bytes| EndianSlice::new(bytes, LittleEndian))
    }
}

/// The sections of a `.dwp` file.
pub(super) struct PackageSections<'a>(DwarfPackageSections<Cow<'a, [u8]>>);

impl<'a> PackageSections<'a> {
    pub(super) fn of(elf: &'a Elf, diagnostics: &mut Vec<String>) -> Option<Self> {
        DwarfPackageSections::load(|id| {
            Ok::<_, gimli::Error>(id.dwo_name().map_or(Cow::Borrowed(&[][..]), |name| {
                bytes_of(elf, name, diagnostics)
            }))
        })
        .ok()
        .map(Self)
    }

    pub(super) fn package(&self) -> Option<DwarfPackage<Bytes<'_>>> {
        self.0
            .borrow(
                |bytes| EndianSlice::new(bytes, LittleEndian),
                EndianSlice::new(&[], LittleEndian),
            )
            .ok()
    }
}

fn bytes_of<'a>(elf: &'a Elf, name: &str, diagnostics: &mut Vec<String>) -> Cow<'a, [u8]> {
    checked(elf.section_bytes(name), name, diagnostics)
}

fn checked<'a>(
    bytes: Result<Option<Cow<'a, [u8]>>, ElfError>,
    name: &str,
    diagnostics: &mut Vec<String>,
) -> Cow<'a, [u8]> {
    match bytes {
        Ok(bytes) => bytes.unwrap_or_default(),
        Err(error) => {
            diagnostics.push(format!("{name}: {error}"));
            Cow::default()
        }
    }
}
