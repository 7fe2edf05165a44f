//! *What happens at a trap of ours, and what does the program see of `SIGTRAP`?*
//!
//! A trap is one `int3` in the program's code, where nothing longer fits. Its signal has one handler, ours: if the
//! address is one of our traps, the thread goes on in the copy; any other `SIGTRAP` does what the program has
//! *set* for it, which is kept here, because the kernel has our handler in its place.
//!
//! ```text
//!   int3 ─ kernel ─▶ on_signal ─ our address ──▶ rip := copy, return
//!                        └ any other: what the program has set
//!                              blocked  held, until a thread unblocks it
//!                              ignored  nothing
//!                              default  put back, and the signal again: the process ends as it would have
//!                              handler  called, with the mask it asked for
//! ```
//!
//! The kernel ends a process that is trapped while `SIGTRAP` is blocked or ignored. So for the kernel no thread
//! ever blocks it; whether the program means it to be is one bit in the thread's control block
//! ([`threads::PLACE`], otherwise unused when there are probes). [`crate::signal_calls`] sees to both.
//!
//! A debugger takes every `SIGTRAP` for its own, and keeps it from the process. gdb hands them on after `handle SIGTRAP nostop
//! noprint pass`: then those of its breakpoints and steps come here too, and are told apart.
//!
//! # What is not as without us
//!
//! - A handler of another signal whose mask has `SIGTRAP` does not find it blocked; nor does a handler
//!   find it in the mask of its context, unless it is that of `SIGTRAP`.
//! - A `SIGTRAP` to the process, held for a thread that blocks it, does not go to another that does not.
//! - `signalfd` for `SIGTRAP` reads nothing. `/proc` says that it is caught, and not blocked.
//! - System calls that the kernel begins again only where there is no handler end with `EINTR` when an ignored `SIGTRAP` comes.

#![allow(unsafe_code)] // A signal handler: the kernel's structures, the thread's control block.

use crate::sys::{self, map};
use crate::{probes, threads};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32};

/// `SIGTRAP`.
pub(crate) const SIGNAL: u64 = 5;
/// Its bit in a mask.
pub(crate) const BIT: u64 = 1 << (SIGNAL - 1);

/// The kernel's `struct sigaction`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Action {
    pub(crate) handler: u64,
    pub(crate) flags: u64,
    pub(crate) restorer: u64,
    pub(crate) mask: u64,
}

pub(crate) const DEFAULT: u64 = 0;
pub(crate) const IGNORE: u64 = 1;
const SA_SIGINFO: u64 = 4;
const SA_RESTORER: u64 = 0x0400_0000;
const SA_ONSTACK: u64 = 0x0800_0000;
const SA_RESTART: u64 = 0x1000_0000;
const SA_NODEFER: u64 = 0x4000_0000;
const SA_RESETHAND: u64 = 0x8000_0000;

/// The kernel's `siginfo_t`, 128 bytes.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Info {
    pub(crate) signal: i32,
    error: i32,
    code: i32,
    rest: [u32; 29],
}

/// Sent by the kernel itself: with a trap, `int3`.
const SI_KERNEL: i32 = 0x80;
/// Sent to one thread.
const SI_TKILL: i32 = -6;

/// The part of the kernel's `struct ucontext` that is used.
#[repr(C)]
struct Context {
    flags: u64,
    link: u64,
    stack: [u64; 3],
    /// r8 … r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, …
    registers: [u64; 23],
    state: u64,
    reserved: [u64; 8],
    mask: u64,
}

const RIP: usize = 16;

/// A signal that came while the program had it blocked.
#[derive(Clone, Copy)]
struct Held {
    /// 0: the slot is free.
    used: u32,
    /// Which thread it is for; 0: any.
    tid: u32,
    info: Info,
}

/// Signals that wait at most: one a thread and one for the process, as the kernel has it.
const ROOM: usize = 24;

/// What a forked child has not: the kernel clears it there (`MADV_WIPEONFORK`).
#[repr(C)]
struct Own {
    /// The process that this memory is of; 0 in a child that has not looked yet. One that
    /// borrows its parent's memory (`vfork`) has another number.
    process: AtomicU32,
    /// Taken with all signals blocked.
    lock: AtomicU32,
    held: UnsafeCell<[Held; ROOM]>,
}

