//! *Where in the region does each part lie?*
//!
//! [`Geometry`] says how many of everything there is room for; [`Layout`] follows from it alone. The [`Header`]
//! carries the geometry, so that a reader of another build, given the same [`VERSION`], finds its way.

use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64};

/// First eight bytes of a region.
pub const MAGIC: u64 = u64::from_le_bytes(*b"PTEEIDX\x01");
/// Grows with every change of the layout or of a meaning.
pub const VERSION: u32 = 14;

/// log2 of the bytes of address space one table covers.
pub const CHUNK_SHIFT: u32 = 26;
/// Chunks in the 47-bit user address space.
pub const CHUNKS: u64 = 1 << (47 - CHUNK_SHIFT);
/// Granule words in one table.
pub const TABLE_WORDS: u64 = 1 << (CHUNK_SHIFT - super::words::GRANULE_SHIFT);
/// log2 of the bytes one cover entry stands for; also the size from which a block is *large*.
pub const SPAN_SHIFT: u32 = 16;
/// Blocks of this size and more are found through covers, not by scanning back.
pub const LARGE: u64 = 1 << SPAN_SHIFT;
/// Cover entries in one table.
pub const SPANS: u64 = 1 << (CHUNK_SHIFT - SPAN_SHIFT);
/// Words of a block that starts in the last granules lie behind the table, then the covers.
pub const SPILL_BYTES: u64 = PAGE;
/// Bytes of one table: words, spill, covers.
pub const TABLE_BYTES: u64 = TABLE_WORDS * 4 + SPILL_BYTES + SPANS * 8;
/// Levels of blocks: those of allocators, and those that pools cut out of them (see [`nested`](crate::nested)).
pub const LEVELS: u64 = 2;
/// Tables of pages at most: address space is used in few places.
const PAGE_TABLES: u32 = 1024;
/// Entries of the directory for one level: a chunk's two planes each.
pub const DIRECTORY: u64 = CHUNKS * 2;
/// The page size everything is aligned to.
pub const PAGE: u64 = 4096;

/// Slots in the levels of the origin hash (see [`origins`](crate::origins)).
pub const ORIGIN_LEVELS: usize = 3;
/// log2 of the slots in its first level, the same in every geometry: the first look-up is inlined.
pub const FIRST_LEVEL: u32 = 16;

/// Room for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Geometry {
    /// Loaded objects, unloaded ones included.
    pub modules: u32,
    /// Patched entries.
    pub hooks: u32,
    /// Bytes of strings.
    pub strings: u32,
    /// Origins: a power of two, at most [`ORIGIN_LIMIT`](crate::words::ORIGIN_LIMIT).
    pub origins: u32,
    /// log2 of the slots in each level of the origin hash.
    pub origin_levels: [u32; ORIGIN_LEVELS],
    /// Thread slots, the two reserved ones included.
    pub threads: u32,
    /// Tables.
    pub tables: u32,
    /// Zero.
    pub reserved: u32,
}

impl Geometry {
    /// For a process whose heap may grow to `heap` bytes, without a limit on address space.
    #[must_use]
    pub const fn roomy(heap: u64) -> Self {
        Self {
            modules: 4096,
            hooks: 4096,
            strings: 2 << 20,
            origins: 1 << 20,
            origin_levels: [FIRST_LEVEL, 18, 20],
            threads: 1026,
            tables: tables_for(heap),
            reserved: 0,
        }
    }

    /// For a process under a limit on address space: an eighth of the room.
    #[must_use]
    pub const fn narrow(heap: u64) -> Self {
        Self {
            modules: 512,
            hooks: 1024,
            strings: 256 << 10,
            origins: 1 << 15,
            origin_levels: [FIRST_LEVEL, 14, 15],
            threads: 10,
            tables: tables_for(heap),
            reserved: 0,
        }
    }

    /// Refuses what no writer of this version makes, so that a damaged header cannot send a reader
    /// past the end of 64-bit arithmetic.
    #[must_use]
    pub fn is_sane(&self) -> bool {
        self.modules <= 1 << 16
            && self.hooks <= 1 << 16
            && self.strings <= 1 << 26
            && self.origins.is_power_of_two()
            && self.origins <= crate::words::ORIGIN_LIMIT
            && self.origin_levels[0] == FIRST_LEVEL
            && self.origin_levels.iter().all(|level| *level <= 24)
            && (2..=1 << 16).contains(&self.threads)
            && self.tables <= 1 << 20
    }
}

const fn tables_for(heap: u64) -> u32 {
    let chunks = heap >> CHUNK_SHIFT;
    // A heap lies in two places at least (brk and mmap), each rarely aligned.
    let tables = chunks + 8;
    if tables > 1 << 16 {
        1 << 16
    } else {
        tables as u32
    }
}

/// Offsets of the parts from the region's start, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Layout {
    pub modules: u64,
    pub hooks: u64,
    pub strings: u64,
    pub signal_stacks: u64,
    pub mismatches: u64,
    pub table_owners: u64,
    pub directory: u64,
    pub chunk_covers: u64,
    pub page_chunks: u64,
    pub page_tables: u64,
    /// Tables of pages that there is room for.
    pub page_room: u64,
    pub origins: [u64; ORIGIN_LEVELS],
    pub peak: u64,
    pub threads: u64,
    pub counters: u64,
    /// Bytes of one thread's counters.
    pub counters_stride: u64,
    pub tables: u64,
    /// Length of the region.
    pub len: u64,
}

