//! *What does a file say about its frames?* Its `.eh_frame`: where functions begin and end, and where the stack pointer was at their entry.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EndianSlice, FrameDescriptionEntry, LittleEndian,
    UnwindContext, UnwindSection, UnwindTableRow,
};
use pointee_meta::elf::Elf;

type Bytes<'b> = EndianSlice<'b, LittleEndian>;

/// A file's section.
pub(crate) struct Frames<'e> {
    bytes: Cow<'e, [u8]>,
    bases: BaseAddresses,
}

/// A frame's base (the stack pointer before the call) as a register, by its number in DWARF, and what is added to it.
pub(crate) type Base = (u16, i64);

impl<'e> Frames<'e> {
    /// `None` if the file has none.
    pub(crate) fn of(elf: &'e Elf) -> Option<Self> {
        let section = elf.section(".eh_frame")?;
        let bytes = elf.section_bytes(".eh_frame").ok()??;
        let mut bases = BaseAddresses::default().set_eh_frame(section.address);
        if let Some(text) = elf.section(".text") {
            bases = bases.set_text(text.address);
        }
        if let Some(got) = elf.section(".got") {
            bases = bases.set_got(got.address);
        }
        Some(Self { bytes, bases })
    }

    /// Calls `each` with every entry.
    pub(crate) fn each(&self, mut each: impl FnMut(&mut Record<'_, '_>)) {
        let frames = EhFrame::new(&self.bytes, LittleEndian);
        let mut context = UnwindContext::new();
        let mut entries = frames.entries(&self.bases);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(partial) = entry else {
                continue;
            };
            if let Ok(entry) = partial.parse(EhFrame::cie_from_offset) {
                each(&mut Record {
                    entry,
                    frames: &frames,
                    bases: &self.bases,
                    context: &mut context,
                });
            }
        }
    }

    /// The frame's base at each of these instructions where it is a register and an offset.
    pub(crate) fn bases(&self, addresses: &BTreeSet<u64>) -> BTreeMap<u64, Base> {
        let mut bases = BTreeMap::new();
        self.each(|record| {
            let start = record.entry.initial_address();
            let end = start.saturating_add(record.entry.len());
            let wanted = addresses.range(start..end.max(start));
            if wanted.clone().next().is_none() {
                return;
            }
            record.rows(|row| {
                if let CfaRule::RegisterAndOffset { register, offset } = row.cfa() {
                    let here = wanted.clone().filter(|address| row.contains(**address));
                    bases.extend(here.map(|address| (*address, (register.0, *offset))));
                }
                true
            });
        });
        bases
    }
}

/// One entry of the section.
pub(crate) struct Record<'r, 'b> {
    pub(crate) entry: FrameDescriptionEntry<Bytes<'b>>,
    frames: &'r EhFrame<Bytes<'b>>,
    bases: &'r BaseAddresses,
    context: &'r mut UnwindContext<usize>,
}

impl Record<'_, '_> {
    /// Calls `visit` with each row, in order, until it answers `false` or the rest cannot be read.
    pub(crate) fn rows(&mut self, mut visit: impl FnMut(&UnwindTableRow<usize>) -> bool) {
        let Ok(mut rows) = self.entry.rows(self.frames, self.bases, self.context) else {
            return;
        };
        while let Ok(Some(row)) = rows.next_row() {
            if !visit(row) {
                return;
            }
        }
    }
}