static OWN: AtomicPtr<Own> = AtomicPtr::new(core::ptr::null_mut());

struct Cell(UnsafeCell<Action>);
// SAFETY: read and written under `Own::lock`.
unsafe impl Sync for Cell {}
static ACTION: Cell = Cell(UnsafeCell::new(Action {
    handler: DEFAULT,
    flags: 0,
    restorer: 0,
    mask: 0,
}));

/// Takes over `SIGTRAP`, once, while there is one thread. Whether traps may be written.
pub(crate) fn take_over() -> bool {
    const MADV_WIPEONFORK: usize = 18;
    if is_active() {
        return true;
    }
    let len = size_of::<Own>().next_multiple_of(4096);
    let flags = map::PRIVATE | map::ANONYMOUS;
    let own = sys::mmap(0, len, map::READ | map::WRITE, flags, -1);
    if own.is_null() {
        return false;
    }
    // SAFETY: just mapped; zeros are a valid `Own`. Nobody else runs.
    unsafe {
        let mut before = *ACTION.0.get();
        let known = sys::signal_action(SIGNAL, None, Some(&mut before)) == 0;
        if !known || !sys::madvise(own, len, MADV_WIPEONFORK) {
            sys::munmap(own, len);
            return false;
        }
        *ACTION.0.get() = before;
        (*own.cast::<Own>())
            .process
            .store(sys::getpid() as u32, Relaxed);
        OWN.store(own.cast(), Release);
        install(&before);
    }
    let mask = sys::set_signal_mask(u64::MAX);
    write_word(u64::from(mask & BIT != 0) * BLOCKED);
    sys::set_signal_mask(mask & !BIT);
    true
}

pub(crate) fn is_active() -> bool {
    !OWN.load(Relaxed).is_null()
}

fn own() -> Option<&'static Own> {
    // SAFETY: null, or mapped for good.
    unsafe { OWN.load(Acquire).as_ref() }
}

/// Gives the kernel our handler, with what it has to know of the program's.
fn install(action: &Action) {
    let has_handler = action.handler > IGNORE;
    let wanted = if has_handler {
        action.flags & (SA_ONSTACK | SA_RESTART)
    } else {
        SA_RESTART
    };
    let ours = Action {
        handler: on_signal as *const () as u64,
        flags: SA_SIGINFO | SA_RESTORER | wanted,
        restorer: pointee_signal_return as *const () as u64,
        mask: u64::MAX,
    };
    // SAFETY: the handler does for the program what its own would.
    unsafe { sys::signal_action(SIGNAL, Some(&ours), None) };
}

/// Runs `each` with the action and the signals that wait, alone.
fn alone<T>(own: &Own, each: impl FnOnce(&mut Action, &mut [Held; ROOM]) -> T) -> T {
    let mask = sys::set_signal_mask(u64::MAX);
    while own
        .lock
        .compare_exchange_weak(0, 1, Acquire, Relaxed)
        .is_err()
    {
        sys::sched_yield();
    }
    // SAFETY: the lock is ours.
    let result = unsafe { each(&mut *ACTION.0.get(), &mut *own.held.get()) };
    own.lock.store(0, Release);
    sys::set_signal_mask(mask);
    result
}

/// What the program has set; and sets `new`, if there is one.
pub(crate) fn exchange(new: Option<&Action>) -> Action {
    let Some(own) = own() else {
        // SAFETY: nobody has taken over, so nobody writes.
        return unsafe { *ACTION.0.get() };
    };
    alone(own, |action, held| {
        let before = *action;
        if let Some(new) = new {
            *action = *new;
            install(new);
            if new.handler == IGNORE || new.handler == DEFAULT && before.handler == IGNORE {
                held.iter_mut().for_each(|held| held.used = 0);
            }
        }
        before
    })
}

/// Whether the program blocks `SIGTRAP` in this thread.
const BLOCKED: u64 = 1;
/// The same, in a process that borrows this thread's memory.
const BORROWER_BLOCKED: u64 = 2;
/// That process ignores it.
const BORROWER_IGNORES: u64 = 4;
/// The number of that process.
const BORROWER: u32 = 32;

