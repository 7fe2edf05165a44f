//! *Who may give a thing away?* — one thread at a time, and only while the thing is as that thread wants it.
//!
//! What belonged to a thread that is no more may be wanted by several: by the one that has the same stack now, and by any that
//! has nothing of its own. Whether it is to be had takes more than one word to tell, so no exchange of one decides between them.
//!
//! ```text
//!   is it wanted?   no ─▶ not claimed       a look that costs nobody anything
//!   taken → true    was true ─▶ not claimed another thread decides just now: nobody waits for it
//!   is it wanted?   no ─▶ taken → false     somebody had it in between
//!   …               the claim's owner writes, and nobody else
//!   taken → false
//! ```

use core::sync::atomic::Ordering::{self, Acquire, Release};

/// A flag that threads share, by the memory that they share it in.
pub trait Flag {
    /// As [`core::sync::atomic::AtomicBool::swap`].
    fn swap(&self, value: bool, order: Ordering) -> bool;
    /// As [`core::sync::atomic::AtomicBool::store`].
    fn store(&self, value: bool, order: Ordering);
}

impl Flag for core::sync::atomic::AtomicBool {
    fn swap(&self, value: bool, order: Ordering) -> bool {
        self.swap(value, order)
    }

    fn store(&self, value: bool, order: Ordering) {
        self.store(value, order);
    }
}

/// The right to give a thing away, until it is dropped.
#[derive(Debug)]
pub struct Claim<'f, F: Flag>(&'f F);

impl<'f, F: Flag> Claim<'f, F> {
    /// Claims the thing that `taken` is of, if `is_wanted` says yes while nobody else may change what it looks at. `None` otherwise, and
    /// where another thread has claimed it.
    pub fn of(taken: &'f F, is_wanted: impl Fn() -> bool) -> Option<Self> {
        if !is_wanted() || taken.swap(true, Acquire) {
            return None;
        }
        let claim = Self(taken);
        is_wanted().then_some(claim)
    }
}

impl<F: Flag> Drop for Claim<'_, F> {
    fn drop(&mut self) {
        self.0.store(false, Release);
    }
}
