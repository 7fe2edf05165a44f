//! *Which memory did a thread set aside to run its signal handlers on?* — its alternate signal stack (sigaltstack(2)).
//!
//! One record a thread, by the number under which the process knows it. The kernel tells nobody else, so what is here was seen to be set. A record
//! is written by its thread only: emptied first, its start last, so that a reader sees all of one or nothing.

#![allow(unsafe_code)] // Records lie in a region shared with other processes, reached by raw pointer.

use crate::layout::{Header, Layout};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64, fence};

/// Threads there is room for.
pub const ROOM: u32 = 1 << 14;

/// The stack of one thread.
#[derive(Debug)]
#[repr(C)]
pub struct SignalStack {
    /// First byte; 0 if the thread has none.
    pub start: AtomicU64,
    /// Bytes.
    pub len: AtomicU64,
    /// The thread's number in its own namespace.
    pub thread: AtomicU32,
    /// Zero.
    pub reserved: u32,
}

impl SignalStack {
    fn seen(&self) -> Option<Seen> {
        let start = self.start.load(Acquire);
        let seen = Seen {
            start,
            len: self.len.load(Relaxed),
            thread: self.thread.load(Relaxed),
        };
        fence(Acquire);
        (start != 0 && self.start.load(Relaxed) == start).then_some(seen)
    }
}

/// A stack that was seen to be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Of which thread, by its number in its own namespace.
    pub thread: u32,
}

impl Seen {
    /// Whether `address` lies in it.
    #[must_use]
    pub const fn holds(&self, address: u64) -> bool {
        address.wrapping_sub(self.start) < self.len
    }
}

/// The records of one region.
#[derive(Clone, Copy)]
pub struct SignalStacks {
    all: *const SignalStack,
    header: *const Header,
}

impl SignalStacks {
    /// Those of the region at `base`.
    ///
    /// # Safety
    /// `base` points to a region of this layout, mapped and writable as long as `self` is used.
    #[must_use]
    pub const unsafe fn new(base: *mut u8, layout: &Layout) -> Self {
        Self {
            all: base
                .wrapping_add(layout.signal_stacks as usize)
                .cast::<SignalStack>()
                .cast_const(),
            header: base.cast::<Header>().cast_const(),
        }
    }

    fn used(&self) -> &AtomicU32 {
        // SAFETY: the header is mapped as long as the region.
        unsafe { &(*self.header).signal_stacks }
    }

    fn records(&self) -> &[SignalStack] {
        let used = self.used().load(Acquire).min(ROOM);
        // SAFETY: `ROOM` records are mapped.
        unsafe { core::slice::from_raw_parts(self.all, used as usize) }
    }

    /// Whether any thread was ever seen to have one.
    #[inline(always)]
    #[must_use]
    pub fn any(&self) -> bool {
        self.used().load(Relaxed) != 0
    }

    /// Notes the stack of the thread known by `number`, which calls; `None` if it has none.
    pub fn set(&self, number: u32, stack: Option<Seen>) {
        if number >= ROOM || (stack.is_none() && number >= self.used().load(Relaxed)) {
            return;
        }
        // SAFETY: below `ROOM`.
        let record = unsafe { &*self.all.add(number as usize) };
        record.start.store(0, Relaxed);
        let Some(stack) = stack else { return };
        fence(Release);
        record.len.store(stack.len, Relaxed);
        record.thread.store(stack.thread, Relaxed);
        record.start.store(stack.start, Release);
        self.used().fetch_max(number + 1, Release);
    }

    /// All that are set, in no order.
    pub fn all(&self) -> impl Iterator<Item = Seen> {
        self.records().iter().filter_map(SignalStack::seen)
    }

    /// That of the thread known by `number`.
    #[must_use]
    pub fn of(&self, number: u32) -> Option<Seen> {
        self.records().get(number as usize)?.seen()
    }

    /// Forgets all: in a forked child there is one thread.
    pub fn clear(&self) {
        for record in self.records() {
            record.start.store(0, Relaxed);
        }
        self.used().store(0, Relaxed);
    }
}
