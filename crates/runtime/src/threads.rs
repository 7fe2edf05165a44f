//! *Which counters are this thread's, and where is it?*
//!
//! The runtime has no thread-local storage: nobody would allot it to a library mapped without a dynamic
//! linker. A thread's [`State`] hangs off its control block instead, in eight bytes that glibc and musl both
//! keep free: `sysinfo`, which only 32-bit x86 has a use for (glibc, sysdeps/x86_64/nptl/tls.h; musl,
//! src/internal/pthread_impl.h). A new thread finds zero there, or, in a stack that glibc took from its cache,
//! what the thread before it left, or, with musl, what its maker has there: a state of another owner, with another gate.
//!
//! A statically linked program begins without a thread pointer, and its libc makes the first control block when it has
//! begun. Until then the thread pointer leads to a block of ours, of zeros ([`before_libc`]): a thread without a state
//! whose first word, which is the thread pointer everywhere else, is zero. It is not recorded.
//!
//! ```text
//!   gate   the thread pointer   outside
//!          1                    writing the index: a fork waits for it
//!          a stack pointer      inside the original: what it calls is its own business, not recorded
//!          0                    nobody's
//! ```
//!
//! So one comparison tells that the state is this thread's and that it is outside: the usual case. A stack pointer in `gate`
//! that lies below the present one was left by a `longjmp` or an exception, and means outside too.
//!
//! A child that was forked by a raw system call has its parent's region mapped and must not write it: states lie in
//! memory that the kernel empties in a forked child (`MADV_WIPEONFORK`), and so does the guard.

#![allow(unsafe_code)] // Reads and writes the thread control block.

use crate::hooks::is_filtered;
use crate::region::{Region, disable, is_disabled, region};
use crate::{locate, modules, signal_stacks, sys};
use core::arch::asm;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64};
use pointee_index::claim::Claim;
use pointee_index::counters::{FIRST_OWN, SHARED, Thread};
use pointee_index::layout::unseen;

/// Where in the control block the state's address is kept.
pub(crate) const PLACE: usize = 0x20;
/// Where glibc keeps the kernel's thread id (`struct pthread`, field `tid`).
const TID: usize = 0x2d0;

/// A gate's value while its thread writes the index.
pub(crate) const WRITING: u64 = 1;

/// Where a thread is, and what its hooks need at once. Written by its thread only.
#[repr(C, align(64))]
pub(crate) struct State {
    /// See the file's head.
    pub(crate) gate: AtomicU64,
    /// The gate outside: the thread pointer; 0 where the counters are shared, so that the fast path is not taken.
    idle: AtomicU64,
    /// The owner's thread pointer.
    key: AtomicU64,
    /// The owner's kernel id.
    tid: AtomicU32,
    /// What the fast path keeps over the call of the original: the origin and the requested size.
    pub(crate) origin: AtomicU32,
    pub(crate) size: AtomicU64,
    /// Where it stores what is not to be stored.
    pub(crate) aside: AtomicU32,
    /// How deep on the stack it is in a pool's function, if it is ([`crate::pools`]).
    pub(crate) pool: AtomicU32,
    /// What the index keeps of this thread.
    pub(crate) thread: AtomicPtr<Thread>,
    /// The thread's counters, by origin.
    pub(crate) counters: AtomicU64,
}

/// Whether one thread only has been recorded so far; 0 from the second on.
pub(crate) static ALONE: AtomicU32 = AtomicU32::new(1);

/// Live threads that are told from each other. Those beyond the region's slots share one there.
const STATES: u32 = pointee_index::signal_stacks::ROOM;

#[repr(C, align(4096))]
struct States {
    all: [State; STATES as usize],
    /// 1 while this process may write the region.
    guard: AtomicU32,
    /// States in use, the [`FIRST_OWN`] reserved ones included.
    used: AtomicU32,
    /// Of each state, whether a thread is about to take it over.
    taken: [AtomicBool; STATES as usize],
}

static ALL: States = States {
    all: [const {
        State {
            gate: AtomicU64::new(0),
            idle: AtomicU64::new(0),
            key: AtomicU64::new(0),
            tid: AtomicU32::new(0),
            origin: AtomicU32::new(0),
            size: AtomicU64::new(0),
            aside: AtomicU32::new(0),
            pool: AtomicU32::new(0),
            thread: AtomicPtr::new(ptr::null_mut()),
            counters: AtomicU64::new(0),
        }
    }; STATES as usize],
    guard: AtomicU32::new(0),
    used: AtomicU32::new(0),
    taken: [const { AtomicBool::new(false) }; STATES as usize],
};

/// Arms the guard, or arms it again in a forked child.
pub(crate) fn set_up() {
    const MADV_WIPEONFORK: usize = 18;
    let pages = (&raw const ALL).cast::<u8>().cast_mut();
    // SAFETY: pages of our own zero-initialised data, which nothing else lies in.
    unsafe { sys::madvise(pages, size_of::<States>(), MADV_WIPEONFORK) };
    ALL.guard.store(1, Relaxed);
    ALL.used.store(FIRST_OWN, Relaxed);
}

