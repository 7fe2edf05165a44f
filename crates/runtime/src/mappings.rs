//! *What is mapped where, and who mapped it?* — the first by `/proc/self/maps`, read anew for each question; the second noted as it happens.
//!
//! The kernel alone knows what is mapped: stacks grow, other calls than those that are hooked map and unmap. So nothing here answers
//! in its place, but that its list is remembered as long as no call can have changed it ([`list`]). What calls were seen to do is kept beside it,
//! page by page ([`pointee_index::pages`]), and where both say different things, something was not seen.

pub(crate) mod list;

use crate::hooks::is_filtered;
use crate::pools;
use crate::region::{Region, region};
use crate::sys;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use pointee_index::counters::Thread;
use pointee_index::layout::PAGE;
use pointee_index::pages::PageWord;

/// A call that changes what is mapped, or what it is used for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Map,
    Unmap,
    Protect,
    Remap,
    Attach,
    /// `brk`.
    Break,
    /// `sigaltstack`.
    SignalStack,
}

const EXECUTABLE: usize = 4;
const SHARED: usize = 1;
const ANONYMOUS: usize = 0x20;
/// Of `mremap`: the old pages stay mapped.
const DONT_UNMAP: usize = 4;

/// Whole pages: the address, and the end of `len` bytes from there on.
fn pages(start: usize, len: usize) -> (u64, u64) {
    let start = start as u64;
    (
        start,
        start.saturating_add(len as u64).next_multiple_of(PAGE),
    )
}

/// Notes what a call is about to undo, while nobody else can be given the same pages. What [`after`] has to know of them.
pub(crate) fn before(call: Call, arguments: &[usize; 6], thread: &Thread) -> PageWord {
    let [at, len, _, flags, ..] = *arguments;
    let region = region();
    if !(at as u64).is_multiple_of(PAGE) || len == 0 {
        // Refused, or of no pages.
        return PageWord::NONE;
    }
    let word = region.pages.at(at as u64);
    match call {
        Call::Unmap => give_back(region, thread, at, len),
        // What is moved, or cut off.
        Call::Remap if flags & DONT_UNMAP == 0 => {
            let (start, end) = pages(at, len);
            region.pages.set(start, end, PageWord::NONE);
        }
        Call::Remap
        | Call::Map
        | Call::Protect
        | Call::Attach
        | Call::Break
        | Call::SignalStack => {}
    }
    word
}

fn give_back(region: &Region, thread: &Thread, at: usize, len: usize) {
    let (start, end) = pages(at, len);
    region.pages.set(start, end, PageWord::NONE);
    // Of reserved room without end only the chunks are looked at that have tables.
    if region.nested.any() {
        pools::empty(region, thread, start, end - start);
    }
}

/// A call that was made.
pub(crate) struct Made<'a> {
    pub(crate) call: Call,
    pub(crate) arguments: &'a [usize; 6],
    /// As libc returns it: the last address for a failure.
    pub(crate) result: usize,
    /// What [`before`] said.
    pub(crate) before: PageWord,
    /// Whether a function of a pool made it, and no allocator that it called.
    pub(crate) is_pools: bool,
}

/// Notes what a call made, along the path `origin`.
pub(crate) fn after(made: &Made<'_>, origin: u32) {
    let Made {
        call,
        arguments,
        result,
        before,
        is_pools,
    } = *made;
    let [at, len, third, flags, file, _] = *arguments;
    let written = &region().pages;
    // What `mmap` and its like return where they fail is the last address.
    let is_made = result != usize::MAX;
    match call {
        Call::Map if is_made => {
            let is_file = flags & ANONYMOUS == 0 && file as i32 >= 0;
            let is_shared = flags & SHARED != 0;
            // Shared memory of nobody is a file of the kernel's own.
            let word = PageWord::mapped(third as u32, is_shared, is_file || is_shared, origin);
            let (start, end) = pages(result, len);
            if is_pools && !word.is_file() {
                written.set(start, end, word.by_pool());
                pools::mapped(region(), start, end);
            } else {
                written.set(start, end, word);
            }
            if third & EXECUTABLE != 0 && !is_file {
                list::is_incomplete();
            }
        }
        Call::Protect if result as i32 == 0 => {
            if third & EXECUTABLE != 0 && !before.is_file() {
                list::is_incomplete();
            }
            let (start, end) = pages(at, len);
            written.protect(start, end, third as u32);
        }
        // It failed at the first hole, or at the end of what the kernel can tell apart: what lies before is changed.
        Call::Protect | Call::Unmap if result as i32 != 0 => {
            let (start, end) = pages(at, len);
            restate(start, end);
        }
        Call::Remap if is_made => {
            let (start, end) = pages(result, third);
            written.set(start, end, before);
        }
        Call::Remap if flags & DONT_UNMAP == 0 => {
            // It failed: what was there is there.
            let (start, end) = pages(at, len);
            written.set(start, end, before);
        }
        // How much that is, the kernel knows.
        Call::Attach if is_made => {
            if let Some(mapping) = read_at(result as u64) {
                let word = PageWord::mapped(mapping.protection, true, true, origin);
                written.set(mapping.start, mapping.end, word);
            }
        }
        _ => {}
    }
}

