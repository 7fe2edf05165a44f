//! *Which blocks did a pool cut out of others?* — the hooks of functions that the configuration declares as a pool's.
//!
//! What a pool asks for itself, its chunks, is recorded as ever: the thread stays outside while the pool's function runs. What the function
//! then returns is recorded as a nested block, under the path of its own caller. The recorded block that it lies in is marked, so that the
//! hooks of `free` come here when it goes, and all that was cut out of it goes too.
//!
//! Where one of a pool's functions calls another, the outermost one records.

#![allow(unsafe_code)] // Calls originals.

use crate::hooks::Planted;
use crate::region::Region;
use crate::threads::State;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use pointee_index::class::Class;
use pointee_index::counters::Thread;
use pointee_index::table::Recorded;

/// Pages of which it is known whether a recorded block with nested ones holds them: [`PAGES`] of them, by page number.
static KNOWN: [AtomicU64; PAGES as usize] = [const { AtomicU64::new(0) }; PAGES as usize];
const PAGES: u64 = 4096;
const PAGE_SHIFT: u32 = 12;

fn known(page: u64) -> &'static AtomicU64 {
    &KNOWN[(page % PAGES) as usize]
}

/// Records what a pool's function returned. To be called while the thread writes the index.
pub(crate) fn record(region: &Region, state: &State, origin: u32, block: u64, size: u64) {
    let (replaced, is_recorded) = region.writer.insert_nested(block, size, origin);
    if let Some(replaced) = replaced {
        // Its pool took it back by means that are not hooked.
        forget(region, state.thread(), replaced);
    }
    if !is_recorded {
        return;
    }
    region.counters.allocated(state.thread(), origin, size);
    let page = block >> PAGE_SHIFT;
    if known(page).load(Relaxed) != page {
        if let Some(around) = region.reader.block_at(block) {
            region.writer.mark_container(around.base);
        }
        known(page).store(page, Relaxed);
    }
}

/// Opens a call of a pool's function whose return address lies at `slot`. `false` inside another. One that was left by a `longjmp` lies no
/// further out on the stack.
pub(crate) fn enter(state: &State, slot: *const u64) -> bool {
    // Stacks are far shorter than the 16 GiB that can be told so.
    let place = (slot as u64 >> 3) as u32;
    let outer = state.pool.load(Relaxed);
    let is_inside = outer != 0 && (place.wrapping_sub(outer) as i32) < 0;
    if !is_inside {
        state.pool.store(place, Relaxed);
    }
    !is_inside
}

/// Closes it.
pub(crate) fn leave(state: &State) {
    state.pool.store(0, Relaxed);
}

/// Takes out what was cut out of a block that is freed.
#[cold]
pub(crate) fn container_freed(region: &Region, thread: &Thread, base: u64, block: Recorded) {
    region
        .writer
        .erase_nested_in(base, block.size, |nested| forget(region, thread, nested));
    let last = base.saturating_add(block.size) >> PAGE_SHIFT;
    for page in (base >> PAGE_SHIFT..=last).take(PAGES as usize) {
        known(page).store(0, Relaxed);
    }
}

/// Counts a nested block as freed.
pub(crate) fn forget(region: &Region, thread: &Thread, block: Recorded) {
    region.counters.freed(thread, block.origin, block.size);
}

/// The block of a pool at `address`, if that is what is being freed by a function of another class.
#[inline(always)]
pub(crate) fn freed_otherwise(
    region: &Region,
    address: u64,
    planted: &Planted,
) -> Option<Recorded> {
    if !region.writer.has_nested() {
        return None;
    }
    let block = region.writer.nested_at(address)?;
    (Class::of(block.origin) != planted.class()).then_some(block)
}

/// How many bytes a call asks for, by the declared arguments.
pub(crate) fn requested(planted: &Planted, arguments: [usize; 3]) -> usize {
    let declared = planted.declared();
    let argument = |at: u8| arguments.get(usize::from(at)).copied().unwrap_or(0);
    let size = argument(declared.argument);
    declared
        .count
        .map_or(size, |count| size.saturating_mul(argument(count)))
}

/// The block that a call gives back.
pub(crate) fn given_back(planted: &Planted, arguments: [usize; 3]) -> usize {
    let at = usize::from(planted.declared().argument);
    arguments.get(at).copied().unwrap_or(0)
}
