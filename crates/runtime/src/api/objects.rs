//! *Which loaded object holds this address, and what does its image say of it?* — in nanoseconds.
//!
//! Beside the modules' own records ([`crate::modules`]) lie their bounds, packed, and for each image a table from its types to
//! the process's ([`super::types`]).

#![allow(unsafe_code)] // Tables of fixed length, filled in while others read.

use super::{room, types};
use crate::modules::{self, Module};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
use pointee_model::addr::LinkAddr;
use pointee_model::image::{FunctionRecord, Image, SectionRecord, TypeIndex, VariableRecord};
use types::Record;

const ROOM: usize = 1024;

/// What is packed of one module.
struct Object {
    start: AtomicU64,
    len: AtomicU64,
    /// Its image: the session's, else the one that was made last. Null if there is none.
    image: AtomicPtr<Image<'static>>,
    /// From a type's index in the image to one more than the number of its record; 0 where it was never asked for.
    types: AtomicPtr<AtomicU32>,
    /// The image's variables that have a fixed address, in order of it, and how many there are.
    variables: AtomicPtr<VariableRecord>,
    statics: AtomicU32,
    /// For each piece of the module: how many of these start before it. Null if there was no room.
    pieces: AtomicPtr<AtomicU32>,
    /// log2 of the bytes of a piece.
    piece_shift: AtomicU32,
}

/// Pieces of a module, at most.
const PIECES: u64 = 1 << 12;
/// log2 of the smallest piece: few variables start in it.
const LEAST_SHIFT: u32 = 6;

static OBJECTS: [Object; ROOM] = [const {
    Object {
        start: AtomicU64::new(0),
        len: AtomicU64::new(0),
        image: AtomicPtr::new(core::ptr::null_mut()),
        types: AtomicPtr::new(core::ptr::null_mut()),
        variables: AtomicPtr::new(core::ptr::null_mut()),
        statics: AtomicU32::new(0),
        pieces: AtomicPtr::new(core::ptr::null_mut()),
        piece_shift: AtomicU32::new(0),
    }
}; ROOM];
static USED: AtomicU32 = AtomicU32::new(0);

/// Takes in `module`. One thread at a time.
pub(super) fn add(module: &Module) {
    let Some(object) = OBJECTS.get(module.number as usize) else {
        return;
    };
    if object.image.load(Relaxed).is_null()
        && let Some(image) = module.image.or_else(|| module.cached_image())
    {
        let place = room::take::<Image<'static>>(1);
        let types = room::take::<AtomicU32>(image.types.len());
        if !place.is_null() && !types.is_null() {
            object.types.store(types, Release);
            let statics = image.statics();
            let variables = statics.as_ptr().cast_mut();
            object.variables.store(variables, Release);
            object.statics.store(statics.len() as u32, Release);
            divide(object, module, statics);
            // SAFETY: fresh room for one.
            unsafe { place.write(image) };
            object.image.store(place, Release);
        }
    }
    object.start.store(module.start, Relaxed);
    object.len.store(module.end - module.start, Release);
    USED.fetch_max(module.number + 1, Release);
}

/// Notes where in `statics` each piece of `module` begins.
fn divide(object: &Object, module: &Module, statics: &[VariableRecord]) {
    let len = module.end - module.start;
    let mut shift = LEAST_SHIFT;
    while len >> shift >= PIECES {
        shift += 1;
    }
    // One more, where the last one ends.
    let count = (len >> shift) as usize + 2;
    let pieces = room::take::<AtomicU32>(count);
    if pieces.is_null() {
        return;
    }
    let first = module.start.wrapping_sub(module.bias);
    let mut before = 0;
    for number in 0..count {
        let start = first.wrapping_add((number as u64) << shift);
        while statics
            .get(before)
            .is_some_and(|variable| variable.address < start)
        {
            before += 1;
        }
        // SAFETY: fresh room for as many.
        unsafe { &*pieces.add(number) }.store(before as u32, Relaxed);
    }
    object.piece_shift.store(shift, Relaxed);
    object.pieces.store(pieces, Release);
}

