//! *Where does the word of this address lie, and how is it written?*
//!
//! For each level of blocks ([`crate::nested`]) the directory has one entry for each plane of each 64 MiB chunk: 0, or the table's
//! address in the process. A table is its granule words, a page for the words of a block that starts in the last granule, and the covers:
//!
//! ```text
//!   covers[s]        base of the large block (≥ 64 KiB) that holds the first byte of
//!                    64 KiB span s, if the block starts in this chunk
//!   chunk cover[k]   base of the large block that holds the first byte of chunk k
//! ```
//!
//! So whoever looks for the base of an interior pointer scans at most two spans of words back and
//! then has one cover to look at. Covers lie in the even plane's table.

#![allow(unsafe_code)] // Writes the region through raw pointers, one instruction in assembly; offsets are bounded by the geometry.

use crate::class::Class;
use crate::layout::{
    CHUNK_SHIFT, CHUNKS, DIRECTORY, Header, LARGE, LEVELS, Layout, SPAN_SHIFT, SPANS,
};
use crate::layout::{PAGE, SPILL_BYTES, TABLE_BYTES, TABLE_WORDS, unseen};
use crate::marks::{MANY, starts};
use crate::words::{self, GRANULE_SHIFT};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

/// Entry of the directory for `address`: chunk and plane.
#[inline(always)]
#[must_use]
pub const fn directory_index(address: u64) -> usize {
    (((address >> CHUNK_SHIFT) & (CHUNKS - 1)) << 1 | (address >> 3) & 1) as usize
}

/// Cuts the directory index of a chunk's even plane.
pub const EVEN: usize = (CHUNKS as usize - 1) << 1;

/// Granule of `address` in its chunk.
#[inline(always)]
#[must_use]
pub const fn granule(address: u64) -> u64 {
    (address >> GRANULE_SHIFT) & (TABLE_WORDS - 1)
}

/// A block as it was recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recorded {
    /// Bytes requested.
    pub size: u64,
    /// Where from, with the class.
    pub origin: u32,
}

/// Writes the tables of one level of blocks.
#[derive(Clone, Copy)]
pub struct Writer {
    base: *mut u8,
    directory: *const AtomicU64,
    chunk_covers: *const AtomicU64,
    table_owners: *const AtomicU32,
    tables: u64,
    /// 0: blocks of allocators, 1: of pools.
    level: u64,
}

/// Writes a word, though with what is there: a fresh page that is read before it is written faults twice, first for the page of
/// zeros that all share.
///
/// # Safety
/// `word` is mapped and writable, and nobody else writes it.
#[inline(always)]
unsafe fn open(word: *const AtomicU32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("or dword ptr [{}], 0", in(reg) word, options(nostack));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = word;
}

