//! *What does the index say?* — for readers of any kind.
//!
//! A reader sees the region through [`Memory`]: a mapping of the same file, another process's
//! memory, a snapshot. Nothing read is trusted: counts are cut to the geometry, offsets to the region, and a
//! reference that leads nowhere gives "not known".

mod blocks;

use crate::class::Class;
use crate::counters::{Counts, Live, Thread};
use crate::layout::{Geometry, Header, Layout, MAGIC, ORIGIN_LEVELS, PAGE, VERSION};
use crate::mismatches::{self, Mismatch};
use crate::origins::{Frame, Node, UNLOADED};
use crate::records::{Hook, Module};
use crate::signal_stacks::{self, Seen, SignalStack};
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

    /// Calls `each` for every alternate signal stack that a thread was seen to have set, also of threads that are no more.
    pub fn each_signal_stack(&self, mut each: impl FnMut(Seen)) {
        const RECORD: usize = size_of::<SignalStack>();
        let used = self.header_u32(offset_of!(Header, signal_stacks));
        for number in 0..u64::from(used.min(signal_stacks::ROOM)) {
            let mut record = [0; RECORD];
            let at = self.layout.signal_stacks + number * RECORD as u64;
            if !self.memory.read(at, &mut record) {
                return;
            }
            let seen = Seen {
                start: u64_in(&record, offset_of!(SignalStack, start)),
                len: u64_in(&record, offset_of!(SignalStack, len)),
                thread: u64_in(&record, offset_of!(SignalStack, thread)) as u32,
            };
            if seen.start != 0 {
                each(seen);
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