/// How many of `statics` start at or below the link-time address `link` of `module`.
#[inline]
fn statics_up_to(object: &Object, module: &Module, statics: &[VariableRecord], link: u64) -> usize {
    let pieces = object.pieces.load(Acquire);
    let into = link.wrapping_sub(module.start.wrapping_sub(module.bias));
    let (mut from, mut to) = (0, statics.len());
    if !pieces.is_null() && into < module.end - module.start {
        let number = (into >> object.piece_shift.load(Relaxed)) as usize;
        // SAFETY: there is one for each piece, and one more.
        let before = |number: usize| unsafe { &*pieces.add(number) }.load(Relaxed) as usize;
        (from, to) = (before(number), before(number + 1));
    }
    let among = statics.get(from..to).unwrap_or(&[]);
    from + among.partition_point(|variable| variable.address <= link)
}

/// The image that questions about `module` are answered from.
#[inline]
pub(super) fn image(module: &Module) -> Option<&'static Image<'static>> {
    let object = OBJECTS.get(module.number as usize)?;
    // SAFETY: written before the pointer was, and stays.
    unsafe { object.image.load(Acquire).as_ref() }
}

/// The loaded module that holds `address`.
#[inline]
pub(super) fn holding(address: u64) -> Option<&'static Module> {
    let used = USED.load(Acquire) as usize;
    for (number, object) in OBJECTS[..used.min(ROOM)].iter().enumerate() {
        if address.wrapping_sub(object.start.load(Relaxed)) < object.len.load(Relaxed)
            && let Some(module) = modules::numbered(number as u32)
            && module.is_loaded()
        {
            return Some(module);
        }
    }
    None
}

/// The record of type `index` of `module`'s image, complete with all it leads to.
#[inline]
pub(super) fn type_of(module: &'static Module, index: TypeIndex) -> Option<&'static Record> {
    let image = image(module)?;
    let known = OBJECTS.get(module.number as usize)?.types.load(Acquire);
    if known.is_null() || index as usize >= image.types.len() {
        return None;
    }
    // SAFETY: the table has an entry for each type.
    let entry = unsafe { &*known.add(index as usize) };
    if let Some(record) = types::numbered(entry.load(Acquire)) {
        return Some(record);
    }
    let record = types::of_image(module, image, index)?;
    types::complete(record)?;
    entry.store(types::number(record), Release);
    Some(record)
}

/// The variable with a fixed address that holds `address` of `module`, and its first byte.
#[inline]
pub(super) fn variable_at(
    module: &'static Module,
    address: u64,
) -> Option<(&'static VariableRecord, u64)> {
    let object = OBJECTS.get(module.number as usize)?;
    // The count before the place: it was stored after it.
    let count = object.statics.load(Acquire) as usize;
    let variables = object.variables.load(Acquire);
    if count == 0 {
        return None;
    }
    // SAFETY: so many variables of an image, which stays.
    let statics = unsafe { core::slice::from_raw_parts(variables, count) };
    let link = address.wrapping_sub(module.bias);
    let after = statics_up_to(object, module, statics, link);
    // One may start inside another: the nearest that holds the address.
    let found = statics[..after]
        .iter()
        .rev()
        .take(64)
        .find(|variable| link - variable.address < variable.size)?;
    Some((found, found.address.wrapping_add(module.bias)))
}

/// The function that holds `address` of `module`.
pub(super) fn function_at(
    module: &'static Module,
    address: u64,
) -> Option<(&'static Image<'static>, &'static FunctionRecord)> {
    let image = image(module)?;
    let link = LinkAddr(address.wrapping_sub(module.bias));
    Some((image, image.function_at(link)?))
}

/// The section that holds `address` of `module`.
pub(super) fn section_at(
    module: &'static Module,
    address: u64,
) -> Option<(&'static Image<'static>, &'static SectionRecord)> {
    let image = image(module)?;
    let link = address.wrapping_sub(module.bias);
    let mut sections = image.sections.iter();
    let found = sections.find(|section| link.wrapping_sub(section.address) < section.size)?;
    Some((image, found))
}
