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
    /// From a type's index in the image to one more than the number of its record; 0 where it was never asked for.
    types: AtomicPtr<AtomicU32>,
    /// How many of the image's variables have a fixed address.
    statics: AtomicU32,
}

static OBJECTS: [Object; ROOM] = [const {
    Object {
        start: AtomicU64::new(0),
        len: AtomicU64::new(0),
        types: AtomicPtr::new(core::ptr::null_mut()),
        statics: AtomicU32::new(0),
    }
}; ROOM];
static USED: AtomicU32 = AtomicU32::new(0);

/// Takes in `module`. One thread at a time.
pub(super) fn add(module: &Module) {
    let Some(object) = OBJECTS.get(module.number as usize) else {
        return;
    };
    if let Some(image) = &module.image
        && object.types.load(Relaxed).is_null()
    {
        let types = room::take(image.types.len());
        object.types.store(types, Release);
        object.statics.store(image.statics().len() as u32, Release);
    }
    object.start.store(module.start, Relaxed);
    object.len.store(module.end - module.start, Release);
    USED.fetch_max(module.number + 1, Release);
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
    let image = module.image.as_ref()?;
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
    let image = module.image.as_ref()?;
    let count = OBJECTS.get(module.number as usize)?.statics.load(Acquire);
    let statics = image.variables.get(..count as usize)?;
    let link = address.wrapping_sub(module.bias);
    let after = statics.partition_point(|variable| variable.address <= link);
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
    let image = module.image.as_ref()?;
    let link = LinkAddr(address.wrapping_sub(module.bias));
    Some((image, image.function_at(link)?))
}

/// The section that holds `address` of `module`.
pub(super) fn section_at(
    module: &'static Module,
    address: u64,
) -> Option<(&'static Image<'static>, &'static SectionRecord)> {
    let image = module.image.as_ref()?;
    let link = address.wrapping_sub(module.bias);
    let mut sections = image.sections.iter();
    let found = sections.find(|section| link.wrapping_sub(section.address) < section.size)?;
    Some((image, found))
}
