//! *What lies between the blocks of glibc's malloc?* — its chunks, read from their headers.
//!
//! ```text
//!   chunk ─▶ size of the one before │ own size | flags │ the block, up to 8 bytes into the next chunk
//!            (if that is free: else it is that one's last word)
//!   arena:  the brk area, or a 64 MiB-aligned heap that starts with its own records; the last chunk is its top
//! ```
//!
//! Chunks are a chain from the arena's start to its end. A chain that does not end there is no arena of glibc's, or
//! somebody scribbled over it: what lies behind the break is then said to be not known.

use super::{Layout, Span};
use crate::running::Mapping;
use crate::value::Contents;
use pointee_model::addr::{Alleged, RunAddr};

/// `HEAP_MAX_SIZE` (glibc, malloc/arena.c).
const HEAP_MAX: u64 = 64 << 20;
/// `sizeof (heap_info)`: until glibc 2.34, and since.
const HEAP_HEADERS: [u64; 2] = [0x30, 0x20];
/// How far into an arena its first chunk is looked for: behind its `malloc_state` (2,200 bytes), or behind what a static
/// program takes from the brk area before malloc does.
const SEARCHED: u64 = 8 << 10;
/// Bytes of the two words before a block.
pub(super) const HEADER: u64 = 16;
const PREVIOUS_IN_USE: u64 = 1;
const FLAGS: u64 = 7;
/// `MINSIZE`.
const LEAST: u64 = 32;
/// How often an arena whose chain breaks off is read.
const TRIES: usize = 3;
/// A chain of that many chunks is one, wherever it breaks off.
const CONVINCING: usize = 256;
/// Chunks of one arena that are looked at.
const MOST_CHUNKS: usize = 1 << 27;

/// An arena of glibc's malloc.
#[derive(Debug)]
pub(super) struct Arena {
    pub(super) span: Span,
    /// The brk area.
    pub(super) is_main: bool,
    /// Where chunks start, in order.
    chunks: Vec<u64>,
    /// End of the last chunk.
    end: u64,
}

/// What a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChunkState {
    /// In one of malloc's lists.
    Free,
    /// The rest of the arena, that was not handed out yet.
    Top,
    /// Handed out, as far as its header tells: to the program, or to a thread's cache.
    InUse,
}

/// One chunk, from its size on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    /// Its size and flags; the first chunk of an arena has the word before too.
    pub(super) header: u64,
    /// Where its block starts.
    pub(super) start: u64,
    /// Where the next chunk's size is.
    pub(super) end: u64,
    pub(super) state: ChunkState,
    pub(super) is_first: bool,
}

impl Arena {
    /// Whether its chunks reach its end.
    fn is_whole(&self) -> bool {
        self.end == self.span.end.0
    }

    /// What lies before the first chunk of an arena that is not the main one: its records.
    pub(super) fn records(&self) -> Option<Span> {
        let end = RunAddr(*self.chunks.first()?);
        (!self.is_main && end > self.span.start).then_some(Span {
            start: self.span.start,
            end,
        })
    }

    /// The chunks that overlap `start..end`, in order.
    pub(super) fn chunks_in<'c>(
        &'c self,
        start: u64,
        end: u64,
        contents: &'c dyn Contents,
    ) -> impl Iterator<Item = Chunk> + 'c {
        let after = self.chunks.partition_point(|chunk| *chunk <= start);
        let first = after.saturating_sub(2);
        (first..self.chunks.len())
            .map(move |number| self.chunk(number, contents))
            .skip_while(move |chunk| chunk.end <= start)
            .take_while(move |chunk| chunk.header < end)
    }

    fn chunk(&self, number: usize, contents: &dyn Contents) -> Chunk {
        let start = self.chunks[number];
        let next = self.chunks.get(number + 1).copied();
        let state = match next {
            None if self.is_whole() => ChunkState::Top,
            None => ChunkState::InUse,
            Some(next) => match word(contents, next + 8) {
                Some(size) if size & PREVIOUS_IN_USE == 0 => ChunkState::Free,
                _ => ChunkState::InUse,
            },
        };
        let is_first = number == 0;
        Chunk {
            header: if is_first { start } else { start + 8 },
            start: start + HEADER,
            end: next.map_or(self.end, |next| next + 8),
            state,
            is_first,
        }
    }
}

