//! *Who mapped this page, and how?* — one word for each page of the address space that the process was seen to map.
//!
//! ```text
//!   chunk     0: nothing known; word << 1 | 1: all pages of the 64 MiB alike; else number of its table << 1
//!   table     16,384 words, one a page
//!   word      1 S F P xwr  .....  20 bits of origin     seen, Shared, backed by a File, a Pool's own, protection; origin 0: who mapped it was not seen
//! ```
//!
//! What is mapped is the kernel's to say; here stands what calls were seen to make of it, so that a reader who has the kernel's own list can
//! tell who made each mapping, and how much was mapped unseen. A range is written by the thread that maps or unmaps it: before it is
//! given back, after it was made. An entry changes by compare-and-exchange; once it leads to a table it stays.

#![allow(unsafe_code)] // Writes the region through raw pointers; numbers are bounded by the geometry.

use crate::layout::{CHUNK_SHIFT, CHUNKS, Header, Layout, PAGE, unseen};
use core::ops::Range;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use core::sync::atomic::{AtomicU32, AtomicU64};

/// Words in one table.
pub const PAGES_OF_CHUNK: u64 = 1 << (CHUNK_SHIFT - 12);
/// Bytes of one table.
pub const PAGE_TABLE_BYTES: u64 = PAGES_OF_CHUNK * 4;

/// What was seen of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageWord(pub u32);

impl PageWord {
    /// Nothing was seen, or that it was unmapped.
    pub const NONE: Self = Self(0);
    const SEEN: u32 = 1 << 31;
    const SHARED: u32 = 1 << 30;
    const FILE: u32 = 1 << 29;
    const POOL: u32 = 1 << 28;
    const PROTECTION_SHIFT: u32 = 25;
    const PROTECTION: u32 = 7 << Self::PROTECTION_SHIFT;
    const ORIGIN: u32 = crate::words::ORIGIN_LIMIT - 1;
    /// What is known of who mapped it.
    const MADE: u32 = Self::ORIGIN | Self::POOL;

    /// A page mapped with `protection` (`PROT_*`) along the path `origin`.
    #[must_use]
    pub const fn mapped(protection: u32, is_shared: bool, is_file: bool, origin: u32) -> Self {
        let shared = if is_shared { Self::SHARED } else { 0 };
        let file = if is_file { Self::FILE } else { 0 };
        let kept = (protection & 7) << Self::PROTECTION_SHIFT | origin & Self::ORIGIN;
        Self(Self::SEEN | shared | file | kept)
    }

    /// The same, mapped by a function of a pool for itself: no block of another allocator lies there.
    #[must_use]
    pub const fn by_pool(self) -> Self {
        Self(self.0 | Self::POOL)
    }

    /// The same path's, mapped as `other` says.
    #[must_use]
    pub const fn as_mapped(self, other: Self) -> Self {
        Self(self.0 & Self::MADE | other.0 & !Self::MADE)
    }

    /// The same with another protection.
    #[must_use]
    pub const fn protected(self, protection: u32) -> Self {
        if self.is_seen() {
            Self(self.0 & !Self::PROTECTION | (protection & 7) << Self::PROTECTION_SHIFT)
        } else {
            self
        }
    }

    /// Whether it was seen to be mapped.
    #[must_use]
    pub const fn is_seen(self) -> bool {
        self.0 & Self::SEEN != 0
    }

    /// Whether a file is behind it.
    #[must_use]
    pub const fn is_file(self) -> bool {
        self.0 & Self::FILE != 0
    }

    /// Whether a function of a pool mapped it for itself.
    #[must_use]
    pub const fn is_pools(self) -> bool {
        self.0 & Self::POOL != 0
    }

    /// Along which path; 0 if that was not seen.
    #[must_use]
    pub const fn origin(self) -> u32 {
        self.0 & Self::ORIGIN
    }

    /// Whether what is known of a page agrees: mapped, protection, sharing, backing.
    #[must_use]
    pub const fn agrees(self, other: Self) -> bool {
        (self.0 ^ other.0) & !Self::MADE == 0
    }
}

/// Pages as a chunk's entry says.
pub(crate) enum Chunk {
    Alike(PageWord),
    Table(u64),
}

impl Chunk {
    pub(crate) const fn of(entry: u64) -> Self {
        if entry & 1 != 0 {
            Self::Alike(PageWord((entry >> 1) as u32))
        } else if entry == 0 {
            Self::Alike(PageWord::NONE)
        } else {
            Self::Table((entry >> 1) - 1)
        }
    }
}

/// Writes what was seen of pages.
#[derive(Clone, Copy)]
pub struct Pages {
    base: *mut u8,
    chunks: u64,
    tables: u64,
    room: u64,
}

