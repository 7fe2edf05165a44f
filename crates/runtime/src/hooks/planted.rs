//! *Which entries are hooked, and what does a hook need to know of its own?*

#![allow(unsafe_code)] // A table that grows while it is read; calls originals through their addresses.

use super::Hook;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use pointee_index::class::Class;
use pointee_index::origins::PARENT_SHIFT;
use pointee_index::words::CLASS_SHIFT;
use pointee_model::entries::{Declared, Role};

/// An entry that was hooked.
#[repr(C)]
pub(crate) struct Planted {
    original: u64,
    entry: u64,
    hook: Hook,
    /// The root of the walk, as it goes into the hash.
    root_key: u64,
    /// The root, with its class.
    root: u32,
    /// Whose blocks it hands out or takes back, as it lies in words.
    class: u32,
    role: Role,
    /// What the configuration says of it, if it does.
    declared: Declared,
    /// Of a pool's function: the arguments that are multiplied for the size; 3 stands for one.
    size_at: u8,
    count_at: u8,
    /// The launch pad: what is there when it is planted, what was there before.
    pad: Pad,
}

/// The bytes of a launch pad.
#[derive(Clone, Copy)]
pub(crate) struct Pad {
    pub(crate) at: u64,
    pub(crate) planted: [u8; 5],
    pub(crate) original: [u8; 5],
}

/// Where the fields lie that code in assembly reads.
pub(crate) const ORIGINAL: usize = offset_of!(Planted, original);
pub(crate) const ROOT_KEY: usize = offset_of!(Planted, root_key);
pub(crate) const ROOT: usize = offset_of!(Planted, root);
pub(crate) const CLASS: usize = offset_of!(Planted, class);
pub(crate) const SIZE_AT: usize = offset_of!(Planted, size_at);
pub(crate) const COUNT_AT: usize = offset_of!(Planted, count_at);
pub(super) const HOOK: usize = offset_of!(Planted, hook);

const ROOM: usize = 2048;

struct Table {
    all: UnsafeCell<[Planted; ROOM]>,
    used: AtomicU32,
}
// SAFETY: an element is written before `used` grows over it and not changed afterwards.
unsafe impl Sync for Table {}

static TABLE: Table = Table {
    all: UnsafeCell::new(
        [const {
            Planted {
                original: 0,
                entry: 0,
                hook: super::on_free,
                root_key: 0,
                root: 0,
                class: 0,
                role: Role::Other,
                declared: Declared::from_word(0),
                size_at: 0,
                count_at: 0,
                pad: Pad {
                    at: 0,
                    planted: [0; 5],
                    original: [0; 5],
                },
            }
        }; ROOM],
    ),
    used: AtomicU32::new(0),
};

/// Whether a function of this role cuts blocks out of others, or takes such back.
const fn is_of_pool(role: Role) -> bool {
    role.cuts_out() || matches!(role, Role::PoolFree | Role::PoolReset | Role::PoolTrim)
}

/// Bit n: a function of class n is hooked, other than a pool's.
static CLASSES: AtomicU32 = AtomicU32::new(0);

impl Planted {
    /// Notes that the code at `entry` will be hooked, its original callable at `original`. `None` when there is no room.
    pub(crate) fn new(
        entry: u64,
        original: u64,
        root: u32,
        class: Class,
        declared: Declared,
        pad: Pad,
    ) -> Option<&'static Self> {
        let role = declared.role;
        let root = root | class.bits();
        let at = TABLE.used.load(Relaxed);
        if at as usize == ROOM {
            return None;
        }
        // SAFETY: above `used`; one thread plants at a time.
        let planted = unsafe {
            let to = TABLE.all.get().cast::<Self>().add(at as usize);
            to.write(Self {
                original,
                entry,
                hook: super::hook(declared),
                root_key: u64::from(root) << PARENT_SHIFT,
                root,
                class: class.bits(),
                role,
                declared,
                size_at: declared.argument.min(Declared::SEEN),
                count_at: declared.count.unwrap_or(Declared::SEEN).min(Declared::SEEN),
                pad,
            });
            &*to
        };
        if !is_of_pool(role) {
            CLASSES.fetch_or(1 << (class.bits() >> CLASS_SHIFT), Relaxed);
        }
        TABLE.used.store(at + 1, Release);
        Some(planted)
    }

    /// The launch pad.
    pub(crate) fn pad(&self) -> &Pad {
        &self.pad
    }

    /// The code that was hooked.
    pub(crate) fn entry(&self) -> u64 {
        self.entry
    }

    /// Where the original can be called.
    pub(crate) fn original(&self) -> u64 {
        self.original
    }

    /// Whose blocks it hands out or takes back.
    pub(crate) fn class(&self) -> Class {
        Class::of(self.class)
    }

    /// What it does.
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// The root of the walk, with its class.
    #[inline(always)]
    pub(crate) fn root(&self) -> u32 {
        self.root
    }

    /// What the configuration says of it.
    pub(crate) fn declared(&self) -> Declared {
        self.declared
    }

    /// Whether it takes back blocks, and does nothing else.
    pub(crate) fn frees(&self) -> bool {
        matches!(self.role, Role::Free | Role::Delete)
    }

    /// Calls the original with the arguments as they came.
    ///
    /// # Safety
    /// As for the function that was hooked.
    #[inline(always)]
    pub(crate) unsafe fn call(&self, a: usize, b: usize, c: usize) -> usize {
        // SAFETY: the trampoline is the original's entry; more integer arguments than it takes do no harm.
        let original: unsafe extern "C" fn(usize, usize, usize) -> usize =
            unsafe { core::mem::transmute(self.original as *const ()) };
        // SAFETY: the caller's promise.
        unsafe { original(a, b, c) }
    }

    /// Calls an original of up to seven arguments.
    ///
    /// # Safety
    /// As for the function that was hooked.
    pub(super) unsafe fn call_with_many(&self, arguments: [usize; 7]) -> usize {
        type Original =
            unsafe extern "C" fn(usize, usize, usize, usize, usize, usize, usize) -> usize;
        // SAFETY: the trampoline is the original's entry; more integer arguments than it takes do no harm.
        let original: Original = unsafe { core::mem::transmute(self.original as *const ()) };
        let [a, b, c, d, e, f, g] = arguments;
        // SAFETY: the caller's promise.
        unsafe { original(a, b, c, d, e, f, g) }
    }
}

/// The record of the hook whose entry is `entry`, the latest first.
pub(crate) fn planted_at(entry: u64) -> Option<&'static Planted> {
    let used = TABLE.used.load(Acquire) as usize;
    // SAFETY: below `used`.
    let all = (0..used)
        .rev()
        .map(|at| unsafe { &*TABLE.all.get().cast::<Planted>().add(at) });
    all.into_iter().find(|planted| planted.entry == entry)
}

/// Whether all functions that are hooked hand out and take back blocks of one class, but for pools', which are another level: none can be given
/// back wrongly as long as no pool has cut a block out.
#[inline(always)]
pub(super) fn is_one_class() -> bool {
    CLASSES.load(Relaxed).is_power_of_two()
}
