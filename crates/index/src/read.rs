//! *What does the index say?* — for readers of any kind.
//!
//! A reader sees the region through [`Memory`]: a mapping of the same file, another process's
//! memory, a snapshot. Nothing read is trusted: counts are cut to the geometry, offsets to the region, and a
//! reference that leads nowhere gives "not known".

use crate::class::Class;
use crate::counters::{Counts, Live, Thread};
use crate::layout::ORIGIN_LEVELS;
use crate::layout::{
    CHUNK_SHIFT, CHUNKS, DIRECTORY, Geometry, Header, LARGE, Layout, MAGIC, PAGE, SPAN_SHIFT,
};
use crate::layout::{SPANS, SPILL_BYTES, TABLE_BYTES, TABLE_WORDS, VERSION};
use crate::mismatches::{self, Mismatch};
use crate::origins::{Frame, Node, UNLOADED};
use crate::pages::{Chunk, PAGE_TABLE_BYTES, PAGES_OF_CHUNK, PageWord};
use crate::records::{Hook, Module};
use crate::table::{directory_index, granule};
use crate::words;
use core::mem::offset_of;

/// Bytes addressed from 0, which may fail to be there.
pub trait Memory {
    /// Fills `buffer` from `offset` on. `false` if any of it cannot be read.
    #[must_use]
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool;

    /// The first offset from `offset` on that lies in a page which may have been written; `None` when
    /// there is none up to the memory's end. Pages that were passed over read as zeros or not at all.
    ///
    /// A header may claim terabytes. What a reader visits is bounded by this, so a memory that
    /// cannot tell its holes must at least know its end.
    fn next_touched(&self, offset: u64) -> Option<u64>;

    /// Whether the page at `offset` may have been written.
    fn is_touched(&self, offset: u64) -> bool {
        let page = offset / PAGE;
        self.next_touched(page * PAGE)
            .is_some_and(|found| found / PAGE == page)
    }
}

impl<M: Memory> Memory for &M {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        (**self).read(offset, buffer)
    }

    fn next_touched(&self, offset: u64) -> Option<u64> {
        (**self).next_touched(offset)
    }
}

/// Why a region cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenError {
    /// The header cannot be read.
    Unreadable,
    /// There is no header, or not yet.
    NoIndex,
    /// Written by another version of Pointee.
    OtherVersion(u32),
    /// The geometry is one that no writer makes.
    Damaged,
}

impl core::fmt::Display for OpenError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Unreadable => f.write_str("the index cannot be read"),
            Self::NoIndex => f.write_str("there is no index"),
            Self::OtherVersion(found) => {
                write!(
                    f,
                    "the index has version {found}, this Pointee reads {VERSION}"
                )
            }
            Self::Damaged => f.write_str("the header of the index is damaged"),
        }
    }
}

impl core::error::Error for OpenError {}

/// A live block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// First byte.
    pub base: u64,
    /// Bytes requested.
    pub size: u64,
    /// Where from.
    pub origin: u32,
}

impl Block {
    /// Whether `address` lies in the block. A block of no bytes holds its base.
    #[must_use]
    pub const fn holds(&self, address: u64) -> bool {
        address >= self.base && address - self.base < if self.size == 0 { 1 } else { self.size }
    }
}

/// A node of the origin tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OriginNode {
    /// The origin.
    pub id: u32,
    /// The frames further in.
    pub parent: u32,
    /// The outermost return address of this path.
    pub return_address: u64,
    /// Its module record; `u32::MAX` for none.
    pub module: u32,
    /// Who has to free its blocks.
    pub class: Class,
    /// Whether the class may as well be that of `new[]`, or C's.
    pub is_undecided: bool,
}

/// Frees of one path's blocks through another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MismatchedFrees {
    /// Where the blocks came from.
    pub allocated: u32,
    /// Their class.
    pub class: Class,
    /// Where they were freed.
    pub freed: u32,
    /// Blocks, without those that were passed on to the right function.
    pub blocks: u64,
    /// Address and size of the first.
    pub first: (u64, u64),
    /// Address of the function that the freeing call names; 0 if not known.
    pub called: u64,
}

