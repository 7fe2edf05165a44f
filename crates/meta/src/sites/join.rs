//! *What is known of a word where two paths meet?*
//!
//! An allocation stays, for whatever the merged word is used as, the block is used as too; everything else holds if it held on both.

use super::value::{ANYWHERE, Computed, Origins, Value};
use pointee_model::image::TypeIndex;

/// What a join asks about the program.
pub(super) trait Layout {
    /// The size of a type.
    fn size(&self, of: TypeIndex) -> Option<u64>;
    /// Whether two addresses are the same place in two elements of one global array.
    fn is_one_array(&self, a: u64, b: u64) -> bool;
}

/// What holds where two paths meet.
pub(super) fn join(a: Value, b: Value, origins: &mut Origins, layout: &impl Layout) -> Value {
    use Value::{Allocated, Constant, Count, Global, Typed, Unknown};
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
        (Allocated { .. }, Constant(0)) => a,
        (Constant(0), Allocated { .. }) => b,
        (
            Allocated {
                origins: set,
                offset,
            },
            _,
        )
        | (
            _,
            Allocated {
                origins: set,
                offset,
            },
        ) => Allocated {
            origins: origins.mixed(set),
            offset,
        },
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
        (Count { .. }, _) | (_, Count { .. }) => join_counts(a, b, origins),
        _ if a.is_scalar() && b.is_scalar() => common_form(a, b),
        _ => Unknown,
    }
}

/// A count that was read on both paths, or that begins anew on one.
fn join_counts(a: Value, b: Value, origins: &mut Origins) -> Value {
    match (a, b) {
        (
            Value::Count {
                reads,
                rounded,
                scale,
                anew,
                add,
            },
            Value::Count {
                reads: there,
                rounded: other,
                scale: factor,
                anew: begun,
                add: plus,
            },
        ) if (rounded, scale) == (other, factor) => Value::Count {
            reads: origins.union(reads, there),
            rounded,
            scale,
            anew: anew || begun,
            add: if add == plus { add } else { ANYWHERE },
        },
        (
            Value::Count {
                reads,
                rounded,
                scale,
                add,
                ..
            },
            Value::Constant(number),
        )
        | (
            Value::Constant(number),
            Value::Count {
                reads,
                rounded,
                scale,
                add,
                ..
            },
        ) => Value::Count {
            reads,
            rounded,
            scale,
            anew: true,
            add: if add == number { add } else { ANYWHERE },
        },
        _ => Value::Unknown,
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

    #[test]
    fn a_block_that_may_be_something_else() {
        let other = Value::Typed {
            target: 3,
            offset: 0,
        };
        let rows = [
            (Value::Constant(0), false),
            (Value::Unknown, true),
            (other, true),
        ];
        for (with, expect) in rows {
            let mut origins = Origins::default();
            let block = Value::Allocated {
                origins: origins.single(0x1000),
                offset: 0,
            };
            let Value::Allocated {
                origins: set,
                offset: 0,
            } = join(with, block, &mut origins, &Nothing)
            else {
                panic!("{with:?}: the block stays");
            };
            assert_eq!(origins.is_mixed(set), expect, "{with:?}");
            assert_eq!(origins.calls(set), [0x1000], "{with:?}");
        }
    }
}
