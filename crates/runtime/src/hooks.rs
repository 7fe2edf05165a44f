//! *What runs instead of malloc?*
//!
//! A launch pad leads to a relay, which puts the address of the entry's record into `r11` and goes to the hook of the entry's role;
//! the hook then returns straight to the caller. Hooks in Rust are entered by a stub that puts what they need beside the program's
//! own arguments into the registers of the next three ([`Hook`]).
//!
//! Where a thread is, its gate says ([`crate::threads`]). The usual case of most hooks is written in assembly
//! ([`crate::fast`]); what is here does all cases.
//!
//! Order: a free erases before the original frees; an allocation inserts after the original
//! returned; so no other thread can be handed the same block in between.

#![allow(unsafe_code)] // Entry stubs in assembly; reads what an original stored.

mod call;
mod carved;
mod mapped;
mod planted;
mod pooled;
mod processes;
mod system_calls;

use crate::region::{Region, region};
use crate::threads::{State, WRITING};
use crate::{fast, fast_pool, mismatch, peak, pools, process, threads};
use call::{Call, Hook, hooks};
pub(crate) use carved::carve;
use core::arch::naked_asm;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::compiler_fence;
pub(crate) use planted::{
    CLASS, COUNT_AT, ORIGINAL, Pad, Planted, ROOT, ROOT_KEY, SIZE_AT, planted_at,
};
use pointee_index::class::Class;
use pointee_index::counters::Thread;
use pointee_index::table::Recorded;
use pointee_model::entries::{Declared, Role};
pub(crate) use pooled::{allocated_from_pool, enter_pool, taken_back};
pub(crate) use processes::is_filtered;
use processes::{
    dlsym_stub, exec_stub, on_brk, on_exec, on_exit, on_fork, on_link_map, on_signal_stack,
    prctl_stub, syscall_stub,
};

/// The way from a relay to a hook in Rust: the record says to which.
#[unsafe(naked)]
unsafe extern "C" fn enter_hook() {
    naked_asm!(
        ".cfi_startproc",
        "mov rcx, rsp",
        "mov r8, rbp",
        "mov r9, r11",
        "test spl, 8", // see the head of `crate::fast`
        "jz 2f",
        "jmp [r11 + {hook}]",
        "2: call [r11 + {hook}]",
        "ret",
        ".cfi_endproc",
        hook = const planted::HOOK,
    );
}

/// The hook in Rust of a function that does what is said of it.
fn hook(says: Declared) -> Hook {
    match says.role {
        Role::Malloc | Role::Valloc | Role::Pvalloc | Role::New => on_malloc,
        Role::Calloc => on_calloc,
        Role::Realloc => on_realloc,
        Role::Reallocarray => on_reallocarray,
        Role::Memalign | Role::AlignedAlloc => on_memalign,
        Role::PosixMemalign => on_posix_memalign,
        Role::Free | Role::Delete => on_free,
        Role::Fork => on_fork,
        Role::Exec | Role::ExecFd => on_exec,
        Role::Exit => on_exit,
        Role::Brk => on_brk,
        Role::SigAltStack => on_signal_stack,
        Role::PoolRealloc => pooled::on_pool_realloc,
        Role::LinkMap
        | Role::PoolAlloc
        | Role::PoolFree
        | Role::PoolReset
        | Role::PoolTrim
        | Role::Other
        | Role::SystemCall
        | Role::Dlsym
        | Role::Prctl
        | Role::Syscall
        | Role::ExecAt
        | Role::Mmap
        | Role::Munmap
        | Role::Mprotect
        | Role::Mremap
        | Role::Shmat => on_link_map,
    }
}