/// Words read at a time.
const BATCH: usize = 1024;

/// A region that was found sound.
pub struct Index<M> {
    memory: M,
    geometry: Geometry,
    layout: Layout,
    base: u64,
}

impl<M: Memory> Index<M> {
    /// Checks the header.
    ///
    /// # Errors
    /// [`OpenError`] when the memory holds no index that this version can read.
    pub fn open(memory: M) -> Result<Self, OpenError> {
        let magic =
            read_u64(&memory, offset_of!(Header, magic) as u64).ok_or(OpenError::Unreadable)?;
        if magic != MAGIC {
            return Err(OpenError::NoIndex);
        }
        let version = read_u32(&memory, offset_of!(Header, version) as u64);
        if version != Some(VERSION) {
            return Err(OpenError::OtherVersion(version.unwrap_or(0)));
        }
        let at = |field: usize| {
            read_u32(&memory, (offset_of!(Header, geometry) + field) as u64)
                .ok_or(OpenError::Unreadable)
        };
        let level = |n: usize| at(offset_of!(Geometry, origin_levels) + 4 * n);
        let geometry = Geometry {
            modules: at(offset_of!(Geometry, modules))?,
            hooks: at(offset_of!(Geometry, hooks))?,
            strings: at(offset_of!(Geometry, strings))?,
            origins: at(offset_of!(Geometry, origins))?,
            origin_levels: [level(0)?, level(1)?, level(2)?],
            threads: at(offset_of!(Geometry, threads))?,
            tables: at(offset_of!(Geometry, tables))?,
            reserved: 0,
        };
        if !geometry.is_sane() {
            return Err(OpenError::Damaged);
        }
        let base =
            read_u64(&memory, offset_of!(Header, base) as u64).ok_or(OpenError::Unreadable)?;
        Ok(Self {
            memory,
            geometry,
            layout: Layout::of(&geometry),
            base,
        })
    }

    /// The memory it reads.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Address of the region in the process that writes it.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Where everything lies.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Room for what.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// A 32-bit field of the header, by its offset (`offset_of!(Header, …)`); 0 if unreadable.
    #[must_use]
    pub fn header_u32(&self, field: usize) -> u32 {
        read_u32(&self.memory, field as u64).unwrap_or(0)
    }

    /// A 64-bit field of the header.
    #[must_use]
    pub fn header_u64(&self, field: usize) -> u64 {
        read_u64(&self.memory, field as u64).unwrap_or(0)
    }

    /// Number of modules recorded.
    #[must_use]
    pub fn modules(&self) -> u32 {
        self.header_u32(offset_of!(Header, modules))
            .min(self.geometry.modules)
    }

    /// Module `number`.
    #[must_use]
    pub fn module(&self, number: u32) -> Option<Module> {
        if number >= self.modules() {
            return None;
        }
        let at = self.layout.modules + u64::from(number) * size_of::<Module>() as u64;
        let mut build_id = [0; 20];
        let field = |field: usize| at + field as u64;
        if !self
            .memory
            .read(field(offset_of!(Module, build_id)), &mut build_id)
        {
            return None;
        }
        Some(Module {
            start: read_u64(&self.memory, field(offset_of!(Module, start)))?,
            end: read_u64(&self.memory, field(offset_of!(Module, end)))?,
            bias: read_u64(&self.memory, field(offset_of!(Module, bias)))?,
            path: read_u32(&self.memory, field(offset_of!(Module, path)))?,
            build_id_len: read_u32(&self.memory, field(offset_of!(Module, build_id_len)))?.min(20),
            build_id,
            flags: read_u32(&self.memory, field(offset_of!(Module, flags)))?,
            unloaded: read_u64(&self.memory, field(offset_of!(Module, unloaded)))?.into(),
        })
    }

    /// Number of hooks recorded.
    #[must_use]
    pub fn hooks(&self) -> u32 {
        self.header_u32(offset_of!(Header, hooks))
            .min(self.geometry.hooks)
    }

