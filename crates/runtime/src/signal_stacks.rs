//! *Which alternate signal stack does each thread have?* — noted as it is set ([`pointee_index::signal_stacks`]), since the kernel tells nobody else.
//!
//! What a thread had before it was first seen is asked of the kernel then, by the thread itself. A handler set with `SS_AUTODISARM` runs on a stack that
//! the kernel counts as unset meanwhile; here it stays set.

use crate::hooks::is_filtered;
use crate::region::region;
use crate::sys;
use crate::threads::{self, State};
use pointee_index::signal_stacks::Seen;

/// Bytes of the smallest that the kernel takes (`MINSIGSTKSZ` of x86-64).
pub(crate) const LEAST: u64 = 2048;

/// Notes what the thread of `state`, which calls, has now.
pub(crate) fn take_over(state: &State) {
    let stack = if is_filtered() {
        None
    } else {
        sys::signal_stack()
    };
    note(state, stack);
}

/// The calling thread has set what the `stack_t` says.
pub(crate) fn was_set(stack: [u64; 3]) {
    if let Some(state) = threads::current() {
        note(state, sys::enabled(stack));
    }
}

fn note(state: &State, stack: Option<(u64, u64)>) {
    let (thread, _) = state.owner();
    let seen = stack.map(|(start, len)| Seen { start, len, thread });
    region().signal_stacks.set(state.number(), seen);
}

/// The calling thread's.
pub(crate) fn own() -> Option<Seen> {
    let stacks = &region().signal_stacks;
    if !stacks.any() {
        return None;
    }
    stacks.of(threads::current()?.number())
}

/// The stack of a living thread that holds `address`.
pub(crate) fn holding(address: u64) -> Option<Seen> {
    let mut stacks = region().signal_stacks.all();
    stacks.find(|stack| stack.holds(address) && (is_filtered() || sys::is_thread(stack.thread)))
}