/// Where the heap ended last.
static HEAP_END: AtomicU64 = AtomicU64::new(0);

/// The heap (`brk`) ends at `end` now.
pub(crate) fn heap_ends_at(end: u64) {
    if end == 0 {
        // A question.
        return;
    }
    let before = HEAP_END.swap(end, Relaxed);
    if before == 0 {
        return;
    }
    let (from, to) = (before.next_multiple_of(PAGE), end.next_multiple_of(PAGE));
    if from < to {
        let word = PageWord::mapped(READ_WRITE, false, false, 0);
        region().pages.set(from, to, word);
    } else {
        region().pages.set(to, from, PageWord::NONE);
    }
}

/// `PROT_READ | PROT_WRITE`.
const READ_WRITE: u32 = 3;

/// Takes over how the pages from `start` up to `end` are mapped now: by the kernel, the dynamic linker, or by a call that did half of what it was to do.
pub(crate) fn restate(start: u64, end: u64) {
    let written = &region().pages;
    each(|mapping| {
        let (from, to) = (mapping.start.max(start), mapping.end.min(end));
        if from < to {
            written.restate(from, to, mapping.word());
        }
        mapping.end < end
    });
}

/// Takes over what was mapped before there were hooks.
pub(crate) fn take_over() {
    HEAP_END.store(sys::heap_end(), Relaxed);
    restate(0, u64::MAX);
}

/// `struct pointee_mapping` of `pointee.h`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Mapping {
    pub(crate) start: u64,
    pub(crate) end: u64,
    offset: u64,
    inode: u64,
    /// `PROT_*`.
    protection: u32,
    is_shared: u32,
}

impl Mapping {
    /// As pages' words say it.
    fn word(&self) -> PageWord {
        PageWord::mapped(self.protection, self.is_shared != 0, self.inode != 0, 0)
    }
}

/// The mapping that holds `address`: from the list as it was read last, if that is current. No system call is made once the process has put itself under a filter of them.
pub(crate) fn at(address: u64) -> Option<Mapping> {
    list::at(address).or_else(|| read_at(address))
}

fn read_at(address: u64) -> Option<Mapping> {
    let mut found = None;
    each(|mapping| {
        if (mapping.start..mapping.end).contains(&address) {
            found = Some(*mapping);
        }
        mapping.end <= address
    });
    found
}

/// Calls `each` with every mapping, in order of address, until it says `false`.
fn each(mut each: impl FnMut(&Mapping) -> bool) {
    if is_filtered() {
        return;
    }
    let Ok(file) = usize::try_from(sys::open(c"/proc/self/maps", false)) else {
        return;
    };
    read_all(file, &mut each);
    sys::close(file);
}

fn read_all(file: usize, each: &mut impl FnMut(&Mapping) -> bool) -> Option<()> {
    let mut buffer = [0; 1024];
    let (mut filled, mut read) = (0, 0);
    let mut is_rest = false;
    loop {
        let got = usize::try_from(sys::pread(file, &mut buffer[filled..], read)).ok()?;
        read += got;
        filled += got;
        let mut start = 0;
        while let Some(len) = buffer[start..filled].iter().position(|byte| *byte == b'\n') {
            let mapping = parse(&buffer[start..start + len]);
            if !core::mem::take(&mut is_rest)
                && let Some(mapping) = mapping
                && !each(&mapping)
            {
                return None;
            }
            start += len + 1;
        }
        if got == 0 {
            return None;
        }
        if start == 0 && filled == buffer.len() {
            // A long path: the line's beginning is enough, its rest is passed over.
            let mapping = parse(&buffer).filter(|_| !is_rest);
            if let Some(mapping) = mapping
                && !each(&mapping)
            {
                return None;
            }
            is_rest = true;
            start = filled;
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
    }
}

/// `start-end rwxp offset major:minor inode path`
fn parse(line: &[u8]) -> Option<Mapping> {
    let mut words = line
        .split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty());
    let range = words.next()?;
    let dash = range.iter().position(|byte| *byte == b'-')?;
    let [read, write, execute, share] = *words.next()?.first_chunk::<4>()?;
    let offset = number(words.next()?, 16)?;
    let inode = number(words.nth(1)?, 10)?;
    let bit = |byte, letter, bit| if byte == letter { bit } else { 0 };
    Some(Mapping {
        start: number(&range[..dash], 16)?,
        end: number(&range[dash + 1..], 16)?,
        offset,
        inode,
        protection: bit(read, b'r', 1) | bit(write, b'w', 2) | bit(execute, b'x', 4),
        is_shared: u32::from(share == b's'),
    })
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(digits).ok()?, radix).ok()
}
