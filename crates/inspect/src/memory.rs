//! *Where are the bytes of a region?* — in a file, in another process, in a snapshot.
//!
//! A region is sparse: gigabytes of address space of which a few pages were ever written. Each kind of
//! memory knows which ([`Memory::next_touched`]), so that a reader passes over the rest. That matters
//! beyond speed: reading a hole of a shared mapping would make the kernel allocate it.

use crate::at_peak::RegionAtPeak;
use crate::pages::SavedPages;
use pointee_index::Memory;
use pointee_model::addr::RunAddr;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const PAGE: u64 = pointee_index::layout::PAGE;

/// A region wherever it lies.
#[derive(Debug)]
pub enum Region {
    /// In a file, usually the memfd that the process shares with its supervisor.
    File(RegionFile),
    /// In such a file, with the blocks of the highest point.
    AtPeak(RegionAtPeak),
    /// In another process's memory.
    Process(ProcessRegion),
    /// In a snapshot.
    Saved(SavedPages),
}

impl Memory for Region {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        match self {
            Self::File(file) => file.read(offset, buffer),
            Self::AtPeak(region) => region.read(offset, buffer),
            Self::Process(process) => process.read(offset, buffer),
            Self::Saved(pages) => pages.read(offset, buffer),
        }
    }

    fn next_touched(&self, offset: u64) -> Option<u64> {
        match self {
            Self::File(file) => file.next_touched(offset),
            Self::AtPeak(region) => region.next_touched(offset),
            Self::Process(process) => process.next_touched(offset),
            Self::Saved(pages) => pages.next_touched(offset),
        }
    }
}

impl Region {
    /// Calls `each` with the offset of every page of `range` that was written, in order. Takes as long as
    /// there are such pages, not as long as the range.
    pub fn each_touched(&self, range: Range<u64>, mut each: impl FnMut(u64)) {
        let mut at = range.start;
        while let Some(found) = self.next_touched(at).filter(|found| *found < range.end) {
            let page = found / PAGE * PAGE;
            each(page);
            at = page + PAGE;
        }
    }
}

/// A region in a file. Which pages were written is asked once, when it is opened.
#[derive(Debug)]
pub struct RegionFile {
    file: File,
    /// Written ranges `[start, end)`, in order.
    extents: Vec<(u64, u64)>,
}

impl RegionFile {
    /// Reads the region in `file`.
    ///
    /// # Errors
    /// When the file has no length (a pipe, a device).
    pub fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let extents = extents(&file, len);
        Ok(Self { file, extents })
    }
}

impl Memory for RegionFile {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.file.read_exact_at(buffer, offset).is_ok()
    }

    fn next_touched(&self, offset: u64) -> Option<u64> {
        let at = self.extents.partition_point(|(_, end)| *end <= offset);
        self.extents.get(at).map(|(start, _)| offset.max(*start))
    }
}

/// The data ranges of a sparse file; the whole file where the file system cannot tell.
fn extents(file: &File, len: u64) -> Vec<(u64, u64)> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < len {
        let Some(start) = seek(file, at, libc::SEEK_DATA) else {
            // ENXIO: no data from here on. Anything else: holes are not known.
            if io::Error::last_os_error().raw_os_error() != Some(libc::ENXIO) {
                return vec![(0, len)];
            }
            break;
        };
        let end = seek(file, start, libc::SEEK_HOLE).unwrap_or(len);
        extents.push((start, end));
        if end <= at {
            break;
        }
        at = end;
    }
    extents
}

#[allow(unsafe_code)] // lseek with SEEK_DATA has no face in std.
fn seek(file: &File, at: u64, whence: libc::c_int) -> Option<u64> {
    let at = libc::off_t::try_from(at).ok()?;
    // SAFETY: the descriptor is open; the call touches no memory.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
    u64::try_from(found).ok()
}

