//! *Where does this process write to a variable?* In all code that is loaded now and can reach it by a distance: see
//! [`pointee_patch::arch::x86_64::stores`]. A probe at such a place sees what is about to be stored.
//!
//! Code is swept from the start of its mapping, and what is data in it may look like a store: [`crate::probe`] looks again, from the start of
//! the function, and refuses what is no instruction of it.

#![allow(unsafe_code)] // Reads code.

use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::stores::{Stored, find_stores};

use crate::maps::Maps;
use crate::refusal::Refusal;
use crate::stop;

/// Calls `found` with each instruction that writes to one of `len` bytes at `cell`, and with what it stores.
///
/// # Errors
///
/// [`Refusal::NoMaps`].
pub fn stores_to(
    cell: RunAddr,
    len: u64,
    mut found: impl FnMut(RunAddr, Stored),
) -> Result<(), Refusal> {
    // No hook comes or goes meanwhile.
    let _held = stop::exclusive();
    let mut maps = Maps::read().map_err(Refusal::NoMaps)?;
    for mapping in maps.executable() {
        if mapping.start.0.abs_diff(cell.0) > 1 << 32 {
            continue;
        }
        let all = (mapping.end.0 - mapping.start.0) as usize;
        // SAFETY: mapped and readable; code that is unloaded meanwhile is the caller's own doing.
        let code = unsafe { core::slice::from_raw_parts(mapping.start.0 as *const u8, all) };
        for (at, stored) in find_stores(code, mapping.start, cell, len) {
            found(at, stored);
        }
    }
    Ok(())
}
