//! *Which block of a pool does this address lie in?* — blocks that were cut out of recorded ones.
//!
//! They may start where the block around them starts, or where its size is written, so their words have tables of their own, of the
//! same form. Few chunks have any: a table is found through a hash of (chunk, plane), in which nothing is moved.
//! There are no covers: a nested block is found from its first 64 KiB.
//!
//! ```text
//!   slot   (directory index + 1) << 40 | offset of the table in the region; 0: empty
//! ```
//!
//! The block around carries a mark in its word ([`crate::class::Class::CONTAINER`]); when it is freed, what was cut out of it is
//! taken out too. Blocks whose pool got its memory elsewhere live until they are freed themselves, or handed out again.

#![allow(unsafe_code)] // Writes the region through raw pointers; offsets are bounded by the geometry.

use crate::Writer;
use crate::layout::{CHUNK_SHIFT, CHUNKS, NESTED, TABLE_BYTES};
use crate::table::{Recorded, directory_index, granule};
use crate::words::{self, GRANULE_SHIFT};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

const OFFSET_BITS: u32 = 40;
/// Slots looked at for one key.
const WINDOW: u64 = 32;

/// The slots that may hold the table of `address`, and the key they hold then.
pub(crate) fn slots(address: u64) -> (u64, impl Iterator<Item = u64>) {
    let key = directory_index(address) as u64 + 1;
    let first = key.wrapping_mul(crate::origins::HASH) >> (64 - NESTED.ilog2());
    (key, (0..WINDOW).map(move |step| (first + step) % NESTED))
}

/// The table's offset in the region, if `slot` holds that of `key`.
pub(crate) const fn table_in(slot: u64, key: u64) -> Option<u64> {
    if slot >> OFFSET_BITS == key {
        Some(slot & ((1 << OFFSET_BITS) - 1))
    } else {
        None
    }
}

/// Whether a table may lie at `offset`, in a region `len` bytes long with tables from `first` on.
pub(crate) const fn is_table(offset: u64, first: u64, len: u64) -> bool {
    offset >= first && offset <= len - TABLE_BYTES
}

impl Writer {
    /// Whether there ever was a nested block.
    #[inline(always)]
    #[must_use]
    pub fn has_nested(&self) -> bool {
        self.header().nested.load(Relaxed) != 0
    }

    /// Records a nested block. Gives back what was recorded at that very address, if anything. `false` in the second place: there is
    /// no room, or the address is not a multiple of 8.
    pub fn insert_nested(&self, address: u64, size: u64, origin: u32) -> (Option<Recorded>, bool) {
        if address & 7 != 0 || address >> 47 != 0 {
            return (None, false);
        }
        let mut word = self.nested_word(address);
        if word.is_null() {
            word = self.make_nested_table(address);
        }
        if word.is_null() {
            return (None, false);
        }
        let words = words::encode(size, origin);
        // SAFETY: the table is mapped, with room for two words behind its last granule.
        unsafe {
            let stale = (*word).load(Relaxed);
            let replaced = words::is_start(stale).then(|| self.recorded(word, stale));
            words::publish(|at| &*word.add(at), words);
            (replaced, true)
        }
    }

    /// What is recorded as nested at that very address.
    #[must_use]
    pub fn nested_at(&self, address: u64) -> Option<Recorded> {
        let word = self.nested_word(address);
        if word.is_null() || address & 7 != 0 {
            return None;
        }
        // SAFETY: as in `insert_nested`.
        unsafe {
            let first = (*word).load(Relaxed);
            words::is_start(first).then(|| self.recorded(word, first))
        }
    }

    /// Takes a nested block out.
    pub fn erase_nested(&self, address: u64) -> Option<Recorded> {
        let recorded = self.nested_at(address)?;
        // SAFETY: found there just now, by the thread that frees it.
        unsafe { words::retract(&*self.nested_word(address)) };
        Some(recorded)
    }

    /// Takes all nested blocks out that start in `len` bytes from `base` on.
    #[cold]
    pub fn erase_nested_in(&self, base: u64, len: u64, mut each: impl FnMut(Recorded)) {
        for plane in [0, 8] {
            let mut at = base & !15 | plane;
            let end = base.saturating_add(len);
            while at < end {
                let chunk_end = ((at >> CHUNK_SHIFT) + 1) << CHUNK_SHIFT;
                let granules = (end.min(chunk_end) - at).div_ceil(1 << GRANULE_SHIFT);
                let first = self.nested_word(at);
                for number in 0..granules as usize {
                    if first.is_null() {
                        break;
                    }
                    // SAFETY: granules of one table.
                    unsafe {
                        let word = first.add(number);
                        let start = (*word).load(Relaxed);
                        if words::is_start(start) {
                            each(self.recorded(word, start));
                            words::retract(&*word);
                        }
                    }
                }
                at = chunk_end | plane;
            }
        }
    }

    /// The first word of a nested block at `address`; null while there is no table for it.
    fn nested_word(&self, address: u64) -> *const AtomicU32 {
        let (key, slots) = slots(address);
        for slot in slots {
            // SAFETY: below the number of slots.
            let slot = unsafe { &*self.nested.add(slot as usize) }.load(Acquire);
            if let Some(table) = table_in(slot, key) {
                let table = self.at(table).cast::<AtomicU32>();
                return table.wrapping_add(granule(address) as usize);
            }
            if slot == 0 {
                break;
            }
        }
        core::ptr::null()
    }

    #[cold]
    fn make_nested_table(&self, address: u64) -> *const AtomicU32 {
        let (key, slots) = slots(address);
        // Beyond the directory's entries: no table of plain blocks.
        let owner = (CHUNKS * 2 + key) as u32;
        let Some(table) = self.new_table(owner) else {
            return core::ptr::null();
        };
        let entry = key << OFFSET_BITS | self.offset(table);
        for slot in slots {
            // SAFETY: below the number of slots.
            let slot = unsafe { &*self.nested.add(slot as usize) };
            match slot.compare_exchange(0, entry, Release, Acquire) {
                Ok(_) => {
                    self.header().nested.fetch_add(1, Relaxed);
                    break;
                }
                // Another thread was first; this table stays unused and costs address space only.
                Err(found) if found >> OFFSET_BITS == key => break,
                Err(_) => {}
            }
        }
        self.nested_word(address)
    }
}
