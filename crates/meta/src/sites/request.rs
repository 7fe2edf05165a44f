//! *What is asked for, and what part of it may a type be?*

use super::calls::Key;
use super::outcome::Met;
use super::typing::Types;
use super::value::{Computed, Value};
use pointee_model::evidence::Role;
use pointee_model::image::{TypeIndex, TypeKind};

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Bytes, if constant.
    pub total: Option<u64>,
    /// Bytes of one element, if count and size are given apart or the size is a multiple.
    pub unit: Option<u64>,
    /// Whether the unit is but a divisor of that of several requests.
    pub is_common: bool,
    /// What the bytes are made of in a way that is not known, rounded perhaps: it confirms a part, and refutes none.
    pub near: Option<Near>,
    /// Bytes before the multiple.
    pub head: u64,
    /// The request replaces an older block.
    pub grows: bool,
    /// Nothing is called: the block is carved out of what there is.
    pub is_carved: bool,
}

/// A number that a size is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Near {
    /// Itself, if constant.
    pub total: Option<u64>,
    /// Its step, if it is a multiple and more.
    pub unit: Option<u64>,
    /// What is added to the multiple, or to what is not known.
    pub head: u64,
}

impl Near {
    fn of(value: Value) -> Option<Self> {
        match value {
            Value::Constant(number) => Some(Self {
                total: Some(u64::try_from(number).ok()?),
                ..Self::default()
            }),
            Value::Linear { scale, add, x, .. } if x != Computed::Joined => Some(Self {
                unit: (scale > 1).then_some(u64::from(scale)),
                head: u64::try_from(add).ok()?,
                ..Self::default()
            }),
            _ => None,
        }
    }
}

impl Request {
    pub(super) fn of(met: &Met, grows: bool) -> Self {
        let mut request = Self {
            grows,
            is_carved: met.callee == Key::Carved,
            unit: met.unit.filter(|unit| *unit > 0),
            near: Near::of(met.near),
            ..Self::default()
        };
        match met.size {
            Value::Constant(size) => request.total = u64::try_from(size).ok(),
            Value::Linear { scale, add, x, .. } => {
                if let Ok(head) = u64::try_from(add) {
                    request.head = head;
                }
                if scale > 1 {
                    request.is_common = request.unit.is_none() && x == Computed::Joined;
                    request.unit = request.unit.or(Some(u64::from(scale)));
                }
            }
            Value::Parameter { offset, .. } => request.head = u64::try_from(offset).unwrap_or(0),
            _ => {}
        }
        request
    }

    /// The bytes that are asked for beside any multiple, or that these are made of.
    pub(super) fn bytes(self) -> u64 {
        let near = self.near.unwrap_or_default();
        let known = self.total.or(near.total);
        known.unwrap_or(self.head.max(near.head))
    }

    /// Whether it is some bytes more than a number of no known step, as for text and its end.
    pub(super) fn is_uneven(self) -> bool {
        self.total.is_none() && self.unit.is_none() && !self.head.is_multiple_of(4)
    }
}

