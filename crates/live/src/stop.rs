//! *How are all other threads brought to stand still, from inside?*
//!
//! ```text
//!    the stopper                                   each other thread
//!    list /proc/self/task, and who blocks what
//!    to each of the list ─── signal ────────────►  handler: push a node (on its stack), count it
//!    wait until all have arrived                   sleep on the futex HELD
//!    fstat: as many threads as arrived, and me?
//!      no: one was born meanwhile; list again
//!    look, write, move program counters ─────────► (in their signal frames)
//!    HELD = 0, wake  ───────────────────────────►  return: the kernel loads the frame, by `iret`
//! ```
//!
//! **Why all stand still for one hook.** Five bytes are not written at once through `/proc/self/mem`: the kernel copies
//! with `rep movsb`, whose order is nobody's promise, and a second, writable mapping of private text does not exist. And
//! whatever the order, a thread *between* two of the instructions that the pad overwrites would go on in its middle.
//!
//! **Threads being born.** Only a thread that runs can make one. When all that were listed stand, and the process has
//! no more threads than those and this one, there is nobody left to make another.
//!
//! **Two signals.** A signal that is on its way when the thread executes another program is still pending there, with no
//! handler: it must be one that does nothing then, `SIGURG`. Threads that block it (most that block signals block
//! all) get the one by which glibc has all threads change their user id (33): glibc takes it out of every mask that the
//! program asks for. It is blocked only for moments, around `clone` and at a thread's end. A program that blocks it by a raw
//! system call is refused. While our handler is in place, signals that are not ours are passed to the one before. One
//! `SIGURG` hides another that is not yet taken, so it is sent again to those who do not come.
//!
//! **System calls** are interrupted and restarted (`SA_RESTART`), except those that the kernel does not restart after
//! a handler (signal(7)): of them, `restart.rs` restarts those that can be without being longer.
//! `vfork` waits for its child and so does the stopper: the child runs this program's code.
//!
//! # Invariants
//!
//! 1. While `Stopped` exists, no other thread of the process executes an instruction outside the handler's sleep.
//! 2. Between the first signal and the release, the stopper takes no lock and allocates nothing: a stopped thread may have
//!    any lock.
//! 3. After an attempt that was given up, a signal may still be on its way; the handler stays in place until a stop
//!    succeeds, which proves that none is.
//!
//! # Limits
//!
//! The signal's frame needs room on the stack of the thread, up to 11 KiB with large vector state; a thread within that of
//! its stack's end dies of it. Other processes that share the memory (`CLONE_VM` without `CLONE_THREAD`) are not seen,
//! but for the children of `vfork`.

#![allow(unsafe_code)] // Signal handlers, and the frames of other threads.

use core::marker::PhantomData;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use pointee_model::addr::RunAddr;

use crate::lock::{Held, Lock};
use crate::pages::Pages;
use crate::restart;
use crate::sys::{self, Disposition, Errno, SignalInfo};
use crate::tasks::{self, Hindrance, Seen, Tasks};

/// `SIGURG`, which does nothing where it has no handler: for threads that do not block it.
const USUAL: u32 = 23;
/// glibc's `SIGSETXID`, musl's `SIGCANCEL`: no program has a use of its own for it. For threads that block the other.
const UNBLOCKED: u32 = 33;
const SIGNALS: [u32; 2] = [USUAL, UNBLOCKED];
/// `SI_QUEUE`: sent with a value, by a program.
const QUEUED: i32 = -1;
/// How long a thread is waited for that runs or could, in nanoseconds. On a machine with nothing else to do that takes
/// microseconds; but a thread comes only when the scheduler lets it.
const PATIENCE: u64 = 10_000_000_000;
/// How long a thread is waited for that sleeps where the signal does not reach it. The threads that have arrived stand
/// still meanwhile.
const PATIENCE_WITH_SLEEPERS: u64 = 300_000_000;
/// After this long it is looked whether somebody died, in nanoseconds; then after twice as long, and so on. Looking takes the time of
/// those that are waited for: with 64 busy threads on two shared processors, always after 2 ms, stops took a second.
const LOOK_AGAIN: u64 = 2_000_000;
const LOOK_AGAIN_MOST: u64 = 128_000_000;