    /// Hook `number`.
    #[must_use]
    pub fn hook(&self, number: u32) -> Option<Hook> {
        if number >= self.hooks() {
            return None;
        }
        let at = self.layout.hooks + u64::from(number) * size_of::<Hook>() as u64;
        let field = |field: usize| at + field as u64;
        let mut bytes = [0; 40];
        if !self
            .memory
            .read(field(offset_of!(Hook, before)), &mut bytes[..36])
        {
            return None;
        }
        let mut before = [0; 16];
        let mut after = [0; 16];
        before.copy_from_slice(&bytes[..16]);
        after.copy_from_slice(&bytes[16..32]);
        Some(Hook {
            address: read_u64(&self.memory, field(offset_of!(Hook, address)))?,
            trampoline: read_u64(&self.memory, field(offset_of!(Hook, trampoline)))?,
            name: read_u32(&self.memory, field(offset_of!(Hook, name)))?,
            module: read_u32(&self.memory, field(offset_of!(Hook, module)))?,
            before,
            after,
            len: bytes[32].min(16),
            role: bytes[33],
            placement: bytes[34],
            reason: bytes[35],
            root: read_u32(&self.memory, field(offset_of!(Hook, root)))?,
        })
    }

    /// Copies the string at `at` into `buffer` and returns its bytes, cut at the buffer's length.
    pub fn string<'b>(&self, at: u32, buffer: &'b mut [u8]) -> &'b [u8] {
        let room = u64::from(self.geometry.strings.saturating_sub(at));
        let len = (buffer.len() as u64).min(room) as usize;
        let buffer = &mut buffer[..len];
        if !self
            .memory
            .read(self.layout.strings + u64::from(at), buffer)
        {
            return &[];
        }
        let end = buffer.iter().position(|byte| *byte == 0).unwrap_or(len);
        &buffer[..end]
    }

    /// Calls `each` for every origin below the roots, in no order.
    pub fn each_origin(&self, mut each: impl FnMut(OriginNode)) {
        const NODE: usize = size_of::<Node>();
        let mut page = [0; PAGE as usize];
        for level in 0..ORIGIN_LEVELS {
            let start = self.layout.origins[level];
            let end = start + ((NODE as u64) << self.geometry.origin_levels[level]);
            for at in self.touched(start, end) {
                if self.memory.read(at, &mut page) {
                    for node in page.chunks_exact(NODE) {
                        let u64_at = |field: usize| u64_in(node, field);
                        let u32_at = |field: usize| u32_in(node, field);
                        let id = u32_at(offset_of!(Node, id));
                        let return_address = u64_at(offset_of!(Node, return_address));
                        if return_address == 0
                            || return_address == u64::MAX
                            || words::origin(id) == 0
                        {
                            continue;
                        }
                        let frame = Frame::from_bits(u32_at(offset_of!(Node, frame)));
                        each(OriginNode {
                            id: words::origin(id),
                            parent: words::origin(u32_at(offset_of!(Node, parent))),
                            return_address: return_address & !UNLOADED,
                            module: frame.module,
                            class: Class::of(id),
                            is_undecided: frame.is_undecided,
                        });
                    }
                }
            }
        }
    }

    /// Calls `each` for every pair of paths through which blocks of one class were freed by a function of another.
    pub fn each_mismatch(&self, mut each: impl FnMut(MismatchedFrees)) {
        const RECORD: usize = size_of::<Mismatch>();
        if self.header_u32(offset_of!(Header, mismatches)) == 0 {
            return;
        }
        let mut page = [0; PAGE as usize];
        let start = self.layout.mismatches;
        let end = start + u64::from(mismatches::ROOM) * RECORD as u64;
        for at in self.touched(start, end) {
            if !self.memory.read(at, &mut page) {
                continue;
            }
            for record in page.chunks_exact(RECORD) {
                let field = |field: usize| u64_in(record, field);
                let pair = field(offset_of!(Mismatch, pair));
                let (allocated, freed) = Mismatch::origins(pair);
                let passed_on = field(offset_of!(Mismatch, passed_on));
                let blocks = field(offset_of!(Mismatch, blocks)).saturating_sub(passed_on);
                if pair != 0 && blocks != 0 {
                    each(MismatchedFrees {
                        allocated: words::origin(allocated),
                        class: Class::of(allocated),
                        freed: words::origin(freed),
                        blocks,
                        first: (
                            field(offset_of!(Mismatch, first)),
                            field(offset_of!(Mismatch, first_len)),
                        ),
                        called: field(offset_of!(Mismatch, called)),
                    });
                }
            }
        }
    }

    /// Number of origins in use, roots included.
    #[must_use]
    pub fn origins(&self) -> u32 {
        self.header_u32(offset_of!(Header, origins))
            .min(self.geometry.origins)
    }

    /// Number of thread slots in use.
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.header_u32(offset_of!(Header, threads))
            .min(self.geometry.threads)
    }

    /// Difference between the header's live bytes and the truth in slot `slot`, and how far above the header's the highest lay.
    #[must_use]
    pub fn held_back(&self, slot: u32) -> Option<(i64, i64)> {
        if slot >= self.threads() {
            return None;
        }
        let at = self.layout.threads + u64::from(slot) * size_of::<Thread>() as u64;
        let room = read_u64(&self.memory, at + offset_of!(Thread, room) as u64)?;
        let highest = read_u64(&self.memory, at + offset_of!(Thread, highest) as u64)?;
        Some((highest.wrapping_sub(room) as i64, highest as i64))
    }

    /// Calls `each` with (origin, [allocations, bytes, frees, freed bytes]) for every origin that slot `slot` counted.
    pub fn each_count(&self, slot: u32, mut each: impl FnMut(u32, [u64; 4])) {
        const RECORD: usize = size_of::<Counts>();
        let start = self.layout.counters + u64::from(slot) * self.layout.counters_stride;
        self.each_record::<RECORD>(start, &mut |origin, record| {
            each(
                origin,
                [
                    u64_in(record, 0),
                    u64_in(record, 8),
                    u64_in(record, 16),
                    u64_in(record, 24),
                ],
            );
        });
    }

    /// Calls `each` with (origin, blocks, bytes) for every origin alive when the peak was captured.
    pub fn each_at_peak(&self, mut each: impl FnMut(u32, u64, u64)) {
        const RECORD: usize = size_of::<Live>();
        self.each_record::<RECORD>(self.layout.peak, &mut |origin, record| {
            each(origin, u64_in(record, 0), u64_in(record, 8));
        });
    }

    fn each_record<const RECORD: usize>(&self, start: u64, each: &mut dyn FnMut(u32, &[u8])) {
        let mut page = [0; PAGE as usize];
        let end = start + u64::from(self.origins()) * RECORD as u64;
        for at in self.touched(start, end) {
            if self.memory.read(at, &mut page) {
                // Below the number of origins, which has 32 bits, but for the last page's rest.
                let origin = ((at - start) / RECORD as u64) as u32;
                for (n, record) in page.chunks_exact(RECORD).enumerate() {
                    if record.iter().any(|byte| *byte != 0) {
                        each(origin + n as u32, record);
                    }
                }
            }
        }
    }

    /// The pages from `start` to `end` that may have been written. `start` is a page's.
    fn touched(&self, start: u64, end: u64) -> impl Iterator<Item = u64> {
        let next = move |from: u64| {
            let page = self.memory.next_touched(from)? / PAGE * PAGE;
            (page >= from && page < end).then_some(page)
        };
        core::iter::successors(next(start), move |page| next(page + PAGE))
    }

    /// Calls `each` for every live block, by table, in order of address within each plane.
    pub fn each_block(&self, each: impl FnMut(Block)) {
        self.each_block_of(0, each);
    }

    /// The same, for blocks of pools.
    pub fn each_nested_block(&self, each: impl FnMut(Block)) {
        if self.header_u32(offset_of!(Header, nested)) != 0 {
            self.each_block_of(1, each);
        }
    }

    fn each_block_of(&self, level: u64, mut each: impl FnMut(Block)) {
        let tables = self
            .header_u32(offset_of!(Header, tables))
            .min(self.geometry.tables);
        // Words and, behind them, those that sizes of the last granules may lie in; then the words once more.
        let (mut bytes, mut again) = ([0; PAGE as usize + 8], [0; PAGE as usize]);
        let mut number = 0;
        while number < tables {
            let table = self.layout.tables + u64::from(number) * TABLE_BYTES;
            let end = table + TABLE_WORDS * 4;
            // Tables without a written page are passed over, however many there are said to be.
            let Some(first) = self.memory.next_touched(table) else {
                return;
            };
            if first >= end {
                let table = (first - self.layout.tables) / TABLE_BYTES;
                number = u32::try_from(table).unwrap_or(tables).max(number + 1);
                continue;
            }
            let owner = read_u32(
                &self.memory,
                self.layout.table_owners + u64::from(number) * 4,
            );
            number += 1;
            let index = owner.and_then(|owner| u64::from(owner).checked_sub(1 + level * DIRECTORY));
            let Some(index) = index.filter(|index| *index < DIRECTORY) else {
                continue;
            };
            let base = index >> 1 << CHUNK_SHIFT | (index & 1) << 3;
            for at in self.touched(table, end) {
                let page = (at - table) / PAGE;
                if !self.memory.read(at, &mut bytes) {
                    continue;
                }
                // The process may go on meanwhile: what changed between the two looks is left out.
                if !self.memory.read(at, &mut again) {
                    continue;
                }
                for word in 0..BATCH {
                    let first = u32_in(&bytes, word * 4);
                    if words::is_start(first) && first == u32_in(&again, word * 4) {
                        let granule = page * BATCH as u64 + word as u64;
                        each(Block {
                            base: base + (granule << words::GRANULE_SHIFT),
                            size: words::size(first, |next| {
                                u32_in(&bytes, (word + next as usize) * 4)
                            }),
                            origin: words::origin(first),
                        });
                    }
                }
            }
        }
    }

    /// The size that belongs to the first word seen at `granule`; `None` if the block is gone by now.
    fn size_at(&self, table: u64, granule: u64, first: u32) -> Option<u64> {
        let word = |at| read_u32(&self.memory, table + (granule + at) * 4);
        let size = words::size(first, |next| word(next).unwrap_or(0));
        (word(0) == Some(first)).then_some(size)
    }

    /// Whether the tables are memory of the process alone, and not in the file that it shares.
    #[must_use]
    pub fn has_private_tables(&self) -> bool {
        self.header_u32(offset_of!(Header, private_tables)) != 0
    }

    fn table_of(&self, level: u64, address: u64) -> Option<u64> {
        let index = level * DIRECTORY + directory_index(address) as u64;
        let entry = self.layout.directory + index * 8;
        let table = read_u64(&self.memory, entry)?.checked_sub(self.base)?;
        (table >= self.layout.tables && table <= self.layout.len - TABLE_BYTES).then_some(table)
    }

    /// The block of a pool that `address` lies in, cut out of another block perhaps.
    #[must_use]
    pub fn nested_block_at(&self, address: u64) -> Option<Block> {
        let has_any = self.header_u32(offset_of!(Header, nested)) != 0;
        has_any.then(|| self.block_of(1, address)).flatten()
    }

    /// The live block that `address` lies in, at its base or anywhere inside. Not one of a pool.
    #[must_use]
    pub fn block_at(&self, address: u64) -> Option<Block> {
        self.block_of(0, address)
    }

    fn block_of(&self, level: u64, address: u64) -> Option<Block> {
        if address >> 47 != 0 {
            return None;
        }
        let near = [0, 8]
            .into_iter()
            .filter_map(|plane| self.nearest_start(level, address, plane))
            .max_by_key(|block| block.base);
        if let Some(block) = near
            && block.holds(address)
        {
            return Some(block);
        }
        let base = self.covering(level, address)?;
        let table = self.table_of(level, base)?;
        let first = read_u32(&self.memory, table + granule(base) * 4)?;
        let size = if words::is_start(first) {
            self.size_at(table, granule(base), first)?
        } else {
            return None;
        };
        let block = Block {
            base,
            size,
            origin: words::origin(first),
        };
        block.holds(address).then_some(block)
    }

    /// Calls `each` with the first page's address and what was seen of it and of those that follow, for all pages from `start` up to `end`, chunk by
    /// chunk: one word that holds for so many pages, or a word each.
    pub fn each_page_seen(&self, start: u64, end: u64, mut each: impl FnMut(u64, u64, PageWord)) {
        let mut words = [0; PAGE as usize];
        let mut at = start & !(PAGE - 1);
        let end = end.min(1 << 47);
        while at < end {
            let chunk = at >> CHUNK_SHIFT;
            let to = end.min((chunk + 1) << CHUNK_SHIFT);
            let entry = read_u64(&self.memory, self.layout.page_chunks + chunk * 8).unwrap_or(0);
            match Chunk::of(entry) {
                Chunk::Table(table) if table < self.layout.page_room => {
                    let table = self.layout.page_tables + table * PAGE_TABLE_BYTES;
                    let first = at / PAGE % PAGES_OF_CHUNK;
                    // As many words as lie on one page of the table.
                    let from = (table + first * 4) & !(PAGE - 1);
                    if !self.memory.read(from, &mut words) {
                        words.fill(0);
                    }
                    let mut place = (table + first * 4 - from) as usize;
                    while place < words.len() && at < to {
                        each(at, 1, PageWord(u32_in(&words, place)));
                        place += 4;
                        at += PAGE;
                    }
                }
                Chunk::Table(_) => at = to,
                Chunk::Alike(word) => {
                    each(at, (to - at).div_ceil(PAGE), word);
                    at = to;
                }
            }
        }
    }

    /// The last block of one plane that starts at or below `address`, within [`LARGE`] bytes.
    fn nearest_start(&self, level: u64, address: u64, plane: u64) -> Option<Block> {
        let mut at = if address & 15 >= plane {
            address & !15 | plane
        } else {
            (address & !15 | plane).checked_sub(16)?
        };
        let lowest = address.saturating_sub(LARGE);
        let mut bytes = [0; BATCH];
        loop {
            let first_granule = granule(at) & !(BATCH as u64 / 4 - 1);
            let table = self.table_of(level, at);
            let place = table.map(|table| table + first_granule * 4);
            if let (Some(table), Some(place)) = (table, place)
                && self.memory.is_touched(place)
                && self.memory.read(place, &mut bytes)
            {
                for granule in (first_granule..=granule(at)).rev() {
                    let first = u32_in(&bytes, ((granule - first_granule) * 4) as usize);
                    if words::is_start(first) {
                        let base = at - ((self::granule(at) - granule) << words::GRANULE_SHIFT);
                        let size = self.size_at(table, granule, first)?;
                        return Some(Block {
                            base,
                            size,
                            origin: words::origin(first),
                        });
                    }
                }
            }
            let step = (granule(at) - first_granule + 1) << words::GRANULE_SHIFT;
            at = at.checked_sub(step)?;
            if at < lowest {
                return None;
            }
        }
    }

    fn covering(&self, level: u64, address: u64) -> Option<u64> {
        let chunk = (address >> CHUNK_SHIFT).min(CHUNKS - 1);
        let chunk_start = chunk << CHUNK_SHIFT;
        if let Some(table) = self.table_of(level, chunk_start) {
            let span = address >> SPAN_SHIFT & (SPANS - 1);
            let at = table + TABLE_WORDS * 4 + SPILL_BYTES + span * 8;
            if let Some(base) = read_u64(&self.memory, at).filter(|base| *base != 0) {
                return Some(base);
            }
        }
        let covers = self.layout.chunk_covers + level * CHUNKS * 8;
        read_u64(&self.memory, covers + chunk * 8).filter(|base| *base != 0)
    }
}

fn read_u32(memory: &impl Memory, at: u64) -> Option<u32> {
    let mut bytes = [0; 4];
    memory
        .read(at, &mut bytes)
        .then(|| u32::from_le_bytes(bytes))
}

fn read_u64(memory: &impl Memory, at: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    memory
        .read(at, &mut bytes)
        .then(|| u64::from_le_bytes(bytes))
}

fn u32_in(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn u64_in(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}
