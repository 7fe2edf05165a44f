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
            let mask = sys::exchange_mask(u64::MAX);
            let pid = sys::process_id();
            let taken = self.0.compare_exchange(FREE, pid, Acquire, Relaxed);
            match taken {
                Ok(_) => return Held { lock: self, mask },
                Err(holder) if holder != pid => {
                    let inherited = self.0.compare_exchange(holder, pid, Acquire, Relaxed);
                    if inherited.is_ok() {
                        return Held { lock: self, mask };
                    }
                }
                Err(_) => {}
            }
            sys::exchange_mask(mask);
            sys::wait_on(&self.0, pid, PATIENCE);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.lock.0.store(FREE, Release);
        sys::exchange_mask(self.mask);
    }
}
