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
    /// The parameter `unit`, times something computed from the parameters in the bit mask `from`; if that is 0, from something else, and
    /// either may be the unit.
    Multiple { unit: u8, from: u8 },
    /// What a counting cursor was where one of `reads` read it, rounded up to a multiple of `1 << rounded`; that times `scale`, plus `add`
    /// ([`ANYWHERE`] if not known). `anew`: on some path it is a number that the cursor begins anew with.
    Count {
        reads: OriginSet,
        rounded: u8,
        scale: u8,
        anew: bool,
        add: i64,
    },
    /// The result of one of the allocations in `origins`, plus `offset` ([`ANYWHERE`] if not known,
    /// or what a parameter holds: [`offset_parameter`]).
    Allocated { origins: OriginSet, offset: i64 },
    /// `offset` bytes past an object of type `target`.
    Typed { target: TypeIndex, offset: i64 },
    /// A fixed link-time address.
    Global(u64),
    /// What the linkage slot here holds: the address of an allocation function of another file.
    Linked(u64),
    /// Canonical frame address plus this.
    Stack(i64),
}

/// How the `x` of a linear form comes from parameters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Computed {
    /// In several ways that meet here, or as a sum of several steps: the step divides that of each.
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

/// Stands in a set for whatever else the word may be, on some path; no call has this address.
const SOMETHING_ELSE: u64 = 0;

