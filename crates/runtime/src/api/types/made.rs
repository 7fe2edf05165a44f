//! *Which type is made of these?* — pointers, arrays, functions, unions, and what sites make; each unique like any other.

#![allow(unsafe_code)] // Writes members into room of our own.

use super::keys::Key;
use super::{Member, Outline, Record, TRAILED, UNKNOWN, complete, find, given, reserve};
use crate::api::room;
use pointee_model::image::TypeKind;

/// A pointer or reference to `target`, or an array of it.
pub(in crate::api) fn derived(
    kind: TypeKind,
    target: &'static Record,
    length: u64,
) -> Option<&'static Record> {
    let key = Key::derived(kind as u8).and(target.key());
    let (key, size, length) = match kind {
        TypeKind::Pointer | TypeKind::Reference | TypeKind::RvalueReference => (key, 8, 0),
        TypeKind::Array => {
            let size = match (length, target.size) {
                (UNKNOWN, _) | (_, UNKNOWN) => UNKNOWN,
                (length, size) => length.checked_mul(size)?,
            };
            (key.with([length, 0]), size, length)
        }
        _ => return None,
    };
    let outline = Outline {
        length,
        target: Some(target),
        ..Outline::made(key, kind as u8, size)
    };
    made(outline, &[])
}

/// A function with these parameters; no result is `void`.
pub(in crate::api) fn function(
    result: &'static Record,
    parameters: &[*const Record],
) -> Option<&'static Record> {
    let mut key = Key::derived(TypeKind::Function as u8).and(result.key());
    for parameter in parameters {
        key = key.and(given(*parameter)?.key());
    }
    let outline = Outline {
        target: Some(result),
        ..Outline::made(key, TypeKind::Function as u8, UNKNOWN)
    };
    made_of(outline, parameters.iter().map(|parameter| (*parameter, 0)))
}

/// One of `parts`, all at offset 0.
pub(in crate::api) fn union(parts: &[*const Record]) -> Option<&'static Record> {
    let mut key = Key::derived(TypeKind::Union as u8);
    let mut size = 0;
    for part in parts {
        let part = given(*part)?;
        key = key.and(part.key());
        size = part.size.max(size);
    }
    let outline = Outline::made(key, TypeKind::Union as u8, size);
    made_of(outline, parts.iter().map(|part| (*part, 0)))
}

/// A header and the array that begins at `array_at`, right behind it or after a gap in front of both; without `tail`, something.
pub(in crate::api) fn trailed(
    header: &'static Record,
    tail: Option<&'static Record>,
    array_at: u64,
) -> Option<&'static Record> {
    let array = tail.and_then(|tail| derived(TypeKind::Array, tail, UNKNOWN));
    let key = Key::derived(TRAILED)
        .and(header.key())
        .and(array.map_or(Key::VOID, Record::key));
    let key = match array_at.checked_sub(header.size) {
        Some(gap) if gap > 0 => key.with([gap, 0]),
        _ => key,
    };
    let parts = [
        (header, array_at.saturating_sub(header.size)),
        (array.unwrap_or(header), array_at),
    ];
    let parts = &parts[..1 + usize::from(array.is_some())];
    made(Outline::made(key, TRAILED, UNKNOWN), parts)
}

fn made(outline: Outline, parts: &[(&'static Record, u64)]) -> Option<&'static Record> {
    let parts = parts
        .iter()
        .map(|(part, offset)| (core::ptr::from_ref(*part), *offset));
    made_of(outline, parts)
}

fn made_of(
    outline: Outline,
    parts: impl ExactSizeIterator<Item = (*const Record, u64)>,
) -> Option<&'static Record> {
    if let Some(known) = find(outline.key) {
        complete(known)?;
        return Some(known);
    }
    let members_len = u32::try_from(parts.len()).ok()?;
    let members = room::take::<Member>(parts.len());
    if members.is_null() {
        return None;
    }
    for (number, (part, offset)) in parts.enumerate() {
        let member = Member {
            name: c"".as_ptr(),
            r#type: part,
            offset,
            bit_offset: 0,
            bit_size: 0,
            flags: 0,
        };
        // SAFETY: room for as many was taken.
        unsafe { members.add(number).write(member) };
    }
    let record = reserve(Outline {
        members_len,
        members,
        ..outline
    })?;
    complete(record)?;
    Some(record)
}
