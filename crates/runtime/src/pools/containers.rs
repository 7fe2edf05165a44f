//! *Which blocks does a pool cut its own out of?* — so that what it gives back all at once is known.
//!
//! ```text
//!   POOLS        the pool, as its functions are given it  ─▶ first ─▶ CONTAINERS  base, next ─▶ …
//! ```
//!
//! Both are hash tables of which a window is looked at; nothing is moved. A container that is freed for itself stays in its pool's list,
//! marked as gone, until the pool is taken back. A pool is used by one thread at a time, as its program has to see to; different ones meet in a
//! claim only. What does not fit is not known: its blocks stay until their container goes or their bytes are handed out again.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use core::sync::atomic::{AtomicU32, AtomicU64};
use pointee_index::origins::HASH;

struct Pool {
    /// 0: unused.
    handle: AtomicU64,
    /// One more than the number of its first container; 0: none.
    first: AtomicU32,
}

struct Container {
    /// 0: unused; [`GONE`].
    base: AtomicU64,
    /// As [`Pool::first`].
    next: AtomicU32,
}

/// The base of a container that was freed.
const GONE: u64 = 1;
const POOLS: usize = 1 << 13;
const CONTAINERS: usize = 1 << 16;
/// Places looked at for one key.
const WINDOW: usize = 16;

static ALL: [Pool; POOLS] = [const {
    Pool {
        handle: AtomicU64::new(0),
        first: AtomicU32::new(0),
    }
}; POOLS];
static THEIRS: [Container; CONTAINERS] = [const {
    Container {
        base: AtomicU64::new(0),
        next: AtomicU32::new(0),
    }
}; CONTAINERS];

/// The places of `key` in a table of `len`, a power of two.
fn window(key: u64, len: usize) -> impl Iterator<Item = usize> {
    let first = (key.wrapping_mul(HASH) >> (64 - len.ilog2())) as usize;
    (first..first + WINDOW).map(move |at| at & (len - 1))
}

fn pool(handle: u64) -> Option<&'static Pool> {
    let mut places = window(handle, POOLS);
    let at = places.find(|at| ALL[*at].handle.load(Acquire) == handle)?;
    Some(&ALL[at])
}

/// Notes that `handle` cuts blocks out of the container at `base`.
pub(super) fn note(handle: u64, base: u64) {
    if handle == 0 {
        return;
    }
    let claim = |word: &AtomicU64, key| word.compare_exchange(0, key, AcqRel, Acquire).is_ok();
    let pool = pool(handle).or_else(|| {
        let mut places = window(handle, POOLS);
        let at = places.find(|at| claim(&ALL[*at].handle, handle))?;
        Some(&ALL[at])
    });
    let Some(pool) = pool else { return };
    let at = || -> Option<usize> {
        let is_there = |at: &usize| THEIRS[*at].base.load(Relaxed) == base;
        if window(base, CONTAINERS).any(|at| is_there(&at)) {
            return None;
        }
        window(base, CONTAINERS).find(|at| claim(&THEIRS[*at].base, base))
    };
    if let Some(at) = at() {
        let before = pool.first.swap(at as u32 + 1, AcqRel);
        THEIRS[at].next.store(before, Relaxed);
    }
}

/// The container at `base` was freed for itself.
pub(super) fn gone(base: u64) {
    let mut places = window(base, CONTAINERS);
    if let Some(at) = places.find(|at| THEIRS[*at].base.load(Relaxed) == base) {
        THEIRS[at].base.store(GONE, Relaxed);
    }
}

/// Forgets `handle`; calls `each` with the base of every container that it has.
pub(super) fn take(handle: u64, mut each: impl FnMut(u64)) {
    let Some(pool) = pool(handle).filter(|_| handle != 0) else {
        return;
    };
    let mut next = pool.first.swap(0, AcqRel);
    pool.handle.store(0, Relaxed);
    while let Some(container) = next.checked_sub(1).and_then(|at| THEIRS.get(at as usize)) {
        next = container.next.load(Relaxed);
        let base = container.base.load(Relaxed);
        if base > GONE {
            each(base);
        }
        container.base.store(0, Relaxed);
    }
}
