//! *What is in a snapshot?* — all that is needed to answer later, on another machine.
//!
//! ```text
//!   0   magic, version, number of sections
//!   16  section[n]    kind u32, CRC-32 u32, offset u64, length u64
//!   …   INFO          JSON: process, end, which images belong to which module
//!       REGION        the written pages of the index             (pages)
//!       IMAGE…        metadata images, in the order INFO names them, 8-byte aligned
//!       LAYOUT        JSON: mappings, loaded files, threads with their frames; not of a process that is gone
//!       CONTENTS      the program's memory, if asked for         (pages)
//! ```
//!
//! A snapshot is a file that anyone can write: everything is checked when it is opened, and what
//! is wrong says where.

use crate::images::{AlignedBytes, ImageBytes, Images};
use crate::memory::{ProcessMemory, Region};
use crate::pages::{PageWriter, SavedPages};
use crate::process::ProcessData;
use crate::report::Circumstances;
use crate::running::{self, Mapping};
use crate::space::{Layout, Object, Span};
use pointee_index::read::Block;
use pointee_index::{Index, Memory};
use pointee_model::addr::{Alleged, RunAddr};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// First bytes of a snapshot.
pub const MAGIC: [u8; 8] = *b"PTEESNP\0";
/// Grows with every change of the layout.
pub const VERSION: u32 = 2;

const HEAD: usize = 16;
const RECORD: usize = 24;
const PAGE: u64 = pointee_index::layout::PAGE;

mod kind {
    pub(super) const INFO: u32 = 1;
    pub(super) const REGION: u32 = 2;
    pub(super) const IMAGE: u32 = 3;
    pub(super) const CONTENTS: u32 = 4;
    pub(super) const LAYOUT: u32 = 5;
}

/// What a snapshot says beside the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Of the process, when the snapshot was made.
    #[serde(flatten)]
    pub circumstances: Circumstances,
    /// Told as at the highest point of the heap.
    pub at_peak: bool,
    /// Whether its blocks are those of the highest point, too; else they are those of the end.
    #[serde(default)]
    pub blocks_at_peak: bool,
    /// Why there are no contents, if they were asked for.
    pub no_contents: Option<String>,
    /// For each module the place of its image among the image sections.
    pub images: Vec<Option<u32>>,
}

/// Why a file is no snapshot that can be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("not a snapshot")]
    NotASnapshot,
    /// It was written by another version.
    #[error("snapshot of version {0}, this Pointee reads {VERSION}")]
    OtherVersion(u32),
    /// A part of it is damaged.
    #[error("damaged at byte {at:#x}: {what}")]
    Damaged {
        /// Where.
        at: usize,
        /// What was expected.
        what: &'static str,
    },
    /// The index in it cannot be read.
    #[error("index: {0}")]
    Index(pointee_index::read::OpenError),
}

/// An open snapshot.
pub struct Snapshot {
    /// The process.
    pub info: Info,
    /// Its index.
    pub index: Index<Region>,
    /// Its images, by module; modules are numbered with those of the layout.
    pub images: Images,
    /// Its address space; nothing in it if that was not saved.
    pub layout: Layout,
    /// Its memory, if that was saved.
    pub contents: Option<SavedPages>,
}

/// Whose bytes are saved as the heap's contents.
#[derive(Debug)]
pub enum Heap<'a> {
    /// Not asked for.
    Unwanted,
    /// Asked for, but the process is gone.
    Gone,
    /// Read from the process.
    Of(&'a ProcessMemory),
}

/// Writes a snapshot. `process` has the modules of `layout` ([`Layout::join`]).
///
/// # Errors
/// When `out` cannot be written.
pub fn write(
    out: &mut dyn Write,
    mut info: Info,
    index: &Index<Region>,
    process: &ProcessData,
    images: &Images,
    layout: &Layout,
    heap: &Heap<'_>,
) -> io::Result<()> {
    let mut saved: Vec<&ImageBytes> = Vec::new();
    let mut known: HashMap<(&str, &[u8]), u32> = HashMap::new();
    info.images = process
        .modules
        .iter()
        .zip(0..)
        .map(|(module, number)| {
            let bytes = images.bytes(number)?;
            let key = (module.path.as_str(), module.build_id.as_slice());
            Some(*known.entry(key).or_insert_with(|| {
                saved.push(bytes);
                saved.len() as u32 - 1
            }))
        })
        .collect();
    let contents = match heap {
        Heap::Unwanted => None,
        Heap::Gone => {
            info.no_contents = Some("the process had ended, and its heap with it".to_owned());
            None
        }
        Heap::Of(memory) => Some(contents_pages(index, layout, memory)),
    };
    let info = serde_json::to_vec(&info)?;
    let space = match layout.mappings.is_empty() {
        true => None,
        false => Some(serde_json::to_vec(layout)?),
    };
    let region = region_pages(index);
    let mut sections: Vec<(u32, &[u8])> = vec![(kind::INFO, &info), (kind::REGION, &region)];
    sections.extend(saved.iter().map(|bytes| (kind::IMAGE, (***bytes).as_ref())));
    sections.extend(space.as_deref().map(|bytes| (kind::LAYOUT, bytes)));
    sections.extend(contents.as_deref().map(|bytes| (kind::CONTENTS, bytes)));

    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&(sections.len() as u32).to_le_bytes());
    let mut at = HEAD + sections.len() * RECORD;
    for (kind, bytes) in &sections {
        head.extend_from_slice(&kind.to_le_bytes());
        head.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
        head.extend_from_slice(&(at as u64).to_le_bytes());
        head.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        at += bytes.len().next_multiple_of(8);
    }
    out.write_all(&head)?;
    for (_, bytes) in &sections {
        out.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(8) - bytes.len();
        out.write_all(&[0; 8][..padding])?;
    }
    out.flush()
}

