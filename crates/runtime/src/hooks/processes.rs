//! *What runs instead of fork, exec and the other calls at which a record begins, ends, or has to watch out?*

#![allow(unsafe_code)] // Entry stubs in assembly; calls originals through their addresses.

use super::call::hooks;
use super::planted::ORIGINAL;
use super::{Planted, mapped};
use crate::api;
use crate::exec::{self, Named};
use crate::mappings::{self, list};
use crate::{heap, process, signal_stacks};
use core::arch::naked_asm;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use pointee_model::entries::Role;

/// Set when the process puts itself under a system call filter: from then on the runtime makes none
/// beyond those that the program makes.
static FILTERED: AtomicU32 = AtomicU32::new(0);

/// Whether a system call of ours might kill the process.
pub(crate) fn is_filtered() -> bool {
    FILTERED.load(Relaxed) != 0
}

// `prctl` and `syscall` take any number of arguments: the stubs look at the first and change none, but for an exec's.

#[unsafe(naked)]
pub(super) unsafe extern "C" fn prctl_stub() {
    naked_asm!(
        "cmp edi, 22", // PR_SET_SECCOMP
        "jne 2f",
        "mov dword ptr [rip + {filtered}], 1",
        "2: jmp [r11]", // the original
        filtered = sym FILTERED,
    );
}

#[unsafe(naked)]
pub(super) unsafe extern "C" fn syscall_stub() {
    naked_asm!(
        "cmp rdi, 317", // seccomp
        "jne 2f",
        "mov dword ptr [rip + {filtered}], 1",
        "2: cmp rdi, {execve}",
        "je 3f",
        "cmp rdi, {execveat}",
        "je 3f",
        "cmp rdi, {mmap}",
        "je 4f",
        "cmp rdi, {mprotect}",
        "je 4f",
        "cmp rdi, {munmap}",
        "je 4f",
        "cmp rdi, {mremap}",
        "je 4f",
        "cmp rdi, {shmat}",
        "je 4f",
        "cmp rdi, {brk}",
        "je 4f",
        "cmp rdi, {sigaltstack}",
        "je 4f",
        "cmp rdi, {pkey_mprotect}",
        "je 4f",
        "jmp [r11]", // the original
        "3: jmp {exec}",
        "4: jmp {mapping}",
        filtered = sym FILTERED,
        execve = const SYS_EXECVE,
        execveat = const SYS_EXECVEAT,
        exec = sym exec_stub,
        mmap = const mapped::NUMBERS[0].0,
        mprotect = const mapped::NUMBERS[1].0,
        munmap = const mapped::NUMBERS[2].0,
        mremap = const mapped::NUMBERS[4].0,
        shmat = const mapped::NUMBERS[5].0,
        brk = const mapped::NUMBERS[3].0,
        sigaltstack = const mapped::NUMBERS[6].0,
        pkey_mprotect = const mapped::NUMBERS[7].0,
        mapping = sym mapped::mapping_stub,
    );
}

/// What the names of types' symbols begin with.
static TYPE_PREFIX: [u8; 12] = *b"__uniqtype_\0";

// `dlsym` looks at who calls it: what asks for no type goes on as it came.

/// `dlsym(handle, name)`.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn dlsym_stub() {
    naked_asm!(
        ".cfi_startproc",
        "test rsi, rsi",
        "jz 3f",
        "lea r10, [rip + {prefix}]",
        "mov rax, rsi",
        "2: mov cl, [r10]",
        "test cl, cl",
        "jz 4f",
        "cmp cl, [rax]",
        "jne 3f",
        "inc r10",
        "inc rax",
        "jmp 2b",
        "3: jmp [r11 + {original}]",
        "4: push rdi",
        ".cfi_adjust_cfa_offset 8",
        "push rsi",
        ".cfi_adjust_cfa_offset 8",
        "push r11",
        ".cfi_adjust_cfa_offset 8",
        "mov rdi, rsi",
        "call {type_named}",
        "pop r11",
        ".cfi_adjust_cfa_offset -8",
        "pop rsi",
        ".cfi_adjust_cfa_offset -8",
        "pop rdi",
        ".cfi_adjust_cfa_offset -8",
        "test rax, rax",
        "jz 3b",
        "ret",
        ".cfi_endproc",
        prefix = sym TYPE_PREFIX,
        original = const ORIGINAL,
        type_named = sym api::type_named,
    );
}

