//! *Which blocks did a pool cut out of others?* — what the hooks of functions that are declared as a pool's do.
//!
//! What a pool asks for itself, its chunks, is recorded as ever: the thread stays outside while the pool's function runs. What the function
//! then returns is recorded as a nested block, under the path of its own caller. The recorded block that it lies in, its *container*,
//! is marked, so that the hooks of `free` come here when it goes, and all that was cut out of it goes too. Where the functions are given
//! their pool as an argument, its containers are noted ([`containers`]), so that what is taken back by one call is known as well.
//!
//! Where one of a pool's functions calls another, the outermost one records.

mod containers;

use crate::heap::STEP;
use crate::hooks::{Planted, is_filtered};
use crate::region::Region;
use crate::sys;
use crate::threads::State;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};
use pointee_index::class::Class;
use pointee_index::counters::Thread;
use pointee_index::table::Recorded;
use pointee_index::words::GRANULE;

/// What is known of a page that blocks were cut out of.
#[repr(C, align(16))]
pub(crate) struct Known {
    /// Which page, and the part of it, in granules, whose container is marked and noted already.
    ///
    /// ```text
    ///   page number << 18 | first granule << 9 | one past the last
    /// ```
    pub(crate) part: AtomicU64,
    /// From where on in the page, in steps of 8 bytes, nothing was cut out since it was met, and nothing was recorded then. Heeded only
    /// while one thread is recorded ([`threads::ALONE`](crate::threads::ALONE)): it is read and written without more ado.
    pub(crate) fresh: AtomicU32,
}

/// The pages that blocks were cut out of last.
pub(crate) static KNOWN: [Known; PAGES as usize] = [const {
    Known {
        part: AtomicU64::new(0),
        fresh: AtomicU32::new(STEPS),
    }
}; PAGES as usize];
pub(crate) const PAGES: u64 = 4096;
/// Steps of 8 bytes in a page.
pub(crate) const STEPS: u32 = 512;
pub(crate) const PAGE_SHIFT: u32 = 12;
pub(crate) const GRANULES: u64 = 256;

fn known(page: u64) -> &'static Known {
    &KNOWN[(page % PAGES) as usize]
}

#[inline(always)]
fn is_known(block: u64) -> bool {
    let page = block >> PAGE_SHIFT;
    let known = known(page).part.load(Relaxed);
    let granule = block >> 4 & (GRANULES - 1);
    known >> 18 == page && (known >> 9 & 0x1ff) <= granule && granule < known & 0x1ff
}

/// Records what a pool's function returned, from the pool `handle` (0: not known); of one that analysis found, if it is part of a recorded block. To be
/// called while the thread writes the index.
pub(crate) fn record(
    region: &Region,
    thread: &Thread,
    origin: u32,
    block: u64,
    size: u64,
    handle: u64,
    is_found: bool,
) {
    if is_found && !is_part(region, block, size) {
        return;
    }
    let holds = |at: u64| region.reader.block_at(at).is_some();
    if size == 0 && !holds(block) && holds(block.wrapping_sub(1)) {
        // A header and nothing behind it: it lies in no container, and would outlive its own.
        return;
    }
    // What it replaces its pool took back by means that are not hooked.
    let replaced = |block| forget(region, thread, block);
    if !region.nested.insert(block, size, origin, replaced) {
        return;
    }
    region.counters.cut_out(thread, origin, size);
    if !is_known(block) {
        meet(region, block, handle);
    }
    cut(block, size);
}

/// Notes that the page of a block is no longer fresh up to its end; nor is the next page, if it reaches so far, and its words may.
#[inline(always)]
fn cut(block: u64, size: u64) {
    let page = block >> PAGE_SHIFT;
    let in_page = block % (1 << PAGE_SHIFT);
    let end = in_page.saturating_add(size.max(1)).div_ceil(8);
    let fresh = &known(page).fresh;
    let end = end.min(u64::from(STEPS)) as u32;
    fresh.store(end.max(fresh.load(Relaxed)), Relaxed);
    if end == STEPS {
        known(page + 1).fresh.store(STEPS, Relaxed);
    }
}