/// Where the relay of an entry that does what is said of it goes, with the record in `r11` and every other register as the caller left it.
pub(crate) fn destination(says: Declared) -> u64 {
    let code: unsafe extern "C" fn() = match says.role {
        Role::Malloc | Role::Valloc | Role::Pvalloc | Role::New => fast::malloc,
        Role::Calloc => fast::calloc,
        Role::Memalign | Role::AlignedAlloc => fast::memalign,
        Role::Free | Role::Delete => fast::free,
        Role::PoolAlloc => fast_pool::allocating,
        Role::PoolFree if says.argument == 0 => fast_pool::freeing_first,
        Role::PoolFree if says.argument == 1 => fast_pool::freeing_second,
        Role::PoolFree if says.argument == 2 => fast_pool::freeing_third,
        Role::PoolFree | Role::PoolReset | Role::PoolTrim => fast_pool::taking_back,
        Role::Prctl => prctl_stub,
        Role::Syscall => syscall_stub,
        Role::ExecAt => exec_stub,
        Role::Dlsym => dlsym_stub,
        Role::SystemCall => system_calls::stub(),
        Role::Mmap | Role::Munmap | Role::Mprotect | Role::Mremap | Role::Shmat => {
            mapped::mapping_stub
        }
        _ => enter_hook,
    };
    code as *const () as u64
}

/// Calls the original with the thread marked as inside it.
#[inline(always)]
fn inside(state: &State, call: &Call) -> usize {
    state.gate.store(call.slot as u64, Relaxed);
    compiler_fence(Acquire);
    let result = call.original();
    compiler_fence(Release);
    result
}

/// Opens the part in which this thread writes the index.
#[inline(always)]
fn begin_writing(state: &State) {
    state.gate.store(WRITING, Relaxed);
    compiler_fence(Acquire);
    if process::is_gate_closed() {
        process::wait_at_gate(state);
    }
}

#[inline(always)]
fn end_writing(state: &State) {
    compiler_fence(Release);
    state.leave();
}

/// Before a block goes: if the heap was never as high, what is alive is written down.
#[inline(always)]
fn keep_peak(region: &Region, state: &State) {
    if region.counters.is_capture_due(state.thread()) {
        peak::capture(region, state);
    }
}

/// Records a new block.
#[inline(always)]
fn record(region: &Region, thread: &Thread, origin: u32, block: usize, size: usize) {
    let (replaced, recorded) = region.writer.insert(block as u64, size as u64, origin);
    if let Some(replaced) = replaced {
        lost(region, thread, replaced);
    }
    if recorded {
        region.counters.allocated(thread, origin, size as u64);
    }
}

/// A block was handed out again without its free having been seen.
#[cold]
fn lost(region: &Region, thread: &Thread, block: Recorded) {
    region.header().replaced.fetch_add(1, Relaxed);
    region.counters.freed(thread, block.origin, block.size);
}

/// Calls an allocating original and records what it returns.
#[inline(always)]
fn allocate(call: &Call, size: usize) -> usize {
    let Some(state) = call.enter() else {
        return call.original();
    };
    let block = inside(state, call);
    begin_writing(state);
    if block != 0 {
        record(region(), state.thread(), call.origin(), block, size);
    }
    end_writing(state);
    block
}

/// Records what an original returned, if anything, for a hook that found the origin and kept it in `state`; returns it.
pub(crate) extern "C" fn finish(block: usize, state: &State) -> usize {
    begin_writing(state);
    if block != 0 {
        let (origin, size) = (state.origin.load(Relaxed), state.size.load(Relaxed));
        record(region(), state.thread(), origin, block, size as usize);
    }
    end_writing(state);
    block
}

hooks! {
    pub(crate) fn on_malloc(call) {
        allocate(&call, call.args[0])
    }

    pub(crate) fn on_calloc(call) {
        // A product that overflows is refused by the original, and nothing is recorded.
        allocate(&call, call.args[0].wrapping_mul(call.args[1]))
    }

    pub(crate) fn on_memalign(call) {
        allocate(&call, call.args[1])
    }

    fn on_posix_memalign(call) {
        let Some(state) = call.enter() else {
            return call.original();
        };
        let error = inside(state, &call);
        begin_writing(state);
        if error as i32 == 0 {
            let [to, _, size] = call.args;
            // SAFETY: on success the original has stored the block's address there.
            let block = unsafe { *(to as *const usize) };
            if block != 0 {
                record(region(), state.thread(), call.origin(), block, size);
            }
        }
        end_writing(state);
        error
    }

    pub(crate) fn on_free(call) {
        free(&call)
    }

    fn on_realloc(call) {
        reallocate(&call, call.args[1])
    }

    fn on_reallocarray(call) {
        reallocate(&call, call.args[1].saturating_mul(call.args[2]))
    }
}

