//! *How does a hook come into a running function, and out again?*
//!
//! ```text
//!   free ──install──► installed ──remove──► retired ──settle──► free
//!                         ▲                    │
//!                         └──── install ───────┘   (the same hook again: no new memory)
//! ```
//!
//! Installing and removing change five bytes while all threads stand still; a thread that stands in the middle of
//! them goes on at the copy of its instruction. Removal takes effect at once: no call begins after it that comes to the
//! hook. The trampoline stays, for a thread may be in it, or in the hook that is about to call it; that is *retired*.
//! [`settle`] looks at every thread's counter, registers and stack, moves counters out of what it gives back, and leaves
//! what somebody may still return to for the next time.
//!
//! A program counter can also be saved in a signal's frame, further up a thread's stack, where a handler will return to
//! it. Stacks are searched for an address in the middle of the pad before the pad is written.
//!
//! # Limits
//!
//! Stacks that no thread is on (coroutines that are switched away) are not searched. A hook function is taken to be as
//! long as its unwind rules say, 4 KiB where there are none: while a thread is in it, its trampoline stays.

#![allow(unsafe_code)] // Reads and writes code.

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, Ordering::Release};

use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::emit::Emitter;
use pointee_patch::{Entry, EntryPlan, find_inward_branches, plan_entry};

use crate::announce::Announcement;
use crate::frames::Frames;
use crate::island::{Islands, RELAY, SLOT};
use crate::maps::Maps;
use crate::pages::Pages;
use crate::refusal::Refusal;
use crate::stop::{self, Exclusive, Pause, Stopped, Thread};
use crate::stubs;
use crate::text::Text;
use crate::unwinder;
use crate::wrap::{self, Observers};

/// How often it is tried to stop the threads at a moment when none has a counter saved in the pad.
const ATTEMPTS: u32 = 16;
/// How much of a stack is searched, from the stack pointer up, in bytes.
const STACK_MOST: u64 = 16 << 20;
/// How long a function without unwind rules is taken to be: searched for branches, and for threads in it.
const UNKNOWN_LEN: u64 = 4096;
/// Retired slots at which installing settles by itself.
const RETIRED_MOST: usize = 4 * crate::island::SLOTS;

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
    /// Of a slot that is not free.
    plan: MaybeUninit<EntryPlan>,
    purpose: MaybeUninit<Purpose>,
    announcement: Announcement,
}

/// First and last but one of the addresses by which a thread can come to a slot, three times.
type Reach = [[u64; 2]; 3];

/// What calls of the function come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// This function instead.
    Replace(RunAddr),
    /// The function itself, between these.
    Wrap(Observers),
}

/// A hook at a function's entry. Dropping it leaves the hook in place.
#[derive(Debug)]
pub struct EntryHook {
    hook: *mut Hook,
}

// SAFETY: what it points to is used under the engine's lock only.
unsafe impl Send for EntryHook {}
// SAFETY: as above.
unsafe impl Sync for EntryHook {}

struct Ledger(core::cell::UnsafeCell<Islands>);
// SAFETY: used by the holder of the lock.
unsafe impl Sync for Ledger {}
static LEDGER: Ledger = Ledger(core::cell::UnsafeCell::new(Islands::new()));

fn ledger(_held: &mut Exclusive) -> &mut Islands {
    // SAFETY: as long as the lock is borrowed.
    unsafe { &mut *LEDGER.0.get() }
}

/// Has calls of `function` go to `replacement`. Before the first of them does, `original` holds the
/// address by which `replacement` calls the function as it was.
///
/// # Errors
///
/// [`Refusal`]: nothing has changed.
///
/// # Safety
/// `replacement` takes and returns what `function` does, and preserves the registers that its callers rely on: those of
/// the psABI, or more where the compiler knew both (`-fipa-ra`).
pub unsafe fn replace(
    function: RunAddr,
    replacement: RunAddr,
    original: &AtomicU64,
) -> Result<(EntryHook, Pause), Refusal> {
    let mut held = stop::exclusive();
    install(&mut held, function, Purpose::Replace(replacement), |hook| {
        original.store(hook.original().0, Release);
    })
}

