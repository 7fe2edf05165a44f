//! *What do the callers of one function get of one of its allocations?*
//!
//! The rules by which a function that hands out a block is a wrapper, given how it came by the size and what
//! the block is seen as in it.

use super::allocators::Allocator;
use super::calls::Body;
use super::model::{Makes, Size};
use super::outcome::{Met, Outcome, Seen};
use super::parameters::{Parameter, parameters};
use super::request::Request;
use super::typing::{Pointee, Types};
use super::value::{Computed, Value};
use crate::facts::Function;
use pointee_model::evidence::Witness;
use pointee_model::image::{TypeIndex, TypeKind};

/// Whether [`hands_through`] or [`hands_out`] may say something of a function with these parameters and this result, whatever it
/// does: `false` is certain.
pub(super) fn may_hand_on(types: &Types<'_>, body: &Body<'_>, function: &Function) -> bool {
    let is_untyped_place = |r#type: TypeIndex| match types.pointee(r#type) {
        Some(Pointee::Type(target)) => types.pointee(target) == Some(Pointee::Void),
        _ => false,
    };
    let registers = parameters(body, types).by_register;
    let mut given = registers.into_iter().flatten();
    if given.any(|parameter| is_untyped_place(parameter.r#type)) {
        return true;
    }
    match handed_back(types, function) {
        None => false,
        Some(Pointee::Void) => true,
        Some(Pointee::Type(target)) => {
            let points_to_it = |parameter: Parameter<'_>| {
                types.pointee(parameter.r#type) == Some(Pointee::Type(target))
            };
            types.is_character(target)
                || is_record(types, target)
                || registers.into_iter().flatten().any(points_to_it)
        }
    }
}

/// What the result of a function points to; a reference is to what its callers have already.
pub(super) fn handed_back(types: &Types<'_>, function: &Function) -> Option<Pointee> {
    let result = function.result?;
    let kind = types.get(types.strip(result))?.kind;
    (kind == TypeKind::Pointer).then(|| types.pointee(result))?
}

fn is_record(types: &Types<'_>, at: TypeIndex) -> bool {
    types.get(at).is_some_and(|entry| {
        matches!(
            entry.kind,
            TypeKind::Struct | TypeKind::Class | TypeKind::Union
        )
    })
}

/// What callers get from a function that stores an allocation of a size they ask for where a parameter
/// of type `void **` points.
pub(super) fn hands_through(
    types: &Types<'_>,
    body: &Body<'_>,
    callee: Option<&Allocator>,
    met: &Met,
    outcome: &Outcome,
) -> Option<Allocator> {
    let index = handed_through(types, body, met, outcome)?;
    let size = size_rule(met);
    (size != Size::Unknown).then_some(Allocator {
        unit: unit_of(callee, met),
        out: Some(index),
        returns_it: false,
        ..Allocator::of(size, Makes::Whatever)
    })
}

/// The parameter of type `void **` through which an allocation is stored.
fn handed_through(types: &Types<'_>, body: &Body<'_>, met: &Met, outcome: &Outcome) -> Option<u8> {
    let (_, index) = *outcome.handed.iter().find(|(call, _)| *call == met.call)?;
    let parameter = parameters(body, types)
        .by_register
        .get(usize::from(index))
        .copied()??;
    let Some(Pointee::Type(target)) = types.pointee(parameter.r#type) else {
        return None;
    };
    (types.pointee(target) == Some(Pointee::Void)).then_some(index)
}

