//! *What does an image say of this type?* — its record, and what that leads to: reserved, linked, named.

#![allow(unsafe_code)] // Writes members into room of our own.

use super::keys::{self, Key};
use super::{
    DONE, LINKED, Member, NAMED, Outline, RESERVED, Record, UNKNOWN, USED, find, is_derived,
    numbered, reserve, underlying, void,
};
use crate::api::{names, room};
use crate::modules::{self, Module};
use core::ffi::c_char;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use pointee_model::image::{
    EnumeratorRecord, Image, MemberRecord, NO_TYPE, TypeIndex, TypeKind, TypeRecord,
};

/// The record of a type of an image, reserved at least. Without target or type, it is `void`.
pub(in crate::api) fn of_image(
    module: &Module,
    image: &Image<'_>,
    index: TypeIndex,
) -> Option<&'static Record> {
    let Some((index, record)) = underlying(image, index) else {
        return void();
    };
    let key = keys::of_image(image, index);
    if key == Key::VOID {
        return void();
    }
    if let Some(known) = find(key) {
        return Some(known);
    }
    let kind = TypeKind::from_byte(record.kind);
    reserve(Outline {
        key,
        kind: record.kind,
        size: size_of_type(image, index),
        length: if kind == TypeKind::Array {
            record.count
        } else {
            0
        },
        encoding: record.encoding,
        flags: record.flags,
        members_len: members_len(image, record),
        module: module.number,
        index,
        target: None,
        members: core::ptr::null_mut(),
    })
}

fn members_len(image: &Image<'_>, record: &TypeRecord) -> u32 {
    match TypeKind::from_byte(record.kind) {
        TypeKind::Enum => image.enumerators_of(record).len() as u32,
        _ => image.members_of(record).len() as u32,
    }
}

fn size_of_type(image: &Image<'_>, index: TypeIndex) -> u64 {
    let Some((_, record)) = underlying(image, index) else {
        return UNKNOWN;
    };
    let is_array = TypeKind::from_byte(record.kind) == TypeKind::Array;
    if is_array && record.count != UNKNOWN && matches!(record.size, 0 | UNKNOWN) {
        let element = underlying(image, record.target);
        let size = element.and_then(|(_, element)| element.size.checked_mul(record.count));
        return size.unwrap_or(UNKNOWN);
    }
    if is_array && record.count == UNKNOWN {
        return UNKNOWN;
    }
    record.size
}

/// Links and names `record` and all that it leads to. `None` when there is no room for some of that.
pub(in crate::api) fn complete(record: &'static Record) -> Option<()> {
    if record.state.load(Acquire) == NAMED && record.number < DONE.load(Acquire) {
        return Some(());
    }
    let first = DONE.load(Acquire);
    let at = |number: u32| numbered(number + 1).filter(|record| record.state.load(Acquire) != 0);
    let mut number = first;
    while number < USED.load(Acquire) {
        // A record without a state is being written by someone else, and nothing leads to it yet.
        if let Some(record) = at(number) {
            link(record)?;
        }
        number += 1;
    }
    let end = number;
    let mut whole = true;
    for number in first..end {
        match at(number) {
            Some(record) if record.state.load(Acquire) >= LINKED => name(record)?,
            // Its state came after it was looked at above: whoever wrote it completes it, and it is not done before.
            _ => whole = false,
        }
    }
    if whole {
        DONE.fetch_max(end, AcqRel);
    }
    Some(())
}

fn link(record: &'static Record) -> Option<()> {
    if record.state.load(Acquire) != RESERVED {
        return Some(());
    }
    if let (Some((image, source)), Some(module)) =
        (record.source(), modules::numbered(record.module))
    {
        let kind = record.kind();
        let points = is_derived(image, source)
            || matches!(
                kind,
                TypeKind::MemberPointer | TypeKind::Pointer | TypeKind::Enum
            );
        if points && (source.target != NO_TYPE || kind != TypeKind::Enum) {
            let target = of_image(module, image, source.target)?;
            keep_first(&record.target, target);
        }
        let members = match kind {
            TypeKind::Enum => enumerators(image, image.enumerators_of(source))?,
            _ => members(module, image, image.members_of(source))?,
        };
        keep_first(&record.members, members);
    }
    // A record that was made has its links from its maker.
    let _ = record
        .state
        .compare_exchange(RESERVED, LINKED, AcqRel, Acquire);
    Some(())
}

fn keep_first<T>(place: &AtomicPtr<T>, value: *const T) {
    let null = core::ptr::null_mut();
    // Whoever comes second found the same.
    let _ = place.compare_exchange(null, value.cast_mut(), Release, Relaxed);
}

fn c_string(image: &Image<'_>, at: u32) -> *const c_char {
    image.c_string(at).unwrap_or(c"".as_ptr())
}

fn members(module: &Module, image: &Image<'_>, members: &[MemberRecord]) -> Option<*const Member> {
    let to = room::take::<Member>(members.len());
    if to.is_null() {
        return None;
    }
    for (number, member) in members.iter().enumerate() {
        let r#type = of_image(module, image, member.r#type)?;
        let new = Member {
            name: c_string(image, member.name),
            r#type,
            offset: member.offset,
            bit_offset: member.bit_offset,
            bit_size: member.bit_size,
            flags: member.flags,
        };
        // SAFETY: room for as many was taken.
        unsafe { to.add(number).write(new) };
    }
    Some(to)
}

fn enumerators(image: &Image<'_>, enumerators: &[EnumeratorRecord]) -> Option<*const Member> {
    let to = room::take::<Member>(enumerators.len());
    if to.is_null() {
        return None;
    }
    for (number, enumerator) in enumerators.iter().enumerate() {
        let new = Member {
            name: c_string(image, enumerator.name),
            r#type: core::ptr::null(),
            offset: enumerator.value.cast_unsigned(),
            bit_offset: 0,
            bit_size: 0,
            flags: 0,
        };
        // SAFETY: room for as many was taken.
        unsafe { to.add(number).write(new) };
    }
    Some(to)
}

fn name(record: &'static Record) -> Option<()> {
    if record.state.load(Acquire) != LINKED {
        return Some(());
    }
    let name = names::of(record);
    let copy = room::copy(name.as_bytes());
    if copy.is_null() {
        return None;
    }
    keep_first(&record.name, copy.cast::<c_char>());
    record.state.store(NAMED, Release);
    Some(())
}
