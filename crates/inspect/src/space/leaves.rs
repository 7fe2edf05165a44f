//! *Which leaf holds an address, and which leaves make up a mapping?*
//!
//! A mapping is cut in layers, the deepest first; what one layer leaves out, the next one divides:
//!
//! ```text
//!   signal stacks │ live blocks │ Pointee's own │ start, thread-local blocks, frames │ chunks │ functions, variables │ literals │ sections │ the mapping
//! ```

use super::arenas::Areas;
use super::chunks::{self, Arena, ChunkState};
use super::layers::fold;
use super::leaf::{Kind, Leaf, What};
use super::{Layout, Object, Span, StartKind};
use crate::memory::Region;
use crate::resolve::Resolver;
use crate::value::Contents;
use pointee_index::Index;
use pointee_index::layout::PAGE;
use pointee_index::read::Block;
use pointee_index::records::module_flags;
use pointee_model::addr::{LinkAddr, RunAddr};
use pointee_model::image::Image;
use std::cell::{OnceCell, RefCell};

/// How far around an address its neighbours are looked at.
pub(super) const AROUND: u64 = 4096;

/// A process, ready to be asked.
pub struct Space<'a> {
    pub(super) layout: &'a Layout,
    /// Module numbers of the layout's objects.
    modules: &'a [u32],
    pub(super) resolver: &'a Resolver<'a>,
    pub(super) index: Option<&'a Index<Region>>,
    pub(super) contents: Option<&'a dyn Contents>,
    blocks: OnceCell<Vec<Block>>,
    nested_blocks: OnceCell<Vec<Block>>,
    arenas: OnceCell<Vec<Arena>>,
    pub(super) signal_stacks: OnceCell<Vec<(usize, Span)>>,
    pub(super) areas: RefCell<Areas>,
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
            nested_blocks: OnceCell::new(),
            arenas: OnceCell::new(),
            signal_stacks: OnceCell::new(),
            areas: RefCell::default(),
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
        self.leaf_on_signal_stack(address)
            .or_else(|| self.leaf_beside_signal_stacks(address))
    }

    /// The deepest thing at `address` but for signal stacks: what such a stack was made of.
    #[must_use]
    pub fn leaf_beside_signal_stacks(&self, address: RunAddr) -> Option<Leaf<'a>> {
        let nested = self
            .index
            .and_then(|index| index.nested_block_at(address.0));
        let outer = || self.index?.block_at(address.0);
        nested
            .map(|block| block_leaf(block, Kind::Pooled))
            .or_else(|| Some(block_leaf(outer()?, Kind::Heap)))
            .or_else(|| self.leaf_below_blocks(address))
    }

    /// The block that a pool cut the one at `address` out of; `None` if that is no pool's.
    #[must_use]
    pub fn block_around(&self, address: RunAddr) -> Option<Block> {
        let index = self.index?;
        index.nested_block_at(address.0)?;
        index.block_at(address.0)
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
        layers.insert(0, blocks_in(self.blocks(), whole, Kind::Heap));
        layers.insert(0, blocks_in(self.nested_blocks(), whole, Kind::Pooled));
        layers.insert(0, self.leaves_on_signal_stacks(whole));
        fold(whole, &layers, &mut |gap| self.rest(number, gap))
            .into_iter()
            .map(|(seen, leaf)| Leaf { span: seen, ..leaf })
            .collect()
    }

    /// All live blocks, in order of address.
    pub(super) fn blocks(&self) -> &[Block] {
        self.blocks.get_or_init(|| {
            let mut blocks = Vec::new();
            if let Some(index) = self.index {
                index.each_block(|block| blocks.push(block));
            }
            blocks.sort_unstable_by_key(|block| block.base);
            blocks
        })
    }

    /// All live blocks of pools, in order of address.
    pub(super) fn nested_blocks(&self) -> &[Block] {
        self.nested_blocks.get_or_init(|| {
            let mut blocks = Vec::new();
            if let Some(index) = self.index {
                index.each_nested_block(|block| blocks.push(block));
            }
            blocks.sort_unstable_by_key(|block| block.base);
            blocks
        })
    }

    /// The allocator that handed out `block`.
    #[must_use]
    pub fn allocator_of(&self, block: &Block) -> Option<String> {
        let process = self.resolver.process();
        let path = process.paths.get(process.path_of(block.origin)?)?;
        Some(self.resolver.resolve(path).allocator)
    }

    /// What `block` was made as, if that is known.
    #[must_use]
    pub fn type_of(&self, block: &Block) -> Option<String> {
        let process = self.resolver.process();
        let path = process.paths.get(process.path_of(block.origin)?)?;
        let shape = self.resolver.resolve(path).shape?;
        Some(shape.name(self.resolver.image(shape.module)?))
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

    /// The index, the runtime, its trampolines. The kernel makes one mapping of what lies side by side and is alike, so only
    /// a part of one may be Pointee's.
    pub(super) fn pointees_own(&self, number: usize) -> Vec<Leaf<'a>> {
        let Some(mapping) = self.layout.mappings.get(number) else {
            return Vec::new();
        };
        let process = self.resolver.process();
        let whole = Span {
            start: mapping.start,
            end: mapping.end,
        };
        let is_all = mapping.path.starts_with("/memfd:pointee")
            || (process.hooks.iter())
                .any(|hook| hook.placement != 0 && whole.holds(hook.trampoline));
        let index = self.index.map(|index| Span {
            start: RunAddr(index.base()),
            end: RunAddr(index.base().saturating_add(index.layout().len)),
        });
        let modules = process.modules.iter();
        let runtimes = modules.filter(|module| module.flags & module_flags::RUNTIME != 0);
        let runtimes = runtimes.map(|module| Span {
            start: module.start,
            end: RunAddr(
                module
                    .end
                    .0
                    .checked_next_multiple_of(PAGE)
                    .unwrap_or(module.end.0),
            ),
        });
        let mut spans: Vec<Span> = if is_all {
            vec![whole]
        } else {
            index.into_iter().chain(runtimes).collect()
        };
        spans.sort_by_key(|span| span.start);
        let mut from = whole.start;
        let mut own = Vec::new();
        for span in spans {
            let (start, end) = (span.start.max(from), span.end.min(whole.end));
            if start < end {
                own.push(Leaf::new(start.0, end.0, Kind::Pointee, What::Mapping));
                from = end;
            }
        }
        own
    }

    /// Whether all of mapping `number` is Pointee's.
    pub(super) fn is_pointees(&self, number: usize) -> bool {
        let own = self.pointees_own(number);
        let len = own
            .iter()
            .map(|leaf| leaf.span.end.0 - leaf.span.start.0)
            .sum();
        let mapping = self.layout.mappings.get(number);
        mapping.is_some_and(|mapping| mapping.end.offset_from(mapping.start) == Some(len))
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
}

pub(super) fn overlaps(one: Span, other: Span) -> bool {
    one.start < other.end && other.start < one.end
}

fn block_leaf<'a>(block: Block, kind: Kind) -> Leaf<'a> {
    let end = block.base.saturating_add(block.size.max(1));
    Leaf::new(block.base, end, kind, What::Block(block))
}

/// Those of `blocks`, in order of address, that lie in `window`.
fn blocks_in<'a>(blocks: &[Block], window: Span, kind: Kind) -> Vec<Leaf<'a>> {
    let first = blocks.partition_point(|block| block.base < window.start.0);
    // The one before may reach in.
    blocks[first.saturating_sub(1)..]
        .iter()
        .take_while(|block| block.base < window.end.0)
        .map(|block| block_leaf(*block, kind))
        .collect()
}
