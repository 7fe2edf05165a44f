//! *Which blocks were freed by a function of another class than the one they came from?* — pairs of paths, with counts.
//!
//! One [`Mismatch`] a pair of the origin that a block came from and the one that freed it, in a hash that is never emptied while the process
//! lives. It is written before the block is freed: a wrong free may be the last thing a process does.
//!
//! What is noted here is no verdict. An `operator delete` of the program's own that calls `free` is noted as well, once a
//! pair; readers, who know names and inlined calls, leave it out.

#![allow(unsafe_code)] // Records lie in a region shared with other processes, reached by raw pointer.

use crate::layout::{Header, Layout, unseen};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

/// Pairs there is room for: a power of two.
pub const ROOM: u32 = 1024;

/// A pair of paths and what came of it.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Mismatch {
    /// Origin the blocks came from, with its class, in the upper half; in the lower the origin of the freeing calls. 0: unused.
    pub pair: AtomicU64,
    /// Blocks.
    pub blocks: AtomicU64,
    /// Those that the freeing function passed on to one of their own class.
    pub passed_on: AtomicU64,
    /// Address of the first of them.
    pub first: AtomicU64,
    /// Its size, in bytes.
    pub first_len: AtomicU64,
    /// The function that the freeing call names, if it does: not the one that freed where that was jumped to. 0: not known.
    pub called: AtomicU64,
}

impl Mismatch {
    /// The two origins.
    #[must_use]
    pub const fn origins(pair: u64) -> (u32, u32) {
        ((pair >> 32) as u32, pair as u32)
    }
}

/// The records of one region.
#[derive(Clone, Copy)]
pub struct Mismatches {
    all: *const Mismatch,
    header: *const Header,
}

impl Mismatches {
    /// Those of the region at `base`.
    ///
    /// # Safety
    /// `base` points to a region of this layout, mapped and writable as long as `self` is used.
    #[must_use]
    pub const unsafe fn new(base: *mut u8, layout: &Layout) -> Self {
        Self {
            all: base
                .wrapping_add(layout.mismatches as usize)
                .cast::<Mismatch>()
                .cast_const(),
            header: base.cast::<Header>().cast_const(),
        }
    }

    /// The record of a pair, perhaps new (`true`). `None` when there is no room.
    #[cold]
    #[must_use]
    pub fn of(&self, allocated: u32, freed: u32) -> Option<(&'static Mismatch, bool)> {
        let pair = u64::from(allocated) << 32 | u64::from(freed);
        let first = (pair.wrapping_mul(crate::origins::HASH) >> 32) as u32;
        // SAFETY: the header is mapped as long as the region.
        let header = unsafe { &*self.header };
        for step in 0..ROOM {
            let at = (first.wrapping_add(step) % ROOM) as usize;
            // SAFETY: below the number of records.
            let record = unsafe { &*self.all.add(at) };
            match record.pair.compare_exchange(0, pair, AcqRel, Acquire) {
                Ok(_) => {
                    header.mismatches.fetch_add(1, Relaxed);
                    return Some((record, true));
                }
                Err(found) if found == pair => return Some((record, false)),
                Err(_) => {}
            }
        }
        header.unseen.fetch_or(unseen::MISMATCHES_FULL, Relaxed);
        None
    }

    /// Forgets all: a forked child frees for itself.
    pub fn clear(&self) {
        // SAFETY: the header is mapped as long as the region.
        let header = unsafe { &*self.header };
        if header.mismatches.swap(0, Relaxed) == 0 {
            return;
        }
        for at in 0..ROOM as usize {
            // SAFETY: below the number of records.
            let record = unsafe { &*self.all.add(at) };
            for field in [
                &record.pair,
                &record.blocks,
                &record.passed_on,
                &record.first,
                &record.first_len,
                &record.called,
            ] {
                field.store(0, Relaxed);
            }
        }
    }
}
