//! *Which leaf holds an address, and which leaves make up a mapping?*
//!
//! A mapping is cut in layers, the deepest first; what one layer leaves out, the next one divides:
//!
//! ```text
//!   live blocks │ Pointee's own │ start, thread-local blocks, frames │ chunks │ functions, variables │ literals │ sections │ the mapping
//! ```

use super::chunks::{self, Arena, ChunkState, HEADER, is_mapped_alone};
use super::{Frame, Layout, Object, Span, StartKind};
use crate::memory::Region;
use crate::resolve::Resolver;
use crate::running::Mapping;
use crate::value::Contents;
use pointee_index::Index;
use pointee_index::read::Block;
use pointee_index::records::module_flags;
use pointee_model::addr::{Alleged, LinkAddr, RunAddr};
use pointee_model::image::{
    Image, LocalPlace, LocalRecord, VariableRecord, section_flags, variable_flags,
};
use std::cell::OnceCell;

/// How far around an address its neighbours are looked at.
const AROUND: u64 = 4096;
/// Longest literal.
const LONGEST: u64 = AROUND;
/// A gap between variables that alignment explains (gcc aligns large arrays to 32 bytes, cache lines have 64).
const PADDING: u64 = 64;
/// Local variables of one frame, at most: a damaged image may claim any number.
const MOST_LOCALS: usize = 10_000;

/// What kind of thing a leaf is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    Heap,
    /// Bytes behind a block that belong to it but were not asked for.
    Slack,
    /// The allocator's words before a block.
    Header,
    /// Given back, or not handed out yet.
    Free,
    /// Not free by its header, and in no block that was handed out: kept for the next request of its size.
    Cached,
    /// The allocator's own records.
    Allocator,
    /// Between the blocks of an allocator whose records are not read: free, or its own.
    Hole,
    /// In an arena, where its records cannot be followed.
    Arena,
    Static,
    Literal,
    /// Read-only data that has no name.
    Constants,
    /// Writable data that has no name.
    Data,
    /// Made by the linker for itself and the dynamic linker.
    Linkage,
    /// Between variables, for alignment.
    Padding,
    /// In a segment, outside of all sections: headers, and what fills the last page.
    Segment,
    Code,
    ThreadLocal,
    /// A thread's control block.
    Thread,
    Local,
    /// A caller's register, kept in a frame; the return address.
    Saved,
    /// In a frame, in no variable: what the compiler keeps there for itself.
    Frame,
    /// A stack outside of its frames.
    Stack,
    Argument,
    Environment,
    Auxiliary,
    Vdso,
    Vvar,
    /// A mapped file that is no program.
    File,
    Anonymous,
    /// No access: guards, and room kept free.
    Reserved,
    /// Pointee's own.
    Pointee,
}

impl Kind {
    /// The word used in reports and JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Heap => "heap",
            Self::Slack => "slack",
            Self::Header => "header",
            Self::Free => "free",
            Self::Cached => "cached",
            Self::Allocator => "allocator",
            Self::Hole => "hole",
            Self::Arena => "arena",
            Self::Static => "static",
            Self::Literal => "literal",
            Self::Constants => "constants",
            Self::Data => "data",
            Self::Linkage => "linkage",
            Self::Padding => "padding",
            Self::Segment => "segment",
            Self::Code => "code",
            Self::ThreadLocal => "thread-local",
            Self::Thread => "thread",
            Self::Local => "local",
            Self::Saved => "saved",
            Self::Frame => "frame",
            Self::Stack => "stack",
            Self::Argument => "argument",
            Self::Environment => "environment",
            Self::Auxiliary => "auxiliary",
            Self::Vdso => "vdso",
            Self::Vvar => "vvar",
            Self::File => "file",
            Self::Anonymous => "anonymous",
            Self::Reserved => "reserved",
            Self::Pointee => "pointee",
        }
    }
}

