//! *What is noted down of one function's allocations?*

use super::CursorWrite;
use super::calls::{Key, Program};
use super::pools::Carving;
use super::value::Value;
use pointee_model::evidence::Witness;
use pointee_model::image::TypeIndex;
use std::collections::HashSet;

/// What an observation points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// `void`.
    Void,
    /// One of these types, stripped (several for the arms of a union).
    Types(Vec<TypeIndex>),
    /// The block is an array of these.
    Elements(TypeIndex),
    /// What lies at `offset` in the result of another allocation of this function.
    Into { call: u64, offset: i64 },
}

/// Whether it is the allocation that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Doubt {
    /// It is.
    None,
    /// It may be something else, on some path.
    Mixed,
    /// It was seen on the way to a call that does not come back, where what debug info says of variables is often stale, outside of the
    /// block that declares the variable, or where one of several jump tables may lead.
    Stale,
}

/// One observation on the result of one allocation.
#[derive(Clone, Debug)]
pub(super) struct Observation {
    /// The allocation's call.
    pub(super) call: u64,
    pub(super) witness: Witness,
    pub(super) doubt: Doubt,
    pub(super) seen: Seen,
    /// The instruction that shows it.
    pub(super) address: u64,
    pub(super) what: String,
    /// Whether it may be `void` as well: of the arms of a union one is a `void *`.
    pub(super) open: bool,
}

/// One allocation met.
#[derive(Clone, Debug)]
pub(super) struct Met {
    pub(super) call: u64,
    pub(super) next: u64,
    pub(super) callee: Key,
    /// For [`Key::Carved`], what it is carved out of, or by.
    pub(super) place: Option<String>,
    pub(super) tail: bool,
    pub(super) indirect: bool,
    /// Of a call through a pointer, the variable or member that the pointer is kept in.
    pub(super) pointer: Option<String>,
    /// Bytes asked for.
    pub(super) size: Value,
    /// The unit, where count and unit are given apart.
    pub(super) unit: Option<u64>,
    /// Count and unit.
    pub(super) factors: Option<(Value, Value)>,
    /// The integer arguments.
    pub(super) arguments: [Value; 6],
    /// Where the bytes asked for are made of a number in a way that is not known, the number.
    pub(super) near: Value,
    /// Bytes in front of the objects, the last of which are their number; `size` is without them.
    pub(super) front: i64,
}

/// What the interpretation of one function found.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) met: Vec<Met>,
    pub(super) observations: Vec<Observation>,
    /// Allocations that are returned, with the offset in the block.
    pub(super) returned: Vec<(u64, i64)>,
    /// Allocations that are stored where a parameter points, with the parameter.
    pub(super) handed: Vec<(u64, u8)>,
    /// Allocations that are stored anywhere but on the stack, or given to what may store them.
    pub(super) stored: HashSet<u64>,
    /// Allocations that are put into what a function without debug info returns, with the offset there.
    pub(super) filled: Vec<(u64, i64)>,
    /// Allocations that a function of the C library copies something into, from their start, with what it is copied from.
    pub(super) copies: Vec<(u64, Value)>,
    /// Allocations that variables point into, at some offset, of the function that made them, inlined or not; with what these point to.
    pub(super) own: HashSet<(u64, i64, TypeIndex)>,
    /// What was seen of cursors.
    pub(super) carving: Carving,
    /// Its writes of cursors.
    pub(super) cursor_writes: Vec<CursorWrite>,
    /// The function was too long to be looked at.
    pub(super) incomplete: bool,
}

impl Met {
    /// A block of no call: `place` says what the instruction at `at` carves it out of.
    pub(super) fn carved(at: u64, next: u64, place: String, size: Value) -> Self {
        let unit = match size {
            Value::Linear { scale, add: 0, .. } if scale > 1 => Some(u64::from(scale)),
            _ => None,
        };
        Self {
            call: at,
            next,
            callee: Key::Carved,
            place: Some(place),
            tail: false,
            indirect: false,
            pointer: None,
            size,
            unit,
            factors: None,
            arguments: [Value::Unknown; 6],
            near: Value::Unknown,
            front: 0,
        }
    }

    /// What is called, by its linker name, or what else there is in its place.
    pub(super) fn name<'a>(&'a self, program: &Program<'a>) -> &'a str {
        match &self.place {
            Some(place) => place,
            None => program.name(self.callee),
        }
    }
}
