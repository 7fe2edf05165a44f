//! *Where does a variable lie, and which code does an entry cover?*
//!
//! Location expressions are not evaluated but recognized: the few shapes that name one register,
//! one memory slot or one value become a [`Place`], everything else (other pieces, entry values,
//! computations) becomes nothing. Lists are charged to a [`Budget`], because a hostile file may let a
//! million entries refer to one long list.

use super::die::{Die, Value};
use super::sections::Bytes;
use crate::facts::{FrameBase, Place};
use gimli::{AttributeValue, Dwarf, Expression, Operation, Unit};
use std::sync::atomic::{AtomicU64, Ordering};

/// How many more list entries may be read from one file.
pub(super) struct Budget(AtomicU64);

impl Budget {
    /// Lists are shared by few entries in real files: ten times the bytes there are is ample.
    pub(super) fn for_bytes(bytes: usize) -> Self {
        Self(AtomicU64::new((bytes as u64).saturating_mul(10)))
    }

    fn spend(&self) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_ok()
    }
}

/// One unit with what is needed to evaluate its attributes.
#[derive(Clone, Copy)]
pub(super) struct Evaluator<'u, 'a> {
    pub(super) dwarf: &'u Dwarf<Bytes<'a>>,
    pub(super) unit: &'u Unit<Bytes<'a>>,
    pub(super) budget: &'u Budget,
}

/// Where a variable with one location for all of its life lies.
pub(super) enum Fixed {
    Place(Place),
    /// An offset in the thread-local block.
    ThreadLocal(u64),
}