fn word() -> u64 {
    let word: u64;
    // SAFETY: `PLACE` lies in every thread's control block.
    unsafe {
        asm!("mov {}, fs:[{}]", out(reg) word, const threads::PLACE, options(nostack, readonly, preserves_flags))
    };
    word
}

fn write_word(word: u64) {
    // SAFETY: as above; nobody else uses it when there are probes.
    unsafe {
        asm!("mov fs:[{}], {}", const threads::PLACE, in(reg) word, options(nostack, preserves_flags))
    };
}

/// The number of this process if it only borrows this memory. Under a system call filter nobody asks.
pub(crate) fn borrower() -> Option<u32> {
    let own = own()?;
    if probes::is_filtered() {
        return None;
    }
    let process = sys::getpid() as u32;
    if own.process.load(Relaxed) == 0 {
        // The memory is a forked child's copy; that child is this process, or else its parent.
        let parent = sys::getppid() as u32;
        let owner = if sys::shares_memory_with(parent) {
            parent
        } else {
            process
        };
        own.process.store(owner, Relaxed);
    }
    (own.process.load(Relaxed) != process).then_some(process)
}

/// The thread's word, with the bits of `borrower` in it.
fn word_for(borrower: u32) -> u64 {
    let word = word();
    if (word >> BORROWER) as u32 == borrower {
        return word;
    }
    // A new one starts as its parent is.
    let ignores = u64::from(exchange(None).handler == IGNORE) * BORROWER_IGNORES;
    let blocked = word & BLOCKED;
    blocked | blocked * BORROWER_BLOCKED | ignores | u64::from(borrower) << BORROWER
}

/// Whether the program means `SIGTRAP` to be blocked in this thread.
pub(crate) fn is_blocked() -> bool {
    match borrower() {
        None => word() & BLOCKED != 0,
        Some(process) => word_for(process) & BORROWER_BLOCKED != 0,
    }
}

/// The program blocks it, or no longer: then what was held for this thread comes.
pub(crate) fn set_blocked(blocked: bool) {
    let (word, bit) = match borrower() {
        None => (word(), BLOCKED),
        Some(process) => (word_for(process), BORROWER_BLOCKED),
    };
    write_word(word & !bit | if blocked { bit } else { 0 });
    if !blocked && word & bit != 0 {
        release();
    }
}

/// Notes whether the process that borrows this memory ignores `SIGTRAP`.
pub(crate) fn set_borrower_ignores(borrower: u32, ignores: bool) {
    let bit = u64::from(ignores) * BORROWER_IGNORES;
    write_word(word_for(borrower) & !BORROWER_IGNORES | bit);
}

/// Whether the next program would find it ignored.
pub(crate) fn is_ignored() -> bool {
    match borrower() {
        None => exchange(None).handler == IGNORE,
        Some(process) => word_for(process) & BORROWER_IGNORES != 0,
    }
}

/// Takes one that is held for this thread.
pub(crate) fn take_held() -> Option<Info> {
    let own = own().filter(|_| borrower().is_none())?;
    let tid = sys::gettid() as u32;
    alone(own, |_, held| {
        let held = held
            .iter_mut()
            .find(|held| held.used != 0 && (held.tid == 0 || held.tid == tid))?;
        held.used = 0;
        Some(held.info)
    })
}

/// Whether one is held for this thread.
pub(crate) fn is_held() -> bool {
    let Some(own) = own() else { return false };
    let tid = sys::gettid() as u32;
    alone(own, |_, held| {
        held.iter()
            .any(|held| held.used != 0 && (held.tid == 0 || held.tid == tid))
    })
}

/// Sends this thread what is held for it.
pub(crate) fn release() {
    while let Some(info) = take_held() {
        sys::queue_to_self(&info);
    }
}

/// Gives the kernel what the program has set, for the program that is executed next.
pub(crate) fn hand_over() {
    if is_blocked() {
        sys::set_signal_mask(sys::set_signal_mask(u64::MAX) | BIT);
        release();
    }
    if is_ignored() {
        set_kernel_action(IGNORE);
    }
}

