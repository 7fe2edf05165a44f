//! *What is made for a hook at a function's entry?* The plan of `pointee-patch`, a relay and a trampoline, and what unwinders
//! and debuggers are told of them. Branches into the pad are looked for in all code of the same mapping.
//!
//! In a process with several threads, where the processor lets a byte of code change under them, the entry is changed by one byte if
//! the memory is free to which its code then leads; else by a jump of five, for which all threads stand still. What has no room
//! for five bytes is changed by one anyhow.

#![allow(unsafe_code)] // Reads and writes code.

use core::slice::from_raw_parts;
use core::sync::atomic::{AtomicU64, Ordering::Release};

use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::PAD_LEN;
use pointee_patch::arch::x86_64::emit::{Emitter, is_near};
use pointee_patch::{Entry, find_inward_branches, one_byte_jump, plan_entry, plan_one_byte};

use crate::change::{self, Change};
use crate::frames::Frames;
use crate::hook::{self, Hook, Installed, Made, Purpose, Slot};
use crate::island::RELAY;
use crate::lines::{Lines, What};
use crate::maps::{Maps, Range};
use crate::refusal::Refusal;
use crate::stop::{self, Exclusive, Pause};
use crate::stubs;
use crate::tasks;
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

/// The ways to change an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// A jump over the first five bytes.
    Pad,
    /// A single byte: no thread stands still for it, but it takes pages of its own.
    OneByte,
}

pub(crate) fn install(
    held: &mut Exclusive,
    function: RunAddr,
    purpose: Purpose,
    ready: impl Fn(RunAddr),
) -> Result<(Installed, Pause), Refusal> {
    let site = Site::at(function)?;
    let by = |held: &mut Exclusive, way: Way| {
        let slot = match way {
            Way::Pad => Slot::Near(function),
            Way::OneByte => Slot::At(one_byte_jump(site.bytes(), function).ok_or(Refusal::NoRoom)?),
        };
        let make = |hook: &mut Hook, text: &Text| make(hook, text, &site, purpose, way);
        hook::install(held, function, purpose, slot, make, &ready)
    };
    // Memory is kept together where nobody has to wait for it.
    let one_byte_first = change::single_bytes_may_change() && tasks::are_many();
    let ways = match one_byte_first {
        true => [Way::OneByte, Way::Pad],
        false => [Way::Pad, Way::OneByte],
    };
    let mut refused = None;
    for way in ways {
        match by(held, way) {
            Err(refusal @ (Refusal::Plan(_) | Refusal::NoRoom)) => {
                // What there is to say against five bytes tells more.
                if way == Way::Pad || refused.is_none() {
                    refused = Some(refusal);
                }
            }
            done => return done,
        }
    }
    Err(refused.unwrap_or(Refusal::NoRoom))
}

/// A function as it lies in memory.
struct Site {
    function: RunAddr,
    mapping: Range,
    rules: Option<unwinder::Rules>,
}

impl Site {
    fn at(function: RunAddr) -> Result<Self, Refusal> {
        let mut maps = Maps::read().map_err(Refusal::NoMaps)?;
        let mapping = maps.find(function).filter(|mapping| mapping.executable);
        Ok(Self {
            function,
            mapping: mapping.ok_or(Refusal::NotCode)?,
            rules: unwinder::rules_at(function).filter(|rules| rules.start == function),
        })
    }

    /// Its code, if its length is known, and what may be padding behind it.
    fn bytes(&self) -> &[u8] {
        let len = self.rules.as_ref().map_or(UNKNOWN_LEN, |rules| rules.len) + PADDING;
        let left = self.mapping.end.0 - self.function.0;
        // SAFETY: mapped and readable. Code is taken to stand still while nobody holds the lock.
        unsafe { from_raw_parts(self.function.0 as *const u8, len.min(left) as usize) }
    }

    /// All code of the mapping.
    fn around(&self) -> &[u8] {
        let all = (self.mapping.end.0 - self.mapping.start.0) as usize;
        // SAFETY: as above.
        unsafe { from_raw_parts(self.mapping.start.0 as *const u8, all) }
    }

    fn entry(&self) -> Entry<'_> {
        let code = self.bytes();
        let known_len = self.rules.as_ref().map(|rules| rules.len as usize);
        Entry {
            code,
            at: self.function,
            body_len: known_len.map(|known| known.min(code.len())),
        }
    }
}

/// Plans the hook and writes all but the pad.
fn make(
    hook: &mut Hook,
    text: &Text,
    site: &Site,
    purpose: Purpose,
    way: Way,
) -> Result<Made, Refusal> {
    let function = site.function;
    let slot = hook.slot_at();
    let trampoline_at = slot.plus(RELAY);
    let plan = match way {
        Way::OneByte => plan_one_byte(&site.entry(), trampoline_at),
        Way::Pad => {
            // Straight to the replacement, where the pad reaches it.
            let pad_to = match purpose {
                Purpose::Replace(replacement) if is_near(function, replacement) => replacement,
                _ => slot,
            };
            plan_entry(&site.entry(), trampoline_at, pad_to)
        }
    };
    let plan = plan.map_err(Refusal::Plan)?;
    if plan.looped {
        return Err(Refusal::Looped);
    }
    let is_entered = || {
        let spans = [plan.span()];
        let mut inward = find_inward_branches(site.around(), site.mapping.start, &spans);
        inward.next().is_some()
    };
    if way == Way::Pad && is_entered() {
        return Err(Refusal::Plan(pointee_patch::Refusal::InwardBranch));
    }
    let mut relay = [0; RELAY as usize];
    let mut emitter = Emitter::new(&mut relay, slot);
    let mut pushed = 0;
    let mut lines = Lines::none();
    let emitted = match purpose {
        // Those have slots of another kind, made in `probe.rs`.
        Purpose::Probe(_) | Purpose::Relay(_) => return Err(Refusal::AlreadyHooked),
        Purpose::Replace(replacement) => {
            lines.add(0, What::ToReplacement);
            let emitted = emitter.jump(replacement);
            lines.add(emitter.len(), What::Data);
            emitted
        }
        Purpose::Wrap(_) | Purpose::Callers(_) => {
            let (stub, record) = (stubs::entry_stub(), core::ptr::from_ref(hook) as u64);
            let emitted = emitter.push_from(emitter.jump_len(stub));
            pushed = emitter.len() as u8;
            lines.add(0, What::Push);
            lines.add(emitter.len(), What::ToStub);
            let emitted = emitted.and_then(|()| emitter.jump(stub));
            lines.add(emitter.len(), What::Data);
            emitted.and_then(|()| emitter.bytes(&record.to_le_bytes()))
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
    let frames = Frames::of_slot(slot, RELAY, pushed, &plan, site.rules.as_ref());
    let name = unwinder::name_of(function).unwrap_or(b"function");
    lines.trampoline(RELAY as usize, &plan);
    hook.announcement.announce(&frames, &lines, slot, name);
    let purpose = match purpose {
        Purpose::Callers(callers) => Purpose::Callers(callers.with_table()?),
        purpose => purpose,
    };
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
