//! *Which function does this call or jump reach?* — for the few forms in which compilers and linkers write direct ones.
//!
//! ```text
//!   call rel32          e8 ….            call [rip+disp32]   ff 15 ….      by a return address
//!   jmp rel32           e9 ….            jmp [rip+disp32]    ff 25 ….      also after endbr64, with a bnd prefix
//! ```
//!
//! A linkage table's entry is such a jump through a slot. A slot that is not bound yet leads back into the table, to a push of the
//! relocation's number (System V x86-64 psABI, §5.2): then the symbol's name is looked up as the dynamic linker will, in
//! the order in which objects were loaded.

#![allow(unsafe_code)] // Reads code and linkage tables of loaded objects.

use crate::locate;
use crate::modules::{self, Module};

/// The code that the call before `return_address` reaches, through a bound slot of a linkage table if it calls one;
/// `None` if the call is indirect or not understood.
pub(crate) fn called_before(return_address: u64) -> Option<u64> {
    let module = modules::find(return_address)?;
    let target =
        if let Some([0xe8, distance @ ..]) = code::<5>(module, return_address.checked_sub(5)?) {
            relative(return_address, distance)
        } else if let Some([0xff, 0x15, distance @ ..]) =
            code::<6>(module, return_address.checked_sub(6)?)
        {
            slot(module, relative(return_address, distance))?
        } else {
            return None;
        };
    Some(through_table(target))
}

/// The code that a function at `entry` jumps to, if it does nothing else.
pub(crate) fn jumps_to(entry: u64) -> Option<u64> {
    let module = modules::find(entry)?;
    let at = after_landing_mark(module, entry);
    if let Some([0xe9, distance @ ..]) = code::<5>(module, at) {
        return Some(through_table(relative(at + 5, distance)));
    }
    jump_through_slot(module, at).map(through_table)
}

/// Where a linkage table's entry at `target` leads, or `target` itself.
fn through_table(target: u64) -> u64 {
    let found = modules::find(target).and_then(|module| {
        let at = after_landing_mark(module, target);
        let bound = jump_through_slot(module, at)?;
        match relocation_pushed_at(module, bound) {
            Some(number) => locate::bound_later(module, number),
            None => Some(bound),
        }
    });
    found.unwrap_or(target)
}

/// What the slot holds that the jump at `at` goes through.
fn jump_through_slot(module: &Module, at: u64) -> Option<u64> {
    let at = match code::<1>(module, at)? {
        [0xf2] => at + 1,
        _ => at,
    };
    match code::<6>(module, at)? {
        [0xff, 0x25, distance @ ..] => slot(module, relative(at + 6, distance)),
        _ => None,
    }
}

/// The relocation that an unbound slot's code asks the dynamic linker for.
fn relocation_pushed_at(module: &Module, at: u64) -> Option<u32> {
    let at = after_landing_mark(module, at);
    match code::<5>(module, at)? {
        [0x68, number @ ..] => Some(u32::from_le_bytes(number)),
        _ => None,
    }
}

fn after_landing_mark(module: &Module, at: u64) -> u64 {
    match code::<4>(module, at) {
        Some([0xf3, 0x0f, 0x1e, 0xfa]) => at + 4,
        _ => at,
    }
}

fn relative(next: u64, distance: [u8; 4]) -> u64 {
    next.wrapping_add_signed(i32::from_le_bytes(distance).into())
}

/// The bytes at `at`, if they are code of `module`.
fn code<const LEN: usize>(module: &Module, at: u64) -> Option<[u8; LEN]> {
    let (start, end) = module.text;
    let inside = at >= start && at.checked_add(LEN as u64)? <= end;
    // SAFETY: within the executable segment of a loaded object.
    inside.then(|| unsafe { core::ptr::read_unaligned(at as *const [u8; LEN]) })
}

/// The word at `at`, if it lies in `module`'s segments.
fn slot(module: &Module, at: u64) -> Option<u64> {
    let inside = at & 7 == 0 && module.holds_all(at, 8);
    // SAFETY: within a segment of a loaded object.
    inside.then(|| unsafe { core::ptr::read_volatile(at as *const u64) })
}