/// Somewhere on the first thread's stack, which was there before the thread.
static FIRST_STACK: AtomicU64 = AtomicU64::new(0);

/// Notes that the first thread's stack holds `address`.
pub(crate) fn starts_on(address: u64) {
    FIRST_STACK.store(address, Relaxed);
}

/// Whether the first thread's stack lies in these pages.
pub(crate) fn is_first_stack(pages: &Range<u64>) -> bool {
    pages.contains(&FIRST_STACK.load(Relaxed))
}

/// The thread whose stack lies in these pages, which one call mapped, and its thread pointer: glibc keeps the control block at
/// the stack's end. Of the first thread the latter is 0.
pub(crate) fn whose_stack(pages: &Range<u64>) -> Option<(u32, u64)> {
    if is_first_stack(pages) {
        return Some((sys::getpid() as u32, 0));
    }
    let owner = states().map(State::owner);
    let mut here = owner.filter(|(_, pointer)| pages.contains(pointer));
    here.find(|(thread, _)| *thread != sys::getpid() as u32 && sys::is_thread(*thread))
}

/// What the thread pointer leads to until libc has made a control block, as far as hooks look.
#[repr(C, align(64))]
struct ControlBlock([AtomicU64; 8]);
const _: () = assert!(PLACE < size_of::<ControlBlock>());

static BEFORE_LIBC: ControlBlock = ControlBlock([const { AtomicU64::new(0) }; 8]);

/// Set in a statically linked program, whose libc may be any.
static IS_STATIC: AtomicBool = AtomicBool::new(false);

/// In a statically linked program that has not begun: gives it a thread pointer that hooks can read by.
pub(crate) fn before_libc() {
    IS_STATIC.store(true, Relaxed);
    sys::set_thread_pointer((&raw const BEFORE_LIBC) as usize);
}

/// Whether the program is linked statically.
pub(crate) fn is_static() -> bool {
    IS_STATIC.load(Relaxed)
}

/// The kernel's id of this thread; 0 if it cannot be had.
fn tid() -> u32 {
    if !is_static() {
        control_block::<TID>() as u32
    } else if is_filtered() {
        0
    } else {
        sys::gettid() as u32
    }
}

/// All states that threads have or had.
pub(crate) fn states() -> impl Iterator<Item = &'static State> {
    let used = ALL.used.load(Acquire).min(STATES);
    ALL.all[..used as usize].iter()
}

/// glibc's `__libc_single_threaded` (since 2.32), or a zero of our own.
static SINGLE: AtomicPtr<AtomicU8> = AtomicPtr::new((&raw const MANY).cast_mut());
static MANY: AtomicU8 = AtomicU8::new(0);

/// Notes where glibc says that there is one thread: in the variable as the first object of the link map has it, which is
/// the one that all use.
pub(crate) fn find_single() {
    let mut found = None;
    modules::each(|module| {
        found = found.or_else(|| locate::variable(module, "__libc_single_threaded"));
    });
    if let Some(address) = found {
        SINGLE.store(address as *mut AtomicU8, Relaxed);
    }
}

/// Whether this thread is the only one, and will be until it makes another.
#[inline(always)]
pub(crate) fn is_single() -> bool {
    // SAFETY: libc, or the executable, whose variable it is, is never unloaded.
    unsafe { (*SINGLE.load(Relaxed)).load(Relaxed) != 0 }
}

impl State {
    /// What the index keeps of this thread.
    #[inline(always)]
    pub(crate) fn thread(&self) -> &'static Thread {
        // SAFETY: `give` stored it before anyone was handed the state; threads are never unmapped.
        unsafe { &*self.thread.load(Relaxed) }
    }

    /// The number under which the process knows the thread.
    pub(crate) fn number(&self) -> u32 {
        let offset = ptr::from_ref(self) as usize - ALL.all.as_ptr() as usize;
        (offset / size_of::<Self>()) as u32
    }

    /// The thread's number in its own namespace, and its thread pointer.
    pub(crate) fn owner(&self) -> (u32, u64) {
        (self.tid.load(Relaxed), self.key.load(Relaxed))
    }

    /// Says that the thread is outside.
    #[inline(always)]
    pub(crate) fn leave(&self) {
        self.gate.store(self.idle.load(Relaxed), Relaxed);
    }

    /// Whether the thread, whose hooked call has its return address at `slot`, is outside.
    #[inline(always)]
    pub(crate) fn is_outside(&self, slot: *const u64) -> bool {
        let gate = self.gate.load(Relaxed);
        gate == self.idle.load(Relaxed) || gate <= slot as u64
    }
}

