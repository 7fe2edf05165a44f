//! *Which blocks were cut out of others?* — the second level.
//!
//! A pool's block may start where the block around it starts, or where that one's size is written, so the blocks of pools have tables, a
//! directory and covers of their own, of the same form. Few chunks have any.
//!
//! The block around carries a mark in its word ([`crate::class::Class::CONTAINER`]); when it is freed, what was cut out of it is
//! taken out too. A pool that takes blocks back all at once, unseen, hands the same bytes out again later, cut in another way: what is
//! recorded inside a new block is taken out then ([`Nested::insert`]), so that never two overlap but the last old one in front; and that
//! one too where the new one's word lies on its size.

#![allow(unsafe_code)] // Writes the region through raw pointers; offsets are bounded by the geometry.

use crate::layout::{Header, LARGE, Layout, PAGE, TABLE_WORDS};
use crate::marks::{MANY, starts};
use crate::table::{Recorded, Writer, granule};
use crate::words::{self, GRANULE, LARGE_MARK, SINGLE, START};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

/// Writes the tables of blocks that were cut out of others.
#[derive(Clone, Copy)]
pub struct Nested {
    writer: Writer,
}

/// Whether a block that starts `back` granules (1 or 2) before `word` has part of its size written there.
///
/// # Safety
/// The granule is in the table.
#[inline(always)]
unsafe fn has_size_here(word: *const AtomicU32, back: usize) -> bool {
    // SAFETY: the caller's promise.
    let start = unsafe { (*word.sub(back)).load(Relaxed) };
    match back {
        1 => start & (START | SINGLE) == START,
        _ => start & (START | LARGE_MARK) == START | LARGE_MARK,
    }
}

impl Nested {
    /// Writes the region at `base`.
    ///
    /// # Safety
    /// As for [`Writer::new`].
    #[must_use]
    pub const unsafe fn new(base: *mut u8, layout: &Layout) -> Self {
        // SAFETY: the caller's promise.
        let writer = unsafe { Writer::of_level(base, layout, 1) };
        Self { writer }
    }

    /// Whether there ever was a nested block.
    #[inline(always)]
    #[must_use]
    pub fn any(&self) -> bool {
        self.header().nested.load(Relaxed) != 0
    }

    fn header(&self) -> &Header {
        self.writer.header()
    }

    /// Records a block of less than [`LARGE`] bytes on whose bytes nothing is recorded yet, where there are tables: the usual case. `false`, and
    /// nothing is done, otherwise.
    #[inline(always)]
    pub fn insert_new(&self, address: u64, size: u64, origin: u32) -> bool {
        let word = self.writer.word(address);
        let other = self.writer.word(address + 8);
        let here = granule(address) as usize;
        // In the other plane the first granule begins 8 bytes further on.
        let (own, others) = (size.div_ceil(GRANULE), (size + 8) / GRANULE);
        let is_usual = !word.is_null()
            && address & 7 == 0
            && size.wrapping_sub(1) < LARGE - 1
            && here >= 2
            && here + (own as usize) < TABLE_WORDS as usize;
        if !is_usual {
            return false;
        }
        // SAFETY: two granules in front are in the table.
        if unsafe { has_size_here(word, 1) || has_size_here(word, 2) } {
            return false;
        }
        let words = |from: *const AtomicU32, count: u64| {
            // SAFETY: granules of a table that is mapped; one more in the other plane at most, which its spill has room for.
            let word = |at: usize| unsafe { (*from.add(at)).load(Relaxed) };
            (0..count as usize).fold(0, |all, at| all | word(at))
        };
        let seen = words(word, own)
            | if other.is_null() {
                0
            } else {
                words(other, others)
            };
        if words::is_start(seen) {
            return false;
        }
        // SAFETY: the table is mapped, with room for two words behind its last granule.
        unsafe { words::publish(|at| &*word.add(at), words::encode(size, origin)) };
        true
    }

    /// Records a block; `each` is called with what was recorded in its bytes and is taken out. `false`: there is no room, or the
    /// address is not a multiple of 8.
    pub fn insert(
        &self,
        address: u64,
        size: u64,
        origin: u32,
        mut each: impl FnMut(Recorded),
    ) -> bool {
        let mut word = self.writer.word(address);
        if word.is_null() || address & 7 != 0 {
            word = self.writer.make_room(address);
            if word.is_null() {
                return false;
            }
        }
        // What starts on this very granule, further on in this plane, and anywhere in the other.
        let end = address.saturating_add(size.max(1));
        for back in (1..=2).take_while(|back| *back as u64 <= granule(address)) {
            // SAFETY: a granule of the table.
            unsafe {
                if has_size_here(word, back) {
                    let at = address - back as u64 * GRANULE;
                    self.take_out(&*word.sub(back), at, &mut each);
                }
            }
        }
        self.clear(address, end, &mut each);
        self.clear(address + 8, end, &mut each);
        if size >= LARGE {
            return self.writer.insert(address, size, origin).1;
        }
        // SAFETY: the table is mapped, with room for two words behind its last granule.
        unsafe { words::publish(|at| &*word.add(at), words::encode(size, origin)) };
        true
    }

