//! *Through which code do wrapped calls go?* The entry stub and the exit stub, see [`mod@crate::wrap`], in three forms: for the
//! vector registers of SSE, AVX and AVX-512. They change no register and no flag that a call may not.
//!
//! ```text
//!               entry stub                         exit stub
//!   CFA - 8     return address                     the thunk's address, later the return address
//!   CFA - 16    hook, later where to go on         rbp
//!   CFA - 24    rbp
//!   below, at a multiple of 64: Saved
//! ```
//!
//! Both end in a jump through the word just below the stack pointer: no register is free for it, and a `ret` would
//! put the processor's prediction of all later returns out of step. Signal handlers keep off that word (psABI x86-64, 3.2.2).

#![allow(unsafe_code)] // Assembly.

use core::arch::{asm, global_asm};

use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::context::Width;

use crate::processor;
use crate::wrap::{Local, enter, leave};

/// The registers of a call or return. General ones first, in the order of the psABI's arguments.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Saved {
    /// First integer argument.
    pub rdi: u64,
    /// Second.
    pub rsi: u64,
    /// Third, and second word of a result.
    pub rdx: u64,
    /// Fourth.
    pub rcx: u64,
    /// Fifth.
    pub r8: u64,
    /// Sixth.
    pub r9: u64,
    /// Number of vector registers with arguments, and first word of a result.
    pub rax: u64,
    /// The static chain.
    pub r10: u64,
    /// Nobody's.
    pub r11: u64,
    _unused: [u64; 7],
    /// Vector registers 0 to 15, from the lowest byte up, as far as the processor has them: the first eight with 16, 32 or 64 bytes, the others
    /// with 16 or 32.
    pub vectors: [[u8; 64]; 16],
}

const SAVED: usize = size_of::<Saved>();
const VECTORS: usize = core::mem::offset_of!(Saved, vectors);

macro_rules! vectors {
    ($move:literal, $low:literal, $high_move:literal, $high:literal) => {
        concat!(
            ".macro each_vector store\n",
            ".irp n, 0,1,2,3,4,5,6,7\n",
            ".if \\store\n",
            $move,
            " [rsp + {vectors} + 64 * \\n], ",
            $low,
            "\\n\n",
            ".else\n",
            $move,
            " ",
            $low,
            "\\n, [rsp + {vectors} + 64 * \\n]\n",
            ".endif\n",
            ".endr\n",
            ".irp n, 8,9,10,11,12,13,14,15\n",
            ".if \\store\n",
            $high_move,
            " [rsp + {vectors} + 64 * \\n], ",
            $high,
            "\\n\n",
            ".else\n",
            $high_move,
            " ",
            $high,
            "\\n, [rsp + {vectors} + 64 * \\n]\n",
            ".endif\n",
            ".endr\n",
            ".endm\n"
        )
    };
}

macro_rules! stubs {
    ($entry:literal, $exit:literal, $vectors:expr) => {
        global_asm!(
            $vectors,
            ".macro save",
            "mov [rsp], rdi", "mov [rsp + 8], rsi", "mov [rsp + 16], rdx", "mov [rsp + 24], rcx",
            "mov [rsp + 32], r8", "mov [rsp + 40], r9", "mov [rsp + 48], rax", "mov [rsp + 56], r10",
            "mov [rsp + 64], r11",
            "each_vector 1",
            ".endm",
            ".macro restore",
            "each_vector 0",
            "mov rdi, [rsp]", "mov rsi, [rsp + 8]", "mov rdx, [rsp + 16]", "mov rcx, [rsp + 24]",
            "mov r8, [rsp + 32]", "mov r9, [rsp + 40]", "mov rax, [rsp + 48]", "mov r10, [rsp + 56]",
            "mov r11, [rsp + 64]",
            ".endm",
            ".section .text.pointee_live_stubs,\"ax\",@progbits",
            ".balign 64",
            concat!(".hidden ", $entry), concat!(".globl ", $entry), concat!(".type ", $entry, ", @function"),
            concat!($entry, ":"),
            ".cfi_startproc",
            ".cfi_def_cfa_offset 16",
            "push rbp",
            ".cfi_def_cfa_offset 24",
            ".cfi_offset rbp, -24",
            "mov rbp, rsp",
            ".cfi_def_cfa_register rbp",
            "sub rsp, {saved}",
            "and rsp, -64",
            "save",
            "mov rdi, rsp",
            "lea rsi, [rbp + 16]",
            "mov rdx, [rbp + 8]",
            "cld",
            "call {enter}",
            "mov [rbp + 8], rax",
            "restore",
            "mov rsp, rbp",
            "pop rbp",
            ".cfi_def_cfa rsp, 16",
            ".cfi_restore rbp",
            "lea rsp, [rsp + 8]",
            ".cfi_def_cfa_offset 8",
            "jmp [rsp - 8]",
            ".cfi_endproc",
            concat!(".size ", $entry, ", . - ", $entry),
            concat!(".hidden ", $exit), concat!(".globl ", $exit), concat!(".type ", $exit, ", @function"),
            concat!($exit, ":"),
            ".cfi_startproc",
            ".cfi_def_cfa_offset 0",
            // See `frames::THUNK_RULE`.
            ".cfi_escape 0x10, 0x10, 8, 0x38, 0x1c, 0x06, 0x12, 0x23, 23, 0x06, 0x22",
            "lea rsp, [rsp - 8]", // the word that was returned through: the thunk's address
            ".cfi_def_cfa_offset 8",
            "push rbp",
            ".cfi_def_cfa_offset 16",
            ".cfi_offset rbp, -16",
            "mov rbp, rsp",
            ".cfi_def_cfa_register rbp",
            "sub rsp, {saved}",
            "and rsp, -64",
            "save",
            "mov rdi, rsp",
            "mov rsi, [rbp + 8]",
            "cld",
            "call {leave}",
            "mov [rbp + 8], rax",
            ".cfi_offset rip, -8",
            "restore",
            "mov rsp, rbp",
            "pop rbp",
            ".cfi_def_cfa rsp, 8",
            ".cfi_restore rbp",
            "lea rsp, [rsp + 8]",
            ".cfi_def_cfa_offset 0",
            "jmp [rsp - 8]",
            ".cfi_endproc",
            concat!(".size ", $exit, ", . - ", $exit),
            ".purgem each_vector", ".purgem save", ".purgem restore",
            ".text",
            saved = const SAVED,
            vectors = const VECTORS,
            enter = sym enter,
            leave = sym leave,
        );
    };
}

