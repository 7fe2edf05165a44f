//! *What is made for a hook at a function's entry?* The plan of `pointee-patch`, a relay and a trampoline, and what unwinders
//! and debuggers are told of them. Branches into the pad are looked for in all code of the same mapping.

#![allow(unsafe_code)] // Reads and writes code.

use core::slice::from_raw_parts;
use core::sync::atomic::{AtomicU64, Ordering::Release};

use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::PAD_LEN;
use pointee_patch::arch::x86_64::emit::{Emitter, is_near};
use pointee_patch::{Entry, find_inward_branches, plan_entry};

use crate::frames::Frames;
use crate::hook::{self, Change, Hook, Installed, Made, Purpose};
use crate::island::{RELAY, SLOT};
use crate::maps::Maps;
use crate::refusal::Refusal;
use crate::stop::{self, Exclusive, Pause};
use crate::stubs;
use crate::text::Text;
use crate::unwinder;

/// How much of a function without unwind rules is searched for branches.
const UNKNOWN_LEN: u64 = 4096;
/// Padding behind a function that may be needed for the pad.
const PADDING: u64 = 16;

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
) -> Result<(Installed, Pause), Refusal> {
    let mut held = stop::exclusive();
    install(&mut held, function, Purpose::Replace(replacement), |at| {
        original.store(at.0, Release);
    })
}

pub(crate) fn install(
    held: &mut Exclusive,
    function: RunAddr,
    purpose: Purpose,
    ready: impl Fn(RunAddr),
) -> Result<(Installed, Pause), Refusal> {
    let make = |hook: &mut Hook, text: &Text| make(hook, text, function, purpose);
    hook::install(held, function, purpose, make, ready)
}

/// Plans the hook and writes all but the pad.
fn make(
    hook: &mut Hook,
    text: &Text,
    function: RunAddr,
    purpose: Purpose,
) -> Result<Made, Refusal> {
    let mut maps = Maps::read().map_err(Refusal::NoMaps)?;
    let mapping = maps.find(function).filter(|mapping| mapping.executable);
    let mapping = mapping.ok_or(Refusal::NotCode)?;
    let rules = unwinder::rules_at(function).filter(|rules| rules.start == function);
    let known_len = rules.as_ref().map(|rules| rules.len);
    let left = mapping.end.0 - function.0;
    let len = (known_len.unwrap_or(UNKNOWN_LEN) + PADDING).min(left) as usize;
    let all = (mapping.end.0 - mapping.start.0) as usize;
    // SAFETY: mapped and readable. Code is taken to stand still while nobody holds the lock.
    let (code, around) = unsafe {
        (
            from_raw_parts(function.0 as *const u8, len),
            from_raw_parts(mapping.start.0 as *const u8, all),
        )
    };
    let entry = Entry {
        code,
        at: function,
        body_len: known_len.map(|known| (known as usize).min(len)),
    };
    let slot = hook.slot_at();
    let trampoline_at = slot.plus(RELAY);
    // Straight to the replacement, where the pad reaches it.
    let pad_to = match purpose {
        Purpose::Replace(replacement) if is_near(function, replacement) => replacement,
        _ => slot,
    };
    let plan = plan_entry(&entry, trampoline_at, pad_to).map_err(Refusal::Plan)?;
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
    let mut emitter = Emitter::new(&mut relay, slot);
    let mut pushed = 0;
    let emitted = match purpose {
        // Those have slots of another kind, made in `probe.rs`.
        Purpose::Probe(_) => return Err(Refusal::AlreadyHooked),
        Purpose::Replace(replacement) => emitter.jump(replacement),
        Purpose::Wrap(_) => {
            let (stub, record) = (stubs::entry_stub(), core::ptr::from_ref(hook) as u64);
            let emitted = emitter.push_from(emitter.jump_len(stub));
            pushed = emitter.len() as u8;
            emitted
                .and_then(|()| emitter.jump(stub))
                .and_then(|()| emitter.bytes(&record.to_le_bytes()))
        }
    };
    emitted.map_err(|_| Refusal::NoRoom)?;
    let relay_len = emitter.len();
    // SAFETY: a free slot of ours.
    unsafe {
        text.write(slot, &relay[..relay_len])
            .and_then(|()| text.write(trampoline_at, &plan.trampoline))
            .map_err(Refusal::NoMemoryFile)?;
    }
    let frames = Frames::of_slot(slot, RELAY, pushed, &plan, rules.as_ref());
    let name = unwinder::name_of(function).unwrap_or(b"function");
    hook.announcement.announce(&frames, slot, SLOT as u64, name);
    let change = Change {
        at: plan.pad_at(),
        len: PAD_LEN,
        reach: PAD_LEN.max(usize::from(plan.displaced_len)),
        before: plan.original,
        after: plan.pad,
    };
    Ok(Made {
        target: function,
        purpose,
        change,
        original: trampoline_at,
        plan: Some(plan),
    })
}
