//! *Which block does this address lie in?* — asked in the process that records, where the region is plain memory.
//!
//! The same answer as [`Index::block_at`](crate::read::Index::block_at), for those who need it in nanoseconds: no copy,
//! no system call, any thread, also in a signal handler. Words are read as [`words::observe`] says; the scan
//! back to a start mark looks at eight of them at a time.

#![allow(unsafe_code)] // Reads the region through raw pointers; offsets are bounded by the geometry.

use crate::Writer;
use crate::layout::{CHUNK_SHIFT, CHUNKS, DIRECTORY, LARGE, Layout, PAGE, SPAN_SHIFT, SPANS};
use crate::layout::{SPILL_BYTES, TABLE_WORDS};
use crate::read::Block;
use crate::table::{directory_index, granule};
use crate::words::{self, GRANULE_SHIFT};
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::sync::atomic::{AtomicU32, AtomicU64};

/// Reads the tables of one level of blocks.
#[derive(Clone, Copy)]
pub struct Reader {
    directory: *const AtomicU64,
    chunk_covers: *const AtomicU64,
    /// 0: blocks of allocators, 1: of pools.
    level: u64,
}
// SAFETY: everything behind the pointers is atomic.
unsafe impl Sync for Reader {}
// SAFETY: as above.
unsafe impl Send for Reader {}

impl Reader {
    /// Reads the blocks of allocators in the region at `base`.
    ///
    /// # Safety
    /// `base` points to a region of this layout, written by nobody but its [`Writer`]s and mapped as long
    /// as `self` is used.
    #[must_use]
    pub const unsafe fn new(base: *const u8, layout: &Layout) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::of_level(base, layout, 0) }
    }

    /// Reads the blocks that pools cut out of others.
    ///
    /// # Safety
    /// As for [`Self::new`].
    #[must_use]
    pub const unsafe fn of_pools(base: *const u8, layout: &Layout) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::of_level(base, layout, 1) }
    }

    const unsafe fn of_level(base: *const u8, layout: &Layout, level: u64) -> Self {
        let directory = layout.directory + level * DIRECTORY * 8;
        let chunk_covers = layout.chunk_covers + level * CHUNKS * 8;
        Self {
            directory: base.wrapping_add(directory as usize).cast(),
            chunk_covers: base.wrapping_add(chunk_covers as usize).cast(),
            level,
        }
    }

    /// The live block that `address` lies in, at its base or anywhere inside.
    #[inline]
    #[must_use]
    pub fn block_at(&self, address: u64) -> Option<Block> {
        if address >> 47 != 0 {
            return None;
        }
        let even = self.nearest_start(address, 0);
        let odd = self.nearest_start(address, 8);
        let near = match (even, odd) {
            (Some(even), Some(odd)) if odd.base > even.base => Some(odd),
            (even, odd) => even.or(odd),
        };
        if near.is_some_and(|block| block.holds(address)) {
            return near;
        }
        let base = self.covering(address)?;
        let block = self.block_from(self.table_of(base)?, granule(base), base)?;
        block.holds(address).then_some(block)
    }

    /// Calls `each` for every live block, by table, until it says `false`. Pages of words for which `is_touched` says no are
    /// passed over: to look at one would make the kernel allocate it.
    pub fn each_block(
        &self,
        writer: &Writer,
        mut is_touched: impl FnMut(*const u8) -> bool,
        mut each: impl FnMut(Block) -> bool,
    ) {
        const WORDS: u64 = PAGE / 4;
        for number in 0..writer.tables() {
            let first = self.level * DIRECTORY;
            let owner = writer
                .owner(number)
                .and_then(|owner| owner.checked_sub(first));
            let Some(owner) = owner.filter(|owner| *owner < DIRECTORY) else {
                continue;
            };
            let start = owner >> 1 << CHUNK_SHIFT | (owner & 1) << 3;
            let Some(table) = self.table_of(start) else {
                continue;
            };
            for first in (0..TABLE_WORDS).step_by(WORDS as usize) {
                if !is_touched(table.wrapping_add(first as usize).cast()) {
                    continue;
                }
                for granule in first..first + WORDS {
                    let base = start + (granule << GRANULE_SHIFT);
                    if let Some(block) = self.block_from(table, granule, base)
                        && !each(block)
                    {
                        return;
                    }
                }
            }
        }
    }

    /// The table of `address`'s chunk and plane.
    #[inline(always)]
    fn table_of(&self, address: u64) -> Option<*const AtomicU32> {
        // SAFETY: `directory_index` is below the number of entries.
        let entry = unsafe { &*self.directory.add(directory_index(address)) }.load(Acquire);
        (entry != 0).then_some(entry as *const AtomicU32)
    }

    #[inline(always)]
    fn block_from(&self, table: *const AtomicU32, granule: u64, base: u64) -> Option<Block> {
        // SAFETY: a granule of the table, with two words of spill behind the last.
        let (first, size) = words::observe(|word| unsafe { &*table.add(granule as usize + word) })?;
        Some(Block {
            base,
            size,
            origin: words::origin(first),
        })
    }

    /// The last block of one plane that starts at or below `address`, within [`LARGE`] bytes.
    #[inline(always)]
    fn nearest_start(&self, address: u64, plane: u64) -> Option<Block> {
        let mut at = if address & 15 >= plane {
            address & !15 | plane
        } else {
            (address & !15 | plane).checked_sub(16)?
        };
        let lowest = address.saturating_sub(LARGE);
        while at >= lowest {
            let last = granule(at);
            if let Some(table) = self.table_of(at) {
                let first = last.saturating_sub((at - lowest) >> GRANULE_SHIFT);
                // SAFETY: granules of one table.
                if let Some(found) = unsafe { last_start(table, first, last) } {
                    let base = at - ((last - found) << GRANULE_SHIFT);
                    return self.block_from(table, found, base);
                }
            }
            // On at the end of the chunk before.
            at = at.checked_sub((last + 1) << GRANULE_SHIFT)?;
        }
        None
    }

    fn covering(&self, address: u64) -> Option<u64> {
        let chunk = address >> CHUNK_SHIFT;
        if let Some(table) = self.table_of(chunk << CHUNK_SHIFT) {
            let span = address >> SPAN_SHIFT & (SPANS - 1);
            let at = TABLE_WORDS * 4 + SPILL_BYTES + span * 8;
            // SAFETY: within the table's covers.
            let base = unsafe { &*table.byte_add(at as usize).cast::<AtomicU64>() }.load(Relaxed);
            if base != 0 {
                return Some(base);
            }
        }
        // SAFETY: `address` lies below 2^47.
        let base = unsafe { &*self.chunk_covers.add(chunk as usize) }.load(Relaxed);
        (base != 0).then_some(base)
    }
}

/// The last granule from `first` to `last` whose word is a start.
///
/// # Safety
/// They are granules of `table`.
#[inline(always)]
unsafe fn last_start(table: *const AtomicU32, first: u64, last: u64) -> Option<u64> {
    // SAFETY: the caller's promise.
    let word = |at: u64| unsafe { &*table.add(at as usize) }.load(Relaxed);
    let mut end = last + 1;
    while end > first {
        if end - first >= 8 && end < last {
            let all = (1..=8).fold(0, |all, back| all | word(end - back));
            if !words::is_start(all) {
                end -= 8;
                continue;
            }
        }
        end -= 1;
        if words::is_start(word(end)) {
            return Some(end);
        }
    }
    None
}