/// Why the threads could not be stopped. None of them stands still any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopError {
    /// `/proc/self/task` cannot be read.
    NoTaskList(Errno),
    /// The kernel does not let the handler be set, or the signal be sent.
    SignalRefused(Errno),
    /// No memory for the list of threads.
    NoMemory(Errno),
    /// This thread did not stop in time.
    Unresponsive(u32, Hindrance),
    /// Threads are born faster than they are stopped.
    Multiplying,
}

/// One stop at a time; also guards everything that is changed during one.
static LOCK: Lock = Lock::new();
/// The number of the stop that is under way, 0 for none. Threads sleep on it.
static HELD: AtomicU32 = AtomicU32::new(0);
/// The arrived threads: the address of the last one's node, and the stop's number in the upper 16 bits.
static ARRIVED: AtomicU64 = AtomicU64::new(0);
/// Rises with each arrival: the stopper sleeps on it. How many have arrived, the list says, not this: a thread that comes
/// late to a stop that was given up rings here during the next one.
static BELL: AtomicU32 = AtomicU32::new(0);
/// At which number of arrivals the stopper is woken.
static WANTED: AtomicU32 = AtomicU32::new(u32::MAX);
/// The number of the last stop.
static NUMBER: AtomicU32 = AtomicU32::new(0);
/// The handlers that were there before ours, and whether ours is in place.
static BEFORE: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
static IN_PLACE: AtomicU32 = AtomicU32::new(0);

const POINTER: u64 = (1 << 48) - 1;

/// A thread that stands still, on its own stack.
#[repr(C)]
struct Node {
    next: u64,
    context: *mut Context,
    tid: u32,
}

/// The head of the kernel's `struct ucontext` on x86-64 (asm/ucontext.h, asm/sigcontext.h).
#[repr(C)]
pub(crate) struct Context {
    _flags_link_stack: [u64; 5],
    /// r8–r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip.
    pub(crate) registers: [u64; 17],
}

/// Indices into [`Context::registers`].
pub(crate) mod register {
    pub(crate) const R8: usize = 0;
    pub(crate) const R10: usize = 2;
    pub(crate) const RDI: usize = 8;
    pub(crate) const RSI: usize = 9;
    pub(crate) const RDX: usize = 12;
    pub(crate) const RAX: usize = 13;
    pub(crate) const RCX: usize = 14;
    pub(crate) const RSP: usize = 15;
    pub(crate) const RIP: usize = 16;
}

/// The right to change what the engine knows, with no other thread in it.
pub(crate) struct Exclusive(Held);

/// Waits for that right.
pub(crate) fn exclusive() -> Exclusive {
    Exclusive(LOCK.take())
}

/// That right, if nobody has it.
pub(crate) fn try_exclusive() -> Option<Exclusive> {
    LOCK.try_take().map(Exclusive)
}

/// All other threads stand still until this is dropped.
pub(crate) struct Stopped<'a> {
    began: u64,
    number: u32,
    restore: bool,
    _exclusive: PhantomData<&'a mut Held>,
}

/// What one stop cost the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pause {
    /// Threads that stood still.
    pub threads: u32,
    /// From the first signal to the release, in nanoseconds.
    pub nanoseconds: u64,
}

impl core::ops::AddAssign for Pause {
    fn add_assign(&mut self, other: Self) {
        self.threads = self.threads.max(other.threads);
        self.nanoseconds += other.nanoseconds;
    }
}

impl Exclusive {
    /// Stops all other threads.
    pub(crate) fn stop(&mut self) -> Result<Stopped<'_>, StopError> {
        let _ = &self.0;
        // Listing takes longer than signalling: nobody stands still for it.
        let mut crowd = Crowd::list()?;
        let number = begin();
        // From here on, dropping releases whoever has arrived.
        let mut stopped = Stopped {
            began: sys::now(),
            number,
            restore: false,
            _exclusive: PhantomData,
        };
        if crowd.tasks.count().map_err(StopError::NoTaskList)? > 1 {
            set_handler()?;
            crowd.gather(number, stopped.began)?;
        }
        stopped.restore = true;
        Ok(stopped)
    }
}

fn begin() -> u32 {
    let number = NUMBER.load(Relaxed).wrapping_add(1) & 0xffff;
    let number = number.max(1);
    NUMBER.store(number, Relaxed);
    BELL.store(0, Relaxed);
    WANTED.store(u32::MAX, Relaxed);
    ARRIVED.store(u64::from(number) << 48, Release);
    HELD.store(number, Release);
    number
}

