//! *How is one call hooked, and not the function?* By the four bytes of the instruction that say where it goes:
//!
//! ```text
//!   call rel32, jmp rel32        distance ──► relay in a slot: jmp hook
//!   call [rip+d], jmp [rip+d]    distance ──► cell in a slot, which holds the hook's address
//! ```
//!
//! No instruction moves and none changes its length, so no thread can stand in the middle of what is written. The
//! instruction's return address, registers and stack are as ever.

#![allow(unsafe_code)] // Reads and writes code.

use core::sync::atomic::{AtomicU64, Ordering::Release};

use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::decode::{Flow, Instruction, decode};
use pointee_patch::arch::x86_64::emit::{Emitter, distance};
use pointee_patch::arch::x86_64::{MAX_INSTRUCTION_LEN, PAD_LEN};

use crate::change::Change;
use crate::frames::Frames;
use crate::hook::{self, Hook, Installed, Made, Purpose, Slot};
use crate::island::{RELAY, SLOT};
use crate::maps::Maps;
use crate::refusal::Refusal;
use crate::stop::{self, Pause};
use crate::text::Text;

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
    let make = |hook: &mut Hook, text: &Text| make(hook, text, site, destination);
    let ready = |at: RunAddr| original.store(at.0, Release);
    hook::install(
        &mut held,
        site,
        Purpose::Replace(destination),
        Slot::Near(site),
        make,
        ready,
    )
}

fn make(
    hook: &mut Hook,
    text: &Text,
    site: RunAddr,
    destination: RunAddr,
) -> Result<Made, Refusal> {
    let mut maps = Maps::read().map_err(Refusal::NoMaps)?;
    let mapping = maps.find(site).filter(|mapping| mapping.executable);
    let mapping = mapping.ok_or(Refusal::NotCode)?;
    let len = (mapping.end.0 - site.0).min(MAX_INSTRUCTION_LEN as u64) as usize;
    // SAFETY: mapped and readable.
    let code = unsafe { core::slice::from_raw_parts(site.0 as *const u8, len) };
    let instruction = decode(code).map_err(|_| Refusal::NotACall)?;
    let slot = hook.slot_at();
    let (field, towards, original) = target(site, &instruction, slot)?;
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
    let end = site.plus(u64::from(instruction.len));
    let way = distance(end, towards).ok_or(Refusal::NoRoom)?;
    let mut change = Change {
        at: site.plus(u64::from(field)),
        len: 4,
        reach: 4,
        before: [0; PAD_LEN],
        after: [0; PAD_LEN],
    };
    let now = code.get(usize::from(field)..usize::from(field) + 4);
    change.before[..4].copy_from_slice(now.ok_or(Refusal::NotACall)?);
    change.after[..4].copy_from_slice(&way.to_le_bytes());
    let frames = Frames::of_relay(slot, RELAY);
    hook.announcement
        .announce(&frames, slot, SLOT as u64, b"call");
    Ok(Made {
        target: site,
        purpose: Purpose::Replace(destination),
        change,
        original,
        plan: None,
    })
}

/// Where the distance is stored in the instruction, what it is to lead to, and where the instruction goes now.
fn target(
    site: RunAddr,
    instruction: &Instruction,
    slot: RunAddr,
) -> Result<(u8, RunAddr, RunAddr), Refusal> {
    if instruction.prefixes.short_operand() {
        return Err(Refusal::NotACall);
    }
    match (
        instruction.flow,
        instruction.rip_relative,
        instruction.rip_offset(),
    ) {
        (Flow::Call(relative) | Flow::Jump(relative), ..) if relative.width == 4 => {
            let offset = instruction.target_offset().ok_or(Refusal::NotACall)?;
            Ok((relative.at, slot, site.plus(offset as u64)))
        }
        (Flow::IndirectCall | Flow::IndirectJump, Some(field), Some(offset))
            if !instruction.prefixes.address_size && instruction.prefixes.segment.is_none() =>
        {
            let cell = site.plus(offset as u64);
            // SAFETY: what the instruction itself reads.
            let now = unsafe { (cell.0 as *const u64).read_unaligned() };
            Ok((field, slot.plus(RELAY), RunAddr(now)))
        }
        _ => Err(Refusal::NotACall),
    }
}
