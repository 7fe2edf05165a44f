//! *Where is the one record of this type?*
//!
//! What C sees as `struct uniqtype` is the start of a [`Record`]. One type has one record in a process, whatever
//! image it came from and whoever made it: records are found by [`Key`], a hash of what the type *is*.
//!
//! ```text
//!   key     tagged and base types: the identity in the image      (equal in all images, see model::image)
//!           pointer, array, function: hash of kind, length and the keys of what they are made of
//!           typedefs, qualifiers, declarations: the key of what they stand for
//!   state   RESERVED ─link─▶ LINKED ─name─▶ NAMED
//!           key, kind, size   target and members    name
//! ```
//!
//! A record leads to others, which lead back (`struct list { struct list *next; }`), so a record is *reserved* with
//! an address first, then *linked* (what it leads to is reserved), then *named*. [`complete`] links and names
//! all that is reserved, in order of reservation, and so all that a record leads to. Every step does the same
//! whoever does it: threads, and a handler that interrupts one of them, do it side by side, without a lock; the first store stays.

#![allow(unsafe_code)] // Records lie in room of our own, reached by raw pointer.

mod images;
mod keys;
mod made;

use super::{objects, room};
use crate::modules;
use core::ffi::c_char;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32};
use keys::Key;
use pointee_model::image::{Image, TypeIndex, TypeKind, TypeRecord};

pub(super) use images::{complete, of_image};
pub(super) use made::{derived, function, trailed, union};

/// A size or length that is not known.
pub(super) const UNKNOWN: u64 = u64::MAX;
/// Kind of what a site makes out of a header and an array behind it; the others are [`TypeKind`]'s.
pub(super) const TRAILED: u8 = 32;
/// Kind of what stands for another record: a declaration whose definition was found. Never handed out.
const ALIAS: u8 = 33;
/// Typedefs, qualifiers and derivations that are followed.
pub(super) const DEEPEST: u32 = 32;
const RESERVED: u32 = 1;
const LINKED: u32 = 2;
const NAMED: u32 = 3;

/// One type. The first fields are `struct uniqtype` of `pointee.h`.
#[repr(C)]
pub(super) struct Record {
    name: AtomicPtr<c_char>,
    /// Bytes; [`UNKNOWN`] if not known.
    pub(super) size: u64,
    /// Elements of an array; [`UNKNOWN`] if not known.
    pub(super) length: u64,
    target: AtomicPtr<Record>,
    members: AtomicPtr<Member>,
    members_len: u32,
    pub(super) kind: u8,
    encoding: u8,
    flags: u16,
    key: Key,
    // Not seen from C.
    /// The image it was read from, by its module's number, and its index there; `u32::MAX` if it was made in the process.
    module: u32,
    index: u32,
    state: AtomicU32,
    number: u32,
}

/// `struct uniqtype_member`: a member, parameter or enumerator.
#[repr(C)]
pub(super) struct Member {
    name: *const c_char,
    r#type: *const Record,
    /// Bytes from the start; the value of an enumerator.
    pub(super) offset: u64,
    bit_offset: u16,
    bit_size: u16,
    flags: u32,
}

impl Member {
    pub(super) fn record(&self) -> Option<&'static Record> {
        // SAFETY: records stay.
        unsafe { self.r#type.as_ref() }
    }
}