    /// Has the words of the page at `address` made present and brought into the cache, for the blocks that will be cut out of it.
    pub fn open_page(&self, address: u64) {
        self.writer.open_page(address);
    }

    /// From where on no words of blocks lie on the page at `address`: behind the last that starts there.
    #[must_use]
    pub fn fresh_from(&self, address: u64) -> u64 {
        let page = address & !(PAGE - 1);
        let mut fresh = page;
        for plane in [0, 8] {
            let start = page | plane;
            let words = self.writer.word(start);
            if words.is_null() {
                continue;
            }
            // SAFETY: a page's granules lie in one table, and two in front if there are any.
            unsafe {
                let before = |back| granule(start) >= back as u64 && has_size_here(words, back);
                if before(1) || before(2) {
                    fresh = fresh.max(page + 2 * GRANULE);
                }
                let last = (0..PAGE / GRANULE / MANY).rev().find_map(|group| {
                    let at = group * MANY;
                    let marks = starts(words.add(at as usize));
                    (marks != 0).then(|| at + u64::from(marks.ilog2()))
                });
                if let Some(last) = last {
                    let word = words.add(last as usize);
                    let block = self.writer.recorded(word, (*word).load(Relaxed));
                    fresh = fresh.max(start + last * GRANULE + block.size.max(1));
                }
            }
        }
        fresh
    }

    /// As [`Writer::words_of`].
    #[must_use]
    pub fn words_of(&self, from: u64, to: u64) -> Option<(*mut u8, usize)> {
        self.writer.words_of(from, to)
    }

    /// What is recorded at that very address.
    #[must_use]
    pub fn at(&self, address: u64) -> Option<Recorded> {
        let word = self.writer.word(address);
        if word.is_null() || address & 7 != 0 {
            return None;
        }
        // SAFETY: a granule word of a mapped table.
        unsafe {
            let first = (*word).load(Relaxed);
            words::is_start(first).then(|| self.writer.recorded(word, first))
        }
    }

    /// Takes the block at `address` out.
    #[inline(always)]
    pub fn erase(&self, address: u64) -> Option<Recorded> {
        self.writer.erase(address)
    }

    /// Takes all blocks out that start in `len` bytes from `base` on.
    #[cold]
    pub fn erase_in(&self, base: u64, len: u64, mut each: impl FnMut(Recorded)) {
        let end = base.saturating_add(len);
        let first = base.next_multiple_of(8);
        self.clear(first, end, &mut each);
        self.clear(first + 8, end, &mut each);
    }

    /// Takes the blocks out that start from `from` up to `end`, in the plane of `from`.
    fn clear(&self, mut from: u64, end: u64, each: &mut impl FnMut(Recorded)) {
        while from < end {
            let words = self.writer.word(from);
            // Up to the end of the chunk.
            let granules_left = TABLE_WORDS - granule(from);
            let granules = (end - from).div_ceil(GRANULE).min(granules_left);
            if !words.is_null() {
                // SAFETY: granules of the table.
                let word = |number: u64| unsafe { &*words.add(number as usize) };
                let mut at = 0;
                while at + MANY <= granules {
                    // SAFETY: as above.
                    let mut marks = unsafe { starts(word(at)) };
                    while marks != 0 {
                        let number = at + u64::from(marks.trailing_zeros());
                        self.take_out(word(number), from + number * GRANULE, each);
                        marks &= marks - 1;
                    }
                    at += MANY;
                }
                for number in at..granules {
                    self.take_out(word(number), from + number * GRANULE, each);
                }
            }
            from += granules * GRANULE;
        }
    }

    /// Takes out the block that starts at `address`, where `word` is, if there is one.
    #[inline(always)]
    fn take_out(&self, word: &AtomicU32, address: u64, each: &mut impl FnMut(Recorded)) {
        let start = word.load(Relaxed);
        if !words::is_start(start) {
            return;
        }
        // SAFETY: a granule word of a mapped table.
        let block = unsafe { self.writer.recorded(word, start) };
        if block.size >= LARGE {
            // It has covers.
            self.writer.erase(address);
        } else {
            words::retract(word);
        }
        each(block);
    }
}
