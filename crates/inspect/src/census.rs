//! *What is all of this address space?* — every mapped byte under one leaf, summed by kind.

use crate::space::{Frame, Kind, Mapper, PagesSeen, Space, What};
use pointee_model::addr::LinkAddr;
use pointee_model::image::{Image, header_flags};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// Sums over an address space.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)]
pub struct Census {
    pub schema: u32,
    pub pid: u32,
    /// All mapped bytes; the sum of `kinds`.
    pub mapped_bytes: u64,
    /// Most bytes first.
    pub kinds: Vec<KindRow>,
    /// How well it is known.
    pub shares: Shares,
    /// Memory of which nothing else is known, by who mapped it; most bytes first.
    pub mapped_by: Vec<MapperRow>,
    /// Of the recorded process: pages that are as calls left them that were seen.
    pub pages: PagesSeen,
    pub mappings: Vec<MappingRow>,
    /// Threads whose frames are not all known, and why.
    pub cut_stacks: Vec<String>,
    /// Frames in code that has no name.
    pub unnamed_frames: Vec<String>,
}

/// One kind.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct KindRow {
    pub kind: &'static str,
    pub leaves: u64,
    pub bytes: u64,
}

/// Who mapped memory of which nothing else is known.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct MapperRow {
    /// `null`: that was not seen.
    pub mapper: Option<Mapper>,
    pub leaves: u64,
    pub bytes: u64,
}

/// Bytes that are known only roughly, and of how many.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)]
pub struct Shares {
    /// Of files with debug info.
    pub writable_static_bytes: u64,
    pub writable_static_bytes_by_section_only: u64,
    pub arena_bytes: u64,
    pub arena_bytes_by_mapping_only: u64,
    /// In files with debug info; the kernel's own are not counted.
    pub frames: u64,
    pub frames_without_function: u64,
    /// In files without, and in code of no file.
    pub other_frames: u64,
    pub other_frames_without_function: u64,
}

/// One mapping with what it is made of.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct MappingRow {
    pub start: String,
    pub bytes: u64,
    pub permissions: String,
    pub path: String,
    /// Who asked for its first page, if that was seen.
    pub mapped_by: Option<Mapper>,
    /// `null` for what no call maps.
    pub pages: Option<PagesSeen>,
    pub kinds: Vec<KindRow>,
}

/// Counts all of it.
#[must_use]
pub fn census(space: &Space<'_>, pid: u32) -> Census {
    let mut all = BTreeMap::new();
    let mut shares = Shares::default();
    let mut mappings = Vec::new();
    let mut mappers: HashMap<Option<Mapper>, (u64, u64)> = HashMap::new();
    let mut pages = PagesSeen::default();
    for (number, mapping) in space.layout().mappings.iter().enumerate() {
        let mut kinds = BTreeMap::new();
        for leaf in space.leaves(number) {
            let bytes = leaf.span.end.0 - leaf.span.start.0;
            count(&mut kinds, leaf.kind, bytes);
            count(&mut all, leaf.kind, bytes);
            let is_writable = mapping.permissions.starts_with("rw");
            shares.add(space, leaf.kind, &leaf.what, bytes, is_writable);
            if Space::is_known_by_mapper_only(leaf.kind, &leaf.what) {
                let mapper = space.mapper_of(leaf.span.start);
                let (leaves, sum) = mappers.entry(mapper).or_default();
                *leaves += 1;
                *sum += bytes;
            }
        }
        let seen = space.pages_seen(number);
        if let Some(seen) = seen {
            pages.pages += seen.pages;
            pages.as_seen += seen.as_seen;
        }
        mappings.push(MappingRow {
            start: mapping.start.to_string(),
            bytes: mapping.end.0 - mapping.start.0,
            permissions: mapping.permissions.clone(),
            path: mapping.path.clone(),
            mapped_by: space.mapper_of(mapping.start),
            pages: seen,
            kinds: rows(&kinds),
        });
    }
    let mut unnamed_frames = Vec::new();
    for thread in &space.layout().threads {
        // The kernel's own are known to be that.
        for (number, frame) in thread
            .frames
            .iter()
            .enumerate()
            .filter(|(_, frame)| !frame.is_signal)
        {
            let (image, link) = image_of(space, frame).unzip();
            let has_function = image
                .zip(link)
                .is_some_and(|(image, link)| image.function_at(link).is_some());
            let (frames, without) = if image.is_some_and(has_debug_info) {
                (&mut shares.frames, &mut shares.frames_without_function)
            } else {
                let without = &mut shares.other_frames_without_function;
                (&mut shares.other_frames, without)
            };
            *frames += 1;
            if !has_function {
                *without += 1;
                let code = code_of(space, frame);
                unnamed_frames.push(format!("#{number} of thread {} at {code}", thread.id));
            }
        }
    }
    let cut = space.layout().threads.iter().filter_map(|thread| {
        let reason = thread.cut.as_ref()?;
        Some(format!("thread {} {}: {reason}", thread.id, thread.name))
    });
    Census {
        schema: crate::report::SCHEMA,
        pid,
        mapped_bytes: mappings.iter().map(|mapping| mapping.bytes).sum(),
        kinds: rows(&all),
        shares,
        mapped_by: mapper_rows(mappers),
        pages,
        mappings,
        cut_stacks: cut.collect(),
        unnamed_frames,
    }
}

