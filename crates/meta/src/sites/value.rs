//! *What may a register or a stack slot hold?* — the abstract domain of the interpreter.
//!
//! A [`Value`] is what is known of one machine word. An allocation's result is tracked as a *may*
//! fact: joined with anything else it stays, for whatever the merged word is used as, the block is
//! used as too. Everything else is a *must* fact: joined with something different it is given up.
//! Sizes are tracked as linear forms, `scale · x + add`, where all that is known of `x` is from
//! which parameters it was computed.

use pointee_model::image::TypeIndex;
use std::collections::HashMap;

/// What is known of one machine word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Value {
    /// Nothing.
    #[default]
    Unknown,
    /// This number (or a link-time address, in code that is not position-independent).
    Constant(i64),
    /// What the `index`-th integer argument register held at entry, plus `offset`.
    Parameter { index: u8, offset: i64 },
    /// `scale · x + add`; `x` is computed from the parameters in the bit mask `from`.
    Linear {
        from: u8,
        x: Computed,
        scale: u32,
        add: i64,
    },
    /// The product of two parameters.
    Product(u8, u8),
    /// The result of one of the allocations in `origins`, plus `offset` ([`ANYWHERE`] if not known,
    /// or what a parameter holds: [`offset_parameter`]).
    Allocated { origins: OriginSet, offset: i64 },
    /// `offset` bytes past an object of type `target`.
    Typed { target: TypeIndex, offset: i64 },
    /// A fixed link-time address.
    Global(u64),
    /// Canonical frame address plus this.
    Stack(i64),
}

/// How the `x` of a linear form comes from parameters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Computed {
    /// In several ways that meet here: the step divides that of each.
    Joined,
    /// In whatever way.
    Somehow,
    /// It is the one parameter, rounded up, or replaced by a number on some path (`n ? n : 8`).
    Nearly,
    /// It is the one parameter.
    Exactly,
}

/// Offset into an allocation that is not known.
pub(super) const ANYWHERE: i64 = i64::MIN;

/// Offsets that are what a parameter holds: this and the five after it, by the parameter's index.
const AT_PARAMETER: i64 = ANYWHERE + 1;

/// The parameter that an offset into an allocation is.
pub(super) fn offset_parameter(offset: i64) -> Option<u8> {
    u8::try_from(offset.checked_sub(AT_PARAMETER)?)
        .ok()
        .filter(|index| *index < 6)
}

/// Whether an offset into an allocation is a number.
pub(super) fn is_number(offset: i64) -> bool {
    offset != ANYWHERE && offset_parameter(offset).is_none()
}

/// A set of allocations of one function; index into its [`Origins`].
pub(super) type OriginSet = u32;

/// The sets of allocations met in one function, each once.
#[derive(Default)]
pub(super) struct Origins {
    sets: Vec<Vec<u64>>,
    index: HashMap<Vec<u64>, OriginSet>,
}

impl Origins {
    /// The set of one allocation, by the address of its call.
    pub(super) fn single(&mut self, call: u64) -> OriginSet {
        self.intern(vec![call])
    }

    /// The calls in a set, ascending.
    pub(super) fn calls(&self, set: OriginSet) -> &[u64] {
        self.sets.get(set as usize).map_or(&[], Vec::as_slice)
    }

    fn union(&mut self, a: OriginSet, b: OriginSet) -> OriginSet {
        if a == b {
            return a;
        }
        let mut merged = [self.calls(a), self.calls(b)].concat();
        merged.sort_unstable();
        merged.dedup();
        self.intern(merged)
    }

    fn intern(&mut self, calls: Vec<u64>) -> OriginSet {
        if let Some(set) = self.index.get(&calls) {
            return *set;
        }
        let set = u32::try_from(self.sets.len()).unwrap_or(u32::MAX);
        self.sets.push(calls.clone());
        self.index.insert(calls, set);
        set
    }
}

impl Value {
    /// The parameters this was computed from, as a bit mask.
    pub(super) fn from(self) -> u8 {
        match self {
            Self::Parameter { index, .. } => 1 << index,
            Self::Linear { from, .. } => from,
            Self::Product(a, b) => 1 << a | 1 << b,
            _ => 0,
        }
    }

    /// Whether this is a number rather than a pointer, as far as one can tell.
    pub(super) fn is_scalar(self) -> bool {
        matches!(
            self,
            Self::Constant(_) | Self::Parameter { .. } | Self::Linear { .. } | Self::Product(..)
        )
    }

    /// Whether this may be a number and is not seen to be a pointer.
    pub(super) fn is_number(self) -> bool {
        self == Self::Unknown || self.is_scalar()
    }

    /// Drops what a write of 32 bits destroys: pointers, and the upper half of constants.
    pub(super) fn truncated(self) -> Self {
        match self {
            Self::Constant(number) => Self::Constant(i64::from(number as u32)),
            value if value.is_scalar() => value,
            _ => Self::Unknown,
        }
    }