/// What exactly a leaf is. Objects, threads and frames go by their numbers in the layout.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum What<'a> {
    Block(Block),
    /// A block that only the allocator's header tells of.
    Chunk,
    Variable {
        object: usize,
        record: &'a VariableRecord,
    },
    Function {
        object: usize,
    },
    Literal {
        object: usize,
    },
    Section {
        object: usize,
        section: usize,
    },
    ThreadLocal {
        thread: usize,
        object: usize,
        record: Option<&'a VariableRecord>,
    },
    ControlBlock {
        thread: usize,
    },
    Local {
        thread: usize,
        frame: usize,
        object: usize,
        record: &'a LocalRecord,
    },
    Saved {
        thread: usize,
        frame: usize,
        register: u16,
    },
    Frame {
        thread: usize,
        frame: usize,
    },
    Stack {
        thread: usize,
    },
    Start {
        piece: usize,
    },
    /// Nothing deeper than the mapping.
    Mapping,
}

/// A range that is one thing.
#[derive(Debug, Clone, Copy)]
pub struct Leaf<'a> {
    /// Where.
    pub span: Span,
    /// What kind.
    pub kind: Kind,
    /// What.
    pub what: What<'a>,
}

impl<'a> Leaf<'a> {
    fn new(start: u64, end: u64, kind: Kind, what: What<'a>) -> Self {
        Self {
            span: Span {
                start: RunAddr(start),
                end: RunAddr(end),
            },
            kind,
            what,
        }
    }
}

/// A process, ready to be asked.
pub struct Space<'a> {
    layout: &'a Layout,
    /// Module numbers of the layout's objects.
    modules: &'a [u32],
    resolver: &'a Resolver<'a>,
    index: Option<&'a Index<Region>>,
    contents: Option<&'a dyn Contents>,
    blocks: OnceCell<Vec<Block>>,
    arenas: OnceCell<Vec<Arena>>,
}

impl std::fmt::Debug for Space<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Space({} mappings)", self.layout.mappings.len())
    }
}

impl<'a> Space<'a> {
    /// Joins what is known. `modules` are the numbers that [`Layout::join`] gave.
    #[must_use]
    pub fn new(
        layout: &'a Layout,
        modules: &'a [u32],
        resolver: &'a Resolver<'a>,
        index: Option<&'a Index<Region>>,
        contents: Option<&'a dyn Contents>,
    ) -> Self {
        Self {
            layout,
            modules,
            resolver,
            index,
            contents,
            blocks: OnceCell::new(),
            arenas: OnceCell::new(),
        }
    }