impl Record {
    /// Its name as C writes it, with NUL; empty before it is named.
    pub(super) fn name(&self) -> &'static [u8] {
        let name = self.name.load(Acquire);
        if name.is_null() {
            return b"\0";
        }
        // SAFETY: names are C strings that stay.
        unsafe { core::ffi::CStr::from_ptr(name) }.to_bytes_with_nul()
    }

    pub(super) fn target(&self) -> Option<&'static Record> {
        // SAFETY: records stay.
        unsafe { self.target.load(Acquire).as_ref() }
    }

    pub(super) fn members(&self) -> &'static [Member] {
        let members = self.members.load(Acquire);
        if members.is_null() {
            return &[];
        }
        // SAFETY: as many were written before the pointer was.
        unsafe { core::slice::from_raw_parts(members, self.members_len as usize) }
    }

    pub(super) fn kind(&self) -> TypeKind {
        TypeKind::from_byte(self.kind)
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// Image and record it was read from.
    pub(super) fn source(&self) -> Option<(&'static Image<'static>, &'static TypeRecord)> {
        let image = objects::image(modules::numbered(self.module)?)?;
        Some((image, image.type_at(self.index)?))
    }

    /// Whether the identity begins with `code`, which is in hexadecimal.
    pub(super) fn begins_with(&self, code: &[u8]) -> bool {
        let digits = code.iter().map(|digit| char::from(*digit).to_digit(16));
        digits.zip(0..16).all(|(digit, at)| {
            digit.is_some_and(|digit| u64::from(digit) == self.key.0[0] >> (60 - at * 4) & 15)
        })
    }

    /// Whether it is a base type of whole numbers (`DW_ATE_signed` 5, `_signed_char` 6, `_unsigned` 7, `_unsigned_char` 8).
    pub(super) fn is_integer(&self) -> bool {
        (5..=8).contains(&self.encoding)
    }

    /// Whether it has members that are subobjects.
    pub(super) fn is_composite(&self) -> bool {
        self.kind == TRAILED
            || matches!(
                self.kind(),
                TypeKind::Struct | TypeKind::Class | TypeKind::Union | TypeKind::Variant
            )
    }
}

/// How many records there is room for: a power of two.
fn capacity() -> usize {
    if room::is_narrow() { 1 << 16 } else { 1 << 20 }
}

static RECORDS: AtomicPtr<Record> = AtomicPtr::new(core::ptr::null_mut());
/// By key: one more than the number of a record. Twice as many as records.
static SLOTS: AtomicPtr<AtomicU32> = AtomicPtr::new(core::ptr::null_mut());
static USED: AtomicU32 = AtomicU32::new(0);
/// All records below this number are named.
static DONE: AtomicU32 = AtomicU32::new(0);

/// Takes room for the tables. `false` if there is none.
pub(super) fn set_up() -> bool {
    RECORDS.store(room::take(capacity()), Release);
    SLOTS.store(room::take(capacity() * 2), Release);
    !SLOTS.load(Relaxed).is_null()
}

/// The record that [`number`] gave `number` for.
#[inline(always)]
pub(super) fn numbered(number: u32) -> Option<&'static Record> {
    let at = number.checked_sub(1)?;
    // SAFETY: only numbers of records are handed out.
    Some(unsafe { &*RECORDS.load(Acquire).add(at as usize) })
}

/// One more than the record's place.
pub(super) fn number(record: &Record) -> u32 {
    record.number + 1
}

/// The record that a pointer from the program points to.
pub(super) fn given(pointer: *const Record) -> Option<&'static Record> {
    let records = RECORDS.load(Acquire);
    let at = (pointer as usize).checked_sub(records as usize)?;
    let is_one = !records.is_null()
        && at % size_of::<Record>() == 0
        && at / size_of::<Record>() < USED.load(Acquire) as usize;
    // SAFETY: the place of a record.
    let record = is_one.then(|| unsafe { &*pointer })?;
    (record.state.load(Acquire) != 0).then_some(record)
}

/// What is known of a record when it is reserved.
struct Outline {
    key: Key,
    kind: u8,
    size: u64,
    length: u64,
    encoding: u8,
    flags: u16,
    members_len: u32,
    module: u32,
    index: u32,
    /// Of records that are made in the process: known from the start.
    target: Option<&'static Record>,
    members: *mut Member,
}

impl Outline {
    fn made(key: Key, kind: u8, size: u64) -> Self {
        Self {
            key,
            kind,
            size,
            length: 0,
            encoding: 0,
            flags: 0,
            members_len: 0,
            module: u32::MAX,
            index: 0,
            target: None,
            members: core::ptr::null_mut(),
        }
    }
}

