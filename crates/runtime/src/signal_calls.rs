//! *What becomes of the program's system calls about signals, where there are traps?*
//!
//! `SIGTRAP` must not be blocked for the kernel, and must have our handler ([`crate::traps`]). So copies of system
//! calls that may say otherwise come to the stub here instead of their instruction. Those that do not are made at
//! their instruction after all; the others are made here with that one bit taken out of their masks, and put back into
//! what they return.
//!
//! ```text
//!   copy: rcx = next instruction, r11 = a `syscall` ─▶ stub ─ other number ─▶ r11
//!                                                        └ made here, all but rax kept ─▶ rcx
//! ```
//!
//! A thread that waits here has a frame on its stack whose caller is the original code: unwinders go on there.

#![allow(unsafe_code)] // Makes system calls for the program, with its own pointers.

use crate::probes;
use crate::sys;
use crate::traps::{self, Action, BIT, IGNORE, Info, SIGNAL};
use core::arch::global_asm;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

// arch/x86/entry/syscalls/syscall_64.tbl
const RT_SIGACTION: u64 = 13;
const RT_SIGPROCMASK: u64 = 14;
const EXECVE: u64 = 59;
const RT_SIGPENDING: u64 = 127;
const RT_SIGTIMEDWAIT: u64 = 128;
const RT_SIGSUSPEND: u64 = 130;
const PSELECT6: u64 = 270;
const PPOLL: u64 = 271;
const EPOLL_PWAIT: u64 = 281;
const EXECVEAT: u64 = 322;
const EPOLL_PWAIT2: u64 = 441;

const EINTR: isize = -4;
/// Bytes of a mask.
const MASK_LEN: u64 = 8;

/// Signals whose handlers block `SIGTRAP`, as the program has it.
static HANDLERS: AtomicU64 = AtomicU64::new(0);

/// What the stub has saved.
#[repr(C)]
struct Call {
    number: u64,
    /// rdi, rsi, rdx, r10, r8, r9.
    arguments: [u64; 6],
}

/// The stub's address.
pub(crate) fn stub() -> u64 {
    pointee_signal_call as *const () as u64
}

unsafe extern "C" {
    fn pointee_signal_call();
}

// 128 bytes below the stack pointer are the caller's (psABI 3.2.2). A system call keeps all but rax, rcx, r11.
global_asm!(
    ".text",
    ".hidden pointee_signal_call",
    ".globl pointee_signal_call",
    ".type pointee_signal_call, @function",
    "pointee_signal_call:",
    ".cfi_startproc",
    ".cfi_def_cfa rsp, 0",
    ".cfi_register rip, rcx",
    "lea rsp, [rsp - 128]",
    ".cfi_def_cfa_offset 128",
    "pushfq",
    ".cfi_def_cfa_offset 136",
    "cmp eax, {rt_sigaction}", "je 2f",
    "cmp eax, {rt_sigprocmask}", "je 2f",
    "cmp eax, {execve}", "je 2f",
    "cmp eax, {rt_sigpending}", "je 2f",
    "cmp eax, {rt_sigtimedwait}", "je 2f",
    "cmp eax, {rt_sigsuspend}", "je 2f",
    "cmp eax, {pselect6}", "je 2f",
    "cmp eax, {ppoll}", "je 2f",
    "cmp eax, {epoll_pwait}", "je 2f",
    "cmp eax, {execveat}", "je 2f",
    "cmp eax, {epoll_pwait2}", "je 2f",
    ".cfi_remember_state",
    "popfq",
    ".cfi_def_cfa_offset 128",
    "lea rsp, [rsp + 128]",
    ".cfi_def_cfa_offset 0",
    "jmp r11",
    ".cfi_restore_state",
    "2:",
    "push rcx",
    ".cfi_def_cfa_offset 144",
    ".cfi_offset rip, -144",
    "push rbp",
    ".cfi_def_cfa_offset 152",
    ".cfi_offset rbp, -152",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
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
    "call {make}",
    "mov rdi, [rsp + 264]", "mov rsi, [rsp + 272]", "mov rdx, [rsp + 280]",
    "mov r10, [rsp + 288]", "mov r8, [rsp + 296]", "mov r9, [rsp + 304]",
    "movups xmm0, [rsp]", "movups xmm1, [rsp + 16]", "movups xmm2, [rsp + 32]", "movups xmm3, [rsp + 48]",
    "movups xmm4, [rsp + 64]", "movups xmm5, [rsp + 80]", "movups xmm6, [rsp + 96]", "movups xmm7, [rsp + 112]",
    "movups xmm8, [rsp + 128]", "movups xmm9, [rsp + 144]", "movups xmm10, [rsp + 160]", "movups xmm11, [rsp + 176]",
    "movups xmm12, [rsp + 192]", "movups xmm13, [rsp + 208]", "movups xmm14, [rsp + 224]", "movups xmm15, [rsp + 240]",
    "mov rsp, rbp",
    ".cfi_def_cfa_register rsp",
    "pop rbp",
    ".cfi_def_cfa_offset 144",
    ".cfi_restore rbp",
    "pop rcx",
    ".cfi_def_cfa_offset 136",
    ".cfi_register rip, rcx",
    "popfq",
    ".cfi_def_cfa_offset 128",
    "lea rsp, [rsp + 128]",
    ".cfi_def_cfa_offset 0",
    "jmp rcx",
    ".cfi_endproc",
    ".size pointee_signal_call, . - pointee_signal_call",
    rt_sigaction = const RT_SIGACTION,
    rt_sigprocmask = const RT_SIGPROCMASK,
    execve = const EXECVE,
    rt_sigpending = const RT_SIGPENDING,
    rt_sigtimedwait = const RT_SIGTIMEDWAIT,
    rt_sigsuspend = const RT_SIGSUSPEND,
    pselect6 = const PSELECT6,
    ppoll = const PPOLL,
    epoll_pwait = const EPOLL_PWAIT,
    execveat = const EXECVEAT,
    epoll_pwait2 = const EPOLL_PWAIT2,
    make = sym make,
);