    /// What was looked at.
    #[must_use]
    pub fn layout(&self) -> &'a Layout {
        self.layout
    }

    /// For questions about sites.
    #[must_use]
    pub fn resolver(&self) -> &'a Resolver<'a> {
        self.resolver
    }

    /// The process's memory.
    #[must_use]
    pub fn contents(&self) -> Option<&'a dyn Contents> {
        self.contents
    }

    /// Module number of object `number`.
    #[must_use]
    pub fn module(&self, number: usize) -> Option<u32> {
        self.modules.get(number).copied()
    }

    /// The image of object `number`.
    #[must_use]
    pub fn image(&self, number: usize) -> Option<&'a Image<'a>> {
        self.resolver.image(self.module(number)?)
    }

    /// The deepest thing at `address`; `None` where nothing is mapped.
    #[must_use]
    pub fn leaf_at(&self, address: RunAddr) -> Option<Leaf<'a>> {
        if let Some(block) = self.index.and_then(|index| index.block_at(address.0)) {
            let end = block.base.saturating_add(block.size.max(1));
            return Some(Leaf::new(block.base, end, Kind::Heap, What::Block(block)));
        }
        self.leaf_below_blocks(address)
    }

    /// The deepest thing at `address` beside live blocks: what a block there lies in.
    #[must_use]
    pub fn leaf_below_blocks(&self, address: RunAddr) -> Option<Leaf<'a>> {
        let (number, mapping) = self.layout.mapping_at(address)?;
        let window = Span {
            start: mapping.start.max(RunAddr(address.0.saturating_sub(AROUND))),
            end: mapping.end.min(address.plus(AROUND)),
        };
        let layers = self.layers(number, window);
        fold(window, &layers, &mut |gap| self.rest(number, gap))
            .into_iter()
            .find(|(seen, _)| seen.holds(address))
            .map(|(_, leaf)| leaf)
    }

    /// The leaves of mapping `number`, in order; they leave nothing out.
    #[must_use]
    pub fn leaves(&self, number: usize) -> Vec<Leaf<'a>> {
        let Some(mapping) = self.layout.mappings.get(number) else {
            return Vec::new();
        };
        let whole = Span {
            start: mapping.start,
            end: mapping.end,
        };
        let mut layers = self.layers(number, whole);
        layers.insert(0, self.blocks_in(whole));
        fold(whole, &layers, &mut |gap| self.rest(number, gap))
            .into_iter()
            .map(|(seen, leaf)| Leaf { span: seen, ..leaf })
            .collect()
    }

    /// All live blocks, in order of address.
    fn blocks(&self) -> &[Block] {
        self.blocks.get_or_init(|| {
            let mut blocks = Vec::new();
            if let Some(index) = self.index {
                index.each_block(|block| blocks.push(block));
            }
            blocks.sort_unstable_by_key(|block| block.base);
            blocks
        })
    }

    fn blocks_in(&self, window: Span) -> Vec<Leaf<'a>> {
        let blocks = self.blocks();
        let first = blocks.partition_point(|block| block.base < window.start.0);
        // The one before may reach in.
        blocks[first.saturating_sub(1)..]
            .iter()
            .take_while(|block| block.base < window.end.0)
            .map(|block| {
                let end = block.base.saturating_add(block.size.max(1));
                Leaf::new(block.base, end, Kind::Heap, What::Block(*block))
            })
            .collect()
    }

    /// A live block in mapping `number`: what it says of its allocator holds for the rest of the mapping.
    #[must_use]
    pub fn block_of(&self, number: usize) -> Option<Block> {
        let mapping = self.layout.mappings.get(number)?;
        let blocks = self.blocks();
        let first = blocks.partition_point(|block| block.base < mapping.start.0);
        blocks
            .get(first)
            .filter(|block| block.base < mapping.end.0)
            .copied()
    }

    /// The allocator that handed out `block`.
    #[must_use]
    pub fn allocator_of(&self, block: &Block) -> Option<String> {
        let process = self.resolver.process();
        let path = process.paths.get(process.path_of(block.origin)?)?;
        Some(self.resolver.resolve(path).allocator)
    }

    fn arenas(&self) -> &[Arena] {
        self.arenas.get_or_init(|| {
            self.contents
                .map_or_else(Vec::new, |contents| chunks::arenas(self.layout, contents))
        })
    }

    /// Whether mapping `number` is an arena of glibc's malloc: `Some(true)` for the main one.
    #[must_use]
    pub fn glibc_arena(&self, number: usize) -> Option<bool> {
        let mapping = self.layout.mappings.get(number)?;
        let arena = self
            .arenas()
            .iter()
            .find(|arena| arena.span.start == mapping.start)?;
        Some(arena.is_main)
    }

    fn layers(&self, number: usize, window: Span) -> Vec<Vec<Leaf<'a>>> {
        let mut layers = vec![
            self.pointees_own(number),
            self.start_pieces(window),
            self.thread_areas(window),
            self.frames(window),
            self.chunks(window),
        ];
        for (at, object) in self.layout.objects.iter().enumerate() {
            if object.span.start < window.end && window.start < object.span.end {
                layers.push(self.named(at, object, window));
            }
        }
        for layer in &mut layers {
            layer.sort_by_key(|leaf| leaf.span.start);
        }
        layers
    }

    /// The index, the runtime, its trampolines.
    fn pointees_own(&self, number: usize) -> Vec<Leaf<'a>> {
        let Some(mapping) = self.layout.mappings.get(number) else {
            return Vec::new();
        };
        let process = self.resolver.process();
        let is_runtime = process.modules.iter().any(|module| {
            module.flags & module_flags::RUNTIME != 0
                && module.start < mapping.end
                && mapping.start < module.end
        });
        let holds = |address: RunAddr| (mapping.start..mapping.end).contains(&address);
        let is_own = mapping.path.starts_with("/memfd:pointee")
            || is_runtime
            || self.index.is_some_and(|index| {
                let end = index.base().saturating_add(index.layout().len);
                index.base() < mapping.end.0 && mapping.start.0 < end
            })
            || process
                .hooks
                .iter()
                .any(|hook| hook.placement != 0 && holds(hook.trampoline));
        if !is_own {
            return Vec::new();
        }
        vec![Leaf::new(
            mapping.start.0,
            mapping.end.0,
            Kind::Pointee,
            What::Mapping,
        )]
    }

    fn start_pieces(&self, window: Span) -> Vec<Leaf<'a>> {
        let pieces = self.layout.start.iter().enumerate();
        pieces
            .filter(|(_, piece)| overlaps(piece.span, window))
            .map(|(number, piece)| {
                let kind = match piece.kind {
                    StartKind::ArgumentVector | StartKind::Argument => Kind::Argument,
                    StartKind::EnvironmentVector | StartKind::Environment => Kind::Environment,
                    StartKind::AuxiliaryVector | StartKind::Auxiliary => Kind::Auxiliary,
                };
                let what = What::Start { piece: number };
                Leaf::new(piece.span.start.0, piece.span.end.0, kind, what)
            })
            .collect()
    }

    /// Control blocks, thread-local variables, and what lies between those.
    fn thread_areas(&self, window: Span) -> Vec<Leaf<'a>> {
        /// Bytes of glibc's `struct pthread`, which starts with the control block (0x900 since glibc 2.26, by libthread_db).
        const CONTROL: u64 = 0x900;
        let mut leaves = Vec::new();
        for (number, thread) in self.layout.threads.iter().enumerate() {
            if let Some(block) = thread.control_block {
                let end = block.plus(CONTROL);
                if overlaps(Span { start: block, end }, window) {
                    let what = What::ControlBlock { thread: number };
                    leaves.push(Leaf::new(block.0, end.0, Kind::Thread, what));
                }
            }
            for (object, span) in &thread.blocks {
                if overlaps(*span, window) {
                    self.thread_block(number, *object as usize, *span, &mut leaves);
                }
            }
        }
        leaves
    }

    fn thread_block(&self, thread: usize, object: usize, span: Span, leaves: &mut Vec<Leaf<'a>>) {
        let mut end = span.start.0;
        let mut add = |start: u64, end: u64, record| {
            let what = What::ThreadLocal {
                thread,
                object,
                record,
            };
            leaves.push(Leaf::new(start, end, Kind::ThreadLocal, what));
        };
        let variables = self.image(object).map_or(&[][..], Image::thread_locals);
        for variable in variables {
            let start = span.start.0.wrapping_add(variable.address);
            if variable.size == 0 || start < end || start >= span.end.0 {
                continue;
            }
            if start > end {
                add(end, start, None);
            }
            end = start.saturating_add(variable.size).min(span.end.0);
            add(start, end, Some(variable));
        }
        if end < span.end.0 {
            add(end, span.end.0, None);
        }
    }

    fn frames(&self, window: Span) -> Vec<Leaf<'a>> {
        let mut leaves = Vec::new();
        for (thread, record) in self.layout.threads.iter().enumerate() {
            // Frames of one stack lie in order, but a signal's may lie elsewhere.
            for (number, frame) in record.frames.iter().enumerate() {
                if overlaps(frame.span, window) && frame.span.start < frame.span.end {
                    self.frame(thread, number, frame, &mut leaves);
                }
            }
        }
        leaves
    }

    fn frame(&self, thread: usize, number: usize, frame: &Frame, leaves: &mut Vec<Leaf<'a>>) {
        let mut parts = self.locals_in_memory(thread, number, frame);
        parts.sort_by_key(|leaf| (leaf.span.start, leaf.span.end));
        let saved: Vec<Leaf<'a>> = frame
            .saved
            .iter()
            .map(|(slot, register)| {
                let what = What::Saved {
                    thread,
                    frame: number,
                    register: *register,
                };
                Leaf::new(slot.0, slot.0.wrapping_add(8), Kind::Saved, what)
            })
            .collect();
        let what = What::Frame {
            thread,
            frame: number,
        };
        let whole = Leaf::new(frame.span.start.0, frame.span.end.0, Kind::Frame, what);
        let cut = fold(frame.span, &[parts, saved], &mut |gap| {
            vec![(gap, Leaf { span: gap, ..whole })]
        });
        leaves.extend(cut.into_iter().map(|(seen, leaf)| match leaf.what {
            // A variable stays whole: the offset in it counts from its start.
            What::Local { .. } => leaf,
            _ => Leaf { span: seen, ..leaf },
        }));
    }

    /// The variables of a frame that lie in its memory now.
    fn locals_in_memory(&self, thread: usize, number: usize, frame: &Frame) -> Vec<Leaf<'a>> {
        let leaf = |(object, record, place): (usize, &'a LocalRecord, Place)| {
            let Place::Memory(start) = place else {
                return None;
            };
            let size = crate::describe::size_of_type(self.image(object)?, record.r#type)
                .filter(|size| *size != 0)?;
            let what = What::Local {
                thread,
                frame: number,
                object,
                record,
            };
            let leaf = Leaf::new(start.0, start.0.checked_add(size)?, Kind::Local, what);
            frame.span.holds(start).then_some(leaf)
        };
        self.locals(frame).into_iter().filter_map(leaf).collect()
    }

    /// The variables of a frame that lie in a register: object, variable, DWARF number.
    #[must_use]
    pub fn locals_in_registers(&self, frame: &Frame) -> Vec<(usize, &'a LocalRecord, u16)> {
        let in_register = |(object, record, place)| match place {
            Place::Register(number) => Some((object, record, number)),
            Place::Memory(_) => None,
        };
        self.locals(frame)
            .into_iter()
            .filter_map(in_register)
            .collect()
    }

    /// The variables of a frame and where they are now.
    fn locals(&self, frame: &Frame) -> Vec<(usize, &'a LocalRecord, Place)> {
        let executing = frame.executing();
        let Some((object, record)) = self.layout.object_at(executing) else {
            return Vec::new();
        };
        let Some(image) = self.image(object) else {
            return Vec::new();
        };
        let register = |number: u16| frame.registers.get(usize::from(number)).copied().flatten();
        image
            .locals_at(record.bias.to_link(executing))
            .take(MOST_LOCALS)
            .filter_map(|local| {
                let place = match LocalPlace::from_byte(local.place) {
                    LocalPlace::Frame => {
                        Place::Memory(RunAddr(frame.span.end.0.wrapping_add_signed(local.offset)))
                    }
                    LocalPlace::Memory => {
                        let base = register(local.register)?;
                        Place::Memory(RunAddr(base.wrapping_add_signed(local.offset)))
                    }
                    LocalPlace::Register => Place::Register(local.register),
                    LocalPlace::Value | LocalPlace::Unknown => return None,
                };
                Some((object, local, place))
            })
            .collect()
    }

    /// Chunks of glibc's malloc, where there are some.
    fn chunks(&self, window: Span) -> Vec<Leaf<'a>> {
        /// Usable bytes of the chunk with a thread's cache (`tcache_perthread_struct`, glibc 2.30 to 2.41).
        const CACHE: u64 = 0x288;
        let Some(contents) = self.contents else {
            return Vec::new();
        };
        let mut leaves = Vec::new();
        for arena in self.arenas() {
            if !overlaps(arena.span, window) {
                continue;
            }
            leaves.extend(arena.records().map(|records| Leaf {
                span: records,
                kind: Kind::Allocator,
                what: What::Mapping,
            }));
            for chunk in arena.chunks_in(window.start.0, window.end.0, contents) {
                let header = Leaf::new(chunk.header, chunk.start, Kind::Header, What::Mapping);
                leaves.push(header);
                let (kind, what) = match chunk.state {
                    ChunkState::Free | ChunkState::Top => (Kind::Free, What::Mapping),
                    // The first chunk of an arena holds the cache of the thread that made it.
                    ChunkState::InUse if chunk.is_first && chunk.end - chunk.start == CACHE => {
                        (Kind::Allocator, What::Mapping)
                    }
                    ChunkState::InUse => match self.index {
                        None => (Kind::Heap, What::Chunk),
                        Some(index) if index.block_at(chunk.start).is_some() => {
                            (Kind::Slack, What::Mapping)
                        }
                        Some(_) => (Kind::Cached, What::Mapping),
                    },
                };
                leaves.push(Leaf::new(chunk.start, chunk.end, kind, what));
            }
        }
        leaves
    }

    /// Functions and variables of object `at`.
    fn named(&self, at: usize, object: &Object, window: Span) -> Vec<Leaf<'a>> {
        let Some(image) = self.image(at) else {
            return Vec::new();
        };
        let link = |address: RunAddr| object.bias.to_link(address).0;
        let run = |address: u64| object.bias.to_run(LinkAddr(address)).0;
        let (start, end) = (link(window.start), link(window.end));
        let first = image
            .functions
            .partition_point(|function| function.end <= start);
        let functions = image.functions[first..]
            .iter()
            .take_while(|function| function.start < end)
            .filter(|function| function.start < function.end)
            .map(|function| {
                let what = What::Function { object: at };
                Leaf::new(run(function.start), run(function.end), Kind::Code, what)
            });
        let statics = image.statics();
        let last = statics.partition_point(|variable| variable.address < end);
        // A large variable may start long before the window: of those before it the nearest that reaches in.
        let from = statics[..last].partition_point(|variable| variable.address < start);
        let reaching = statics[..from]
            .iter()
            .rev()
            .take(64)
            .find(|variable| variable.address.saturating_add(variable.size) > start);
        let variables = reaching
            .into_iter()
            .chain(&statics[from..last])
            .filter(|variable| variable.size != 0)
            .map(|record| {
                let what = What::Variable { object: at, record };
                let end = record.address.saturating_add(record.size);
                Leaf::new(run(record.address), run(end), Kind::Static, what)
            });
        functions.chain(variables).collect()
    }

    /// What is in no layer.
    fn rest(&self, number: usize, gap: Span) -> Vec<(Span, Leaf<'a>)> {
        let Some(mapping) = self.layout.mappings.get(number) else {
            return Vec::new();
        };
        let whole = |kind, what| {
            let leaf = Leaf::new(gap.start.0, gap.end.0, kind, what);
            vec![(gap, leaf)]
        };
        let mut objects = self.layout.objects.iter().enumerate();
        if let Some((at, object)) = objects.find(|(_, object)| is_part_of(object, gap.start)) {
            if object.path == "[vdso]" {
                return whole(Kind::Vdso, What::Mapping);
            }
            return self.in_sections(at, object, mapping, gap);
        }
        let threads = self.layout.threads.iter().enumerate();
        let stack = threads
            .filter_map(|(thread, record)| Some((thread, record.stack?)))
            .find(|(_, stack)| overlaps(*stack, gap));
        if !mapping.permissions.starts_with('r') && !mapping.permissions.contains('x') {
            return whole(Kind::Reserved, What::Mapping);
        }
        if let Some((thread, _)) = stack {
            return whole(Kind::Stack, What::Stack { thread });
        }
        match mapping.path.as_str() {
            "[stack]" => whole(Kind::Stack, What::Mapping),
            "[vdso]" => whole(Kind::Vdso, What::Mapping),
            path if path.starts_with("[vvar") || path == "[vsyscall]" => {
                whole(Kind::Vvar, What::Mapping)
            }
            _ if mapping.inode != 0 => whole(Kind::File, What::Mapping),
            _ if self.glibc_arena(number).is_some() => whole(Kind::Arena, What::Mapping),
            _ => match (self.block_of(number), self.contents) {
                (Some(block), Some(contents)) => {
                    let alone = is_mapped_alone(contents, RunAddr(block.base));
                    self.between_blocks(gap, if alone { Kind::Anonymous } else { Kind::Hole })
                }
                (Some(_), None) => whole(Kind::Hole, What::Mapping),
                (None, _) => whole(Kind::Anonymous, What::Mapping),
            },
        }
    }

    /// Between blocks where no chain of chunks is: the header of one that was mapped on its own, what fills its last
    /// page, or `other`. (The kernel makes one mapping of neighbours, whoever asked for them.)
    fn between_blocks(&self, gap: Span, other: Kind) -> Vec<(Span, Leaf<'a>)> {
        let leaf = |span: Span, kind| {
            (
                span,
                Leaf::new(span.start.0, span.end.0, kind, What::Mapping),
            )
        };
        let Some(contents) = self.contents else {
            return vec![leaf(gap, other)];
        };
        let header = RunAddr(gap.end.0.wrapping_sub(HEADER));
        let mut leaves = Vec::new();
        let mut end = gap.end;
        if header >= gap.start && is_mapped_alone(contents, gap.end) {
            end = header;
        }
        if gap.start < end {
            let before = RunAddr(gap.start.0.wrapping_sub(1));
            let block = self.index.and_then(|index| index.block_at(before.0));
            let alone = block.is_some_and(|block| is_mapped_alone(contents, RunAddr(block.base)));
            let fills_page = alone && end.0 - gap.start.0 < AROUND;
            let kind = if fills_page { Kind::Slack } else { other };
            leaves.push(leaf(
                Span {
                    start: gap.start,
                    end,
                },
                kind,
            ));
        }
        if end < gap.end {
            leaves.push(leaf(
                Span {
                    start: end,
                    end: gap.end,
                },
                Kind::Header,
            ));
        }
        leaves
    }

    /// What of an object has no name, by section.
    fn in_sections(
        &self,
        at: usize,
        object: &Object,
        mapping: &Mapping,
        gap: Span,
    ) -> Vec<(Span, Leaf<'a>)> {
        let sections = self.image(at).map_or(&[][..], |image| image.sections);
        let mut cut = Vec::new();
        let mut from = gap.start;
        let segment = |start: RunAddr, end: RunAddr| {
            let span = Span { start, end };
            (
                span,
                Leaf::new(start.0, end.0, Kind::Segment, What::Mapping),
            )
        };
        for (number, section) in sections.iter().enumerate() {
            // The initial contents of thread-local blocks take up file, `.tbss` no memory at all.
            let nowhere = section_flags::THREAD_LOCAL | section_flags::ZEROED;
            if section.flags & nowhere == nowhere {
                continue;
            }
            let start = object.bias.to_run(LinkAddr(section.address)).max(from);
            let end = object
                .bias
                .to_run(LinkAddr(section.address.saturating_add(section.size)))
                .min(gap.end);
            if start >= end {
                continue;
            }
            if from < start {
                cut.push(segment(from, start));
            }
            self.in_section(at, number, Span { start, end }, mapping, &mut cut);
            from = end;
        }
        if from < gap.end {
            cut.push(segment(from, gap.end));
        }
        cut
    }

    fn in_section(
        &self,
        at: usize,
        number: usize,
        gap: Span,
        mapping: &Mapping,
        cut: &mut Vec<(Span, Leaf<'a>)>,
    ) {
        let Some((image, section)) = self
            .image(at)
            .and_then(|image| Some((image, image.sections.get(number)?)))
        else {
            return;
        };
        let what = What::Section {
            object: at,
            section: number,
        };
        let name = image.string(section.name);
        let whole = |kind| (gap, Leaf::new(gap.start.0, gap.end.0, kind, what));
        if is_linkage(name) {
            return cut.push(whole(Kind::Linkage));
        }
        if section.flags & section_flags::CODE != 0 {
            let kind = if gap.end.0 - gap.start.0 < PADDING {
                Kind::Padding
            } else {
                Kind::Code
            };
            return cut.push(whole(kind));
        }
        let has_names = image
            .variables
            .iter()
            .any(|variable| variable.flags & variable_flags::THREAD_LOCAL == 0);
        if has_names && gap.end.0 - gap.start.0 < PADDING && self.is_zero(gap) {
            return cut.push(whole(Kind::Padding));
        }
        // Relocated constants are writable in the file, and not any more in the process.
        if mapping.permissions.starts_with("rw") {
            return cut.push(whole(Kind::Data));
        }
        match self.contents {
            Some(contents) => literals(gap, contents, at, what, cut),
            None => cut.push(whole(Kind::Constants)),
        }
    }

    fn is_zero(&self, span: Span) -> bool {
        let mut bytes = [0; PADDING as usize];
        let Some(bytes) = bytes.get_mut(..(span.end.0 - span.start.0) as usize) else {
            return false;
        };
        let there = self
            .contents
            .is_some_and(|contents| contents.read(Alleged(span.start.0), bytes));
        there && bytes.iter().all(|byte| *byte == 0)
    }
}

