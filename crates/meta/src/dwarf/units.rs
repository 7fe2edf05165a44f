//! *Which units are there, and which entry does a reference mean?*
//!
//! A *space* is one set of debug sections: the file itself, its dwz alternate, one `.dwo` each.
//! Units of all spaces get dense numbers, and a debugging information entry is named by
//! [`DieRef`]: unit and offset in the unit. All reference forms of DWARF end here.

use super::sections::Bytes;
use gimli::{AttributeValue, DebugTypeSignature, Dwarf, SectionId, Unit, UnitType};
use std::collections::HashMap;

/// One debugging information entry: unit number and offset in the unit, or none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct DieRef(u64);

impl DieRef {
    pub(super) const NONE: Self = Self(u64::MAX);

    pub(super) fn new(unit: u32, offset: u32) -> Self {
        Self(u64::from(unit) << 32 | u64::from(offset))
    }

    pub(super) fn unit(self) -> usize {
        (self.0 >> 32) as usize
    }

    pub(super) fn offset(self) -> u32 {
        self.0 as u32
    }

    pub(super) fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// One unit and where it belongs.
pub(super) struct UnitEntry<'a> {
    pub(super) unit: Unit<Bytes<'a>>,
    pub(super) space: usize,
    /// The unit whose line program names this unit's files: its own, or the skeleton's.
    pub(super) line_unit: usize,
    /// A skeleton whose split unit was found: everything is read there.
    pub(super) replaced: bool,
}

/// All units of all spaces.
pub(super) struct Units<'a> {
    pub(super) spaces: Vec<Dwarf<Bytes<'a>>>,
    pub(super) units: Vec<UnitEntry<'a>>,
    /// By space: start of each `.debug_info` unit and its number, ascending.
    starts: Vec<Vec<(usize, u32)>>,
    signatures: HashMap<u64, DieRef>,
    /// The space that `DW_FORM_ref_sup` means.
    supplement: Option<usize>,
}

impl<'a> Units<'a> {
    pub(super) fn new() -> Self {
        Self {
            spaces: Vec::new(),
            units: Vec::new(),
            starts: Vec::new(),
            signatures: HashMap::new(),
            supplement: None,
        }
    }

    /// Reads the unit headers of one more space; returns its number.
    pub(super) fn add_space(
        &mut self,
        mut dwarf: Dwarf<Bytes<'a>>,
        diagnostics: &mut Vec<String>,
    ) -> usize {
        dwarf.populate_abbreviations_cache(gimli::AbbreviationsCacheStrategy::All);
        let space = self.spaces.len();
        let mut headers = Vec::new();
        let mut info = dwarf.units();
        loop {
            match info.next() {
                Ok(Some(header)) => headers.push(header),
                Ok(None) => break,
                Err(error) => {
                    diagnostics.push(format!("unit header in .debug_info: {error}"));
                    break;
                }
            }
        }
        let mut types = dwarf.type_units();
        while let Ok(Some(header)) = types.next() {
            headers.push(header);
        }
        let mut starts = Vec::new();
        for header in headers {
            let offset = header.offset().0;
            let number = self.units.len();
            let Ok(id) = u32::try_from(number) else { break };
            let kind = header.type_();
            let in_info = header.section() == SectionId::DebugInfo;
            let unit = match dwarf.unit(header) {
                Ok(unit) => unit,
                Err(error) => {
                    diagnostics.push(format!("unit at {offset:#x}: {error}"));
                    continue;
                }
            };
            if in_info {
                starts.push((offset, id));
            }
            if let UnitType::Type {
                type_signature,
                type_offset,
            }
            | UnitType::SplitType {
                type_signature,
                type_offset,
            } = kind
                && let Ok(at) = u32::try_from(type_offset.0)
            {
                let DebugTypeSignature(signature) = type_signature;
                self.signatures
                    .entry(signature)
                    .or_insert(DieRef::new(id, at));
            }
            self.units.push(UnitEntry {
                unit,
                space,
                line_unit: number,
                replaced: false,
            });
        }
        self.starts.push(starts);
        self.spaces.push(dwarf);
        space
    }

    /// Says that `space` is the dwz alternate.
    pub(super) fn set_supplement(&mut self, space: usize) {
        self.supplement = Some(space);
    }

    /// Whether `space` is the dwz alternate.
    pub(super) fn is_supplement(&self, space: usize) -> bool {
        self.supplement == Some(space)
    }

    /// Gives each split unit the bases and files of its skeleton, and retires the skeleton.
    pub(super) fn join_skeletons(&mut self) {
        let skeletons: HashMap<u64, usize> = self
            .units
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.space == 0)
            .filter_map(|(number, entry)| Some((entry.unit.dwo_id?.0, number)))
            .collect();
        for number in 0..self.units.len() {
            let (before, rest) = self.units.split_at_mut(number);
            let Some(entry) = rest.first_mut().filter(|entry| entry.space != 0) else {
                continue;
            };
            let skeleton = entry
                .unit
                .dwo_id
                .and_then(|id| skeletons.get(&id.0))
                .and_then(|at| Some((*at, before.get_mut(*at)?)));
            if let Some((at, skeleton)) = skeleton {
                entry.unit.copy_relocated_attributes(&skeleton.unit);
                entry.line_unit = at;
                skeleton.replaced = true;
            }
        }
    }

    /// The entry that a reference attribute in `unit` means.
    pub(super) fn resolve(&self, unit: usize, value: AttributeValue<Bytes<'a>>) -> DieRef {
        let Some(entry) = self.units.get(unit) else {
            return DieRef::NONE;
        };
        match value {
            AttributeValue::UnitRef(offset) => match (u32::try_from(unit), u32::try_from(offset.0))
            {
                (Ok(unit), Ok(offset)) => DieRef::new(unit, offset),
                _ => DieRef::NONE,
            },
            AttributeValue::DebugInfoRef(offset) => self.in_space(entry.space, offset.0),
            AttributeValue::DebugInfoRefSup(offset) => self
                .supplement
                .map_or(DieRef::NONE, |space| self.in_space(space, offset.0)),
            AttributeValue::DebugTypesRef(DebugTypeSignature(signature)) => self
                .signatures
                .get(&signature)
                .copied()
                .unwrap_or(DieRef::NONE),
            _ => DieRef::NONE,
        }
    }

    fn in_space(&self, space: usize, offset: usize) -> DieRef {
        let Some(starts) = self.starts.get(space) else {
            return DieRef::NONE;
        };
        let after = starts.partition_point(|(start, _)| *start <= offset);
        after
            .checked_sub(1)
            .and_then(|at| starts.get(at))
            .and_then(|(start, unit)| {
                let within = u32::try_from(offset - start).ok()?;
                Some(DieRef::new(*unit, within))
            })
            .unwrap_or(DieRef::NONE)
    }
}
