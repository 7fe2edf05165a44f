//! *How are sparse pages kept in a snapshot?*
//!
//! Both the index's region and a process's heap are a few pages out of a large address space. They
//! are stored in groups of neighbouring pages, each compressed (LZ4) on its own, so that one
//! question unpacks one group:
//!
//! ```text
//!   u64 number of groups
//!   group[n]     u64 offset of its bytes, u32 compressed length, u32 number of pages
//!   u64 address[pages]   of all groups, in order, multiples of 4096
//!   bytes        compressed groups
//! ```
//!
//! Invariants: a group has at most [`GROUP`] pages, so a hostile file can make a reader unpack 1 MiB at a
//! time and no more; the tables are checked when opened; a group that does not unpack reads as "not there".

use pointee_index::Memory;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

const PAGE: u64 = pointee_index::layout::PAGE;
/// Pages in a group, at most.
pub const GROUP: usize = 256;
/// Bytes of a group's record.
const RECORD: usize = 16;
/// Unpacked groups that are kept.
const KEPT: usize = 32;

/// Collects pages, in order of address.
#[derive(Debug, Default)]
pub struct PageWriter {
    records: Vec<u8>,
    addresses: Vec<u8>,
    bytes: Vec<u8>,
    raw: Vec<u8>,
}

impl PageWriter {
    /// Adds the page at `address`, above all added before.
    pub fn add(&mut self, address: u64, page: &[u8; PAGE as usize]) {
        self.addresses.extend_from_slice(&address.to_le_bytes());
        self.raw.extend_from_slice(page);
        if self.raw.len() == GROUP * PAGE as usize {
            self.finish_group();
        }
    }

    fn finish_group(&mut self) {
        if self.raw.is_empty() {
            return;
        }
        let packed = lz4_flex::block::compress(&self.raw);
        let pages = (self.raw.len() / PAGE as usize) as u32;
        self.records
            .extend_from_slice(&(self.bytes.len() as u64).to_le_bytes());
        self.records
            .extend_from_slice(&(packed.len() as u32).to_le_bytes());
        self.records.extend_from_slice(&pages.to_le_bytes());
        self.bytes.extend_from_slice(&packed);
        self.raw.clear();
    }

    /// The section's bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.finish_group();
        let groups = (self.records.len() / RECORD) as u64;
        let mut section = groups.to_le_bytes().to_vec();
        section.append(&mut self.records);
        section.append(&mut self.addresses);
        section.append(&mut self.bytes);
        section
    }
}

#[derive(Debug)]
struct Group {
    /// Index of its first page in `addresses`.
    first: usize,
    pages: usize,
    start: usize,
    end: usize,
}

/// Pages of a snapshot, unpacked on demand.
#[derive(Debug)]
pub struct SavedPages {
    file: Arc<[u8]>,
    groups: Vec<Group>,
    addresses: Vec<u64>,
    kept: RefCell<Vec<(usize, Rc<[u8]>)>>,
}

impl SavedPages {
    /// Checks the tables of the section at `range` of `file`; `None` if they are damaged.
    #[must_use]
    pub fn open(file: Arc<[u8]>, range: std::ops::Range<usize>) -> Option<Self> {
        let section = file.get(range.clone())?;
        let count = usize::try_from(u64_at(section, 0)?).ok()?;
        let records = section.get(8..8usize.checked_add(count.checked_mul(RECORD)?)?)?;
        let mut pages = 0usize;
        let mut groups = Vec::with_capacity(count);
        for record in records.chunks_exact(RECORD) {
            let len = u32_at(record, 8)? as usize;
            let held = u32_at(record, 12)? as usize;
            if held == 0 || held > GROUP {
                return None;
            }
            let start = usize::try_from(u64_at(record, 0)?).ok()?;
            let end = start.checked_add(len)?;
            groups.push(Group {
                first: pages,
                pages: held,
                start,
                end,
            });
            pages = pages.checked_add(held)?;
        }
        let table = 8 + records.len();
        let data = table.checked_add(pages.checked_mul(8)?)?;
        let addresses: Vec<u64> = section
            .get(table..data)?
            .chunks_exact(8)
            .filter_map(|bytes| u64_at(bytes, 0))
            .collect();
        let ordered = addresses.windows(2).all(|pair| pair[0] < pair[1]);
        if !ordered || addresses.iter().any(|address| address % PAGE != 0) {
            return None;
        }
        let room = section.len() - data;
        for group in &mut groups {
            if group.end > room {
                return None;
            }
            group.start += range.start + data;
            group.end += range.start + data;
        }
        Some(Self {
            file,
            groups,
            addresses,
            kept: RefCell::new(Vec::new()),
        })
    }

    fn group(&self, number: usize) -> Option<Rc<[u8]>> {
        let mut kept = self.kept.borrow_mut();
        if let Some(at) = kept.iter().position(|(held, _)| *held == number) {
            // The one used last goes to the end; the one not used for longest is dropped first.
            let entry = kept.remove(at);
            let bytes = entry.1.clone();
            kept.push(entry);
            return Some(bytes);
        }
        let group = self.groups.get(number)?;
        let packed = self.file.get(group.start..group.end)?;
        let len = group.pages * PAGE as usize;
        let bytes = lz4_flex::block::decompress(packed, len).ok()?;
        if bytes.len() != len {
            return None;
        }
        let bytes: Rc<[u8]> = bytes.into();
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push((number, bytes.clone()));
        Some(bytes)
    }

    /// Fills `buffer` from `address` on; `false` if any of its pages was not saved.
    #[must_use]
    pub fn read_saved(&self, address: u64, buffer: &mut [u8]) -> bool {
        self.fill(address, buffer, false)
    }

    fn fill(&self, mut address: u64, buffer: &mut [u8], zero_holes: bool) -> bool {
        let mut rest = buffer;
        while !rest.is_empty() {
            let inside = (address % PAGE) as usize;
            let len = rest.len().min(PAGE as usize - inside);
            let (part, tail) = rest.split_at_mut(len);
            match self.addresses.binary_search(&(address - inside as u64)) {
                Err(_) if zero_holes => part.fill(0),
                Err(_) => return false,
                Ok(page) => {
                    let number = self.groups.partition_point(|group| group.first <= page) - 1;
                    let Some(bytes) = self.group(number) else {
                        return false;
                    };
                    let at = (page - self.groups[number].first) * PAGE as usize + inside;
                    part.copy_from_slice(&bytes[at..at + len]);
                }
            }
            let Some(next) = address.checked_add(len as u64) else {
                return false;
            };
            address = next;
            rest = tail;
        }
        true
    }
}

/// As a region: pages that were never written read as zeros.
impl Memory for SavedPages {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.fill(offset, buffer, true)
    }

    fn next_touched(&self, offset: u64) -> Option<u64> {
        let page = offset / PAGE * PAGE;
        let at = self.addresses.partition_point(|held| *held < page);
        self.addresses.get(at).map(|held| offset.max(*held))
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}
