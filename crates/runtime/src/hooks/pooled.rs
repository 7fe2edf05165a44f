//! *What runs instead of a pool's functions?* — of whatever names, as they were declared ([`Declared`]).

#![allow(unsafe_code)] // Calls originals through their addresses.

use super::{Hook, Planted, begin_writing, end_writing, enter};
use crate::region::region;
use crate::threads::{self, State, WRITING};
use crate::{pools, process, walk};
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::sync::atomic::compiler_fence;
use pointee_model::entries::{Declared, Role};

/// The arguments of a call.
type Arguments = [usize; Declared::SEEN as usize];

fn argument(arguments: &Arguments, number: Option<u8>) -> Option<usize> {
    arguments.get(usize::from(number?)).copied()
}

/// This thread, if it is outside, and in no function of a pool.
#[inline(always)]
fn enter_pool(slot: *const u64) -> Option<&'static State> {
    enter(slot).filter(|state| pools::enter(state, slot))
}

/// Records the block that a call returned.
///
/// # Safety
/// `slot` is the stack pointer at the hooked entry.
unsafe fn record(
    state: &State,
    planted: &Planted,
    arguments: &Arguments,
    slot: *const u64,
    rbp: u64,
    block: usize,
) {
    let declared = planted.declared();
    let size = argument(arguments, Some(declared.argument)).unwrap_or(0);
    let count = argument(arguments, declared.count).unwrap_or(1);
    let handle = argument(arguments, declared.pool).unwrap_or(0);
    // SAFETY: the caller's promise.
    let origin = unsafe { walk::origin(planted.root(), slot, rbp) };
    pools::record(
        region(),
        state.thread(),
        origin,
        block as u64,
        size.saturating_mul(count) as u64,
        handle as u64,
    );
}

/// The hook of a function that cuts out blocks.
pub(super) fn allocating(says: Declared) -> Hook {
    match (says.argument, says.count) {
        (0, None) => on_pool_alloc::<0>,
        (1, None) => on_pool_alloc::<1>,
        (2, None) => on_pool_alloc::<2>,
        _ => on_any_pool_alloc,
    }
}

/// A function whose argument `SIZE` is the size: what nearly every call is, in the fewest instructions. All else is
/// [`on_any_pool_alloc`]'s.
unsafe extern "C" fn on_pool_alloc<const SIZE: usize>(
    a: usize,
    b: usize,
    c: usize,
    slot: *const u64,
    rbp: u64,
    planted: &'static Planted,
) -> usize {
    let usual = threads::outside().filter(|state| pools::enter_first(state, slot));
    let Some(state) = usual else {
        // SAFETY: the program's own call.
        return unsafe { on_any_pool_alloc(a, b, c, slot, rbp, planted) };
    };
    // SAFETY: the program's own call.
    let block = unsafe { planted.call(a, b, c) };
    pools::leave(state);
    state.gate.store(WRITING, Relaxed);
    compiler_fence(Acquire);
    let size = [a, b, c][SIZE] as u64;
    let is_recorded = !process::is_gate_closed() && {
        // SAFETY: `slot` is the stack pointer at the hooked entry.
        let origin = unsafe { walk::known_origin(planted.root(), slot, rbp) };
        origin.is_some_and(|origin| {
            pools::record_new(region(), state.thread(), origin, block as u64, size)
        })
    };
    if is_recorded {
        end_writing(state);
    } else {
        // SAFETY: as above.
        unsafe { finish(state, planted, &[a, b, c], slot, rbp, block) };
    }
    block
}

/// # Safety
/// As for [`record`].
#[cold]
unsafe fn finish(
    state: &State,
    planted: &Planted,
    arguments: &Arguments,
    slot: *const u64,
    rbp: u64,
    block: usize,
) {
    begin_writing(state);
    if block != 0 {
        // SAFETY: the caller's promise.
        unsafe { record(state, planted, arguments, slot, rbp, block) };
    }
    end_writing(state);
}

unsafe extern "C" fn on_any_pool_alloc(
    a: usize,
    b: usize,
    c: usize,
    slot: *const u64,
    rbp: u64,
    planted: &'static Planted,
) -> usize {
    let Some(state) = enter_pool(slot) else {
        // SAFETY: the program's own call.
        return unsafe { planted.call(a, b, c) };
    };
    // SAFETY: the program's own call.
    let block = unsafe { planted.call(a, b, c) };
    pools::leave(state);
    // SAFETY: `slot` is the stack pointer at the hooked entry.
    unsafe { finish(state, planted, &[a, b, c], slot, rbp, block) };
    block
}

pub(super) unsafe extern "C" fn on_pool_realloc(
    a: usize,
    b: usize,
    c: usize,
    slot: *const u64,
    rbp: u64,
    planted: &'static Planted,
) -> usize {
    let arguments = [a, b, c];
    let Some(state) = enter_pool(slot) else {
        // SAFETY: the program's own call.
        return unsafe { planted.call(a, b, c) };
    };
    let (region, declared) = (region(), planted.declared());
    let old = argument(&arguments, declared.old).unwrap_or(0) as u64;
    begin_writing(state);
    let before = region.nested.erase(old);
    if let Some(before) = before {
        pools::forget(region, state.thread(), before);
    }
    end_writing(state);
    // SAFETY: the program's own call.
    let block = unsafe { planted.call(a, b, c) };
    pools::leave(state);
    begin_writing(state);
    if block != 0 {
        // SAFETY: `slot` is the stack pointer at the hooked entry.
        unsafe { record(state, planted, &arguments, slot, rbp, block) };
    } else if let Some(before) = before
        && argument(&arguments, Some(declared.argument)) != Some(0)
    {
        // It failed: the block lives on.
        pools::record(region, state.thread(), before.origin, old, before.size, 0);
    }
    end_writing(state);
    block
}

/// Of all functions that take something back: before they do.
pub(super) unsafe extern "C" fn on_pool_free(
    a: usize,
    b: usize,
    c: usize,
    slot: *const u64,
    _: u64,
    planted: &'static Planted,
) -> usize {
    let declared = planted.declared();
    let what = argument(&[a, b, c], Some(declared.argument)).unwrap_or(0) as u64;
    if let Some(state) = threads::outside().or_else(|| enter(slot))
        && what != 0
        && region().nested.any()
    {
        let (region, thread) = (region(), state.thread());
        begin_writing(state);
        match declared.role {
            Role::PoolReset => pools::take_back_all(region, thread, what),
            Role::PoolTrim => pools::take_back_from(region, thread, what),
            _ => {
                if let Some(block) = region.nested.erase(what) {
                    pools::forget(region, thread, block);
                }
            }
        }
        end_writing(state);
    }
    // SAFETY: the program's own call.
    unsafe { planted.call(a, b, c) }
}