/// The arenas among the mappings.
pub(super) fn arenas(layout: &Layout, contents: &dyn Contents) -> Vec<Arena> {
    let arena = |mapping: &Mapping| {
        if !mapping.permissions.starts_with("rw") || mapping.inode != 0 {
            return None;
        }
        if mapping.path == "[heap]" {
            return chain(mapping, 0..SEARCHED * 8, contents);
        }
        if !mapping.path.is_empty() || !mapping.start.0.is_multiple_of(HEAP_MAX) {
            return None;
        }
        let owner = word(contents, mapping.start.0)?;
        HEAP_HEADERS.into_iter().find_map(|header| {
            // Only an arena's first heap holds the arena's own state.
            let is_first = owner == mapping.start.0 + header;
            let belongs = is_first || owner % HEAP_MAX == header;
            let from = if is_first { header + 0x800 } else { header };
            let to = if is_first { from + SEARCHED } else { from + 16 };
            belongs
                .then(|| chain(mapping, from..to, contents))
                .flatten()
        })
    };
    // A chain that breaks off may have been changed while it was read.
    let settled = |mapping: &Mapping| {
        let mut found = arena(mapping);
        for _ in 1..TRIES {
            if found.as_ref().is_none_or(Arena::is_whole) {
                break;
            }
            found = arena(mapping);
        }
        found
    };
    layout.mappings.iter().filter_map(settled).collect()
}

/// The chain of chunks that starts at one of the offsets `from` of the mapping and goes farthest; `None` where none gets on.
fn chain(mapping: &Mapping, from: std::ops::Range<u64>, contents: &dyn Contents) -> Option<Arena> {
    let mut reader = Reader {
        contents,
        page: Vec::new(),
        at: 0,
    };
    let mut best: Option<Arena> = None;
    for offset in from.step_by(16) {
        let start = mapping.start.0 + offset;
        if start >= mapping.end.0 {
            break;
        }
        let (chunks, end) = follow(start, mapping.end.0, &mut reader);
        if end > best.as_ref().map_or(start + LEAST, |best| best.end) {
            best = Some(Arena {
                span: Span {
                    start: mapping.start,
                    end: mapping.end,
                },
                is_main: mapping.path == "[heap]",
                chunks,
                end,
            });
        }
        let is_long = best
            .as_ref()
            .is_some_and(|best| best.chunks.len() > CONVINCING);
        if end == mapping.end.0 || is_long {
            return best;
        }
    }
    best.filter(|best| best.chunks.len() > 2)
}

fn follow(start: u64, end: u64, reader: &mut Reader<'_>) -> (Vec<u64>, u64) {
    let mut chunks = Vec::new();
    let mut at = start;
    while at < end && chunks.len() < MOST_CHUNKS {
        let Some(size) = reader.word(at + 8).map(|size| size & !FLAGS) else {
            break;
        };
        if size < LEAST || size % 16 != 0 || size > end - at {
            break;
        }
        chunks.push(at);
        at += size;
    }
    (chunks, at)
}

/// Reads words that lie near each other.
struct Reader<'c> {
    contents: &'c dyn Contents,
    page: Vec<u8>,
    at: u64,
}

const STEP: u64 = 64 << 10;
const PAGE: u64 = 4096;

impl Reader<'_> {
    fn word(&mut self, address: u64) -> Option<u64> {
        let inside = address
            .checked_sub(self.at)
            .and_then(|at| usize::try_from(at).ok());
        let held = inside.and_then(|at| self.page.get(at..at + 8));
        if let Some(bytes) = held {
            return Some(u64::from_le_bytes(bytes.try_into().ok()?));
        }
        let start = address / PAGE * PAGE;
        for len in [STEP, PAGE] {
            self.page.resize(len as usize, 0);
            self.at = start;
            if self.contents.read(Alleged(start), &mut self.page) {
                let at = (address - start) as usize;
                let bytes = self.page.get(at..at + 8)?;
                return Some(u64::from_le_bytes(bytes.try_into().ok()?));
            }
        }
        self.page.clear();
        None
    }
}

/// The eight bytes at `address`.
pub(super) fn word(contents: &dyn Contents, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    contents
        .read(Alleged(address), &mut bytes)
        .then(|| u64::from_le_bytes(bytes))
}

/// Whether a block mapped on its own starts at `base`: its header says so (`IS_MMAPPED`).
pub(super) fn is_mapped_alone(contents: &dyn Contents, base: RunAddr) -> bool {
    const IS_MMAPPED: u64 = 2;
    let size = word(contents, base.0.wrapping_sub(8));
    base.0 % PAGE == HEADER && size.is_some_and(|size| size & FLAGS == IS_MMAPPED && size >= PAGE)
}
