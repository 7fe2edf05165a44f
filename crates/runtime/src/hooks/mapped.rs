//! *What runs instead of mmap, munmap, mprotect, mremap, shmat, and `syscall` with their numbers?*
//!
//! The kernel knows what is mapped; the hooks note who mapped it, and what calls were seen to make of each page ([`crate::mappings`]). They
//! see libc's functions, whoever calls them, libc itself included. A system call instruction of the program's own is not seen, and shows as
//! pages of which the index and the kernel say different things.

#![allow(unsafe_code)] // An entry stub in assembly; calls originals through their addresses.

use super::Planted;
use crate::mappings::{self, Call};
use crate::threads::{self, State, WRITING};
use crate::{process, walk};
use core::arch::naked_asm;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::compiler_fence;
use pointee_model::entries::Role;

/// Gives [`on_mapping_call`] all that a function of up to seven arguments was called with.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn mapping_stub() {
    naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "push [rbp + 16]", // the seventh, of `syscall`
        "push r9",
        "push r8",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "mov rdi, rsp",
        "lea rsi, [rbp + 8]",
        "mov rdx, [rbp]",
        "mov rcx, r11",
        "and rsp, -16",
        "call {on_mapping_call}",
        "leave",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
        on_mapping_call = sym on_mapping_call,
    );
}

/// The numbers of those system calls (x86-64).
const NUMBERS: [(usize, Call); 6] = [
    (9, Call::Map),
    (10, Call::Protect),
    (11, Call::Unmap),
    (25, Call::Remap),
    (30, Call::Attach),
    (329, Call::Protect),
];

/// Whether `syscall` with this number changes mappings.
pub(super) const IS_MAPPING: [usize; 6] = [9, 10, 11, 25, 30, 329];

/// What a call does, and its own arguments.
fn named(planted: &Planted, all: &[usize; 7]) -> Option<(Call, [usize; 6])> {
    let [a, b, c, d, e, f, g] = *all;
    let call = match planted.role() {
        Role::Mmap => Call::Map,
        Role::Munmap => Call::Unmap,
        Role::Mprotect => Call::Protect,
        Role::Mremap => Call::Remap,
        Role::Shmat => Call::Attach,
        _ => {
            let (_, call) = NUMBERS.iter().find(|(number, _)| *number == a)?;
            return Some((*call, [b, c, d, e, f, g]));
        }
    };
    Some((call, [a, b, c, d, e, f]))
}

unsafe extern "C" fn on_mapping_call(
    all: &[usize; 7],
    slot: *const u64,
    rbp: u64,
    planted: &'static Planted,
) -> usize {
    // SAFETY: the program's own call.
    let original = || unsafe { planted.call_with_many(*all) };
    let Some(((call, arguments), state)) = named(planted, all).zip(threads::current()) else {
        return original();
    };
    let is_outside = state.is_outside(slot);
    let before = writing(state, || mappings::before(call, &arguments, state.thread()));
    let result = original();
    writing(state, || {
        let origin = if is_outside {
            // SAFETY: `slot` is the stack pointer at the hooked entry.
            unsafe { walk::origin(planted.root(), slot, rbp) }
        } else {
            // An allocator's own: which one, its blocks there say.
            planted.root()
        };
        mappings::after(call, &arguments, result, origin, before);
    });
    result
}

/// Runs `write` while the thread counts as writing the index, wherever it is.
fn writing<T>(state: &State, write: impl FnOnce() -> T) -> T {
    let gate = state.gate.swap(WRITING, Relaxed);
    compiler_fence(Acquire);
    if process::is_gate_closed() {
        process::wait_at_gate(state);
    }
    let result = write();
    compiler_fence(Release);
    state.gate.store(gate, Relaxed);
    result
}
