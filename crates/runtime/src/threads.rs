//! *Which counters are this thread's?*
//!
//! The runtime has no thread-local storage (nobody would allot it to a library mapped without a dynamic linker). Every
//! x86-64 thread has its own thread pointer, and finds it at `fs:0` (System V ABI, thread-local storage variant II);
//! a small hash from it to the thread's slot serves instead.
//!
//! The hash lies in memory that the kernel empties in a forked child (`MADV_WIPEONFORK`), whichever way it was forked: a child that
//! did not come through our fork hook finds its mark gone and does not write into its parent's region.

#![allow(unsafe_code)] // Reads fs:0; the hash is shared memory reached by raw pointer.

use crate::region::{disable, is_disabled, region};
use crate::sys::{self, map};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU64};
use pointee_index::counters::{SHARED, Thread};
use pointee_index::layout::unseen;

const BITS: u32 = 14;
const SLOTS: usize = 1 << BITS;
/// Slots looked at before a thread counts as too many.
const WINDOW: usize = 64;

#[repr(C)]
struct Key {
    fs: AtomicU64,
    thread: AtomicPtr<Thread>,
}

/// The hash; one slot more, whose `fs` is the mark that a foreign fork wipes.
static KEYS: AtomicPtr<Key> = AtomicPtr::new(core::ptr::null_mut());
const MARK: u64 = 1;

/// Prepares the hash, or empties it in a forked child.
pub(crate) fn set_up() -> bool {
    const MADV_WIPEONFORK: usize = 18;
    let len = (SLOTS + 1) * size_of::<Key>();
    if KEYS.load(Relaxed).is_null() {
        let keys = sys::mmap(
            0,
            len,
            map::READ | map::WRITE,
            map::PRIVATE | map::ANONYMOUS | map::NORESERVE,
            -1,
        );
        if keys.is_null() {
            return false;
        }
        // SAFETY: our own fresh mapping; whole pages of it.
        unsafe { sys::madvise(keys, len.next_multiple_of(4096), MADV_WIPEONFORK) };
        KEYS.store(keys.cast(), Release);
    }
    key(SLOTS).fs.store(MARK, Relaxed);
    true
}

#[inline(always)]
fn key(at: usize) -> &'static Key {
    // SAFETY: `at <= SLOTS`; the hash stays mapped.
    unsafe { &*KEYS.load(Relaxed).add(at) }
}

#[inline(always)]
fn thread_pointer() -> u64 {
    let fs: u64;
    // SAFETY: fs:0 holds the thread pointer itself, by the ABI.
    unsafe {
        core::arch::asm!("mov {}, fs:0", out(reg) fs, options(nostack, readonly, pure, preserves_flags))
    };
    fs
}

#[inline(always)]
const fn hash(fs: u64) -> usize {
    (fs.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BITS)) as usize
}

/// This thread's state; `None` while nothing is to be recorded.
#[inline(always)]
pub(crate) fn current() -> Option<&'static Thread> {
    let fs = thread_pointer();
    let key = key(hash(fs));
    if key.fs.load(Relaxed) == fs {
        // SAFETY: a published key has its thread; states are never unmapped.
        return Some(unsafe { &*key.thread.load(Relaxed) });
    }
    find(fs)
}

#[cold]
fn find(fs: u64) -> Option<&'static Thread> {
    if is_disabled() {
        return None;
    }
    if key(SLOTS).fs.load(Relaxed) != MARK {
        // A child forked behind our back: the region is its parent's.
        disable();
        return None;
    }
    let region = region();
    for step in 0..WINDOW {
        let key = key((hash(fs) + step) % SLOTS);
        let found = key.fs.load(Acquire);
        if found == fs {
            let thread = key.thread.load(Acquire);
            // SAFETY: not null once published; only this thread looks for its own key.
            return unsafe { thread.as_ref() };
        }
        if found != 0
            || key
                .fs
                .compare_exchange(0, CLAIMED, AcqRel, Acquire)
                .is_err()
        {
            continue;
        }
        let header = region.header();
        let slot = header.threads.fetch_add(1, Relaxed);
        let thread = if slot < region.geometry.threads {
            region.counters.give(slot, fs, 0)
        } else {
            header.threads.fetch_sub(1, Relaxed);
            header.unseen.fetch_or(unseen::THREADS_SHARED, Relaxed);
            region.counters.thread(SHARED)
        };
        key.thread
            .store(core::ptr::from_ref(thread).cast_mut(), Release);
        key.fs.store(fs, Release);
        return Some(thread_of(thread));
    }
    header_shared()
}

/// A slot between being taken and being published; no thread pointer has this value.
const CLAIMED: u64 = 2;

fn thread_of(thread: &Thread) -> &'static Thread {
    // SAFETY: states lie in the region, which stays mapped.
    unsafe { &*core::ptr::from_ref(thread) }
}

fn header_shared() -> Option<&'static Thread> {
    let region = region();
    region
        .header()
        .unseen
        .fetch_or(unseen::THREADS_SHARED, Relaxed);
    Some(thread_of(region.counters.thread(SHARED)))
}
