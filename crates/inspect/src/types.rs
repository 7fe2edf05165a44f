//! *Which types do these objects have, and of which do they disagree?*
//!
//! A type is one however many objects define it: images give the same identity to the same name and
//! structure. Two objects *conflict* over a name when each defines it and they have no definition in
//! common: whoever passes such an object from one to the other reads the wrong bytes. Compared is what
//! the code of each relies on, a record's size and its members' names, places and sizes, or an enum's
//! values. What an object defines for itself alone (an anonymous type, a declaration) is no conflict.

use crate::describe::{size_of_type, type_name};
use pointee_model::image::{Image, TypeIndex, TypeKind, TypeRecord, type_flags};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The record of a type whose size is not known.
const UNKNOWN: u64 = u64::MAX;

/// One type.
#[derive(Debug, Clone, Serialize)]
pub struct TypeRow {
    /// As C writes it.
    pub name: String,
    /// `struct`, `class`, `union`, `variant` or `enum`.
    pub kind: &'static str,
    /// Bytes; `null` where it is only declared.
    pub size: Option<u64>,
    /// Members in order; for an enum none.
    pub members: Vec<MemberRow>,
    /// The objects that define it.
    pub modules: Vec<String>,
    /// Equal for the same type in whatever object, as hexadecimal digits.
    pub identity: String,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberRow {
    /// Empty for an anonymous member or a base class.
    pub name: String,
    /// Its type, as C writes it.
    pub r#type: String,
    /// Bytes from the start; of the storage unit, for a bit-field.
    pub offset: u64,
    /// Bytes; `null` for what has no size, as an array without length.
    pub size: Option<u64>,
    /// First bit in the storage unit, for a bit-field.
    pub bit_offset: Option<u16>,
    /// Bits, for a bit-field.
    pub bit_size: Option<u16>,
}

/// One name that objects disagree about.
#[derive(Debug, Clone, Serialize)]
pub struct Conflict {
    /// The name, with its keyword.
    pub name: String,
    /// Each layout with the objects that have it.
    pub definitions: Vec<Definition>,
    /// Where the first two differ, in words.
    pub difference: String,
}

/// One layout of a name.
#[derive(Debug, Clone, Serialize)]
pub struct Definition {
    /// Bytes.
    pub size: Option<u64>,
    /// The objects.
    pub modules: Vec<String>,
}

/// What the code of an object relies on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Layout {
    size: u64,
    /// Name, offset, first bit, bits, and bytes of each member; of an enumerator name and value.
    members: Vec<(String, u64, u16, u16, u64)>,
}

