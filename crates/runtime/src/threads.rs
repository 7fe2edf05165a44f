//! *Which counters are this thread's?*
//!
//! The runtime has no thread-local storage: nobody would allot it to a library mapped without a dynamic
//! linker. A thread's state hangs off its control block instead, in eight bytes that
//! glibc keeps free: `__glibc_unused2` of `tcbhead_t` has been there for compatibility, unused, since glibc 2.23
//! (sysdeps/x86_64/nptl/tls.h). A new thread finds zero there, or, in a stack that glibc took from its cache,
//! what the thread before it left: a slot whose owner is gone and whose counts stay.
//!
//! A child that was forked by a raw system call has its parent's region mapped and must not write it: the
//! [`GUARD`] lies in memory that the kernel empties in a forked child (`MADV_WIPEONFORK`).

#![allow(unsafe_code)] // Reads and writes the thread control block.

use crate::hooks::is_filtered;
use crate::region::{disable, is_disabled, region};
use crate::sys;
use core::arch::asm;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};
use pointee_index::counters::{FIRST_OWN, SHARED, Thread};
use pointee_index::layout::unseen;

/// Where in the control block the state's address is kept.
const PLACE: usize = 0x270;
/// Where glibc keeps the kernel's thread id (`struct pthread`, field `tid`).
const TID: usize = 0x2d0;

#[repr(C, align(4096))]
struct Page([AtomicU64; 512]);

/// First word 1 while this process may write the region.
static GUARD: Page = Page([const { AtomicU64::new(0) }; 512]);

/// Arms the guard, or arms it again in a forked child.
pub(crate) fn set_up() {
    const MADV_WIPEONFORK: usize = 18;
    let page = (&raw const GUARD).cast::<u8>().cast_mut();
    // SAFETY: a page of our own zero-initialised data, which nothing else lies in.
    unsafe { sys::madvise(page, 4096, MADV_WIPEONFORK) };
    GUARD.0[0].store(1, Relaxed);
}

#[inline(always)]
fn control_block<const OFFSET: usize>() -> u64 {
    let word: u64;
    // SAFETY: inside the thread control block, at least 704 bytes long.
    unsafe {
        asm!("mov {}, fs:[{}]", out(reg) word, const OFFSET, options(nostack, readonly, preserves_flags));
    }
    word
}

fn remember(thread: &Thread) {
    // SAFETY: the place is unused by glibc.
    unsafe {
        asm!("mov fs:[{}], {}", const PLACE, in(reg) core::ptr::from_ref(thread), options(nostack, preserves_flags));
    }
}

/// Makes this thread, the only one of a forked child, look for a slot anew.
pub(crate) fn forget() {
    // SAFETY: the place is unused by glibc.
    unsafe {
        asm!("mov qword ptr fs:[{}], 0", const PLACE, options(nostack, preserves_flags));
    }
}

/// This thread's state if it is outside any hook and has a slot of its own: the usual case.
#[inline(always)]
pub(crate) fn idle() -> Option<&'static Thread> {
    let thread = control_block::<PLACE>() as *const Thread;
    // SAFETY: null, or put there by `remember`; states are never unmapped.
    let thread = unsafe { thread.as_ref()? };
    // A slot that was given to another thread while this stack lay in glibc's cache has another key.
    let is_mine = thread.key.load(Relaxed) == control_block::<0>();
    (is_mine && thread.busy.load(Relaxed) == 0 && GUARD.0[0].load(Relaxed) != 0).then_some(thread)
}

/// This thread's state; `None` while nothing is to be recorded.
pub(crate) fn current() -> Option<&'static Thread> {
    if is_disabled() {
        return None;
    }
    if GUARD.0[0].load(Relaxed) == 0 {
        // Forked behind our back: the region is the parent's.
        disable();
        return None;
    }
    let known = control_block::<PLACE>() as *const Thread;
    // SAFETY: as in `idle`.
    if let Some(thread) = unsafe { known.as_ref() }
        && thread.key.load(Relaxed) == control_block::<0>()
    {
        return Some(thread);
    }
    let thread = slot_for(control_block::<0>(), control_block::<TID>() as u32);
    if thread.slot.load(Relaxed) != SHARED {
        remember(thread);
    }
    Some(thread)
}

/// A slot for the thread with this thread pointer: its own of before, a new one, a dead thread's, or the shared one.
#[cold]
fn slot_for(fs: u64, tid: u32) -> &'static Thread {
    let region = region();
    let header = region.header();
    let counters = &region.counters;
    let used = header.threads.load(Relaxed).min(region.geometry.threads);
    for slot in FIRST_OWN..used {
        if counters.thread(slot).key.load(Relaxed) == fs {
            return counters.give(slot, fs, tid);
        }
    }
    let slot = header.threads.fetch_add(1, Relaxed);
    if slot < region.geometry.threads {
        return counters.give(slot, fs, tid);
    }
    header.threads.fetch_sub(1, Relaxed);
    for slot in FIRST_OWN..region.geometry.threads {
        let thread = counters.thread(slot);
        let key = thread.key.load(Relaxed);
        let owner = thread.tid.load(Relaxed);
        if !is_filtered()
            && !sys::is_thread(owner)
            && thread
                .key
                .compare_exchange(key, fs, AcqRel, Relaxed)
                .is_ok()
        {
            return counters.give(slot, fs, tid);
        }
    }
    header.unseen.fetch_or(unseen::THREADS_SHARED, Relaxed);
    counters.thread(SHARED)
}