/// That program could not be executed.
pub(crate) fn take_back() {
    install(&exchange(None));
    sys::set_signal_mask(sys::set_signal_mask(u64::MAX) & !BIT);
}

fn set_kernel_action(handler: u64) {
    let action = Action {
        handler,
        flags: 0,
        restorer: 0,
        mask: 0,
    };
    // SAFETY: what the program has set.
    unsafe { sys::signal_action(SIGNAL, Some(&action), None) };
}

/// All signals are blocked while this runs.
unsafe extern "C" fn on_signal(signal: i32, info: *mut Info, context: *mut Context) {
    // SAFETY: the kernel's, on this stack.
    let (about, state) = unsafe { (&*info, &mut *context) };
    let at = state.registers[RIP].wrapping_sub(1);
    if about.code == SI_KERNEL
        && let Some(copy) = probes::copy_of_trap(at)
    {
        state.registers[RIP] = copy;
        return;
    }
    let Some(own) = own() else { return };
    if about.code > 0 && is_a_debuggers(state.registers[RIP]) {
        return;
    }
    let blocked = is_blocked();
    // Of a fault the kernel asks no more than whether there is a handler that can run.
    let fault = about.code > 0;
    let action = alone(own, |action, held| {
        let now = *action;
        if blocked && !fault && now.handler != IGNORE {
            hold(held, about);
        } else if now.handler > IGNORE && !(blocked && fault) && now.flags & SA_RESETHAND != 0 {
            action.handler = DEFAULT;
        }
        now
    });
    match action.handler {
        IGNORE if !fault => {}
        _ if blocked && !fault => {}
        DEFAULT | IGNORE => end(about),
        _ if blocked => end(about),
        // SAFETY: the program's handler, called as the kernel would have.
        handler => unsafe {
            type Handler = unsafe extern "C" fn(i32, *mut Info, *mut Context);
            let handler = core::mem::transmute::<u64, Handler>(handler);
            let defers = action.flags & SA_NODEFER == 0 || action.mask & BIT != 0;
            set_blocked(defers);
            sys::set_signal_mask((state.mask | action.mask) & !BIT);
            handler(signal, info, context);
            sys::set_signal_mask(u64::MAX);
            // It may have put the signal into the mask that it returns to.
            set_blocked((*context).mask & BIT != 0);
            (*context).mask &= !BIT;
        },
    }
}

/// Whether a fault's signal is that of a debugger's breakpoint or step: a debugger that was told to hand our traps on
/// hands its own on as well. Then no `int3` lies before `rip`, and the process is traced.
fn is_a_debuggers(rip: u64) -> bool {
    const INT3: u8 = 0xcc;
    let mut before = [0];
    if probes::is_filtered() || !sys::read_own(rip.wrapping_sub(8), &mut before) {
        return false;
    }
    before[0].to_le_bytes()[7] != INT3 && sys::is_traced()
}

/// As the kernel: a signal that waits already is not doubled.
fn hold(held: &mut [Held; ROOM], info: &Info) {
    let tid = if info.code == SI_TKILL {
        sys::gettid() as u32
    } else {
        0
    };
    if held.iter().any(|held| held.used != 0 && held.tid == tid) {
        return;
    }
    if let Some(free) = held.iter_mut().find(|held| held.used == 0) {
        *free = Held {
            used: 1,
            tid,
            info: *info,
        };
    }
}

/// Ends the process by its signal, where it was: it waits until this handler returns.
fn end(info: &Info) {
    set_kernel_action(DEFAULT);
    sys::queue_to_self(info);
}

unsafe extern "C" {
    fn pointee_signal_return();
}

// The bytes by which unwinders know a signal's frame.
global_asm!(
    ".text",
    ".hidden pointee_signal_return",
    ".globl pointee_signal_return",
    ".type pointee_signal_return, @function",
    "    nop", // Unwinders look up the address before.
    "pointee_signal_return:",
    "    .byte 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0", // mov rax, 15 (rt_sigreturn), as long as glibc's
    "    syscall",
    ".size pointee_signal_return, . - pointee_signal_return",
);
