//! *Who mapped this, and was all of it seen?*
//!
//! What is mapped is taken from the kernel. The index says of each page along which path it was mapped, and how, as far as calls
//! were seen ([`pointee_index::pages`]); where both disagree, something mapped, unmapped or protected it unseen.

use super::{Kind, Space, What};
use crate::process::Path;
use pointee_index::layout::PAGE;
use pointee_index::pages::PageWord;
use pointee_model::addr::RunAddr;
use serde::Serialize;

/// Who asked for a mapping.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[allow(missing_docs)]
pub struct Mapper {
    /// The function that called, as far as it has a name; `null` for an allocator's own call.
    pub function: Option<String>,
    /// File name of the module that it lies in, or of the allocator's.
    pub module: String,
    /// What was called: `mmap of libc.so.6`.
    pub called: String,
}

impl Mapper {
    /// In words: `reserve_memory in libjvm.so`.
    #[must_use]
    pub fn in_words(&self) -> String {
        match &self.function {
            Some(function) => format!("{function} in {}", self.module),
            None => self.module.clone(),
        }
    }
}

/// Pages, and how many of them are as seen calls left them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct PagesSeen {
    pub pages: u64,
    pub as_seen: u64,
}

impl Space<'_> {
    /// Who mapped the page that holds `address`; `None` if that was not seen.
    #[must_use]
    pub fn mapper_of(&self, address: RunAddr) -> Option<Mapper> {
        let mut word = PageWord::NONE;
        let page = address.0 & !(PAGE - 1);
        self.index?
            .each_page_seen(page, page + PAGE, |_, _, found| word = found);
        let process = self.resolver().process();
        let path: Path = process.path_along(word.origin())?;
        let site = self.resolver().resolve(&path);
        let module_of = |number: u32| process.modules.get(number as usize);
        let named = |number: u32| module_of(number).map(|module| module.name().to_owned());
        if path.frames.is_empty() {
            let hook = process.hook_of_root(path.root)?;
            return Some(Mapper {
                function: None,
                module: format!("an allocator in {}", named(hook.module)?),
                called: site.entry,
            });
        }
        let function = site.position.place.function.clone();
        let module = site.module.and_then(named);
        Some(Mapper {
            function,
            module: module.unwrap_or_else(|| "code of no file".to_owned()),
            called: site.entry,
        })
    }

    /// How much of mapping `number` is as calls that were seen left it; `None` for what the process does not map by calls: its first stack, the
    /// kernel's own pages, and Pointee's.
    #[must_use]
    pub fn pages_seen(&self, number: usize) -> Option<PagesSeen> {
        let index = self.index?;
        let mapping = self.layout().mappings.get(number)?;
        let is_kernels = mapping.path.starts_with("[stack") || mapping.path.starts_with("[v");
        if is_kernels || self.is_pointees(number) {
            return None;
        }
        let has = |place: usize, letter: u8, bit: u32| {
            let found = mapping.permissions.as_bytes().get(place) == Some(&letter);
            if found { bit } else { 0 }
        };
        let protection = has(0, b'r', 1) | has(1, b'w', 2) | has(2, b'x', 4);
        let is_shared = has(3, b's', 1) != 0;
        let is = PageWord::mapped(protection, is_shared, mapping.inode != 0, 0);
        let mut seen = PagesSeen::default();
        let mut from = mapping.start.0;
        let own = self.pointees_own(number);
        let own = own.iter().map(|leaf| (leaf.span.start.0, leaf.span.end.0));
        for (start, end) in own.chain([(mapping.end.0, mapping.end.0)]) {
            index.each_page_seen(from, start, |_, pages, word| {
                seen.pages += pages;
                seen.as_seen += if word.agrees(is) { pages } else { 0 };
            });
            from = end;
        }
        Some(seen)
    }

    /// Whether a leaf is memory of which nothing else is known than who mapped it.
    #[must_use]
    pub fn is_known_by_mapper_only(kind: Kind, what: &What<'_>) -> bool {
        matches!(what, What::Mapping)
            && matches!(kind, Kind::Anonymous | Kind::Reserved | Kind::Hole)
    }
}
