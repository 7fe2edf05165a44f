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

/// At `offset` from the base of its group.
struct Slot<'f> {
    offset: i64,
    size: u64,
    span: Span<'f>,
}

/// Slots in order of offset. No base means the canonical frame address.
#[derive(Default)]
struct Group<'f> {
    base: Option<u16>,
    /// Bytes of the largest.
    reach: u64,
    slots: Vec<Slot<'f>>,
}

/// The places of all variables of one function.
pub(super) struct Places<'f> {
    registers: Vec<Vec<Span<'f>>>,
    slots: Vec<Group<'f>>,
    /// Where the address of the variable lies.
    behind: Vec<Group<'f>>,
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
                    Place::Register(register) | Place::Start(register) => {
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
                        let size = 8;
                        add(&mut places.behind, base, Slot { offset, size, span });
                        continue;
                    }
                };
                let size = size();
                add(&mut places.slots, base, Slot { offset, size, span });
            }
        }
        for group in places.slots.iter_mut().chain(&mut places.behind) {
            group.slots.sort_by_key(|slot| slot.offset);
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
        let base = u16::try_from(register).ok();
        let own = self
            .slots
            .iter()
            .filter(|group| group.base.is_some() && group.base == base);
        own.flat_map(|group| group.around(offset.wrapping_neg(), at))
            .filter(|hit| hit.offset == 0)
            .collect()
    }

    /// The variables whose address lies at `slot`, as [`Places::in_slot`].
    pub(super) fn behind_slot(
        &self,
        slot: i64,
        at: u64,
        register: impl Fn(u16) -> Option<i64>,
    ) -> Vec<Hit<'f>> {
        let mut hits = covering(&self.behind, slot, at, register);
        hits.retain(|hit| hit.offset == 0);
        hits
    }

    /// The variables that lie at `slot` (relative to the canonical frame address) at `at`, given
    /// the frame offsets that registers hold.
    pub(super) fn in_slot(
        &self,
        slot: i64,
        at: u64,
        register: impl Fn(u16) -> Option<i64>,
    ) -> Vec<Hit<'f>> {
        covering(&self.slots, slot, at, register)
    }
}

impl<'f> Group<'f> {
    /// The variables that lie `offset` from the base at `at`.
    fn around(&self, offset: i64, at: u64) -> impl Iterator<Item = Hit<'f>> {
        let end = self.slots.partition_point(|slot| slot.offset <= offset);
        let reach = self.reach;
        let near = self.slots[..end].iter().rev();
        near.map(move |slot| (slot, offset.wrapping_sub(slot.offset)))
            .take_while(move |(_, within)| within.unsigned_abs() < reach)
            .filter(move |(slot, within)| {
                within.unsigned_abs() < slot.size && (slot.span.start..slot.span.end).contains(&at)
            })
            .map(|(slot, offset)| Hit {
                offset,
                ..slot.span.hit
            })
    }
}

fn add<'f>(groups: &mut Vec<Group<'f>>, base: Option<u16>, slot: Slot<'f>) {
    let known = groups.iter().position(|group| group.base == base);
    let at = known.unwrap_or_else(|| {
        groups.push(Group {
            base,
            ..Group::default()
        });
        groups.len() - 1
    });
    groups[at].reach = groups[at].reach.max(slot.size);
    groups[at].slots.push(slot);
}

/// In the order in which the function declares them.
fn covering<'f>(
    groups: &[Group<'f>],
    slot: i64,
    at: u64,
    register: impl Fn(u16) -> Option<i64>,
) -> Vec<Hit<'f>> {
    let mut hits: Vec<Hit<'f>> = groups
        .iter()
        .filter_map(|group| Some((group, group.base.map_or(Some(0), &register)?)))
        .flat_map(|(group, base)| group.around(slot.wrapping_sub(base), at))
        .collect();
    hits.sort_by_key(|hit| hit.index);
    hits
}
