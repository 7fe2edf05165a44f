//! *Does a caller take the address that a call returns?*
//!
//! Who appends to a buffer by a function that hands out room in it, or tests only that there is room, has no use for the
//! address. The code behind the call is followed until the result's register is read or written.

use super::calls::{Body, contains};
use super::outcome::Met;
use crate::elf::Elf;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory};
use iced_x86::{OpAccess, Register};

/// Instructions followed on one way; what is not decided by then counts as taken.
const LONGEST: u32 = 24;
/// Conditional jumps of which both ways are followed.
const FORKS: u32 = 4;

/// Whether no way on from a call reads the result.
pub(super) fn is_dropped(elf: &Elf, body: &Body<'_>, met: &Met) -> bool {
    let returns_nothing = body
        .function
        .is_some_and(|function| function.result.is_none());
    if met.tail {
        return returns_nothing;
    }
    let mut way = Way {
        elf,
        body,
        returns_nothing,
        info: InstructionInfoFactory::new(),
    };
    way.drops(met.next, FORKS)
}

struct Way<'a, 'f> {
    elf: &'a Elf,
    body: &'a Body<'f>,
    returns_nothing: bool,
    info: InstructionInfoFactory,
}

impl Way<'_, '_> {
    fn drops(&mut self, mut at: u64, forks: u32) -> bool {
        let mut instruction = Instruction::default();
        for _ in 0..LONGEST {
            if !contains(&self.body.ranges, at) {
                return false;
            }
            let Some(code) = self.elf.code_at(at, 1).and(self.elf.bytes_from(at)) else {
                return false;
            };
            Decoder::with_ip(64, code, at, DecoderOptions::NONE).decode_out(&mut instruction);
            if instruction.is_invalid() {
                return false;
            }
            if let Some(is_read) = self.reads_result(&instruction) {
                return !is_read;
            }
            let target = instruction.near_branch_target();
            at = instruction.next_ip();
            match instruction.flow_control() {
                FlowControl::Next => {}
                // A call returns a result of its own.
                FlowControl::Call | FlowControl::IndirectCall => return true,
                FlowControl::Return => return self.returns_nothing,
                FlowControl::UnconditionalBranch if contains(&self.body.ranges, target) => {
                    at = target;
                }
                FlowControl::UnconditionalBranch => return true,
                FlowControl::ConditionalBranch => {
                    let Some(left) = forks.checked_sub(1) else {
                        return false;
                    };
                    if contains(&self.body.ranges, target) && !self.drops(target, left) {
                        return false;
                    }
                }
                _ => return false,
            }
        }
        false
    }

    /// Whether the result's register is read; `None` where the instruction leaves it alone.
    fn reads_result(&mut self, instruction: &Instruction) -> Option<bool> {
        // `xor eax, eax` reads nothing.
        let mut is_written = false;
        for used in self.info.info(instruction).used_registers() {
            if used.register().full_register() != Register::RAX {
                continue;
            }
            match used.access() {
                OpAccess::Write => is_written = true,
                OpAccess::None | OpAccess::NoMemAccess => {}
                _ => return Some(true),
            }
        }
        is_written.then_some(false)
    }
}
