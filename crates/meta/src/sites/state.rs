//! *What is known of the machine at one point of a function?*
//!
//! General registers by their encoding number (0 rax, 1 rcx, 2 rdx, 3 rbx, 4 rsp, 5 rbp, 6 rsi,
//! 7 rdi, 8–15), both quadwords of the vector registers (compilers store pointers in pairs), and
//! stack slots of eight bytes by their offset from the canonical frame address. A slot that is
//! absent is unknown.

use super::join::{Layout, join};
use super::value::{Origins, Value};
use iced_x86::Register;
use std::collections::BTreeSet;

/// rsp.
pub(super) const SP: usize = 4;
/// rax, where results are.
pub(super) const RESULT: usize = 0;
/// The registers of the first six integer arguments (System V ABI for x86-64, §3.2.3).
pub(super) const ARGUMENTS: [usize; 6] = [7, 6, 2, 1, 8, 9];
/// The registers a call may change.
pub(super) const CALLER_SAVED: [usize; 9] = [0, 1, 2, 6, 7, 8, 9, 10, 11];
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
    /// `None`: nothing was put into a vector register since all became unknown. They rarely hold anything of interest.
    vectors: Option<Box<[[Value; 2]; 16]>>,
    slots: Vec<(i64, Value)>,
}

const UNKNOWN_VECTORS: [[Value; 2]; 16] = [[Value::Unknown; 2]; 16];

/// Slots tracked in one state; more are forgotten.
const SLOTS: usize = 512;

impl State {
    /// At the entry of a function: the return address lies below the canonical frame address.
    pub(super) fn at_entry() -> Self {
        let mut state = Self {
            registers: [Value::Unknown; 16],
            vectors: None,
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

    /// Forgets what somebody else may have written: slots, and parts of slots, whose addresses were given away; but not where a block's
    /// own address lies.
    pub(super) fn forget(&mut self, escaped: &BTreeSet<i64>) {
        let is_block = |at| matches!(self.slot(at), Value::Allocated { .. });
        let touching = |at: i64| escaped.range(at.saturating_sub(7)..=at.saturating_add(7));
        let stays = |at| touching(at).all(|written| is_block(*written));
        let kept = self.slots.iter().copied().filter(|(at, _)| stays(*at));
        self.slots = kept.collect();
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

    /// Puts what `other` says in the place of each value.
    pub(super) fn change(&mut self, other: impl Fn(Value) -> Value) {
        let slots = self.slots.iter_mut().map(|(_, value)| value);
        for value in self.registers.iter_mut().chain(slots) {
            *value = other(*value);
        }
    }

    /// Doubts all allocations: they may be on another path than this.
    pub(super) fn guess(&mut self, origins: &mut Origins) {
        let vectors = self.vectors.iter_mut().flat_map(|all| all.iter_mut());
        let slots = self.slots.iter_mut().map(|(_, value)| value);
        for value in self
            .registers
            .iter_mut()
            .chain(vectors.flatten())
            .chain(slots)
        {
            if let Value::Allocated { origins: set, .. } = value {
                *set = origins.guessed(*set);
            }
        }
    }

    /// What a call leaves.
    pub(super) fn after_call(&mut self) {
        for register in CALLER_SAVED {
            self.registers[register] = Value::Unknown;
        }
        self.vectors = None;
    }

    /// Both quadwords of a vector register.
    pub(super) fn vector(&self, number: usize) -> [Value; 2] {
        self.vectors
            .as_ref()
            .map_or([Value::Unknown; 2], |vectors| vectors[number & 15])
    }

    /// Writes both quadwords of a vector register.
    pub(super) fn set_vector(&mut self, number: usize, pair: [Value; 2]) {
        if self.vectors.is_some() || pair != [Value::Unknown; 2] {
            let vectors = self
                .vectors
                .get_or_insert_with(|| Box::new(UNKNOWN_VECTORS));
            vectors[number & 15] = pair;
        }
    }

    /// Merges what another path brings; says whether anything changed.
    pub(super) fn merge(
        &mut self,
        other: &Self,
        origins: &mut Origins,
        layout: &impl Layout,
    ) -> bool {
        let mut merging = Merging {
            origins,
            layout,
            changed: false,
        };
        for (number, (a, b)) in self.registers.iter_mut().zip(&other.registers).enumerate() {
            // The stack pointer is the same on all paths of compiled code.
            if number != SP || *a == Value::Unknown {
                merging.meet(a, *b);
            }
        }
        if self.vectors.is_some() || other.vectors.is_some() {
            let there = other.vectors.as_deref().unwrap_or(&UNKNOWN_VECTORS);
            let here = self
                .vectors
                .get_or_insert_with(|| Box::new(UNKNOWN_VECTORS));
            for (a, b) in here.iter_mut().zip(there) {
                merging.meet(&mut a[0], b[0]);
                merging.meet(&mut a[1], b[1]);
            }
        }
        if self.slots != other.slots {
            merging.slots(&mut self.slots, &other.slots);
        }
        merging.changed
    }
}

/// One merge under way.
struct Merging<'o, L> {
    origins: &'o mut Origins,
    layout: &'o L,
    changed: bool,
}

impl<L: Layout> Merging<'_, L> {
    #[inline]
    fn meet(&mut self, a: &mut Value, b: Value) {
        if *a != b {
            let joined = join(*a, b, self.origins, self.layout);
            self.changed |= joined != *a;
            *a = joined;
        }
    }

    /// Merges in place: what only the other path has is an allocation, or unknown here as before.
    fn slots(&mut self, here: &mut Vec<(i64, Value)>, mut there: &[(i64, Value)]) {
        let mut only_there = Vec::new();
        here.retain_mut(|(at, a)| {
            there = self.take_before(*at, there, &mut only_there);
            let b = match there.split_first() {
                Some(((slot, b), rest)) if slot == at => {
                    there = rest;
                    *b
                }
                _ => Value::Unknown,
            };
            self.meet(a, b);
            *a != Value::Unknown
        });
        self.take_before(i64::MAX, there, &mut only_there);
        if !only_there.is_empty() {
            here.extend(only_there);
            here.sort_unstable_by_key(|(at, _)| *at);
            here.truncate(SLOTS);
        }
    }

    /// Takes what lies before `end` of slots that are unknown here; gives back the rest.
    fn take_before<'s>(
        &mut self,
        end: i64,
        mut there: &'s [(i64, Value)],
        to: &mut Vec<(i64, Value)>,
    ) -> &'s [(i64, Value)] {
        while let Some(((at, b), rest)) = there.split_first()
            && *at < end
        {
            let mut a = Value::Unknown;
            self.meet(&mut a, *b);
            if a != Value::Unknown {
                to.push((*at, a));
            }
            there = rest;
        }
        there
    }
}
