//! *What does a hook know of the call that it runs for?*

#![allow(unsafe_code)] // Reads the program's stack.

use super::Planted;
use crate::threads::{self, State};
use crate::walk;

/// A hook: the three arguments that any allocation function has at most, where the return address lies,
/// the caller's frame pointer, the entry's record.
pub(super) type Hook =
    unsafe extern "C" fn(usize, usize, usize, *const u64, u64, &'static Planted) -> usize;

/// A call of a hooked function, which lasts as long as there is one of these.
pub(super) struct Call {
    pub(super) args: [usize; 3],
    /// The stack pointer at the entry, where the return address lies.
    pub(super) slot: *const u64,
    rbp: u64,
    /// The function.
    pub(super) planted: &'static Planted,
}

impl Call {
    /// # Safety
    /// As a hook is entered.
    #[inline(always)]
    pub(super) unsafe fn new(
        args: [usize; 3],
        slot: *const u64,
        rbp: u64,
        planted: &'static Planted,
    ) -> Self {
        Self {
            args,
            slot,
            rbp,
            planted,
        }
    }

    /// Calls the original.
    #[inline(always)]
    pub(super) fn original(&self) -> usize {
        let [a, b, c] = self.args;
        // SAFETY: the program's own call.
        unsafe { self.planted.call(a, b, c) }
    }

    /// This thread, if it is outside at this call.
    #[inline(always)]
    pub(super) fn enter(&self) -> Option<&'static State> {
        let state = threads::current()?;
        state.is_outside(self.slot).then_some(state)
    }

    /// Where it comes from.
    #[inline(always)]
    pub(super) fn origin(&self) -> u32 {
        // SAFETY: `slot` is the stack pointer at the entry.
        unsafe { walk::origin(self.planted.root(), self.slot, self.rbp) }
    }

    /// Where it returns to.
    pub(super) fn return_address(&self) -> u64 {
        // SAFETY: the call lasts.
        unsafe { *self.slot }
    }
}

/// Hooks ([`Hook`]), each written as a function of its [`Call`].
macro_rules! hooks {
    ($($(#[$meta:meta])* $visibility:vis fn $name:ident $([$constant:ident])? ($call:ident) $body:block)*) => {$(
        $(#[$meta])*
        $visibility unsafe extern "C" fn $name$(<const $constant: usize>)?(
            a: usize,
            b: usize,
            c: usize,
            slot: *const u64,
            rbp: u64,
            planted: &'static Planted,
        ) -> usize {
            // SAFETY: what the hook was entered with.
            let $call = unsafe { $crate::hooks::call::Call::new([a, b, c], slot, rbp, planted) };
            $body
        }
    )*};
}
pub(super) use hooks;
