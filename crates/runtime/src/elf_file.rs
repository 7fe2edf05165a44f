//! *Which sections has the file of a loaded object?*
//!
//! Symbol tables, and unwind rules that no program header leads to, are found by section headers alone, and those are in the
//! file only. It is mapped while it is read; every read is checked against its end.

#![allow(unsafe_code)] // Maps the file.

use crate::modules::Module;
use crate::sys;

/// A file, mapped as long as this is there.
pub(crate) struct ElfFile {
    bytes: &'static [u8],
}

/// Where a section header lies in its file.
#[derive(Clone, Copy)]
pub(crate) struct Section(usize);

impl Drop for ElfFile {
    fn drop(&mut self) {
        // SAFETY: our mapping; nothing of it is kept.
        unsafe { sys::munmap(self.bytes.as_ptr().cast_mut(), self.bytes.len()) };
    }
}

impl ElfFile {
    /// Maps the file of `module`.
    pub(crate) fn of(module: &Module) -> Option<Self> {
        if module.path.is_empty() {
            return None;
        }
        let path = if module.is_executable {
            c"/proc/self/exe"
        } else {
            module.path.as_c_str()
        };
        let (at, len) = sys::map_file(path, 64)?;
        // SAFETY: mapped for `len` bytes.
        let bytes = unsafe { core::slice::from_raw_parts(at, len) };
        Some(Self { bytes })
    }

    /// The first section of type `kind` (`SHT_*`).
    pub(crate) fn section_of_type(&self, kind: u32) -> Option<Section> {
        self.sections()
            .find(|section| self.u32_at(section.0 + 4) == Some(kind))
    }

    /// The first section called `name`.
    pub(crate) fn section_named(&self, name: &[u8]) -> Option<Section> {
        let names = self.contents(self.section(self.u32_at(60)? >> 16)?)?;
        self.sections().find(|section| {
            let text = self
                .u32_at(section.0)
                .and_then(|at| names.get(at as usize..));
            text.and_then(|text| text.strip_prefix(name))
                .is_some_and(|rest| rest.first() == Some(&0))
        })
    }

    /// The section that `section` says it belongs with (`sh_link`).
    pub(crate) fn linked(&self, section: Section) -> Option<Section> {
        self.section(self.u32_at(section.0 + 40)?)
    }

    /// Its bytes.
    pub(crate) fn contents(&self, section: Section) -> Option<&'static [u8]> {
        let start = usize::try_from(self.u64_at(section.0 + 24)?).ok()?;
        let len = usize::try_from(self.u64_at(section.0 + 32)?).ok()?;
        self.bytes.get(start..start.checked_add(len)?)
    }

    /// Its link-time address and its length.
    pub(crate) fn place(&self, section: Section) -> Option<(u64, u64)> {
        Some((self.u64_at(section.0 + 16)?, self.u64_at(section.0 + 32)?))
    }

    fn sections(&self) -> impl Iterator<Item = Section> {
        let count = self.u32_at(60).unwrap_or(0) & 0xffff;
        (0..count).filter_map(|number| self.section(number))
    }

    fn section(&self, number: u32) -> Option<Section> {
        const LEN: usize = 64;
        let headers = usize::try_from(self.u64_at(40)?).ok()?;
        let at = headers.checked_add(LEN * number as usize)?;
        let whole = at.checked_add(LEN)? <= self.bytes.len();
        whole.then_some(Section(at))
    }

    fn u64_at(&self, at: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    fn u32_at(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }
}
