//! *How does a hook come into running code, and out again?*
//!
//! ```text
//!   free ──install──► installed ──remove──► retired ──settle──► free
//!                         ▲                    │
//!                         └──── install ───────┘   (the same hook again: no new memory)
//! ```
//!
//! Installing and removing change at most five bytes while all threads stand still; a thread that stands in the middle of
//! them goes on at the copy of its instruction. Removal takes effect at once: no call begins after it that comes to the
//! hook. The slot stays, for a thread may be in its trampoline, or in the hook that is about to call it; that is *retired*.
//! [`settle`] looks at every thread's counter, registers and stack, moves counters out of what it gives back, and leaves
//! what somebody may still return to for the next time.
//!
//! A program counter can also be saved in a signal's frame, further up a thread's stack, where a handler will return to
//! it. Stacks are searched for an address in the middle of the pad before the pad is written.
//!
//! # Limits
//!
//! Stacks that no thread is on (coroutines that are switched away) are not searched. A hook function is taken to be as
//! long as its unwind rules say, 4 KiB where there are none: while a thread is in it, its slot stays.

#![allow(unsafe_code)] // Reads and writes code.

use core::cell::{RefCell, UnsafeCell};
use core::mem::MaybeUninit;
use core::ops::Range;
use core::sync::atomic::AtomicU32;

use pointee_model::addr::RunAddr;
use pointee_patch::EntryPlan;
use pointee_patch::arch::x86_64::PAD_LEN;

use crate::announce::Announcement;
use crate::island::{Islands, SLOT, SLOTS};
use crate::maps::Maps;
use crate::pages::Pages;
use crate::probe::Stack;
use crate::refusal::Refusal;
use crate::stop::{self, Exclusive, Pause, Stopped, Thread};
use crate::stubs;
use crate::sys;
use crate::text::Text;
use crate::unwinder;
use crate::wrap::{self, Observers};

/// How often it is tried to stop the threads at a moment when none has a counter saved in the pad.
const ATTEMPTS: u32 = 16;
/// How much of a stack is searched, from the stack pointer up, in bytes.
const STACK_MOST: u64 = 16 << 20;
/// How long a function without unwind rules is taken to be, when threads in it are looked for.
const UNKNOWN_LEN: u64 = 4096;
/// Retired slots at which installing settles by itself.
const RETIRED_MOST: usize = 4 * SLOTS;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// As fresh pages have it.
    Free = 0,
    Installed = 1,
    Retired = 2,
    /// Nobody can come to it.
    Idle = 3,
}

/// One slot of an island, and the hook that uses it.
#[repr(C)]
pub(crate) struct Hook {
    state: State,
    slot: RunAddr,
    slot_len: usize,
    /// Of a slot that is not free.
    made: MaybeUninit<Made>,
    pub(crate) announcement: Announcement,
}

/// What was made for a hook.
#[derive(Clone, Copy)]
pub(crate) struct Made {
    /// The function or instruction that is hooked.
    pub(crate) target: RunAddr,
    pub(crate) purpose: Purpose,
    pub(crate) change: Change,
    /// What is called to have what was there before.
    pub(crate) original: RunAddr,
    /// Of a hook at an entry.
    pub(crate) plan: Option<EntryPlan>,
}

/// What calls of the function come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "it lies in a slot's own pages, and nothing is allocated here"
)]
pub(crate) enum Purpose {
    /// This function instead.
    Replace(RunAddr),
    /// The function itself, between these.
    Wrap(Observers),
    /// At an instruction, these, one after the other.
    Probe(Stack),
}

/// The bytes of code that differ while a hook is in place.
#[derive(Clone, Copy)]
pub(crate) struct Change {
    pub(crate) at: RunAddr,
    pub(crate) len: usize,
    /// Bytes from `at` on that are not executed any more where they are, or are changed.
    pub(crate) reach: usize,
    pub(crate) before: [u8; PAD_LEN],
    pub(crate) after: [u8; PAD_LEN],
}