/// The part a type plays in a request, and the element of the array behind a header.
pub(super) fn role(
    types: &Types<'_>,
    index: TypeIndex,
    request: Request,
) -> (Role, Option<TypeIndex>) {
    if types.is_text(index) {
        return (Role::Characters, None);
    }
    if types.is_character(index) {
        return (Role::Bytes, None);
    }
    let Some(size) = types.size(index).filter(|size| *size > 0) else {
        return (Role::Unknown, None);
    };
    let flexible = types.flexible(index);
    let record = is_record(types, index);
    // An array at the end may be cut short, or go on, in a request of variable size.
    let flexible = flexible.or_else(|| {
        types.last_array(index).filter(|(offset, _)| {
            request.total.is_none() && (*offset..size).contains(&request.head)
        })
    });
    let union = types
        .union_at_end(index)
        .filter(|_| request.total.is_none());
    let flexible = flexible.or_else(|| {
        let union = union.filter(|union| (union.offset..size).contains(&request.head))?;
        Some((union.offset, union.element?))
    });
    let tail = flexible.map(|(_, element)| element);
    let opens_at = flexible.map_or(size, |(offset, _)| offset);
    if record && let Some(part) = confirmed(types, index, size, request) {
        return part;
    }
    let by_size = match request {
        Request {
            total: Some(total), ..
        } => match total {
            // Who keeps a single pointer on the heap keeps the first of several.
            _ if total == size && types.pointee(index).is_some() => Role::Element,
            _ if total == size => Role::Whole,
            // An array of one at the end may be the old way to write one that goes on, if it can: in so many bytes.
            _ if total % size == 0
                && types.open_end(index).is_none()
                && flexible.is_some_and(|(offset, element)| {
                    let behind = total.checked_sub(offset).zip(types.size(element));
                    behind.is_some_and(|(bytes, element)| !bytes.is_multiple_of(element))
                }) =>
            {
                Role::Element
            }
            _ if flexible.is_some() && total >= opens_at => Role::Header,
            _ if total % size == 0 => Role::Element,
            _ if total > size && record => Role::Header,
            _ if is_cut_short(types, index, request) => Role::Whole,
            _ => Role::Unknown,
        },
        Request {
            unit: Some(unit),
            head,
            ..
        } => {
            // The factor found may be a divisor of the true one (`3n · 8`).
            let steps = unit % size == 0 || size % unit == 0;
            // One byte more ends what is copied as if it were text.
            let head = if head == 1 { 0 } else { head };
            let header = flexible.is_some() || (record && !steps);
            // What was shifted may have been a multiple already (`7n << 4`).
            let is_shifted = request.is_common && unit.is_power_of_two();
            let goes_on = head == 0 && unit != size && types.open_end(index).is_some();
            if goes_on || (header && head > 0 && head >= opens_at) {
                Role::Header
            } else if !request.is_common && unit.is_multiple_of(size) && head.is_multiple_of(unit) {
                // `2(n + 1)` of them.
                Role::Element
            } else if record && (unit != size || is_shifted) && head >= size {
                // `(3n + 1) · 16` may be a header of 16 bytes and an array, or an array of it.
                Role::Unknown
            } else if (steps && head % size == 0) || (unit == size && head < size) {
                // What is left over is shorter than an element.
                Role::Element
            } else if record && (head >= opens_at || (!steps && !is_shifted && head > 0)) {
                // No array of it has such elements, so something else follows it.
                Role::Header
            } else {
                Role::Unknown
            }
        }
        // `32n + 160` bytes: ten elements and more, or a header that happens to have as many bytes as some elements.
        Request { head, .. } if record && flexible.is_none() && head > size && head % size == 0 => {
            Role::Unknown
        }
        Request { head, .. } if record && head >= opens_at => Role::Header,
        _ if flexible.is_some() => Role::Header,
        Request { head, .. }
            if union.is_some_and(|union| (union.smallest..size).contains(&head)) =>
        {
            Role::Header
        }
        // A part that is no multiple: something else lies in the block too.
        Request { head, .. } if !record && head % size != 0 => Role::Unknown,
        _ if !record || request.grows => Role::Element,
        _ if types.is_open(index) => Role::Header,
        _ => Role::Unknown,
    };
    (by_size, tail.filter(|_| by_size == Role::Header))
}

/// The part that a record of `size` bytes plays by what the bytes asked for are made of, where that is no accident: it is just the
/// record, or a multiple of it; or the record with an array behind, or with text.
fn confirmed(
    types: &Types<'_>,
    index: TypeIndex,
    size: u64,
    request: Request,
) -> Option<(Role, Option<TypeIndex>)> {
    let near = request.near?;
    let Near { total, unit, head } = near;
    let asked = Request {
        total,
        unit,
        head,
        ..Request::default()
    };
    let part = role(types, index, asked);
    let is_so = match part.0 {
        // What grows asks for so many more of them.
        Role::Whole if request.grows => return Some((Role::Element, None)),
        Role::Whole => true,
        Role::Element => total.is_none() && unit == Some(size),
        Role::Header => {
            let text = head == size || head == size + 1;
            total.is_none() && (unit.is_some() || part.1.is_some() || text)
        }
        _ => false,
    };
    is_so.then_some(part)
}

/// Whether so many bytes are those of a struct that ends with a union, up to the end of one of its arms.
pub(super) fn is_cut_short(types: &Types<'_>, index: TypeIndex, request: Request) -> bool {
    let end = types.union_at_end(index).map(|union| union.smallest);
    request
        .total
        .zip(end)
        .is_some_and(|(total, end)| total >= end)
}

pub(super) fn is_record(types: &Types<'_>, index: TypeIndex) -> bool {
    types.get(index).is_some_and(|entry| {
        matches!(
            entry.kind,
            TypeKind::Struct | TypeKind::Class | TypeKind::Union | TypeKind::Variant
        )
    })
}
