//! *How much was allocated and freed, from where?*
//!
//! Each thread counts in memory of its own; readers add up. Nothing here is shared between running
//! threads, except the slot that threads use when all others are taken. A thread that ends leaves
//! its counts; its slot is used again by a later thread, on top of them.
//!
//! Live bytes are kept per thread as a difference (the *height* of [`Thread`]) that is moved into
//! [`Header::live_bytes`], *settled*, in steps of a 64th of the heap, 64 KiB at most; so the peak of a
//! process with one thread is exact, with more it may be late by one step a thread. *What* was
//! alive at the peak is captured at the first free, by whichever thread, after the heap has grown by 1 % beyond the
//! last capture: by origin here, block by block in [`peak`](crate::peak) where that is wanted.
//!
//! The runtime's hooks do the usual case in assembly, on the fields of [`Thread`] and [`Counts`]; what is here does all cases.

#![allow(unsafe_code)] // Counters lie in a region shared with other threads and processes, reached by raw pointer.

use crate::layout::{Header, Layout};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64};

/// The slot that holds what a forked child inherited: live blocks as allocations, no frees.
pub const INHERITED: u32 = 0;
/// The slot shared by threads that found none free; counted in with atomic additions.
pub const SHARED: u32 = 1;
/// The first slot that belongs to one thread.
pub const FIRST_OWN: u32 = 2;

/// Events of one origin in one thread.
#[derive(Debug)]
#[repr(C)]
pub struct Counts {
    /// Blocks allocated.
    pub allocations: AtomicU64,
    /// Bytes requested for them.
    pub bytes: AtomicU64,
    /// Blocks of this origin that this thread freed.
    pub frees: AtomicU64,
    /// Bytes of these.
    pub freed_bytes: AtomicU64,
}

/// What of one origin is alive.
#[derive(Debug)]
#[repr(C)]
pub struct Live {
    /// Blocks.
    pub blocks: AtomicU64,
    /// Bytes.
    pub bytes: AtomicU64,
}

/// State of one thread. Written by its thread only, except `key` and `tid` when the slot is given away, and `limit` by
/// whichever thread finds that a capture is due.
///
/// ```text
///   height   live bytes since the last settling, in this thread     = highest - room
///   highest  the most that `height` was since then, 0 at least      ≤ stop, but for the step that reaches it
///   room     how far below it the thread is                         < limit, but for the step that reaches it
/// ```
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Thread {
    /// The thread pointer of the owner; 0 if never used.
    pub key: AtomicU64,
    /// Kernel id of the owner.
    pub tid: AtomicU32,
    /// This slot's number.
    pub slot: AtomicU32,
    /// Address of this thread's counters in the process.
    pub counters: AtomicU64,
    /// Bytes that may be allocated before the thread's height is higher than it was since the last settling.
    pub room: AtomicI64,
    /// Highest height since the last settling.
    pub highest: AtomicI64,
    /// When `highest` is above this, something is to be done.
    pub stop: AtomicI64,
    /// A free that would make `room` as large is preceded or followed by something else to do; 0: by a capture of the peak.
    pub limit: AtomicI64,
    /// Height from which a free captures the peak.
    pub capture_above: AtomicI64,
    /// Height, up or down, at which the thread settles.
    pub step: AtomicI64,
}

/// Adds without a locked instruction: only the owner writes.
#[inline(always)]
fn bump(cell: &AtomicU64, by: u64, shared: bool) {
    if shared {
        cell.fetch_add(by, Relaxed);
    } else {
        cell.store(cell.load(Relaxed).wrapping_add(by), Relaxed);
    }
}

/// The right to write down the peak ([`Counters::claim_capture`]).
#[derive(Debug)]
pub struct Claim {
    live: u64,
    sequence: u32,
}

#[inline(always)]
fn is_shared(thread: &Thread) -> bool {
    thread.slot.load(Relaxed) == SHARED
}

/// The counters of one region.
#[derive(Clone, Copy)]
pub struct Counters {
    base: *mut u8,
    layout: Layout,
    origin_mask: u32,
}

impl Counters {
    /// The counters of the region at `base`.
    ///
    /// # Safety
    /// `base` points to a region of this layout, mapped and writable as long as `self` is used.
    #[must_use]
    pub unsafe fn new(base: *mut u8, layout: Layout) -> Self {
        // SAFETY: the caller promises a region; its header is always mapped.
        let origins = unsafe { (*base.cast::<Header>()).geometry.origins };
        Self {
            base,
            layout,
            origin_mask: origins.wrapping_sub(1),
        }
    }

