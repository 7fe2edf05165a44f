//! *Where does what the queries remember lie?*
//!
//! In one mapping of the runtime's own, made when the first program part that asks is seen. Pieces are taken
//! from it and never given back; what is taken reads as zero. Without a lock, so that a signal handler may ask
//! while its own thread is being answered. Untouched pages cost nothing.

#![allow(unsafe_code)] // Hands out raw memory.

use crate::region::region;
use crate::sys::{self, map};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicUsize};
use pointee_index::Geometry;

/// Address space for a process without a limit on it: a million types with their members and names.
const ROOMY: usize = 768 << 20;
/// For one with a limit.
const NARROW: usize = 48 << 20;

static BASE: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static LEN: AtomicUsize = AtomicUsize::new(0);
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Makes the mapping, if there is none. `false` if there can be none.
pub(super) fn set_up() -> bool {
    if !BASE.load(Acquire).is_null() {
        return true;
    }
    let len = if is_narrow() { NARROW } else { ROOMY };
    let flags = map::PRIVATE | map::ANONYMOUS | map::NORESERVE;
    let base = sys::mmap(0, len, map::READ | map::WRITE, flags, -1);
    LEN.store(len, Relaxed);
    BASE.store(base, Release);
    !base.is_null()
}

/// Whether address space is short.
pub(super) fn is_narrow() -> bool {
    region().geometry.origins < Geometry::roomy(0).origins
}

/// `count` zeroed values; null when there is no room. A multiple of 16 bytes is used up.
///
/// Zero must be a valid value of `T`, which wants no more than 16-byte alignment.
pub(super) fn take<T>(count: usize) -> *mut T {
    const { assert!(align_of::<T>() <= 16) };
    let base = BASE.load(Acquire);
    let len = count
        .checked_mul(size_of::<T>())
        .and_then(|len| len.checked_next_multiple_of(16));
    let Some(len) = len.filter(|_| !base.is_null()) else {
        return core::ptr::null_mut();
    };
    let at = TAKEN.fetch_update(Relaxed, Relaxed, |at| {
        at.checked_add(len).filter(|end| *end <= LEN.load(Relaxed))
    });
    // SAFETY: within the mapping.
    at.map_or(core::ptr::null_mut(), |at| unsafe { base.add(at).cast() })
}

/// A copy of `text`, ended by NUL; null when there is no room.
pub(super) fn copy(text: &[u8]) -> *mut u8 {
    let to = take::<u8>(text.len() + 1);
    if !to.is_null() {
        // SAFETY: fresh room for one byte more than that.
        unsafe { core::ptr::copy_nonoverlapping(text.as_ptr(), to, text.len()) };
    }
    to
}