const SYS_EXECVE: usize = 59;
const SYS_EXECVEAT: usize = 322;

/// Gives [`on_exec_of_many`] all that a function of up to six arguments was called with.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn exec_stub() {
    naked_asm!(
        ".cfi_startproc",
        "push r11",
        ".cfi_adjust_cfa_offset 8",
        "push r9",
        ".cfi_adjust_cfa_offset 8",
        "push r8",
        ".cfi_adjust_cfa_offset 8",
        "push rcx",
        ".cfi_adjust_cfa_offset 8",
        "push rdx",
        ".cfi_adjust_cfa_offset 8",
        "push rsi",
        ".cfi_adjust_cfa_offset 8",
        "push rdi",
        ".cfi_adjust_cfa_offset 8",
        "mov rdi, rsp",
        "mov rsi, r11",
        "call {on_exec_of_many}",
        "add rsp, 56",
        ".cfi_adjust_cfa_offset -56",
        "ret",
        ".cfi_endproc",
        on_exec_of_many = sym on_exec_of_many,
    );
}

hooks! {
    pub(super) fn on_fork(call) {
        process::fork(|| call.original())
    }

    /// `execve(path, argv, envp)` and `fexecve(fd, argv, envp)`.
    pub(super) fn on_exec(call) {
        let [named, argv, environment] = call.args;
        let program = match call.planted.role() {
            Role::ExecFd => Named::Descriptor(named),
            _ => Named::Path(named),
        };
        let original = |environment| {
            // SAFETY: the program's own call, with another environment.
            unsafe { call.planted.call(named, argv, environment) }
        };
        // SAFETY: path or open file, and arrays, are what the function is given.
        unsafe { exec::exec(program, environment, original) }
    }

    pub(super) fn on_exit(call) {
        process::note_exit(call.args[0] as u32 & 0xff);
        call.original()
    }

    pub(super) fn on_brk(call) {
        list::will_change();
        let error = call.original();
        if error as i32 == 0 {
            mappings::heap_ends_at(call.args[0] as u64);
            heap::grown(call.args[0] as u64);
        }
        list::has_changed();
        error
    }

    pub(super) fn on_signal_stack(call) {
        let error = call.original();
        if error as i32 == 0 && call.args[0] != 0 {
            // SAFETY: the kernel has just read it.
            signal_stacks::was_set(unsafe { *(call.args[0] as *const [u64; 3]) });
        }
        error
    }

    pub(super) fn on_link_map(call) {
        crate::start::link_map_changed();
        call.original()
    }
}

/// `execveat(fd, path, argv, envp, flags)`, and `syscall` with the number of an exec before its arguments.
unsafe extern "C" fn on_exec_of_many(arguments: &[usize; 6], planted: &'static Planted) -> usize {
    let [a, b, c, ..] = *arguments;
    let (program, at) = match (planted.role(), a) {
        (Role::Syscall, SYS_EXECVE) => (Named::Path(b), 3),
        (Role::Syscall, _) => (Named::At(b, c), 4),
        _ => (Named::At(a, b), 3),
    };
    let original = |environment: usize| {
        let mut all = *arguments;
        all[at] = environment;
        let [a, b, c, d, e, f] = all;
        // SAFETY: the program's own call, with another environment.
        unsafe { planted.call_with_many([a, b, c, d, e, f, 0]) }
    };
    // SAFETY: as above; what names the program and the environment are where the call has them.
    unsafe { exec::exec(program, arguments[at], original) }
}