impl Change {
    /// Whether the two change the same bytes, or one of them bytes that the other has displaced.
    fn meets(&self, other: &Self) -> bool {
        let end = |change: &Self| change.at.0 + change.reach as u64;
        self.at.0 < end(other) && other.at.0 < end(self)
    }

    fn is_there(&self, text: &Text, bytes: &[u8; PAD_LEN]) -> bool {
        let mut now = [0; PAD_LEN];
        text.read(self.at, &mut now[..self.len]) == Ok(self.len)
            && now[..self.len] == bytes[..self.len]
    }
}

/// First and last but one of the addresses by which a thread can come to a slot, three times.
pub(crate) type Reach = [[u64; 2]; 3];

/// A hook in place. Dropping it leaves the hook where it is.
#[derive(Debug)]
pub struct Installed {
    hook: *mut Hook,
}

// SAFETY: what it points to is used under the engine's lock only.
unsafe impl Send for Installed {}
// SAFETY: as above.
unsafe impl Sync for Installed {}

struct Ledger(UnsafeCell<Islands>);
// SAFETY: used by the holder of the lock.
unsafe impl Sync for Ledger {}
static LEDGER: Ledger = Ledger(UnsafeCell::new(Islands::new()));

fn ledger(_held: &mut Exclusive) -> &mut Islands {
    // SAFETY: as long as the lock is borrowed.
    unsafe { &mut *LEDGER.0.get() }
}

/// Puts a hook at `target`. `make` fills a slot; `ready` is called before the code is changed.
pub(crate) fn install(
    held: &mut Exclusive,
    target: RunAddr,
    purpose: Purpose,
    make: impl Fn(&mut Hook, &Text) -> Result<Made, Refusal>,
    ready: impl Fn(RunAddr),
) -> Result<(Installed, Pause), Refusal> {
    let text = Text::open().map_err(Refusal::NoMemoryFile)?;
    settle_if_many(held)?;
    let islands = ledger(held);
    let mut known = None;
    for hook in islands
        .hooks()
        .filter(|hook| !hook.is_free() && hook.made().target == target)
    {
        let made = hook.made();
        if hook.state == State::Installed {
            return Err(Refusal::AlreadyHooked);
        }
        if made.purpose == purpose && made.change.is_there(&text, &made.change.before) {
            known = Some(hook);
        }
    }
    let hook = match known {
        Some(hook) => hook,
        None => {
            let hook = islands.take(target, SLOT).ok_or(Refusal::NoRoom)?;
            let made = make(hook, &text)?;
            hook.made.write(made);
            hook.state = State::Retired;
            hook
        }
    };
    if meets_another(islands, &hook.made().change, None) {
        return Err(Refusal::AlreadyHooked);
    }
    let made = *hook.made();
    ready(made.original);
    let pause = change(held, |stopped, maps| {
        if let Some(plan) = &made.plan {
            move_out_of_pad(stopped, maps, plan)?;
        }
        // SAFETY: planned for that place, and no thread is inside.
        unsafe { text.write(made.change.at, &made.change.after[..made.change.len]) }
            .map_err(Refusal::NoMemoryFile)
    })?;
    hook.state = State::Installed;
    Ok((Installed { hook }, pause))
}

fn settle_if_many(held: &mut Exclusive) -> Result<(), Refusal> {
    let retired = ledger(held)
        .hooks()
        .filter(|hook| hook.state == State::Retired);
    if retired.count() > RETIRED_MOST {
        settle_under(held)?;
    }
    Ok(())
}

fn meets_another(islands: &Islands, change: &Change, except: Option<*const Hook>) -> bool {
    islands.hooks().any(|hook| {
        hook.state == State::Installed
            && except != Some(core::ptr::from_ref(hook))
            && hook.made().change.meets(change)
    })
}

