//! *Which parts of the program ask?*
//!
//! `pointee.h` puts one slot into each executable or library that includes it, and an ELF note that says where:
//!
//! ```text
//!   .note.pointee   owner "Pointee", type 1, description: i64, from itself to the slot
//!   pointee_slot    magic, version, 0, address of the calls       filled here
//! ```
//!
//! Notes are loaded and found through the program headers, so static and position-dependent code is served like any
//! other, and nothing is looked up by name. The description is relative and the slot holds zeros: no relocation
//! touches either, and a library's slot may be filled before the dynamic linker has relocated it.

#![allow(unsafe_code)] // Writes into the program's slots.

use crate::modules::Module;
use core::ffi::c_void;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::Release;

/// Type of the note.
const NOTE: u32 = 1;
const MAGIC: u64 = u64::from_le_bytes(*b"PTEESLOT");
/// Slots of another version are left empty.
const VERSION: u32 = 1;

/// `struct pointee_slot` of `pointee.h`.
#[repr(C)]
struct Slot {
    magic: u64,
    version: u32,
    reserved: u32,
    calls: AtomicPtr<c_void>,
}

/// Calls `found` for every slot of `module`; it gives what goes into them, or null.
pub(super) fn fill(module: &Module, mut found: impl FnMut() -> *mut c_void) {
    module.each_note(|owner, kind, description| {
        if owner != *b"Pointee\0" || kind != NOTE {
            return;
        }
        // SAFETY: a note of ours is eight bytes long.
        let distance = unsafe { core::ptr::read_unaligned(description as *const i64) };
        let at = description.wrapping_add_signed(distance);
        if !module.holds(at) || !module.holds(at + size_of::<Slot>() as u64 - 1) || at & 7 != 0 {
            return;
        }
        // SAFETY: in the module, and aligned.
        let slot = unsafe { &*(at as *const Slot) };
        if slot.magic == MAGIC && slot.version == VERSION {
            slot.calls.store(found(), Release);
        }
    });
}