/// What callers get from a function that returns an allocation, `offset` bytes into it.
pub(super) fn hands_out(
    types: &Types<'_>,
    body: &Body<'_>,
    callee: &Allocator,
    met: &Met,
    offset: i64,
    result: Option<Option<Pointee>>,
    outcome: &Outcome,
) -> Option<Allocator> {
    let size = size_rule(met);
    let behind = behind_header(size, offset);
    let old = callee
        .old
        .and_then(|old| match met.arguments[usize::from(old) % 6] {
            Value::Parameter { index, offset: at } if at == 0 || (behind && at == -offset) => {
                Some(index)
            }
            _ => None,
        });
    let copied = copied_once(met, outcome).filter(|_| offset == 0);
    let source = copied.unwrap_or_default();
    let given_on = || callee.copies.map(|of| met.arguments[usize::from(of) % 6]);
    let allocator = |size, base| Allocator {
        old,
        copies: copied.or_else(given_on).and_then(parameter),
        base,
        unit: unit_of(Some(callee), met),
        // What is stored for the caller too tells more than a result that is cast.
        out: handed_through(types, body, met, outcome),
        kept: match body.function {
            Some(_) => outcome.observations.iter().any(|seen| {
                seen.call == met.call && matches!(seen.witness, Witness::Field | Witness::Global)
            }),
            None => outcome.stored.contains(&met.call),
        },
        ..Allocator::of(size, Makes::Whatever)
    };
    // Text is of the characters that the function says it is of.
    let characters = match result {
        Some(Some(Pointee::Type(target))) if types.is_character(target) => Some(target),
        _ => None,
    };
    let text = |of: Value| Allocator {
        makes: Makes::Characters,
        text: parameter(of),
        ..allocator(Size::Unknown, characters)
    };
    // What it keeps it may lend out, or have left in the register of results.
    let is_fresh = !callee.kept && !outcome.stored.contains(&met.call);
    let passes_on = matches!(
        size,
        Size::Argument {
            scale: 1,
            add: 0,
            ..
        } | Size::Product(..)
    ) && counts_bytes(types, body, size);
    if callee.makes == Makes::Characters {
        if body.function.is_none() {
            let of = callee.text.map(|of| met.arguments[usize::from(of) % 6]);
            return is_fresh.then(|| text(of.unwrap_or_default()));
        }
        let from_parameter = met.arguments.iter().any(|value| {
            matches!(value, Value::Parameter { index, offset: 0 }
                if is_string(types, body, *index))
        });
        return from_parameter.then(|| text(source));
    }
    if callee.makes != Makes::Whatever {
        return None;
    }
    let seen_as = |character: bool| {
        outcome.observations.iter().any(|seen| {
            seen.call == met.call
                && seen.witness != Witness::Result
                && seen.witness != Witness::Reallocated
                && matches!(&seen.seen, Seen::Types(list)
                    if list.iter().any(|at| types.is_character(*at) == character))
        })
    };
    let (typed, bytes) = (seen_as(false), seen_as(true));
    // A buffer that is kept as bytes and lent out.
    let is_lent = outcome.observations.iter().any(|seen| {
        seen.call == met.call
            && matches!(seen.witness, Witness::Field | Witness::Global)
            && matches!(&seen.seen, Seen::Types(list) if list.iter().all(|at| types.is_character(*at)))
    });
    match result {
        // No debug info: only a plain hand-through is taken for a wrapper, rounded at most; and a length and one more, which
        // is text and its end, if it is not kept.
        None if is_length_and_end(met.size) || copied.is_some() && is_one_more(met.size) => {
            (offset == 0 && is_fresh).then(|| text(source))
        }
        // What another function makes a size of may be anything.
        None => {
            let is_size = || met.near == Value::Unknown && is_one_parameter(met.size);
            (passes_on || behind || is_size()).then(|| allocator(size, None))
        }
        Some(Some(Pointee::Void)) => match size {
            _ if is_lent => None,
            _ if passes_on || behind => Some(allocator(size, None)),
            _ if typed || bytes => None,
            // Whoever calls it, no caller's code is seen that could tell more; but of a size that is kept somewhere, other files' may.
            Size::Unknown if !callee.element && !body.is_called => {
                let is_kept = !matches!(met.size, Value::Constant(_));
                (body.is_exported && is_kept).then(|| allocator(size, None))
            }
            // It makes one thing, for those who call all such functions through pointers.
            Size::Unknown if !body.is_named && Request::of(met, false).total.is_some() => None,
            _ => Some(allocator(size, None)),
        },
        Some(Some(Pointee::Type(target))) if types.is_character(target) => match size {
            Size::Argument { scale: 1, .. } | Size::Product(..) => {
                Some(allocator(size, Some(target)))
            }
            // A copy of a string parameter: the size is its length.
            Size::Derived(mask)
                if !typed
                    && !is_lent
                    && (0..6).any(|at| mask >> at & 1 == 1 && is_string(types, body, at)) =>
            {
                Some(text(source))
            }
            // As long as what is copied, which a field says.
            Size::Unknown if copied.is_some() && !typed && !is_lent => Some(text(source)),
            _ => None,
        },
        // As many of what a parameter points to as are copied from there.
        Some(Some(Pointee::Type(target)))
            if !is_record(types, target)
                && !matches!(met.size, Value::Constant(_))
                && pointed_to(types, body, source) == Some(Pointee::Type(target)) =>
        {
            Some(Allocator {
                base: Some(target),
                ..text(source)
            })
        }
        Some(Some(Pointee::Type(target))) => {
            let record = is_record(types, target);
            let request = Request::of(met, false);
            // Of a size that is kept somewhere, as in the description of a class.
            let kept = (request.total, request.unit) == (None, None)
                && Some(request.head) < types.size(target);
            let untyped = callee.base.is_none() && callee.old.is_none();
            let makes_derived =
                || untyped && kept && types.is_base(target) && !knows_more(types, target, outcome);
            (record && !matches!(size, Size::Product(..)) && (passes_on || makes_derived()))
                .then(|| allocator(size, Some(target)))
        }
        Some(None) => None,
    }
}