    /// Something computed from the parameters in `from`, no more known.
    pub(super) fn derived(from: u8) -> Self {
        if from == 0 {
            Self::Unknown
        } else {
            Self::Linear {
                from,
                x: Computed::Somehow,
                scale: 1,
                add: 0,
            }
        }
    }

    /// `self + number`.
    pub(super) fn offset(self, number: i64) -> Self {
        match self {
            Self::Constant(value) => Self::Constant(value.wrapping_add(number)),
            Self::Parameter { index, offset } => Self::Parameter {
                index,
                offset: offset.wrapping_add(number),
            },
            Self::Linear {
                from,
                x,
                scale,
                add,
            } => Self::Linear {
                from,
                x,
                scale,
                add: add.wrapping_add(number),
            },
            Self::Product(..) if number == 0 => self,
            Self::Product(..) => Self::Linear {
                from: self.from(),
                x: Computed::Somehow,
                scale: 1,
                add: number,
            },
            Self::Allocated { .. } if number == 0 => self,
            Self::Allocated { origins, offset } => Self::Allocated {
                origins,
                offset: if is_number(offset) {
                    offset.wrapping_add(number)
                } else {
                    ANYWHERE
                },
            },
            Self::Typed { target, offset } => Self::Typed {
                target,
                offset: offset.wrapping_add(number),
            },
            Self::Global(address) => Self::Global(address.wrapping_add_signed(number)),
            Self::Stack(offset) => Self::Stack(offset.wrapping_add(number)),
            Self::Unknown if number != 0 => Self::Linear {
                from: 0,
                x: Computed::Somehow,
                scale: 1,
                add: number,
            },
            Self::Unknown => Self::Unknown,
        }
    }

    /// `self + other`.
    pub(super) fn plus(self, other: Self) -> Self {
        match (self, other) {
            (value, Self::Constant(number)) | (Self::Constant(number), value) => {
                value.offset(number)
            }
            (Self::Allocated { origins, offset: 0 }, Self::Parameter { index, offset: 0 })
            | (Self::Parameter { index, offset: 0 }, Self::Allocated { origins, offset: 0 }) => {
                Self::Allocated {
                    origins,
                    offset: AT_PARAMETER + i64::from(index),
                }
            }
            (Self::Allocated { origins, .. }, _) | (_, Self::Allocated { origins, .. }) => {
                Self::Allocated {
                    origins,
                    offset: ANYWHERE,
                }
            }
            // Indexing: still somewhere in an array of such objects.
            (Self::Typed { .. }, index) if !matches!(index, Self::Typed { .. }) => self,
            (index, Self::Typed { .. }) if !matches!(index, Self::Typed { .. }) => other,
            (Self::Global(_), index) if index == Self::Unknown || index.is_scalar() => self,
            (index, Self::Global(_)) if index == Self::Unknown || index.is_scalar() => other,
            (a, b) => {
                // n + 2n, as `lea` writes 3n; other steps share nothing but their constants.
                let (scale_a, add_a, x_a) = a.form();
                let (scale_b, add_b, x_b) = b.form();
                let from = a.from() | b.from();
                let exact = x_a == Computed::Exactly && x_b == Computed::Exactly;
                let one = exact && a.from() == b.from() && from.count_ones() == 1;
                // 2(n + 1) + (n + 1): proportional to the last digit, they are of one n.
                let proportional = add_a != 0
                    && a.from() == b.from()
                    && add_a.checked_mul(i64::from(scale_b))
                        == add_b.checked_mul(i64::from(scale_a));
                let same = one || proportional;
                Self::Linear {
                    from,
                    x: if one {
                        Computed::Exactly
                    } else {
                        x_a.min(x_b).min(Computed::Somehow)
                    },
                    scale: if same {
                        scale_a.saturating_add(scale_b)
                    } else if scale_a == scale_b {
                        scale_a
                    } else {
                        1
                    },
                    add: add_a.wrapping_add(add_b),
                }
                .or_unknown()
            }
        }
    }

    /// `self - other`.
    pub(super) fn minus(self, other: Self) -> Self {
        match other {
            Self::Constant(number) => self.offset(number.wrapping_neg()),
            _ => match self {
                Self::Allocated { origins, .. } => Self::Allocated {
                    origins,
                    offset: ANYWHERE,
                },
                _ => Self::derived(self.from() | other.from()),
            },
        }
    }

