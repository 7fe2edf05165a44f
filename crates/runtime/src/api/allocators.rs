//! *Who gave this memory, and who takes it back?*
//!
//! An allocator is a `struct pointee_allocator`: a name, the function that frees, and for those that the program registers
//! the function that answers. Those of blocks are made from the hooks' records; what must free a block follows from the function
//! that was asked for it: `free` of the same family and module, `operator delete` for what came through `operator new`.

#![allow(unsafe_code)] // Records that threads publish to each other; names in the region.

use super::room;
use super::what::Answer;
use crate::hooks::planted_at;
use crate::locate;
use crate::modules::{self, Module};
use crate::region::region;
use core::ffi::{CStr, c_char, c_void};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
use pointee_index::origins::ROOTS;
use pointee_index::records::{Hook, Role};
use pointee_model::entries::FAMILIES;

/// `struct pointee_allocator` of `pointee.h`.
#[repr(C)]
pub(super) struct Allocator {
    name: *const c_char,
    free_name: *const c_char,
    free: Option<unsafe extern "C" fn(*mut c_void)>,
    what: Option<unsafe extern "C" fn(*const Self, *const c_void, *mut Answer) -> i32>,
}
// SAFETY: never changed once others see it.
unsafe impl Sync for Allocator {}

const fn fixed(name: &'static CStr) -> Allocator {
    Allocator {
        name: name.as_ptr(),
        free_name: core::ptr::null(),
        free: None,
        what: None,
    }
}

/// Of variables with a fixed address, functions and sections.
pub(super) static STATIC: Allocator = fixed(c"static");
/// Of local variables and frames.
pub(super) static STACK: Allocator = fixed(c"stack");
/// Of thread-local variables.
pub(super) static THREAD: Allocator = fixed(c"thread");
/// Of mappings.
pub(super) static MAPPINGS: Allocator = fixed(c"mappings");
/// Of blocks whose entry is not known.
static UNKNOWN: Allocator = fixed(c"not known");

impl Allocator {
    /// Gives the object at `base` back. `false` if nobody knows how.
    ///
    /// # Safety
    /// `base` is an object of this allocator that nobody uses any more.
    pub(super) unsafe fn release(&self, base: *mut c_void) -> bool {
        let Some(free) = self.free else { return false };
        // SAFETY: the caller's promise.
        unsafe { free(base) };
        true
    }
}

/// Through which function a block was asked for.
const VARIANTS: usize = 3;
static OF_ROOTS: [[AtomicPtr<Allocator>; VARIANTS]; ROOTS as usize] =
    [const { [const { AtomicPtr::new(core::ptr::null_mut()) }; VARIANTS] }; ROOTS as usize];

/// The allocator of blocks under `root`; `operator` for those that came through `operator new`, `true` in it for arrays.
pub(super) fn of_root(root: u32, operator: Option<bool>) -> Option<&'static Allocator> {
    let variant = operator.map_or(0, |is_array| 1 + usize::from(is_array));
    let place = &OF_ROOTS.get(root as usize)?[variant];
    let known = place.load(Acquire);
    if known.is_null() {
        let made =
            make(root, operator).map_or(core::ptr::from_ref(&UNKNOWN), |made| made.cast_const());
        let _ = place.compare_exchange(core::ptr::null_mut(), made.cast_mut(), AcqRel, Relaxed);
    }
    // SAFETY: allocators stay.
    unsafe { place.load(Acquire).as_ref() }
}

fn hooks() -> &'static [Hook] {
    let region = region();
    let used = region
        .header()
        .hooks
        .load(Acquire)
        .min(region.geometry.hooks);
    // SAFETY: records below the header's number are written and stay.
    unsafe {
        let first = region.base.add(region.layout.hooks as usize).cast::<Hook>();
        core::slice::from_raw_parts(first, used as usize)
    }
}

fn text(at: u32) -> &'static CStr {
    let region = region();
    if at >= region.geometry.strings {
        return c"";
    }
    // SAFETY: strings are written once, each before its offset is known, and end with NUL.
    unsafe {
        CStr::from_ptr(
            region
                .base
                .add((region.layout.strings + u64::from(at)) as usize)
                .cast(),
        )
    }
}

fn make(root: u32, operator: Option<bool>) -> Option<*mut Allocator> {
    let hook = hooks().iter().find(|hook| hook.root == root && root != 0)?;
    let entry = text(hook.name).to_bytes();
    let is_new = matches!(Role::from_byte(hook.role), Role::New | Role::Delete);
    let module = modules::numbered(hook.module)?;
    let is_pool = Role::from_byte(hook.role).cuts_out();
    let family: &[u8] = match (is_pool, is_new) {
        (true, _) => entry,
        (false, true) => b"operator new",
        (false, false) => b"malloc",
    };
    let operator = operator.or_else(|| is_new.then(|| entry.starts_with(b"_Zna")));
    let (free_name, free) = match operator {
        _ if is_pool => pool_freeing(module),
        Some(false) => (c"operator delete".as_ptr(), everywhere("_ZdlPv")),
        Some(true) => (c"operator delete[]".as_ptr(), everywhere("_ZdaPv")),
        None => freeing(module, entry)?,
    };
    let allocator = room::take::<Allocator>(1);
    let mut name = [0; 128];
    let mut len = 0;
    for part in [family, b" of ", module.file_name()] {
        let part = &part[..part.len().min(name.len() - len)];
        name[len..len + part.len()].copy_from_slice(part);
        len += part.len();
    }
    let name = room::copy(&name[..len]);
    if allocator.is_null() || name.is_null() {
        return None;
    }
    // SAFETY: fresh room; the address is a function's that takes a pointer.
    unsafe {
        allocator.write(Allocator {
            name: name.cast_const().cast(),
            free_name,
            free: free.map(|at| core::mem::transmute::<*const (), _>(at as *const ())),
            what: None,
        });
    }
    Some(allocator)
}

