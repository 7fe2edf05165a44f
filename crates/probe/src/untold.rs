//! *Which functions begin where neither symbols nor unwind rules tell of any?* — in a stripped file whose libraries were compiled without
//! unwind rules, as Debian's musl and much assembly are.
//!
//! What a direct `call` leads to begins a function, and so does what a jump out of a function leads to whose end is told. Only those are
//! followed that are code for certain: of functions that are told of, then the calls of what they lead to. Such a function is read up to the
//! first way out that no branch of its own leads beyond. What only pointers, or jumps between two of them, lead to is not found.

use crate::functions;
use pointee_meta::elf::Elf;
use pointee_model::addr::LinkAddr;
use pointee_patch::arch::x86_64::decode::Flow;
use pointee_patch::arch::x86_64::sweep::{branch_target, sweep};
use std::collections::BTreeSet;

/// The starts of functions of `elf`, as link-time addresses in order: those that symbols and unwind rules tell of, and those that are called.
#[must_use]
pub fn function_starts(elf: &Elf) -> Vec<u64> {
    let told = functions::find(elf).functions;
    let is_told = |address: u64| {
        let after = told.partition_point(|function| function.start <= address);
        after > 0 && address < told[after - 1].end
    };
    let mut untold = BTreeSet::new();
    let mut unread = Vec::new();
    let mut call = |target: u64, unread: &mut Vec<u64>| {
        if elf.is_code(target) && !is_told(target) && untold.insert(target) {
            unread.push(target);
        }
    };
    for function in &told {
        let len = function.end.saturating_sub(function.start) as usize;
        let code = elf.code_at(function.start, len).unwrap_or_default();
        for (at, instruction) in sweep(code, LinkAddr(function.start)) {
            if let (Flow::Call(_) | Flow::Jump(_), Some(target)) =
                (instruction.flow, branch_target(at, &instruction))
            {
                call(target.0, &mut unread);
            }
        }
    }
    while let Some(start) = unread.pop() {
        let next = told.partition_point(|function| function.start <= start);
        let end = told.get(next).map_or(u64::MAX, |function| function.start);
        let code = elf.mapped_code_from(start).unwrap_or_default();
        let mut furthest = start;
        for (at, instruction) in sweep(code, LinkAddr(start)) {
            if at.0 >= end {
                break;
            }
            let target = branch_target(at, &instruction).map(|target| target.0);
            match (instruction.flow, target) {
                (Flow::Call(_), Some(target)) => call(target, &mut unread),
                (Flow::ConditionalJump(_) | Flow::Loop(_), Some(target)) if target < end => {
                    furthest = furthest.max(target);
                }
                _ => {}
            }
            let is_way_out = matches!(
                instruction.flow,
                Flow::Jump(_) | Flow::IndirectJump | Flow::Return | Flow::Trap
            );
            if is_way_out && furthest <= at.0 {
                break;
            }
        }
    }
    let counted = told.iter().filter(|function| function.exclusion.is_none());
    untold.extend(counted.map(|function| function.start));
    untold.into_iter().collect()
}
