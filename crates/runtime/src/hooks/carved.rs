//! *What happens where inlined code moves the cursor of a pool?*
//!
//! The copy of the write tells beforehand ([`Carving`]): what the cursor will be. It still is what it was. Moved on within one recorded block, it carves
//! a block; set back, it takes back what lies between. A cursor that comes into another block, when a pool goes on in its next chunk, does neither.
//! The usual case is written in assembly ([`crate::fast_carve`]).

#![allow(unsafe_code)] // Entered from copies of the program's code; reads its memory and its stack.

use super::{begin_writing, end_writing};
use crate::region::region;
use crate::threads;
use crate::{pools, walk};
use pointee_model::image::cursor_flags;
use pointee_patch::placement::Carving;

/// The cursor, which is `old`, is about to become `new`, both addresses; `stack` is the stack pointer there, `rbp` the frame pointer.
///
/// # Safety
/// As [`crate::fast_carve::carve_stub`] calls it.
pub(crate) unsafe extern "C" fn carve(
    old: u64,
    carving: &Carving,
    new: u64,
    stack: *mut u64,
    rbp: u64,
) {
    // Where the return address of a call there would lie.
    let slot = stack.wrapping_sub(1);
    let state =
        threads::outside().or_else(|| threads::current().filter(|state| state.is_outside(slot)));
    let Some(state) = state.filter(|state| !pools::is_inside(state, slot)) else {
        return;
    };
    let is = |flag: u16| carving.flags & u32::from(flag) != 0;
    let (start, end) = match is(cursor_flags::DOWN) {
        true => (new, old),
        false => (old, new),
    };
    if start == 0 || end == 0 || start == end || start < end && is(cursor_flags::ONLY_BACK) {
        return;
    }
    begin_writing(state);
    if start < end {
        // SAFETY: `stack` is the stack pointer of the code that writes the cursor.
        let origin = || unsafe { origin(carving, slot, rbp) };
        let is_variable = carving.room != 0;
        pools::carved(region(), state.thread(), start, end, is_variable, origin);
    } else {
        let is_variable = carving.room != 0;
        pools::uncarved(region(), state.thread(), end, start, is_variable);
    }
    end_writing(state);
}

/// The path of a call that would return behind the write.
///
/// # Safety
/// `slot` lies right below the stack pointer of the code that writes, whose frame pointer `rbp` is. What lies there the code may use,
/// but not before this returns.
unsafe fn origin(carving: &Carving, slot: *mut u64, rbp: u64) -> u32 {
    // SAFETY: the caller's promise; the copy has led the stack pointer below it, so that no signal's frame lies there.
    unsafe {
        let kept = slot.replace(carving.next);
        let known = walk::known_origin(carving.number, slot, rbp);
        let origin = known.unwrap_or_else(|| walk::origin(carving.number, slot, rbp));
        slot.write(kept);
        origin
    }
}