/// The memory of another process, addressed as the process does.
#[derive(Debug)]
pub struct ProcessMemory {
    pid: u32,
    memory: File,
    pagemap: Option<File>,
    /// Groups of the page map that were looked up, by number.
    known: RefCell<HashMap<u64, Presence>>,
}

/// Pages looked up in the page map at a time.
const GROUP: u64 = 4096;

/// Which pages of a group have contents of their own: a bit a page; `None` where none has.
type Presence = Option<Box<[u64; GROUP as usize / 64]>>;

/// Bits 63 (present) and 62 (swapped) of a page map entry (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT_OR_SWAPPED: u8 = 0b1100_0000;

impl ProcessMemory {
    /// Opens the memory of `pid`, which needs the right to trace it.
    ///
    /// # Errors
    /// When there is no such process, or it may not be read.
    pub fn open(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            memory: File::open(format!("/proc/{pid}/mem"))?,
            pagemap: File::open(format!("/proc/{pid}/pagemap")).ok(),
            known: RefCell::new(HashMap::new()),
        })
    }

    /// Whose memory it is.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Fills `buffer` from `address` on.
    #[must_use]
    pub fn read_at(&self, address: RunAddr, buffer: &mut [u8]) -> bool {
        self.memory.read_exact_at(buffer, address.0).is_ok()
    }

    /// The first address from `address` up to `end` on a page that has contents of its own; every
    /// page counts where that cannot be told.
    fn next_present(&self, address: RunAddr, end: RunAddr) -> Option<RunAddr> {
        let Some(pagemap) = &self.pagemap else {
            return (address < end).then_some(address);
        };
        let mut known = self.known.borrow_mut();
        let mut at = address;
        while at < end {
            let page = at.0 / PAGE;
            let (group, first) = (page / GROUP, page % GROUP);
            let presence = known
                .entry(group)
                .or_insert_with(|| presence(pagemap, group));
            let found = presence
                .as_ref()
                .and_then(|bits| (first..GROUP).find(|page| is_set(bits, *page)));
            if let Some(found) = found {
                let page = RunAddr((group * GROUP + found) * PAGE);
                return Some(at.max(page)).filter(|found| *found < end);
            }
            at = RunAddr((group + 1) * GROUP * PAGE);
        }
        None
    }
}

fn presence(pagemap: &File, group: u64) -> Presence {
    let mut entries = vec![0; GROUP as usize * 8];
    let complete = pagemap
        .read_exact_at(&mut entries, group * GROUP * 8)
        .is_ok();
    let mut bits = Box::new([0; GROUP as usize / 64]);
    for (page, entry) in entries.chunks_exact(8).enumerate() {
        if !complete || entry[7] & PRESENT_OR_SWAPPED != 0 {
            bits[page / 64] |= 1 << (page % 64);
        }
    }
    bits.iter().any(|word| *word != 0).then_some(bits)
}

fn is_set(bits: &[u64; GROUP as usize / 64], page: u64) -> bool {
    bits[(page / 64) as usize] >> (page % 64) & 1 != 0
}

/// A region in another process's memory.
#[derive(Debug)]
pub struct ProcessRegion {
    memory: ProcessMemory,
    base: RunAddr,
    len: u64,
}

impl ProcessRegion {
    /// The region of `len` bytes at `base`, which are mapped: searching for written pages takes
    /// time in proportion to `len`.
    #[must_use]
    pub fn new(memory: ProcessMemory, base: RunAddr, len: u64) -> Self {
        Self { memory, base, len }
    }
}

impl Memory for ProcessRegion {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let end = offset.checked_add(buffer.len() as u64);
        end.is_some_and(|end| end <= self.len)
            && self.memory.read_at(self.base.plus(offset), buffer)
    }

    fn next_touched(&self, offset: u64) -> Option<u64> {
        if offset >= self.len {
            return None;
        }
        let end = RunAddr(self.base.0.checked_add(self.len)?);
        let found = self.memory.next_present(self.base.plus(offset), end)?;
        found.offset_from(self.base)
    }
}
