//! *Which blocks were alive at the highest point?* — the index, copied at each new peak, where the command asked for it.
//!
//! The first free after the heap grew by 1 % beyond the last capture stops at the gate of [`crate::process`], as a fork does:
//! no thread writes the index meanwhile, so the copy is one moment's, and the counters' capture is the same moment's.
//! The copies grow with the heap in steps of 1 %, so all of them together move about a hundred times what the last one does.
//!
//! Where a copy cannot be made (no memory, a system call filter) the last one stays, and says how high the heap was then.

#![allow(unsafe_code)] // Maps and writes the file of copies.

use crate::hooks::is_filtered;
use crate::process::{close_gate, each_touched, each_used_of_blocks, open_gate};
use crate::region::{Region, new_file};
use crate::sys::{self, map};
use crate::threads::State;
use core::sync::atomic::Ordering::{Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU64, fence};
use pointee_index::counters::Claim;
use pointee_index::handoff::key;
use pointee_index::layout::PAGE;
use pointee_index::peak::{COPIES, Mark};

/// Where the copies are mapped; null where none are to be made.
static COPIES_AT: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
/// Copies that were begun.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Makes the file for the copies, if they are wanted; gives back its descriptor, to be announced.
pub(crate) fn set_up(region: &Region) -> Option<usize> {
    if region.handoff.field(key::PEAK) != Some(b"1") {
        return None;
    }
    let len = region.layout.len * COPIES;
    let fd = new_file(len);
    let at = match fd {
        0.. => sys::mmap(
            0,
            len as usize,
            map::READ | map::WRITE,
            map::SHARED | map::NORESERVE,
            fd,
        ),
        _ => return None,
    };
    if at.is_null() {
        sys::close(fd as usize);
        return None;
    }
    sys::leave_out_of_cores(at, len as usize);
    COPIES_AT.store(at, Relaxed);
    Some(fd as usize)
}

/// A file of its own for a forked child, whose region is mapped already.
pub(crate) fn become_child(region: &Region) -> Option<usize> {
    let parents = COPIES_AT.swap(core::ptr::null_mut(), Relaxed);
    if parents.is_null() {
        return None;
    }
    BEGUN.store(0, Relaxed);
    // SAFETY: the parent's copies, which this process, of one thread, writes no more.
    unsafe { sys::munmap(parents, (region.layout.len * COPIES) as usize) };
    set_up(region)
}

/// Captures the peak by origin and, where that is wanted, block by block. The thread of `state` is writing the index.
#[cold]
pub(crate) fn capture(region: &Region, state: &State) {
    let (counters, thread) = (&region.counters, state.thread());
    let Some(claim) = counters.claim_capture(thread) else {
        return;
    };
    let copies = COPIES_AT.load(Relaxed);
    if copies.is_null() || is_filtered() {
        counters.capture(thread, claim);
        return;
    }
    // A handler that does not come back, or forks, would leave the gate closed.
    let signals = sys::set_signal_mask(u64::MAX);
    close_gate(Some(state));
    copy(region, state, claim, copies);
    open_gate();
    sys::set_signal_mask(signals);
}

/// Captures, and copies what tells of blocks to the older of the two places.
fn copy(region: &Region, state: &State, claim: Claim, copies: *mut u8) {
    let live_bytes = region.counters.capture(state.thread(), claim);
    // Exact, while threads keep back from the header what they allocated last.
    region.header().peak_bytes.fetch_max(live_bytes, Relaxed);
    let number = BEGUN.fetch_add(1, Relaxed) + 1;
    let to = copies.wrapping_add((number % COPIES * region.layout.len) as usize);
    if !sys::populate(to, PAGE as usize) {
        return;
    }
    // SAFETY: the mark is the first thing in a copy; all its bit patterns are valid.
    let mark = unsafe { &*to.cast::<Mark>() };
    mark.number.store(0, Relaxed);
    fence(Release);
    let mut whole = true;
    each_used_of_blocks(region, |start, end| {
        whole = whole
            && each_touched(region, start, end, |at, len| {
                copy_pages(region, to.wrapping_add(at as usize), at, len)
            });
    });
    if whole {
        mark.live_bytes.store(live_bytes, Relaxed);
        mark.number.store(number, Release);
    }
}

/// Copies `len` bytes at offset `at` of the region, whole pages.
fn copy_pages(region: &Region, to: *mut u8, at: u64, len: u64) -> bool {
    if !sys::populate(to, len as usize) {
        return false;
    }
    let from = region.base.wrapping_add(at as usize);
    // SAFETY: pages of the region, and as many of the copies, which no one else writes; no thread writes the region, but for
    // the state of those at the gate, which lies elsewhere.
    unsafe { core::ptr::copy_nonoverlapping(from, to, len as usize) };
    true
}
