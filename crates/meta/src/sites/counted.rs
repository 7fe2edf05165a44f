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
//! With a type that is aligned to 16 bytes or more, the array begins so many bytes into the block, and the number are the last eight of them:
//!
//! ```text
//!   operator new[](32 + n · sizeof(T)):   … … … n │ T │ T │ …
//! ```

use super::flow::Interpreter;
use super::memory::Address;
use super::outcome::{Observation, Seen};
use super::value::{OriginSet, Value};
use std::collections::{HashMap, HashSet};

/// Bytes of the number.
const NUMBER: i64 = 8;
/// Where arrays with a number in front may begin: at the alignment of what they are of, up to a line of the cache.
const FRONTS: [i64; 4] = [8, 16, 32, 64];

/// What is known of a function's arrays.
#[derive(Default)]
pub(super) struct Counts {
    /// Calls of `operator new[]`.
    pub(super) arrays: HashSet<u64>,
    /// Of these, those into whose blocks a number is written, and where it ends.
    counted: HashSet<(u64, i64)>,
    /// What is seen of the places where an array may begin, with these.
    pub(super) behind: Vec<(i64, Observation)>,
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

    /// Observes blocks by their starts, and arrays by what may lie behind a number too.
    pub(super) fn observe(&mut self, mut each: impl FnMut(&mut Self)) {
        each(self);
        if !self.counts.arrays.is_empty() {
            for front in FRONTS {
                self.counts.front = front;
                each(self);
            }
            self.counts.front = 0;
        }
    }

    /// Notes a number that is written where one may lie in front of an array.
    pub(super) fn note_count(&mut self, to: &Address, value: Value) {
        let is_number = value == Value::Unknown
            || value.is_number()
            || matches!(value, Value::Parameter { .. });
        if let Value::Allocated { origins, offset } = to.value
            && let front = offset.wrapping_add(NUMBER)
            && FRONTS.contains(&front)
            && is_number
            && !to.indexed
        {
            let Counts {
                arrays, counted, ..
            } = &mut self.counts;
            let calls = self.origins.calls(origins).iter();
            let calls = calls.filter(|call| arrays.contains(call));
            counted.extend(calls.map(|call| (*call, front)));
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
        counted.retain(|(call, front)| {
            let tells = |seen: &Observation| {
                seen.call == *call && matches!(seen.seen, Seen::Types(_) | Seen::Elements(_))
            };
            let mut behind = behind.iter().filter(|(at, _)| at == front);
            !outcome.observations.iter().any(tells) && behind.any(|(_, seen)| tells(seen))
        });
        // Where two places have both, one of the numbers is an element's.
        let fronts: HashMap<u64, i64> = counted
            .iter()
            .filter(|(call, _)| counted.iter().filter(|(other, _)| other == call).count() == 1)
            .copied()
            .collect();
        for met in &mut outcome.met {
            if let Some(front) = fronts.get(&met.call) {
                met.front = *front;
                met.size = met.size.offset(-front);
            }
        }
        let of_arrays = behind
            .into_iter()
            .filter(|(front, seen)| fronts.get(&seen.call) == Some(front));
        outcome.observations.extend(of_arrays.map(|(_, seen)| seen));
    }
}
