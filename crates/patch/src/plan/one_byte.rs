//! *How is a function's entry changed by a single byte?* The first byte becomes that of a jump, and the four behind it, which stay what
//! they are, become its distance:
//!
//! ```text
//!   53             push rbx               e9 56 57 55 52   jmp +0x52555756
//!   56             push rsi        ─►        56            push rsi
//!   57 55 52       …                         57 55 52      …
//! ```
//!
//! Who stands behind the first instruction finds there what was there before, and a byte is never seen half written. So nobody has
//! to stand still for it, branches behind the first instruction are harmless, and a function may be shorter than a jump. The price:
//! where the jump arrives is not ours to choose. It is some place within 2 GiB, most of which is free memory in most processes.
//! For architectures whose instructions differ in length; where all have one, a whole one is written at once.
//! (Chamith and others, *Instruction punning*, PLDI 2017.)

use core::ops::Range;

use pointee_model::addr::RunAddr;

use super::{Entry, EntryPlan, Instruction, PAD_LEN, Pads, Refusal, pad_offset};
use crate::arch::Decoded;
use crate::arch::sweep::{branch_target, sweep};

/// The first byte of `jmp rel32`.
const JUMP: u8 = 0xe9;

/// Where the function's entry leads when its first byte becomes that of a jump. `code` may go on behind the function: what follows
/// it is read, and stays. `None` when that is no address of a program.
#[must_use]
pub fn one_byte_jump(code: &[u8], at: RunAddr) -> Option<RunAddr> {
    let pad_offset = pad_offset(code);
    let bytes = code.get(pad_offset..)?.first_chunk::<PAD_LEN>()?;
    let distance = i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
    let end = at.0.checked_add((pad_offset + PAD_LEN) as u64)?;
    let target = end.checked_add_signed(i64::from(distance))?;
    (target >> 47 == 0).then_some(RunAddr(target))
}

/// Plans to send the calls of a function to where [`one_byte_jump`] says, with a trampoline at `trampoline_at`. The bytes of
/// the plan's pad but the first are those of the function. `entry.code` may go on behind the function, whose length must be known.
///
/// # Errors
///
/// [`Refusal`]: the function is better left alone.
pub fn plan_one_byte(entry: &Entry<'_>, trampoline_at: RunAddr) -> Result<EntryPlan, Refusal> {
    let body = entry.code.get(..entry.body_len.unwrap_or(0));
    let body = body.ok_or(Refusal::NoInstruction)?;
    let offset = pad_offset(entry.code);
    let from_pad = body.get(offset..).ok_or(Refusal::TooShort)?;
    let first = Instruction::decoded(from_pad).ok_or(Refusal::Undecodable)?;
    if first.is_breakpoint() {
        return Err(Refusal::Breakpoint);
    }
    let displaced = &from_pad[..first.size()];
    let original = entry.code[offset..].first_chunk::<PAD_LEN>();
    let original = *original.ok_or(Refusal::TooShort)?;
    let mut pad = original;
    pad[0] = JUMP;
    let pads = Pads {
        offset: offset as u32, // at most that of an endbr64
        pad,
        original,
        looped: is_looped(body, entry.at, offset..offset + displaced.len())?,
    };
    pads.displace(entry.at, displaced, trampoline_at, true)
}

/// Whether a jump of the function's own goes to its start. Refused: one into the middle of its first instruction, which is at `first`.
fn is_looped(body: &[u8], at: RunAddr, first: Range<usize>) -> Result<bool, Refusal> {
    let mut looped = false;
    for (branch_at, instruction) in sweep::<_, Instruction>(body, at) {
        let Some(target) = branch_target(branch_at, &instruction) else {
            continue;
        };
        let into = target.0.wrapping_sub(at.0);
        let displaced = branch_at == at.plus(first.start as u64);
        if into == 0 || into == first.start as u64 {
            looped |= !displaced && !instruction.is_direct_call();
        } else if into < first.end as u64 {
            return Err(Refusal::InwardBranch);
        }
    }
    Ok(looped)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: RunAddr = RunAddr(0x5555_0000_0000);

    /// The first byte's new target counted from the entry, and the bytes that are displaced.
    fn check(code: &[u8], body_len: usize, expect: Result<(i64, u8), Refusal>) {
        let entry = Entry {
            code,
            at: AT,
            body_len: Some(body_len),
        };
        let target = one_byte_jump(code, AT).map_or(0, |to| to.0.wrapping_sub(AT.0) as i64);
        let trampoline = AT.plus(0x1000);
        let plan = plan_one_byte(&entry, trampoline);
        if let Ok(plan) = &plan {
            assert_eq!(plan.pad[1..], plan.original[1..]);
            assert_eq!(plan.pad[0], 0xe9);
        }
        assert_eq!(
            plan.map(|plan| (target, plan.displaced_len)),
            expect,
            "{code:x?}"
        );
    }

    #[test]
    fn rows() {
        let pushes = [0x53, 0x56, 0x57, 0x55, 0x52, 0x51, 0xc3];
        check(&pushes, 7, Ok((0x5255_5756 + 5, 1)));
        // endbr64 stays before it.
        let marked = [0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5, 0x00, 0xc3];
        check(&marked, 10, Ok((0x00e5_8948 + 9, 1)));
        // A function of one byte, with the next one behind it: xor eax, eax; ret.
        check(
            &[0xc3, 0x31, 0xc0, 0xc3, 0x90],
            1,
            Ok((-0x6f3c_3fcf + 5, 1)),
        );
        // A branch behind the first instruction is none of its business: push; nop; jmp to the nop.
        check(
            &[0x55, 0x90, 0xeb, 0xfd, 0x00, 0x00],
            4,
            Ok((0x00fd_eb90 + 5, 1)),
        );
        // One into its middle is: lock cmpxchg entered behind its prefix.
        let lock = [0xf0, 0x48, 0x0f, 0xb1, 0x0f, 0x75, 0xfa];
        check(&lock, 7, Err(Refusal::InwardBranch));
        check(&[0xcc, 0x90, 0x90, 0x90, 0x90], 5, Err(Refusal::Breakpoint));
        check(&[0x55, 0xc3], 2, Err(Refusal::TooShort));
    }

    #[test]
    fn a_loop_to_the_start_is_told() {
        // dec edi; jnz to the start; ret
        let code = [0xff, 0xcf, 0x75, 0xfc, 0xc3, 0x90];
        let entry = Entry {
            code: &code,
            at: AT,
            body_len: Some(5),
        };
        let plan = plan_one_byte(&entry, AT.plus(0x1000));
        assert!(plan.is_ok_and(|plan| plan.looped));
    }

    #[test]
    fn no_address_of_a_program() {
        let far_down = [0x55, 0, 0, 0, 0x80];
        assert_eq!(one_byte_jump(&far_down, RunAddr(0x40_0000)), None);
        assert_eq!(one_byte_jump(&far_down[..4], AT), None);
    }
}
