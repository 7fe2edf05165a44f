//! *How is one call hooked, and not the function?* By the four bytes of the instruction that say where it goes:
//!
//! ```text
//!   call rel32, jmp rel32        distance ──► relay in a slot: jmp hook
//!   call [rip+d], jmp [rip+d]    distance ──► cell in a slot, which holds the hook's address
//! ```
//!
//! No instruction moves and none changes its length, so no thread can stand in the middle of what is written. The
//! instruction's return address, registers and stack are as ever. With several threads the slot lies a multiple of 2²⁴ from where the
//! instruction went, if there is free memory: then one byte of the distance changes, and nobody stands still for it (`change.rs`).

#![allow(unsafe_code)] // Reads and writes code.

use core::sync::atomic::{AtomicU64, Ordering::Release};

use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::decode::{Flow, Instruction, decode};
use pointee_patch::arch::x86_64::emit::{Emitter, distance};
use pointee_patch::arch::x86_64::{MAX_INSTRUCTION_LEN, PAD_LEN};

use crate::change::{self, Change};
use crate::frames::Frames;
use crate::hook::{self, Hook, Installed, Made, Purpose, Slot};
use crate::island::RELAY;
use crate::lines::{Lines, What};
use crate::maps::Maps;
use crate::refusal::Refusal;
use crate::stop::{self, Pause};
use crate::tasks;
use crate::text::Text;

/// How many multiples of 2²⁴ are tried, up and down.
const STEPS: i32 = 16;

/// Has the call or jump at `site` go to `destination`. Before it first does, `original` holds where it went.
///
/// # Errors
///
/// [`Refusal::NotACall`] for any other instruction; [`Refusal`]: nothing has changed.
///
/// # Safety
/// An instruction begins at `site`, and `destination` takes and returns what it called.
pub unsafe fn redirect(
    site: RunAddr,
    destination: RunAddr,
    original: &AtomicU64,
) -> Result<(Installed, Pause), Refusal> {
    let mut held = stop::exclusive();
    let reference = Reference::at(site)?;
    let far = (change::single_bytes_may_change() && tasks::are_many())
        .then(|| reference.slots_for_one_byte())
        .into_iter()
        .flatten();
    let mut last = Refusal::NoRoom;
    for slot in far.map(Slot::At).chain([Slot::Near(site)]) {
        let make = |hook: &mut Hook, text: &Text| make(hook, text, &reference, destination);
        let ready = |at: RunAddr| original.store(at.0, Release);
        let purpose = Purpose::Replace(destination);
        match hook::install(&mut held, site, purpose, slot, make, ready) {
            Err(Refusal::NoRoom) => last = Refusal::NoRoom,
            done => return done,
        }
    }
    Err(last)
}

/// An instruction that goes to, or through, something at a distance.
struct Reference {
    site: RunAddr,
    len: u8,
    /// Where in it the distance stands.
    field: u8,
    distance: i32,
    /// What is at that distance is a cell that holds the address.
    through_cell: bool,
}

impl Reference {
    fn at(site: RunAddr) -> Result<Self, Refusal> {
        let mut maps = Maps::read().map_err(Refusal::NoMaps)?;
        let mapping = maps.find(site).filter(|mapping| mapping.executable);
        let mapping = mapping.ok_or(Refusal::NotCode)?;
        let len = (mapping.end.0 - site.0).min(MAX_INSTRUCTION_LEN as u64) as usize;
        // SAFETY: mapped and readable.
        let code = unsafe { core::slice::from_raw_parts(site.0 as *const u8, len) };
        let instruction = decode(code).map_err(|_| Refusal::NotACall)?;
        let (field, through_cell) = field_of(&instruction).ok_or(Refusal::NotACall)?;
        let bytes = code
            .get(usize::from(field)..)
            .and_then(|at| at.first_chunk());
        Ok(Self {
            site,
            len: instruction.len,
            field,
            distance: i32::from_le_bytes(*bytes.ok_or(Refusal::NotACall)?),
            through_cell,
        })
    }

    fn end(&self) -> RunAddr {
        self.site.plus(u64::from(self.len))
    }

    /// What it refers to: a function, or the cell.
    fn target(&self) -> RunAddr {
        RunAddr(self.end().0.wrapping_add_signed(i64::from(self.distance)))
    }

    /// What it would refer to in a slot at `slot`.
    fn target_in(&self, slot: RunAddr) -> RunAddr {
        slot.plus(if self.through_cell { RELAY } else { 0 })
    }

    /// Where a slot would have to lie, so that one byte of the distance changes.
    fn slots_for_one_byte(&self) -> impl Iterator<Item = RunAddr> {
        let into = self.target_in(RunAddr(0)).0;
        let steps = (1..=STEPS).flat_map(|step| [step << 24, -(step << 24)]);
        let near = steps.filter(|step| self.distance.checked_add(*step).is_some());
        near.filter_map(move |step| {
            let at = self.target().0.checked_add_signed(i64::from(step))?;
            at.checked_sub(into).map(RunAddr)
        })
    }
}

/// Where the distance stands in the instruction, and whether it is that of a cell.
fn field_of(instruction: &Instruction) -> Option<(u8, bool)> {
    let prefixes = &instruction.prefixes;
    if prefixes.short_operand() {
        return None;
    }
    match (instruction.flow, instruction.rip_relative) {
        (Flow::Call(relative) | Flow::Jump(relative), _) if relative.width == 4 => {
            Some((relative.at, false))
        }
        (Flow::IndirectCall | Flow::IndirectJump, Some(field))
            if !prefixes.address_size && prefixes.segment.is_none() =>
        {
            Some((field, true))
        }
        _ => None,
    }
}

fn make(
    hook: &mut Hook,
    text: &Text,
    reference: &Reference,
    destination: RunAddr,
) -> Result<Made, Refusal> {
    let site = reference.site;
    let slot = hook.slot_at();
    let mut relay = [0; RELAY as usize];
    let mut emitter = Emitter::new(&mut relay, slot);
    emitter.jump(destination).map_err(|_| Refusal::NoRoom)?;
    let relay_len = emitter.len();
    // SAFETY: a free slot of ours.
    unsafe {
        text.write(slot, &relay[..relay_len])
            .and_then(|()| text.write(slot.plus(RELAY), &destination.0.to_le_bytes()))
            .map_err(Refusal::NoMemoryFile)?;
    }
    let target = reference.target_in(slot);
    let way = distance(reference.end(), target).ok_or(Refusal::NoRoom)?;
    let mut change = Change {
        at: site.plus(u64::from(reference.field)),
        len: 4,
        reach: 4,
        before: [0; PAD_LEN],
        after: [0; PAD_LEN],
    };
    change.before[..4].copy_from_slice(&reference.distance.to_le_bytes());
    change.after[..4].copy_from_slice(&way.to_le_bytes());
    let frames = Frames::of_relay(slot, RELAY);
    let lines = Lines::all(What::ToReplacement, relay_len as u64);
    hook.announcement.announce(&frames, &lines, slot, b"call");
    let original = match reference.through_cell {
        // SAFETY: what the instruction itself reads.
        true => RunAddr(unsafe { (reference.target().0 as *const u64).read_unaligned() }),
        false => reference.target(),
    };
    Ok(Made {
        target: site,
        purpose: Purpose::Replace(destination),
        change,
        original,
        plan: None,
    })
}
