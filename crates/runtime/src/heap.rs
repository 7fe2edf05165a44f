//! *Where will the words of the next blocks lie?* — right behind those of the last ones, where the heap just grew.
//!
//! The first touch of each page of the index is a fault, and a program that fills a large heap pays a quarter more
//! of them with us than without. So when the heap grows by `brk`, the part of the index that stands for the new memory
//! is made present by one call, instead of a fault for each page. Small heaps are left to faults.

use crate::hooks::is_filtered;
use crate::region::{is_disabled, region};
use crate::sys;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use pointee_index::words::GRANULE;

/// Heaps below this are left alone.
const SMALL: u64 = 1 << 20;
/// The index is made present for as much of the heap to come as this part of what there is, ...
const AHEAD_SHIFT: u32 = 5;
/// ... and for no more than this.
const AHEAD_MAX: u64 = 4 << 20;
/// Bytes of the heap that one page of the index stands for.
pub(crate) const STEP: u64 = 4096 / 4 * GRANULE;

/// Where the heap began when it grew for the first time.
static START: AtomicU64 = AtomicU64::new(0);
/// Up to which address of the heap the index is present.
static PRESENT: AtomicU64 = AtomicU64::new(0);

/// The heap ends at `end` now.
pub(crate) fn grown(end: u64) {
    let start = START.load(Relaxed);
    if start == 0 {
        START.store(end, Relaxed);
        return;
    }
    let size = end.saturating_sub(start);
    let present = PRESENT.load(Relaxed);
    if size < SMALL || end <= present || is_disabled() || is_filtered() {
        return;
    }
    let to = (end + (size >> AHEAD_SHIFT).min(AHEAD_MAX)) & !(STEP - 1);
    let mut from = present.max(end - size.min(SMALL)) & !(STEP - 1);
    while from < to {
        let Some((words, len)) = region().writer.words_of(from, to) else {
            // The chunk has no table yet, and gets it with its first block.
            break;
        };
        if !sys::populate(words, len) {
            break;
        }
        from += len as u64 * (GRANULE / 4);
    }
    PRESENT.store(from, Relaxed);
}
