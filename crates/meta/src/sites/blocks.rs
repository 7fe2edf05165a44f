//! *Which runs of one function's instructions are entered at their start only?*
//!
//! Code that nothing is seen to lead to starts a block too: the target of a jump table, or a landing pad. What a call that does
//! not come back leaves behind it is not run into.

use super::calls::contains;
use super::flow::Interpreter;
use iced_x86::{FlowControl, Instruction, Mnemonic};
use std::collections::BTreeSet;

impl Interpreter<'_, '_> {
    /// Splits the code into blocks; says of each whether anything is seen to lead to it.
    pub(super) fn find_blocks(&mut self) -> Vec<bool> {
        let mut starts = BTreeSet::new();
        let mut reached = BTreeSet::new();
        starts.insert(self.body.entry);
        let mut fallen_into = false;
        for (at, instruction) in self.code.iter().enumerate() {
            let after = instruction.next_ip();
            let padding = is_padding(instruction);
            if !fallen_into && !padding {
                starts.insert(instruction.ip());
                fallen_into = true;
            }
            let next_here = self.code.get(at + 1).is_some_and(|next| next.ip() == after);
            match instruction.flow_control() {
                FlowControl::ConditionalBranch
                | FlowControl::UnconditionalBranch
                | FlowControl::XbeginXabortXend => {
                    let target = instruction.near_branch_target();
                    if contains(&self.body.ranges, target) {
                        starts.insert(target);
                        reached.insert(target);
                    }
                    if instruction.flow_control() == FlowControl::UnconditionalBranch {
                        fallen_into = false;
                    } else if next_here {
                        starts.insert(after);
                        reached.insert(after);
                    }
                }
                FlowControl::Return
                | FlowControl::IndirectBranch
                | FlowControl::Interrupt
                | FlowControl::Exception => fallen_into = false,
                FlowControl::Call if !self.comes_back(instruction) => fallen_into = false,
                _ => {
                    if self
                        .code
                        .get(at + 1)
                        .is_some_and(|next| starts.contains(&next.ip()))
                    {
                        reached.insert(after);
                    }
                }
            }
            fallen_into &= next_here;
        }
        self.starts = starts.into_iter().collect();
        // A block that the one before it runs into is reached as well.
        self.starts
            .iter()
            .map(|start| reached.contains(start) || self.runs_into(*start))
            .collect()
    }

    fn runs_into(&self, start: u64) -> bool {
        let at = self
            .code
            .partition_point(|instruction| instruction.ip() < start);
        at.checked_sub(1)
            .and_then(|before| self.code.get(before))
            .is_some_and(|before| {
                before.next_ip() == start
                    && !is_padding(before)
                    && match before.flow_control() {
                        FlowControl::Next | FlowControl::IndirectCall => true,
                        FlowControl::Call => self.comes_back(before),
                        _ => false,
                    }
            })
    }

    fn comes_back(&self, call: &Instruction) -> bool {
        self.callee_at(call.ip())
            .is_none_or(|callee| self.program.returns(callee))
    }

    pub(super) fn has_call(&self, block: usize) -> bool {
        let (start, calls) = (self.starts[block], &self.body.calls);
        let next = calls.partition_point(|call| call.address < start);
        let end = self.starts.get(block + 1).copied().unwrap_or(u64::MAX);
        calls.get(next).is_some_and(|call| call.address < end)
    }

    pub(super) fn block_at(&self, address: u64) -> Option<usize> {
        self.starts.binary_search(&address).ok()
    }
}

fn is_padding(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3)
}
