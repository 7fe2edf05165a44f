//! *Which type did the program say this block has?*
//!
//! Kept by address, with the block's size and origin: what is freed loses it, unless its next owner at the same address comes
//! from the same site with the same size.

#![allow(unsafe_code)] // A table in room of our own.

use super::room;
use super::types::Record;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU64};
use pointee_index::origins::HASH;
use pointee_index::read::Block;

/// Blocks that can be told apart: a power of two.
const ROOM: usize = 1 << 16;
/// Places that are looked at for one block.
const WINDOW: usize = 64;

struct Stated {
    base: AtomicU64,
    /// Size and origin, mixed.
    block: AtomicU64,
    r#type: AtomicPtr<Record>,
}

static TABLE: AtomicPtr<Stated> = AtomicPtr::new(core::ptr::null_mut());

fn places(base: u64) -> impl Iterator<Item = &'static Stated> {
    let table = TABLE.load(Acquire);
    let first = (base.wrapping_mul(HASH) >> 48) as usize;
    // SAFETY: cut to the table, which is there if `len` is not zero.
    let place = move |step| unsafe { &*table.add((first + step) & (ROOM - 1)) };
    let len = if table.is_null() { 0 } else { WINDOW };
    (0..len).map(place)
}

fn mixed(block: &Block) -> u64 {
    block.size << 24 ^ u64::from(block.origin)
}

/// The type stated of `block`.
#[inline(always)]
pub(super) fn of(block: &Block) -> Option<&'static Record> {
    if TABLE.load(Relaxed).is_null() {
        return None;
    }
    // A copy, so that the caller's stays in registers.
    search(*block)
}

#[cold]
fn search(block: Block) -> Option<&'static Record> {
    let mut places = places(block.base).take_while(|place| place.base.load(Acquire) != 0);
    let place = places.find(|place| place.base.load(Relaxed) == block.base)?;
    if place.block.load(Acquire) != mixed(&block) {
        return None;
    }
    // SAFETY: records stay.
    unsafe { place.r#type.load(Relaxed).as_ref() }
}

/// States the type of `block`. `false` when there is no room.
pub(super) fn set(block: &Block, record: &'static Record) -> bool {
    if TABLE.load(Acquire).is_null() {
        let table = room::take::<Stated>(ROOM);
        let null = core::ptr::null_mut();
        // Whoever comes second leaves its room unused.
        let _ = TABLE.compare_exchange(null, table, AcqRel, Relaxed);
    }
    let mut places = places(block.base);
    let found = places.find(|place| {
        let before = place.base.compare_exchange(0, block.base, AcqRel, Acquire);
        before.is_ok() || before == Err(block.base)
    });
    let Some(place) = found else { return false };
    place
        .r#type
        .store(core::ptr::from_ref(record).cast_mut(), Relaxed);
    place.block.store(mixed(block), Release);
    true
}