/// Puts a hook in the place of `old`, or at an instruction where there is none. `make` fills a slot of `slot_len` bytes.
pub(crate) fn exchange(
    held: &mut Exclusive,
    old: Option<&'static mut Hook>,
    near: RunAddr,
    slot_len: usize,
    make: impl Fn(&mut Hook, &Text) -> Result<Made, Refusal>,
) -> Result<Pause, Refusal> {
    let text = Text::open().map_err(Refusal::NoMemoryFile)?;
    settle_if_many(held)?;
    if let Some(old) = &old
        && !old.made().change.is_there(&text, &old.made().change.after)
    {
        return Err(Refusal::TextChanged);
    }
    let islands = ledger(held);
    let hook = islands.take(near, slot_len).ok_or(Refusal::NoRoom)?;
    let made = make(hook, &text)?;
    hook.made.write(made);
    hook.state = State::Retired;
    let same = old.as_deref().map(core::ptr::from_ref);
    if meets_another(islands, &made.change, same) {
        return Err(Refusal::AlreadyHooked);
    }
    let pause = change(held, |stopped, maps| {
        if let Some(plan) = &made.plan
            && old.is_none()
        {
            move_out_of_pad(stopped, maps, plan)?;
        }
        // SAFETY: planned for that place, and no thread is inside.
        unsafe { text.write(made.change.at, &made.change.after[..made.change.len]) }
            .map_err(Refusal::NoMemoryFile)
    })?;
    hook.state = State::Installed;
    if let Some(old) = old {
        old.state = State::Retired;
    }
    Ok(pause)
}

/// The installed hook for which `is` holds.
pub(crate) fn installed(
    held: &mut Exclusive,
    is: impl Fn(&Made) -> bool,
) -> Option<&'static mut Hook> {
    let mut hooks = ledger(held).hooks();
    hooks.find(|hook| hook.state == State::Installed && is(hook.made()))
}

/// Writes over `code`, which was read at `at`, what it was before hooks were installed.
pub(crate) fn without_hooks(held: &mut Exclusive, at: RunAddr, code: &mut [u8]) {
    let hooks = ledger(held).hooks();
    for hook in hooks.filter(|hook| hook.state == State::Installed) {
        let change = hook.made().change;
        for (number, byte) in change.before[..change.len].iter().enumerate() {
            let offset = (change.at.0 + number as u64).wrapping_sub(at.0);
            if let Some(there) = usize::try_from(offset).ok().and_then(|o| code.get_mut(o)) {
                *there = *byte;
            }
        }
    }
}

