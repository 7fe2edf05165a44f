//! *When may what a removed hook used be used for something else?* When no thread can come to it any more: none has an address of
//! its slot, or of the hook that calls it, in its counter, a register or its stack. Counters are moved out of trampolines first;
//! what somebody may still return to is left for the next time.

#![allow(unsafe_code)] // Gives back what hooks had.

use core::cell::RefCell;

use pointee_model::addr::RunAddr;

use crate::change::{self, Change, stack_holds};
use crate::hook::{self, Hook, Purpose, State};
use crate::maps::Maps;
use crate::pages::Pages;
use crate::refusal::Refusal;
use crate::stop::{self, Exclusive, Stopped};
use crate::stubs;
use crate::unwinder;
use crate::wrap;

/// How long a function without unwind rules is taken to be, when threads in it are looked for.
const UNKNOWN_LEN: u64 = 4096;

/// First and last but one of the addresses by which a thread can come to a slot, three times.
type Reach = [[u64; 2]; 3];

impl Hook {
    /// The addresses that a thread has in its counter, a register or its stack while it can still come to this slot.
    fn reach(&self) -> Reach {
        let slot = self.slot_at();
        let slot = [slot.0, slot.0 + self.slot_len() as u64];
        match self.made().purpose {
            Purpose::Replace(hook) => {
                let len = unwinder::function_len(hook).unwrap_or(UNKNOWN_LEN);
                [slot, [hook.0, hook.0 + len], [0, 0]]
            }
            Purpose::Wrap(_) => [slot, stubs::range(), wrap::thunks()],
            Purpose::Callers(_) => [slot, stubs::range(), [0, 0]],
            // Handlers return to a probe's.
            Purpose::Probe(_) | Purpose::Relay(_) => [slot, [0, 0], [0, 0]],
        }
    }

    /// Where a thread at `pc` in this slot goes on in the code, whose bytes are its own again.
    fn home_of(&self, pc: RunAddr) -> Option<RunAddr> {
        let Some(plan) = &self.made().plan else {
            return (pc == self.slot_at()).then_some(self.made().original);
        };
        if pc == self.slot_at() {
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

pub(crate) fn settle_under(held: &mut Exclusive) -> Result<usize, Refusal> {
    if hook::retired().next().is_none() {
        return Ok(0);
    }
    // What asks the unwinder is done before the threads stand still.
    let room = hook::retired().count() * size_of::<Reach>();
    let mut reaches = Pages::new(room).map_err(|_| Refusal::NoRoom)?;
    for (hook, reach) in hook::retired().zip(reaches.words::<Reach>()) {
        *reach = hook.reach();
    }
    let reaches = RefCell::new(reaches);
    change::stopped(held, |stopped, maps| {
        for (hook, reach) in hook::retired().zip(reaches.borrow_mut().words::<Reach>()) {
            if is_idle(hook, reach, stopped, maps)? {
                hook.state = State::Idle;
            }
        }
        Ok(())
    })?;
    // Not before the threads run again: the unwinder takes locks.
    let islands = hook::ledger(held);
    for hook in islands.hooks().filter(|hook| hook.state == State::Idle) {
        hook.announcement.withdraw();
        if let Purpose::Callers(callers) = hook.made().purpose {
            // SAFETY: no thread can come to the hook.
            unsafe { callers.give_back() };
        }
        hook.state = State::Free;
    }
    islands.give_back();
    let wraps = |hook: &Hook| !hook.is_free() && matches!(hook.made().purpose, Purpose::Wrap(_));
    if !islands.hooks().any(|hook| wraps(hook)) {
        wrap::give_back_arena();
    }
    Ok(hook::retired().count())
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
    let covered = |home: RunAddr| {
        let covers = |change: &Change| {
            (change.at.0 + 1..change.at.0 + change.reach as u64).contains(&home.0)
        };
        hook::in_place().any(|hook| covers(&hook.made().change))
    };
    for mut thread in stopped.threads() {
        if let Some(home) = hook.home_of(thread.pc())
            && !covered(home)
        {
            thread.set_pc(home);
        }
        for [start, end] in *reach {
            let range = start..end;
            if range.is_empty() {
                continue;
            }
            idle &= !thread.registers().iter().any(|word| range.contains(word));
            idle &= !stack_holds(&thread, maps, &range)?;
        }
    }
    Ok(idle)
}