impl Layout {
    /// The layout that follows from a sane geometry.
    #[must_use]
    pub const fn of(geometry: &Geometry) -> Self {
        use crate::{counters, mismatches, origins, pages, records, signal_stacks};
        let modules = page(size_of::<Header>() as u64);
        let hooks = page(modules + geometry.modules as u64 * size_of::<records::Module>() as u64);
        let strings = page(hooks + geometry.hooks as u64 * size_of::<records::Hook>() as u64);
        let signal_stacks = page(strings + geometry.strings as u64);
        let mismatches = page(
            signal_stacks
                + signal_stacks::ROOM as u64 * size_of::<signal_stacks::SignalStack>() as u64,
        );
        let table_owners =
            page(mismatches + mismatches::ROOM as u64 * size_of::<mismatches::Mismatch>() as u64);
        let directory = page(table_owners + geometry.tables as u64 * 4);
        let chunk_covers = directory + LEVELS * DIRECTORY * 8;
        let page_chunks = chunk_covers + LEVELS * CHUNKS * 8;
        let page_tables = page_chunks + CHUNKS * 8;
        let page_room = if geometry.tables < PAGE_TABLES {
            geometry.tables as u64
        } else {
            PAGE_TABLES as u64
        };
        let mut at = page_tables + page_room * pages::PAGE_TABLE_BYTES;
        let mut levels = [0; ORIGIN_LEVELS];
        let mut level = 0;
        while level < ORIGIN_LEVELS {
            levels[level] = at;
            at = page(
                at + (size_of::<origins::Node>() as u64) * (1 << geometry.origin_levels[level]),
            );
            level += 1;
        }
        let peak = at;
        let threads = page(peak + geometry.origins as u64 * size_of::<counters::Live>() as u64);
        let counters =
            page(threads + geometry.threads as u64 * size_of::<counters::Thread>() as u64);
        let counters_stride = page(geometry.origins as u64 * size_of::<counters::Counts>() as u64);
        let tables = counters + geometry.threads as u64 * counters_stride;
        let len = tables + geometry.tables as u64 * TABLE_BYTES;
        Self {
            modules,
            hooks,
            strings,
            signal_stacks,
            mismatches,
            table_owners,
            directory,
            chunk_covers,
            page_chunks,
            page_tables,
            page_room,
            origins: levels,
            peak,
            threads,
            counters,
            counters_stride,
            tables,
            len,
        }
    }
}

/// Rounds up to whole pages.
#[must_use]
pub const fn page(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE)
}

/// Start of the region. Written by the process, read by anyone at any time.
#[derive(Debug)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`]; written last when a region is set up.
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: AtomicU32,
    /// Process id in the process's own namespace.
    pub pid: AtomicU32,
    /// Room for what.
    pub geometry: Geometry,
    /// Where the region lies in the process.
    pub base: AtomicU64,
    /// Process id of the parent.
    pub parent: AtomicU32,
    /// Bits of [`unseen`].
    pub unseen: AtomicU32,
    /// Used records of the module section.
    pub modules: AtomicU32,
    /// Used records of the hook section.
    pub hooks: AtomicU32,
    /// Used bytes of the string section.
    pub strings: AtomicU32,
    /// Used origins; the first [`ROOTS`](crate::origins::ROOTS) stand for the hooked functions.
    pub origins: AtomicU32,
    /// Used thread slots.
    pub threads: AtomicU32,
    /// Used tables.
    pub tables: AtomicU32,
    /// Bits of [`exit_kind`] in the upper half, the status in the lower.
    pub exit: AtomicU32,
    /// The executable's path, in the string section.
    pub program: AtomicU32,
    /// Live bytes, without what threads hold back (see [`counters`](crate::counters)).
    pub live_bytes: AtomicI64,
    /// Highest value of live bytes.
    pub peak_bytes: AtomicU64,
    /// Live bytes at the moment the peak section was written.
    pub peak_captured: AtomicU64,
    /// Odd while the peak section is being written.
    pub peak_sequence: AtomicU32,
    /// Used records of the mismatch section.
    pub mismatches: AtomicU32,
    /// Pages of the metadata images that are mapped.
    pub image_pages: AtomicU32,
    /// 1 where the tables are memory of the process alone: what shares the rest of the region sees no blocks.
    pub private_tables: AtomicU32,
    /// One more than the deepest level of the origin hash in use.
    pub origin_levels: AtomicU32,
    /// Whether any chunk cover was ever written.
    pub spanning: AtomicU32,
    /// Blocks that were replaced without having been freed in our sight.
    pub replaced: AtomicU64,
    /// Tables of nested blocks.
    pub nested: AtomicU32,
    /// Used tables of pages.
    pub page_tables: AtomicU32,
    /// Used records of the signal stack section.
    pub signal_stacks: AtomicU32,
    /// Zero.
    pub reserved: u32,
    /// Nanoseconds (CLOCK_MONOTONIC) at which recording began.
    pub started: AtomicU64,
}

/// Bits of [`Header::unseen`]: what recording had to leave out.
#[allow(missing_docs)]
pub mod unseen {
    pub const TABLES_FULL: u32 = 1;
    pub const ORIGINS_FULL: u32 = 2;
    pub const THREADS_FULL: u32 = 4;
    pub const MODULES_FULL: u32 = 8;
    pub const NO_LIBC: u32 = 16;
    pub const HOOK_REFUSED: u32 = 32;
    pub const UNALIGNED_BLOCK: u32 = 64;
    pub const PRIVATE_INDEX: u32 = 128;
    pub const FORK_UNRECORDED: u32 = 256;
    pub const MISMATCHES_FULL: u32 = 512;
    pub const PAGES_FULL: u32 = 1024;
}

/// Values of the upper half of [`Header::exit`].
#[allow(missing_docs)]
pub mod exit_kind {
    pub const NONE: u32 = 0;
    /// Ended by itself; the lower half is the status.
    pub const CODE: u32 = 1 << 16;
    /// Went on as another program.
    pub const EXEC: u32 = 2 << 16;
}
