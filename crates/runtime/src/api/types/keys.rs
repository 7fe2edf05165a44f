//! *Are these two the same type?* — if their keys are equal.

use super::{ALIAS, DEEPEST, Outline, Record, UNKNOWN, find, is_derived, reserve, underlying};
use crate::api::lookup;
use pointee_model::image::{Image, TypeIndex, TypeKind, TypeRecord, type_flags};

/// Types that are looked at for one key: parameters of parameters multiply.
const LOOKED_AT: u32 = 256;

/// What a type is, in 128 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::api) struct Key(pub(super) [u64; 2]);

impl Key {
    pub(super) const VOID: Self = Self([u64::from_le_bytes(*b"void\0\0\0\0"), 0]);

    pub(super) fn of_identity(identity: [u8; 16]) -> Self {
        let half = |from: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&identity[from..from + 8]);
            u64::from_le_bytes(bytes)
        };
        Self([half(0), half(8)])
    }

    pub(super) fn derived(kind: u8) -> Self {
        Self([u64::from(kind) + 1, !u64::from(kind)]).with([u64::from_le_bytes(*b"pointee\0"), 0])
    }

    /// Mixes in two more words; the order counts. (Multiply and fold, as wyhash does.)
    pub(super) fn with(self, words: [u64; 2]) -> Self {
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

    pub(super) fn and(self, other: Self) -> Self {
        self.with(other.0)
    }
}

/// The key of a type of an image.
pub(super) fn of_image(image: &Image<'_>, index: TypeIndex) -> Key {
    key_of(image, index, &mut { LOOKED_AT }, 0)
}

fn key_of(image: &Image<'_>, index: TypeIndex, left: &mut u32, depth: u32) -> Key {
    let Some((_, record)) = underlying(image, index) else {
        return Key::VOID;
    };
    if *left == 0 || depth == DEEPEST || !is_derived(image, record) {
        return match TypeKind::from_byte(record.kind) {
            TypeKind::Void => Key::VOID,
            _ => defined(image, record),
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

/// The key of a type with a name of its own. One that a file only declares is the one that another file defines, if
/// there is exactly one; looked for once.
fn defined(image: &Image<'_>, record: &TypeRecord) -> Key {
    let key = Key::of_identity(record.identity);
    if record.flags & type_flags::DECLARATION == 0 {
        return key;
    }
    if let Some(known) = find(key) {
        let is_alias = known.kind == ALIAS;
        return known.target().filter(|_| is_alias).map_or(key, Record::key);
    }
    let name = image.string(record.name).as_bytes();
    let definition = lookup::definition(TypeKind::from_byte(record.kind), name);
    let Some(definition) = definition else {
        return key;
    };
    // Without room, it is looked for again.
    let _ = reserve(Outline {
        target: Some(definition),
        ..Outline::made(key, ALIAS, UNKNOWN)
    });
    definition.key()
}