pub(crate) fn install(
    held: &mut Exclusive,
    function: RunAddr,
    purpose: Purpose,
    prepare: impl Fn(&Hook),
) -> Result<(EntryHook, Pause), Refusal> {
    let text = Text::open().map_err(Refusal::NoMemoryFile)?;
    let islands = ledger(held);
    if islands
        .hooks()
        .filter(|hook| hook.state == State::Retired)
        .count()
        > RETIRED_MOST
    {
        settle_under(held)?;
    }
    let islands = ledger(held);
    let known = islands
        .hooks()
        .find(|hook| !hook.is_free() && hook.plan().entry == function);
    let hook = match known {
        Some(hook) if hook.state == State::Installed => return Err(Refusal::AlreadyHooked),
        Some(hook) if hook.purpose() == purpose && hook.text_is(&text, &hook.plan().original) => {
            hook
        }
        _ => {
            let hook = islands.take(function).ok_or(Refusal::NoRoom)?;
            hook.prepare(&text, function, purpose)?;
            hook
        }
    };
    prepare(hook);
    let plan = *hook.plan();
    let write = plan.installation();
    let pause = change(held, &text, |text, threads, maps| {
        move_out_of_pad(threads, maps, &plan)?;
        // SAFETY: planned for that place, and no thread is inside.
        unsafe { text.write(write.at, &write.bytes) }.map_err(Refusal::NoMemoryFile)
    });
    if pause.is_ok() {
        hook.state = State::Installed;
    }
    pause.map(|pause| (EntryHook { hook }, pause))
}