    fn header(&self) -> &Header {
        // SAFETY: by the contract of `new`.
        unsafe { &*self.base.cast::<Header>() }
    }

    /// The state in slot `slot`, below the geometry's number of threads.
    #[must_use]
    pub fn thread(&self, slot: u32) -> &'static Thread {
        let slot = slot.min(self.header().geometry.threads - 1);
        // SAFETY: within the thread section.
        unsafe {
            &*self
                .base
                .add(self.layout.threads as usize)
                .cast::<Thread>()
                .add(slot as usize)
        }
    }

    fn counts(&self, slot: u32) -> *const Counts {
        self.base
            .wrapping_add(
                (self.layout.counters + u64::from(slot) * self.layout.counters_stride) as usize,
            )
            .cast()
    }

    /// Prepares slot `slot` for its next owner; the counts of earlier ones stay.
    pub fn give(&self, slot: u32, key: u64, tid: u32) -> &'static Thread {
        let thread = self.thread(slot);
        thread.slot.store(slot, Relaxed);
        thread.tid.store(tid, Relaxed);
        if thread.counters.swap(self.counts(slot) as u64, Relaxed) == 0 {
            // Never used: no capture is due.
            thread.limit.store(1, Relaxed);
        }
        self.settle(thread);
        thread.key.store(key, Release);
        thread
    }

    /// Counts a block of `bytes` from `origin` for a thread with a slot of its own. `true`: [`Self::reach`] is due.
    #[inline(always)]
    #[must_use]
    fn count_allocation(&self, thread: &Thread, origin: u32, bytes: u64) -> bool {
        let counts = self.counts_of(thread, origin);
        bump(&counts.allocations, 1, false);
        bump(&counts.bytes, bytes, false);
        self.rise(thread, bytes)
    }

    /// Makes the thread's height greater. `true`: [`Self::reach`] is due.
    #[inline(always)]
    fn rise(&self, thread: &Thread, bytes: u64) -> bool {
        let room = thread.room.load(Relaxed).wrapping_sub(bytes as i64);
        if room >= 0 {
            thread.room.store(room, Relaxed);
            return false;
        }
        let highest = thread.highest.load(Relaxed).wrapping_sub(room);
        thread.highest.store(highest, Relaxed);
        thread.room.store(0, Relaxed);
        highest > thread.stop.load(Relaxed)
    }

    #[inline(always)]
    fn count_free(&self, thread: &Thread, origin: u32, bytes: u64) {
        let counts = self.counts_of(thread, origin);
        bump(&counts.frees, 1, false);
        bump(&counts.freed_bytes, bytes, false);
        let room = thread.room.load(Relaxed).wrapping_add(bytes as i64);
        thread.room.store(room, Relaxed);
    }

    /// What is to be done when a thread is higher than its `stop`.
    #[cold]
    pub fn reach(&self, thread: &Thread) {
        let highest = thread.highest.load(Relaxed);
        let step = thread.step.load(Relaxed);
        let is_capture_due = highest > thread.capture_above.load(Relaxed);
        if is_capture_due {
            thread.limit.store(0, Relaxed);
        }
        if is_capture_due || highest > step {
            self.settle(thread);
        }
        if is_capture_due {
            // Whichever thread frees first ends the peak.
            let header = self.header();
            let threads = header.threads.load(Relaxed).min(header.geometry.threads);
            for slot in FIRST_OWN..threads {
                self.thread(slot).limit.store(0, Relaxed);
            }
        }
    }

    /// Whether the next free of this thread is to be preceded by a capture of the peak.
    #[inline(always)]
    #[must_use]
    pub fn is_capture_due(&self, thread: &Thread) -> bool {
        thread.limit.load(Relaxed) == 0
    }

    /// The counters of `origin` in the thread's slot; an origin out of bounds, as a damaged granule
    /// word may hold, is counted under another.
    #[inline(always)]
    fn counts_of(&self, thread: &Thread, origin: u32) -> &Counts {
        let origin = origin & self.origin_mask;
        // SAFETY: `counters` is this region's, with room for as many origins as the mask lets through.
        unsafe { &*(thread.counters.load(Relaxed) as *const Counts).add(origin as usize) }
    }

    /// Counts a block of `bytes` from `origin`.
    pub fn allocated(&self, thread: &Thread, origin: u32, bytes: u64) {
        if !is_shared(thread) {
            if self.count_allocation(thread, origin, bytes) {
                self.reach(thread);
            }
            return;
        }
        let counts = self.counts_of(thread, origin);
        bump(&counts.allocations, 1, true);
        bump(&counts.bytes, bytes, true);
        let header = self.header();
        let live = header
            .live_bytes
            .fetch_add(bytes as i64, Relaxed)
            .saturating_add(bytes as i64);
        header.peak_bytes.fetch_max(live.max(0) as u64, Relaxed);
    }

    /// Counts the free of a block of `bytes` that came from `origin`. To be called while the block is still counted alive.
    pub fn freed(&self, thread: &Thread, origin: u32, bytes: u64) {
        if !is_shared(thread) {
            if self.is_capture_due(thread)
                && let Some(claim) = self.claim_capture(thread)
            {
                self.capture(thread, claim);
            }
            self.count_free(thread, origin, bytes);
            if thread.room.load(Relaxed) >= thread.step.load(Relaxed) {
                self.settle(thread);
            }
            return;
        }
        let counts = self.counts_of(thread, origin);
        bump(&counts.frees, 1, true);
        bump(&counts.freed_bytes, bytes, true);
        self.header().live_bytes.fetch_sub(bytes as i64, Relaxed);
    }

    /// Counts a block that was cut out of another: the process is not higher for it.
    #[inline(always)]
    pub fn cut_out(&self, thread: &Thread, origin: u32, bytes: u64) {
        let (counts, shared) = (self.counts_of(thread, origin), is_shared(thread));
        bump(&counts.allocations, 1, shared);
        bump(&counts.bytes, bytes, shared);
    }

    /// Counts that `blocks` of one origin, of `bytes` in all, that were cut out so were given back.
    #[inline(always)]
    pub fn put_back(&self, thread: &Thread, origin: u32, blocks: u64, bytes: u64) {
        let (counts, shared) = (self.counts_of(thread, origin), is_shared(thread));
        bump(&counts.frees, blocks, shared);
        bump(&counts.freed_bytes, bytes, shared);
    }

    /// Takes back a [`Self::freed`]: the block lives on.
    #[cold]
    pub fn not_freed(&self, thread: &Thread, origin: u32, bytes: u64) {
        let (counts, shared) = (self.counts_of(thread, origin), is_shared(thread));
        bump(&counts.frees, 1u64.wrapping_neg(), shared);
        bump(&counts.freed_bytes, bytes.wrapping_neg(), shared);
        if shared {
            self.header().live_bytes.fetch_add(bytes as i64, Relaxed);
        } else if self.rise(thread, bytes) {
            self.reach(thread);
        }
    }

    /// Moves the thread's difference into the header and sets the next thresholds.
    #[cold]
    pub fn settle(&self, thread: &Thread) {
        let header = self.header();
        let highest = thread.highest.swap(0, Relaxed);
        let height = highest.wrapping_sub(thread.room.swap(0, Relaxed));
        let before = header.live_bytes.fetch_add(height, Relaxed);
        let peak = before.saturating_add(highest).max(0) as u64;
        let peak = peak.max(header.peak_bytes.fetch_max(peak, Relaxed));
        let live = before.saturating_add(height);
        let step = (live / 64).clamp(1024, 64 << 10);
        let captured = header
            .peak_captured
            .load(Relaxed)
            .max(peak.saturating_sub(peak / 100));
        let next = (captured + captured / 100).max(1) as i64;
        let capture_above = next.saturating_sub(live);
        let limit = thread.limit.load(Relaxed);
        thread.step.store(step, Relaxed);
        thread.capture_above.store(capture_above, Relaxed);
        // Another thread may say meanwhile that a capture is due.
        let is_capture_due = limit == 0
            || thread
                .limit
                .compare_exchange(limit, step, Relaxed, Relaxed)
                .is_err();
        let stop = if is_capture_due {
            step
        } else {
            step.min(capture_above)
        };
        thread.stop.store(stop, Relaxed);
    }

    /// Claims the writing down of the peak, which is no longer due then. `None` when another thread is at it, or has been
    /// for this peak.
    #[cold]
    #[must_use]
    pub fn claim_capture(&self, thread: &Thread) -> Option<Claim> {
        thread.limit.store(1, Relaxed);
        self.settle(thread);
        let header = self.header();
        let live = header.live_bytes.load(Relaxed).max(0) as u64;
        let captured = header.peak_captured.load(Relaxed);
        if live <= captured.saturating_add(captured / 100) {
            return None;
        }
        let sequence = header.peak_sequence.load(Relaxed);
        let claimed = sequence & 1 == 0
            && header
                .peak_sequence
                .compare_exchange(sequence, sequence.wrapping_add(1), Acquire, Relaxed)
                .is_ok();
        claimed.then_some(Claim { live, sequence })
    }

    /// Writes down what is alive now, origin by origin; says how many bytes that is in all.
    #[cold]
    pub fn capture(&self, thread: &Thread, claim: Claim) -> u64 {
        let header = self.header();
        let threads = header.threads.load(Relaxed).min(header.geometry.threads);
        let origins = header.origins.load(Relaxed).min(header.geometry.origins);
        // SAFETY: the peak section has room for all origins.
        let peak = unsafe {
            self.base
                .add(self.layout.peak as usize)
                .cast::<Live>()
                .cast_const()
        };
        let mut all = 0u64;
        for origin in 0..origins as usize {
            let (mut blocks, mut bytes) = (0u64, 0u64);
            for slot in 0..threads {
                // SAFETY: slots and origins are below the geometry's numbers.
                let counts = unsafe { &*self.counts(slot).add(origin) };
                blocks = blocks
                    .wrapping_add(counts.allocations.load(Relaxed))
                    .wrapping_sub(counts.frees.load(Relaxed));
                bytes = bytes
                    .wrapping_add(counts.bytes.load(Relaxed))
                    .wrapping_sub(counts.freed_bytes.load(Relaxed));
            }
            // SAFETY: as above.
            let to = unsafe { &*peak.add(origin) };
            to.blocks.store(blocks, Relaxed);
            to.bytes.store(bytes, Relaxed);
            all = all.wrapping_add(bytes);
        }
        // What the header says lacks what threads keep back. A sum of counters that others write may fall below zero.
        let captured = if i64::try_from(all).is_ok() {
            all
        } else {
            claim.live
        };
        header.peak_captured.store(captured, Relaxed);
        header
            .peak_sequence
            .store(claim.sequence.wrapping_add(2), Release);
        self.settle(thread);
        all
    }

    /// Turns the counters of a forked child, a copy of its parent's, into a start of its own: what
    /// is alive becomes inherited, all else zero, and no thread slot is taken.
    pub fn fold_into_inherited(&self) {
        let header = self.header();
        let threads = header.threads.load(Relaxed).min(header.geometry.threads);
        let origins = header.origins.load(Relaxed).min(header.geometry.origins);
        let mut live = 0u64;
        for origin in 0..origins as usize {
            // SAFETY: the peak section has room for all origins.
            let at_peak = unsafe {
                let peak = self.base.add(self.layout.peak as usize).cast::<Live>();
                &*peak.cast_const().add(origin)
            };
            // To write zeros where there are some would cost a page.
            if at_peak.blocks.load(Relaxed) | at_peak.bytes.load(Relaxed) != 0 {
                at_peak.blocks.store(0, Relaxed);
                at_peak.bytes.store(0, Relaxed);
            }
            let (mut blocks, mut bytes) = (0u64, 0u64);
            for slot in 0..threads {
                // SAFETY: below the geometry's numbers.
                let counts = unsafe { &*self.counts(slot).add(origin) };
                if counts.allocations.load(Relaxed) | counts.frees.load(Relaxed) == 0 {
                    continue;
                }
                blocks = blocks
                    .wrapping_add(counts.allocations.swap(0, Relaxed))
                    .wrapping_sub(counts.frees.swap(0, Relaxed));
                bytes = bytes
                    .wrapping_add(counts.bytes.swap(0, Relaxed))
                    .wrapping_sub(counts.freed_bytes.swap(0, Relaxed));
            }
            if blocks | bytes != 0 {
                // SAFETY: as above.
                let to = unsafe { &*self.counts(INHERITED).add(origin) };
                to.allocations.store(blocks, Relaxed);
                to.bytes.store(bytes, Relaxed);
                live = live.wrapping_add(bytes);
            }
        }
        for slot in FIRST_OWN..threads {
            let thread = self.thread(slot);
            thread.key.store(0, Relaxed);
            thread.room.store(0, Relaxed);
            thread.highest.store(0, Relaxed);
        }
        header.live_bytes.store(live as i64, Relaxed);
        header.peak_bytes.store(live, Relaxed);
        header.peak_captured.store(0, Relaxed);
        header.peak_sequence.store(0, Relaxed);
        header.replaced.store(0, Relaxed);
        header.threads.store(FIRST_OWN, Relaxed);
        self.give(SHARED, 0, 0);
    }
}
