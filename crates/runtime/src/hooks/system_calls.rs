//! *What runs instead of a system call instruction of the program's own?*
//!
//! Code that may change what is mapped and does not go through libc: the dynamic linker's, an allocator's with its own `mmap`. The image names such
//! instructions ([`pointee_model::image::SystemCallRecord`]); the bytes around one were led to a slot:
//!
//! ```text
//!   slot:  what came before it │ mov r11, record; jmp stub │ syscall │ what came behind it │ jmp home
//!                                                  │           ▲          ▲
//!                                                  ├ other ────┘          │
//!                                                  └ made here, noted ────┘
//! ```
//!
//! The instruction clobbers `rcx` and `r11`, so the way to the stub costs nobody a register. No trap, no signal. Code that was made at run time is
//! not led here.

#![allow(unsafe_code)] // An entry stub in assembly; makes system calls for the program.

use super::mapped;
use super::planted::{ORIGINAL, Planted};
use crate::mappings::Made;
use crate::{pools, sys, threads, walk};
use core::arch::global_asm;

/// What the stub has saved.
#[repr(C)]
struct SystemCall {
    number: usize,
    /// rdi, rsi, rdx, r10, r8, r9.
    arguments: [usize; 6],
}

/// The stub's address.
pub(super) fn stub() -> unsafe extern "C" fn() {
    pointee_system_call
}

unsafe extern "C" {
    fn pointee_system_call();
}

// 128 bytes below the stack pointer are the caller's (psABI 3.2.2). A system call keeps all but rax, rcx, r11.
global_asm!(
    ".text",
    ".hidden pointee_system_call",
    ".globl pointee_system_call",
    ".type pointee_system_call, @function",
    "pointee_system_call:",
    "lea rsp, [rsp - 128]",
    "pushfq",
    "cmp eax, {mmap}", "je 2f",
    "cmp eax, {mprotect}", "je 2f",
    "cmp eax, {munmap}", "je 2f",
    "cmp eax, {brk}", "je 2f",
    "cmp eax, {mremap}", "je 2f",
    "cmp eax, {shmat}", "je 2f",
    "cmp eax, {sigaltstack}", "je 2f",
    "cmp eax, {pkey_mprotect}", "je 2f",
    "popfq",
    "lea rsp, [rsp + 128]",
    "jmp [r11 + {original}]",
    "2:",
    "push r11",
    "push rbp",
    "mov rbp, rsp",
    "and rsp, -16",
    "sub rsp, 320", // 256 of vectors, 56 of the call, 8 to be aligned
    "movups [rsp], xmm0", "movups [rsp + 16], xmm1", "movups [rsp + 32], xmm2", "movups [rsp + 48], xmm3",
    "movups [rsp + 64], xmm4", "movups [rsp + 80], xmm5", "movups [rsp + 96], xmm6", "movups [rsp + 112], xmm7",
    "movups [rsp + 128], xmm8", "movups [rsp + 144], xmm9", "movups [rsp + 160], xmm10", "movups [rsp + 176], xmm11",
    "movups [rsp + 192], xmm12", "movups [rsp + 208], xmm13", "movups [rsp + 224], xmm14", "movups [rsp + 240], xmm15",
    "mov [rsp + 256], rax", "mov [rsp + 264], rdi", "mov [rsp + 272], rsi", "mov [rsp + 280], rdx",
    "mov [rsp + 288], r10", "mov [rsp + 296], r8", "mov [rsp + 304], r9",
    "cld",
    "lea rdi, [rsp + 256]",
    "lea rsi, [rbp + 152]", // the program's stack pointer: rbp, r11, flags, 128
    "mov rdx, [rbp]",
    "mov rcx, r11",
    "call {make}",
    "mov rdi, [rsp + 264]", "mov rsi, [rsp + 272]", "mov rdx, [rsp + 280]",
    "mov r10, [rsp + 288]", "mov r8, [rsp + 296]", "mov r9, [rsp + 304]",
    "movups xmm0, [rsp]", "movups xmm1, [rsp + 16]", "movups xmm2, [rsp + 32]", "movups xmm3, [rsp + 48]",
    "movups xmm4, [rsp + 64]", "movups xmm5, [rsp + 80]", "movups xmm6, [rsp + 96]", "movups xmm7, [rsp + 112]",
    "movups xmm8, [rsp + 128]", "movups xmm9, [rsp + 144]", "movups xmm10, [rsp + 160]", "movups xmm11, [rsp + 176]",
    "movups xmm12, [rsp + 192]", "movups xmm13, [rsp + 208]", "movups xmm14, [rsp + 224]", "movups xmm15, [rsp + 240]",
    "mov rsp, rbp",
    "pop rbp",
    "pop r11",
    "popfq",
    "lea rsp, [rsp + 128]",
    "mov rcx, [r11 + {original}]",
    "lea rcx, [rcx + 2]", // behind the instruction
    "jmp rcx",
    ".size pointee_system_call, . - pointee_system_call",
    mmap = const mapped::NUMBERS[0].0,
    mprotect = const mapped::NUMBERS[1].0,
    munmap = const mapped::NUMBERS[2].0,
    brk = const mapped::NUMBERS[3].0,
    mremap = const mapped::NUMBERS[4].0,
    shmat = const mapped::NUMBERS[5].0,
    sigaltstack = const mapped::NUMBERS[6].0,
    pkey_mprotect = const mapped::NUMBERS[7].0,
    original = const ORIGINAL,
    make = sym make,
);

/// Makes the call, and notes what came of it.
unsafe extern "C" fn make(call: &SystemCall, sp: u64, rbp: u64, planted: &Planted) -> isize {
    let number = call.number & 0xffff_ffff;
    // SAFETY: the program's own call.
    let original = || unsafe { sys::call(call.number, call.arguments) };
    let Some((what, state)) = mapped::numbered(number).zip(threads::current()) else {
        return original();
    };
    // Where a return address would lie if the instruction were a call.
    let slot = (sp - 8) as *mut u64;
    let is_outside = state.is_outside(slot);
    let before = mapped::before(state, what, &call.arguments);
    let result = original();
    let made = Made {
        call: what,
        arguments: &call.arguments,
        // As libc's functions return it.
        result: if sys::is_error(result) {
            usize::MAX
        } else {
            result as usize
        },
        before,
        is_pools: is_outside && pools::is_inside(state, slot),
    };
    mapped::after(state, &made, || {
        if !is_outside {
            return planted.root();
        }
        // A leaf function keeps variables there: they are put back.
        // SAFETY: within the red zone of this thread's stack; walks read the place as they read those of return addresses.
        unsafe {
            let kept = slot.read();
            slot.write(planted.entry());
            let origin = walk::origin(planted.root(), slot, rbp);
            slot.write(kept);
            origin
        }
    });
    result
}