/// The first loaded object's function `name`: the one that calls by this name reach. A statically linked program exports none; it
/// has one operator of a name, which is hooked.
fn everywhere(name: &str) -> Option<u64> {
    let mut found = None;
    modules::each(|module| found = found.or_else(|| locate::exported(module, name)));
    let hooked = || {
        let mut hooks = hooks().iter();
        hooks.find(|hook| text(hook.name).to_bytes() == name.as_bytes())
    };
    found
        .map(|(address, _)| address)
        .or_else(|| hooked().map(|hook| hook.address))
}

/// Name and address of the function that frees what `entry` of `module` gave.
fn freeing(module: &Module, entry: &[u8]) -> Option<(*const c_char, Option<u64>)> {
    let family = FAMILIES
        .iter()
        .find(|family| family.iter().any(|(name, _)| name.as_bytes() == entry))?;
    let name = family[1].0.as_bytes();
    let hook = hooks()
        .iter()
        .find(|hook| hook.module == module.number && text(hook.name).to_bytes() == name)?;
    Some((text(hook.name).as_ptr(), Some(hook.address)))
}

/// The function that takes one block of a pool of `module` back, if there is one. It can be called if the block is all that it wants first.
fn pool_freeing(module: &Module) -> (*const c_char, Option<u64>) {
    let mut hooks = hooks().iter();
    let free = hooks
        .find(|hook| hook.module == module.number && Role::from_byte(hook.role) == Role::PoolFree);
    let Some(free) = free else {
        return (core::ptr::null(), None);
    };
    let planted = planted_at(free.address);
    let is_simple = planted.is_some_and(|planted| planted.declared().argument == 0);
    (text(free.name).as_ptr(), is_simple.then_some(free.address))
}

/// Memory that a registered allocator answers for.
struct Range {
    start: AtomicU64,
    /// 0 while there is none.
    len: AtomicU64,
    allocator: AtomicPtr<Allocator>,
}

const RANGES: usize = 256;
static REGISTERED: [Range; RANGES] = [const {
    Range {
        start: AtomicU64::new(0),
        len: AtomicU64::new(0),
        allocator: AtomicPtr::new(core::ptr::null_mut()),
    }
}; RANGES];
/// Ranges from this number on were never used.
static USED: AtomicU32 = AtomicU32::new(0);

/// The program registers `allocator` for `len` bytes from `start`. `false` if there is no room, or nothing to register.
pub(super) fn register(allocator: *const Allocator, start: u64, len: u64) -> bool {
    if allocator.is_null() || len == 0 {
        return false;
    }
    let allocator = allocator.cast_mut();
    for (number, range) in REGISTERED.iter().enumerate() {
        let null = core::ptr::null_mut();
        if range
            .allocator
            .compare_exchange(null, allocator, AcqRel, Relaxed)
            .is_ok()
        {
            range.start.store(start, Relaxed);
            range.len.store(len, Release);
            USED.fetch_max(number as u32 + 1, Release);
            return true;
        }
    }
    false
}

/// The program takes back what it registered from `start` on.
pub(super) fn unregister(start: u64) -> bool {
    let used = USED.load(Acquire) as usize;
    let mut ranges = REGISTERED[..used].iter();
    let found =
        ranges.find(|range| range.len.load(Acquire) != 0 && range.start.load(Relaxed) == start);
    let Some(range) = found else { return false };
    range.len.store(0, Release);
    range.allocator.store(core::ptr::null_mut(), Release);
    true
}

/// Asks the registered allocators for `address`, smaller ranges first: `skip` answers are passed over. `Err` with how many are left to skip.
pub(super) fn ask(address: u64, mut skip: u32, answer: &mut Answer) -> Result<(), u32> {
    let used = USED.load(Acquire) as usize;
    if used == 0 {
        return Err(skip);
    }
    let mut below = 0;
    loop {
        let mut next: Option<(u64, *const Allocator)> = None;
        for range in &REGISTERED[..used] {
            let len = range.len.load(Acquire);
            if address.wrapping_sub(range.start.load(Relaxed)) < len
                && len > below
                && next.is_none_or(|(least, _)| len < least)
            {
                next = Some((len, range.allocator.load(Acquire)));
            }
        }
        let Some((len, allocator)) = next else {
            return Err(skip);
        };
        below = len;
        // SAFETY: the program keeps a registered allocator, and answers by its own function.
        let is_answered = unsafe {
            allocator.as_ref().is_some_and(|this| {
                *answer = Answer::EMPTY;
                answer.allocator = allocator;
                this.what
                    .is_some_and(|what| what(allocator, address as *const c_void, answer) != 0)
            })
        };
        match (is_answered, skip) {
            (true, 0) => return Ok(()),
            (true, _) => skip -= 1,
            (false, _) => {}
        }
    }
}
