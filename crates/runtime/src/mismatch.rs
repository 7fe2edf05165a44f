//! *Was this block freed by the function that has to?*
//!
//! Asked only when the block's class and the freeing function's differ, which the hooks see at no cost. The pair of paths is
//! noted before the block is freed. A freeing function of one allocator may pass a block on to that of another, where it
//! belongs: a `free` in front of libc's, an `operator delete` on top of another. So while it runs, hooks of the inner
//! calls look whether they are handed the same block, and take the note back.

use crate::hooks::Planted;
use crate::operators;
use crate::region::Region;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use pointee_index::class::Class;
use pointee_index::mismatches::Mismatch;
use pointee_index::table::Recorded;

/// A block that is being freed by a function of another class.
struct Pending {
    /// Its address; 0: not used.
    block: AtomicU64,
    /// Its class.
    class: AtomicU64,
    /// Set when it came to a function of its class.
    passed_on: AtomicU64,
}

/// Threads that do this at once. More of them note nothing.
const ROOM: usize = 16;
static PENDING: [Pending; ROOM] = [const {
    Pending {
        block: AtomicU64::new(0),
        class: AtomicU64::new(0),
        passed_on: AtomicU64::new(0),
    }
}; ROOM];
/// How many are used: what inner calls look at.
static USED: AtomicU64 = AtomicU64::new(0);

/// A free that was noted and has yet to be made.
pub(crate) struct Noted {
    pending: &'static Pending,
    record: &'static Mismatch,
}

/// Notes that `block`, which lay at `address`, is freed along the path `freed`, whose innermost call returns to `return_address`. To be called
/// while the thread writes the index.
pub(crate) fn note(
    region: &Region,
    address: u64,
    block: Recorded,
    freed: u32,
    return_address: u64,
) -> Option<Noted> {
    let is_free = |pending: &&Pending| {
        let claimed = pending.block.compare_exchange(0, address, AcqRel, Relaxed);
        claimed.is_ok()
    };
    let pending = PENDING.iter().find(is_free)?;
    pending
        .class
        .store(Class::of(block.origin).bits().into(), Relaxed);
    pending.passed_on.store(0, Relaxed);
    USED.fetch_add(1, Release);
    let Some((record, is_new)) = region.mismatches.of(block.origin, freed) else {
        release(pending);
        return None;
    };
    if is_new {
        record.first.store(address, Relaxed);
        record.first_len.store(block.size, Relaxed);
        record
            .called
            .store(operators::called_by(return_address), Relaxed);
    }
    record.blocks.fetch_add(1, Relaxed);
    Some(Noted { pending, record })
}

impl Noted {
    /// The freeing function has returned.
    pub(crate) fn finish(self) {
        self.record
            .passed_on
            .fetch_add(self.pending.passed_on.load(Relaxed), Relaxed);
        release(self.pending);
    }
}

fn release(pending: &Pending) {
    USED.fetch_sub(1, Relaxed);
    pending.block.store(0, Release);
}

/// A call from inside another hooked function hands `address` to `planted`.
#[inline(always)]
pub(crate) fn inner_free(address: u64, planted: &Planted) {
    if USED.load(Relaxed) != 0 {
        look_for(address, planted);
    }
}

#[cold]
fn look_for(address: u64, planted: &Planted) {
    let found = PENDING
        .iter()
        .find(|pending| pending.block.load(Acquire) == address);
    if let Some(pending) = found
        && pending.class.load(Relaxed) == u64::from(planted.class().bits())
    {
        pending.passed_on.store(1, Relaxed);
    }
}
