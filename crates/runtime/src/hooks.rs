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

#![allow(unsafe_code)] // Entry stubs in assembly; calls originals through their addresses.

use crate::region::{Region, region};
use crate::threads::{State, WRITING};
use crate::{exec, fast, heap, process, threads, walk};
use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, compiler_fence};
use pointee_index::counters::Thread;
use pointee_index::origins::PARENT_SHIFT;
use pointee_index::table::Recorded;
use pointee_model::entries::Role;

/// An entry that was hooked.
#[repr(C)]
pub(crate) struct Planted {
    original: u64,
    entry: u64,
    hook: Hook,
    /// The root of the walk, as it goes into the hash.
    root_key: u64,
    root: u32,
    role: Role,
    /// The launch pad: what is there when it is planted, what was there before.
    pad: Pad,
}

/// The bytes of a launch pad.
#[derive(Clone, Copy)]
pub(crate) struct Pad {
    pub(crate) at: u64,
    pub(crate) planted: [u8; 5],
    pub(crate) original: [u8; 5],
}

/// Where the fields lie that code in assembly reads.
pub(crate) const ORIGINAL: usize = offset_of!(Planted, original);
pub(crate) const ROOT_KEY: usize = offset_of!(Planted, root_key);
pub(crate) const ROOT: usize = offset_of!(Planted, root);

const ROOM: usize = 2048;

struct Table {
    all: UnsafeCell<[Planted; ROOM]>,
    used: AtomicU32,
}
// SAFETY: an element is written before `used` grows over it and not changed afterwards.
unsafe impl Sync for Table {}

static TABLE: Table = Table {
    all: UnsafeCell::new(
        [const {
            Planted {
                original: 0,
                entry: 0,
                hook: on_free,
                root_key: 0,
                root: 0,
                role: Role::Other,
                pad: Pad {
                    at: 0,
                    planted: [0; 5],
                    original: [0; 5],
                },
            }
        }; ROOM],
    ),
    used: AtomicU32::new(0),
};

impl Planted {
    /// Notes that the code at `entry` will be hooked, its original callable at `original`. `None` when there is no room.
    pub(crate) fn new(
        entry: u64,
        original: u64,
        root: u32,
        role: Role,
        pad: Pad,
    ) -> Option<&'static Self> {
        let at = TABLE.used.load(Relaxed);
        if at as usize == ROOM {
            return None;
        }
        // SAFETY: above `used`; one thread plants at a time.
        let planted = unsafe {
            let to = TABLE.all.get().cast::<Self>().add(at as usize);
            to.write(Self {
                original,
                entry,
                hook: hook(role),
                root_key: u64::from(root) << PARENT_SHIFT,
                root,
                role,
                pad,
            });
            &*to
        };
        TABLE.used.store(at + 1, Release);
        Some(planted)
    }

    /// The launch pad.
    pub(crate) fn pad(&self) -> &Pad {
        &self.pad
    }

    /// Calls the original with the arguments as they came.
    ///
    /// # Safety
    /// As for the function that was hooked.
    #[inline(always)]
    pub(crate) unsafe fn call(&self, a: usize, b: usize, c: usize) -> usize {
        // SAFETY: the trampoline is the original's entry; more integer arguments than it takes do no harm.
        let original: unsafe extern "C" fn(usize, usize, usize) -> usize =
            unsafe { core::mem::transmute(self.original as *const ()) };
        // SAFETY: the caller's promise.
        unsafe { original(a, b, c) }
    }
}

/// The record of the hook whose entry is `entry`, the latest first.
pub(crate) fn planted_at(entry: u64) -> Option<&'static Planted> {
    let used = TABLE.used.load(Acquire) as usize;
    // SAFETY: below `used`.
    let all = (0..used)
        .rev()
        .map(|at| unsafe { &*TABLE.all.get().cast::<Planted>().add(at) });
    all.into_iter().find(|planted| planted.entry == entry)
}

/// Return address and frame pointer of the hooked call.
#[derive(Clone, Copy)]
struct Caller {
    slot: *const u64,
    rbp: u64,
}

