//! *Where are the control blocks and thread-local blocks of all threads?*
//!
//! ```text
//!   … │ block of libc │ block of the executable │ control block: self, dtv, self, …, tid │   a thread's static area
//!                                                        dtv ─▶ [capacity] generation, block of 1, block of 2, …
//! ```
//!
//! The thread pointer of a thread that is not stopped is nowhere to be read. But a control block says whose it is: its
//! first and third word point at itself, and glibc keeps the thread's number 0x2d0 bytes in (`struct pthread`
//! starts with 0x2c0 bytes of header, then a list entry, then `tid`; unchanged since glibc 2.4).

use super::objects::word;
use super::{Object, Span};
use crate::memory::ProcessMemory;
use crate::running::Mapping;
use pointee_model::addr::RunAddr;
use std::collections::HashMap;

/// Control blocks are aligned to this (`TLS_TCB_ALIGN`).
const ALIGNMENT: usize = 64;
const TID: u64 = 0x2d0;
/// How much of a large mapping's end is searched: the control block is the last thing on a thread's stack.
const SEARCHED: u64 = 256 << 10;
/// A `dtv` with more entries than this is damaged.
const MOST_BLOCKS: u64 = 4096;

/// The control blocks of the threads numbered `ids`, by number.
pub(super) fn control_blocks(
    ids: &[u32],
    mappings: &[Mapping],
    memory: &ProcessMemory,
) -> HashMap<u32, RunAddr> {
    let mut found = HashMap::new();
    let may_hold = |mapping: &&Mapping| {
        mapping.permissions.starts_with("rw-p")
            && mapping.inode == 0
            && (mapping.path.is_empty()
                || mapping.path == "[heap]"
                || mapping.path.starts_with("[anon"))
    };
    for mapping in mappings.iter().filter(may_hold) {
        let len = mapping.end.0 - mapping.start.0;
        let searched = len.min(SEARCHED);
        // A static program's first control block is the first thing in its heap.
        let from_end = mapping.path != "[heap]";
        let start = if from_end {
            mapping.end.0 - searched
        } else {
            mapping.start.0
        };
        search(RunAddr(start), searched, ids, memory, &mut found);
        if found.len() == ids.len() {
            break;
        }
    }
    found
}

fn search(
    start: RunAddr,
    len: u64,
    ids: &[u32],
    memory: &ProcessMemory,
    found: &mut HashMap<u32, RunAddr>,
) {
    let mut bytes = vec![0; len as usize];
    if !memory.read_at(start, &mut bytes) {
        return;
    }
    let at = |place: usize| {
        let bytes = bytes.get(place..place + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    for place in (0..bytes.len()).step_by(ALIGNMENT) {
        let address = start.plus(place as u64);
        if at(place) != Some(address.0) || at(place + 16) != Some(address.0) {
            continue;
        }
        let id = word(memory, address.plus(TID)).map(|word| word as u32);
        if let Some(id) = id.filter(|id| ids.contains(id)) {
            found.entry(id).or_insert(address);
        }
    }
}

/// The thread-local blocks that belong to the control block at `address`, with the objects' numbers in `objects`.
pub(super) fn blocks(
    address: RunAddr,
    objects: &[Object],
    memory: &ProcessMemory,
) -> Vec<(u32, Span)> {
    let Some(vector) = word(memory, address.plus(8)).map(RunAddr) else {
        return Vec::new();
    };
    // The entry before the first says how many there are.
    let capacity = word(memory, RunAddr(vector.0.wrapping_sub(16))).unwrap_or(0);
    let mut blocks = Vec::new();
    for (object, number) in objects.iter().zip(0..) {
        let (Some(segment), Some(which)) = (object.thread_local, object.thread_local_number) else {
            continue;
        };
        if which > capacity.min(MOST_BLOCKS) {
            continue;
        }
        // `TLS_DTV_UNALLOCATED` is all ones: the thread has not touched it yet.
        let block = word(memory, vector.plus(which * 16)).filter(|block| block.wrapping_add(1) > 1);
        if let Some(start) = block.map(RunAddr) {
            let end = start.plus(segment.size);
            blocks.push((number, Span { start, end }));
        }
    }
    blocks.sort_by_key(|(_, span)| span.start);
    blocks
}
