//! *For which blocks does a function make room on its stack while it runs?*
//!
//! `alloca` and arrays of variable length are no calls: the stack pointer goes down by a number of bytes, and
//! the block starts there, or a little above, where it is aligned. The site is the instruction that subtracts:
//!
//! ```text
//!   gcc     sub rsp, n                     lea p, [rsp+15] · and p, -16     (or shr p, 4 · shl p, 4)
//!   clang   mov p, rsp · sub p, n · mov rsp, p
//! ```

use super::calls::Key;
use super::flow::Interpreter;
use super::outcome::{Doubt, Met, Seen};
use super::state::{SP, State, dwarf, general};
use super::value::{OriginSet, Value, is_number};
use iced_x86::{Instruction, Mnemonic, OpKind};
use pointee_model::evidence::Witness;

/// What is said to be called.
pub(super) const ALLOCA: &str = "alloca";
/// The same, where debug info says that the block is a variable.
pub(super) const ARRAY: &str = "variable-length array";

/// Whether an instruction may move the stack pointer by a number that is not known before it runs.
pub(super) fn moves_stack(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Sub | Mnemonic::Mov)
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && general(instruction.op0_register()) == Some(SP)
        && instruction.op0_register().size() == 8
}

impl Interpreter<'_, '_> {
    /// A subtraction that makes room on the stack, if it is one.
    pub(super) fn make_room(&mut self, instruction: &Instruction, state: &mut State) -> bool {
        if !self.body.moves_stack
            || instruction.op0_kind() != OpKind::Register
            || instruction.op1_kind() != OpKind::Register
        {
            return false;
        }
        let Some(to) = general(instruction.op0_register()) else {
            return false;
        };
        let from_stack = match state.registers[to] {
            Value::Stack(_) => true,
            Value::Allocated { origins, .. } => self.is_carved(origins),
            _ => false,
        };
        let by = self.read(instruction, 1, state);
        let is_number = by.is_number() && !matches!(by, Value::Constant(_));
        if !from_stack || !is_number {
            return false;
        }
        // Without optimisation, what is asked for is rounded up by a division.
        let rounded = matches!(
            by,
            Value::Linear {
                from: 0,
                scale: 16,
                ..
            }
        );
        let by = if rounded { Value::Unknown } else { by };
        let at = instruction.ip();
        let origins = self.carved(at);
        state.registers[to] = Value::Allocated { origins, offset: 0 };
        if to == SP {
            self.rooms.insert(at);
        }
        if self.recording {
            let place = ALLOCA.to_owned();
            let met = Met::carved(at, instruction.next_ip(), place, by);
            self.outcome.met.push(met);
        }
        true
    }

    /// The stack pointer becomes a value: that of a block, if it is one.
    pub(super) fn set_stack(&mut self, value: Value) {
        if let Value::Allocated { origins, .. } = value {
            self.rooms.extend(self.origins.calls(origins));
        }
    }

    /// Aligning what was carved out, in one step or by shifting down and up again.
    pub(super) fn align(&self, mnemonic: Mnemonic, value: Value, by: Value) -> Option<Value> {
        let (Value::Allocated { origins, offset }, Value::Constant(by)) = (value, by) else {
            return None;
        };
        if !self.is_carved(origins) {
            return None;
        }
        let mask = match mnemonic {
            Mnemonic::And if (-4096..0).contains(&by) => by,
            Mnemonic::Shr | Mnemonic::Sar if (1..=12).contains(&by) => -1,
            Mnemonic::Shl | Mnemonic::Sal if (1..=12).contains(&by) => -1 << by,
            _ => return None,
        };
        let offset = if is_number(offset) {
            offset & mask
        } else {
            offset
        };
        Some(Value::Allocated { origins, offset })
    }

    /// The set of one block that no call hands out.
    pub(super) fn carved(&mut self, at: u64) -> OriginSet {
        self.carved.insert(at);
        self.origins.single(at)
    }

    pub(super) fn is_carved(&self, origins: OriginSet) -> bool {
        let calls = self.origins.calls(origins);
        !self.carved.is_empty() && calls.iter().all(|call| self.carved.contains(call))
    }

    /// The variables that blocks on the stack *are*, before the instruction at `at`.
    pub(super) fn observe_arrays(&mut self, state: &State, at: u64) {
        if self.rooms.is_empty() {
            return;
        }
        for (register, value) in state.registers.iter().enumerate() {
            if let Value::Allocated { origins, offset } = *value
                && is_number(offset)
                && self.is_carved(origins)
            {
                let hits = self.places.at_register(dwarf(register), offset, at);
                self.observe_array(origins, &hits, at);
            }
        }
        for (slot, value) in state.slots() {
            if let Some(origins) = Self::start_of(*value).filter(|it| self.is_carved(*it)) {
                let hits = self.places.behind_slot(*slot, at, |register| {
                    super::memory::frame_offset(state, register)
                });
                self.observe_array(origins, &hits, at);
            }
        }
    }

    fn observe_array(&mut self, origins: OriginSet, hits: &[super::places::Hit<'_>], at: u64) {
        for hit in hits {
            let Some(element) = self.types.open_element(hit.r#type) else {
                continue;
            };
            for call in self.origins.calls(origins).to_vec() {
                if self.seen.insert((call, hit.index, Doubt::None)) {
                    let seen = Seen::Elements(element);
                    self.note(call, Witness::Variable, seen, at, &hit.variable.name);
                }
            }
        }
    }

    /// Forgets what was subtracted from the stack pointer and never became it, and names what is an array.
    pub(super) fn settle_rooms(&mut self) {
        let rooms = &self.rooms;
        let is_room = |met: &Met| met.place.as_deref() != Some(ALLOCA) || rooms.contains(&met.call);
        self.outcome.met.retain(is_room);
        let observations = &self.outcome.observations;
        for met in &mut self.outcome.met {
            let is_array = met.callee == Key::Carved
                && observations
                    .iter()
                    .any(|seen| seen.call == met.call && matches!(seen.seen, Seen::Elements(_)));
            if is_array {
                met.place = Some(ARRAY.to_owned());
            }
        }
    }
}
