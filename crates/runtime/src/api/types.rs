//! *Where is the one record of this type?*
//!
//! What C sees as `struct uniqtype` is the start of a [`Record`]. One type has one record in a process, whatever
//! image it came from and whoever made it: records are found by [`Key`], a hash of what the type *is*.
//!
//! ```text
//!   key     tagged and base types: the identity in the image      (equal in all images, see model::image)
//!           pointer, array, function: hash of kind, length and the keys of what they are made of
//!           typedefs and qualifiers: the key of what they stand for
//!   state   RESERVED ─link─▶ LINKED ─name─▶ NAMED
//!           key, kind, size   target and members    name
//! ```
//!
//! A record leads to others, which lead back (`struct list { struct list *next; }`), so a record is *reserved* with
//! an address first, then *linked* (what it leads to is reserved), then *named*. [`complete`] links and names
//! all that is reserved, in order of reservation, and so all that a record leads to. Every step does the same
//! whoever does it: threads, and a handler that interrupts one of them, do it side by side, without a lock; the first store stays.

#![allow(unsafe_code)] // Records lie in room of our own, reached by raw pointer.

use super::{names, room};
use crate::modules::{self, Module};
use core::ffi::c_char;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32};
use pointee_model::image::{
    EnumeratorRecord, Image, MemberRecord, NO_TYPE, TypeIndex, TypeKind, TypeRecord,
};

/// A size or length that is not known.
pub(super) const UNKNOWN: u64 = u64::MAX;
/// Kind of what a site makes out of a header and an array behind it; the others are [`TypeKind`]'s.
pub(super) const TRAILED: u8 = 32;
/// Typedefs, qualifiers and derivations that are followed.
const DEEPEST: u32 = 32;
/// Types that are looked at for one key: parameters of parameters multiply.
const LOOKED_AT: u32 = 256;

const RESERVED: u32 = 1;
const LINKED: u32 = 2;
const NAMED: u32 = 3;

/// What a type is, in 128 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key([u64; 2]);

impl Key {
    pub(super) const VOID: Self = Self([u64::from_le_bytes(*b"void\0\0\0\0"), 0]);

    fn of_identity(identity: [u8; 16]) -> Self {
        let half = |from: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&identity[from..from + 8]);
            u64::from_le_bytes(bytes)
        };
        Self([half(0), half(8)])
    }

    fn derived(kind: u8) -> Self {
        Self([u64::from(kind) + 1, !u64::from(kind)]).with([0x0070_6f69_6e74_6565, 0])
    }

    /// Mixes in two more words; the order counts. (Multiply and fold, as wyhash does.)
    fn with(self, words: [u64; 2]) -> Self {
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            product as u64 ^ (product >> 64) as u64
        };
        const A: u64 = 0xa076_1d64_78bd_642f;
        const B: u64 = 0xe703_7ed1_a0b4_28db;
        let low = fold(self.0[0] ^ words[0] ^ A, self.0[1] ^ words[1] ^ B);
        let high = fold(
            self.0[0] ^ words[1].rotate_left(32) ^ B,
            self.0[1].rotate_left(17) ^ words[0] ^ A,
        );
        Self([low, high])
    }

    fn and(self, other: Self) -> Self {
        self.with(other.0)
    }
}

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
        let image = modules::numbered(self.module)?.image.as_ref()?;
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

fn key_of(image: &Image<'_>, index: TypeIndex, left: &mut u32, depth: u32) -> Key {
    let Some((_, record)) = underlying(image, index) else {
        return Key::VOID;
    };
    if *left == 0 || depth == DEEPEST || !is_derived(image, record) {
        return match TypeKind::from_byte(record.kind) {
            TypeKind::Void => Key::VOID,
            _ => Key::of_identity(record.identity),
        };
    }
    *left -= 1;
    let target = key_of(image, record.target, left, depth + 1);
    let key = Key::derived(record.kind).and(target);
    match TypeKind::from_byte(record.kind) {
        TypeKind::Array => key.with([record.count, 0]),
        TypeKind::Function => image.members_of(record).iter().fold(key, |key, parameter| {
            key.and(key_of(image, parameter.r#type, left, depth + 1))
        }),
        _ => key,
    }
}

/// The record of a type of an image, reserved at least. Without target or type, it is `void`.
pub(super) fn of_image(
    module: &Module,
    image: &Image<'_>,
    index: TypeIndex,
) -> Option<&'static Record> {
    let Some((index, record)) = underlying(image, index) else {
        return void();
    };
    let key = key_of(image, index, &mut { LOOKED_AT }, 0);
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
pub(super) fn complete(record: &'static Record) -> Option<()> {
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
            Some(record) => name(record)?,
            None => whole = false,
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

/// A pointer or reference to `target`, or an array of it.
pub(super) fn derived(
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
pub(super) fn function(
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
pub(super) fn union(parts: &[*const Record]) -> Option<&'static Record> {
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

/// A header and the array behind it; without `tail`, something.
pub(super) fn trailed(
    header: &'static Record,
    tail: Option<&'static Record>,
) -> Option<&'static Record> {
    let array = tail.and_then(|tail| derived(TypeKind::Array, tail, UNKNOWN));
    let key = Key::derived(TRAILED)
        .and(header.key())
        .and(array.map_or(Key::VOID, Record::key));
    let parts = [(header, 0), (array.unwrap_or(header), header.size)];
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

/// Calls `each` for every record that is named until it gives something.
pub(super) fn find_map<T>(each: impl FnMut(&'static Record) -> Option<T>) -> Option<T> {
    let used = USED.load(Acquire);
    (1..=used)
        .filter_map(numbered)
        .filter(|record| record.state.load(Acquire) == NAMED)
        .find_map(each)
}
