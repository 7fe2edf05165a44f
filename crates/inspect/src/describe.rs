//! *How is a type written, and which field lies at an offset?*
//!
//! Types are written as C writes them (`struct commit *[4]`, `int (*)(void *)`); names of C++ and Rust, which
//! carry no keyword, stay as they are. Every walk is bounded: a damaged image may hold cycles.

use pointee_model::evidence::Role;
use pointee_model::image::{
    Image, MemberRecord, NO_TYPE, TypeIndex, TypeKind, TypeRecord, member_flags, type_flags,
};
use std::cell::Cell;

/// Nesting that is followed, in types and in fields.
const DEEPEST: u32 = 32;
/// Types that are named in one declaration: parameters of parameters multiply.
const NAMED: u32 = 256;
/// A size or count that is not known.
const UNKNOWN: u64 = u64::MAX;

/// The type of an allocation: which part of which image's types it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of the module whose image holds the types.
    pub module: u32,
    /// What part the type plays.
    pub role: Role,
    /// The type.
    pub r#type: TypeIndex,
    /// For headers: element of the trailing array, or `NO_TYPE`.
    pub tail: TypeIndex,
    /// For headers: bytes in front of the array, the last of which are the header; 0: there are no others.
    pub front: u64,
}

/// Equal for the same shape in whatever image.
pub type ShapeIdentity = (u8, [u8; 16], [u8; 16]);