/// The same for a block on whose bytes nothing is recorded, in a container that is known, by a thread with counters of its own. `false`, and
/// nothing is done, otherwise.
#[inline(always)]
pub(crate) fn record_new(
    region: &Region,
    thread: &Thread,
    origin: u32,
    block: u64,
    size: u64,
) -> bool {
    let is_recorded = is_known(block) && region.nested.insert_new(block, size, origin);
    if is_recorded {
        region.counters.cut_out(thread, origin, size);
        cut(block, size);
    }
    is_recorded
}

/// Records what lies from `start` to `end`, which code carved out that is in no function of a pool, if all of it lies in one container, or `is_variable`, an
/// array at a fixed address.
#[inline]
pub(crate) fn carved(
    region: &Region,
    thread: &Thread,
    start: u64,
    end: u64,
    is_variable: bool,
    origin: impl FnOnce() -> u32,
) {
    let size = end - start;
    let is_in_one =
        is_known(start) && start >> PAGE_SHIFT == (end - 1) >> PAGE_SHIFT && is_known(end - 1);
    if is_in_one {
        let origin = origin();
        if !record_new(region, thread, origin, start, size) {
            record(region, thread, origin, start, size, 0, false);
        }
    } else if is_variable || lies_in_one(region, start, end) {
        record(region, thread, origin(), start, size, 0, false);
    }
}

/// Takes out what was carved out from `start` to `end`.
#[inline]
pub(crate) fn uncarved(region: &Region, thread: &Thread, start: u64, end: u64, is_variable: bool) {
    if region.nested.any() && (is_variable || lies_in_one(region, start, end)) {
        erase_in(region, thread, start, end - start);
    }
}

/// Whether all from `start` to `end` lies in one recorded block.
fn lies_in_one(region: &Region, start: u64, end: u64) -> bool {
    let around = region.reader.block_at(start);
    around.is_some_and(|around| end - around.base <= around.size)
}

/// Whether `size` bytes at `block` lie in a recorded block and are not all of it, rounded up, as is what a function passed on.
fn is_part(region: &Region, block: u64, size: u64) -> bool {
    let around = region.reader.block_at(block);
    around.is_some_and(|around| {
        let from = block - around.base;
        let room = around.size.checked_sub(from.saturating_add(size));
        room.is_some_and(|room| from != 0 || room >= 16)
    })
}

/// What a pool maps for itself at once is soon cut up, as far as it is no more than this.
const SOON: u64 = 4 << 20;

/// A function of a pool mapped the pages from `start` up to `end` for itself. Their words are made present by one call, instead of a fault for each
/// page of words.
#[cold]
pub(crate) fn mapped(region: &Region, start: u64, end: u64) {
    if !(STEP..=SOON).contains(&(end - start)) || is_filtered() {
        return;
    }
    for plane in [0, 8] {
        let mut from = start & !(STEP - 1);
        // Where a chunk has no table yet, it gets one with its first block.
        while from < end
            && let Some((words, len)) = region.nested.words_of(from | plane, end)
            && sys::populate(words, len)
        {
            from = (from + len as u64 * (GRANULE / 4)).next_multiple_of(STEP);
        }
    }
}

/// Finds the container of a block, marks and notes it.
#[cold]
fn meet(region: &Region, block: u64, handle: u64) {
    let page = block >> PAGE_SHIFT;
    let in_page = |address: u64| {
        let granules = (address >> 4).saturating_sub(page << (PAGE_SHIFT - 4));
        granules.min(GRANULES)
    };
    let (mut first, mut last) = (0, GRANULES);
    let start = page << PAGE_SHIFT;
    // Pools that map their memory themselves meet page after page.
    if region.pages.at(start).is_pools() || region.reader.is_bare(start, 1 << PAGE_SHIFT) {
        // All of the page is theirs.
    } else if let Some(around) = region.reader.block_at(block) {
        region.writer.mark_container(around.base);
        containers::note(handle, around.base);
        first = in_page(around.base);
        last = in_page(around.base.saturating_add(around.size));
    } else if has_blocks(region, page) {
        return;
    }
    // A pool cuts up a page at a time.
    region.nested.open_page(start);
    let known = known(page);
    let used = region.nested.fresh_from(start) - start;
    let fresh = used.div_ceil(8).min(u64::from(STEPS));
    known.fresh.store(fresh as u32, Relaxed);
    known.part.store(page << 18 | first << 9 | last, Relaxed);
}

