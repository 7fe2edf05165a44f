//! *Is the one type that is left an answer?*
//!
//! Being the only one is not enough: nothing may name it alone, it may be how code looks at memory that is kept as
//! something else, or stand only in how a number of bytes is computed.

use super::request::{Request, is_record, role};
use super::typing::Types;
use super::verdict::{Clue, SIZEOF, kind};
use pointee_model::evidence::{Role, Witness};
use pointee_model::image::TypeIndex;

/// Why a type is out that the block has no room for.
pub(super) const BIGGER: &str = "bigger than what is asked for";

/// Whether nothing names the type alone that is left: it is an arm of a union that has a `void *` too, or the one arm left where
/// what was named is bigger than the block, of which then only a part is there; or it is what a function wants that is given
/// such a part; or bytes are kept, and the type is only
/// in how their number is computed, with more.
pub(super) fn is_weak(
    types: &Types<'_>,
    chosen: TypeIndex,
    clues: &[Clue],
    request: Request,
    dropped: &[(TypeIndex, &str)],
) -> bool {
    let said = || clues.iter().filter(|clue| clue.types.contains(&chosen));
    let is_named = said().any(|clue| clue.types.len() == 1 && !clue.open);
    let too_big = |(at, why): &(TypeIndex, &str)| {
        *why == BIGGER && clues.iter().any(|clue| clue.types == [*at])
    };
    if !is_named && (said().any(|clue| clue.open) || dropped.iter().any(too_big)) {
        return true;
    }
    let is_kept = |at: TypeIndex| {
        clues
            .iter()
            .any(|clue| keeps(clue.witness) && clue.types == [at])
    };
    if said().all(|clue| clue.witness == Witness::Parameter)
        && dropped
            .iter()
            .any(|(at, why)| *why == BIGGER && is_kept(*at))
    {
        return true;
    }
    let is_header = matches!(role(types, chosen, request).0, Role::Header | Role::Unknown);
    is_header
        && is_record(types, chosen)
        && said().all(|clue| kind(clue.witness) == SIZEOF)
        && is_kept_as_bytes(types, clues)
}

/// Whether what keeps the block is declared to be of characters.
pub(super) fn is_kept_as_bytes(types: &Types<'_>, clues: &[Clue]) -> bool {
    clues.iter().any(|clue| {
        keeps(clue.witness) && matches!(clue.types[..], [only] if types.is_character(only))
    })
}

/// Whether a witness is where a block is put, or what it was made to be there.
pub(super) fn keeps(witness: Witness) -> bool {
    kind(witness) == Witness::Variable as u8 && witness != Witness::Parameter
}

/// Whether the one type left is how a local variable looks at memory that is kept as `void *`, or what a function returns
/// that keeps it so, of a size that has nothing to do with it: a pool's free list, say, or a node of a tree whose leaves are returned.
pub(super) fn is_view(
    types: &Types<'_>,
    left: &[TypeIndex],
    clues: &[Clue],
    request: Request,
) -> bool {
    let [only] = left else {
        return false;
    };
    let all = |witness: Witness| {
        let mut typed = clues.iter().filter(|clue| clue.types.contains(only));
        typed.all(|clue| clue.witness == witness)
    };
    // What a function returns may be another block by then, kept in the same place.
    let is_any_size = request.total.is_none() && request.unit.is_none_or(|unit| unit == 1);
    let is_unsized = role(types, *only, request).0 == Role::Unknown;
    is_kept_as_void(clues)
        && (is_unsized && all(Witness::Variable) || is_any_size && all(Witness::Result))
}

pub(super) fn is_kept_as_void(clues: &[Clue]) -> bool {
    clues.iter().any(|clue| {
        clue.types.is_empty() && matches!(clue.witness, Witness::Field | Witness::Global)
    })
}
