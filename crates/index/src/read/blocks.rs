//! *Which block is there, and who mapped its page?* — the tables, as readers see them.

use super::{Block, Index, Memory, read_u32, read_u64, u32_in};
use crate::layout::{
    CHUNK_SHIFT, CHUNKS, DIRECTORY, Header, LARGE, PAGE, SPAN_SHIFT, SPANS, SPILL_BYTES,
    TABLE_BYTES, TABLE_WORDS,
};
use crate::pages::{Chunk, PAGE_TABLE_BYTES, PAGES_OF_CHUNK, PageWord};
use crate::table::{directory_index, granule};
use crate::words;
use core::mem::offset_of;

/// Words read at a time.
const BATCH: usize = 1024;

impl<M: Memory> Index<M> {
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