/// Whether a recorded block starts on a page, or reaches into it.
fn has_blocks(region: &Region, page: u64) -> bool {
    let start = page << PAGE_SHIFT;
    region.writer.has_start_on(start) || region.reader.block_at(start).is_some()
}

/// Opens a call of a pool's function whose return address lies at `slot`. `false` inside another.
#[inline(always)]
pub(crate) fn enter(state: &State, slot: *const u64) -> bool {
    let is_inside = is_inside(state, slot);
    if !is_inside {
        state.pool.store((slot as u64 >> 3) as u32, Relaxed);
    }
    !is_inside
}

/// Whether a call whose return address lies at `slot` is made inside a pool's function. One that was left by a `longjmp` lies no
/// further out on the stack.
#[inline(always)]
pub(crate) fn is_inside(state: &State, slot: *const u64) -> bool {
    // Stacks are far shorter than the 16 GiB that can be told so.
    let place = (slot as u64 >> 3) as u32;
    let outer = state.pool.load(Relaxed);
    outer != 0 && (place.wrapping_sub(outer) as i32) < 0
}

/// Closes it.
#[inline(always)]
pub(crate) fn leave(state: &State) {
    state.pool.store(0, Relaxed);
}

/// Takes out what was cut out of a block that is freed.
#[cold]
pub(crate) fn container_freed(region: &Region, thread: &Thread, base: u64, block: Recorded) {
    empty(region, thread, base, block.size);
    containers::gone(base);
}

/// Takes out what was cut out of some bytes.
#[cold]
pub(crate) fn empty(region: &Region, thread: &Thread, base: u64, len: u64) {
    erase_in(region, thread, base, len);
    let last = base.saturating_add(len) >> PAGE_SHIFT;
    for page in (base >> PAGE_SHIFT..=last).take(PAGES as usize) {
        known(page).part.store(0, Relaxed);
    }
}

/// Takes out all that the pool `handle` cut out of its containers.
#[cold]
pub(crate) fn take_back_all(region: &Region, thread: &Thread, handle: u64) {
    containers::take(handle, |base| {
        let container = region.reader.block_at(base);
        if let Some(container) = container.filter(|container| container.base == base) {
            empty(region, thread, base, container.size);
        }
    });
}

/// Takes out what was cut out of `mark`'s container from there on.
#[cold]
pub(crate) fn take_back_from(region: &Region, thread: &Thread, mark: u64) {
    if let Some(container) = region.reader.block_at(mark) {
        let end = container.base.saturating_add(container.size);
        erase_in(region, thread, mark, end.saturating_sub(mark));
    }
}

/// Takes out the blocks of some bytes. Those of one origin that lie side by side, as they often do, are counted at once.
fn erase_in(region: &Region, thread: &Thread, base: u64, len: u64) {
    let (mut origin, mut blocks, mut bytes) = (0, 0, 0);
    region.nested.erase_in(base, len, |nested| {
        if nested.origin != origin {
            if blocks != 0 {
                region.counters.put_back(thread, origin, blocks, bytes);
            }
            (origin, blocks, bytes) = (nested.origin, 0, 0);
        }
        blocks += 1;
        bytes += nested.size;
    });
    if blocks != 0 {
        region.counters.put_back(thread, origin, blocks, bytes);
    }
}

/// Counts a nested block as given back.
#[inline(always)]
pub(crate) fn forget(region: &Region, thread: &Thread, block: Recorded) {
    region
        .counters
        .put_back(thread, block.origin, 1, block.size);
}

/// The block of a pool at `address`, if that is what is being freed by a function of another class.
#[inline(always)]
pub(crate) fn freed_otherwise(
    region: &Region,
    address: u64,
    planted: &Planted,
) -> Option<Recorded> {
    if !region.nested.any() {
        return None;
    }
    let block = region.nested.at(address)?;
    (Class::of(block.origin) != planted.class()).then_some(block)
}
