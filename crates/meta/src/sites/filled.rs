//! *Which functions hand out what another has put into what it returned?*
//!
//! ```text
//!   maker:  object->bytes = get(n);  …  return object;
//!   taker:  object = maker(n);  …  return object->bytes;
//! ```
//!
//! Perl's modules get room for their variables so: it is the text of a scalar that is made for nothing else. Where nothing types the
//! block in its maker, and it is of a size that the maker is given, it is its callers' if there is a taker; what the taker hands out is its own
//! callers'. Asked of code without debug info only: elsewhere the member says of which type the block is.
//!
//! Both shapes are told from the code straight ahead, conditional jumps not taken, by which registers hold the object and the member.

use super::allocators::{Allocator, Allocators};
use super::calls::{Body, Call, Key, Program, contains};
use super::handing::rule_of;
use super::model::{Makes, RETURN_FIRST, Size};
use super::outcome::{Met, Outcome, Seen};
use super::state::{ARGUMENTS, CALLER_SAVED, RESULT, general};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory};
use iced_x86::{Mnemonic, OpAccess, OpKind, Register};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};

/// Instructions followed.
const LONGEST: u32 = 40;

/// What a register holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    Object,
    Member,
}

/// The makers that have a taker and are not known yet, with what their callers get.
pub(super) fn makers<'o>(
    program: &Program<'_>,
    allocators: &Allocators<'_>,
    outcomes: impl Iterator<Item = (u32, &'o Outcome)>,
) -> Vec<(u32, Allocator)> {
    let fills = outcomes.filter_map(|(at, outcome)| {
        let is_known = allocators.get(Key::Local(at)).is_some();
        let mut met = outcome.met.iter().filter(|_| !is_known);
        met.find_map(|met| {
            let mut filled = outcome.filled.iter();
            let (_, member) = filled.find(|(call, _)| *call == met.call)?;
            let size = rule_of(met.size);
            let mut seen = outcome.observations.iter();
            let is_typed = seen.any(|seen| {
                seen.call == met.call && matches!(seen.seen, Seen::Types(_) | Seen::Elements(_))
            });
            let maker = Allocator {
                member: Some(*member),
                returns_it: false,
                ..Allocator::of(size, Makes::Whatever)
            };
            (size != Size::Unknown && !is_typed).then_some((at, maker))
        })
    });
    let mut found: HashMap<u32, Allocator> = fills.collect();
    if found.is_empty() {
        return Vec::new();
    }
    let maker = |call: &Call| match call.callee {
        Key::Local(at) => Some((at, found.get(&at)?.member?)),
        _ => None,
    };
    let bodies = program.bodies.par_iter();
    let taken: HashSet<u32> = bodies
        .flat_map_iter(|body| body.calls.iter().map(move |call| (body, call)))
        .filter_map(|(body, call)| {
            let (at, member) = maker(call)?;
            takes(program, body, next(program, call.address)?, member).then_some(at)
        })
        .collect();
    found.retain(|at, _| taken.contains(at));
    found.into_iter().collect()
}

/// What callers get of a function that returns the member into which a maker has put a block that it was asked for by `met`.
pub(super) fn taken(
    program: &Program<'_>,
    body: &Body<'_>,
    met: &Met,
    member: i64,
) -> Option<Allocator> {
    let size = rule_of(met.size);
    (size != Size::Unknown && takes(program, body, met.next, member))
        .then(|| Allocator::of(size, Makes::Whatever))
}

/// Whether the code from `at` on returns what `object` holds.
pub(super) fn is_returned(program: &Program<'_>, body: &Body<'_>, at: u64, object: usize) -> bool {
    result(program, body, at, object, None) == Some(Holds::Object)
}

/// Whether the code from `at` on, behind a call, returns a member of what was called for.
fn takes(program: &Program<'_>, body: &Body<'_>, at: u64, member: i64) -> bool {
    body.function.is_none()
        && result(program, body, at, RESULT, Some(member)) == Some(Holds::Member)
}

/// What the code from `at` on returns, where `object` holds the object.
fn result(
    program: &Program<'_>,
    body: &Body<'_>,
    mut at: u64,
    object: usize,
    member: Option<i64>,
) -> Option<Holds> {
    let mut info = InstructionInfoFactory::new();
    let mut holds = [None; 16];
    holds[object & 15] = Some(Holds::Object);
    for _ in 0..LONGEST {
        let instruction = decoded(program, at).filter(|_| contains(&body.ranges, at))?;
        let target = instruction.near_branch_target();
        at = instruction.next_ip();
        match instruction.flow_control() {
            FlowControl::Return => return holds[RESULT],
            FlowControl::Call | FlowControl::IndirectCall => {
                let result = after_call(program, body, &instruction, &holds)?;
                CALLER_SAVED.iter().for_each(|it| holds[*it] = None);
                holds[RESULT] = result;
            }
            FlowControl::UnconditionalBranch if contains(&body.ranges, target) => at = target,
            FlowControl::UnconditionalBranch => {
                return after_call(program, body, &instruction, &holds)?;
            }
            FlowControl::ConditionalBranch => {}
            FlowControl::Next => {
                let read = copied(&instruction, &holds, member);
                for used in info.info(&instruction).used_registers() {
                    let reads = matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
                    if let (false, Some(register)) = (reads, general(used.register())) {
                        holds[register] = None;
                    }
                }
                if let Some((register, what)) = read {
                    holds[register] = Some(what);
                }
            }
            _ => return None,
        }
    }
    None
}

/// What a call gives; `None` if it does not come back.
fn after_call(
    program: &Program<'_>,
    body: &Body<'_>,
    call: &Instruction,
    holds: &[Option<Holds>; 16],
) -> Option<Option<Holds>> {
    let calls = &body.calls;
    let at = calls.binary_search_by_key(&call.ip(), |call| call.address);
    let Ok(callee) = at.map(|at| calls[at].callee) else {
        return Some(None);
    };
    let first = RETURN_FIRST.contains(&program.name(callee));
    let result = holds[ARGUMENTS[0]].filter(|_| first);
    program.returns(callee).then_some(result)
}

/// The register that an instruction copies the object or its member to.
fn copied(
    instruction: &Instruction,
    holds: &[Option<Holds>; 16],
    member: Option<i64>,
) -> Option<(usize, Holds)> {
    if instruction.mnemonic() != Mnemonic::Mov || instruction.op0_kind() != OpKind::Register {
        return None;
    }
    let to =
        general(instruction.op0_register()).filter(|_| instruction.op0_register().size() == 8)?;
    let what = match instruction.op1_kind() {
        OpKind::Register => holds[general(instruction.op1_register())?]?,
        OpKind::Memory => {
            let base = general(instruction.memory_base())?;
            let is_member = holds[base] == Some(Holds::Object)
                && instruction.memory_index() == Register::None
                && member == Some(instruction.memory_displacement64() as i64);
            is_member.then_some(Holds::Member)?
        }
        _ => return None,
    };
    Some((to, what))
}

/// The address behind the instruction at `at`.
fn next(program: &Program<'_>, at: u64) -> Option<u64> {
    decoded(program, at).map(|instruction| instruction.next_ip())
}

fn decoded(program: &Program<'_>, at: u64) -> Option<Instruction> {
    let code = program.elf.code_at(at, 1).and(program.elf.bytes_from(at))?;
    let mut instruction = Decoder::with_ip(64, code, at, DecoderOptions::NONE).decode();
    program.elf.meant(&mut instruction);
    (!instruction.is_invalid()).then_some(instruction)
}