#[inline(always)]
fn control_block<const OFFSET: usize>() -> u64 {
    let word: u64;
    // SAFETY: inside the thread control block: at least 704 bytes long with glibc, all that is read elsewhere with others.
    unsafe {
        asm!("mov {}, fs:[{}]", out(reg) word, const OFFSET, options(nostack, readonly, preserves_flags));
    }
    word
}

fn remember(state: &State) {
    // SAFETY: the place is unused by libc.
    unsafe {
        asm!("mov fs:[{}], {}", const PLACE, in(reg) ptr::from_ref(state), options(nostack, preserves_flags));
    }
}

/// Makes this thread, the only one of a forked child, look for a slot anew.
pub(crate) fn forget() {
    // SAFETY: the place is unused by libc.
    unsafe {
        asm!("mov qword ptr fs:[{}], 0", const PLACE, options(nostack, preserves_flags));
    }
}

/// This thread's state, in the usual case: it is outside, has counters of its own, and is known by its control block. All else is
/// for [`current`] to find.
#[inline(always)]
pub(crate) fn outside() -> Option<&'static State> {
    let known = control_block::<PLACE>() as *const State;
    // SAFETY: null, or put there by `remember`; states are never unmapped.
    let state = unsafe { known.as_ref() }?;
    (state.gate.load(Relaxed) == control_block::<0>()).then_some(state)
}

/// This thread's state; `None` while nothing is to be recorded.
pub(crate) fn current() -> Option<&'static State> {
    if is_disabled() {
        return None;
    }
    if ALL.guard.load(Relaxed) == 0 {
        // Forked behind our back: the region is the parent's.
        disable();
        return None;
    }
    let known = control_block::<PLACE>() as *const State;
    let key = control_block::<0>();
    // SAFETY: null, or put there by `remember`; states are never unmapped.
    if let Some(state) = unsafe { known.as_ref() }
        && state.key.load(Relaxed) == key
    {
        return Some(state);
    }
    if key == 0 {
        return None;
    }
    let state = state_for(key, tid())?;
    remember(state);
    Some(state)
}

/// A state for the thread with this thread pointer: its own of before, a new one, or a dead thread's; with counters
/// of its own as long as there are any. `None`: there are more threads than states, and this one is not recorded.
#[cold]
fn state_for(key: u64, tid: u32) -> Option<&'static State> {
    let used = ALL.used.load(Acquire).min(STATES);
    let own = region().geometry.threads.min(STATES);
    let take = |at, claim| Some((at, Some(claim)));
    let is_its_own = |state: &State| state.key.load(Acquire) == key;
    let before = (FIRST_OWN..used).find_map(|at| take(at, claim(at, is_its_own)?));
    let new = |end| unused(end).map(|at| (at, None));
    let left = |mut among: Range<u32>| among.find_map(|at| take(at, claim(at, is_abandoned)?));
    let with_counters = before.or_else(|| new(own)).or_else(|| left(FIRST_OWN..own));
    let with_shared = || new(STATES).or_else(|| left(own..STATES));
    let Some((at, _claim)) = with_counters.or_else(with_shared) else {
        region()
            .header()
            .unseen
            .fetch_or(unseen::THREADS_FULL, Relaxed);
        return None;
    };
    Some(give(at, key, tid))
}

/// The next state that no thread has had, below `end`: nobody else's from now on.
fn unused(end: u32) -> Option<u32> {
    ALL.used
        .fetch_update(AcqRel, Acquire, |used| (used < end).then_some(used + 1))
        .ok()
}

/// The right to give state `at` to a thread, if it `is_wanted`.
fn claim(at: u32, is_wanted: impl Fn(&State) -> bool) -> Option<Claim<'static, AtomicBool>> {
    let at = at as usize;
    Claim::of(&ALL.taken[at], || is_wanted(&ALL.all[at]))
}

/// Whether a thread had the state and is no more. One that is being given for the first time has no key yet.
fn is_abandoned(state: &State) -> bool {
    // To ask after a thread is a system call.
    !is_filtered() && state.key.load(Acquire) != 0 && !sys::is_thread(state.tid.load(Relaxed))
}

/// Makes state `at` that of the thread with this thread pointer and kernel id.
fn give(at: u32, key: u64, tid: u32) -> &'static State {
    let Region {
        counters, geometry, ..
    } = region();
    let state = &ALL.all[at as usize];
    if at != FIRST_OWN {
        ALONE.store(0, Relaxed);
    }
    let is_own = at < geometry.threads;
    let thread = if is_own {
        region().header().threads.fetch_max(at + 1, Relaxed);
        counters.give(at, key, tid)
    } else {
        counters.thread(SHARED)
    };
    state.tid.store(tid, Relaxed);
    state
        .thread
        .store(ptr::from_ref(thread).cast_mut(), Relaxed);
    state.counters.store(thread.counters.load(Relaxed), Relaxed);
    state.idle.store(if is_own { key } else { 0 }, Relaxed);
    state.key.store(key, Release);
    signal_stacks::take_over(state);
    state.leave();
    state
}
