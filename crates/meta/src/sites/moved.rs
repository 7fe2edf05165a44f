//! *Where did a call stand that a compiler has moved?*
//!
//! Code that is made of two pieces, or moved before a branch, has no line any more (line 0: DWARF 5, §6.2.2) and lies in no
//! inlined function. What runs straight into it mostly was left in place: the code that computes how many bytes to ask for.

use super::calls::{Body, Program};
use super::guards::falls_through;
use crate::facts::Facts;
use iced_x86::{Decoder, DecoderOptions};

/// Rows of the line table that are looked at before the call.
const ROWS: usize = 8;
/// What every allocation of Rust's library calls first, and which does nothing.
const SHIM: &str = "__rust_no_alloc_shim";

/// The nearest address, of those that pass a test, in the code that runs straight into the call at `call`, which has no line.
pub(super) fn straight_before(
    program: &Program<'_>,
    facts: &Facts,
    body: &Body<'_>,
    call: u64,
    passes: impl Fn(u64) -> bool,
) -> Option<u64> {
    let after = facts.lines.partition_point(|row| row.address <= call);
    let (own, before) = facts.lines[..after].split_last()?;
    if own.line != 0 {
        return None;
    }
    let mut end = own.address;
    for row in before.iter().rev().take(ROWS) {
        row.file?;
        if !runs_to(program, body, row.address, call) {
            return None;
        }
        if row.address < end && passes(end - 1) {
            return Some(end - 1);
        }
        end = row.address;
    }
    None
}

/// Whether what starts at `start` comes to `end` without being led elsewhere for certain, and calls nothing that matters.
fn runs_to(program: &Program<'_>, body: &Body<'_>, start: u64, end: u64) -> bool {
    let len = end
        .checked_sub(start)
        .and_then(|len| usize::try_from(len).ok());
    let Some(code) = len.and_then(|len| program.elf.code_at(start, len)) else {
        return false;
    };
    let is_straight = Decoder::with_ip(64, code, start, DecoderOptions::NONE)
        .iter()
        .all(|instruction| falls_through(&instruction));
    let mut calls = body.calls.iter();
    is_straight
        && calls.all(|call| {
            !(start..end).contains(&call.address) || program.name(call.callee).contains(SHIM)
        })
}