/// The same where others may write the word.
///
/// # Safety
/// `word` is mapped and writable.
unsafe fn open_shared(word: *const AtomicU32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise. In assembly, since a `fetch_or` of 0 becomes a load.
    unsafe {
        core::arch::asm!("lock or dword ptr [{}], 0", in(reg) word, options(nostack));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = word;
}

/// Has a word brought into the cache.
#[inline(always)]
fn prefetch(word: *const AtomicU32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: does nothing where nothing is mapped.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(word.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = word;
}

impl Writer {
    /// Writes the blocks of allocators into the region at `base`.
    ///
    /// # Safety
    /// `base` points to a region of this layout, mapped and writable as long as `self` is used.
    #[must_use]
    pub const unsafe fn new(base: *mut u8, layout: &Layout) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::of_level(base, layout, 0) }
    }

    /// # Safety
    /// As for [`Self::new`].
    pub(crate) const unsafe fn of_level(base: *mut u8, layout: &Layout, level: u64) -> Self {
        Self {
            base,
            directory: base
                .wrapping_add((layout.directory + level * DIRECTORY * 8) as usize)
                .cast::<AtomicU64>()
                .cast_const(),
            chunk_covers: base
                .wrapping_add((layout.chunk_covers + level * CHUNKS * 8) as usize)
                .cast::<AtomicU64>()
                .cast_const(),
            table_owners: base
                .wrapping_add(layout.table_owners as usize)
                .cast::<AtomicU32>()
                .cast_const(),
            tables: layout.tables,
            level,
        }
    }

    pub(crate) fn header(&self) -> &Header {
        // SAFETY: by the contract of `new`.
        unsafe { &*self.base.cast::<Header>() }
    }

    /// The first word of a block at `address`; null while its chunk has no table.
    #[inline(always)]
    pub(crate) fn word(&self, address: u64) -> *const AtomicU32 {
        // SAFETY: `directory_index` is below the number of entries.
        let entry = unsafe { &*self.directory.add(directory_index(address)) }.load(Relaxed);
        if entry == 0 {
            return core::ptr::null();
        }
        (entry as *const u8)
            .cast::<AtomicU32>()
            .wrapping_add(granule(address) as usize)
    }

    /// Records a block. Gives back what was recorded at that very address, if anything (a block freed out of our sight).
    /// `false` in the second place: there is no room, or the address is not a multiple of 8.
    #[inline(always)]
    pub fn insert(&self, address: u64, size: u64, origin: u32) -> (Option<Recorded>, bool) {
        let mut word = self.word(address);
        if word.is_null() || address & 7 != 0 {
            word = self.make_room(address);
            if word.is_null() {
                return (None, false);
            }
        }
        let words = words::encode(size, origin);
        // SAFETY: the table is mapped, with room for two words behind its last granule.
        unsafe {
            open(word);
            let stale = (*word).load(Relaxed);
            let replaced = words::is_start(stale).then(|| self.recorded(word, stale));
            // Covers first: one that leads to a block not yet published leads to none.
            if size >= LARGE {
                self.cover(address, size);
            }
            words::publish(|at| &*word.add(at), words);
            (replaced, true)
        }
    }

    /// The words of `from`'s plane for addresses from there up to `to`, or up to the end of `from`'s chunk: where they lie and how
    /// many bytes they are. `None` while the chunk has no table.
    #[must_use]
    pub fn words_of(&self, from: u64, to: u64) -> Option<(*mut u8, usize)> {
        let first = self.word(from);
        let end = to.min(((from >> CHUNK_SHIFT) + 1) << CHUNK_SHIFT);
        let len = end.saturating_sub(from) >> GRANULE_SHIFT << 2;
        (!first.is_null()).then(|| (first.cast::<u8>().cast_mut(), len as usize))
    }

    /// Number of tables in use.
    #[must_use]
    pub fn tables(&self) -> u64 {
        let header = self.header();
        u64::from(header.tables.load(Acquire).min(header.geometry.tables))
    }

    /// Entry of the directory that table `number` belongs to, of whichever level.
    #[must_use]
    pub fn owner(&self, number: u64) -> Option<u64> {
        let tables = u64::from(self.header().geometry.tables);
        // SAFETY: below the number of owners.
        let owner = (number < tables).then(|| unsafe { &*self.table_owners.add(number as usize) });
        let owner = u64::from(owner?.load(Acquire)).checked_sub(1)?;
        (owner < LEVELS * DIRECTORY).then_some(owner)
    }

    /// Has the words of a block at `address` brought into the cache, for whoever will erase it.
    #[inline(always)]
    pub fn prefetch(&self, address: u64) {
        prefetch(self.word(address));
    }

    /// Has all words of the page at `address`, of both planes, made present and brought into the cache.
    pub(crate) fn open_page(&self, address: u64) {
        const LINE: u64 = 64;
        for plane in [0, 8] {
            let words = self.word(address & !(PAGE - 1) | plane);
            if words.is_null() {
                continue;
            }
            // SAFETY: words of a table, on one of its pages.
            unsafe { open_shared(words) };
            let bytes = PAGE >> GRANULE_SHIFT << 2;
            for at in (0..bytes).step_by(LINE as usize) {
                prefetch(words.wrapping_byte_add(at as usize));
            }
        }
    }

    /// Takes a block out. `None` if none was recorded at that very address.
    #[inline(always)]
    pub fn erase(&self, address: u64) -> Option<Recorded> {
        let word = self.word(address);
        if word.is_null() || address & 7 != 0 {
            return None;
        }
        // SAFETY: as in `insert`.
        unsafe {
            let first = (*word).load(Relaxed);
            if !words::is_start(first) {
                return None;
            }
            let recorded = self.recorded(word, first);
            words::retract(&*word);
            if recorded.size >= LARGE {
                self.uncover(address, recorded.size);
            }
            Some(recorded)
        }
    }

    /// # Safety
    /// `word` is a granule word of a mapped table.
    #[inline(always)]
    pub(crate) unsafe fn recorded(&self, word: *const AtomicU32, first: u32) -> Recorded {
        let size = words::size(first, |at| {
            // SAFETY: two words of spill lie behind the last granule.
            unsafe { (*word.add(at as usize)).load(Relaxed) }
        });
        Recorded {
            size,
            origin: words::classed_origin(first),
        }
    }

    /// Whether a block is recorded that starts on the page at `address`.
    #[must_use]
    pub fn has_start_on(&self, address: u64) -> bool {
        let page = address & !(PAGE - 1);
        [0, 8].into_iter().any(|plane| {
            let words = self.word(page | plane);
            let mut groups = (0..PAGE >> GRANULE_SHIFT).step_by(MANY as usize);
            // SAFETY: a page's granules lie in one table.
            !words.is_null() && groups.any(|at| unsafe { starts(words.add(at as usize)) } != 0)
        })
    }

    /// Marks the block at `address` as one that others were cut out of.
    pub fn mark_container(&self, address: u64) {
        let word = self.word(address);
        if word.is_null() {
            return;
        }
        // SAFETY: a granule word of a mapped table.
        let word = unsafe { &*word };
        if words::is_start(word.load(Relaxed)) {
            word.fetch_or(Class::CONTAINER, Relaxed);
        }
    }

    /// The address in the process of a table that nobody has, noted as `owner`'s.
    fn new_table(&self, owner: u32) -> Option<u64> {
        let header = self.header();
        let number = header.tables.fetch_add(1, Relaxed);
        if number >= header.geometry.tables {
            header.tables.fetch_sub(1, Relaxed);
            header.unseen.fetch_or(unseen::TABLES_FULL, Relaxed);
            return None;
        }
        // SAFETY: below the number of owners.
        unsafe { (*self.table_owners.add(number as usize)).store(owner, Release) };
        Some(self.base as u64 + self.tables + u64::from(number) * TABLE_BYTES)
    }

    /// Sets the covers of a large block.
    #[cold]
    fn cover(&self, address: u64, size: u64) {
        self.each_cover(address, size, |cover| cover.store(address, Relaxed));
    }

    /// Clears the covers of a large block, but for those that are a later block's by now.
    #[cold]
    fn uncover(&self, address: u64, size: u64) {
        self.each_cover(address, size, |cover| {
            if cover.load(Relaxed) == address {
                cover.store(0, Relaxed);
            }
        });
    }

    fn each_cover(&self, address: u64, size: u64, each: impl Fn(&AtomicU64)) {
        let Some(last) = address.checked_add(size - 1).filter(|last| last >> 47 == 0) else {
            return;
        };
        let first_chunk = address >> CHUNK_SHIFT;
        let last_chunk = last >> CHUNK_SHIFT;
        if last_chunk > first_chunk {
            self.header().spanning.store(1, Relaxed);
        }
        for chunk in first_chunk + 1..=last_chunk {
            // SAFETY: `last` is below 2^47.
            each(unsafe { &*self.chunk_covers.add(chunk as usize) });
        }
        let table = self.even_table(address);
        if table.is_null() {
            return;
        }
        let from = address >> SPAN_SHIFT & (SPANS - 1);
        let to = if last_chunk > first_chunk {
            SPANS - 1
        } else {
            last >> SPAN_SHIFT & (SPANS - 1)
        };
        for span in from + 1..=to {
            let at = table.wrapping_add((TABLE_WORDS * 4 + SPILL_BYTES + span * 8) as usize);
            // SAFETY: within the table's covers.
            each(unsafe { &*at.cast::<AtomicU64>() });
        }
    }

    fn even_table(&self, address: u64) -> *mut u8 {
        let chunk_start = address >> CHUNK_SHIFT << CHUNK_SHIFT;
        let word = self.word(chunk_start);
        let word = if word.is_null() {
            self.make_room(chunk_start)
        } else {
            word
        };
        word.cast::<u8>().cast_mut()
    }

    /// Gives the chunk of `address` a table; null if that cannot be.
    #[cold]
    pub(crate) fn make_room(&self, address: u64) -> *const AtomicU32 {
        let header = self.header();
        if address & 7 != 0 || address >> 47 != 0 {
            header.unseen.fetch_or(unseen::UNALIGNED_BLOCK, Relaxed);
            return core::ptr::null();
        }
        let index = directory_index(address);
        let Some(table) = self.new_table((self.level * DIRECTORY) as u32 + index as u32 + 1) else {
            return core::ptr::null();
        };
        // SAFETY: `index` is an entry of the directory. Whoever comes second leaves its table unused: it costs address space only.
        let _ = unsafe { &*self.directory.add(index) }.compare_exchange(0, table, Release, Acquire);
        if self.level != 0 {
            header.nested.fetch_add(1, Relaxed);
        }
        self.word(address)
    }
}