/// A hook: the three arguments that any allocation function has at most, where the return address lies,
/// the caller's frame pointer, the entry's record.
type Hook = unsafe extern "C" fn(usize, usize, usize, *const u64, u64, &'static Planted) -> usize;

/// Set when the process puts itself under a system call filter: from then on the runtime makes none
/// beyond those that the program makes.
static FILTERED: AtomicU32 = AtomicU32::new(0);

/// Whether a system call of ours might kill the process.
pub(crate) fn is_filtered() -> bool {
    FILTERED.load(Relaxed) != 0
}

// `prctl` and `syscall` take any number of arguments: the stubs look at the first and change none.

#[unsafe(naked)]
unsafe extern "C" fn prctl_stub() {
    naked_asm!(
        "cmp edi, 22", // PR_SET_SECCOMP
        "jne 2f",
        "mov dword ptr [rip + {filtered}], 1",
        "2: jmp [r11]", // the original
        filtered = sym FILTERED,
    );
}

#[unsafe(naked)]
unsafe extern "C" fn syscall_stub() {
    naked_asm!(
        "cmp rdi, 317", // seccomp
        "jne 2f",
        "mov dword ptr [rip + {filtered}], 1",
        "2: jmp [r11]", // the original
        filtered = sym FILTERED,
    );
}

/// The way from a relay to a hook in Rust: the record says to which.
#[unsafe(naked)]
unsafe extern "C" fn enter_hook() {
    naked_asm!(
        "mov rcx, rsp",
        "mov r8, rbp",
        "mov r9, r11",
        "jmp [r11 + {hook}]",
        hook = const offset_of!(Planted, hook),
    );
}

/// The hook in Rust of a role.
fn hook(role: Role) -> Hook {
    match role {
        Role::Malloc | Role::Valloc | Role::Pvalloc | Role::New => on_malloc,
        Role::Calloc => on_calloc,
        Role::Realloc => on_realloc,
        Role::Reallocarray => on_reallocarray,
        Role::Memalign | Role::AlignedAlloc => on_memalign,
        Role::PosixMemalign => on_posix_memalign,
        Role::Free | Role::Delete => on_free,
        Role::Fork => on_fork,
        Role::Exec => on_exec,
        Role::Exit => on_exit,
        Role::Brk => on_brk,
        Role::LinkMap | Role::Other | Role::Prctl | Role::Syscall => on_link_map,
    }
}

/// Where the relay of an entry with this role goes, with the record in `r11` and every other register as the caller left it.
pub(crate) fn destination(role: Role) -> u64 {
    let code: unsafe extern "C" fn() = match role {
        Role::Malloc | Role::Valloc | Role::Pvalloc | Role::New => fast::malloc,
        Role::Calloc => fast::calloc,
        Role::Memalign | Role::AlignedAlloc => fast::memalign,
        Role::Free | Role::Delete => fast::free,
        Role::Prctl => prctl_stub,
        Role::Syscall => syscall_stub,
        _ => enter_hook,
    };
    code as *const () as u64
}

/// This thread, if it is outside at the call whose return address lies at `slot`.
#[inline(always)]
fn enter(slot: *const u64) -> Option<&'static State> {
    let state = threads::current()?;
    state.is_outside(slot).then_some(state)
}

