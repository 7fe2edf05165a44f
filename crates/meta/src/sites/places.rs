//! *Which variables does debug info place in a register or a stack slot at an address?*

use super::typing::Types;
use crate::facts::{FrameBase, Function, Place, Variable};
use pointee_model::image::TypeIndex;

/// A variable that lies at the asked place.
#[derive(Clone, Copy)]
pub(super) struct Hit<'f> {
    pub(super) variable: &'f Variable,
    /// Its index in the function.
    pub(super) index: u32,
    pub(super) r#type: TypeIndex,
    /// Byte of the variable that lies at the asked place; for [`Place::Value`], what must be added
    /// to the register to get the variable's value.
    pub(super) offset: i64,
}

struct Span<'f> {
    start: u64,
    end: u64,
    hit: Hit<'f>,
}

/// Slots: at `base + offset`, where no base means the canonical frame address.
struct Slot<'f> {
    base: Option<u16>,
    offset: i64,
    size: u64,
    span: Span<'f>,
}

/// The places of all variables of one function.
pub(super) struct Places<'f> {
    registers: Vec<Vec<Span<'f>>>,
    slots: Vec<Slot<'f>>,
    /// Where the address of the variable lies.
    behind: Vec<Slot<'f>>,
}

impl<'f> Places<'f> {
    pub(super) fn new(function: Option<&'f Function>, types: &Types<'_>) -> Self {
        let mut places = Self {
            registers: (0..16).map(|_| Vec::new()).collect(),
            slots: Vec::new(),
            behind: Vec::new(),
        };
        let Some(function) = function else {
            return places;
        };
        let frame = match function.frame_base {
            FrameBase::Cfa => Some(None),
            FrameBase::Register(register) => Some(Some(register)),
            FrameBase::Unknown => None,
        };
        for (index, variable) in (0..).zip(&function.variables) {
            let Some(r#type) = variable.r#type else {
                continue;
            };
            for (start, end, place) in &variable.places {
                let mut span = Span {
                    start: *start,
                    end: *end,
                    hit: Hit {
                        variable,
                        index,
                        r#type,
                        offset: 0,
                    },
                };
                let size = || types.size(r#type).unwrap_or(8).max(1);
                let (base, offset) = match *place {
                    Place::Register(register) => {
                        if let Some(list) = places.registers.get_mut(usize::from(register)) {
                            list.push(span);
                        }
                        continue;
                    }
                    Place::Value(register, add) => {
                        span.hit.offset = add;
                        if let Some(list) = places.registers.get_mut(usize::from(register)) {
                            list.push(span);
                        }
                        continue;
                    }
                    Place::Frame(offset) => match frame {
                        Some(base) => (base, offset),
                        None => continue,
                    },
                    Place::Memory(register, offset) => (Some(register), offset),
                    Place::Address(_) | Place::Constant(_) => continue,
                    Place::Behind(register, offset) => {
                        let base = match (register, frame) {
                            (Some(register), _) => Some(register),
                            (None, Some(base)) => base,
                            (None, None) => continue,
                        };
                        places.behind.push(Slot {
                            base,
                            offset,
                            size: 8,
                            span,
                        });
                        continue;
                    }
                };
                places.slots.push(Slot {
                    base,
                    offset,
                    size: size(),
                    span,
                });
            }
        }
        places
    }

    /// The variables whose value lies in a register (DWARF number) at `at`.
    pub(super) fn in_register(&self, register: usize, at: u64) -> impl Iterator<Item = Hit<'f>> {
        self.registers
            .get(register)
            .into_iter()
            .flatten()
            .filter(move |span| (span.start..span.end).contains(&at))
            .map(|span| span.hit)
    }

    /// The variables that lie where a register (DWARF number) points, less `offset`.
    pub(super) fn at_register(&self, register: usize, offset: i64, at: u64) -> Vec<Hit<'f>> {
        let here = self.slots.iter().filter(|place| {
            place.base.map(usize::from) == Some(register)
                && place.offset.wrapping_add(offset) == 0
                && (place.span.start..place.span.end).contains(&at)
        });
        here.map(|place| place.span.hit).collect()
    }

    /// The variables whose address lies at `slot`, as [`Places::in_slot`].
    pub(super) fn behind_slot(
        &self,
        slot: i64,
        at: u64,
        register: impl Fn(u16) -> Option<i64>,
    ) -> Vec<Hit<'f>> {
        let here = self.behind.iter().filter(|place| {
            let base = place.base.map_or(Some(0), &register);
            base.map(|base| base.wrapping_add(place.offset)) == Some(slot)
                && (place.span.start..place.span.end).contains(&at)
        });
        here.map(|place| place.span.hit).collect()
    }

    /// The variables that lie at `slot` (relative to the canonical frame address) at `at`, given
    /// the frame offsets that registers hold.
    pub(super) fn in_slot(
        &self,
        slot: i64,
        at: u64,
        register: impl Fn(u16) -> Option<i64>,
    ) -> Vec<Hit<'f>> {
        let covering = self.slots.iter().filter_map(|place| {
            if !(place.span.start..place.span.end).contains(&at) {
                return None;
            }
            let base = place.base.map_or(Some(0), &register)?;
            let offset = slot.wrapping_sub(base).wrapping_sub(place.offset);
            (u64::try_from(offset).ok()? < place.size).then_some(Hit {
                offset,
                ..place.span.hit
            })
        });
        covering.collect()
    }
}