    /// `self · factor`.
    pub(super) fn times(self, factor: i64) -> Self {
        let Ok(small) = u32::try_from(factor) else {
            return Self::derived(self.from());
        };
        match self {
            Self::Constant(value) => Self::Constant(value.wrapping_mul(factor)),
            _ if factor == 0 => Self::Constant(0),
            _ if factor == 1 => self,
            _ => {
                let (scale, add, x) = self.form();
                match scale.checked_mul(small) {
                    Some(scale) => Self::Linear {
                        from: self.from(),
                        x,
                        scale,
                        add: add.wrapping_mul(factor),
                    },
                    None => Self::derived(self.from()),
                }
            }
        }
    }

    /// `self · other`.
    pub(super) fn multiplied(self, other: Self) -> Self {
        match (self, other) {
            (value, Self::Constant(factor)) | (Self::Constant(factor), value) => {
                value.times(factor)
            }
            (
                Self::Parameter {
                    index: a,
                    offset: 0,
                },
                Self::Parameter {
                    index: b,
                    offset: 0,
                },
            ) if a != b => Self::Product(a, b),
            _ => Self::derived(self.from() | other.from()),
        }
    }

    /// `self & mask`. A mask that clears the lowest bits only rounds, as the last step of rounding
    /// up does; what is known of the form stays, but it is no longer exact.
    pub(super) fn masked(self, mask: Self) -> Self {
        const LARGEST_ALIGNMENT: i64 = 4096;
        let from = self.from() | mask.from();
        let Self::Constant(mask) = mask else {
            return Self::derived(from);
        };
        // In 32 bits the mask may come zero-extended.
        let wide = u32::try_from(mask).map_or(mask, |low| i64::from(low as i32));
        let rounds =
            (-LARGEST_ALIGNMENT..0).contains(&wide) && wide.count_zeros() == wide.trailing_zeros();
        match self {
            Self::Constant(value) => Self::Constant(value & mask),
            Self::Linear { x, scale, add, .. } if rounds => Self::Linear {
                from,
                x: x.min(Computed::Nearly),
                // `(8n + 15) & -16` is `8n`, rounded up.
                scale: if i64::from(scale) % wide == 0 || add & !wide == !wide {
                    scale
                } else {
                    1
                },
                add: add & wide,
            },
            Self::Parameter { offset, .. } if rounds => Self::Linear {
                from,
                x: Computed::Nearly,
                scale: 1,
                add: offset & wide,
            },
            _ => Self::derived(from),
        }
    }

    /// Scale and constant part of the linear form, and what its `x` is; 1 and 0 for what has none.
    fn form(self) -> (u32, i64, Computed) {
        match self {
            Self::Linear { scale, add, x, .. } => (scale, add, x),
            Self::Parameter { offset, .. } => (1, offset, Computed::Exactly),
            _ => (1, 0, Computed::Somehow),
        }
    }

    fn or_unknown(self) -> Self {
        match self {
            Self::Linear {
                from: 0,
                scale: 1,
                add: 0,
                ..
            } => Self::Unknown,
            value => value,
        }
    }
}

/// What a join asks about the program.
pub(super) trait Layout {
    /// The size of a type.
    fn size(&self, of: TypeIndex) -> Option<u64>;
    /// Whether two addresses are the same place in two elements of one global array.
    fn is_one_array(&self, a: u64, b: u64) -> bool;
}

/// What holds where two paths meet.
pub(super) fn join(a: Value, b: Value, origins: &mut Origins, layout: &impl Layout) -> Value {
    use Value::{Allocated, Constant, Global, Typed, Unknown};
    if a == b {
        return a;
    }
    match (a, b) {
        (
            Allocated {
                origins: set_a,
                offset: at_a,
            },
            Allocated {
                origins: set_b,
                offset: at_b,
            },
        ) => Allocated {
            origins: origins.union(set_a, set_b),
            offset: if at_a == at_b { at_a } else { ANYWHERE },
        },
        (Allocated { .. }, _) => a,
        (_, Allocated { .. }) => b,
        (Typed { .. }, Constant(0)) => a,
        (Constant(0), Typed { .. }) => b,
        // A function pointer that has a default is one of that type either way.
        (Typed { target, offset: 0 }, Global(_) | Constant(_)) if layout.size(target).is_none() => {
            a
        }
        (Global(_) | Constant(_), Typed { target, offset: 0 }) if layout.size(target).is_none() => {
            b
        }
        // A pointer that steps through an array is one to its elements.
        (Global(a), Global(b)) if layout.is_one_array(a, b) => Global(a.min(b)),
        (
            Typed {
                target: target_a,
                offset: at_a,
            },
            Typed {
                target: target_b,
                offset: at_b,
            },
        ) if target_a == target_b => match layout.size(target_a) {
            // A pointer that steps through an array keeps its place in the element.
            Some(size) if size > 0 && at_a.wrapping_sub(at_b).rem_euclid(size as i64) == 0 => {
                Typed {
                    target: target_a,
                    offset: at_a.rem_euclid(size as i64),
                }
            }
            _ => Unknown,
        },
        _ if a.is_scalar() && b.is_scalar() => common_form(a, b),
        _ => Unknown,
    }
}

