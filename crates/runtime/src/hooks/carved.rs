//! *What happens where inlined code moves the cursor of a pool?*
//!
//! The copy of the write tells beforehand ([`Carving`]): what the cursor will be. It still is what it was. Moved on within one recorded block, it carves
//! a block; set back, it takes back what lies between. A cursor that comes into another block, when a pool goes on in its next chunk, does neither.

#![allow(unsafe_code)] // Entered from copies of the program's code; reads its memory and its stack.

use super::{begin_writing, end_writing};
use crate::region::region;
use crate::threads;
use crate::{pools, walk};
use core::arch::naked_asm;
use pointee_model::image::cursor_flags;
use pointee_patch::placement::Carving;

/// Bytes that the stub has pushed when it calls [`carve`].
const SAVED: usize = 8 * 8;

/// What the slot leads to: keeps all registers and flags.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn carve_stub() {
    naked_asm!(
        "push rax", "push rcx", "push rdx", "push r8", "push r9", "push r10", "push r11",
        "lahf", "seto al", "push rax",
        "mov rdx, [rsp + {value}]",
        "lea rcx, [rsp + {stack}]",
        "mov r8, rbp",
        "push rbp", "mov rbp, rsp",
        "and rsp, -16", "sub rsp, 256",
        "movaps [rsp], xmm0", "movaps [rsp + 16], xmm1", "movaps [rsp + 32], xmm2", "movaps [rsp + 48], xmm3",
        "movaps [rsp + 64], xmm4", "movaps [rsp + 80], xmm5", "movaps [rsp + 96], xmm6", "movaps [rsp + 112], xmm7",
        "movaps [rsp + 128], xmm8", "movaps [rsp + 144], xmm9", "movaps [rsp + 160], xmm10", "movaps [rsp + 176], xmm11",
        "movaps [rsp + 192], xmm12", "movaps [rsp + 208], xmm13", "movaps [rsp + 224], xmm14", "movaps [rsp + 240], xmm15",
        "call {carve}",
        "movaps xmm0, [rsp]", "movaps xmm1, [rsp + 16]", "movaps xmm2, [rsp + 32]", "movaps xmm3, [rsp + 48]",
        "movaps xmm4, [rsp + 64]", "movaps xmm5, [rsp + 80]", "movaps xmm6, [rsp + 96]", "movaps xmm7, [rsp + 112]",
        "movaps xmm8, [rsp + 128]", "movaps xmm9, [rsp + 144]", "movaps xmm10, [rsp + 160]", "movaps xmm11, [rsp + 176]",
        "movaps xmm12, [rsp + 192]", "movaps xmm13, [rsp + 208]", "movaps xmm14, [rsp + 224]", "movaps xmm15, [rsp + 240]",
        "mov rsp, rbp", "pop rbp",
        "pop rax",
        "add al, 127", "sahf", // OF as it was
        "pop r11", "pop r10", "pop r9", "pop r8", "pop rdx", "pop rcx", "pop rax",
        "ret",
        value = const SAVED + Carving::VALUE,
        stack = const SAVED + Carving::MOVED,
        carve = sym carve,
    )
}

/// The cursor at `cursor` is about to become `new`; `stack` is the stack pointer there, `rbp` the frame pointer.
unsafe extern "C" fn carve(
    cursor: *const u64,
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
    // SAFETY: the program is about to write there.
    let old = unsafe { *cursor };
    let is_down = carving.flags & u32::from(cursor_flags::DOWN) != 0;
    let (start, end) = if is_down { (new, old) } else { (old, new) };
    if start == 0 || end == 0 || start == end {
        return;
    }
    begin_writing(state);
    if start < end {
        // SAFETY: `stack` is the stack pointer of the code that writes the cursor.
        let origin = || unsafe { origin(carving, slot, rbp) };
        pools::carved(region(), state.thread(), start, end, origin);
    } else {
        pools::uncarved(region(), state.thread(), end, start);
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
        let origin = walk::origin(carving.number, slot, rbp);
        slot.write(kept);
        origin
    }
}
