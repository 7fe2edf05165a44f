//! *Which thread-local variable lies at this address?*
//!
//! The program's block ends where the thread control block begins, but for what its alignment asks for (ELF Handling For Thread-Local
//! Storage, §3.4.6, variant II): the linker has put that distance into its code. Those of libraries are in a vector behind the second word
//! of the control block, by the dynamic linker's number of the file, which is in its records, where libc says for libthread_db. The asking
//! thread's vector is plain memory; that of another, which may be growing, is read through the kernel.

#![allow(unsafe_code)] // Reads the thread control block.

use super::objects;
use crate::hooks::is_filtered;
use crate::modules::{self, Module};
use crate::{locate, start, sys};
use core::arch::asm;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use pointee_model::image::VariableRecord;

/// Files with thread-local variables.
const ROOM: usize = 256;
/// Stands for the program's number, whose block is not looked for in the vector.
const PROGRAM: u32 = 0;
/// How far below the thread pointer the program's block begins.
static DISTANCE: AtomicU64 = AtomicU64::new(0);

struct File {
    module: AtomicU32,
    number: AtomicU32,
    len: AtomicU64,
}

static FILES: [File; ROOM] = [const {
    File {
        module: AtomicU32::new(0),
        number: AtomicU32::new(0),
        len: AtomicU64::new(0),
    }
}; ROOM];
static USED: AtomicU32 = AtomicU32::new(0);
/// Whether one of them was loaded later: its blocks are made by malloc when they are first used.
static IN_BLOCKS: AtomicBool = AtomicBool::new(false);

/// Whether a block may be a thread-local one.
#[inline(always)]
pub(super) fn may_be_blocks() -> bool {
    IN_BLOCKS.load(Relaxed)
}

/// Notes the block of `module`, if it has one. One thread at a time, the one that holds the dynamic linker's lock.
pub(super) fn add(module: &Module) {
    let Some((len, align)) = module.thread_local_block() else {
        return;
    };
    let number = if module.is_executable {
        DISTANCE.store(len.checked_next_multiple_of(align).unwrap_or(len), Relaxed);
        Some(PROGRAM)
    } else {
        number_of(module)
    };
    let used = USED.load(Relaxed);
    let known = FILES[..used as usize]
        .iter()
        .position(|file| file.module.load(Relaxed) == module.number);
    let at = known.unwrap_or(used as usize);
    let (Some(number), Some(file)) = (number, FILES.get(at)) else {
        return;
    };
    file.module.store(module.number, Relaxed);
    file.number.store(number, Relaxed);
    file.len.store(len, Relaxed);
    USED.store(used.max(at as u32 + 1), Release);
    if start::is_over() {
        IN_BLOCKS.store(true, Relaxed);
    }
}

/// The dynamic linker's number of `module`.
fn number_of(module: &Module) -> Option<u32> {
    let mut description = None;
    modules::each(|module| {
        let symbol = || locate::variable(module, "_thread_db_link_map_l_tls_modid");
        description = description.or_else(symbol);
    });
    // SAFETY: libc's own: bits, count and offset of the field (glibc, nptl_db/db_info.c).
    let [bits, _, offset] = unsafe { *(description? as *const [u32; 3]) };
    let record = module.link_map();
    if bits != 64 || record == 0 {
        return None;
    }
    // SAFETY: the linker's record of a loaded object, which its lock keeps.
    let number = unsafe { *((record + u64::from(offset)) as *const u64) };
    u32::try_from(number).ok().filter(|number| *number != 0)
}

/// A variable, or a part of the block that is none that is known, and where it starts.
pub(super) struct Found {
    pub(super) module: &'static Module,
    pub(super) variable: Option<&'static VariableRecord>,
    pub(super) start: u64,
    pub(super) len: u64,
}

/// What lies at `address` in the asking thread's blocks.
pub(super) fn at(address: u64) -> Option<Found> {
    let pointer: u64;
    // SAFETY: the first word of the thread control block, which is there in every thread of a program that asks.
    unsafe { asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly, preserves_flags)) };
    // SAFETY: the asking thread's own control block and vector.
    find(address, pointer, |at| unsafe { Some(*(at as *const u64)) })
}

/// What lies at `address` in the blocks of the thread with this thread pointer.
pub(super) fn of_thread(thread_pointer: u64, address: u64) -> Option<Found> {
    if thread_pointer == 0 || is_filtered() {
        return None;
    }
    find(address, thread_pointer, |at| {
        let mut word = [0];
        sys::read_own(at, &mut word).then_some(word[0])
    })
}

/// `word` reads the control block at `pointer`, and the vector.
#[inline(always)]
fn find(address: u64, pointer: u64, word: impl Fn(u64) -> Option<u64>) -> Option<Found> {
    let used = USED.load(Acquire) as usize;
    for file in &FILES[..used.min(ROOM)] {
        let block = match file.number.load(Relaxed) {
            PROGRAM => Some(pointer.wrapping_sub(DISTANCE.load(Relaxed))),
            number => in_vector(u64::from(number), pointer, &word),
        };
        let len = file.len.load(Relaxed);
        let Some(block) = block.filter(|block| address.wrapping_sub(*block) < len) else {
            continue;
        };
        let module = modules::numbered(file.module.load(Relaxed))?;
        if module.is_loaded() {
            return Some(in_block(module, block, address - block, len));
        }
    }
    None
}

/// Where the block of the file with this number lies, if the thread has touched it.
#[inline(always)]
fn in_vector(number: u64, pointer: u64, word: &impl Fn(u64) -> Option<u64>) -> Option<u64> {
    let vector = word(pointer + 8).filter(|vector| *vector != 0 && vector & 7 == 0)?;
    // Entries of two words; the one before the first says how many there are.
    if number > word(vector.wrapping_sub(16))? {
        return None;
    }
    // All ones: the thread has not touched it yet.
    word(vector + number * 16).filter(|block| *block != 0 && *block != u64::MAX)
}

fn in_block(module: &'static Module, block: u64, offset: u64, len: u64) -> Found {
    let variables = objects::image(module).map_or(&[][..], |image| image.thread_locals());
    let after = variables.partition_point(|variable| variable.address <= offset);
    let variable = variables[..after]
        .iter()
        .rev()
        .take(64)
        .find(|variable| offset - variable.address < variable.size);
    Found {
        module,
        variable,
        start: block + variable.map_or(0, |variable| variable.address),
        len: variable.map_or(len, |variable| variable.size),
    }
}