/// The linear form that both values have: the smaller constant part, the common divisor of the steps.
fn common_form(a: Value, b: Value) -> Value {
    let parts = |value: Value| match value {
        Value::Constant(number) => (0, number, Computed::Exactly),
        _ => {
            let (scale, add, x) = value.form();
            (u64::from(scale), add, x)
        }
    };
    let ((scale_a, add_a, x_a), (scale_b, add_b, x_b)) = (parts(a), parts(b));
    if scale_a == 0 && scale_b == 0 {
        return Value::Unknown;
    }
    let from = a.from() | b.from();
    // `n ? n * 16 : 1`: less than one of them is no number of them, but asked for where there is none.
    let stands_for_none = |scale: u64, add: i64, (other_scale, other): (u64, i64)| {
        scale > 1 && add == 0 && other_scale == 0 && (0..scale as i64).contains(&other)
    };
    let kept = if stands_for_none(scale_a, add_a, (scale_b, add_b)) {
        Some((scale_a, x_a))
    } else if stands_for_none(scale_b, add_b, (scale_a, add_a)) {
        Some((scale_b, x_b))
    } else {
        None
    };
    if let Some((scale, x)) = kept {
        return Value::Linear {
            from,
            x: x.min(Computed::Nearly),
            scale: u32::try_from(scale).unwrap_or(1),
            add: 0,
        };
    }
    // `n ? n + 1 : 1` is `n + 1`: the number is what the form is for 0.
    let at_zero = (scale_a == 0 || scale_b == 0) && add_a == add_b;
    if at_zero && from.count_ones() == 1 && x_a.min(x_b) >= Computed::Nearly {
        return Value::Linear {
            from,
            x: Computed::Nearly,
            scale: u32::try_from(scale_a.max(scale_b)).unwrap_or(1),
            add: add_a,
        };
    }
    // A parameter, perhaps scaled, that a number takes the place of on some path.
    let plain = |scale: u64, add: i64| scale > 0 && add == 0;
    let replaced = (plain(scale_a, add_a) && scale_b == 0)
        || (plain(scale_b, add_b) && scale_a == 0)
        || (plain(scale_a, add_a) && plain(scale_b, add_b) && scale_a == scale_b);
    if replaced && from.count_ones() == 1 && x_a.min(x_b) >= Computed::Nearly {
        return Value::Linear {
            from,
            x: Computed::Nearly,
            scale: u32::try_from(scale_a.max(scale_b)).unwrap_or(1),
            add: 0,
        };
    }
    let scale = divisor(divisor(scale_a, scale_b), add_a.abs_diff(add_b));
    let is_smaller = scale < scale_a.max(scale_b);
    Value::Linear {
        from,
        x: if is_smaller || x_a.min(x_b) == Computed::Joined {
            Computed::Joined
        } else {
            Computed::Somehow
        },
        scale: u32::try_from(scale).unwrap_or(1),
        add: add_a.min(add_b),
    }
    .or_unknown()
}

/// The greatest common divisor.
fn divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Layout for Nothing {
        fn size(&self, _: TypeIndex) -> Option<u64> {
            None
        }

        fn is_one_array(&self, a: u64, b: u64) -> bool {
            a.abs_diff(b) == 8
        }
    }

    fn steps(x: Computed, scale: u32, add: i64) -> Value {
        Value::Linear {
            from: 1,
            x,
            scale,
            add,
        }
    }

    #[test]
    fn joins() {
        use Computed::{Exactly, Joined, Nearly, Somehow};
        let next = Value::Parameter {
            index: 0,
            offset: 1,
        };
        let rows = [
            // n ? n + 1 : 1
            (next, Value::Constant(1), steps(Nearly, 1, 1)),
            (
                steps(Exactly, 16, 0),
                Value::Constant(1),
                steps(Nearly, 16, 0),
            ),
            // What divides both is the step of neither.
            (
                steps(Exactly, 4, 0),
                steps(Exactly, 8, 0),
                steps(Joined, 4, 0),
            ),
            (
                steps(Joined, 4, 0),
                steps(Exactly, 4, 4),
                steps(Joined, 4, 0),
            ),
            (
                steps(Somehow, 8, 0),
                steps(Exactly, 8, 16),
                steps(Somehow, 8, 0),
            ),
            (
                Value::Global(0x4008),
                Value::Global(0x4000),
                Value::Global(0x4000),
            ),
            (Value::Global(0x4008), Value::Global(0x5000), Value::Unknown),
        ];
        for (a, b, expect) in rows {
            let mut origins = Origins::default();
            assert_eq!(join(a, b, &mut origins, &Nothing), expect, "{a:?} {b:?}");
        }
    }
}
