//! *Is the kernel's list of mappings still as it was read last?*
//!
//! Reading it takes microseconds, a look into what was read some nanoseconds. It is current if no call has changed anything since, which is known where
//! every call is seen: all loaded files have an image, each of their system call instructions has a hook or needs none, and no code
//! was made at run time. Else it is read for each question. Stacks grow unseen: what is in no remembered mapping is looked for anew.
//!
//! A sequence number is odd while the list is written. Who finds it odd, be it a signal handler that interrupted the writer, reads
//! for itself.

use super::{Mapping, each};
use crate::hooks::is_filtered;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};

/// Mappings that are remembered at most.
const ROOM: usize = 2048;

/// Start, end, offset, inode; protection and sharing.
type Entry = [AtomicU64; 5];
static ENTRIES: [Entry; ROOM] = [const { [const { AtomicU64::new(0) }; 5] }; ROOM];
static LEN: AtomicUsize = AtomicUsize::new(0);
/// Odd while the entries are written.
static SEQUENCE: AtomicU64 = AtomicU64::new(0);
/// How many calls had ended when it was read.
static READ_AFTER: AtomicU64 = AtomicU64::new(u64::MAX);

/// Calls that change mappings: begun, ended.
static BEGUN: AtomicU64 = AtomicU64::new(0);
static ENDED: AtomicU64 = AtomicU64::new(0);
/// Whether something may map unseen.
static IS_INCOMPLETE: AtomicBool = AtomicBool::new(false);

/// A call that changes mappings is about to be made.
pub(crate) fn will_change() {
    BEGUN.fetch_add(1, AcqRel);
}

/// It was made.
pub(crate) fn has_changed() {
    ENDED.fetch_add(1, AcqRel);
}

/// From now on something may change mappings unseen.
pub(crate) fn is_incomplete() {
    IS_INCOMPLETE.store(true, Relaxed);
}

/// How many calls have ended, if none is under way.
fn quiet() -> Option<u64> {
    let ended = ENDED.load(Acquire);
    (BEGUN.load(Acquire) == ended).then_some(ended)
}

/// The mapping that holds `address`, if that is known without reading, or known after having read for those to come.
pub(super) fn at(address: u64) -> Option<Mapping> {
    if IS_INCOMPLETE.load(Relaxed) {
        return None;
    }
    remembered(address).or_else(|| {
        read();
        remembered(address)
    })
}

fn remembered(address: u64) -> Option<Mapping> {
    let sequence = SEQUENCE.load(Acquire);
    if sequence & 1 != 0 || quiet()? != READ_AFTER.load(Relaxed) {
        return None;
    }
    let entries = &ENTRIES[..LEN.load(Relaxed).min(ROOM)];
    let after = entries.partition_point(|[start, ..]| start.load(Relaxed) <= address);
    let entry = entries.get(after.checked_sub(1)?)?;
    let [start, end, offset, inode, how] = entry.each_ref().map(|field| field.load(Relaxed));
    fence(Acquire);
    let is_whole = SEQUENCE.load(Relaxed) == sequence;
    (is_whole && address < end).then_some(Mapping {
        start,
        end,
        offset,
        inode,
        protection: how as u32 & 7,
        is_shared: how as u32 >> 3,
    })
}

/// Reads the kernel's list, unless somebody does.
fn read() {
    let sequence = SEQUENCE.load(Relaxed);
    let Some(before) = quiet().filter(|_| sequence & 1 == 0 && !is_filtered()) else {
        return;
    };
    if SEQUENCE
        .compare_exchange(sequence, sequence + 1, AcqRel, Relaxed)
        .is_err()
    {
        return;
    }
    fence(Release);
    let mut len = 0;
    each(|mapping| {
        if let Some(entry) = ENTRIES.get(len) {
            let how = mapping.protection | mapping.is_shared << 3;
            let fields = [
                mapping.start,
                mapping.end,
                mapping.offset,
                mapping.inode,
                u64::from(how),
            ];
            for (to, field) in entry.iter().zip(fields) {
                to.store(field, Relaxed);
            }
        }
        len += 1;
        len <= ROOM
    });
    let is_all = len <= ROOM && quiet() == Some(before);
    LEN.store(len, Relaxed);
    READ_AFTER.store(if is_all { before } else { u64::MAX }, Relaxed);
    SEQUENCE.store(sequence + 2, Release);
}