/// The threads that are to stand still.
struct Crowd {
    tasks: Tasks,
    listing: Pages,
    /// Each thread that was listed and the signal for it; from `signalled` on, it was not yet sent.
    members: Pages,
    len: usize,
    signalled: usize,
    pid: u32,
    own: u32,
}

impl Crowd {
    fn list() -> Result<Self, StopError> {
        let tasks = Tasks::open().map_err(StopError::NoTaskList)?;
        let threads = tasks.count().map_err(StopError::NoTaskList)?;
        // Room for twice as many.
        let mut crowd = Self {
            tasks,
            listing: Pages::new(4096 + threads * 32).map_err(StopError::NoMemory)?,
            members: Pages::new((2 * threads + 64) * 8).map_err(StopError::NoMemory)?,
            len: 0,
            signalled: 0,
            pid: sys::process_id(),
            own: sys::thread_id(),
        };
        if threads > 1 {
            crowd.list_again()?;
        }
        Ok(crowd)
    }

    /// Adds those that are not yet listed.
    fn list_again(&mut self) -> Result<(), StopError> {
        let (known, own) = (self.len, self.own);
        let members: &mut [[u32; 2]] = self.members.words();
        let mut len = known;
        let mut room = true;
        let listed = self.tasks.visit(self.listing.bytes(), |tid| {
            let before = members.get(..known).unwrap_or_default();
            if tid == own || before.iter().any(|member| member[0] == tid) {
                return Ok(());
            }
            let signal = match tasks::blocks_signal(tid, USUAL) {
                true => UNBLOCKED,
                false => USUAL,
            };
            match members.get_mut(len) {
                Some(member) => {
                    *member = [tid, signal];
                    len += 1;
                }
                None => room = false,
            }
            Ok(())
        });
        listed.map_err(StopError::NoTaskList)?;
        self.len = len;
        room.then_some(()).ok_or(StopError::Multiplying)
    }

    /// Signals those to whom nothing was sent yet; who is gone is struck off.
    fn signal(&mut self, number: u32, deadline: u64) -> Result<(), StopError> {
        let members: &mut [[u32; 2]] = self.members.words();
        while self.signalled < self.len {
            let [tid, signal] = members[self.signalled];
            if send(self.pid, tid, signal, number, deadline)? {
                self.signalled += 1;
            } else {
                self.len -= 1;
                members.swap(self.signalled, self.len);
            }
        }
        Ok(())
    }

    /// Signals every other thread and waits until all have arrived.
    fn gather(&mut self, number: u32, began: u64) -> Result<(), StopError> {
        let deadline = began + PATIENCE;
        let mut news = true;
        loop {
            self.signal(number, deadline)?;
            let ended = self.wait(number, began)?;
            let alive = self.tasks.count().map_err(StopError::NoTaskList)?;
            // One that has ended may no longer be counted, and a new one be in its place: then only a listing without news will do.
            if (ended == 0 || !news) && arrived() + 1 + ended >= alive {
                return Ok(());
            }
            if sys::now() > deadline {
                return Err(StopError::Multiplying);
            }
            let before = self.len;
            self.list_again()?;
            news = self.len > before;
        }
    }

    /// Waits until all who were signalled have arrived or ended. The answer: how many have ended and are still counted.
    fn wait(&mut self, number: u32, began: u64) -> Result<usize, StopError> {
        let pid = self.pid;
        let members: &[[u32; 2]] = self.members.words();
        let members = members.get(..self.signalled).unwrap_or_default();
        let mut gone = 0;
        let mut ended = 0;
        let mut patience = LOOK_AGAIN;
        loop {
            let wanted = (members.len() - gone) as u32;
            WANTED.store(wanted, Release);
            let bell = BELL.load(Acquire);
            if arrived() >= wanted as usize {
                return Ok(ended);
            }
            let asleep = sys::now();
            sys::wait_on(&BELL, bell, patience);
            let now = sys::now();
            if now - asleep < patience {
                continue;
            }
            patience = (patience * 2).min(LOOK_AGAIN_MOST);
            // Somebody takes long. Who is neither here nor alive is not waited for.
            gone = 0;
            ended = 0;
            for &[tid, _] in members {
                if is_here(tid) {
                    continue;
                }
                if !sys::has_thread(pid, tid) {
                    gone += 1;
                    continue;
                }
                match tasks::look_at(tid, UNBLOCKED) {
                    Seen::Ended => {
                        gone += 1;
                        ended += usize::from(sys::has_thread(pid, tid));
                    }
                    // It came while we looked.
                    Seen::Alive(_) if is_here(tid) => {}
                    Seen::Alive(hindrance) => {
                        let patience = match hindrance {
                            Hindrance::Slow => PATIENCE,
                            _ => PATIENCE_WITH_SLEEPERS,
                        };
                        if now - began > patience {
                            return Err(StopError::Unresponsive(tid, hindrance));
                        }
                        // Behind a signal of the program's own, ours was lost. A second one to who comes after all does nothing.
                        send(pid, tid, USUAL, number, now)?;
                    }
                }
            }
        }
    }
}

