//! *How much memory does the record itself take?* — the written pages of the region, by what they hold.
//!
//! A page counts when it was written, whether or not it still is in use. With the runtime and the images, which count as they
//! are mapped, the sum is what a record adds to the process at most, but for what the process asks about itself.

use crate::memory::Region;
use crate::process::{HookInfo, ModuleInfo};
use pointee_index::layout::{PAGE, TABLE_BYTES, TABLE_WORDS};
use pointee_index::records::module_flags;
use pointee_index::{Header, Index};
use serde::Serialize;
use std::collections::BTreeSet;
use std::mem::offset_of;
use std::ops::Range;

/// Bytes of address space that one page of the kernel's tables maps (Intel SDM, vol. 3, §4.5).
const MAPPED_BY_TABLE: u64 = 2 << 20;

/// Bytes by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Footprint {
    /// The words of blocks: the index proper.
    pub blocks: u64,
    /// Covers of large blocks, and the directory of tables.
    pub directory: u64,
    /// The tree of paths.
    pub paths: u64,
    /// Counters of threads by path.
    pub counters: u64,
    /// What was alive at the peak, by path.
    pub peak: u64,
    /// Loaded objects, hooks, names.
    pub descriptions: u64,
    /// Pages with code that pads lead to.
    pub trampolines: u64,
    /// The runtime's own code and data, as mapped; those parts of its data count that were never written.
    pub runtime: u64,
    /// The metadata images that tell where walks may stop, as mapped: files, of which the kernel keeps what is read, for all
    /// processes together.
    pub images: u64,
    /// The kernel's tables for the written pages of the region.
    pub page_tables: u64,
    /// The blocks of the highest point, copied, where they were asked for.
    pub copies: u64,
}

impl Footprint {
    pub(crate) fn of(index: &Index<Region>, modules: &[ModuleInfo], hooks: &[HookInfo]) -> Self {
        let layout = index.layout();
        let base = index.header_u64(offset_of!(Header, base));
        let mut tables = BTreeSet::new();
        index.memory().each_touched(0..layout.len, |at| {
            tables.insert(base.wrapping_add(at) / MAPPED_BY_TABLE);
        });
        let written = |range: Range<u64>| {
            let mut bytes = 0;
            index.memory().each_touched(range, |_| bytes += PAGE);
            bytes
        };
        let (mut blocks, mut covers) = (0, 0);
        index
            .memory()
            .each_touched(layout.tables..layout.len, |at| {
                let inside = (at - layout.tables) % TABLE_BYTES;
                *if inside < TABLE_WORDS * 4 {
                    &mut blocks
                } else {
                    &mut covers
                } += PAGE;
            });
        let pages: BTreeSet<u64> = hooks
            .iter()
            .filter(|hook| hook.placement != 0)
            .map(|hook| hook.trampoline.0 / PAGE)
            .collect();
        let runtime = modules
            .iter()
            .filter(|module| module.flags & module_flags::RUNTIME != 0)
            .map(|module| module.end.0.saturating_sub(module.start.0));
        Self {
            blocks,
            directory: covers + written(layout.table_owners..layout.origins[0]),
            paths: written(layout.origins[0]..layout.peak),
            counters: written(layout.threads..layout.tables),
            peak: written(layout.peak..layout.threads),
            descriptions: written(0..layout.table_owners),
            trampolines: pages.len() as u64 * PAGE,
            runtime: runtime.fold(0, u64::saturating_add),
            images: u64::from(index.header_u32(offset_of!(Header, image_pages))) * PAGE,
            page_tables: tables.len() as u64 * PAGE,
            copies: 0,
        }
    }

    /// Each part with its name, the largest first.
    #[must_use]
    pub fn parts(&self) -> Vec<(&'static str, u64)> {
        let mut parts = vec![
            ("blocks", self.blocks),
            ("directory", self.directory),
            ("paths", self.paths),
            ("counters", self.counters),
            ("peak", self.peak),
            ("descriptions", self.descriptions),
            ("trampolines", self.trampolines),
            ("runtime (as mapped)", self.runtime),
            ("images (files, as mapped)", self.images),
            ("page tables", self.page_tables),
            ("copies of the highest point", self.copies),
        ];
        parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        parts
    }
}