type Counts = BTreeMap<Kind, (u64, u64)>;

fn count(counts: &mut Counts, kind: Kind, bytes: u64) {
    let (leaves, sum) = counts.entry(kind).or_default();
    *leaves += 1;
    *sum += bytes;
}

fn rows(counts: &Counts) -> Vec<KindRow> {
    let mut rows: Vec<KindRow> = counts
        .iter()
        .map(|(kind, (leaves, bytes))| KindRow {
            kind: kind.word(),
            leaves: *leaves,
            bytes: *bytes,
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    rows
}

fn mapper_rows(mappers: HashMap<Option<Mapper>, (u64, u64)>) -> Vec<MapperRow> {
    let row = |(mapper, (leaves, bytes))| MapperRow {
        mapper,
        leaves,
        bytes,
    };
    let mut rows: Vec<MapperRow> = mappers.into_iter().map(row).collect();
    rows.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.mapper.cmp(&b.mapper)));
    rows
}

impl Shares {
    fn add(&mut self, space: &Space<'_>, kind: Kind, what: &What<'_>, bytes: u64, writable: bool) {
        match (kind, what) {
            (
                Kind::Static | Kind::Data,
                What::Variable { object, .. } | What::Section { object, .. },
            ) if writable && space.image(*object).is_some_and(has_debug_info) => {
                self.writable_static_bytes += bytes;
                if kind == Kind::Data {
                    self.writable_static_bytes_by_section_only += bytes;
                }
            }
            (
                Kind::Heap
                | Kind::Pooled
                | Kind::Slack
                | Kind::Header
                | Kind::Free
                | Kind::Cached
                | Kind::Allocator
                | Kind::Hole,
                _,
            ) => self.arena_bytes += bytes,
            (Kind::Arena, _) => {
                self.arena_bytes += bytes;
                self.arena_bytes_by_mapping_only += bytes;
            }
            _ => {}
        }
    }
}

fn has_debug_info(image: &Image<'_>) -> bool {
    image.header().flags & header_flags::HAS_DWARF != 0
}

/// The image of the file that a frame executes in, and where.
fn image_of<'a>(space: &Space<'a>, frame: &Frame) -> Option<(&'a Image<'a>, LinkAddr)> {
    let executing = frame.executing();
    let (object, record) = space.layout().object_at(executing)?;
    let image = space.image(object)?;
    Some((image, record.bias.to_link(executing)))
}

/// Where a frame executes: the file and the link-time address.
fn code_of(space: &Space<'_>, frame: &Frame) -> String {
    let executing = frame.executing();
    match space.layout().object_at(executing) {
        Some((_, object)) => format!("{}+{}", object.path, object.bias.to_link(executing)),
        None => executing.to_string(),
    }
}
