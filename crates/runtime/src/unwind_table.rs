//! *Where are the unwind rules of an address?* — in the table that linkers sort for it, or in one of ours.
//!
//! A program that is linked statically, and not as PIE, has rules (`.eh_frame`) but no table (`.eh_frame_hdr`): gcc registers such
//! rules when the program begins, and sorts them when it first throws. They are sorted here at start, from the section that its file names.
//!
//! ```text
//!   row    start of the code, i32 from `base` | its rules (FDE), i32 from `base`
//! ```

#![allow(unsafe_code)] // Reads and makes tables in memory.

use crate::cfi;
use crate::elf_file::ElfFile;
use crate::modules::Module;
use crate::sys::{self, map};

/// A sorted table.
#[derive(Clone, Copy)]
pub(crate) struct UnwindTable {
    rows: u64,
    count: u64,
    base: u64,
}

impl UnwindTable {
    /// The table of `[start, end)`, which is an `.eh_frame_hdr`.
    pub(crate) fn of_header(start: u64, end: u64) -> Option<Self> {
        let (rows, count) = cfi::rows_of_header(start, end)?;
        let fits = count <= end.checked_sub(rows)? / 8;
        fits.then_some(Self {
            rows,
            count,
            base: start,
        })
    }

    /// A table of the rules of `module`, by its file's section.
    pub(crate) fn made_for(module: &Module) -> Option<Self> {
        let file = ElfFile::of(module)?;
        let (address, len) = file.place(file.section_named(b".eh_frame")?)?;
        let start = address.wrapping_add(module.bias);
        if !module.holds_all(start, len) {
            return None;
        }
        let end = start + len;
        let mut count = 0;
        cfi::each_entry(module, start, end, |_, _| count += 1);
        let room = sys::mmap(
            0,
            count * size_of::<[i32; 2]>(),
            map::READ | map::WRITE,
            map::PRIVATE | map::ANONYMOUS,
            -1,
        );
        if count == 0 || room.is_null() {
            return None;
        }
        // SAFETY: a fresh mapping of that length, which stays; any bytes make a row.
        let rows = unsafe { core::slice::from_raw_parts_mut(room.cast::<[i32; 2]>(), count) };
        let base = module.start;
        let mut places = rows.iter_mut();
        cfi::each_entry(module, start, end, |code, rules| {
            if let Some(place) = places.next() {
                *place = [code, rules].map(|address| address.wrapping_sub(base) as i32);
            }
        });
        rows.sort_unstable();
        Some(Self {
            rows: room as u64,
            count: count as u64,
            base,
        })
    }

    /// The address of the rules that may be those of `pc`: the last that begin at or before it.
    pub(crate) fn find(&self, pc: u64) -> Option<u64> {
        let row = |at: u64| {
            // SAFETY: below `count`; the table lies in a loaded segment, or is ours.
            let row = unsafe { core::ptr::read_unaligned((self.rows + at * 8) as *const [i32; 2]) };
            row.map(|distance| self.base.wrapping_add_signed(distance.into()))
        };
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if row(middle)[0] <= pc {
                low = middle + 1
            } else {
                high = middle
            }
        }
        Some(row(low.checked_sub(1)?)[1])
    }
}
