//! *What is known of the machine at one point of a function?*
//!
//! General registers by their encoding number (0 rax, 1 rcx, 2 rdx, 3 rbx, 4 rsp, 5 rbp, 6 rsi,
//! 7 rdi, 8–15), both quadwords of the vector registers (compilers store pointers in pairs), and
//! stack slots of eight bytes by their offset from the canonical frame address. A slot that is
//! absent is unknown.

use super::value::{Origins, Value, join};
use iced_x86::Register;
use pointee_model::image::TypeIndex;

/// rsp.
pub(super) const SP: usize = 4;
/// rax, where results are.
pub(super) const RESULT: usize = 0;
/// The registers of the first six integer arguments (System V ABI for x86-64, §3.2.3).
pub(super) const ARGUMENTS: [usize; 6] = [7, 6, 2, 1, 8, 9];
/// The registers a call may change.
const CALLER_SAVED: [usize; 9] = [0, 1, 2, 6, 7, 8, 9, 10, 11];
/// Encoding number → DWARF number (ABI §3.6.2, figure 3.36).
const DWARF: [usize; 16] = [0, 2, 1, 3, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];

/// The DWARF number of a register.
pub(super) fn dwarf(register: usize) -> usize {
    DWARF[register & 15]
}

/// The register of a DWARF number.
pub(super) fn from_dwarf(number: u16) -> Option<usize> {
    DWARF.iter().position(|known| *known == usize::from(number))
}

/// The number of a general register of any width.
pub(super) fn general(register: Register) -> Option<usize> {
    register
        .is_gpr()
        .then(|| register.full_register().number())
        .filter(|number| *number < 16)
}

/// The number of a vector register.
pub(super) fn vector(register: Register) -> Option<usize> {
    register
        .is_vector_register()
        .then(|| register.number())
        .filter(|number| *number < 16)
}

/// What is known at one point.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) registers: [Value; 16],
    vectors: [[Value; 2]; 16],
    /// Whether anything was put into a vector register since all became unknown.
    vectors_known: bool,
    slots: Vec<(i64, Value)>,
}

/// Slots tracked in one state; more are forgotten.
const SLOTS: usize = 512;

impl State {
    /// At the entry of a function: the return address lies below the canonical frame address.
    pub(super) fn at_entry() -> Self {
        let mut state = Self {
            registers: [Value::Unknown; 16],
            vectors: [[Value::Unknown; 2]; 16],
            vectors_known: false,
            slots: Vec::new(),
        };
        state.registers[SP] = Value::Stack(-8);
        state
    }

    pub(super) fn slot(&self, at: i64) -> Value {
        self.slots
            .binary_search_by_key(&at, |(slot, _)| *slot)
            .map_or(Value::Unknown, |found| self.slots[found].1)
    }

    pub(super) fn slots(&self) -> &[(i64, Value)] {
        &self.slots
    }

    /// Writes `size` bytes at `at`; slots that the write touches in part become unknown.
    pub(super) fn set_slot(&mut self, at: i64, size: usize, value: Value) {
        let end = at.saturating_add(size as i64);
        let first = self
            .slots
            .partition_point(|(slot, _)| slot.saturating_add(8) <= at);
        let last = first + self.slots[first..].partition_point(|(slot, _)| *slot < end);
        self.slots.drain(first..last);
        if value != Value::Unknown && self.slots.len() < SLOTS {
            self.slots.insert(first, (at, value));
        }
    }

    /// Puts another value wherever one is.
    pub(super) fn replace(&mut self, old: Value, new: Value) {
        let slots = self.slots.iter_mut().map(|(_, value)| value);
        for value in self.registers.iter_mut().chain(slots) {
            if *value == old {
                *value = new;
            }
        }
    }

    /// What a call leaves.
    pub(super) fn after_call(&mut self) {
        for register in CALLER_SAVED {
            self.registers[register] = Value::Unknown;
        }
        if self.vectors_known {
            self.vectors = [[Value::Unknown; 2]; 16];
            self.vectors_known = false;
        }
    }

    /// Both quadwords of a vector register.
    pub(super) fn vector(&self, number: usize) -> [Value; 2] {
        self.vectors[number & 15]
    }

    /// Writes both quadwords of a vector register.
    pub(super) fn set_vector(&mut self, number: usize, pair: [Value; 2]) {
        self.vectors_known |= pair != [Value::Unknown; 2];
        self.vectors[number & 15] = pair;
    }

    /// Merges what another path brings; says whether anything changed.
    pub(super) fn merge(
        &mut self,
        other: &Self,
        origins: &mut Origins,
        size_of: impl Fn(TypeIndex) -> Option<u64>,
    ) -> bool {
        let mut changed = false;
        let mut meet = |a: &mut Value, b: Value| {
            if *a == b {
                return;
            }
            let joined = join(*a, b, origins, &size_of);
            changed |= joined != *a;
            *a = joined;
        };
        for (number, (a, b)) in self.registers.iter_mut().zip(&other.registers).enumerate() {
            // The stack pointer is the same on all paths of compiled code.
            if number != SP || *a == Value::Unknown {
                meet(a, *b);
            }
        }
        // Vector registers rarely hold anything of interest.
        if self.vectors_known || other.vectors_known {
            for (a, b) in self.vectors.iter_mut().zip(&other.vectors) {
                meet(&mut a[0], b[0]);
                meet(&mut a[1], b[1]);
            }
            self.vectors_known |= other.vectors_known;
        }
        if self.slots == other.slots {
            return changed;
        }
        let mut merged = Vec::with_capacity(self.slots.len());
        let (mut left, mut right) = (self.slots.iter().peekable(), other.slots.iter().peekable());
        loop {
            let (at, mut a, b) = match (left.peek(), right.peek()) {
                (Some(l), Some(r)) if l.0 == r.0 => {
                    let both = (l.0, l.1, r.1);
                    left.next();
                    right.next();
                    both
                }
                (Some(l), r) if r.is_none_or(|r| l.0 < r.0) => {
                    let one = (l.0, l.1, Value::Unknown);
                    left.next();
                    one
                }
                (_, Some(r)) => {
                    let one = (r.0, Value::Unknown, r.1);
                    right.next();
                    one
                }
                _ => break,
            };
            meet(&mut a, b);
            if a != Value::Unknown && merged.len() < SLOTS {
                merged.push((at, a));
            }
        }
        self.slots = merged;
        changed
    }
}