/// Stands in a set for that the word may be on another path; no call has this address.
const ELSEWHERE: u64 = 1;

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
        match self.members(set) {
            [SOMETHING_ELSE, ELSEWHERE, calls @ ..] | [SOMETHING_ELSE | ELSEWHERE, calls @ ..] => {
                calls
            }
            calls => calls,
        }
    }

    /// Whether the word may be something else than one of the set's allocations.
    pub(super) fn is_mixed(&self, set: OriginSet) -> bool {
        self.members(set).first() == Some(&SOMETHING_ELSE)
    }

    /// Whether the word may be on another path than the one that it was seen on.
    pub(super) fn is_guessed(&self, set: OriginSet) -> bool {
        self.members(set).iter().take(2).any(|at| *at == ELSEWHERE)
    }

    /// The set, of a word that may be on another path.
    pub(super) fn guessed(&mut self, set: OriginSet) -> OriginSet {
        let elsewhere = self.single(ELSEWHERE);
        self.union(elsewhere, set)
    }

    /// The set, of a word that may be something else too.
    pub(super) fn mixed(&mut self, set: OriginSet) -> OriginSet {
        let something_else = self.single(SOMETHING_ELSE);
        self.union(something_else, set)
    }

    fn members(&self, set: OriginSet) -> &[u64] {
        self.sets.get(set as usize).map_or(&[], Vec::as_slice)
    }

    pub(super) fn union(&mut self, a: OriginSet, b: OriginSet) -> OriginSet {
        if a == b {
            return a;
        }
        let mut merged = [self.members(a), self.members(b)].concat();
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
            Self::Multiple { unit, from } => 1 << unit | from,
            _ => 0,
        }
    }

    /// Whether this is a number rather than a pointer, as far as one can tell.
    pub(super) fn is_scalar(self) -> bool {
        matches!(
            self,
            Self::Constant(_)
                | Self::Parameter { .. }
                | Self::Linear { .. }
                | Self::Product(..)
                | Self::Multiple { .. }
                | Self::Count { .. }
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
            Self::Product(..) | Self::Multiple { .. } | Self::Linked(_) if number == 0 => self,
            Self::Product(..) | Self::Multiple { .. } => Self::Linear {
                from: self.from(),
                x: Computed::Somehow,
                scale: 1,
                add: number,
            },
            Self::Count { add: ANYWHERE, .. } => self,
            Self::Count { add, .. } => self.count_at(add.wrapping_add(number)),
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
            Self::Unknown | Self::Linked(_) => Self::Unknown,
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
            (count @ Self::Count { .. }, _) | (_, count @ Self::Count { .. }) => {
                count.count_at(ANYWHERE)
            }
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
                // 4n + n, as compilers write 5n: what the step of this is, nobody knows.
                let mixed = !same && scale_a != scale_b && scale_a.max(scale_b) > 1;
                Self::Linear {
                    from,
                    x: if one {
                        Computed::Exactly
                    } else if mixed {
                        Computed::Joined
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
                Self::Count { .. } => self.count_at(ANYWHERE),
                // 8n - n, as compilers write 7n: a multiple of this has a multiple of its step.
                Self::Linear { scale, .. } if scale > 1 => Self::Linear {
                    from: self.from() | other.from(),
                    x: Computed::Joined,
                    scale: 1,
                    add: 0,
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
            Self::Count {
                reads,
                rounded,
                scale,
                anew,
                add,
            } => match u8::try_from(small)
                .ok()
                .and_then(|by| scale.checked_mul(by))
            {
                Some(scale) => Self::Count {
                    reads,
                    rounded,
                    scale,
                    anew,
                    add: match add {
                        ANYWHERE => ANYWHERE,
                        _ => add.wrapping_mul(factor),
                    },
                },
                None => Self::Unknown,
            },
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
            (Self::Parameter { index, offset: 0 }, times @ Self::Linear { .. })
            | (times @ Self::Linear { .. }, Self::Parameter { index, offset: 0 })
                if times.from() != 0 =>
            {
                Self::Multiple {
                    unit: index,
                    from: times.from(),
                }
            }
            (Self::Parameter { index, offset: 0 }, Self::Unknown)
            | (Self::Unknown, Self::Parameter { index, offset: 0 }) => Self::Multiple {
                unit: index,
                from: 0,
            },
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
            Self::Count { .. } => self.count_rounded(wide.trailing_zeros(), rounds),
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

    /// The same count, plus another number.
    fn count_at(self, add: i64) -> Self {
        match self {
            Self::Count {
                reads,
                rounded,
                scale,
                anew,
                ..
            } => Self::Count {
                reads,
                rounded,
                scale,
                anew,
                add,
            },
            other => other,
        }
    }

    /// A count whose lowest bits are cleared: that is the last step of rounding it up, or of rounding up what it becomes.
    fn count_rounded(self, bits: u32, rounds: bool) -> Self {
        match self {
            Self::Count {
                reads,
                rounded: 0,
                scale: 1,
                anew,
                add,
            } if rounds && add == (1 << bits) - 1 => Self::Count {
                reads,
                rounded: bits as u8,
                scale: 1,
                anew,
                add: 0,
            },
            Self::Count { .. } if rounds => self.count_at(ANYWHERE),
            _ => Self::Unknown,
        }
    }

    /// Scale and constant part of the linear form, and what its `x` is; 1 and 0 for what has none.
    pub(super) fn form(self) -> (u32, i64, Computed) {
        match self {
            Self::Linear { scale, add, x, .. } => (scale, add, x),
            Self::Parameter { offset, .. } => (1, offset, Computed::Exactly),
            _ => (1, 0, Computed::Somehow),
        }
    }

    pub(super) fn or_unknown(self) -> Self {
        match self {
            Self::Linear {
                from: 0,
                scale: 1,
                add: 0,
                x,
            } if x != Computed::Joined => Self::Unknown,
            value => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands in a set for a doubt is no call.
    #[test]
    fn doubts_are_no_calls() {
        let mut origins = Origins::default();
        let one = origins.single(0x1000);
        let two = origins.single(0x2000);
        let both = origins.union(one, two);
        let guessed = origins.guessed(one);
        let mixed = origins.mixed(guessed);
        let rows = [
            (one, &[0x1000][..], false, false),
            (both, &[0x1000, 0x2000], false, false),
            (guessed, &[0x1000], false, true),
            (mixed, &[0x1000], true, true),
            (origins.union(mixed, two), &[0x1000, 0x2000], true, true),
            (origins.mixed(two), &[0x2000], true, false),
        ];
        for (set, calls, is_mixed, is_guessed) in rows {
            assert_eq!(origins.calls(set), calls);
            assert_eq!(origins.is_mixed(set), is_mixed, "{calls:x?}");
            assert_eq!(origins.is_guessed(set), is_guessed, "{calls:x?}");
        }
    }
}
