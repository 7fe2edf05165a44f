//! *How does a hook come into running code, and out again?*
//!
//! ```text
//!   free ──install──► installed ──remove──► retired ──settle──► free
//!                         ▲                    │
//!                         └──── install ───────┘   (the same hook again: no new memory)
//! ```
//!
//! Installing and removing change at most five bytes, see `change.rs`. Removal takes effect at once: no call begins after it
//! that comes to the hook. The slot stays, for a thread may be in its trampoline, or in the hook that is about to call it;
//! that is *retired*, and `settle.rs` gives it back.
//!
//! # Limits
//!
//! Stacks that no thread is on (coroutines that are switched away) are not searched. A hook function is taken to be as
//! long as its unwind rules say, 4 KiB where there are none: while a thread is in it, its slot stays.

#![allow(unsafe_code)] // What belongs to slots lies in pages of the engine's own.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

use pointee_model::addr::RunAddr;
use pointee_patch::EntryPlan;

use crate::announce::Announcement;
use crate::callers::Callers;
use crate::change::Change;
use crate::island::{Islands, SLOT, SLOTS};
use crate::listing;
use crate::probe::Stack;
use crate::refusal::Refusal;
use crate::settle;
use crate::stop::{self, Exclusive, Pause};
use crate::text::Text;
use crate::wrap::Observers;

/// Retired slots at which installing settles by itself.
const RETIRED_MOST: usize = 4 * SLOTS;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
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
    pub(crate) state: State,
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
    /// For each place that calls the function, what is chosen for it.
    Callers(Callers),
    /// No hook by itself, but the way from such places.
    Relay(Relay),
}

/// A jump, or a cell with an address, to which calls of a function are led.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Relay {
    pub(crate) destination: RunAddr,
    /// The hook for whose callers it is.
    pub(crate) owner: u64,
    pub(crate) is_cell: bool,
}

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

pub(crate) fn ledger(_held: &mut Exclusive) -> &mut Islands {
    // SAFETY: as long as the lock is borrowed.
    unsafe { &mut *LEDGER.0.get() }
}

/// The hooks that were removed and may be in use still. Under the lock, which the caller holds.
pub(crate) fn retired() -> impl Iterator<Item = &'static mut Hook> {
    all().filter(|hook| hook.state == State::Retired)
}

/// The hooks in place. Likewise.
pub(crate) fn in_place() -> impl Iterator<Item = &'static mut Hook> {
    all().filter(|hook| hook.state == State::Installed)
}

fn all() -> impl Iterator<Item = &'static mut Hook> {
    // SAFETY: under the lock, as the callers are; hooks live as long as their islands do.
    unsafe { &*LEDGER.0.get() }.hooks()
}

/// Where the slot of a new hook is to lie.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slot {
    /// Within reach of this.
    Near(RunAddr),
    /// Exactly here, on pages of its own.
    At(RunAddr),
}

impl Slot {
    fn take(self, islands: &mut Islands, len: usize) -> Result<&'static mut Hook, Refusal> {
        let hook = match self {
            Self::Near(near) => islands.take(near, len),
            Self::At(at) => islands.take_at(at, len),
        };
        hook.ok_or(Refusal::NoRoom)
    }
}

/// Puts a hook at `target`. `make` fills a slot; `ready` is called before the code is changed.
pub(crate) fn install(
    held: &mut Exclusive,
    target: RunAddr,
    purpose: Purpose,
    slot: Slot,
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
            let hook = slot.take(islands, SLOT)?;
            let made = make(hook, &text).inspect_err(|_| islands.give_back())?;
            hook.made.write(made);
            hook.state = State::Retired;
            listing::add(hook);
            hook
        }
    };
    if meets_another(&hook.made().change, None) {
        return Err(Refusal::AlreadyHooked);
    }
    let made = *hook.made();
    ready(made.original);
    let Change { before, after, .. } = &made.change;
    let pause = made
        .change
        .write(held, &text, before, after, made.plan.as_ref())?;
    hook.state = State::Installed;
    Ok((Installed { hook }, pause))
}

fn settle_if_many(held: &mut Exclusive) -> Result<(), Refusal> {
    if retired().count() > RETIRED_MOST {
        settle::settle_under(held)?;
    }
    Ok(())
}

/// Whether a hook in place, but `except`, has changed bytes that `change` would, or displaced them. Under the lock.
pub(crate) fn meets_another(change: &Change, except: Option<*const Hook>) -> bool {
    let mut others = in_place().filter(|hook| except != Some(core::ptr::from_ref(hook)));
    others.any(|hook| {
        let made = hook.made();
        let at_callers = || match &made.purpose {
            Purpose::Callers(callers) => callers.changes().any(|other| other.meets(change)),
            _ => false,
        };
        made.change.meets(change) || at_callers()
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
    listing::add(hook);
    let same = old.as_deref().map(core::ptr::from_ref);
    if meets_another(&made.change, same) {
        return Err(Refusal::AlreadyHooked);
    }
    let change = &made.change;
    let pause = match &old {
        Some(old) => change.write(held, &text, &old.made().change.after, &change.after, None),
        None => {
            let plan = made.plan.as_ref();
            change.write(held, &text, &change.before, &change.after, plan)
        }
    }?;
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

impl Installed {
    /// What is called to have what was there before the hook.
    #[must_use]
    pub fn original(&self) -> RunAddr {
        self.made().original
    }

    pub(crate) fn made(&self) -> &Made {
        // SAFETY: a hook's slot stays while its handle exists.
        unsafe { &*self.hook }.made()
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

    /// Makes this slot, in which `relay` is written at `at`, one that is in use. `function`: what the relay stands for.
    pub(crate) fn put_relay(&mut self, relay: Relay, at: RunAddr, function: RunAddr) {
        self.made.write(Made {
            target: at,
            purpose: Purpose::Relay(relay),
            change: Change::none(at),
            original: function,
            plan: None,
        });
        self.state = State::Installed;
    }

    pub(crate) fn uninstall(&mut self, held: &mut Exclusive) -> Result<Pause, Refusal> {
        let text = Text::open().map_err(Refusal::NoMemoryFile)?;
        let change = self.made().change;
        if !change.is_there(&text, &change.after) {
            return Err(Refusal::TextChanged);
        }
        let mut pause = Pause::default();
        if let Purpose::Callers(callers) = self.made().purpose {
            pause = callers.restore(held, &text)?;
            let own = core::ptr::from_ref(self) as u64;
            for relay in in_place() {
                if matches!(relay.made().purpose, Purpose::Relay(relay) if relay.owner == own) {
                    relay.state = State::Retired;
                }
            }
        }
        // No thread stands inside a jump.
        pause += change.write(held, &text, &change.after, &change.before, None)?;
        self.state = State::Retired;
        Ok(pause)
    }
}