fn region_pages(index: &Index<Region>) -> Vec<u8> {
    let mut writer = PageWriter::default();
    let mut page = [0; PAGE as usize];
    let region = index.memory();
    region.each_touched(0..index.layout().len, |at| {
        // A page of zeros reads the same as one that is not there.
        if region.read(at, &mut page) && page.iter().any(|byte| *byte != 0) {
            writer.add(at, &page);
        }
    });
    writer.finish()
}

/// Largest mapping of a file that is saved for the literals and tables in it.
const LARGEST_READ_ONLY: u64 = 8 << 20;

/// What a question about any address may want to read, but for blocks: variables, stacks, literals.
fn claimed_by(layout: &Layout) -> impl Iterator<Item = Range<u64>> {
    let of_object = |mapping: &Mapping| {
        let inside = |object: &Object| object.span.holds(mapping.start);
        layout.objects.iter().any(inside)
    };
    let wanted = move |mapping: &&Mapping| {
        let len = mapping.end.0 - mapping.start.0;
        let read_only = mapping.permissions.starts_with("r--") && len <= LARGEST_READ_ONLY;
        let on_start = mapping.path.starts_with('[');
        let writable = mapping.permissions.starts_with("rw-p");
        (read_only && of_object(mapping)) || (writable && (of_object(mapping) || on_start))
    };
    let in_files = layout.mappings.iter().filter(wanted);
    let stacks = layout.threads.iter().flat_map(|thread| {
        let stacks = thread.stack.into_iter().chain(thread.signal_stack);
        stacks.map(|stack| {
            let mut starts = thread.frames.iter().map(|frame| frame.span.start);
            let first = starts.find(|start| stack.holds(*start));
            first.unwrap_or(stack.start).0 / PAGE * PAGE..stack.end.0
        })
    });
    let areas = layout.threads.iter().flat_map(|thread| {
        let blocks = thread.blocks.iter().map(|(_, span)| *span);
        let control = thread.control_block.map(|start| Span {
            start,
            end: start.plus(PAGE),
        });
        blocks.chain(control)
    });
    let areas = areas.map(|span| span.start.0 / PAGE * PAGE..span.end.0.next_multiple_of(PAGE));
    in_files
        .map(|mapping| mapping.start.0..mapping.end.0)
        .chain(stacks)
        .chain(areas)
}

/// The pages that live blocks lie on, and what the layout names. A damaged index may claim blocks of any size, over each other:
/// of what it claims, that which is mapped is saved, and once.
fn contents_pages(index: &Index<Region>, layout: &Layout, memory: &ProcessMemory) -> Vec<u8> {
    let mut claimed: Vec<Range<u64>> = claimed_by(layout).collect();
    let mut claim = |block: Block| {
        let start = block.base / PAGE * PAGE;
        let end = block.base.saturating_add(block.size.max(1)).min(1 << 47);
        // Blocks come in order of address, nearly: neighbours are one range.
        match claimed.last_mut() {
            Some(last) if (last.start..=last.end.next_multiple_of(PAGE)).contains(&start) => {
                last.end = last.end.max(end);
            }
            _ => claimed.push(start..end),
        }
    };
    index.each_block(&mut claim);
    // Arenas of pools may be mappings, which no block covers.
    index.each_nested_block(&mut claim);
    claimed.sort_unstable_by_key(|range| range.start);
    let mapped: Vec<Range<u64>> = running::mappings(memory.pid())
        .unwrap_or_default()
        .iter()
        .filter(|mapping| mapping.permissions.starts_with('r'))
        .map(|mapping| mapping.start.0..mapping.end.0)
        .collect();
    let mut writer = PageWriter::default();
    let mut page = [0; PAGE as usize];
    let mut at = 0;
    for claim in claimed {
        at = claim.start.max(at);
        let first = mapped.partition_point(|mapping| mapping.end <= at);
        for mapping in &mapped[first..] {
            if mapping.start >= claim.end {
                break;
            }
            at = at.max(mapping.start);
            while at < claim.end.min(mapping.end) {
                if memory.read_at(RunAddr(at), &mut page) {
                    writer.add(at, &page);
                }
                at += PAGE;
            }
        }
    }
    writer.finish()
}

