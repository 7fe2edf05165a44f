//! *How is something done at any instruction of a running program?* By a pad there that leads to a slot with what is to be done and the
//! displaced instructions behind it.
//!
//! ```text
//!   … instruction ─► pad ─► slot: counters and handlers, in the order they came; displaced instructions; jmp home ─► …
//! ```
//!
//! Several probes at one instruction share a slot and what is saved around them. When one comes or goes, a new slot is written and
//! the pad is led there, in one stop; the old one is retired. So they can be removed in any order, and none costs more for those that went.
//!
//! What of the processor's state is kept around handlers is told by the function's code: see `pointee_patch`'s `liveness`.
//!
//! # Limits
//!
//! The function must have unwind rules, which tell its bounds. A pad over several instructions is refused in functions with
//! indirect jumps or handlers of exceptions, of which is not known here where they arrive: `pointee-probe` looks closer, and plans whole files.
//! Two probes may not be closer than the bytes that one of them displaces.

#![allow(unsafe_code)] // Reads and writes code.

use core::slice::from_raw_parts;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::PAD_LEN;
use pointee_patch::arch::x86_64::context::{Action, Context, act};
use pointee_patch::arch::x86_64::emit::{EmitError, Emitter};
use pointee_patch::arch::x86_64::liveness::{Convention, Live, Vectors};
use pointee_patch::{Entry, EntryPlan, Place, find_inward_branches, plan_instruction};

use crate::change::Change;
use crate::frames::Frames;
use crate::hook::{self, Hook, Made, Purpose};
use crate::island::{PROBE_SLOT, SLOT};
use crate::lines::Lines;
use crate::maps::Maps;
use crate::pages::Pages;
use crate::processor;
use crate::refusal::Refusal;
use crate::stop::{self, Exclusive, Pause};
use crate::text::Text;
use crate::unwinder;

/// Probes at one instruction.
pub const MOST: usize = 8;
/// Padding behind a function that may be needed for the pad.
const PADDING: usize = 16;

/// A probe in place. Dropping it leaves the probe where it is.
#[derive(PartialEq, Eq, Debug)]
pub struct Probe {
    number: u64,
}

/// What is done at one instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stack {
    layers: [Option<Layer>; MOST],
}

