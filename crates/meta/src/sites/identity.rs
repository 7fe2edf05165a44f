//! *Which argument does a small function return unchanged?*
//!
//! Checked allocators are often written as `return check(malloc(n))`. The answer is read from the
//! code in one straight pass: moves between registers are followed, everything else destroys.

use super::calls::{Body, each_instruction};
use super::state::{ARGUMENTS, CALLER_SAVED, RESULT, general};
use crate::elf::Elf;
use iced_x86::{FlowControl, InstructionInfoFactory, Mnemonic, OpAccess, OpKind};

/// Bytes of code up to which a function counts as small.
const SMALL: u64 = 160;

/// The argument register, counted from 0, that every return of `body` hands back.
pub(super) fn returned_argument(elf: &Elf, body: &Body<'_>) -> Option<u8> {
    let [(start, end)] = body.ranges[..] else {
        return None;
    };
    if end.saturating_sub(start) > SMALL {
        return None;
    }
    let mut holds: [Option<u8>; 16] = [None; 16];
    for (index, register) in (0..).zip(ARGUMENTS) {
        holds[register] = Some(index);
    }
    let mut returned: Vec<Option<u8>> = Vec::new();
    let mut info = InstructionInfoFactory::new();
    each_instruction(elf, body, |instruction| {
        let registers = instruction.op0_kind() == OpKind::Register
            && instruction.op_count() > 1
            && instruction.op1_kind() == OpKind::Register;
        match (instruction.mnemonic(), instruction.flow_control()) {
            (_, FlowControl::Return) => returned.push(holds[RESULT]),
            (_, FlowControl::Call | FlowControl::IndirectCall) => {
                CALLER_SAVED.iter().for_each(|it| holds[*it] = None);
            }
            (_, FlowControl::UnconditionalBranch)
                if !(start..end).contains(&instruction.near_branch_target()) =>
            {
                returned.push(None);
            }
            (_, FlowControl::IndirectBranch) => returned.push(None),
            (Mnemonic::Mov, _) if registers => {
                let from = general(instruction.op1_register());
                let whole = instruction.op0_register().size() == 8;
                if let Some(to) = general(instruction.op0_register()) {
                    holds[to] = from.filter(|_| whole).and_then(|from| holds[from]);
                }
            }
            _ => {
                for used in info.info(instruction).used_registers() {
                    let reads = matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
                    if let (false, Some(register)) = (reads, general(used.register())) {
                        holds[register] = None;
                    }
                }
            }
        }
    });
    let first = *returned.first()?;
    returned.iter().all(|one| *one == first).then_some(first)?
}