/// Sends the signal; `false` if the thread is gone.
fn send(pid: u32, tid: u32, signal: u32, number: u32, deadline: u64) -> Result<bool, StopError> {
    let info = SignalInfo {
        signal,
        error: number,
        code: QUEUED,
        _unused: 0,
        pid,
        uid: 0,
        value: HELD.as_ptr() as u64,
        _rest: [0; 12],
    };
    loop {
        match sys::queue_signal(pid, tid, &info) {
            Ok(()) => return Ok(true),
            Err(Errno::NO_PROCESS) => return Ok(false),
            // As many signals are queued as the user may have: some will be taken.
            Err(Errno::AGAIN) if sys::now() < deadline => {
                sys::wait_on(&HELD, number, 100_000);
            }
            Err(error) => return Err(StopError::SignalRefused(error)),
        }
    }
}

/// How many threads stand still.
fn arrived() -> usize {
    Nodes(ARRIVED.load(Acquire) & POINTER).count()
}

fn is_here(tid: u32) -> bool {
    Nodes(ARRIVED.load(Acquire) & POINTER).any(|node| node.tid == tid)
}

/// The nodes of threads that stand still.
struct Nodes(u64);

impl Iterator for Nodes {
    type Item = &'static mut Node;

    fn next(&mut self) -> Option<Self::Item> {
        // SAFETY: a node lives as long as its thread stands still, and iteration is by the stopper only, one at a time.
        let node = unsafe { (self.0 as *mut Node).as_mut() }?;
        self.0 = node.next;
        Some(node)
    }
}

/// A thread that stands still.
pub(crate) struct Thread<'a> {
    node: &'a mut Node,
}

impl Thread<'_> {
    /// The instruction that it goes on with.
    pub(crate) fn pc(&self) -> RunAddr {
        RunAddr(self.registers()[register::RIP])
    }

    /// Its stack pointer.
    pub(crate) fn sp(&self) -> RunAddr {
        RunAddr(self.registers()[register::RSP])
    }

    /// Its general registers, see [`Context::registers`].
    pub(crate) fn registers(&self) -> &[u64; 17] {
        // SAFETY: the frame lives as long as the thread stands still.
        unsafe { &(*self.node.context).registers }
    }

    /// Has it go on with another instruction.
    pub(crate) fn set_pc(&mut self, pc: RunAddr) {
        // SAFETY: the frame lives as long as the thread stands still.
        unsafe { (*self.node.context).registers[register::RIP] = pc.0 };
    }
}

impl Stopped<'_> {
    /// The threads that stand still.
    pub(crate) fn threads(&mut self) -> impl Iterator<Item = Thread<'_>> {
        Nodes(ARRIVED.load(Acquire) & POINTER).map(|node| Thread { node })
    }

    /// Lets them go on.
    pub(crate) fn release(self) -> Pause {
        let pause = Pause {
            threads: arrived() as u32,
            // Before they are woken: then it is their turn, and this thread may wait long for its own.
            nanoseconds: sys::now() - self.began,
        };
        drop(self);
        pause
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if self.restore {
            restore_handler();
        }
        // First the list is closed to those who come late, then its threads are let go.
        ARRIVED.store(0, Release);
        HELD.store(0, Release);
        sys::wake_all(&HELD);
        let _ = self.number;
    }
}