/// Makes one change while the threads stand still; anew, when one of them stood where it could not be made.
fn change(
    held: &mut Exclusive,
    act: impl Fn(&mut Stopped<'_>, &mut Maps) -> Result<(), Refusal>,
) -> Result<Pause, Refusal> {
    let mut attempt = 0;
    loop {
        let mut maps = Maps::read().map_err(Refusal::NoMaps)?;
        let mut stopped = held.stop().map_err(Refusal::Stop)?;
        let done = act(&mut stopped, &mut maps);
        if done.is_ok() {
            sys::synchronize_cores();
        }
        let pause = stopped.release();
        attempt += 1;
        match done {
            Err(Refusal::Busy) if attempt < ATTEMPTS => {
                sys::wait_on(&AtomicU32::new(0), 0, u64::from(attempt) * 100_000);
            }
            done => return done.map(|()| pause),
        }
    }
}

fn move_out_of_pad(
    stopped: &mut Stopped<'_>,
    maps: &mut Maps,
    plan: &EntryPlan,
) -> Result<(), Refusal> {
    let pad = plan.pad_at();
    let inside = pad.0 + 1..pad.0 + PAD_LEN as u64;
    for thread in stopped.threads() {
        if plan.resume_after_installation(thread.pc()).is_none()
            || stack_holds(&thread, maps, &inside)?
        {
            return Err(Refusal::Busy);
        }
    }
    for mut thread in stopped.threads() {
        if let Some(pc) = plan.resume_after_installation(thread.pc())
            && pc != thread.pc()
        {
            thread.set_pc(pc);
        }
    }
    Ok(())
}

/// Whether a word in use on the thread's stack lies in `range`.
fn stack_holds(thread: &Thread<'_>, maps: &mut Maps, range: &Range<u64>) -> Result<bool, Refusal> {
    // A stack mapped since: look at the mappings again.
    let stack = maps.find(thread.sp()).ok_or(Refusal::Busy)?;
    let start = thread.sp().0.next_multiple_of(8);
    let end = stack.end.0.min(start.saturating_add(STACK_MOST));
    let count = end.saturating_sub(start) / 8;
    // SAFETY: mapped, readable as stacks are, and its thread stands still.
    let words = unsafe { core::slice::from_raw_parts(start as *const u64, count as usize) };
    Ok(words.iter().any(|word| range.contains(word)))
}

impl Installed {
    /// What is called to have what was there before the hook.
    #[must_use]
    pub fn original(&self) -> RunAddr {
        // SAFETY: a hook's slot stays while its handle exists.
        unsafe { &*self.hook }.made().original
    }

    /// Takes the hook out: the code is what it was, byte for byte.
    ///
    /// # Errors
    ///
    /// [`Refusal::TextChanged`] when somebody else has written there since, [`Refusal::Stop`]; the hook stays.
    pub fn remove(self) -> Result<Pause, (Self, Refusal)> {
        let mut held = stop::exclusive();
        // SAFETY: a hook's slot stays while its handle exists; under the lock.
        let hook = unsafe { &mut *self.hook };
        match hook.uninstall(&mut held) {
            Ok(pause) => Ok(pause),
            Err(refusal) => Err((self, refusal)),
        }
    }

    /// For languages without ownership: the handle as a number.
    #[must_use]
    pub fn into_raw(self) -> usize {
        self.hook as usize
    }

    /// The handle that became this number; `None` if there is no such hook in place.
    #[must_use]
    pub fn from_raw(raw: usize) -> Option<Self> {
        let mut held = stop::exclusive();
        let hook = ledger(&mut held).hooks().find(|hook| {
            core::ptr::from_ref::<Hook>(hook) as usize == raw && hook.state == State::Installed
        })?;
        Some(Self { hook })
    }
}

impl Hook {
    pub(crate) fn is_free(&self) -> bool {
        self.state == State::Free
    }

    pub(crate) fn slot_at(&self) -> RunAddr {
        self.slot
    }

    pub(crate) fn slot_len(&self) -> usize {
        self.slot_len
    }

    pub(crate) fn set_slot(&mut self, slot: RunAddr, len: usize) {
        self.slot = slot;
        self.slot_len = len;
    }

    pub(crate) fn made(&self) -> &Made {
        debug_assert!(!self.is_free());
        // SAFETY: written before a slot leaves the state of being free.
        unsafe { self.made.assume_init_ref() }
    }

    /// What a stub needs of the hook at `this`, while another thread may hold the engine's lock.
    ///
    /// # Safety
    /// `this` is a slot to which a relay has led this thread. What is read here is written only while the slot is free.
    pub(crate) unsafe fn served(this: *const Self) -> (RunAddr, RunAddr, Purpose) {
        // SAFETY: the caller's promise. Field by field: a reference to the whole would speak for what the engine writes.
        unsafe {
            let made = (&raw const (*this).made).cast::<Made>();
            ((*made).target, (*made).original, (*made).purpose)
        }
    }

    pub(crate) fn uninstall(&mut self, held: &mut Exclusive) -> Result<Pause, Refusal> {
        let text = Text::open().map_err(Refusal::NoMemoryFile)?;
        let change_made = self.made().change;
        if !change_made.is_there(&text, &change_made.after) {
            return Err(Refusal::TextChanged);
        }
        let pause = change(held, |_, _| {
            // SAFETY: what was there; no thread stands inside a jump.
            unsafe { text.write(change_made.at, &change_made.before[..change_made.len]) }
                .map_err(Refusal::NoMemoryFile)
        })?;
        self.state = State::Retired;
        Ok(pause)
    }

    /// The addresses that a thread has in its counter, a register or its stack while it can still come to this slot.
    fn reach(&self) -> Reach {
        let slot = [self.slot.0, self.slot.0 + self.slot_len as u64];
        match self.made().purpose {
            Purpose::Replace(hook) => {
                let len = unwinder::function_len(hook).unwrap_or(UNKNOWN_LEN);
                [slot, [hook.0, hook.0 + len], [0, 0]]
            }
            Purpose::Wrap(_) => [slot, stubs::range(), wrap::thunks()],
            // Its handlers return to it.
            Purpose::Probe(_) => [slot, [0, 0], [0, 0]],
        }
    }

    /// Where a thread at `pc` in this slot goes on in the code, whose bytes are its own again.
    fn home_of(&self, pc: RunAddr) -> Option<RunAddr> {
        let Some(plan) = &self.made().plan else {
            return (pc == self.slot).then_some(self.made().original);
        };
        if pc == self.slot {
            return Some(plan.pad_at());
        }
        let offset = pc.0.checked_sub(plan.trampoline_at.0)?;
        let original = plan
            .original_of(pc)
            .filter(|original| !original.return_pushed)?;
        let at_start = plan
            .landings()
            .iter()
            .any(|landing| u64::from(landing.copy) == offset);
        let at_jump_home = original.at == plan.pad_at().plus(u64::from(plan.displaced_len));
        (at_start || at_jump_home).then_some(original.at)
    }
}

/// Gives back what removed hooks have left, as far as no thread can still come to it. The answer: how many hooks are left.
///
/// # Errors
///
/// [`Refusal`]: the threads could not be looked at; nothing was given back.
pub fn settle() -> Result<usize, Refusal> {
    settle_under(&mut stop::exclusive())
}

fn settle_under(held: &mut Exclusive) -> Result<usize, Refusal> {
    let retired = || {
        // SAFETY: under the lock, which `held` is.
        let islands = unsafe { &*LEDGER.0.get() };
        islands.hooks().filter(|hook| hook.state == State::Retired)
    };
    if retired().next().is_none() {
        return Ok(0);
    }
    // What asks the unwinder is done before the threads stand still.
    let room = retired().count() * size_of::<Reach>();
    let mut reaches = Pages::new(room).map_err(|_| Refusal::NoRoom)?;
    for (hook, reach) in retired().zip(reaches.words::<Reach>()) {
        *reach = hook.reach();
    }
    let reaches = RefCell::new(reaches);
    change(held, |stopped, maps| {
        for (hook, reach) in retired().zip(reaches.borrow_mut().words::<Reach>()) {
            if is_idle(hook, reach, stopped, maps)? {
                hook.state = State::Idle;
            }
        }
        Ok(())
    })?;
    // Not before the threads run again: the unwinder takes locks.
    let islands = ledger(held);
    for hook in islands.hooks().filter(|hook| hook.state == State::Idle) {
        hook.announcement.withdraw();
        hook.state = State::Free;
    }
    islands.give_back();
    let wraps = |hook: &Hook| !hook.is_free() && matches!(hook.made().purpose, Purpose::Wrap(_));
    if !islands.hooks().any(|hook| wraps(hook)) {
        wrap::give_back_arena();
    }
    Ok(retired().count())
}

/// Whether no thread can come to the slot any more. Counters in it are moved home first.
fn is_idle(
    hook: &Hook,
    reach: &Reach,
    stopped: &mut Stopped<'_>,
    maps: &mut Maps,
) -> Result<bool, Refusal> {
    let mut idle = true;
    // Another hook may have come to the same place.
    // SAFETY: under the lock, as the caller is.
    let islands = unsafe { &*LEDGER.0.get() };
    let covered = |home: RunAddr| {
        let covers = |change: &Change| {
            (change.at.0 + 1..change.at.0 + change.reach as u64).contains(&home.0)
        };
        let mut installed = islands
            .hooks()
            .filter(|hook| hook.state == State::Installed);
        installed.any(|hook| covers(&hook.made().change))
    };
    for mut thread in stopped.threads() {
        if let Some(home) = hook.home_of(thread.pc())
            && !covered(home)
        {
            thread.set_pc(home);
        }
        for [start, end] in *reach {
            let range = start..end;
            idle &= !thread.registers().iter().any(|word| range.contains(word));
            idle &= !stack_holds(&thread, maps, &range)?;
        }
    }
    Ok(idle)
}
