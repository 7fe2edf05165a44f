//! *Where do relays and trampolines lie?* On islands: executable pages within reach of the code, each with writable pages
//! beside it in which the engine keeps what belongs to its slots. An island without a used slot is given back.
//!
//! ```text
//!    executable: slot 0 | slot 1 | … | slot 63        writable: Island, Hook 0 | Hook 1 | … | Hook 63
//!                relay, trampoline                              plan, unwind rules, file for gdb
//!             or probe, trampoline
//! ```
//!
//! Where the code itself says where its jump arrives (`plan_one_byte` of `pointee-patch`), the slot lies exactly there, on an island of one
//! or two pages on which others come to lie only if they must be there too.

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
/// Slots on an island that lies where it must.
const FIXED_SLOTS: usize = 16;
/// Islands that lie where they must: each is two mappings, of which a process may have 65,530 (`vm.max_map_count`).
const FIXED_MOST: usize = 1024;
/// How far an island may lie from what it serves: half the reach of a `rel32`, so that operands of displaced
/// instructions are in reach too.
const REACH: u64 = 1 << 30;

/// An island; lies in its own writable pages, its hooks behind it.
#[repr(C)]
pub(crate) struct Island {
    next: *mut Island,
    code: RunAddr,
    code_len: usize,
    slots: usize,
    /// Its slots lie where code leads to, and are as long as whoever takes them says.
    fixed: bool,
}

const fn data_len(slots: usize) -> usize {
    (HOOKS_AT + slots * size_of::<Hook>()).next_multiple_of(4096)
}

const HOOKS_AT: usize = size_of::<Island>().next_multiple_of(align_of::<Hook>());