/// Makes one change while the threads stand still; anew, when one of them stood where it could not be made.
fn change(
    held: &mut Exclusive,
    text: &Text,
    act: impl Fn(&Text, &mut Stopped<'_>, &mut Maps) -> Result<(), Refusal>,
) -> Result<Pause, Refusal> {
    let mut attempt = 0;
    loop {
        let mut maps = Maps::read().map_err(Refusal::NoMaps)?;
        let mut stopped = held.stop().map_err(Refusal::Stop)?;
        let done = act(text, &mut stopped, &mut maps);
        if done.is_ok() {
            text.publish();
        }
        let pause = stopped.release();
        attempt += 1;
        match done {
            Err(Refusal::Busy) if attempt < ATTEMPTS => crate::sys::wait_on(
                &core::sync::atomic::AtomicU32::new(0),
                0,
                u64::from(attempt) * 100_000,
            ),
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
    let inside = pad.0 + 1..pad.0 + plan.pad.len() as u64;
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
fn stack_holds(
    thread: &Thread<'_>,
    maps: &mut Maps,
    range: &core::ops::Range<u64>,
) -> Result<bool, Refusal> {
    // A stack mapped since: look at the mappings again.
    let stack = maps.find(thread.sp()).ok_or(Refusal::Busy)?;
    let start = thread.sp().0.next_multiple_of(8);
    let end = stack.end.0.min(start.saturating_add(STACK_MOST));
    let count = end.saturating_sub(start) / 8;
    // SAFETY: mapped, readable as stacks are, and its thread stands still.
    let words = unsafe { core::slice::from_raw_parts(start as *const u64, count as usize) };
    Ok(words.iter().any(|word| range.contains(word)))
}

impl EntryHook {
    /// The address by which the function is called as it was.
    #[must_use]
    pub fn original(&self) -> RunAddr {
        // SAFETY: a hook's slot stays while its handle exists.
        unsafe { &*self.hook }.original()
    }

    /// Takes the hook out: the function's bytes are what they were.
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

    pub(crate) fn set_slot(&mut self, slot: RunAddr) {
        self.slot = slot;
    }

    fn plan(&self) -> &EntryPlan {
        debug_assert!(!self.is_free());
        // SAFETY: written before a slot leaves the state of being free.
        unsafe { self.plan.assume_init_ref() }
    }

    /// The hooked function.
    pub(crate) fn function(&self) -> RunAddr {
        self.plan().entry
    }

    pub(crate) fn purpose(&self) -> Purpose {
        // SAFETY: as above.
        unsafe { self.purpose.assume_init() }
    }

    /// Where the function is called as it was.
    pub(crate) fn original(&self) -> RunAddr {
        self.plan().trampoline_at
    }

    /// Plans the hook and writes all but the pad. The slot is retired then: ready to be installed.
    fn prepare(&mut self, text: &Text, function: RunAddr, purpose: Purpose) -> Result<(), Refusal> {
        let mut maps = Maps::read().map_err(Refusal::NoMaps)?;
        let mapping = maps.find(function).filter(|mapping| mapping.executable);
        let mapping = mapping.ok_or(Refusal::NotCode)?;
        let rules = unwinder::rules_at(function);
        let known_len = rules
            .as_ref()
            .filter(|rules| rules.start == function)
            .map(|rules| rules.len);
        let left = mapping.end.0 - function.0;
        let trampoline_at = self.slot.plus(RELAY);
        // SAFETY: mapped, readable and executable; code that changes under us is checked again below.
        let (code, around) = unsafe {
            let len = (known_len.unwrap_or(UNKNOWN_LEN) + 16).min(left) as usize;
            let all = (mapping.end.0 - mapping.start.0) as usize;
            (
                core::slice::from_raw_parts(function.0 as *const u8, len),
                core::slice::from_raw_parts(mapping.start.0 as *const u8, all),
            )
        };
        let entry = Entry {
            code,
            at: function,
            body_len: known_len.map(|len| (len as usize).min(code.len())),
        };
        let plan = plan_entry(&entry, trampoline_at, self.slot).map_err(Refusal::Plan)?;
        if plan.looped {
            return Err(Refusal::Looped);
        }
        let spans = [plan.span()];
        if find_inward_branches(around, mapping.start, &spans)
            .next()
            .is_some()
        {
            return Err(Refusal::Plan(pointee_patch::Refusal::InwardBranch));
        }
        let mut relay = [0; RELAY as usize];
        let mut emitter = Emitter::new(&mut relay, self.slot);
        let mut pushed = 0;
        let emitted = match purpose {
            Purpose::Replace(replacement) => emitter.jump(replacement),
            Purpose::Wrap(_) => {
                let (stub, hook) = (stubs::entry_stub(), core::ptr::from_ref(self) as u64);
                let emitted = emitter.push_from(emitter.jump_len(stub));
                pushed = emitter.len() as u8;
                emitted
                    .and_then(|()| emitter.jump(stub))
                    .and_then(|()| emitter.bytes(&hook.to_le_bytes()))
            }
        };
        emitted.map_err(|_| Refusal::NoRoom)?;
        let len = emitter.len();
        // SAFETY: a free slot of ours.
        unsafe {
            text.write(self.slot, &relay[..len])
                .and_then(|()| text.write(trampoline_at, &plan.trampoline))
                .map_err(Refusal::NoMemoryFile)?;
        }
        let frames = Frames::of_slot(self.slot, RELAY, pushed, &plan, rules.as_ref());
        let name = unwinder::name_of(function).unwrap_or(b"function");
        self.announcement
            .announce(&frames, self.slot, SLOT as u64, name);
        self.plan.write(plan);
        self.purpose.write(purpose);
        self.state = State::Retired;
        Ok(())
    }

    fn text_is(&self, text: &Text, expected: &[u8]) -> bool {
        let mut now = [0; pointee_patch::arch::x86_64::PAD_LEN];
        text.read(self.plan().pad_at(), &mut now) == Ok(now.len()) && now == expected
    }

    fn uninstall(&mut self, held: &mut Exclusive) -> Result<Pause, Refusal> {
        let text = Text::open().map_err(Refusal::NoMemoryFile)?;
        if self.state != State::Installed {
            return Err(Refusal::NotHooked);
        }
        let plan = *self.plan();
        if !self.text_is(&text, &plan.pad) {
            return Err(Refusal::TextChanged);
        }
        let write = plan.removal();
        let pause = change(held, &text, |text, _, _| {
            // SAFETY: what was there; no thread stands inside a jump.
            unsafe { text.write(write.at, &write.bytes) }.map_err(Refusal::NoMemoryFile)
        })?;
        self.state = State::Retired;
        Ok(pause)
    }

    /// The addresses that a thread has in its counter, a register or its stack while it can still come to this slot.
    fn reach(&self) -> Reach {
        let slot = [self.slot.0, self.slot.0 + SLOT as u64];
        match self.purpose() {
            Purpose::Replace(hook) => {
                let len = unwinder::function_len(hook).unwrap_or(UNKNOWN_LEN);
                [slot, [hook.0, hook.0 + len], [0, 0]]
            }
            Purpose::Wrap(_) => [slot, stubs::range(), wrap::thunks()],
        }
    }

    /// Where a thread at `pc` in this slot goes on in the function, whose bytes are its own again.
    fn home_of(&self, pc: RunAddr) -> Option<RunAddr> {
        let plan = self.plan();
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
    if retired().next().is_some() {
        let text = Text::open().map_err(Refusal::NoMemoryFile)?;
        // What asks the unwinder is done before the threads stand still.
        let room = retired().count() * size_of::<Reach>();
        let mut reaches = Pages::new(room).map_err(|_| Refusal::NoRoom)?;
        for (hook, reach) in retired().zip(reaches.words::<Reach>()) {
            *reach = hook.reach();
        }
        let reaches = core::cell::RefCell::new(reaches);
        change(held, &text, |_, stopped, maps| {
            let mut reaches = reaches.borrow_mut();
            for (hook, reach) in retired().zip(reaches.words::<Reach>()) {
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
        let wraps = |hook: &Hook| !hook.is_free() && matches!(hook.purpose(), Purpose::Wrap(_));
        if !islands.hooks().any(|hook| wraps(hook)) {
            wrap::give_back_arena();
        }
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
    for mut thread in stopped.threads() {
        if let Some(home) = hook.home_of(thread.pc()) {
            thread.set_pc(home);
        }
        for [start, end] in *reach {
            let range = &(start..end);
            idle &= !thread.registers().iter().any(|word| range.contains(word));
            idle &= !stack_holds(&thread, maps, range)?;
        }
    }
    Ok(idle)
}
