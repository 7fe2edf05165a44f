//! *Who may change code now?* One thread at a time, and no signal handler on top of it.
//!
//! The holder has all signals blocked, so that no handler of the program comes to ask for the same lock on the same
//! thread. A waiter has not, because the holder may stop it. In a forked child the holder may not exist: the lock is
//! then taken from it.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::sys;

/// Free, or the process id of the holder.
pub(crate) struct Lock(AtomicU32);

/// The lock is held, and signals are blocked, until this is dropped.
pub(crate) struct Held {
    lock: &'static Lock,
    mask: u64,
}

const FREE: u32 = 0;
/// Waiters look again after this many nanoseconds, for the holder wakes nobody.
const PATIENCE: u64 = 200_000;

impl Lock {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(FREE))
    }

    pub(crate) fn take(&'static self) -> Held {
        loop {
            match self.try_take() {
                Some(held) => return held,
                None => sys::wait_on(&self.0, sys::process_id(), PATIENCE),
            }
        }
    }

    pub(crate) fn try_take(&'static self) -> Option<Held> {
        let mask = sys::exchange_mask(u64::MAX);
        let pid = sys::process_id();
        let taken = self.0.compare_exchange(FREE, pid, Acquire, Relaxed);
        let inherited = |holder: u32| {
            let from = |holder| self.0.compare_exchange(holder, pid, Acquire, Relaxed);
            holder != pid && from(holder).is_ok()
        };
        if taken.is_ok() || taken.is_err_and(inherited) {
            return Some(Held { lock: self, mask });
        }
        sys::exchange_mask(mask);
        None
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.lock.0.store(FREE, Release);
        sys::exchange_mask(self.mask);
    }
}
