//! *Which block does this address lie in?* — asked in the process that records, where the region is plain memory.
//!
//! The same answer as [`Index::block_at`](crate::read::Index::block_at), for those who need it in nanoseconds: no copy,
//! no system call, any thread, also in a signal handler. Words are read as [`words::observe`] says. The covers know of large blocks, then
//! a little is looked back for a start mark, then the rest is looked through, many words at a time.

#![allow(unsafe_code)] // Reads the region through raw pointers; offsets are bounded by the geometry.

use crate::Writer;
use crate::layout::{CHUNK_SHIFT, CHUNKS, DIRECTORY, LARGE, Layout, PAGE, SPAN_SHIFT, SPANS};
use crate::layout::{SPILL_BYTES, TABLE_WORDS};
use crate::marks::{MANY, starts};
use crate::read::Block;
use crate::table::{directory_index, granule};
use crate::words::{self, GRANULE_SHIFT};
use core::ops::Range;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::sync::atomic::{AtomicU32, AtomicU64};

/// How far back is looked first: most blocks start within it.
const NEAR: u64 = 1024;

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

    /// The live block that `address` lies in, at its base or anywhere inside. Inlined, so that the answer stays in registers.
    #[inline(always)]
    #[must_use]
    pub fn block_at(&self, address: u64) -> Option<Block> {
        if address >> 47 != 0 {
            return None;
        }
        if self.level == 0 {
            // Blocks of allocators lie apart, so one that holds the address is the only one.
            return match self.block_near(address) {
                None => self.block_beyond(address, 0..u64::MAX),
                found => found,
            };
        }
        let base = self.base_of_latest(address)?;
        let block = self.block_from(self.table_of(base)?, granule(base), base)?;
        block.holds(address).then_some(block)
    }

    /// The same for a large block, and for one that starts near by: nearly all do.
    #[inline(always)]
    #[must_use]
    pub fn block_near(&self, address: u64) -> Option<Block> {
        if address >> 47 != 0 {
            return None;
        }
        // Words in the middle of a large block may not be in the cache, its cover is.
        if let Some(table) = self.table_of(address >> CHUNK_SHIFT << CHUNK_SHIFT)
            && let Some(base) = Self::cover_in(table, address)
            && let Some(block) = self.block_starting_at(base)
            && block.holds(address)
        {
            return Some(block);
        }
        let block = self.nearest_start(address, 0, NEAR)?;
        block.holds(address).then_some(block)
    }

    /// The block that holds `address`, if [`Self::block_near`] knows of none and it lies in `within`.
    #[inline(never)]
    #[must_use]
    pub fn block_beyond(&self, address: u64, within: Range<u64>) -> Option<Block> {
        if address >> 47 != 0 || !within.contains(&address) {
            return None;
        }
        let holds = |block: &Block| block.holds(address) && within.contains(&block.base);
        let len = (address - within.start).min(LARGE);
        if within.end - within.start >= LARGE {
            // The span that a large block starts in is not covered, the next one is.
            let next = Some(address + LARGE).filter(|next| next >> 47 == 0);
            let covering = [Some(address), next].into_iter().flatten().find_map(|by| {
                let block = self.block_starting_at(self.covering(by)?)?;
                holds(&block).then_some(block)
            });
            if covering.is_some() {
                return covering;
            }
        }
        let in_plane = |plane| self.nearest_start(address, plane, len).filter(holds);
        let even = if len > NEAR { in_plane(0) } else { None };
        even.or_else(|| in_plane(8))
    }

    #[inline(always)]
    fn block_starting_at(&self, base: u64) -> Option<Block> {
        self.block_from(self.table_of(base)?, granule(base), base)
    }

    /// Where the block starts whose start is the nearest: a pool may cut one out of another that it took back unseen.
    #[inline(never)]
    fn base_of_latest(&self, address: u64) -> Option<u64> {
        let near = [0, 8]
            .into_iter()
            .filter_map(|plane| self.nearest_start(address, plane, LARGE))
            .max_by_key(|block| block.base);
        near.filter(|block| block.holds(address))
            .map(|block| block.base)
            .or_else(|| self.covering(address))
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

    /// Whether no block starts in `len` bytes from `start` on, nor so near in front that it could reach them. Not so where a large one begins a
    /// little behind them.
    #[must_use]
    pub fn is_bare(&self, start: u64, len: u64) -> bool {
        let last = start + len - 1;
        let around = [start, last, last + LARGE];
        let starts = |plane| self.nearest_mark(last, plane, len + LARGE).is_some();
        last >> 46 == 0
            && !around.into_iter().any(|by| self.covering(by).is_some())
            && !starts(0)
            && !starts(8)
    }

    /// The last block of one plane that starts at or below `address`, within so many bytes.
    #[inline(always)]
    fn nearest_start(&self, address: u64, plane: u64, within: u64) -> Option<Block> {
        let (table, found, base) = self.nearest_mark(address, plane, within)?;
        self.block_from(table, found, base)
    }

    /// The table and the granule of the last start of one plane at or below `address`, within so many bytes; and where it is.
    #[inline(always)]
    fn nearest_mark(
        &self,
        address: u64,
        plane: u64,
        within: u64,
    ) -> Option<(*const AtomicU32, u64, u64)> {
        let mut at = if address & 15 >= plane {
            address & !15 | plane
        } else {
            (address & !15 | plane).checked_sub(16)?
        };
        let lowest = address.saturating_sub(within);
        while at >= lowest {
            let last = granule(at);
            if let Some(table) = self.table_of(at) {
                let first = last.saturating_sub((at - lowest) >> GRANULE_SHIFT);
                // SAFETY: granules of one table.
                if let Some(found) = unsafe { last_start(table, first, last) } {
                    let base = at - ((last - found) << GRANULE_SHIFT);
                    return Some((table, found, base));
                }
            }
            // On at the end of the chunk before.
            at = at.checked_sub((last + 1) << GRANULE_SHIFT)?;
        }
        None
    }

    /// The base of the large block that covers the start of `address`'s span, if that starts in the same chunk.
    #[inline(always)]
    fn cover_in(table: *const AtomicU32, address: u64) -> Option<u64> {
        let span = address >> SPAN_SHIFT & (SPANS - 1);
        let at = TABLE_WORDS * 4 + SPILL_BYTES + span * 8;
        // SAFETY: within the table's covers.
        let base = unsafe { &*table.byte_add(at as usize).cast::<AtomicU64>() }.load(Relaxed);
        (base != 0).then_some(base)
    }

    fn covering(&self, address: u64) -> Option<u64> {
        let chunk = address >> CHUNK_SHIFT;
        let table = self.table_of(chunk << CHUNK_SHIFT);
        if let Some(base) = table.and_then(|table| Self::cover_in(table, address)) {
            return Some(base);
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
    // SAFETY: the caller's promise, for all granules up to `last`.
    let is_start = |at: u64| words::is_start(unsafe { &*table.add(at as usize) }.load(Relaxed));
    if is_start(last) {
        return Some(last);
    }
    let mut end = last;
    while end > first && end >= MANY {
        // SAFETY: the caller's promise: words of the table, of which those below `first` do not count.
        let marks = unsafe { starts(table.add((end - MANY) as usize)) };
        if marks != 0 {
            let found = end - MANY + u64::from(marks.ilog2());
            return (found >= first).then_some(found);
        }
        end -= MANY;
    }
    (first..end).rev().find(|at| is_start(*at))
}
