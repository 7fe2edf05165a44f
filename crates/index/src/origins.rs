//! *From which path of calls did an allocation come?*
//!
//! An *origin* is a path of return addresses, innermost first, interned as a tree: a node is
//! (parent origin, return address) → origin. The first [`ROOTS`] origins are the hooked entries
//! themselves; the walk starts at one of them and takes one lookup per frame. A node
//! also holds the rule by which the walk leaves its frame, so that unwind tables are evaluated once per node.
//!
//! ```text
//!   root(malloc of libc) ─ra in xmalloc→ origin 64 ─ra in parse→ origin 65   leaf
//!                                                  └─ra in lex──→ origin 66   leaf
//! ```
//!
//! The hash has levels, each a power of two larger than the one before; a key is looked for in a short
//! window of each level in turn. Nothing is ever moved or deleted, so a lookup needs no lock: a slot goes
//! from empty to *claimed* (compare-and-swap) to published (release). Two threads that add one key at
//! once may give it two numbers; readers merge origins by path.

#![allow(unsafe_code)] // Nodes lie in a region shared with other threads and processes, reached by raw pointer.

use crate::class::Class;
use crate::layout::{FIRST_LEVEL, Header, Layout, ORIGIN_LEVELS, unseen};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

/// Origins below this number are hooked entries; 0 is none at all.
pub const ROOTS: u32 = 256;
/// Slots looked at in each level.
const WINDOW: [usize; ORIGIN_LEVELS] = [4, 4, 32];
/// Return address of a slot that is being filled; no code lies there.
const CLAIMED: u64 = u64::MAX;
/// Return address of a slot whose code was unloaded: matches no walk.
pub const UNLOADED: u64 = 1 << 63;

/// One slot.
#[derive(Debug)]
#[repr(C, align(32))]
pub struct Node {
    /// 0: empty. With [`UNLOADED`]: code that is gone.
    pub return_address: AtomicU64,
    /// Parent origin, with its class.
    pub parent: AtomicU32,
    /// This origin, with the class of its blocks ([`class`](crate::class)).
    pub id: AtomicU32,
    /// How the walk goes on ([`Rule`]).
    pub rule: AtomicU64,
    /// The module and how deep ([`Frame`]).
    pub frame: AtomicU32,
    /// Where in the first level, in bytes, the first node from under this one was put: a walk looks there before it reckons the hash,
    /// since most nodes have one.
    pub child: AtomicU32,
}

/// What a node says of its frame besides its rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// The module record it lies in; `u32::MAX` for none.
    pub module: u32,
    /// How much of the walk's length is used up: a frame each, 1 for the first; more where little is to be expected further out.
    /// Below 128.
    pub depth: u32,
    /// Whether the class of this origin is that of `new` or of `new[]` could not be seen; readers accept both.
    pub is_undecided: bool,
}

impl Frame {
    const UNDECIDED: u32 = 1 << 7;

    /// From the stored word.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self {
            // With its sign: none stays none.
            module: (bits as i32 >> 8) as u32,
            depth: bits & (Self::UNDECIDED - 1),
            is_undecided: bits & Self::UNDECIDED != 0,
        }
    }

    const fn bits(self) -> u32 {
        let undecided = if self.is_undecided {
            Self::UNDECIDED
        } else {
            0
        };
        self.module << 8 | undecided | self.depth & (Self::UNDECIDED - 1)
    }
}

impl Node {
    /// What it says of its frame.
    #[inline(always)]
    #[must_use]
    pub fn frame(&self) -> Frame {
        Frame::from_bits(self.frame.load(Relaxed))
    }

    /// Whether this is the published node of a call that returns to `return_address` from under `parent`.
    #[inline(always)]
    pub(crate) fn is(&self, parent: u32, return_address: u64) -> bool {
        self.return_address.load(Acquire) == return_address && self.parent.load(Relaxed) == parent
    }
}

/// How to get from one frame to its caller's: where the canonical frame address (CFA) lies, and
/// whether the frame saved `rbp`. Packed into 64 bits; 0 is a leaf.
///
/// ```text
///   slot    = where the return address into the frame lies, so rsp in the frame = slot + 8
///   CFA     = rsp + offset, or rbp + offset                    DWARF 5, §6.4
///   next    = CFA - 8: where the frame's own return address lies
///   rbp     = *(CFA + saved), if the frame saved it
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule(u64);

/// A frame larger than this is taken for a wrong rule.
pub const FRAME_MAX: u64 = 1 << 20;