impl Stack {
    /// The action that is done as the one with this number.
    pub(crate) fn action(&self, number: usize) -> Option<Action> {
        let mut layers = self.layers.iter().flatten();
        layers.nth(number).map(|layer| layer.action)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Layer {
    number: u64,
    action: Action,
    convention: Convention,
}

/// Has `action` done before each execution of the instruction at `at`, after those that are done there already.
///
/// # Errors
///
/// [`Refusal`]: nothing has changed.
///
/// # Safety
/// Handlers keep to their context, return, and may be called on any thread, wherever the instruction is; a counted word stays.
/// `convention` holds for the function's callers and callees.
pub unsafe fn probe(
    at: RunAddr,
    action: Action,
    convention: Convention,
) -> Result<(Probe, Pause), Refusal> {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let mut held = stop::exclusive();
    let number = NUMBER.fetch_add(1, Relaxed);
    let old = hook::installed(&mut held, |made| made.target == at);
    let mut stack = match old.as_ref().map(|old| old.made().purpose) {
        None => Stack {
            layers: [None; MOST],
        },
        Some(Purpose::Probe(stack)) => stack,
        Some(_) => return Err(Refusal::AlreadyHooked),
    };
    let free = stack.layers.iter_mut().find(|layer| layer.is_none());
    *free.ok_or(Refusal::TooMany)? = Some(Layer {
        number,
        action,
        convention,
    });
    let pause = put(&mut held, old, at, stack)?;
    Ok((Probe { number }, pause))
}

impl Probe {
    /// Takes the probe out; others at the same instruction stay.
    ///
    /// # Errors
    ///
    /// [`Refusal`]; the probe stays.
    pub fn remove(self) -> Result<Pause, (Self, Refusal)> {
        let mut held = stop::exclusive();
        let Some((hook, mut stack)) = find(&mut held, self.number) else {
            return Err((self, Refusal::NotHooked));
        };
        let others = |layer: &Option<Layer>| layer.is_some_and(|l| l.number != self.number);
        let mut kept = [None; MOST];
        let layers = stack.layers.into_iter().filter(others);
        kept.iter_mut()
            .zip(layers)
            .for_each(|(to, layer)| *to = layer);
        stack.layers = kept;
        let done = if stack.layers[0].is_none() {
            hook.uninstall(&mut held)
        } else {
            let at = hook.made().target;
            put(&mut held, Some(hook), at, stack)
        };
        done.map_err(|refusal| (self, refusal))
    }

    /// For languages without ownership: the probe as a number, not 0.
    #[must_use]
    pub fn into_raw(self) -> u64 {
        self.number
    }

    /// The probe that became this number; `None` if there is no such probe in place.
    #[must_use]
    pub fn from_raw(number: u64) -> Option<Self> {
        find(&mut stop::exclusive(), number).map(|_| Self { number })
    }
}

fn find(held: &mut Exclusive, number: u64) -> Option<(&'static mut Hook, Stack)> {
    let stack_of = |made: &Made| match made.purpose {
        Purpose::Probe(stack) => Some(stack),
        _ => None,
    };
    let has = |stack: Stack| {
        stack
            .layers
            .iter()
            .flatten()
            .any(|layer| layer.number == number)
    };
    let hook = hook::installed(held, |made| stack_of(made).is_some_and(has))?;
    let stack = stack_of(hook.made())?;
    Some((hook, stack))
}

/// Leads the instruction at `at` to a slot with `stack`.
fn put(
    held: &mut Exclusive,
    old: Option<&'static mut Hook>,
    at: RunAddr,
    stack: Stack,
) -> Result<Pause, Refusal> {
    let mut maps = Maps::read().map_err(Refusal::NoMaps)?;
    let mapping = maps.find(at).filter(|mapping| mapping.executable);
    let mapping = mapping.ok_or(Refusal::NotCode)?;
    let rules = unwinder::rules_at(at).ok_or(Refusal::NoBounds)?;
    let body_len = rules.len as usize;
    let left = mapping.end.0.saturating_sub(rules.start.0) as usize;
    let code_len = (body_len + PADDING).min(left);
    let all = (mapping.end.0 - mapping.start.0) as usize;
    let mut copy = Pages::new(code_len).map_err(|_| Refusal::NoRoom)?;
    let code = copy.bytes().get_mut(..code_len).ok_or(Refusal::NoRoom)?;
    // SAFETY: mapped and readable. Code is taken to stand still while nobody holds the lock.
    let around = unsafe {
        code.copy_from_slice(from_raw_parts(rules.start.0 as *const u8, code_len));
        from_raw_parts(mapping.start.0 as *const u8, all)
    };
    hook::without_hooks(held, rules.start, code);
    let place = Place {
        function: Entry {
            code,
            at: rules.start,
            body_len: Some(body_len),
        },
        offset: (at.0 - rules.start.0) as usize,
        catches: rules.catches,
    };
    let plain = stack
        .layers
        .iter()
        .flatten()
        .all(|layer| match layer.action {
            Action::Count { .. } => true,
            Action::Call { context, .. } => context == Context::Nothing,
        });
    let few = stack.layers[2].is_none();
    let slot_len = if plain && few { SLOT } else { PROBE_SLOT };
    let is_entered = |plan: &EntryPlan| {
        let spans = [plan.span()];
        let mut inward = find_inward_branches(around, mapping.start, &spans);
        inward.next().is_some()
    };
    let make =
        |hook: &mut Hook, text: &Text| make(hook, text, &place, &rules, at, stack, &is_entered);
    hook::exchange(held, old, at, slot_len, make)
}

/// Writes all but the pad. The last thing that can fail comes before unwinders and debuggers are told: a slot that stays free is
/// unmapped without a word to them. `is_entered`: whether code outside of the function branches into the pad.
fn make(
    hook: &mut Hook,
    text: &Text,
    place: &Place<'_>,
    rules: &unwinder::Rules,
    at: RunAddr,
    stack: Stack,
    is_entered: &dyn Fn(&EntryPlan) -> bool,
) -> Result<Made, Refusal> {
    let layers = || stack.layers.iter().flatten();
    let trusting = layers().all(|layer| layer.convention == Convention::Psabi);
    let convention = if trusting {
        Convention::Psabi
    } else {
        Convention::Unknown
    };
    let body = &place.function.code[..place.function.body_len.unwrap_or(0)];
    let live = Live::at(body, place.offset, convention);
    let mut actions = [Action::Count {
        cell: at,
        shared: false,
    }; MOST];
    let mut count = 0;
    for (action, layer) in actions.iter_mut().zip(layers()) {
        *action = layer.action;
        count += 1;
    }
    let slot = hook.slot_at();
    let mut bytes = [0; PROBE_SLOT];
    let mut emitter = Emitter::new(&mut bytes, slot);
    let processor = processor::states().processor();
    let everything = layers().any(|layer| {
        matches!(
            layer.action,
            Action::Call {
                context: Context::Everything,
                ..
            }
        )
    });
    if everything && live.vectors == Vectors::All && processor.is_none() {
        return Err(Refusal::NoXsave);
    }
    let processor = processor.unwrap_or_else(|| processor::states().without_xsave());
    let refused = |_: EmitError| Refusal::NoRoom;
    let mut lines = Lines::none();
    let mut told = |part, at| lines.part(at, part);
    let actions = &actions[..count];
    let frame = act(&mut emitter, actions, live, at, &processor, &mut told).map_err(refused)?;
    let len = emitter.len();
    let trampoline_at = slot.plus(len as u64);
    let plan = plan_instruction(place, trampoline_at, slot).map_err(Refusal::Plan)?;
    if len + plan.trampoline.len() > hook.slot_len() {
        return Err(Refusal::NoRoom);
    }
    if is_entered(&plan) {
        return Err(Refusal::Plan(pointee_patch::Refusal::InwardBranch));
    }
    // SAFETY: a free slot of ours.
    unsafe {
        text.write(slot, &bytes[..len])
            .and_then(|()| text.write(trampoline_at, &plan.trampoline))
            .map_err(Refusal::NoMemoryFile)?;
    }
    let frames = Frames::of_probe(slot, len as u64, frame, &plan, rules);
    let name = unwinder::name_of(rules.start).unwrap_or(b"probe");
    lines.trampoline(len, &plan);
    hook.announcement.announce(&frames, &lines, slot, name);
    let change = Change {
        at: plan.pad_at(),
        len: PAD_LEN,
        reach: PAD_LEN.max(usize::from(plan.displaced_len)),
        before: plan.original,
        after: plan.pad,
    };
    Ok(Made {
        target: at,
        purpose: Purpose::Probe(stack),
        change,
        original: trampoline_at,
        plan: Some(plan),
    })
}