/// Puts our handler in place, if it is not.
fn set_handler() -> Result<(), StopError> {
    const SA_SIGINFO: u64 = 4;
    const SA_RESTORER: u64 = 0x0400_0000;
    const SA_ONSTACK: u64 = 0x0800_0000;
    const SA_RESTART: u64 = 0x1000_0000;
    if IN_PLACE.load(Relaxed) != 0 {
        return Ok(());
    }
    let ours = Disposition {
        handler: on_signal as *const () as usize,
        flags: SA_SIGINFO | SA_RESTORER | SA_ONSTACK | SA_RESTART,
        restorer: pointee_live_return as *const () as usize,
        mask: u64::MAX,
    };
    for (index, signal) in SIGNALS.into_iter().enumerate() {
        // SAFETY: the handler takes no lock and touches nothing but its stack and the statics above.
        let old = unsafe { sys::exchange_disposition(signal, &ours) };
        let old = old.map_err(StopError::SignalRefused)?;
        // SAFETY: one stop at a time.
        unsafe { (*OLD.0.get())[index] = old };
        BEFORE[index].store(old.handler as u64, Release);
    }
    IN_PLACE.store(1, Release);
    Ok(())
}

/// Puts back what was there before our handler.
fn restore_handler() {
    if IN_PLACE.swap(0, Relaxed) != 0 {
        for (index, signal) in SIGNALS.into_iter().enumerate() {
            // SAFETY: what the program had; one stop at a time.
            let _ = unsafe { sys::exchange_disposition(signal, &(*OLD.0.get())[index]) };
        }
    }
}

struct OldCell(core::cell::UnsafeCell<[Disposition; 2]>);
// SAFETY: written and read by the holder of the lock.
unsafe impl Sync for OldCell {}
static OLD: OldCell = OldCell(core::cell::UnsafeCell::new(
    [Disposition {
        handler: 0,
        flags: 0,
        restorer: 0,
        mask: 0,
    }; 2],
));

// The bytes by which unwinders know a signal's frame.
core::arch::global_asm!(
    ".text",
    ".hidden pointee_live_return",
    ".globl pointee_live_return",
    ".type pointee_live_return, @function",
    "    nop", // unwinders look up the address before
    "pointee_live_return:",
    "    .byte 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0", // mov rax, 15 (rt_sigreturn), as long as glibc's
    "    syscall",
    ".size pointee_live_return, . - pointee_live_return",
);

unsafe extern "C" {
    fn pointee_live_return();
}

/// Runs in each thread that is to stand still.
unsafe extern "C" fn on_signal(signal: i32, info: *const SignalInfo, context: *mut Context) {
    // SAFETY: the kernel's, on this stack.
    let about = unsafe { &*info };
    let ours = about.code == QUEUED && about.value == HELD.as_ptr() as u64;
    if !ours {
        // SAFETY: what the program would have had.
        unsafe { pass_on(signal, info, context) };
        return;
    }
    let number = about.error;
    let mut node = Node {
        next: 0,
        context,
        tid: sys::thread_id(),
    };
    // SAFETY: the kernel's frame of this thread, which nobody else knows yet.
    restart::interrupted_call(unsafe { &mut *context });
    let at = &raw mut node;
    let mut head = ARRIVED.load(Acquire);
    loop {
        // Given up before this thread came.
        if head >> 48 != u64::from(number) {
            return;
        }
        // SAFETY: this frame's own; nobody else knows it yet.
        unsafe { (*at).next = head & POINTER };
        let tagged = at as u64 | u64::from(number) << 48;
        match ARRIVED.compare_exchange_weak(head, tagged, AcqRel, Acquire) {
            Ok(_) => break,
            Err(now) => head = now,
        }
    }
    if BELL.fetch_add(1, AcqRel) + 1 >= WANTED.load(Acquire) {
        sys::wake_all(&BELL);
    }
    while HELD.load(Acquire) == number {
        sys::wait_on(&HELD, number, 1_000_000_000);
    }
}

/// Calls the handler that ours stands before.
///
/// # Safety
/// As called by the kernel.
unsafe fn pass_on(signal: i32, info: *const SignalInfo, context: *mut Context) {
    let handler = BEFORE[usize::from(signal as u32 == UNBLOCKED)].load(Acquire);
    // SIG_DFL and SIG_IGN: SIGURG does nothing then, and nobody sends the other.
    if handler > 1 {
        // SAFETY: a handler with three arguments, of which one that takes a single one uses the first.
        unsafe {
            let handler: unsafe extern "C" fn(i32, *const SignalInfo, *mut Context) =
                core::mem::transmute(handler as usize);
            handler(signal, info, context);
        }
    }
}