impl Rule {
    /// The walk ends here.
    pub const LEAF: Self = Self(0);
    const GOES_ON: u64 = 1;
    /// Bit of a rule that measures from `rbp`.
    pub const FROM_RBP: u64 = 2;
    /// Bit of a rule that says where `rbp` was saved.
    pub const SAVES_RBP: u64 = 4;

    /// A rule; `saved` is where `rbp` lies, relative to the CFA, 0 if the frame leaves it alone.
    /// [`Self::LEAF`] if no sound frame has these numbers.
    #[must_use]
    pub const fn new(from_rbp: bool, offset: i32, saved: i16) -> Self {
        let sound = offset & 7 == 0 && saved & 7 == 0 && saved <= 0;
        let from_rsp = offset >= 8 && (offset as u64) < FRAME_MAX;
        if !sound || !(from_rbp || from_rsp) {
            return Self::LEAF;
        }
        let mut bits = Self::GOES_ON;
        if from_rbp {
            bits |= Self::FROM_RBP;
        }
        if saved != 0 {
            bits |= Self::SAVES_RBP;
        }
        Self(bits | ((saved as u16) as u64) << 16 | ((offset as u32) as u64) << 32)
    }

    /// From the stored word.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The word to store.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether the walk ends here.
    #[inline(always)]
    #[must_use]
    pub const fn is_leaf(self) -> bool {
        self.0 == 0
    }

    /// Where the frame's own return address lies; `None` if `rbp` does not point into a sound frame.
    #[inline(always)]
    #[must_use]
    pub const fn next(self, slot: u64, rbp: u64) -> Option<u64> {
        let offset = (self.0 as i64 >> 32) as u64;
        if self.0 & Self::FROM_RBP == 0 {
            return Some(slot.wrapping_add(offset));
        }
        let next = rbp.wrapping_add(offset).wrapping_sub(8);
        let size = next.wrapping_sub(slot);
        if size.wrapping_sub(8) < FRAME_MAX && next & 7 == 0 {
            Some(next)
        } else {
            None
        }
    }

    /// Where `rbp` was saved, given where the frame's own return address lies.
    #[inline(always)]
    #[must_use]
    pub const fn saved_rbp(self, next: u64) -> Option<u64> {
        if self.0 & Self::SAVES_RBP == 0 {
            return None;
        }
        Some(
            next.wrapping_add(8)
                .wrapping_add(((self.0 >> 16) as u16 as i16) as i64 as u64),
        )
    }
}

/// The tree of one region.
#[derive(Clone, Copy)]
pub struct Origins {
    levels: [*const Node; ORIGIN_LEVELS],
    bits: [u32; ORIGIN_LEVELS],
    header: *const Header,
}

/// The hash of a node's key, of which the upper bits count: (return address ^ parent << shift) * factor. Fibonacci hashing
/// (Knuth, The Art of Computer Programming 3, §6.4).
#[inline(always)]
const fn hash(parent: u32, return_address: u64) -> u64 {
    (return_address ^ (parent as u64) << PARENT_SHIFT).wrapping_mul(HASH)
}

/// See the hash of a node's key.
pub const PARENT_SHIFT: u32 = 40;
/// 2^64 divided by the golden ratio.
pub const HASH: u64 = 0x9e37_79b9_7f4a_7c15;

impl Origins {
    /// The tree of the region at `base`.
    ///
    /// # Safety
    /// `base` points to a region of the header's geometry, mapped and writable as long as `self` is used.
    #[must_use]
    pub unsafe fn new(base: *mut u8, layout: &Layout) -> Self {
        let header = base.cast::<Header>().cast_const();
        // SAFETY: the caller promises a region; its header is always mapped.
        let geometry = unsafe { (*header).geometry };
        Self {
            levels: layout
                .origins
                .map(|at| base.wrapping_add(at as usize).cast::<Node>().cast_const()),
            bits: geometry.origin_levels,
            header,
        }
    }

