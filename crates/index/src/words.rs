//! *How is a block written into granule words?*
//!
//! A granule is 16 bytes of the program's memory; a table holds one 32-bit word for each. A block
//! that starts on a granule has its words in the even plane, one that starts 8 bytes into a granule in the
//! odd plane (glibc never does; jemalloc, tcmalloc and mimalloc hand out 8-byte blocks at 8-byte
//! steps). Seen from one plane, words look like this:
//!
//! ```text
//!   first word   1 S L wwwww… — start mark, Single, Large; then
//!                  Single: 5 bits of size (0–16), then as else
//!                  else:   5 bits unused, 4 bits of class, 20 bits of origin
//!   second word  0 sssssss…   — low 31 bits of the size          (not Single)
//!   third word   0 sssssss…   — the bits above                   (Large: 64 KiB and more)
//!   other words  no start mark; anything
//! ```
//!
//! Order of stores: size words first, the first word last, all with *release*, so that whoever sees the size
//! of a new block sees that the block before it is gone; erasing clears only the first word. A reader
//! loads the first word with *acquire*, then the size, then the first word again: equal means that the pair belongs
//! together, unless the same origin's block was freed and replaced in between, and then both answers
//! were true once. Model-checked in `tests/orders.rs`.

use crate::layout::LARGE;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};

/// log2 of the bytes a granule covers.
pub const GRANULE_SHIFT: u32 = 4;
/// Bytes a granule covers.
pub const GRANULE: u64 = 1 << GRANULE_SHIFT;

/// Marks the first word of a block.
pub const START: u32 = 1 << 31;
/// Marks a first word that holds the size too.
pub const SINGLE: u32 = 1 << 30;
/// Marks the first word of a block whose size takes two words.
pub const LARGE_MARK: u32 = 1 << 29;
/// Where the size lies in a word marked [`SINGLE`].
pub const SINGLE_SIZE_SHIFT: u32 = 24;
/// Cuts that size.
pub const SINGLE_SIZE_MASK: u32 = 0x1f;
/// Origins are numbered below this.
pub const ORIGIN_LIMIT: u32 = 1 << CLASS_SHIFT;
/// Where the class of an origin lies in a word: who has to free its blocks ([`crate::class`]).
pub const CLASS_SHIFT: u32 = 20;
/// Cuts the class out of a word.
pub const CLASS_MASK: u32 = 0xf << CLASS_SHIFT;
const LOW_SIZE: u64 = (1 << 31) - 1;

/// The words of one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Words {
    /// First word, with the start mark.
    pub first: u32,
    /// Second word; `None` for a block of one granule.
    pub second: Option<u32>,
    /// Third word; only blocks of [`LARGE`] bytes and more have one.
    pub third: Option<u32>,
}

/// Encodes a block of `size` bytes (any, 0 included) allocated at `origin` (with its class).
#[inline(always)]
#[must_use]
pub const fn encode(size: u64, origin: u32) -> Words {
    let origin = origin & (CLASS_MASK | (ORIGIN_LIMIT - 1));
    if size <= GRANULE {
        let first = START | SINGLE | (size as u32) << SINGLE_SIZE_SHIFT | origin;
        Words {
            first,
            second: None,
            third: None,
        }
    } else if size < LARGE {
        Words {
            first: START | origin,
            second: Some(size as u32),
            third: None,
        }
    } else {
        Words {
            first: START | LARGE_MARK | origin,
            second: Some((size & LOW_SIZE) as u32),
            third: Some(((size >> 31) & LOW_SIZE) as u32),
        }
    }
}

/// Whether a word starts a block.
#[inline(always)]
#[must_use]
pub const fn is_start(word: u32) -> bool {
    word & START != 0
}

/// The origin in a first word, or without its class.
#[inline(always)]
#[must_use]
pub const fn origin(first: u32) -> u32 {
    first & (ORIGIN_LIMIT - 1)
}

/// The origin in a first word, with its class.
#[inline(always)]
#[must_use]
pub const fn classed_origin(first: u32) -> u32 {
    first & (CLASS_MASK | (ORIGIN_LIMIT - 1))
}

/// The size that `first` and the two words after it state. `next(i)` gives word 1 or 2.
#[inline(always)]
pub fn size(first: u32, mut next: impl FnMut(u64) -> u32) -> u64 {
    if first & SINGLE != 0 {
        return u64::from(first >> SINGLE_SIZE_SHIFT & SINGLE_SIZE_MASK);
    }
    let low = u64::from(next(1)) & LOW_SIZE;
    if first & LARGE_MARK == 0 {
        low
    } else {
        low | (u64::from(next(2)) & LOW_SIZE) << 31
    }
}

/// A word as threads see it; model checkers bring their own.
pub trait Cell {
    /// Atomic load.
    fn load(&self, order: Ordering) -> u32;
    /// Atomic store.
    fn store(&self, word: u32, order: Ordering);
}

impl Cell for AtomicU32 {
    #[inline(always)]
    fn load(&self, order: Ordering) -> u32 {
        Self::load(self, order)
    }

    #[inline(always)]
    fn store(&self, word: u32, order: Ordering) {
        Self::store(self, word, order);
    }
}

/// Publishes a block whose words lie at `at(0)`, `at(1)`, `at(2)`.
#[inline(always)]
pub fn publish<'c, C: Cell + 'c>(at: impl Fn(usize) -> &'c C, words: Words) {
    if let Some(second) = words.second {
        at(1).store(second, Release);
        if let Some(third) = words.third {
            at(2).store(third, Release);
        }
    }
    at(0).store(words.first, Release);
}

/// Takes a block out, by its owner.
#[inline(always)]
pub fn retract(first: &impl Cell) {
    first.store(0, Release);
}

/// Reads a block that others may be changing: its first word and its size, which belong together;
/// `None` if there is none, or it changed while it was read.
pub fn observe<'c, C: Cell + 'c>(at: impl Fn(usize) -> &'c C) -> Option<(u32, u64)> {
    let first = at(0).load(Acquire);
    if !is_start(first) {
        return None;
    }
    let size = size(first, |word| at(word as usize).load(Acquire));
    // The size words were loaded with acquire, so this load is not older than they are.
    (at(0).load(Relaxed) == first).then_some((first, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_and_origin_comes_back() {
        let sizes = [
            0,
            1,
            15,
            16,
            17,
            24,
            65_535,
            LOW_SIZE,
            LOW_SIZE + 1,
            1 << 40,
        ];
        for size in sizes {
            for origin in [0, 1, 77, ORIGIN_LIMIT - 1] {
                let words = encode(size, origin);
                assert!(is_start(words.first));
                assert!(!words.second.is_some_and(is_start), "size {size}");
                assert!(!words.third.is_some_and(is_start), "size {size}");
                assert_eq!(super::origin(words.first), origin);
                let classed = encode(size, origin | CLASS_MASK);
                assert_eq!(super::classed_origin(classed.first), origin | CLASS_MASK);
                assert_eq!(super::origin(classed.first), origin);
                let next = |at| if at == 1 { words.second } else { words.third };
                assert_eq!(super::size(words.first, |at| next(at).unwrap()), size);
            }
        }
    }
}