impl Pages {
    /// Writes the region at `base`.
    ///
    /// # Safety
    /// `base` points to a region of this layout, mapped and writable as long as `self` is used.
    #[must_use]
    pub const unsafe fn new(base: *mut u8, layout: &Layout) -> Self {
        Self {
            base,
            chunks: layout.page_chunks,
            tables: layout.page_tables,
            room: layout.page_room,
        }
    }

    fn header(&self) -> &Header {
        // SAFETY: by the contract of `new`.
        unsafe { &*self.base.cast::<Header>() }
    }

    fn chunk(&self, number: u64) -> &AtomicU64 {
        let at = self.chunks + (number & (CHUNKS - 1)) * 8;
        // SAFETY: below the number of chunks.
        unsafe { &*self.base.add(at as usize).cast::<AtomicU64>() }
    }

    /// The words of table `number`; the first, if a damaged entry names one beyond the room.
    fn words(&self, number: u64) -> &[AtomicU32] {
        let number = if number < self.room { number } else { 0 };
        let at = self.tables + number * PAGE_TABLE_BYTES;
        // SAFETY: below the number of tables.
        unsafe {
            core::slice::from_raw_parts(self.base.add(at as usize).cast(), PAGES_OF_CHUNK as usize)
        }
    }

    /// Says of all pages from `start` up to `end` that they are `word`.
    pub fn set(&self, start: u64, end: u64, word: PageWord) {
        self.change(start, end, |_| word);
    }

    /// Says of all pages from `start` up to `end`, seen to be mapped, that their protection is this.
    pub fn protect(&self, start: u64, end: u64, protection: u32) {
        self.change(start, end, |word| word.protected(protection));
    }

    /// Says of all pages from `start` up to `end` that they are mapped as `word` says; by whom stays known.
    pub fn restate(&self, start: u64, end: u64, word: PageWord) {
        self.change(start, end, |before| before.as_mapped(word));
    }

    /// What was seen of the page that holds `address`.
    #[must_use]
    pub fn at(&self, address: u64) -> PageWord {
        match Chunk::of(self.chunk(address >> CHUNK_SHIFT).load(Acquire)) {
            Chunk::Alike(word) => word,
            Chunk::Table(table) => {
                let page = address / PAGE % PAGES_OF_CHUNK;
                PageWord(self.words(table)[page as usize].load(Relaxed))
            }
        }
    }

    /// The pages around `address`, within some, of which the same was seen.
    #[must_use]
    pub fn alike(&self, address: u64, within: Range<u64>) -> Range<u64> {
        let word = self.at(address);
        let page = address & !(PAGE - 1);
        let (mut start, mut end) = (page, page + PAGE);
        while start > within.start && self.at(start - PAGE) == word {
            start -= PAGE;
        }
        while end < within.end && self.at(end) == word {
            end += PAGE;
        }
        start..end
    }

    fn change(&self, start: u64, end: u64, new: impl Fn(PageWord) -> PageWord) {
        let (mut page, end) = (start / PAGE, end.min(1 << 47).div_ceil(PAGE));
        while page < end {
            let chunk = page / PAGES_OF_CHUNK;
            let first = page % PAGES_OF_CHUNK;
            let last = (end - chunk * PAGES_OF_CHUNK).min(PAGES_OF_CHUNK);
            self.change_in(chunk, first, last, &new);
            page = (chunk + 1) * PAGES_OF_CHUNK;
        }
    }

    /// The same for pages `first` up to `last` of one chunk.
    fn change_in(&self, chunk: u64, first: u64, last: u64, new: &impl Fn(PageWord) -> PageWord) {
        let entry = self.chunk(chunk);
        let mut spare = None;
        let table = loop {
            let seen = entry.load(Acquire);
            let word = match Chunk::of(seen) {
                Chunk::Table(table) => break table,
                Chunk::Alike(word) => word,
            };
            let changed = new(word);
            if changed == word {
                return;
            }
            let is_whole = first == 0 && last == PAGES_OF_CHUNK;
            let next = if is_whole {
                u64::from(changed.0) << 1 | 1
            } else {
                // Not lost if another thread is first: it is filled again.
                let Some(table) = spare.or_else(|| self.new_table()) else {
                    return;
                };
                spare = Some(table);
                for place in self.words(table) {
                    place.store(word.0, Relaxed);
                }
                (table + 1) << 1
            };
            if entry.compare_exchange(seen, next, AcqRel, Acquire).is_ok() && is_whole {
                return;
            }
        };
        for word in &self.words(table)[first as usize..last as usize] {
            let before = PageWord(word.load(Relaxed));
            word.store(new(before).0, Relaxed);
        }
    }

    /// The number of a table that nobody has. `None`: there is no room, and what follows is not seen.
    fn new_table(&self) -> Option<u64> {
        let used = &self.header().page_tables;
        let number = u64::from(used.fetch_add(1, Relaxed));
        if number >= self.room {
            used.fetch_sub(1, Relaxed);
            self.header().unseen.fetch_or(unseen::PAGES_FULL, Relaxed);
            return None;
        }
        Some(number)
    }
}
