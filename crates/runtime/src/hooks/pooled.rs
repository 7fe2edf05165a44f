//! *What runs before and after a pool's functions?* — of whatever names, as they were declared (`pointee_model::entries::Declared`).
//!
//! The usual case of those that cut out a block, or take one back, is written in assembly ([`crate::fast_pool`]); what is here does all cases.

#![allow(unsafe_code)] // Hooks are entered from assembly.

use super::call::{Call, hooks};
use super::{Planted, begin_writing, end_writing};
use crate::pools;
use crate::region::region;
use crate::threads::{self, State};
use pointee_model::entries::Role;

fn argument(call: &Call, number: Option<u8>) -> Option<usize> {
    call.args.get(usize::from(number?)).copied()
}

/// This thread, if it is outside at a call whose return address lies at `slot`, and in no function of a pool: from here on it is.
fn enter(slot: *const u64) -> Option<&'static State> {
    let state = threads::current().filter(|state| state.is_outside(slot));
    state.filter(|state| pools::enter(state, slot))
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

hooks! {
    pub(super) fn on_pool_realloc(call) {
        let Some(state) = enter(call.slot) else {
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
}

/// Opens a call of a function that cuts out blocks, of a thread that is not in the usual state. `false`: it is not recorded.
pub(crate) extern "C" fn enter_pool(slot: *const u64) -> bool {
    enter(slot).is_some()
}

/// Closes such a call, which returned `block`, whatever it is, and records that; gives it back.
///
/// # Safety
/// As [`crate::fast_pool::allocating`] calls it: `arguments` are those of the call, whose return address lies at `slot`.
pub(crate) unsafe extern "C" fn allocated_from_pool(
    block: usize,
    arguments: &[usize; 3],
    slot: *const u64,
    rbp: u64,
    planted: &'static Planted,
) -> usize {
    let Some(state) = threads::current() else {
        return block;
    };
    // SAFETY: the caller's promise.
    let call = unsafe { Call::new(*arguments, slot, rbp, planted) };
    pools::leave(state);
    begin_writing(state);
    if block != 0 {
        record(state, &call, block);
    }
    end_writing(state);
    block
}

/// What is done before a function takes something back.
///
/// # Safety
/// As [`crate::fast_pool::taking_back`] calls it: `arguments` are those of the call, whose return address lies at `slot`.
pub(crate) unsafe extern "C" fn taken_back(
    arguments: &[usize; 3],
    slot: *const u64,
    planted: &'static Planted,
) {
    let declared = planted.declared();
    let what = arguments.get(usize::from(declared.argument)).copied();
    let what = what.unwrap_or(0) as u64;
    let state = threads::current().filter(|state| state.is_outside(slot));
    let Some(state) = state.filter(|_| what != 0 && region().nested.any()) else {
        return;
    };
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
