//! *Which objects start at this offset of an object?*
//!
//! A type is looked into from the outside inwards: arrays to the element at the offset, structures to each member that holds
//! it, all arms of a union. `is_a`, `like_a` and `named_a` are questions to what starts exactly there.

use super::types::{Record, UNKNOWN};
use pointee_model::image::TypeKind;

/// Nesting that is followed.
const DEEPEST: u32 = 32;
/// Objects that are looked at for one question.
const LOOKED_AT: u32 = 512;

/// Calls `is_it` for every object inside one of type `record` (itself included) that holds `offset`, from the outside
/// inwards, with the offset in it, until it says yes.
pub(super) fn any_at(
    record: &'static Record,
    offset: u64,
    mut is_it: impl FnMut(&'static Record, u64) -> bool,
) -> bool {
    search(record, offset, 0, &mut { LOOKED_AT }, &mut is_it)
}

fn search(
    record: &'static Record,
    offset: u64,
    depth: u32,
    left: &mut u32,
    is_it: &mut dyn FnMut(&'static Record, u64) -> bool,
) -> bool {
    if *left == 0 || depth == DEEPEST {
        return false;
    }
    *left -= 1;
    if is_it(record, offset) {
        return true;
    }
    if record.kind() == TypeKind::Array {
        let element = record
            .target()
            .filter(|element| !matches!(element.size, 0 | UNKNOWN));
        return element.is_some_and(|element| {
            let is_inside = record.length == UNKNOWN || offset / element.size < record.length;
            is_inside && search(element, offset % element.size, depth + 1, left, is_it)
        });
    }
    if !record.is_composite() {
        return false;
    }
    let members = record.members();
    members.iter().enumerate().any(|(number, member)| {
        let Some(inner) = member.record() else {
            return false;
        };
        // A member of unknown length at the end holds all that follows.
        let is_open = number + 1 == members.len()
            && (inner.size == UNKNOWN || inner.size == 0)
            && inner.kind() == TypeKind::Array;
        let distance = offset.wrapping_sub(member.offset);
        let holds = offset >= member.offset && (is_open || distance < inner.size);
        holds && search(inner, distance, depth + 1, left, is_it)
    })
}

/// The innermost object at `offset` but for `skip` around it, and the offset in it: of a union, its first arm that has something there.
pub(super) fn innermost(
    record: &'static Record,
    offset: u64,
    skip: u32,
) -> Option<(&'static Record, u64)> {
    let mut way = [(record, offset); DEEPEST as usize + 1];
    let mut depth = 0;
    let mut at = (record, offset);
    loop {
        way[depth] = at;
        let mut inner = None;
        any_at(at.0, at.1, |found, offset| {
            let is_itself = core::ptr::eq(found, at.0) && offset == at.1;
            if !is_itself {
                inner = Some((found, offset));
            }
            !is_itself
        });
        match inner {
            Some(found) if depth < DEEPEST as usize => {
                depth += 1;
                at = found;
            }
            _ => break,
        }
    }
    Some(way[depth.checked_sub(skip as usize)?])
}

/// Whether an object of type `record` can be used as one of type `like`: as it is, or its start is laid out as `like` is.
pub(super) fn is_like(record: &'static Record, like: &'static Record, depth: u32) -> bool {
    if core::ptr::eq(record, like) || is_counterpart(record, like) {
        return true;
    }
    if depth == DEEPEST {
        return false;
    }
    if record.kind() == TypeKind::Array {
        return record
            .target()
            .is_some_and(|element| is_like(element, like, depth + 1));
    }
    if !record.is_composite() || !like.is_composite() {
        return false;
    }
    let (members, wanted) = (record.members(), like.members());
    !wanted.is_empty()
        && wanted.iter().enumerate().all(|(number, wanted)| {
            let (Some(inner), Some(found)) = (wanted.record(), members.get(number)) else {
                return false;
            };
            // Room for anything: `char data[14]` of a socket address.
            let is_room = inner.kind() == TypeKind::Array
                && inner.target().is_some_and(|element| element.size == 1);
            let same = found
                .record()
                .is_some_and(|record| is_like(record, inner, depth + 1));
            found.offset == wanted.offset && (is_room || same)
        })
}

/// Signed and unsigned of one size.
fn is_counterpart(record: &Record, like: &Record) -> bool {
    let is_integer = |record: &Record| record.kind() == TypeKind::Base && record.is_integer();
    is_integer(record) && is_integer(like) && record.size == like.size
}