/// Makes the call as the program meant it; what it returns goes to `rax`.
unsafe extern "C" fn make(call: &Call) -> isize {
    let a = &call.arguments;
    match call.number {
        // SAFETY: the program's own call, and its pointers.
        RT_SIGACTION if a[3] == MASK_LEN => unsafe { action(call) },
        RT_SIGPROCMASK if a[3] == MASK_LEN => unsafe { mask(call) },
        RT_SIGPENDING => unsafe { pending(call) },
        RT_SIGTIMEDWAIT => unsafe { timed_wait(call) },
        EXECVE | EXECVEAT => {
            traps::hand_over();
            let result = as_it_is(call);
            traps::take_back();
            result
        }
        RT_SIGSUSPEND => wait(call, 0),
        PPOLL => wait(call, 3),
        EPOLL_PWAIT | EPOLL_PWAIT2 => wait(call, 4),
        PSELECT6 => wait_by_pair(call),
        _ => as_it_is(call),
    }
}

fn made(call: &Call, arguments: [u64; 6]) -> isize {
    let arguments = arguments.map(|argument| argument as usize);
    // SAFETY: the program's own call; what was changed of it points to copies on this stack.
    unsafe { sys::call(call.number as usize, arguments) }
}

fn as_it_is(call: &Call) -> isize {
    made(call, call.arguments)
}

/// Reads what the program points to, as the kernel would: `None` if there is nothing to read.
fn read<const WORDS: usize>(at: u64) -> Option<[u64; WORDS]> {
    let mut words = [0; WORDS];
    if at == 0 {
        return None;
    }
    if probes::is_filtered() {
        // SAFETY: not known; a filter may end the process for asking.
        return Some(unsafe { core::ptr::read_unaligned(at as *const [u64; WORDS]) });
    }
    sys::read_own(at, &mut words).then_some(words)
}

/// Adds `bits` to a word that the kernel has just written for the program.
///
/// # Safety
/// It has.
unsafe fn add(at: u64, bits: u64) {
    let at = at as *mut u64;
    // SAFETY: the caller's promise.
    unsafe { at.write_unaligned(at.read_unaligned() | bits) };
}

/// # Safety
/// As for the system call.
unsafe fn action(call: &Call) -> isize {
    let [signal, new_at, old_at, ..] = call.arguments;
    let new = read::<4>(new_at);
    if new_at != 0 && new.is_none() {
        return as_it_is(call);
    }
    let new = new.map(|[handler, flags, restorer, mask]| Action {
        handler,
        flags,
        restorer,
        mask,
    });
    if signal == SIGNAL {
        // SAFETY: the caller's promise.
        return unsafe { own_action(call, new.as_ref(), old_at) };
    }
    let filtered = new.map(|new| Action {
        mask: new.mask & !BIT,
        ..new
    });
    let mut arguments = call.arguments;
    if let Some(filtered) = &filtered {
        arguments[1] = core::ptr::from_ref(filtered) as u64;
    }
    let result = made(call, arguments);
    if result != 0 || !(1..=64).contains(&signal) {
        return result;
    }
    let bit = 1 << (signal - 1);
    if old_at != 0 && HANDLERS.load(Relaxed) & bit != 0 {
        // SAFETY: the kernel has just written there.
        unsafe { add(old_at + 24, BIT) };
    }
    match new {
        // A process that only borrows this memory has dispositions of its own.
        Some(new) if traps::borrower().is_none() => {
            if new.mask & BIT != 0 {
                HANDLERS.fetch_or(bit, Relaxed);
            } else {
                HANDLERS.fetch_and(!bit, Relaxed);
            }
        }
        _ => {}
    }
    result
}

