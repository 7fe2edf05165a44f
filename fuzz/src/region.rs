//! *How do a few bytes become an index region?* — a region is gigabytes of address space, nearly all
//! of it never written, so an input is a list of writes into one:
//!
//! ```text
//!   u48 offset, u16 length, bytes     again and again, little-endian; the last may be cut short
//! ```
//!
//! The same pages are then read in three ways, as readers meet them: by a memory that knows its
//! holes, by one that knows only its end, and as the pages of a snapshot.

use pointee_index::{Index, Memory};
use pointee_inspect::memory::Region;
use pointee_inspect::pages::{PageWriter, SavedPages};
use std::collections::BTreeMap;

const PAGE: u64 = pointee_index::layout::PAGE;
/// Bytes before the contents of a write.
const HEAD: usize = 8;
/// Pages that are kept: an input of a few bytes per page may not take gigabytes for what it says.
const MOST: usize = 8192;

/// Bytes of a memory without holes: up to the second table of a narrow region.
const FLAT: u64 = 96 << 20;

/// Pages that were written.
#[derive(Default, Clone)]
pub struct Pages {
    by_number: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
}

impl Pages {
    /// Carries out the writes in `input`.
    #[must_use]
    pub fn of(mut input: &[u8]) -> Self {
        let mut pages = Self::default();
        while let Some((head, rest)) = input.split_at_checked(HEAD) {
            let mut offset = [0; 8];
            offset[..6].copy_from_slice(&head[..6]);
            let len = usize::from(u16::from_le_bytes([head[6], head[7]])).min(rest.len());
            pages.write(u64::from_le_bytes(offset), &rest[..len]);
            input = &rest[len..];
        }
        pages
    }

    /// Writes `bytes` at `offset`.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            let number = at / PAGE;
            if self.by_number.len() == MOST && !self.by_number.contains_key(&number) {
                return;
            }
            let page = self
                .by_number
                .entry(number)
                .or_insert_with(|| Box::new([0; PAGE as usize]));
            page[(at % PAGE) as usize] = *byte;
        }
    }

    /// The input that writes these pages, as runs of bytes that are not zero.
    #[must_use]
    pub fn to_input(&self) -> Vec<u8> {
        let mut input = Vec::new();
        for (number, page) in &self.by_number {
            let mut at = 0;
            while let Some(start) = page[at..].iter().position(|byte| *byte != 0) {
                let start = at + start;
                // Eight zeros cost as much as another head.
                let gap = page[start..].windows(HEAD).position(|run| run == [0; HEAD]);
                let end = gap.map_or(page.len(), |gap| start + gap);
                input.extend_from_slice(&(number * PAGE + start as u64).to_le_bytes()[..6]);
                input.extend_from_slice(&((end - start) as u16).to_le_bytes());
                input.extend_from_slice(&page[start..end]);
                at = end;
            }
        }
        input
    }

    /// One past the last page, but no more than [`FLAT`].
    fn end(&self) -> u64 {
        let last = self.by_number.last_key_value();
        last.map_or(0, |(number, _)| ((number + 1) * PAGE).min(FLAT))
    }

    /// An index over these pages as a snapshot holds them.
    #[must_use]
    pub fn as_saved(&self) -> Option<Index<Region>> {
        let mut writer = PageWriter::default();
        for (number, page) in &self.by_number {
            writer.add(number * PAGE, page);
        }
        let section = writer.finish();
        let range = 0..section.len();
        Index::open(Region::Saved(SavedPages::open(section.into(), range)?)).ok()
    }
}

/// Knows its holes.
impl Memory for &Pages {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let inside = (at % PAGE) as usize;
            let (part, tail) = rest.split_at_mut(rest.len().min(PAGE as usize - inside));
            match self.by_number.get(&(at / PAGE)) {
                Some(page) => part.copy_from_slice(&page[inside..inside + part.len()]),
                None => part.fill(0),
            }
            let Some(next) = at.checked_add(part.len() as u64) else {
                return false;
            };
            (at, rest) = (next, tail);
        }
        true
    }

    fn next_touched(&self, offset: u64) -> Option<u64> {
        let (number, _) = self.by_number.range(offset / PAGE..).next()?;
        Some(offset.max(number * PAGE))
    }
}

/// The same pages in a memory that knows only its end, and has nothing behind it.
pub struct Flat<'a>(pub &'a Pages);

impl Memory for Flat<'_> {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let end = offset.checked_add(buffer.len() as u64);
        end.is_some_and(|end| end <= self.0.end()) && self.0.read(offset, buffer)
    }

    fn next_touched(&self, offset: u64) -> Option<u64> {
        (offset < self.0.end()).then_some(offset)
    }
}
