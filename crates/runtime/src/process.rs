//! *Where does one process's recording end and another's begin?* — fork and exit; exec is in [`crate::exec`].
//!
//! ```text
//!   fork, region shared    close the gate, copy what is touched into a new file, fork, open the
//!                          gate; the child maps the copy where the parent's region was
//!   fork, region private   close the gate, fork (the kernel copies), open the gate
//!   fork, tables private   both: each part as above
//!   vfork, posix_spawn     nothing: the child runs in the parent's memory
//!   clone without us       the threads' states are wiped by the kernel; the child does not record
//!   _exit                  the status is noted for whoever reads the region later
//! ```
//!
//! The gate: while it is closed no thread writes the index, so the copy is one moment's. It waits
//! for threads that are writing, never for threads inside malloc, which may
//! be waiting for the lock that glibc's fork holds.

#![allow(unsafe_code)] // Replaces the region's mapping in a forked child.

use crate::hooks::is_filtered;
use crate::peak;
use crate::region::{Region, announce, disable, is_disabled, new_file, region};
use crate::sys::{self, map};
use crate::threads::{self, State, WRITING};
use core::hint::spin_loop;
use core::ptr;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use pointee_index::counters::{Counts, Live, Thread};
use pointee_index::handoff::key;
use pointee_index::layout::{CHUNKS, LEVELS, PAGE, TABLE_BYTES, exit_kind, unseen};
use pointee_index::origins::Node;
use pointee_index::pages::PAGE_TABLE_BYTES;
use pointee_index::records::{Hook, Module};
use pointee_index::signal_stacks::SignalStack;

/// Lets threads be made to notice a closed gate.
pub(crate) fn set_up() {
    const REGISTER_PRIVATE_EXPEDITED: usize = 1 << 4;
    sys::membarrier(REGISTER_PRIVATE_EXPEDITED, 0, 0);
}

/// While nonzero, no thread writes to the index: a fork is copying it.
pub(crate) static GATE: AtomicU32 = AtomicU32::new(0);

/// Whether a fork is copying the index.
#[inline(always)]
pub(crate) fn is_gate_closed() -> bool {
    GATE.load(Relaxed) != 0
}

/// Waits outside the index until no fork is copying it.
#[cold]
pub(crate) fn wait_at_gate(state: &State) {
    loop {
        let closed = GATE.load(SeqCst);
        if closed == 0 {
            return;
        }
        state.gate.store(0, SeqCst);
        sys::futex_wait(&GATE, closed);
        state.gate.store(WRITING, SeqCst);
    }
}

/// Closes the gate, and waits for threads that are writing the index, other than `own`.
pub(crate) fn close_gate(own: Option<&State>) {
    const PRIVATE_EXPEDITED: usize = 1 << 3;
    /// A thread that is killed while it writes never leaves; after this many looks its block is taken as it is.
    const PATIENCE: u32 = 1 << 16;
    GATE.fetch_add(1, SeqCst);
    // Other threads set their own gates and look at this one without a fence between: this is the fence.
    sys::membarrier(PRIVATE_EXPEDITED, 0, 0);
    let others = threads::states().filter(|state| !own.is_some_and(|own| ptr::eq(own, *state)));
    for state in others {
        for look in 0..PATIENCE {
            if state.gate.load(SeqCst) != WRITING {
                break;
            }
            // A thread that lost its processor in between needs one to finish.
            if look < 64 {
                spin_loop()
            } else {
                sys::sched_yield()
            }
        }
    }
}

pub(crate) fn open_gate() {
    GATE.fetch_sub(1, SeqCst);
    sys::futex_wake(&GATE);
}

/// Forks by `original`, so that parent and child each have an exact index.
pub(crate) fn fork(original: impl FnOnce() -> usize) -> usize {
    if is_disabled() {
        return original();
    }
    let region = region();
    if is_filtered() {
        // The wiped guard keeps the child from writing what is its parent's.
        region
            .header()
            .unseen
            .fetch_or(unseen::FORK_UNRECORDED, Relaxed);
        return original();
    }
    close_gate(None);
    let follows = region.handoff.field(key::FOLLOW) != Some(b"0");
    let copy = if region.shared && follows {
        copy_region(region)
    } else {
        -1
    };
    let pid = original();
    if pid as i32 == 0 {
        become_child(region, copy, follows);
    } else {
        open_gate();
        if copy >= 0 {
            sys::close(copy as usize);
        } else if region.shared && follows {
            region
                .header()
                .unseen
                .fetch_or(unseen::FORK_UNRECORDED, Relaxed);
        }
    }
    pid
}

fn become_child(region: &Region, copy: isize, follows: bool) {
    GATE.store(0, Relaxed);
    if region.shared {
        // SAFETY: the region is ours, and this is the only thread.
        let mapped = copy >= 0
            && unsafe {
                sys::mmap_over(
                    region.base,
                    region.shared_len as usize,
                    map::READ | map::WRITE,
                    map::SHARED | map::NORESERVE,
                    copy,
                )
            };
        if !mapped {
            // What is mapped is the parent's: not a byte of it may change.
            disable();
            return;
        }
        sys::leave_out_of_cores(region.base, region.shared_len as usize);
    }
    if !follows {
        disable();
        return;
    }
    threads::set_up();
    threads::forget();
    let header = region.header();
    header.pid.store(sys::getpid() as u32, Relaxed);
    header.parent.store(sys::getppid() as u32, Relaxed);
    header.exit.store(exit_kind::NONE, Relaxed);
    header.started.store(sys::now(), Relaxed);
    region.counters.fold_into_inherited();
    region.mismatches.clear();
    region.signal_stacks.clear();
    crate::region::set_generation(0);
    if region.shared {
        announce([usize::try_from(copy).ok(), peak::become_child(region), None]);
    }
}