stubs!(
    "pointee_live_entry_sse",
    "pointee_live_exit_sse",
    vectors!("movaps", "xmm", "movaps", "xmm")
);
stubs!(
    "pointee_live_entry_avx",
    "pointee_live_exit_avx",
    vectors!("vmovaps", "ymm", "vmovaps", "ymm")
);
stubs!(
    "pointee_live_entry_avx512",
    "pointee_live_exit_avx512",
    vectors!("vmovaps", "zmm", "vmovaps", "ymm")
);

// What the engine keeps for each thread; zero at first. In the initial part of thread-local storage, which is found
// without a call.
global_asm!(
    ".section .tbss.pointee_live,\"awT\",@nobits",
    ".balign 8",
    ".hidden pointee_live_local",
    ".globl pointee_live_local",
    ".type pointee_live_local, @object",
    "pointee_live_local: .zero {len}",
    ".size pointee_live_local, {len}",
    ".text",
    len = const size_of::<Local>(),
);

unsafe extern "C" {
    fn pointee_live_entry_sse();
    fn pointee_live_entry_avx();
    fn pointee_live_entry_avx512();
    fn pointee_live_exit_sse();
    fn pointee_live_exit_avx();
    fn pointee_live_exit_avx512();
}

/// This thread's own.
pub(crate) fn local() -> *mut Local {
    let local: *mut Local;
    // SAFETY: computes an address.
    unsafe {
        asm!(
            "mov {0}, fs:[0]",
            "add {0}, [rip + pointee_live_local@GOTTPOFF]",
            out(reg) local,
            options(pure, readonly, nostack),
        );
    }
    local
}

/// Entry and exit stub of each form.
fn forms() -> [[RunAddr; 2]; 3] {
    let form = |entry: unsafe extern "C" fn(), exit: unsafe extern "C" fn()| {
        [
            RunAddr(entry as usize as u64),
            RunAddr(exit as usize as u64),
        ]
    };
    [
        form(pointee_live_entry_sse, pointee_live_exit_sse),
        form(pointee_live_entry_avx, pointee_live_exit_avx),
        form(pointee_live_entry_avx512, pointee_live_exit_avx512),
    ]
}

/// The form for the vector registers that this processor has and the kernel saves.
fn form() -> [RunAddr; 2] {
    let [sse, avx, avx512] = forms();
    match processor::states().width() {
        Width::Sse => sse,
        Width::Avx => avx,
        Width::Avx512 => avx512,
    }
}

/// Where relays of wrapped functions go, with the hook pushed.
pub(crate) fn entry_stub() -> RunAddr {
    form()[0]
}

/// Where thunks go.
pub(crate) fn exit_stub() -> RunAddr {
    form()[1]
}

/// The addresses of the stubs' code; a thread that runs an observer has one of them on its stack.
pub(crate) fn range() -> [u64; 2] {
    let [entry, exit] = form();
    // The exit stub is not longer than the entry stub.
    [entry.0, exit.0 + (exit.0 - entry.0)]
}