/// Where a local variable is at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In memory.
    Memory(RunAddr),
    /// In a register, by DWARF number.
    Register(u16),
}

fn overlaps(one: Span, other: Span) -> bool {
    one.start < other.end && other.start < one.end
}

/// Whether `address` lies in a segment of `object`, or on a page that one starts or ends on.
fn is_part_of(object: &Object, address: RunAddr) -> bool {
    const PAGE: u64 = 0xfff;
    object.segments.iter().any(|(span, _)| {
        let start = RunAddr(span.start.0 & !PAGE);
        let end = RunAddr(span.end.0.wrapping_add(PAGE) & !PAGE);
        (start..end).contains(&address)
    })
}

/// Sections that no variable of the program lies in.
fn is_linkage(name: &str) -> bool {
    const NAMES: [&str; 14] = [
        ".got",
        ".dynamic",
        ".interp",
        ".hash",
        ".dynsym",
        ".dynstr",
        ".gnu.",
        ".eh_frame",
        ".gcc_except_table",
        ".rel",
        ".note",
        ".plt",
        ".init",
        ".fini",
    ];
    NAMES.iter().any(|known| name.starts_with(known))
        || name == ".preinit_array"
        || name == ".relr.dyn"
}

/// Cuts read-only data into strings and other constants. A string is text that ends with a NUL and starts behind one.
fn literals<'a>(
    gap: Span,
    contents: &dyn Contents,
    object: usize,
    rest: What<'a>,
    cut: &mut Vec<(Span, Leaf<'a>)>,
) {
    let constants = |start: u64, end: u64| {
        let leaf = Leaf::new(start, end, Kind::Constants, rest);
        (leaf.span, leaf)
    };
    let mut at = gap.start.0;
    // Where the constants that were passed over start.
    let mut from = at;
    let mut bytes = vec![0; 2 * LONGEST as usize];
    while at < gap.end.0 {
        let len = (gap.end.0 - at).min(bytes.len() as u64) as usize;
        if !contents.read(Alleged(at), &mut bytes[..len]) {
            break;
        }
        let is_last = at + len as u64 == gap.end.0;
        let mut done = 0;
        while done < len {
            let Some(end) = bytes[done..len].iter().position(|byte| *byte == 0) else {
                break;
            };
            let text = &bytes[done..done + end];
            if text.len() > 1 && std::str::from_utf8(text).is_ok_and(is_text) {
                let start = at + done as u64;
                if from < start {
                    cut.push(constants(from, start));
                }
                from = start + end as u64 + 1;
                let leaf = Leaf::new(start, from, Kind::Literal, What::Literal { object });
                cut.push((leaf.span, leaf));
            }
            done += end + 1;
        }
        // What had no NUL is read again with what follows, unless that is all there is.
        at += if done == 0 || is_last { len } else { done } as u64;
    }
    if from < gap.end.0 {
        cut.push(constants(from, gap.end.0));
    }
}

