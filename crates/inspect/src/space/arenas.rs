//! *Whose arena is memory that lies between blocks?* — the kernel makes one mapping of neighbours, whoever asked for them, so a mapping
//! is divided by the paths that mapped its pages first.
//!
//! ```text
//!   mapping   │ chunk that malloc mapped for one block │ arena of a pool, with blocks │ the pool's next one, still empty │
//!   areas     │ a path of malloc's                     │ a path of the pool's                                            │
//! ```
//!
//! An area is an arena if a block lies in it that was not mapped for itself; or if the path that mapped it has mapped arenas elsewhere.

use super::Span;
use super::chunks::is_mapped_alone;
use super::leaves::{Space, overlaps};
use crate::running::Mapping;
use pointee_index::read::Block;
use pointee_model::addr::RunAddr;
use std::collections::HashMap;
use std::rc::Rc;

/// Pages of one mapping that were mapped along one path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    pub(super) span: Span,
    /// The path; 0 where that was not seen.
    origin: u32,
    /// One that was cut out of it.
    block: Option<Block>,
}

/// What was found out of a process's areas.
#[derive(Debug, Default)]
pub(super) struct Areas {
    of_mapping: HashMap<usize, Rc<[Area]>>,
    /// A block for each path that maps arenas.
    makers: Option<Rc<HashMap<u32, Block>>>,
}

impl Space<'_> {
    /// A block of the arena that `address` lies in, which tells whose it is; `None` where there is none.
    #[must_use]
    pub fn block_of_arena(&self, address: RunAddr) -> Option<Block> {
        let (number, _) = self.layout.mapping_at(address)?;
        let areas = self.areas(number);
        let area = areas.iter().find(|area| area.span.holds(address))?;
        self.arena_of(area)
    }

    /// The same for an area.
    pub(super) fn arena_of(&self, area: &Area) -> Option<Block> {
        let by_path = || self.arena_makers().get(&area.origin).copied();
        area.block.or_else(by_path)
    }

    /// The areas of mapping `number` that `gap` reaches into.
    pub(super) fn areas_in(&self, number: usize, gap: Span) -> Vec<Area> {
        let areas = self.areas(number);
        let first = areas.partition_point(|area| area.span.end <= gap.start);
        let reached = areas[first..].iter().copied();
        reached
            .take_while(|area| overlaps(area.span, gap))
            .collect()
    }

    fn areas(&self, number: usize) -> Rc<[Area]> {
        if let Some(known) = self.areas.borrow().of_mapping.get(&number) {
            return Rc::clone(known);
        }
        let mapping = self.layout.mappings.get(number);
        let is_whole = self.glibc_arena(number).is_some();
        let made = mapping.map_or_else(Vec::new, |mapping| self.divide(mapping, is_whole));
        let made: Rc<[Area]> = made.into();
        let mut areas = self.areas.borrow_mut();
        areas.of_mapping.insert(number, Rc::clone(&made));
        made
    }

    /// `is_whole`: it is one arena, whoever made it grow; so is the brk area.
    fn divide(&self, mapping: &Mapping, is_whole: bool) -> Vec<Area> {
        let is_whole = is_whole || mapping.path == "[heap]";
        let mut areas: Vec<Area> = Vec::new();
        let mut add = |span: Span, origin| match areas.last_mut() {
            Some(last) if last.origin == origin => last.span.end = span.end,
            _ => areas.push(Area {
                span,
                origin,
                block: None,
            }),
        };
        match self.index.filter(|_| !is_whole) {
            Some(index) => {
                index.each_page_seen(mapping.start.0, mapping.end.0, |start, pages, word| {
                    let end =
                        start.saturating_add(pages.saturating_mul(pointee_index::layout::PAGE));
                    let span = Span {
                        start: RunAddr(start),
                        end: RunAddr(end).min(mapping.end),
                    };
                    add(span, word.origin());
                });
            }
            None => add(
                Span {
                    start: mapping.start,
                    end: mapping.end,
                },
                0,
            ),
        }
        for area in &mut areas {
            area.block = self.block_cut_out_of(area.span);
        }
        areas
    }

    /// A block in `span` that was not mapped for itself.
    fn block_cut_out_of(&self, span: Span) -> Option<Block> {
        fn in_span(blocks: &[Block], span: Span) -> impl Iterator<Item = &Block> {
            let first = blocks.partition_point(|block| block.base < span.start.0);
            blocks[first..]
                .iter()
                .take_while(move |block| block.base < span.end.0)
        }
        let is_alone = |block: &Block| {
            let base = RunAddr(block.base);
            self.contents
                .is_some_and(|contents| is_mapped_alone(contents, base))
        };
        let is_in_block = |block: &Block| {
            self.index
                .is_some_and(|index| index.block_at(block.base).is_some())
        };
        let outer = in_span(self.blocks(), span).find(|block| !is_alone(block));
        let pooled = || in_span(self.nested_blocks(), span).find(|block| !is_in_block(block));
        outer.or_else(pooled).copied()
    }

    fn arena_makers(&self) -> Rc<HashMap<u32, Block>> {
        if let Some(known) = &self.areas.borrow().makers {
            return Rc::clone(known);
        }
        let mut makers = HashMap::new();
        for (number, mapping) in self.layout.mappings.iter().enumerate() {
            let is_memory = mapping.inode == 0 && mapping.permissions.starts_with("rw");
            if !is_memory || self.is_pointees(number) {
                continue;
            }
            for area in self.areas(number).iter().filter(|area| area.origin != 0) {
                if let Some(block) = area.block {
                    makers.entry(area.origin).or_insert(block);
                }
            }
        }
        let makers = Rc::new(makers);
        self.areas.borrow_mut().makers = Some(Rc::clone(&makers));
        makers
    }
}
