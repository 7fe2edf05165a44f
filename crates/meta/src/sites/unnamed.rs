//! *What are the functions of code that no symbol and no debug info names?*
//!
//! Every function that may be unwound through has an entry in `.eh_frame` with its first address
//! and length (LSB Core, §10.6; kept by `strip`). Where debug info says nothing of a function's
//! result, its callers do: a result that nobody reads is none.

use super::calls::{Key, Program, contains};
use super::state::{RESULT, general};
use crate::elf::Elf;
use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection};
use iced_x86::{Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, OpAccess};
use rayon::prelude::*;
use std::collections::HashSet;

/// Instructions after a call within which compiled code takes up its result.
const SOON: usize = 12;
/// Bytes of that many instructions, by the longest encoding.
const SOON_BYTES: usize = SOON * 15;

/// The functions `[start, end)` that unwind tables state, in order, none overlapping another.
pub(super) fn functions(elf: &Elf) -> Vec<(u64, u64)> {
    let all = unwound(elf).into_iter();
    all.map(|(start, end, _)| (start, end)).collect()
}

/// The same, and whether exceptions may be caught in each.
pub(super) fn unwound(elf: &Elf) -> Vec<(u64, u64, bool)> {
    let Some(address) = elf.section(".eh_frame").map(|section| section.address) else {
        return Vec::new();
    };
    let Ok(Some(bytes)) = elf.section_bytes(".eh_frame") else {
        return Vec::new();
    };
    let frames = EhFrame::new(&bytes, LittleEndian);
    let mut bases = BaseAddresses::default().set_eh_frame(address);
    for (name, set) in [
        (".text", BaseAddresses::set_text as fn(_, u64) -> _),
        (".got", BaseAddresses::set_got),
    ] {
        if let Some(section) = elf.section(name) {
            bases = set(bases, section.address);
        }
    }
    let mut found: Vec<(u64, u64, bool)> = Vec::new();
    let mut entries = frames.entries(&bases);
    // What follows a damaged entry is not told from it.
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else {
            continue;
        };
        // What signal handlers return to is no function, and its entry starts a byte early.
        if let Ok(fde) = partial.parse(EhFrame::cie_from_offset)
            && !fde.is_signal_trampoline()
        {
            let start = fde.initial_address();
            let catches = fde.lsda().is_some();
            found.push((start, start.saturating_add(fde.len()), catches));
        }
    }
    // One entry covers a whole linkage table.
    let tables: Vec<(u64, u64)> = elf
        .sections()
        .iter()
        .filter(|section| section.name.starts_with(".plt"))
        .map(|section| {
            (
                section.address,
                section.address.saturating_add(section.size),
            )
        })
        .collect();
    found
        .retain(|(start, end, _)| start < end && elf.is_code(*start) && !contains(&tables, *start));
    found.sort_unstable();
    found.dedup_by_key(|(start, ..)| *start);
    for at in 1..found.len() {
        let next = found[at].0;
        found[at - 1].1 = found[at - 1].1.min(next);
    }
    found
}

/// The functions without debug info whose callers are seen not to read their result.
pub(super) fn unread_results(program: &Program<'_>) -> HashSet<u32> {
    let calls: Vec<(u32, bool)> = program
        .bodies
        .par_iter()
        .flat_map_iter(|body| &body.calls)
        .filter_map(|call| match call.callee {
            Key::Local(at) if program.bodies[at as usize].function.is_none() => {
                Some((at, reads_result(program.elf, call.address)?))
            }
            _ => None,
        })
        .collect();
    let of_calls = |wanted: bool| {
        let calls = calls.iter().filter(move |(_, read)| *read == wanted);
        calls.map(|(at, _)| *at).collect::<HashSet<u32>>()
    };
    let read = of_calls(true);
    let mut unread = of_calls(false);
    unread.retain(|at| !read.contains(at));
    unread
}

/// Whether the code after the call at `address` reads the result before it is overwritten; `None` for
/// a tail jump, whose result is that of the function it leaves.
fn reads_result(elf: &Elf, address: u64) -> Option<bool> {
    let code = elf.bytes_from(address)?;
    let code = &code[..code.len().min(SOON_BYTES)];
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let call = decoder.decode();
    if call.flow_control() != FlowControl::Call {
        return None;
    }
    let mut info = InstructionInfoFactory::new();
    for instruction in decoder.iter().take(SOON) {
        let mut written = false;
        for used in info.info(&instruction).used_registers() {
            if general(used.register()) != Some(RESULT) {
                continue;
            }
            match used.access() {
                OpAccess::Read | OpAccess::ReadWrite | OpAccess::ReadCondWrite
                    if used.register().size() == 8 =>
                {
                    return Some(true);
                }
                OpAccess::Write => written = true,
                _ => {}
            }
        }
        if written
            || !matches!(
                instruction.flow_control(),
                FlowControl::Next | FlowControl::ConditionalBranch
            )
        {
            return Some(false);
        }
    }
    Some(false)
}
