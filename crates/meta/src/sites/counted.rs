//! *Which arrays have their length in front?* — `new T[n]` where each `T` must be destroyed.
//!
//! The compiler asks for room for one number more, writes the length there, and goes on with what lies behind it (Itanium C++ ABI, 2.7,
//! array operator new cookies). So the block has no type at its start, and what is seen there of the pointer behind the number is the array's:
//!
//! ```text
//!   operator new[](8 + n · sizeof(T)):   n │ T │ T │ T │ …
//!                                            └ what variables, fields and functions are given
//! ```
//!
//! With a type that is aligned to 16 bytes or more there is a gap before the number; these are not told.

use super::flow::Interpreter;
use super::memory::Address;
use super::outcome::{Observation, Seen};
use super::value::{OriginSet, Value};
use std::collections::HashSet;

/// Bytes of the number.
const FRONT: i64 = 8;

/// What is known of a function's arrays.
#[derive(Default)]
pub(super) struct Counts {
    /// Calls of `operator new[]`.
    pub(super) arrays: HashSet<u64>,
    /// Of these, those whose blocks a number is written to the start of.
    counted: HashSet<u64>,
    /// What is seen of the places behind it.
    pub(super) behind: Vec<Observation>,
    /// Where in a block the part begins that is observed now.
    pub(super) front: i64,
}

impl Interpreter<'_, '_> {
    /// Whether `value` is where the part of a block begins that is observed now: the block's start, or what lies behind a number.
    pub(super) fn shown(&self, value: Value) -> Option<OriginSet> {
        match value {
            Value::Allocated { origins, offset } if offset == self.counts.front => Some(origins),
            _ => None,
        }
    }

    /// Observes blocks by their starts, and arrays by what lies behind a number too.
    pub(super) fn observe(&mut self, mut each: impl FnMut(&mut Self)) {
        each(self);
        if !self.counts.arrays.is_empty() {
            self.counts.front = FRONT;
            each(self);
            self.counts.front = 0;
        }
    }

    /// Notes a number that is written at the start of an array.
    pub(super) fn note_count(&mut self, to: &Address, value: Value) {
        let is_number = value == Value::Unknown
            || value.is_number()
            || matches!(value, Value::Parameter { .. });
        if let Value::Allocated { origins, offset: 0 } = to.value
            && is_number
            && !to.indexed
        {
            let Counts {
                arrays, counted, ..
            } = &mut self.counts;
            let calls = self.origins.calls(origins).iter();
            counted.extend(calls.filter(|call| arrays.contains(call)));
        }
    }

    /// Takes what was seen behind a number for what is seen of the array, where nothing has a type for its start.
    pub(super) fn settle_counts(&mut self) {
        let Counts {
            mut counted,
            behind,
            ..
        } = std::mem::take(&mut self.counts);
        let outcome = &mut self.outcome;
        counted.retain(|call| {
            let is_type = |seen: &Seen| matches!(seen, Seen::Types(_) | Seen::Elements(_));
            let has_type = |all: &[Observation]| {
                all.iter()
                    .any(|observation| observation.call == *call && is_type(&observation.seen))
            };
            !has_type(&outcome.observations) && has_type(&behind)
        });
        let met = outcome.met.iter_mut();
        for met in met.filter(|met| counted.contains(&met.call)) {
            met.is_counted = true;
            met.size = met.size.offset(-FRONT);
        }
        let of_arrays = |observation: &Observation| counted.contains(&observation.call);
        outcome
            .observations
            .extend(behind.into_iter().filter(of_arrays));
    }
}