/// Whether a function that returns a `base` is seen to make one thing that starts with it: of a size that says so, or in a variable of
/// its type.
fn knows_more(types: &Types<'_>, base: TypeIndex, outcome: &Outcome) -> bool {
    let is_returned = |call: u64| outcome.returned.iter().any(|(known, _)| *known == call);
    let is_more = |at: TypeIndex| at != base && types.starts_with(at, base);
    let is_made = |at: &TypeIndex| is_more(*at) && !types.is_base(*at);
    let is_sized = |met: &Met| {
        let request = Request::of(met, false);
        let counts = matches!(size_rule(met), Size::Argument { add: 1.., .. });
        counts || (request.total, request.unit) != (None, None)
    };
    let met = outcome.met.iter().filter(|met| is_returned(met.call));
    let own = outcome.own.iter();
    let own = own.filter(|(call, offset, _)| outcome.returned.contains(&(*call, *offset)));
    let seen = outcome.observations.iter();
    met.into_iter().any(is_sized)
        || own.into_iter().any(|(.., at)| is_more(*at))
        || seen
            .filter(|seen| is_returned(seen.call))
            .any(|seen| matches!(&seen.seen, Seen::Types(list) if list.iter().any(is_made)))
}

/// Whether the parameters that a size is are none that are declared to be pointers.
fn counts_bytes(types: &Types<'_>, body: &Body<'_>, size: Size) -> bool {
    let declared = parameters(body, types).by_register;
    let points = |index: u8| {
        let parameter = declared[usize::from(index) % 6];
        parameter.is_some_and(|parameter| types.pointee(parameter.r#type).is_some())
    };
    match size {
        Size::Argument { index, .. } => !points(index),
        Size::Product(a, b) => !points(a) && !points(b),
        Size::Unknown | Size::Derived(_) => true,
    }
}

/// What a block is filled with, if it is one copy.
fn copied_once(met: &Met, outcome: &Outcome) -> Option<Value> {
    let mut copies = outcome.copies.iter().filter(|(call, _)| *call == met.call);
    let (_, from) = copies.next()?;
    copies.next().is_none().then_some(*from)
}

/// What the parameter that a value is points to.
fn pointed_to(types: &Types<'_>, body: &Body<'_>, value: Value) -> Option<Pointee> {
    let declared = parameters(body, types).by_register;
    let parameter = declared[usize::from(parameter(value)?) % 6]?;
    types.pointee(parameter.r#type)
}

/// The parameter that a value is.
fn parameter(value: Value) -> Option<u8> {
    match value {
        Value::Parameter { index, offset: 0 } => Some(index),
        _ => None,
    }
}

/// The parameter that a value is, perhaps rounded or replaced where it is 0.
fn one_parameter(value: Value) -> Option<u8> {
    match value {
        Value::Linear {
            from,
            x: Computed::Exactly | Computed::Nearly,
            scale: 1,
            add: 0,
        } if from.count_ones() == 1 => u8::try_from(from.trailing_zeros()).ok(),
        value => parameter(value),
    }
}

/// Whether a wrapper asks for so many bytes more than its caller and hands out what lies behind them.
pub(super) fn behind_header(size: Size, offset: i64) -> bool {
    matches!(size, Size::Argument { scale: 1, add, .. } if offset > 0 && add >= offset)
}

/// Whether a size is one parameter, perhaps rounded or replaced where it is 0.
fn is_one_parameter(size: Value) -> bool {
    match size {
        Value::Linear {
            from,
            scale: 1,
            add: 0,
            ..
        } => from.count_ones() == 1,
        Value::Multiple { from, .. } => from == 0,
        _ => false,
    }
}

/// Whether a size is one more than a parameter, or than what is computed from one: `strlen(s) + 1`.
fn is_length_and_end(size: Value) -> bool {
    match size {
        Value::Parameter { offset, .. } => offset == 1,
        Value::Linear {
            from,
            scale: 1,
            add: 1,
            ..
        } => from.count_ones() == 1,
        _ => false,
    }
}

/// Whether a size is one more than a number.
fn is_one_more(size: Value) -> bool {
    matches!(
        size,
        Value::Linear {
            scale: 1,
            add: 1,
            ..
        }
    )
}

fn is_string(types: &Types<'_>, body: &Body<'_>, index: u8) -> bool {
    let known = parameters(body, types);
    known
        .by_register
        .get(usize::from(index))
        .and_then(Option::as_ref)
        .is_some_and(|parameter| {
            matches!(types.pointee(parameter.r#type), Some(Pointee::Type(target))
                if types.is_character(target))
        })
}

/// The size of an allocation in terms of the function's own parameters.
fn size_rule(met: &Met) -> Size {
    let factors = met
        .factors
        .map(|(a, b)| (one_parameter(a), one_parameter(b)));
    if let Some((Some(a), Some(b))) = factors {
        return Size::Product(a, b);
    }
    match rule_of(met.size) {
        Size::Unknown => met
            .factors
            .map(|(a, b)| a.from() | b.from())
            .filter(|mask| *mask != 0)
            .map_or(Size::Unknown, Size::Derived),
        known => known,
    }
}

/// The parameter that is the size of one element.
fn unit_of(callee: Option<&Allocator>, met: &Met) -> Option<u8> {
    let handed_on = callee.and_then(|callee| callee.unit);
    match (met.size, met.factors) {
        (Value::Multiple { unit, .. }, _) => Some(unit),
        (_, Some((Value::Constant(_), _) | (_, Value::Constant(_)))) => None,
        (_, Some((_, unit))) => parameter(unit),
        _ => parameter(met.arguments[usize::from(handed_on?) % 6]),
    }
}

/// A number of bytes in terms of the function's own parameters.
pub(super) fn rule_of(size: Value) -> Size {
    match size {
        Value::Parameter { index, offset } => Size::Argument {
            index,
            scale: 1,
            add: offset,
        },
        Value::Linear {
            from,
            x: Computed::Exactly | Computed::Nearly,
            scale,
            add,
        } if from.count_ones() == 1 => Size::Argument {
            index: from.trailing_zeros() as u8,
            scale,
            add,
        },
        Value::Product(a, b) => Size::Product(a, b),
        value if value.from() != 0 => Size::Derived(value.from()),
        _ => Size::Unknown,
    }
}