/// `SIGTRAP`'s own: the kernel's stays.
///
/// # Safety
/// As for the system call.
unsafe fn own_action(call: &Call, new: Option<&Action>, old_at: u64) -> isize {
    if old_at != 0 {
        // The kernel says whether that can be written.
        let [signal, _, old, size, ..] = call.arguments;
        let result = made(call, [signal, 0, old, size, 0, 0]);
        if result != 0 {
            return result;
        }
    }
    let before = match traps::borrower() {
        None => traps::exchange(new),
        Some(process) => {
            let ignored = traps::is_ignored();
            if let Some(new) = new {
                traps::set_borrower_ignores(process, new.handler == IGNORE);
            }
            match traps::exchange(None) {
                parents if ignored => Action {
                    handler: IGNORE,
                    ..parents
                },
                parents => parents,
            }
        }
    };
    if old_at != 0 {
        // SAFETY: the kernel has just written there.
        unsafe { (old_at as *mut Action).write_unaligned(before) };
    }
    0
}

/// # Safety
/// As for the system call.
unsafe fn mask(call: &Call) -> isize {
    const SIG_BLOCK: u64 = 0;
    const SIG_UNBLOCK: u64 = 1;
    let [how, new_at, old_at, ..] = call.arguments;
    let new = read::<1>(new_at);
    if new_at != 0 && new.is_none() {
        return as_it_is(call);
    }
    let before = traps::is_blocked();
    let mut arguments = call.arguments;
    let filtered = new.map(|[mask]| mask & !BIT);
    if let Some(filtered) = &filtered {
        arguments[1] = core::ptr::from_ref(filtered) as u64;
    }
    let result = made(call, arguments);
    if result != 0 {
        return result;
    }
    if old_at != 0 && before {
        // SAFETY: the kernel has just written there.
        unsafe { add(old_at, BIT) };
    }
    if let Some([mask]) = new {
        let named = mask & BIT != 0;
        traps::set_blocked(match how {
            SIG_BLOCK => before || named,
            SIG_UNBLOCK => before && !named,
            _ => named,
        });
    }
    result
}

/// # Safety
/// As for the system call.
unsafe fn pending(call: &Call) -> isize {
    let result = as_it_is(call);
    if result == 0 && traps::is_held() {
        // SAFETY: the kernel has just written there.
        unsafe { add(call.arguments[0], BIT) };
    }
    result
}

/// # Safety
/// As for the system call.
unsafe fn timed_wait(call: &Call) -> isize {
    let [set, info_at, ..] = call.arguments;
    let wanted = read::<1>(set).is_some_and(|[set]| set & BIT != 0);
    let Some(info) = wanted.then(traps::take_held).flatten() else {
        return as_it_is(call);
    };
    if info_at != 0 {
        // SAFETY: the caller's promise.
        unsafe { (info_at as *mut Info).write_unaligned(info) };
    }
    info.signal as isize
}

/// A call that waits with the mask which argument `at` points to.
fn wait(call: &Call, at: usize) -> isize {
    let Some([mask]) = read::<1>(call.arguments[at]) else {
        return as_it_is(call);
    };
    let filtered = mask & !BIT;
    let mut arguments = call.arguments;
    arguments[at] = (&raw const filtered) as u64;
    wait_with(call, mask, arguments)
}

/// The same where it points to the mask's address and length.
fn wait_by_pair(call: &Call) -> isize {
    let pair = read::<2>(call.arguments[5]);
    let mask = pair.and_then(|[at, _]| read::<1>(at));
    let (Some([_, len]), Some([mask])) = (pair, mask) else {
        return as_it_is(call);
    };
    let filtered = mask & !BIT;
    let pair = [(&raw const filtered) as u64, len];
    let mut arguments = call.arguments;
    arguments[5] = (&raw const pair) as u64;
    wait_with(call, mask, arguments)
}

fn wait_with(call: &Call, mask: u64, arguments: [u64; 6]) -> isize {
    let before = traps::is_blocked();
    let blocks = mask & BIT != 0;
    let due = before && !blocks && traps::is_held();
    traps::set_blocked(blocks);
    let result = if due {
        EINTR // It has come just now.
    } else {
        made(call, arguments)
    };
    traps::set_blocked(before);
    result
}