impl Snapshot {
    /// Opens the snapshot at `path`.
    ///
    /// # Errors
    /// [`SnapshotError`] when it is none, or a damaged one.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        Self::from_bytes(std::fs::read(path)?.into())
    }

    /// Opens a snapshot in memory.
    ///
    /// # Errors
    /// As [`Snapshot::open`].
    pub fn from_bytes(file: Arc<[u8]>) -> Result<Self, SnapshotError> {
        let sections = sections(&file)?;
        let of_kind = |wanted: u32| {
            sections
                .iter()
                .filter(move |(kind, _)| *kind == wanted)
                .map(|(_, range)| range.clone())
        };
        let one = |wanted, what| {
            of_kind(wanted)
                .next()
                .ok_or(SnapshotError::Damaged { at: HEAD, what })
        };
        let range = one(kind::INFO, "a section with the process")?;
        let at = range.start;
        let info: Info =
            serde_json::from_slice(&file[range]).map_err(|_| SnapshotError::Damaged {
                at,
                what: "the process, as JSON",
            })?;
        let range = one(kind::REGION, "a section with the index")?;
        let at = range.start;
        let region = SavedPages::open(file.clone(), range).ok_or(SnapshotError::Damaged {
            at,
            what: "a table of pages",
        })?;
        let index = Index::open(Region::Saved(region)).map_err(SnapshotError::Index)?;
        let images: Vec<ImageBytes> = of_kind(kind::IMAGE)
            .map(|range| Arc::new(AlignedBytes::copy_of(&file[range])) as ImageBytes)
            .collect();
        let layout = match of_kind(kind::LAYOUT).next() {
            None => Layout::default(),
            Some(range) => {
                let at = range.start;
                let layout: Option<Layout> = serde_json::from_slice(&file[range]).ok();
                let sound = layout.filter(Layout::is_sound);
                sound.ok_or(SnapshotError::Damaged {
                    at,
                    what: "the address space, as JSON",
                })?
            }
        };
        let by_module = info
            .images
            .iter()
            .take(index.modules() as usize + layout.objects.len())
            .map(|place| images.get((*place)? as usize).cloned());
        let images = Images::new(by_module.collect());
        let contents = match of_kind(kind::CONTENTS).next() {
            None => None,
            Some(range) => {
                let at = range.start;
                let pages = SavedPages::open(file.clone(), range);
                Some(pages.ok_or(SnapshotError::Damaged {
                    at,
                    what: "a table of pages",
                })?)
            }
        };
        Ok(Self {
            info,
            index,
            images,
            layout,
            contents,
        })
    }
}

/// The sections with where they lie, all within the file and undamaged.
fn sections(file: &[u8]) -> Result<Vec<(u32, Range<usize>)>, SnapshotError> {
    let u32_at = |at: usize| {
        let bytes = file.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let usize_at = |at: usize| {
        let bytes = file.get(at..at + 8)?;
        usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if file.get(..8) != Some(&MAGIC) {
        return Err(SnapshotError::NotASnapshot);
    }
    let short = |at| SnapshotError::Damaged {
        at,
        what: "more bytes",
    };
    let version = u32_at(8).ok_or(short(8))?;
    if version != VERSION {
        return Err(SnapshotError::OtherVersion(version));
    }
    let count = u32_at(12).ok_or(short(12))? as usize;
    let mut sections = Vec::new();
    // Sections that overlap could make a small file take long to check.
    let mut room = file.len();
    for number in 0..count {
        let at = HEAD + number * RECORD;
        let record = || {
            Some((
                u32_at(at)?,
                u32_at(at + 4)?,
                usize_at(at + 8)?,
                usize_at(at + 16)?,
            ))
        };
        let (kind, sum, start, len) = record().ok_or(short(at))?;
        let range = start..start.checked_add(len).ok_or(short(at))?;
        let bytes = file.get(range.clone()).ok_or(short(at))?;
        room = room.checked_sub(len).ok_or(short(at))?;
        if crc32fast::hash(bytes) != sum {
            return Err(SnapshotError::Damaged {
                at: start,
                what: "a section whose checksum is right",
            });
        }
        sections.push((kind, range));
    }
    Ok(sections)
}

impl crate::value::Contents for SavedPages {
    fn read(&self, address: Alleged, buffer: &mut [u8]) -> bool {
        self.read_saved(address.0, buffer)
    }
}

impl crate::value::Contents for ProcessMemory {
    fn read(&self, address: Alleged, buffer: &mut [u8]) -> bool {
        self.read_at(RunAddr(address.0), buffer)
    }
}