fn find(key: Key) -> Option<&'static Record> {
    probe(key, |_| None)
}

/// Goes along the slots of `key` to its record, or to the first empty slot, which `fill` may fill.
fn probe(
    key: Key,
    mut fill: impl FnMut(&'static AtomicU32) -> Option<u32>,
) -> Option<&'static Record> {
    let slots = SLOTS.load(Acquire);
    if slots.is_null() {
        return None;
    }
    let mask = capacity() * 2 - 1;
    for step in 0..capacity() {
        // SAFETY: masked to the table.
        let slot = unsafe { &*slots.add((key.0[0] as usize).wrapping_add(step) & mask) };
        let mut number = slot.load(Acquire);
        if number == 0 {
            number = fill(slot)?;
        }
        let record = numbered(number)?;
        if record.key == key {
            return Some(record);
        }
    }
    None
}

/// The record of a key; a new one by `outline` if there is none. `None` when there is no room.
fn reserve(outline: Outline) -> Option<&'static Record> {
    let mut new = 0;
    let key = outline.key;
    probe(key, |slot| {
        if new == 0 {
            new = write(&outline)?;
        }
        // Whoever was faster may have put another key there: the caller compares.
        match slot.compare_exchange(0, new, AcqRel, Acquire) {
            Ok(_) => Some(new),
            Err(other) => Some(other),
        }
    })
}

/// Writes a new record; one more than its place.
fn write(outline: &Outline) -> Option<u32> {
    let fits = |used: u32| ((used as usize) < capacity()).then_some(used + 1);
    let number = USED.fetch_update(AcqRel, Acquire, fits).ok()?;
    // SAFETY: below the capacity, and nobody else was given this number.
    unsafe {
        let to = RECORDS.load(Acquire).add(number as usize);
        to.write(Record {
            name: AtomicPtr::new(core::ptr::null_mut()),
            size: outline.size,
            length: outline.length,
            target: AtomicPtr::new(outline.target.map_or(core::ptr::null_mut(), |target| {
                core::ptr::from_ref(target).cast_mut()
            })),
            members: AtomicPtr::new(outline.members),
            members_len: outline.members_len,
            kind: outline.kind,
            encoding: outline.encoding,
            flags: outline.flags,
            key: outline.key,
            module: outline.module,
            index: outline.index,
            state: AtomicU32::new(0),
            number,
        });
        (*to).state.store(RESERVED, Release);
    }
    Some(number + 1)
}

/// `void`.
pub(super) fn void() -> Option<&'static Record> {
    reserve(Outline::made(Key::VOID, TypeKind::Void as u8, UNKNOWN))
}

/// Follows typedefs and qualifiers.
pub(super) fn underlying<'a>(
    image: &Image<'a>,
    mut index: TypeIndex,
) -> Option<(TypeIndex, &'a TypeRecord)> {
    for _ in 0..DEEPEST {
        let record = image.type_at(index)?;
        match TypeKind::from_byte(record.kind) {
            TypeKind::Typedef
            | TypeKind::Const
            | TypeKind::Volatile
            | TypeKind::Restrict
            | TypeKind::Atomic => index = record.target,
            _ => return Some((index, record)),
        }
    }
    None
}

/// Whether a type has no name of its own but is made of others.
fn is_derived(image: &Image<'_>, record: &TypeRecord) -> bool {
    match TypeKind::from_byte(record.kind) {
        TypeKind::Pointer | TypeKind::Reference | TypeKind::RvalueReference => {
            image.string(record.name).is_empty()
        }
        TypeKind::Array | TypeKind::Function => true,
        _ => false,
    }
}

/// The first record that is named and is it.
pub(super) fn find_by(mut is_it: impl FnMut(&'static Record) -> bool) -> Option<&'static Record> {
    let used = USED.load(Acquire);
    let record = (1..=used)
        .filter_map(numbered)
        .find(|record| record.state.load(Acquire) == NAMED && is_it(record))?;
    // Of two that were written for one key at once, one was left unused: it must not be handed out.
    find(record.key)
}