/// Runs `original` with the thread marked as inside it.
#[inline(always)]
fn inside(state: &State, slot: *const u64, original: impl FnOnce() -> usize) -> usize {
    state.gate.store(slot as u64, Relaxed);
    compiler_fence(Acquire);
    let result = original();
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
unsafe fn allocate(
    planted: &'static Planted,
    caller: Caller,
    args: [usize; 3],
    size: usize,
) -> usize {
    // SAFETY: the arguments are the caller's.
    let original = || unsafe { planted.call(args[0], args[1], args[2]) };
    let Some(state) = enter(caller.slot) else {
        return original();
    };
    let block = inside(state, caller.slot, original);
    begin_writing(state);
    if block != 0 {
        // SAFETY: `slot` is the stack pointer at the hooked entry.
        let origin = unsafe { walk::origin(planted.root, caller.slot, caller.rbp) };
        record(region(), state.thread(), origin, block, size);
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

pub(crate) unsafe extern "C" fn on_malloc(
    a: usize,
    b: usize,
    c: usize,
    slot: *const u64,
    rbp: u64,
    planted: &'static Planted,
) -> usize {
    // SAFETY: the program's own call.
    unsafe { allocate(planted, Caller { slot, rbp }, [a, b, c], a) }
}

pub(crate) unsafe extern "C" fn on_calloc(
    a: usize,
    b: usize,
    c: usize,
    slot: *const u64,
    rbp: u64,
    planted: &'static Planted,
) -> usize {
    // A product that overflows is refused by the original, and nothing is recorded.
    // SAFETY: the program's own call.
    unsafe { allocate(planted, Caller { slot, rbp }, [a, b, c], a.wrapping_mul(b)) }
}

pub(crate) unsafe extern "C" fn on_memalign(
    a: usize,
    b: usize,
    c: usize,
    slot: *const u64,
    rbp: u64,
    planted: &'static Planted,
) -> usize {
    // SAFETY: the program's own call.
    unsafe { allocate(planted, Caller { slot, rbp }, [a, b, c], b) }
}

unsafe extern "C" fn on_posix_memalign(
    a: usize,
    b: usize,
    c: usize,
    slot: *const u64,
    rbp: u64,
    planted: &'static Planted,
) -> usize {
    // SAFETY: the arguments are the caller's.
    let original = || unsafe { planted.call(a, b, c) };
    let Some(state) = enter(slot) else {
        return original();
    };
    let error = inside(state, slot, original);
    begin_writing(state);
    if error as i32 == 0 {
        // SAFETY: on success the original has stored the block's address at `a`.
        unsafe {
            let block = *(a as *const usize);
            if block != 0 {
                let origin = walk::origin(planted.root, slot, rbp);
                record(region(), state.thread(), origin, block, c);
            }
        }
    }
    end_writing(state);
    error
}

pub(crate) unsafe extern "C" fn on_free(
    a: usize,
    b: usize,
    c: usize,
    slot: *const u64,
    _: u64,
    planted: &'static Planted,
) -> usize {
    if a != 0
        && let Some(state) = enter(slot)
    {
        let region = region();
        begin_writing(state);
        if let Some(block) = region.writer.erase(a as u64) {
            let thread = state.thread();
            region.counters.freed(thread, block.origin, block.size);
        }
        end_writing(state);
    }
    // SAFETY: the program's own call.
    unsafe { planted.call(a, b, c) }
}

/// A reallocation counts as one free and one allocation, a failed one as neither.
///
/// As soon as the original has freed the old block, another thread may be given the same one: so it is taken out of the index before.
/// Where there is no other thread it is taken out afterwards: until then its words have come into the cache, in which they
/// often are not, while the original works.
#[inline(always)]
unsafe fn reallocate(
    planted: &'static Planted,
    caller: Caller,
    args: [usize; 3],
    size: usize,
) -> usize {
    // SAFETY: the arguments are the caller's.
    let original = || unsafe { planted.call(args[0], args[1], args[2]) };
    let Some(state) = enter(caller.slot) else {
        return original();
    };
    let (region, thread) = (region(), state.thread());
    region.writer.prefetch(args[0] as u64);
    if threads::is_single() {
        let block = inside(state, caller.slot, original);
        begin_writing(state);
        if block != 0 || size == 0 {
            if let Some(old) = region.writer.erase(args[0] as u64) {
                region.counters.freed(thread, old.origin, old.size);
            }
            if block != 0 {
                // SAFETY: `slot` is the stack pointer at the hooked entry.
                let origin = unsafe { walk::origin(planted.root, caller.slot, caller.rbp) };
                record(region, thread, origin, block, size);
            }
        }
        end_writing(state);
        return block;
    }
    begin_writing(state);
    let old = region.writer.erase(args[0] as u64);
    compiler_fence(Release);
    let block = inside(state, caller.slot, original);
    begin_writing(state);
    let failed = block == 0 && size != 0;
    if let Some(old) = old {
        if failed {
            region.writer.insert(args[0] as u64, old.size, old.origin);
        } else {
            region.counters.freed(thread, old.origin, old.size);
        }
    }
    if block != 0 {
        // SAFETY: `slot` is the stack pointer at the hooked entry.
        let origin = unsafe { walk::origin(planted.root, caller.slot, caller.rbp) };
        record(region, thread, origin, block, size);
    }
    end_writing(state);
    block
}

unsafe extern "C" fn on_realloc(
    a: usize,
    b: usize,
    c: usize,
    slot: *const u64,
    rbp: u64,
    planted: &'static Planted,
) -> usize {
    // SAFETY: the program's own call.
    unsafe { reallocate(planted, Caller { slot, rbp }, [a, b, c], b) }
}

unsafe extern "C" fn on_reallocarray(
    a: usize,
    b: usize,
    c: usize,
    slot: *const u64,
    rbp: u64,
    planted: &'static Planted,
) -> usize {
    // SAFETY: the program's own call.
    unsafe {
        reallocate(
            planted,
            Caller { slot, rbp },
            [a, b, c],
            b.saturating_mul(c),
        )
    }
}

unsafe extern "C" fn on_fork(
    a: usize,
    b: usize,
    c: usize,
    _: *const u64,
    _: u64,
    planted: &'static Planted,
) -> usize {
    // SAFETY: the program's own call.
    process::fork(|| unsafe { planted.call(a, b, c) })
}

unsafe extern "C" fn on_exec(
    a: usize,
    b: usize,
    c: usize,
    _: *const u64,
    _: u64,
    planted: &'static Planted,
) -> usize {
    // SAFETY: the program's own call; path and arrays are what execve is given.
    unsafe { exec::exec(a, c, |environment| planted.call(a, b, environment)) }
}

unsafe extern "C" fn on_exit(
    a: usize,
    b: usize,
    c: usize,
    _: *const u64,
    _: u64,
    planted: &'static Planted,
) -> usize {
    process::note_exit(a as u32 & 0xff);
    // SAFETY: the program's own call.
    unsafe { planted.call(a, b, c) }
}

unsafe extern "C" fn on_brk(
    a: usize,
    b: usize,
    c: usize,
    _: *const u64,
    _: u64,
    planted: &'static Planted,
) -> usize {
    // SAFETY: the program's own call.
    let error = unsafe { planted.call(a, b, c) };
    if error as i32 == 0 {
        heap::grown(a as u64);
    }
    error
}

unsafe extern "C" fn on_link_map(
    a: usize,
    b: usize,
    c: usize,
    _: *const u64,
    _: u64,
    planted: &'static Planted,
) -> usize {
    crate::start::link_map_changed();
    // SAFETY: the linker's own call.
    unsafe { planted.call(a, b, c) }
}