impl<'a> Evaluator<'_, 'a> {
    /// The code ranges of an entry, the lowest address of its entry point first as DWARF lists it.
    pub(super) fn ranges(&self, die: &Die<'a>, mut each: impl FnMut(u64, u64)) {
        if let Some(value) = &die.ranges {
            let Ok(Some(mut list)) = self.dwarf.attr_ranges(self.unit, *value) else {
                return;
            };
            while let Ok(Some(range)) = list.next() {
                if !self.budget.spend() {
                    return;
                }
                if range.begin < range.end {
                    each(range.begin, range.end);
                }
            }
            return;
        }
        let (Some(low), Some(high)) = (&die.low_pc, &die.high_pc) else {
            return;
        };
        let Some(start) = self.address(low) else {
            return;
        };
        let end = match self.address(high) {
            Some(end) => Some(end),
            None => high.udata_value().and_then(|len| start.checked_add(len)),
        };
        if let Some(end) = end.filter(|end| *end > start) {
            each(start, end);
        }
    }

    /// Where control enters an inlined call, if it is stated (`DW_AT_entry_pc`, DWARF 5, 2.18: an address, or bytes from the lowest).
    pub(super) fn entry(&self, die: &Die<'a>) -> Option<u64> {
        let value = die.entry_pc.as_ref()?;
        self.address(value).or_else(|| {
            let mut base = None;
            self.ranges(die, |start, _| {
                base.get_or_insert(start);
            });
            base?.checked_add(value.udata_value()?)
        })
    }

    pub(super) fn address(&self, value: &Value<'a>) -> Option<u64> {
        self.dwarf.attr_address(self.unit, *value).ok().flatten()
    }

    /// The places of a variable by code address; `whole` is the code over which a location without
    /// a list holds.
    pub(super) fn places(
        &self,
        location: &Value<'a>,
        whole: &[(u64, u64)],
        mut each: impl FnMut(u64, u64, Place),
    ) {
        if let Some(expression) = location.exprloc_value() {
            if let Some(Fixed::Place(place)) = self.recognize(expression) {
                for (start, end) in whole {
                    each(*start, *end, place);
                }
            }
            return;
        }
        let Ok(Some(mut list)) = self.dwarf.attr_locations(self.unit, *location) else {
            return;
        };
        while let Ok(Some(entry)) = list.next() {
            if !self.budget.spend() {
                return;
            }
            if entry.range.begin < entry.range.end
                && let Some(Fixed::Place(place)) = self.recognize(entry.data)
            {
                each(entry.range.begin, entry.range.end, place);
            }
        }
    }

    /// What a `DW_AT_location` that is one expression says.
    pub(super) fn fixed(&self, location: &Value<'a>) -> Option<Fixed> {
        self.recognize(location.exprloc_value()?)
    }

    /// What `DW_OP_fbreg` counts from.
    pub(super) fn frame_base(&self, value: &Value<'a>) -> FrameBase {
        let Some(expression) = value.exprloc_value() else {
            return FrameBase::Unknown;
        };
        let mut operations = expression.operations(self.unit.encoding());
        match (operations.next(), operations.next()) {
            (Ok(Some(Operation::CallFrameCFA)), Ok(None)) => FrameBase::Cfa,
            (Ok(Some(Operation::Register { register })), Ok(None)) => {
                FrameBase::Register(register.0)
            }
            _ => FrameBase::Unknown,
        }
    }

    /// A constant member offset: either a number or `DW_OP_plus_uconst n`.
    pub(super) fn member_offset(&self, value: &Value<'a>) -> Option<u64> {
        if let Some(expression) = value.exprloc_value() {
            let mut operations = expression.operations(self.unit.encoding());
            return match (operations.next(), operations.next()) {
                (Ok(Some(Operation::PlusConstant { value })), Ok(None)) => Some(value),
                _ => None,
            };
        }
        value.udata_value()
    }

    fn recognize(&self, expression: Expression<Bytes<'a>>) -> Option<Fixed> {
        let mut operations = expression.operations(self.unit.encoding());
        let first = operations.next().ok()??;
        let second = operations.next().ok()?;
        let third = match second {
            Some(_) => operations.next().ok()?,
            None => None,
        };
        let place = match (first, second, third) {
            (Operation::Register { register }, None, None) => Place::Register(register.0),
            (
                Operation::Register { register },
                Some(Operation::Piece {
                    size_in_bits: 64,
                    bit_offset: None | Some(0),
                }),
                _,
            ) => Place::Start(register.0),
            (
                Operation::RegisterOffset {
                    register, offset, ..
                },
                None,
                None,
            ) => Place::Memory(register.0, offset),
            (
                Operation::RegisterOffset {
                    register, offset, ..
                },
                Some(Operation::StackValue),
                None,
            ) => Place::Value(register.0, offset),
            (
                Operation::RegisterOffset {
                    register, offset, ..
                },
                Some(Operation::Deref { .. }),
                None,
            ) => Place::Behind(Some(register.0), offset),
            (Operation::FrameOffset { offset }, Some(Operation::Deref { .. }), None) => {
                Place::Behind(None, offset)
            }
            (Operation::FrameOffset { offset }, None, None) => Place::Frame(offset),
            (Operation::UnsignedConstant { value }, Some(Operation::StackValue), None) => {
                Place::Constant(value as i64)
            }
            (Operation::SignedConstant { value }, Some(Operation::StackValue), None) => {
                Place::Constant(value)
            }
            (Operation::Address { address }, None, None) => Place::Address(address),
            (Operation::Address { address }, Some(Operation::PlusConstant { value }), None) => {
                Place::Address(address.wrapping_add(value))
            }
            (Operation::AddressIndex { index }, None, None) => {
                Place::Address(self.dwarf.address(self.unit, index).ok()?)
            }
            (
                Operation::UnsignedConstant { value } | Operation::Address { address: value },
                Some(Operation::TLS),
                None,
            ) => return Some(Fixed::ThreadLocal(value)),
            (Operation::ConstantIndex { index }, Some(Operation::TLS), None) => {
                return Some(Fixed::ThreadLocal(
                    self.dwarf.address(self.unit, index).ok()?,
                ));
            }
            _ => return None,
        };
        Some(Fixed::Place(place))
    }
}

/// Whether a value refers to a location list, not to one expression.
pub(super) fn is_list(value: &Value<'_>) -> bool {
    !matches!(value, AttributeValue::Exprloc(_) | AttributeValue::Block(_))
}
