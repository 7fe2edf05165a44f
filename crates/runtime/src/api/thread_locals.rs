//! *Which thread-local variable of the asking thread lies at this address?* — the program's own, not its libraries'.
//!
//! The program's block ends where the thread control block begins, but for what its alignment asks for (ELF Handling For Thread-Local
//! Storage, §3.4.6, variant II): the linker has put that distance into its code.

#![allow(unsafe_code)] // Reads the thread control block.

use super::objects;
use crate::modules::{self, Module};
use core::arch::asm;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use pointee_model::image::VariableRecord;

/// Bytes of the program's block.
static LEN: AtomicU64 = AtomicU64::new(0);
/// How far below the thread pointer it begins.
static DISTANCE: AtomicU64 = AtomicU64::new(0);

/// Notes the program's block.
pub(super) fn set_up() {
    modules::each(|module| {
        if module.is_executable
            && let Some((len, align)) = module.thread_local_block()
        {
            LEN.store(len, Relaxed);
            DISTANCE.store(len.checked_next_multiple_of(align).unwrap_or(len), Relaxed);
        }
    });
}

/// A variable, or a part of the block that is none that is known, and where it starts.
pub(super) struct Found {
    pub(super) module: &'static Module,
    pub(super) variable: Option<&'static VariableRecord>,
    pub(super) start: u64,
    pub(super) len: u64,
}

/// What lies at `address` in the asking thread's block.
pub(super) fn at(address: u64) -> Option<Found> {
    let len = LEN.load(Relaxed);
    let offset = address.wrapping_sub(block()?);
    if offset >= len {
        return None;
    }
    // The program is the first of the modules.
    let module = modules::numbered(0).filter(|module| module.is_executable)?;
    let variables = objects::image(module).map_or(&[][..], |image| image.thread_locals());
    let after = variables.partition_point(|variable| variable.address <= offset);
    let variable = variables[..after]
        .iter()
        .rev()
        .take(64)
        .find(|variable| offset - variable.address < variable.size);
    Some(Found {
        module,
        variable,
        start: address - offset + variable.map_or(0, |variable| variable.address),
        len: variable.map_or(len, |variable| variable.size),
    })
}

/// Where the block lies.
fn block() -> Option<u64> {
    if LEN.load(Relaxed) == 0 {
        return None;
    }
    let pointer: u64;
    // SAFETY: the first word of the thread control block, which is there in every thread of a program that asks.
    unsafe { asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly, preserves_flags)) };
    pointer.checked_sub(DISTANCE.load(Relaxed))
}
