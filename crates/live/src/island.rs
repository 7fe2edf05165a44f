//! *Where do relays and trampolines lie?* On islands: executable pages within reach of the code, each with writable pages
//! beside it in which the engine keeps what belongs to its slots. An island without a used slot is given back.
//!
//! ```text
//!    executable: slot 0 | slot 1 | … | slot 63        writable: Island, Hook 0 | Hook 1 | … | Hook 63
//!                relay, trampoline                              plan, unwind rules, file for gdb
//!             or probe, trampoline
//! ```

#![allow(unsafe_code)] // Memory comes from the kernel, and hooks lie in it.

use pointee_model::addr::RunAddr;
use pointee_patch::TRAMPOLINE_MAX;

use crate::hook::Hook;
use crate::sys::{self, map};

/// Slots of an island.
pub(crate) const SLOTS: usize = 64;
/// Bytes a relay takes at most.
pub(crate) const RELAY: u64 = 32;
/// Bytes of a slot: relay, trampoline.
pub(crate) const SLOT: usize = (RELAY as usize + TRAMPOLINE_MAX).next_multiple_of(64);
/// Bytes of a slot for a probe with context: eight actions around which sixteen registers of 64 bytes are kept take 1,240.
pub(crate) const PROBE_SLOT: usize = 1536;
const DATA: usize = size_of::<Island>().next_multiple_of(4096);
/// How far an island may lie from what it serves: half the reach of a `rel32`, so that operands of displaced
/// instructions are in reach too.
const REACH: u64 = 1 << 30;

/// An island; lies in its own writable pages.
#[repr(C)]
pub(crate) struct Island {
    next: *mut Island,
    code: RunAddr,
    slot_len: usize,
    hooks: [Hook; SLOTS],
}

/// All islands.
pub(crate) struct Islands {
    first: *mut Island,
}

impl Islands {
    pub(crate) const fn new() -> Self {
        Self {
            first: core::ptr::null_mut(),
        }
    }

    /// A free slot of `len` bytes within reach of `near`.
    pub(crate) fn take(&mut self, near: RunAddr, len: usize) -> Option<&'static mut Hook> {
        let fits = |hook: &Hook| hook.slot_len() == len && hook.is_free();
        let free = self
            .hooks()
            .find(|hook| fits(hook) && hook.slot_at().0.abs_diff(near.0) < REACH);
        match free {
            Some(hook) => Some(hook),
            None => self.add(near, len)?.first_mut(),
        }
    }

    /// All slots, used and free.
    pub(crate) fn hooks(&self) -> impl Iterator<Item = &'static mut Hook> + use<> {
        let mut island = self.first;
        core::iter::from_fn(move || {
            // SAFETY: islands are given back only by `give_back`, under the same lock, with no iteration under way.
            let this = unsafe { island.as_mut() }?;
            island = this.next;
            Some(this.hooks.iter_mut())
        })
        .flatten()
    }

    fn add(&mut self, near: RunAddr, slot_len: usize) -> Option<&'static mut [Hook; SLOTS]> {
        let code_len = slot_len * SLOTS;
        let code = map_near(near, code_len)?;
        let Ok(data) = sys::map_pages(None, DATA, map::READ | map::WRITE) else {
            // SAFETY: just mapped.
            unsafe { sys::unmap_pages(code.0, code_len) };
            return None;
        };
        let island = data as *mut Island;
        // SAFETY: fresh zeroed pages, in which zeros are a free slot.
        let this = unsafe { &mut *island };
        this.next = self.first;
        this.code = code;
        this.slot_len = slot_len;
        for (number, hook) in this.hooks.iter_mut().enumerate() {
            hook.set_slot(code.plus((number * slot_len) as u64), slot_len);
        }
        self.first = island;
        Some(&mut this.hooks)
    }

    /// Gives back the pages of islands that serve nobody.
    pub(crate) fn give_back(&mut self) {
        let mut link: *mut *mut Island = &raw mut self.first;
        // SAFETY: the links lead through our own pages; an island is left before it is unmapped.
        unsafe {
            while let Some(island) = (*link).as_mut() {
                if island.hooks.iter().any(|hook| !hook.is_free()) {
                    link = &raw mut island.next;
                    continue;
                }
                *link = island.next;
                sys::unmap_pages(island.code.0, island.slot_len * SLOTS);
                sys::unmap_pages(core::ptr::from_mut(island) as u64, DATA);
            }
        }
    }
}

/// Maps executable pages as near to `address` as can be.
fn map_near(address: RunAddr, len: usize) -> Option<RunAddr> {
    let page = address.0 & !0xffff;
    // Below first: above an executable lies its heap. Steps grow, so that a few dozen tries span the reach.
    let mut distance = 1_u64 << 16;
    while distance < REACH {
        for hint in [page.checked_sub(distance), page.checked_add(distance)] {
            let Some(hint) = hint.filter(|hint| *hint >= 1 << 16) else {
                continue;
            };
            let Ok(at) = sys::map_pages(Some(hint), len, map::READ | map::EXEC) else {
                continue;
            };
            if at.abs_diff(address.0) < REACH {
                return Some(RunAddr(at));
            }
            // SAFETY: just mapped by a kernel that takes the address for a hint only.
            unsafe { sys::unmap_pages(at, len) };
        }
        distance += (distance / 4).next_multiple_of(1 << 16);
    }
    None
}
