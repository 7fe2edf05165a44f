//! *What runs instead of mmap, munmap, mprotect, mremap, shmat, and `syscall` with their numbers?*
//!
//! The kernel knows what is mapped; the hooks note who mapped it, and what calls were seen to make of each page ([`crate::mappings`]). They
//! see libc's functions, whoever calls them, libc itself included; a system call instruction of the program's own has a hook of another kind
//! ([`super::system_calls`]).

#![allow(unsafe_code)] // An entry stub in assembly; calls originals through their addresses.

use super::Planted;
use crate::mappings::{self, Call, Made, list};
use crate::threads::{self, State, WRITING};
use crate::{heap, pools, process, signal_stacks, walk};
use core::arch::naked_asm;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::compiler_fence;
use pointee_index::pages::PageWord;
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

/// The numbers of those system calls (arch/x86/entry/syscalls/syscall_64.tbl).
pub(super) const NUMBERS: [(usize, Call); 8] = [
    (9, Call::Map),
    (10, Call::Protect),
    (11, Call::Unmap),
    (12, Call::Break),
    (25, Call::Remap),
    (30, Call::Attach),
    (131, Call::SignalStack),
    (329, Call::Protect),
];

/// What the system call with this number does.
pub(super) fn numbered(number: usize) -> Option<Call> {
    let mut known = NUMBERS.iter();
    let (_, call) = known.find(|(known, _)| *known == number)?;
    Some(*call)
}

/// What a call does, and its own arguments.
fn named(planted: &Planted, all: &[usize; 7]) -> Option<(Call, [usize; 6])> {
    let [a, b, c, d, e, f, g] = *all;
    let call = match planted.role() {
        Role::Mmap => Call::Map,
        Role::Munmap => Call::Unmap,
        Role::Mprotect => Call::Protect,
        Role::Mremap => Call::Remap,
        Role::Shmat => Call::Attach,
        _ => return Some((numbered(a)?, [b, c, d, e, f, g])),
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
    let before = before(state, call, &arguments);
    let result = original();
    let made = Made {
        call,
        arguments: &arguments,
        result,
        before,
        is_pools: is_outside && pools::is_inside(state, slot),
    };
    after(state, &made, || {
        if is_outside {
            // SAFETY: `slot` is the stack pointer at the hooked entry.
            unsafe { walk::origin(planted.root(), slot, rbp) }
        } else {
            // An allocator's own: which one, its blocks there say.
            planted.root()
        }
    });
    result
}

/// Notes what a call is about to undo.
pub(super) fn before(state: &State, call: Call, arguments: &[usize; 6]) -> PageWord {
    list::will_change();
    writing(state, || mappings::before(call, arguments, state.thread()))
}

/// Notes what came of a call; `origin` says along which path it came.
pub(super) fn after(state: &State, made: &Made<'_>, origin: impl FnOnce() -> u32) {
    let [first, ..] = *made.arguments;
    match made.call {
        Call::Break if made.result != usize::MAX => {
            mappings::heap_ends_at(made.result as u64);
            heap::grown(made.result as u64);
        }
        Call::SignalStack if made.result == 0 && first != 0 => {
            // SAFETY: the kernel has just read it.
            signal_stacks::was_set(unsafe { *(first as *const [u64; 3]) });
        }
        _ => writing(state, || mappings::after(made, origin())),
    }
    list::has_changed();
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
