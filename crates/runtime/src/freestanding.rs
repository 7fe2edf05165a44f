//! *What does compiled Rust expect of its surroundings when there are none?*
//!
//! The memory and string functions the compiler calls by name, a panic handler, and the personality symbol that debug
//! builds of `core` mention. All hidden: exported, they would take the place of the program's own.

#![allow(unsafe_code)] // Memory functions are written in assembly, so that no symbol of theirs is exported.

use core::panic::PanicInfo;

core::arch::global_asm!(
    ".macro hidden name",
    ".globl \\name",
    ".hidden \\name",
    ".type \\name, @function",
    "\\name:",
    ".cfi_startproc",
    ".endm",
    ".macro done name",
    ".cfi_endproc",
    ".size \\name, . - \\name",
    ".endm",
    ".text",
    "hidden memcpy",
    "    mov rax, rdi",
    "    mov rcx, rdx",
    "    rep movsb",
    "    ret",
    "done memcpy",
    "hidden memmove",
    "    mov rax, rdi",
    "    mov rcx, rdx",
    "    mov r8, rdi",
    "    sub r8, rsi",
    "    cmp r8, rdx", // destination within the source: copy backwards
    "    jb 2f",
    "    rep movsb",
    "    ret",
    "2:  lea rdi, [rdi + rdx - 1]",
    "    lea rsi, [rsi + rdx - 1]",
    "    std",
    "    rep movsb",
    "    cld",
    "    ret",
    "done memmove",
    "hidden memset",
    "    mov r8, rdi",
    "    mov eax, esi",
    "    mov rcx, rdx",
    "    rep stosb",
    "    mov rax, r8",
    "    ret",
    "done memset",
    "hidden memcmp",
    "    xor ecx, ecx",
    "2:  cmp rcx, rdx",
    "    je 3f",
    "    movzx eax, byte ptr [rdi + rcx]",
    "    movzx r8d, byte ptr [rsi + rcx]",
    "    inc rcx",
    "    sub eax, r8d",
    "    je 2b",
    "    ret",
    "3:  xor eax, eax",
    "    ret",
    "done memcmp",
    "hidden bcmp",
    "    jmp memcmp",
    "done bcmp",
    "hidden strlen",
    "    xor eax, eax",
    "2:  cmp byte ptr [rdi + rax], 0",
    "    je 3f",
    "    inc rax",
    "    jmp 2b",
    "3:  ret",
    "done strlen",
    "hidden rust_eh_personality",
    "    ud2",
    "done rust_eh_personality",
    ".purgem hidden",
    ".purgem done",
);

/// A defect of ours must not become one of the program's state: stop at once, where a debugger sees it.
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    crate::sys::abort()
}
