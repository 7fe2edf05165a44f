//! *How is the heap read as it was at its highest point?*
//!
//! A process that was asked to ([`pointee_index::peak`]) leaves two copies of the parts of its region that tell of blocks.
//! Here a region is put together from the later one that is whole, and, for all else, the region as it is now.

use crate::memory::RegionFile;
use pointee_index::Memory;
use pointee_index::layout::Layout;
use pointee_index::peak::{self, COPIES, Mark};
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::ops::Range;

/// A region with the blocks of its highest point.
#[derive(Debug)]
pub struct RegionAtPeak {
    now: RegionFile,
    copies: RegionFile,
    /// Where the copy lies among them.
    start: u64,
    copied: [Range<u64>; 3],
    number: u64,
    live: u64,
}

impl RegionAtPeak {
    /// From the region of `layout` in `now` and the file of its copies. `None`: no copy was made, or none is whole.
    ///
    /// # Errors
    /// When one of the files has no length.
    pub fn new(now: File, copies: File, layout: &Layout) -> io::Result<Option<Self>> {
        let copies = RegionFile::new(copies)?;
        let whole = (0..COPIES).filter_map(|copy| {
            let start = copy.checked_mul(layout.len)?;
            let (number, live) = mark(&copies, start)?;
            (number != 0).then_some((number, start, live))
        });
        let Some((number, start, live)) = whole.max_by_key(|(number, _, _)| *number) else {
            return Ok(None);
        };
        Ok(Some(Self {
            now: RegionFile::new(now)?,
            copies,
            start,
            copied: peak::copied(layout),
            number,
            live,
        }))
    }

    /// Bytes alive at the moment of the copy, as counted.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.live
    }

    /// Whether the process, if it still runs, has not begun to write over this copy.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        mark(&self.copies, self.start).is_some_and(|(number, _)| number == self.number)
    }

    /// The first written byte from `from` up to `end`, in the copy or in the region.
    fn next_in(&self, is_copied: bool, from: u64, end: u64) -> Option<u64> {
        let found = if is_copied {
            let start = self.start;
            let found = self.copies.next_touched(start.checked_add(from)?)?;
            found.checked_sub(start)?
        } else {
            self.now.next_touched(from)?
        };
        (found < end).then_some(found)
    }
}

/// Number of the copy at `start`, and bytes alive then.
fn mark(copies: &RegionFile, start: u64) -> Option<(u64, u64)> {
    let word = |at: usize| {
        let mut word = [0; 8];
        let at = start.checked_add(at as u64)?;
        copies.read(at, &mut word).then(|| u64::from_le_bytes(word))
    };
    Some((
        word(offset_of!(Mark, number))?,
        word(offset_of!(Mark, live_bytes))?,
    ))
}

impl Memory for RegionAtPeak {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        if self.copied.iter().any(|part| part.contains(&offset)) {
            let at = self.start.checked_add(offset);
            at.is_some_and(|at| self.copies.read(at, buffer))
        } else {
            self.now.read(offset, buffer)
        }
    }

    fn next_touched(&self, offset: u64) -> Option<u64> {
        // Parts of the region and of the copy take turns.
        let mut at = offset;
        for part in &self.copied {
            let steps = [(false, part.start), (true, part.end)];
            for (is_copied, end) in steps {
                if at < end {
                    if let Some(found) = self.next_in(is_copied, at, end) {
                        return Some(found);
                    }
                    at = end;
                }
            }
        }
        self.now.next_touched(at)
    }
}