impl Island {
    /// The slots of the island at `this`.
    ///
    /// # Safety
    /// It is mapped while they are used, and each is used by one at a time.
    unsafe fn hooks(this: *mut Self) -> &'static mut [Hook] {
        // SAFETY: made with room for them; the rest is the caller's promise.
        unsafe {
            let first = this.cast::<u8>().add(HOOKS_AT).cast::<Hook>();
            core::slice::from_raw_parts_mut(first, (*this).slots)
        }
    }
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
        let fits = |hook: &Hook| {
            hook.slot_len() == len && hook.is_free() && hook.slot_at().0.abs_diff(near.0) < REACH
        };
        let mut islands = self.islands().filter(|island| !is_fixed(*island));
        let free = islands.find_map(|island| hooks_of(island).find(|hook| fits(hook)));
        match free {
            Some(hook) => Some(hook),
            None => {
                let code_len = len * SLOTS;
                let code = map_near(near, code_len, map::READ | map::EXEC)?;
                let island = self.add(code, code_len, SLOTS, false)?;
                for (number, hook) in hooks_of(island).enumerate() {
                    hook.set_slot(code.plus((number * len) as u64), len);
                }
                hooks_of(island).next()
            }
        }
    }

    /// A slot of `len` bytes at `at`, if there is room.
    pub(crate) fn take_at(&mut self, at: RunAddr, len: usize) -> Option<&'static mut Hook> {
        let end = at.0.checked_add(len as u64)?;
        let (first, last) = (at.0 & !0xfff, end.next_multiple_of(4096));
        let holds = |island: *mut Island| {
            // SAFETY: one of the list.
            let (code, len) = unsafe { ((*island).code.0, (*island).code_len as u64) };
            (code..code + len).contains(&at.0) && end <= code + len
        };
        let mut fixed = self.islands().filter(|island| is_fixed(*island));
        let island = match fixed.find(|island| holds(*island)) {
            Some(island) => island,
            None if self.islands().filter(|island| is_fixed(*island)).count() < FIXED_MOST => {
                let code_len = (last - first) as usize;
                let code = map_at(first, code_len)?;
                self.add(code, code_len, FIXED_SLOTS, true)?
            }
            None => return None,
        };
        let meets = |hook: &Hook| {
            let slot = hook.slot_at().0;
            !hook.is_free() && slot < end && at.0 < slot + hook.slot_len() as u64
        };
        if hooks_of(island).any(|hook| meets(hook)) {
            return None;
        }
        let hook = hooks_of(island).find(|hook| hook.is_free())?;
        hook.set_slot(at, len);
        Some(hook)
    }

    /// All slots, used and free.
    pub(crate) fn hooks(&self) -> impl Iterator<Item = &'static mut Hook> + use<> {
        self.islands().flat_map(hooks_of)
    }

    fn islands(&self) -> impl Iterator<Item = *mut Island> + use<> {
        let mut island = self.first;
        core::iter::from_fn(move || {
            let this = island;
            // SAFETY: islands are given back only by `give_back`, under the same lock, with no iteration under way.
            island = unsafe { this.as_ref() }?.next;
            Some(this)
        })
    }

    /// Makes an island of executable pages that were just mapped.
    fn add(
        &mut self,
        code: RunAddr,
        code_len: usize,
        slots: usize,
        fixed: bool,
    ) -> Option<*mut Island> {
        // Near by: tables of unwind rules hold distances from the code.
        let writable = map::READ | map::WRITE;
        let data = match map_near(code, data_len(slots), writable) {
            Some(data) => Ok(data.0),
            None => sys::map_pages(None, data_len(slots), writable),
        };
        let Ok(data) = data else {
            // SAFETY: just mapped.
            unsafe { sys::unmap_pages(code.0, code_len) };
            return None;
        };
        let island = data as *mut Island;
        // SAFETY: fresh zeroed pages, in which zeros are free slots.
        unsafe {
            island.write(Island {
                next: self.first,
                code,
                code_len,
                slots,
                fixed,
            });
        }
        self.first = island;
        Some(island)
    }

    /// Gives back the pages of islands that serve nobody.
    pub(crate) fn give_back(&mut self) {
        let mut link: *mut *mut Island = &raw mut self.first;
        // SAFETY: the links lead through our own pages; an island is left before it is unmapped.
        unsafe {
            while !(*link).is_null() {
                let island = *link;
                if hooks_of(island).any(|hook| !hook.is_free()) {
                    link = &raw mut (*island).next;
                    continue;
                }
                *link = (*island).next;
                sys::unmap_pages((*island).code.0, (*island).code_len);
                sys::unmap_pages(island as u64, data_len((*island).slots));
            }
        }
    }
}

fn is_fixed(island: *mut Island) -> bool {
    // SAFETY: one of the list.
    unsafe { (*island).fixed }
}

fn hooks_of(island: *mut Island) -> impl Iterator<Item = &'static mut Hook> {
    // SAFETY: one of the list, and under the engine's lock.
    unsafe { Island::hooks(island) }.iter_mut()
}

/// Maps executable pages at `at`, where nothing is yet.
fn map_at(at: u64, len: usize) -> Option<RunAddr> {
    // Lower, no program may map.
    const LOWEST: u64 = 1 << 16;
    if at < LOWEST {
        return None;
    }
    let mapped = sys::map_pages(Some(at), len, map::READ | map::EXEC).ok()?;
    if mapped != at {
        // SAFETY: just mapped, by a kernel that takes the address for a hint only.
        unsafe { sys::unmap_pages(mapped, len) };
        return None;
    }
    Some(RunAddr(at))
}

/// Maps pages as near to `address` as can be.
fn map_near(address: RunAddr, len: usize, protection: usize) -> Option<RunAddr> {
    let page = address.0 & !0xffff;
    // Below first: above an executable lies its heap. Steps grow, so that a few dozen tries span the reach.
    let mut distance = 1_u64 << 16;
    while distance < REACH {
        for hint in [page.checked_sub(distance), page.checked_add(distance)] {
            let Some(hint) = hint.filter(|hint| *hint >= 1 << 16) else {
                continue;
            };
            let Ok(at) = sys::map_pages(Some(hint), len, protection) else {
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