#[inline(always)]
fn free(call: &Call) -> usize {
    let block = call.args[0] as u64;
    if block == 0 {
        return call.original();
    }
    let Some(state) = call.enter() else {
        mismatch::inner_free(block, call.planted);
        return call.original();
    };
    let region = region();
    begin_writing(state);
    keep_peak(region, state);
    let mut noted = None;
    if let Some(recorded) = region.writer.erase(block) {
        let thread = state.thread();
        if Class::of(recorded.origin).is_container() {
            pools::container_freed(region, thread, block, recorded);
        }
        region
            .counters
            .freed(thread, recorded.origin, recorded.size);
        noted = note_mismatch(region, recorded, call);
    } else if let Some(recorded) = pools::freed_otherwise(region, block, call.planted) {
        noted = note_mismatch(region, recorded, call);
    }
    end_writing(state);
    let Some(noted) = noted else {
        return call.original();
    };
    let result = inside(state, call);
    noted.finish();
    state.leave();
    result
}

/// Notes that the function called frees a block of another class, if it does.
#[inline(always)]
fn note_mismatch(region: &Region, block: Recorded, call: &Call) -> Option<mismatch::Noted> {
    let class = Class::of(block.origin);
    if class == call.planted.class() || class.is_container() {
        return None;
    }
    let address = call.args[0] as u64;
    mismatch::note(region, address, block, call.origin(), call.return_address())
}

/// A reallocation counts as one free and one allocation, a failed one as neither.
///
/// As soon as the original has freed the old block, another thread may be given the same one: so it is taken out of the index before.
/// Where there is no other thread it is taken out afterwards, if nothing is asked of it before: until then its words have come into
/// the cache, in which they often are not, while the original works.
#[inline(always)]
fn reallocate(call: &Call, size: usize) -> usize {
    let address = call.args[0] as u64;
    let Some(state) = call.enter() else {
        mismatch::inner_free(address, call.planted);
        return call.original();
    };
    let (region, thread) = (region(), state.thread());
    region.writer.prefetch(address);
    let is_plain =
        planted::is_one_class() && !region.nested.any() && !region.counters.is_capture_due(thread);
    if is_plain && threads::is_single() {
        let block = inside(state, call);
        begin_writing(state);
        if block != 0 || size == 0 {
            if let Some(old) = region.writer.erase(address) {
                region.counters.freed(thread, old.origin, old.size);
            }
            if block != 0 {
                record(region, thread, call.origin(), block, size);
            }
        }
        end_writing(state);
        return block;
    }
    begin_writing(state);
    keep_peak(region, state);
    // Gone from blocks and counters together: another thread may copy both meanwhile.
    let old = region.writer.erase(address);
    if let Some(old) = old {
        region.counters.freed(thread, old.origin, old.size);
    }
    let noted = old.and_then(|old| note_mismatch(region, old, call));
    compiler_fence(Release);
    let block = inside(state, call);
    begin_writing(state);
    if let Some(noted) = noted {
        noted.finish();
    }
    let failed = block == 0 && size != 0;
    if let Some(old) = old {
        if Class::of(old.origin).is_container() && block as u64 != address && !failed {
            pools::container_freed(region, thread, address, old);
        }
        if failed {
            region.writer.insert(address, old.size, old.origin);
            region.counters.not_freed(thread, old.origin, old.size);
        }
    }
    if block != 0 {
        record(region, thread, call.origin(), block, size);
        if block as u64 == address && old.is_some_and(|old| Class::of(old.origin).is_container()) {
            // It grew, or shrank, where it is: what was cut out of it is still there.
            region.writer.mark_container(block as u64);
        }
    }
    end_writing(state);
    block
}
