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