    /// The node of a call that returns to `return_address` from under `parent`, if it is known.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, parent: u32, return_address: u64) -> Option<&'static Node> {
        let at = (hash(parent, return_address) >> (64 - FIRST_LEVEL)) as usize;
        // SAFETY: cut to the level's slots, all of them mapped.
        let node = unsafe { &*self.levels[0].add(at) };
        if node.is(parent, return_address) {
            Some(node)
        } else {
            self.find_further(parent, return_address)
        }
    }

    /// The node of a call that returns to `return_address`, met in a walk that came through `below`, if it is known.
    #[inline(always)]
    #[must_use]
    pub fn find_above(&self, below: &Node, return_address: u64) -> Option<&'static Node> {
        let parent = below.id.load(Relaxed);
        // SAFETY: `add` wrote nothing but places of nodes of the first level there, and 0 is one.
        let child = unsafe { &*self.levels[0].byte_add(below.child.load(Relaxed) as usize) };
        if child.is(parent, return_address) {
            Some(child)
        } else {
            self.find(parent, return_address)
        }
    }

    /// The search beyond the first slot.
    #[inline(never)]
    fn find_further(&self, parent: u32, return_address: u64) -> Option<&'static Node> {
        for (_, _, node) in self.window(hash(parent, return_address)) {
            if node.is(parent, return_address) {
                return Some(node);
            }
            if node.return_address.load(Relaxed) == 0 {
                return None;
            }
        }
        None
    }

    /// The slots where a key of this hash may be, in the order in which they are taken: level, place in it, slot.
    #[inline(always)]
    fn window(&self, hash: u64) -> impl Iterator<Item = (usize, usize, &'static Node)> + '_ {
        WINDOW.iter().enumerate().flat_map(move |(level, window)| {
            let first = (hash >> (64 - self.bits[level])) as usize;
            (first..first + window).map(move |at| {
                let at = at & ((1 << self.bits[level]) - 1);
                // SAFETY: masked to the level's slots.
                (level, at, unsafe { &*self.levels[level].add(at) })
            })
        })
    }

    /// Adds a node from under `parent`, or from under a root where `below` is none. `None` when there is no room: the caller
    /// records under the parent instead.
    #[cold]
    pub fn add(
        &self,
        parent: u32,
        below: Option<&Node>,
        return_address: u64,
        rule: Rule,
        frame: Frame,
        class: Class,
    ) -> Option<&'static Node> {
        // SAFETY: the header is mapped as long as the region.
        let header = unsafe { &*self.header };
        for (level, at, node) in self.window(hash(parent, return_address)) {
            let empty = node
                .return_address
                .compare_exchange(0, CLAIMED, Acquire, Relaxed);
            if empty.is_err() {
                continue;
            }
            let id = header.origins.fetch_add(1, Relaxed);
            if id >= header.geometry.origins {
                header.origins.fetch_sub(1, Relaxed);
                header.unseen.fetch_or(unseen::ORIGINS_FULL, Relaxed);
                node.return_address.store(0, Release);
                return None;
            }
            node.parent.store(parent, Relaxed);
            node.id.store(id | class.bits(), Relaxed);
            node.rule.store(rule.bits(), Relaxed);
            node.frame.store(frame.bits(), Relaxed);
            node.return_address.store(return_address, Release);
            if let Some(below) = below.filter(|_| level == 0) {
                let at = (at * size_of::<Node>()) as u32;
                let _ = below.child.compare_exchange(0, at, Release, Relaxed);
            }
            header.origin_levels.fetch_max(level as u32 + 1, Relaxed);
            return Some(node);
        }
        header.unseen.fetch_or(unseen::ORIGINS_FULL, Relaxed);
        None
    }

    /// Marks all nodes of `module` as unloaded, so that other code at the same addresses gets origins of its own.
    #[cold]
    pub fn unload(&self, module: u32) {
        self.each_of(module, |address| address | UNLOADED);
    }

    /// The same code is back at the same addresses: its nodes serve again.
    #[cold]
    pub fn revive(&self, module: u32) {
        self.each_of(module, |address| address & !UNLOADED);
    }

    /// Calls `each` for every slot of the levels in use, empty ones too, in order. Levels that were never used are left alone: looking at
    /// a page of a shared mapping makes the kernel allocate it.
    pub fn each(&self, mut each: impl FnMut(&'static Node)) {
        // SAFETY: the header is mapped as long as the region.
        let used = unsafe { (*self.header).origin_levels.load(Acquire) } as usize;
        for level in 0..used.min(ORIGIN_LEVELS) {
            for at in 0..1usize << self.bits[level] {
                if let Some(node) = self.slot(level, at) {
                    each(node);
                }
            }
        }
    }

    /// Slot `at` of level `level`.
    #[must_use]
    pub fn slot(&self, level: usize, at: usize) -> Option<&'static Node> {
        let exists = level < ORIGIN_LEVELS && at < 1usize << self.bits[level];
        // SAFETY: below the level's number of slots.
        exists.then(|| unsafe { &*self.levels[level].add(at) })
    }

    fn each_of(&self, module: u32, change: impl Fn(u64) -> u64) {
        self.each(|node| {
            let address = node.return_address.load(Acquire);
            if address != 0 && address != CLAIMED && node.frame().module == module {
                node.return_address.store(change(address), Release);
            }
        });
    }
}
