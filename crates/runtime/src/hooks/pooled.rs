//! *What runs instead of a pool's functions?* — of whatever names, as they were declared ([`Declared`]).

#![allow(unsafe_code)] // Hooks are entered from assembly.

use super::call::{Call, Hook, hooks};
use super::{Planted, begin_writing, end_writing};
use crate::region::region;
use crate::threads::{self, State, WRITING};
use crate::{pools, process};
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::sync::atomic::compiler_fence;
use pointee_model::entries::{Declared, Role};

fn argument(call: &Call, number: Option<u8>) -> Option<usize> {
    call.args.get(usize::from(number?)).copied()
}

/// This thread, if it is outside, and in no function of a pool.
#[inline(always)]
fn enter_pool(call: &Call) -> Option<&'static State> {
    call.enter().filter(|state| pools::enter(state, call.slot))
}

/// Records the block that a call returned.
fn record(state: &State, call: &Call, block: usize) {
    let declared = call.planted.declared();
    let size = argument(call, Some(declared.argument)).unwrap_or(0);
    let count = argument(call, declared.count).unwrap_or(1);
    let handle = argument(call, declared.pool).unwrap_or(0);
    pools::record(
        region(),
        state.thread(),
        call.origin(),
        block as u64,
        size.saturating_mul(count) as u64,
        handle as u64,
        declared.is_found,
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

hooks! {
    /// A function whose argument `SIZE` is the size: what nearly every call is, in the fewest instructions.
    fn on_pool_alloc[SIZE](call) {
        let usual = threads::outside().filter(|state| pools::enter_first(state, call.slot));
        let Some(state) = usual else {
            return allocate(&call);
        };
        let block = call.original();
        pools::leave(state);
        state.gate.store(WRITING, Relaxed);
        compiler_fence(Acquire);
        let size = call.args[SIZE] as u64;
        let is_recorded = !process::is_gate_closed()
            && call.known_origin().is_some_and(|origin| {
                pools::record_new(region(), state.thread(), origin, block as u64, size)
            });
        if is_recorded {
            end_writing(state);
        } else {
            finish(state, &call, block);
        }
        block
    }

    fn on_any_pool_alloc(call) {
        allocate(&call)
    }

    pub(super) fn on_pool_realloc(call) {
        let Some(state) = enter_pool(&call) else {
            return call.original();
        };
        let (region, declared) = (region(), call.planted.declared());
        let old = argument(&call, declared.old).unwrap_or(0) as u64;
        begin_writing(state);
        let before = region.nested.erase(old);
        if let Some(before) = before {
            pools::forget(region, state.thread(), before);
        }
        end_writing(state);
        let block = call.original();
        pools::leave(state);
        begin_writing(state);
        if block != 0 {
            record(state, &call, block);
        } else if let Some(before) = before
            && argument(&call, Some(declared.argument)) != Some(0)
        {
            // It failed: the block lives on.
            pools::record(region, state.thread(), before.origin, old, before.size, 0, false);
        }
        end_writing(state);
        block
    }

    /// Of all functions that take something back: before they do.
    pub(super) fn on_pool_free(call) {
        let declared = call.planted.declared();
        let what = argument(&call, Some(declared.argument)).unwrap_or(0) as u64;
        if let Some(state) = threads::outside().or_else(|| call.enter())
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
        call.original()
    }
}

/// Any call of a function that cuts out blocks.
#[inline(never)]
fn allocate(call: &Call) -> usize {
    let Some(state) = enter_pool(call) else {
        return call.original();
    };
    let block = call.original();
    pools::leave(state);
    finish(state, call, block);
    block
}

#[cold]
fn finish(state: &State, call: &Call, block: usize) {
    begin_writing(state);
    if block != 0 {
        record(state, call, block);
    }
    end_writing(state);
}
