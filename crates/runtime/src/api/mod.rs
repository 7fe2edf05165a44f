//! *What does the program get to know of itself?* — the C API (`include/pointee.h`).
//!
//! ```text
//!   pointee.h    one slot in each executable or library that asks
//!     slot         found by its note, filled with the calls below when the module is seen
//!   calls        the functions that C calls
//!   what         address ─▶ registered allocator, block, variable, local: kind, base, size, type, site, allocator
//!     allocators   who gave it, who takes it back
//!     sites        origin ─▶ site and type
//!     objects      address ─▶ module ─▶ variable, function, section
//!     frames       address ─▶ frame of the asking thread ─▶ variable
//!     carved       address ─▶ array of variable length or alloca block in such a frame
//!     thread_locals  address ─▶ variable of a thread
//!     signal_stacks  address ─▶ alternate signal stack
//!     mappings     address ─▶ mapping
//!     stated       types that the program said itself
//!   types        one record for each type of the process (names: how it is written)
//!     lookup       a name ─▶ record
//!     subobjects   type and offset ─▶ what starts there: is_a, like_a, named_a
//! ```
//!
//! Invariants: calls take no lock, allocate nothing from the program, make no system call (but for mappings, and what is another thread's), and
//! may be made from signal handlers. What is remembered is the same whoever finds it out, so that the first store may stay.

#![allow(unsafe_code)] // A cell that is written once.

mod allocators;
mod calls;
mod carved;
mod frames;
mod lookup;
mod names;
mod objects;
mod room;
mod sites;
mod slot;
mod stated;
mod subobjects;
mod thread_locals;
mod types;
mod what;

use crate::modules::{self, Module};
use crate::region::{is_disabled, region};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use pointee_index::direct::Reader;
use pointee_index::read::Block;
use pointee_model::image::Image;

/// Set once there is room for what is remembered.
static IS_UP: AtomicBool = AtomicBool::new(false);

/// Blocks of allocators, and those that pools cut out of them.
struct Levels {
    outer: Reader,
    nested: Reader,
}

struct ReaderCell(UnsafeCell<MaybeUninit<Levels>>);
// SAFETY: written once, before `IS_UP` is set.
unsafe impl Sync for ReaderCell {}
static READER: ReaderCell = ReaderCell(UnsafeCell::new(MaybeUninit::uninit()));

/// The image that questions about `module` are answered from.
pub(crate) fn image_of(module: &'static Module) -> Option<&'static Image<'static>> {
    module.image.as_ref().or_else(|| objects::image(module))
}

/// The type that goes by the name of a symbol, as `dlsym` would find it. Null if there is none.
///
/// # Safety
/// `name` is a C string.
pub(crate) unsafe extern "C" fn type_named(
    name: *const core::ffi::c_char,
) -> *const core::ffi::c_void {
    // SAFETY: the caller's promise.
    unsafe { calls::type_named(name) }.cast()
}

/// A module was loaded: fills its slot, if it has one. One thread at a time.
pub(crate) fn arrived(module: &'static Module) {
    slot::fill(module, || {
        if set_up() {
            core::ptr::from_ref(&calls::CALLS).cast_mut().cast()
        } else {
            core::ptr::null_mut()
        }
    });
    if IS_UP.load(Relaxed) {
        objects::add(module);
        thread_locals::add(module);
    }
}

fn set_up() -> bool {
    if IS_UP.load(Relaxed) {
        return true;
    }
    if !(room::set_up() && types::set_up() && sites::set_up()) {
        return false;
    }
    // SAFETY: the region stays mapped; nobody reads the cell before `IS_UP` is set.
    unsafe {
        let (base, layout) = (region().base, &region().layout);
        let (outer, nested) = (Reader::new(base, layout), Reader::of_pools(base, layout));
        (*READER.0.get()).write(Levels { outer, nested });
    }
    modules::each(objects::add);
    modules::each(thread_locals::add);
    IS_UP.store(true, Release);
    true
}

/// The index; `None` where this process records nothing.
#[inline(always)]
fn index() -> Option<&'static Levels> {
    // SAFETY: written before `IS_UP` was set.
    (IS_UP.load(Acquire) && !is_disabled()).then(|| unsafe { (*READER.0.get()).assume_init_ref() })
}

impl Levels {
    /// The deepest live block that holds `address`, or what holds that, `skip` times: a pool's block lies in another, perhaps.
    /// `Err` with what is left of `skip` where there are not as many.
    #[inline(always)]
    fn block_at(&self, address: u64, mut skip: u32) -> Result<Block, u32> {
        if region().nested.any()
            && let Some(block) = self.nested.block_at(address)
        {
            if skip == 0 {
                return Ok(block);
            }
            skip -= 1;
        }
        match self.outer.block_at(address) {
            Some(block) if skip == 0 => Ok(block),
            Some(_) => Err(skip - 1),
            None => Err(skip),
        }
    }
}