/// The records and enums of all objects, each once, by name.
#[must_use]
pub fn unique(objects: &[(String, Image<'_>)]) -> Vec<TypeRow> {
    let mut rows: Vec<TypeRow> = Vec::new();
    let mut known: HashMap<[u8; 16], usize> = HashMap::new();
    for (module, image) in objects {
        for (index, record, kind) in defined(image) {
            let at = *known.entry(record.identity).or_insert_with(|| {
                rows.push(row(image, index, record, kind));
                rows.len() - 1
            });
            let modules = &mut rows[at].modules;
            if modules.last() != Some(module) {
                modules.push(module.clone());
            }
        }
    }
    rows.sort_by(|a, b| (&a.name, &a.identity).cmp(&(&b.name, &b.identity)));
    rows
}

/// The names that two objects have no common definition of.
#[must_use]
pub fn conflicts(objects: &[(String, Image<'_>)]) -> Vec<Conflict> {
    type Layouts = BTreeSet<Layout>;
    let mut by_name: BTreeMap<(String, &str), Vec<(&str, Layouts)>> = BTreeMap::new();
    for (module, image) in objects {
        for (index, record, kind) in defined(image) {
            let own = type_flags::DECLARATION | type_flags::ANONYMOUS;
            if record.flags & own != 0 || record.size == UNKNOWN {
                continue;
            }
            let definitions = by_name.entry((type_name(image, index), kind)).or_default();
            if definitions.last().is_none_or(|(last, _)| last != module) {
                definitions.push((module, Layouts::new()));
            }
            if let Some((_, layouts)) = definitions.last_mut() {
                layouts.insert(layout(image, record));
            }
        }
    }
    let mut found = Vec::new();
    for ((name, _), objects) in by_name {
        let apart = |a: &Layouts, b: &Layouts| a.is_disjoint(b);
        let disagree = (1..objects.len()).any(|at| {
            objects[..at]
                .iter()
                .any(|other| apart(&other.1, &objects[at].1))
        });
        if !disagree {
            continue;
        }
        let mut definitions: BTreeMap<&Layout, Vec<String>> = BTreeMap::new();
        for (module, layouts) in &objects {
            for layout in layouts {
                definitions
                    .entry(layout)
                    .or_default()
                    .push((*module).to_owned());
            }
        }
        let mut layouts = definitions.keys();
        let difference = match (layouts.next(), layouts.next()) {
            (Some(a), Some(b)) => difference(a, b),
            _ => String::new(),
        };
        found.push(Conflict {
            name,
            difference,
            definitions: definitions
                .into_iter()
                .map(|(layout, modules)| Definition {
                    size: Some(layout.size),
                    modules,
                })
                .collect(),
        });
    }
    found
}

/// The types of an image that have members or values and a name.
fn defined<'a>(
    image: &Image<'a>,
) -> impl Iterator<Item = (TypeIndex, &'a TypeRecord, &'static str)> {
    let records = (0..).zip(image.types);
    let named = records.filter(|(_, record)| record.name != 0);
    named.filter_map(|(index, record)| {
        let word = match TypeKind::from_byte(record.kind) {
            TypeKind::Struct => "struct",
            TypeKind::Class => "class",
            TypeKind::Union => "union",
            TypeKind::Variant => "variant",
            TypeKind::Enum => "enum",
            _ => return None,
        };
        Some((index, record, word))
    })
}

fn row(image: &Image<'_>, index: TypeIndex, record: &TypeRecord, kind: &'static str) -> TypeRow {
    let members = if kind == "enum" {
        &[]
    } else {
        image.members_of(record)
    };
    TypeRow {
        name: type_name(image, index),
        kind,
        size: (record.size != UNKNOWN).then_some(record.size),
        members: members
            .iter()
            .map(|member| {
                let bits = member.bit_size > 0;
                MemberRow {
                    name: image.string(member.name).to_owned(),
                    r#type: type_name(image, member.r#type),
                    offset: member.offset,
                    size: size_of_type(image, member.r#type),
                    bit_offset: bits.then_some(member.bit_offset),
                    bit_size: bits.then_some(member.bit_size),
                }
            })
            .collect(),
        modules: Vec::new(),
        identity: record
            .identity
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    }
}

fn layout(image: &Image<'_>, record: &TypeRecord) -> Layout {
    let is_enum = TypeKind::from_byte(record.kind) == TypeKind::Enum;
    let members = if is_enum {
        let values = image.enumerators_of(record).iter();
        values
            .map(|value| {
                (
                    image.string(value.name).to_owned(),
                    value.value.cast_unsigned(),
                    0,
                    0,
                    0,
                )
            })
            .collect()
    } else {
        let members = image.members_of(record).iter();
        members
            .map(|member| {
                (
                    image.string(member.name).to_owned(),
                    member.offset,
                    member.bit_offset,
                    member.bit_size,
                    size_of_type(image, member.r#type).unwrap_or(UNKNOWN),
                )
            })
            .collect()
    };
    Layout {
        size: record.size,
        members,
    }
}

/// What a reader of both would see first.
fn difference(a: &Layout, b: &Layout) -> String {
    let mut pairs = a.members.iter().zip(&b.members);
    if let Some((left, right)) = pairs.find(|(left, right)| left != right) {
        return if left.0 == right.0 {
            format!("`{}` lies at {} or at {}", left.0, left.1, right.1)
                + if left.1 == right.1 {
                    ", of another size"
                } else {
                    ""
                }
        } else {
            format!("`{}` at {} or `{}` at {}", left.0, left.1, right.0, right.1)
        };
    }
    let longer = if a.members.len() > b.members.len() {
        a
    } else {
        b
    };
    match longer.members.get(a.members.len().min(b.members.len())) {
        Some(member) => format!("one goes on with `{}` at {}", member.0, member.1),
        None => format!("{} or {} bytes", a.size, b.size),
    }
}