impl Shape {
    /// The identity, for merging across images.
    #[must_use]
    pub fn identity(&self, image: &Image<'_>) -> ShapeIdentity {
        let of = |index| {
            image
                .type_at(index)
                .map_or([0; 16], |record| record.identity)
        };
        (self.role as u8, of(self.r#type), of(self.tail))
    }

    /// As written in reports: `struct list`, `int[]`, `struct header + char[]`.
    #[must_use]
    pub fn name(&self, image: &Image<'_>) -> String {
        let name = type_name(image, self.r#type);
        match self.role {
            Role::Element | Role::Characters | Role::Bytes => array_name(image, self.r#type),
            Role::Header if self.tail != NO_TYPE => {
                format!("{name} + {}", array_name(image, self.tail))
            }
            Role::Header => format!("{name} + …"),
            Role::Base => format!("{name} or derived"),
            Role::Unknown => format!("{name} or more"),
            Role::Whole => name,
        }
    }
}

/// A type as C writes it.
#[must_use]
pub fn type_name(image: &Image<'_>, index: TypeIndex) -> String {
    declare(image, index, String::new(), 0, &Cell::new(NAMED))
}

/// An array of a type as C writes it: `int (*[])(void)` for one of pointers to functions.
fn array_name(image: &Image<'_>, index: TypeIndex) -> String {
    declare(image, index, "[]".to_owned(), 0, &Cell::new(NAMED))
}

/// Writes the declaration of `inner` as `index`, from the inside out; `left` more types may be named.
fn declare(
    image: &Image<'_>,
    index: TypeIndex,
    inner: String,
    depth: u32,
    left: &Cell<u32>,
) -> String {
    let Some(record) = image.type_at(index) else {
        return spaced("void", &inner);
    };
    let name = image.string(record.name);
    let kind = TypeKind::from_byte(record.kind);
    if depth > DEEPEST || left.get() == 0 {
        return spaced("…", &inner);
    }
    left.set(left.get() - 1);
    let target = |inner| declare(image, record.target, inner, depth + 1, left);
    let enclosed = |mark: &str| {
        let below = image
            .type_at(record.target)
            .map(|target| TypeKind::from_byte(target.kind));
        if matches!(below, Some(TypeKind::Array | TypeKind::Function)) {
            format!("({mark}{inner})")
        } else {
            format!("{mark}{inner}")
        }
    };
    match kind {
        TypeKind::Pointer | TypeKind::Reference | TypeKind::RvalueReference if !name.is_empty() => {
            spaced(name, &inner)
        }
        TypeKind::Pointer | TypeKind::MemberPointer => target(enclosed("*")),
        TypeKind::Reference => target(enclosed("&")),
        TypeKind::RvalueReference => target(enclosed("&&")),
        TypeKind::Array if record.count == UNKNOWN => target(format!("{inner}[]")),
        TypeKind::Array => target(format!("{inner}[{}]", record.count)),
        TypeKind::Function => {
            let parameters: Vec<_> = image
                .members_of(record)
                .iter()
                .take(64)
                .map(|parameter| declare(image, parameter.r#type, String::new(), depth + 1, left))
                .collect();
            target(format!("{inner}({})", parameters.join(", ")))
        }
        TypeKind::Const | TypeKind::Volatile | TypeKind::Restrict | TypeKind::Atomic => {
            qualified(image, record, kind, inner, depth, left)
        }
        _ => spaced(&tagged(kind, name, record.flags), &inner),
    }
}

fn qualified(
    image: &Image<'_>,
    record: &TypeRecord,
    kind: TypeKind,
    inner: String,
    depth: u32,
    left: &Cell<u32>,
) -> String {
    let word = match kind {
        TypeKind::Const => "const",
        TypeKind::Volatile => "volatile",
        TypeKind::Restrict => "restrict",
        _ => "_Atomic",
    };
    let of_pointer = image
        .type_at(record.target)
        .is_some_and(|target| TypeKind::from_byte(target.kind) == TypeKind::Pointer);
    if of_pointer {
        declare(image, record.target, spaced(word, &inner), depth + 1, left)
    } else {
        format!(
            "{word} {}",
            declare(image, record.target, inner, depth + 1, left)
        )
    }
}

fn spaced(name: &str, inner: &str) -> String {
    match inner.chars().next() {
        None => name.to_owned(),
        Some('[' | '(') if !inner.starts_with("(*") && !inner.starts_with("(&") => {
            format!("{name}{inner}")
        }
        Some(_) => format!("{name} {inner}"),
    }
}

fn tagged(kind: TypeKind, name: &str, flags: u16) -> String {
    let keyword = match kind {
        TypeKind::Struct => "struct",
        TypeKind::Union => "union",
        TypeKind::Enum => "enum",
        _ => "",
    };
    let foreign = name.contains("::") || name.contains('<') || name.starts_with(['(', '{']);
    if name.is_empty() {
        format!("{} {{…}}", if keyword.is_empty() { "?" } else { keyword })
    } else if keyword.is_empty() || foreign || flags & type_flags::ANONYMOUS != 0 {
        name.to_owned()
    } else {
        format!("{keyword} {name}")
    }
}

/// Follows typedefs and qualifiers to the type itself.
#[must_use]
pub fn underlying<'a>(image: &Image<'a>, index: TypeIndex) -> Option<(TypeIndex, &'a TypeRecord)> {
    let mut at = index;
    for _ in 0..DEEPEST {
        let record = image.type_at(at)?;
        match TypeKind::from_byte(record.kind) {
            TypeKind::Typedef
            | TypeKind::Const
            | TypeKind::Volatile
            | TypeKind::Restrict
            | TypeKind::Atomic => at = record.target,
            _ => return Some((at, record)),
        }
    }
    None
}

/// Size in bytes, if known.
#[must_use]
pub fn size_of_type(image: &Image<'_>, index: TypeIndex) -> Option<u64> {
    let stated = image.type_at(index)?.size;
    if stated != UNKNOWN && stated != 0 {
        return Some(stated);
    }
    let (_, record) = underlying(image, index)?;
    if TypeKind::from_byte(record.kind) == TypeKind::Array && record.count != UNKNOWN {
        let (_, element) = underlying(image, record.target)?;
        return element.size.checked_mul(record.count);
    }
    (record.size != UNKNOWN).then_some(record.size)
}

/// The element of an array whose length is not part of its type.
#[must_use]
pub fn open_element(image: &Image<'_>, index: TypeIndex) -> Option<TypeIndex> {
    let (_, record) = underlying(image, index)?;
    let is_open = TypeKind::from_byte(record.kind) == TypeKind::Array
        && size_of_type(image, index).is_none_or(|size| size == 0);
    is_open.then_some(record.target)
}

/// What lies at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The way there: `[3].parents.item`; empty at the object itself.
    pub path: String,
    /// Type of what was reached.
    pub r#type: TypeIndex,
    /// How far into that the offset lies.
    pub inside: u64,
}

/// The innermost field at `offset` of an allocation of `size` bytes.
#[must_use]
pub fn field_at(image: &Image<'_>, shape: &Shape, size: u64, offset: u64) -> Field {
    let whole = Field {
        path: String::new(),
        r#type: shape.r#type,
        inside: offset,
    };
    let Some(unit) = unit_size(image, shape.r#type) else {
        return whole;
    };
    let in_element = |before: &str, r#type, size, offset| {
        let path = format!("{before}[{}]", offset / size);
        let inside = offset % size;
        descend(
            image,
            Field {
                path,
                r#type,
                inside,
            },
        )
    };
    match shape.role {
        Role::Element | Role::Characters => in_element("", shape.r#type, unit, offset),
        Role::Header if offset >= shape.front.max(unit) && shape.tail != NO_TYPE => {
            match unit_size(image, shape.tail) {
                Some(size) => in_element("+", shape.tail, size, offset - shape.front.max(unit)),
                None => whole,
            }
        }
        Role::Header if shape.front > unit => match offset.checked_sub(shape.front - unit) {
            Some(inside) => descend(image, Field { inside, ..whole }),
            None => whole,
        },
        // Longer than one object: an array after all.
        Role::Whole if offset >= unit && size >= unit.saturating_mul(2) => {
            in_element("", shape.r#type, unit, offset)
        }
        _ => descend(image, whole),
    }
}

/// Bytes of a type of which there can be many in a row.
fn unit_size(image: &Image<'_>, index: TypeIndex) -> Option<u64> {
    size_of_type(image, index).filter(|size| *size > 0)
}

/// Goes inwards while a member or element holds the offset.
fn descend(image: &Image<'_>, mut field: Field) -> Field {
    for _ in 0..DEEPEST {
        let Some((_, record)) = underlying(image, field.r#type) else {
            break;
        };
        match TypeKind::from_byte(record.kind) {
            TypeKind::Struct | TypeKind::Class | TypeKind::Union | TypeKind::Variant => {
                let Some(member) = member_holding(image, record, field.inside) else {
                    break;
                };
                let name = image.string(member.name);
                if !name.is_empty() && member.flags & member_flags::BASE_CLASS == 0 {
                    field.path.push('.');
                    field.path.push_str(name);
                }
                field.inside -= member.offset;
                field.r#type = member.r#type;
            }
            TypeKind::Array => {
                let Some(unit) = unit_size(image, record.target) else {
                    break;
                };
                field.path.push_str(&format!("[{}]", field.inside / unit));
                field.inside %= unit;
                field.r#type = record.target;
            }
            _ => break,
        }
    }
    field
}

/// The first member that holds `offset`; a flexible array at the end holds all that follows it.
fn member_holding<'a>(
    image: &Image<'a>,
    record: &TypeRecord,
    offset: u64,
) -> Option<&'a MemberRecord> {
    let members = image.members_of(record);
    let holds = |member: &&MemberRecord| {
        let size = size_of_type(image, member.r#type).unwrap_or(0);
        offset >= member.offset && offset - member.offset < size
    };
    members.iter().find(holds).or_else(|| {
        let open_ended = |member: &&MemberRecord| {
            let array = underlying(image, member.r#type)
                .is_some_and(|(_, record)| TypeKind::from_byte(record.kind) == TypeKind::Array);
            array && offset >= member.offset
        };
        members.last().filter(open_ended)
    })
}