fn is_text(text: &str) -> bool {
    text.chars()
        .all(|character| !character.is_control() || "\t\n\r\x1b".contains(character))
}

/// Divides `window` by the first layer, each gap by the layers below; `rest` divides what is in none. Gives what is seen
/// of each leaf, with the leaf. Layers are in order of start.
fn fold<'a>(
    window: Span,
    layers: &[Vec<Leaf<'a>>],
    rest: &mut dyn FnMut(Span) -> Vec<(Span, Leaf<'a>)>,
) -> Vec<(Span, Leaf<'a>)> {
    let mut cut = Vec::new();
    divide(window, layers, rest, &mut cut);
    cut
}

fn divide<'a>(
    window: Span,
    layers: &[Vec<Leaf<'a>>],
    rest: &mut dyn FnMut(Span) -> Vec<(Span, Leaf<'a>)>,
    cut: &mut Vec<(Span, Leaf<'a>)>,
) {
    let Some((layer, below)) = layers.split_first() else {
        cut.extend(rest(window));
        return;
    };
    let mut from = window.start;
    // Of leaves that start before the window only the last few can reach in: leaves of a layer hardly overlap.
    let first = layer.partition_point(|leaf| leaf.span.start < window.start);
    for leaf in &layer[first.saturating_sub(REACHING)..] {
        if leaf.span.start >= window.end {
            break;
        }
        let start = leaf.span.start.max(from);
        let end = leaf.span.end.min(window.end);
        if start >= end {
            continue;
        }
        if from < start {
            divide(
                Span {
                    start: from,
                    end: start,
                },
                below,
                rest,
                cut,
            );
        }
        cut.push((Span { start, end }, *leaf));
        from = end;
    }
    if from < window.end {
        divide(
            Span {
                start: from,
                end: window.end,
            },
            below,
            rest,
            cut,
        );
    }
}

/// Leaves before a window's start that may reach into it.
const REACHING: usize = 8;
