//! *What does the collection hold that a function of Rust's library is given?*
//!
//! `RawVecInner::reserve` and its like know no type, and where a compiler makes one call of two, no frame is left that
//! does. But they are called with a pointer to the collection, and debug info says what that lies in: a variable, a field, what
//! a parameter points to.

use super::typing::{DEPTH, Types};
use pointee_model::image::TypeIndex;

/// What surrounds the untyped part of a collection, as its type's name starts; its first argument is the element.
const TYPED: [&str; 3] = [
    "alloc::raw_vec::RawVec<",
    "hashbrown::raw::RawTable<",
    "hashbrown::raw::inner::RawTable<",
];

/// The element of the collection that lies `offset` bytes into an object, if it is of one type whatever the object is.
pub(super) fn element(types: &Types<'_>, object: TypeIndex, offset: i64) -> Option<TypeIndex> {
    let mut found = Vec::new();
    collect(
        types,
        object,
        u64::try_from(offset).ok()?,
        DEPTH,
        &mut found,
    );
    match found[..] {
        [only] => Some(only),
        _ => None,
    }
}

/// Adds the elements of all collections at `offset`: the variants of an enumeration lie in one place.
fn collect(
    types: &Types<'_>,
    object: TypeIndex,
    offset: u64,
    depth: u32,
    found: &mut Vec<TypeIndex>,
) {
    let (Some(entry), Some(depth)) = (types.get(types.strip(object)), depth.checked_sub(1)) else {
        return;
    };
    if offset == 0 && TYPED.iter().any(|start| entry.name.starts_with(start)) {
        let element = entry.arguments.first().map(|at| types.strip(*at));
        found.extend(element.filter(|at| !found.contains(at)));
        return;
    }
    for member in &entry.members {
        let within = offset.checked_sub(member.offset);
        if let Some(within) = within.filter(|at| types.size(member.r#type) > Some(*at)) {
            collect(types, member.r#type, within, depth, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Facts, Member, Type};
    use crate::sites::declare::declared;

    fn record(name: &str, size: u64, members: &[(u64, TypeIndex)], of: &[TypeIndex]) -> Type {
        let member = |(offset, r#type): &(u64, TypeIndex)| Member {
            name: String::new(),
            r#type: *r#type,
            offset: *offset,
            bit_offset: 0,
            bit_size: 0,
            flags: 0,
            discriminant: 0,
        };
        Type {
            size: Some(size),
            flags: 0,
            members: members.iter().map(member).collect(),
            arguments: of.to_vec(),
            ..declared(name)
        }
    }

    #[test]
    fn elements() {
        let raw = "alloc::raw_vec::RawVec";
        let types = vec![
            record("a::Node", 40, &[], &[]),
            record("alloc::string::String", 24, &[], &[]),
            record(&format!("{raw}<a::Node, G>"), 16, &[], &[0]),
            record(&format!("{raw}<alloc::string::String, G>"), 16, &[], &[1]),
            record("alloc::vec::Vec<a::Node, G>", 24, &[(8, 2)], &[0]),
            record("a::Tree", 48, &[(16, 4), (40, 0)], &[]),
            // An enumeration: either lies there.
            record("a::Either", 16, &[(0, 2), (0, 3)], &[]),
        ];
        let facts = Facts {
            types,
            ..Facts::default()
        };
        let types = Types::new(&facts);
        let rows = [
            (2, 0, Some(0)),
            (4, 8, Some(0)),
            (5, 24, Some(0)),
            (5, 16, None),
            (6, 0, None),
            (5, -8, None),
        ];
        for (object, offset, expect) in rows {
            assert_eq!(
                element(&types, object, offset),
                expect,
                "{object} at {offset}"
            );
        }
    }
}