/// A file with everything now held by the part of the region that is shared; negative if there is none to be had.
fn copy_region(region: &Region) -> isize {
    let fd = new_file(region.layout.len);
    if fd < 0 {
        return fd;
    }
    let mut whole = true;
    each_used(region, |start, end| {
        whole &= copy_touched(region, fd as usize, start, end)
    });
    if !whole {
        sys::close(fd as usize);
        return -1;
    }
    fd
}

/// Calls `each` with the parts of the region, in whole pages, that may have been written. To ask the kernel for all
/// of it would take longer than the copy.
fn each_used(region: &Region, mut each: impl FnMut(u64, u64)) {
    let layout = &region.layout;
    let header = region.header();
    let geometry = &region.geometry;
    let origins = u64::from(header.origins.load(Relaxed).min(geometry.origins));
    let threads = u64::from(header.threads.load(Relaxed).min(geometry.threads));
    let mut part =
        |start: u64, len: u64| each(start & !(PAGE - 1), (start + len).next_multiple_of(PAGE));
    part(0, layout.modules);
    part(
        layout.modules,
        u64::from(header.modules.load(Relaxed)) * size_of::<Module>() as u64,
    );
    part(
        layout.hooks,
        u64::from(header.hooks.load(Relaxed)) * size_of::<Hook>() as u64,
    );
    part(layout.strings, u64::from(header.strings.load(Relaxed)));
    part(layout.page_chunks, CHUNKS * 8);
    part(
        layout.page_tables,
        u64::from(header.page_tables.load(Relaxed)) * PAGE_TABLE_BYTES,
    );
    part(
        layout.signal_stacks,
        u64::from(header.signal_stacks.load(Relaxed)) * size_of::<SignalStack>() as u64,
    );
    if header.mismatches.load(Relaxed) != 0 {
        part(layout.mismatches, layout.table_owners - layout.mismatches);
    }
    let levels = header.origin_levels.load(Relaxed) as usize;
    for (level, start) in layout.origins.iter().enumerate().take(levels) {
        part(
            *start,
            (size_of::<Node>() as u64) << geometry.origin_levels[level],
        );
    }
    part(layout.threads, threads * size_of::<Thread>() as u64);
    for slot in 0..threads {
        part(
            layout.counters + slot * layout.counters_stride,
            origins * size_of::<Counts>() as u64,
        );
    }
    each_used_of_blocks(region, each);
}

/// As [`each_used`], of the parts that tell of blocks and of the peak ([`pointee_index::peak::copied`]).
pub(crate) fn each_used_of_blocks(region: &Region, mut each: impl FnMut(u64, u64)) {
    let layout = &region.layout;
    let header = region.header();
    let geometry = &region.geometry;
    let origins = u64::from(header.origins.load(Relaxed).min(geometry.origins));
    let tables = u64::from(header.tables.load(Relaxed).min(geometry.tables));
    let mut part =
        |start: u64, len: u64| each(start & !(PAGE - 1), (start + len).next_multiple_of(PAGE));
    part(layout.table_owners, tables * 4);
    if header.spanning.load(Relaxed) != 0 {
        part(layout.chunk_covers, LEVELS * CHUNKS * 8);
    }
    part(layout.peak, origins * size_of::<Live>() as u64);
    for table in 0..tables {
        if let Some(index) = region.writer.owner(table) {
            part(layout.directory + index * 8, 8);
        }
        if !region.are_tables_private() {
            part(layout.tables + table * TABLE_BYTES, TABLE_BYTES);
        }
    }
}

/// Writes the resident pages of `[start, end)` to the same place of `fd`.
fn copy_touched(region: &Region, fd: usize, start: u64, end: u64) -> bool {
    each_touched(region, start, end, |at, len| {
        let from = region.base.wrapping_add(at as usize);
        // SAFETY: mapped pages of the region, written to a file of ours.
        unsafe { sys::pwrite(fd, from, len as usize, at as usize) }
    })
}

/// Calls `each` with offset and length of the runs of resident pages in `[start, end)` of the region, until it says
/// `false`; says whether all went well.
pub(crate) fn each_touched(
    region: &Region,
    start: u64,
    end: u64,
    mut each: impl FnMut(u64, u64) -> bool,
) -> bool {
    const BATCH: usize = 1024;
    let mut resident = [0u8; BATCH];
    let mut at = start;
    while at < end {
        let pages = (((end - at) / PAGE) as usize).min(BATCH);
        let from = region.base.wrapping_add(at as usize);
        if !sys::mincore(from, &mut resident[..pages]) {
            return false;
        }
        let mut page = 0;
        while page < pages {
            let run = resident[page..pages]
                .iter()
                .take_while(|byte| **byte & 1 != 0)
                .count();
            if run == 0 {
                page += 1;
                continue;
            }
            if !each(at + page as u64 * PAGE, run as u64 * PAGE) {
                return false;
            }
            page += run;
        }
        at += pages as u64 * PAGE;
    }
    true
}

/// Notes the status the process ends with by itself.
pub(crate) fn note_exit(status: u32) {
    if !is_disabled() {
        region()
            .header()
            .exit
            .store(exit_kind::CODE | status, Relaxed);
    }
}
