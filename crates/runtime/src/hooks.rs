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

use crate::exec::Named;
use crate::region::{Region, region};
use crate::threads::{State, WRITING};
use crate::{exec, fast, heap, mismatch, peak, pools, process, threads, walk};
use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, compiler_fence};
use pointee_index::class::Class;
use pointee_index::counters::Thread;
use pointee_index::origins::PARENT_SHIFT;
use pointee_index::table::Recorded;
use pointee_index::words::CLASS_SHIFT;
use pointee_model::entries::{Declared, Role};

/// An entry that was hooked.
#[repr(C)]
pub(crate) struct Planted {
    original: u64,
    entry: u64,
    hook: Hook,
    /// The root of the walk, as it goes into the hash.
    root_key: u64,
    /// The root, with its class.
    root: u32,
    /// Whose blocks it hands out or takes back, as it lies in words.
    class: u32,
    role: Role,
    /// What the configuration says of it, if it does.
    declared: Declared,
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
pub(crate) const CLASS: usize = offset_of!(Planted, class);

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
                class: 0,
                role: Role::Other,
                declared: Declared::from_word(0),
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

/// Bit n: a function of class n is hooked.
static CLASSES: AtomicU32 = AtomicU32::new(0);

impl Planted {
    /// Notes that the code at `entry` will be hooked, its original callable at `original`. `None` when there is no room.
    pub(crate) fn new(
        entry: u64,
        original: u64,
        root: u32,
        class: Class,
        declared: Declared,
        pad: Pad,
    ) -> Option<&'static Self> {
        let role = declared.role;
        let root = root | class.bits();
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
                class: class.bits(),
                role,
                declared,
                pad,
            });
            &*to
        };
        CLASSES.fetch_or(1 << (class.bits() >> CLASS_SHIFT), Relaxed);
        TABLE.used.store(at + 1, Release);
        Some(planted)
    }

    /// The launch pad.
    pub(crate) fn pad(&self) -> &Pad {
        &self.pad
    }

    /// Where the original can be called.
    pub(crate) fn original(&self) -> u64 {
        self.original
    }

    /// Whose blocks it hands out or takes back.
    pub(crate) fn class(&self) -> Class {
        Class::of(self.class)
    }

    /// What the configuration says of it.
    pub(crate) fn declared(&self) -> Declared {
        self.declared
    }

    /// Whether it takes back blocks, and does nothing else.
    pub(crate) fn frees(&self) -> bool {
        matches!(self.role, Role::Free | Role::Delete)
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

// `prctl` and `syscall` take any number of arguments: the stubs look at the first and change none, but for an exec's.

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
        "2: cmp rdi, {execve}",
        "je 3f",
        "cmp rdi, {execveat}",
        "je 3f",
        "jmp [r11]", // the original
        "3: jmp {exec}",
        filtered = sym FILTERED,
        execve = const SYS_EXECVE,
        execveat = const SYS_EXECVEAT,
        exec = sym exec_stub,
    );
}

const SYS_EXECVE: usize = 59;
const SYS_EXECVEAT: usize = 322;

/// Gives [`on_exec_of_many`] all that a function of up to six arguments was called with.
#[unsafe(naked)]
unsafe extern "C" fn exec_stub() {
    naked_asm!(
        ".cfi_startproc",
        "push r11",
        ".cfi_adjust_cfa_offset 8",
        "push r9",
        ".cfi_adjust_cfa_offset 8",
        "push r8",
        ".cfi_adjust_cfa_offset 8",
        "push rcx",
        ".cfi_adjust_cfa_offset 8",
        "push rdx",
        ".cfi_adjust_cfa_offset 8",
        "push rsi",
        ".cfi_adjust_cfa_offset 8",
        "push rdi",
        ".cfi_adjust_cfa_offset 8",
        "mov rdi, rsp",
        "mov rsi, r11",
        "call {on_exec_of_many}",
        "add rsp, 56",
        ".cfi_adjust_cfa_offset -56",
        "ret",
        ".cfi_endproc",
        on_exec_of_many = sym on_exec_of_many,
    );
}

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
        Role::ExecFd => on_exec_fd,
        Role::Exit => on_exit,
        Role::Brk => on_brk,
        Role::PoolAlloc => on_pool_alloc,
        Role::PoolFree => on_pool_free,
        Role::LinkMap | Role::Other | Role::Prctl | Role::Syscall | Role::ExecAt => on_link_map,
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
        Role::ExecAt => exec_stub,
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
    rbp: u64,
    planted: &'static Planted,
) -> usize {
    // SAFETY: the program's own call.
    let original = || unsafe { planted.call(a, b, c) };
    if a == 0 {
        return original();
    }
    let Some(state) = enter(slot) else {
        mismatch::inner_free(a as u64, planted);
        return original();
    };
    let region = region();
    begin_writing(state);
    keep_peak(region, state);
    let mut noted = None;
    if let Some(block) = region.writer.erase(a as u64) {
        let thread = state.thread();
        if Class::of(block.origin).is_container() {
            pools::container_freed(region, thread, a as u64, block);
        }
        region.counters.freed(thread, block.origin, block.size);
        noted = note_mismatch(region, a, block, planted, Caller { slot, rbp });
    } else if let Some(block) = pools::freed_otherwise(region, a as u64, planted) {
        noted = note_mismatch(region, a, block, planted, Caller { slot, rbp });
    }
    end_writing(state);
    let Some(noted) = noted else {
        return original();
    };
    let result = inside(state, slot, original);
    noted.finish();
    state.leave();
    result
}

/// Notes that a function frees a block of another class, if it does.
#[inline(always)]
fn note_mismatch(
    region: &Region,
    address: usize,
    block: Recorded,
    planted: &'static Planted,
    caller: Caller,
) -> Option<mismatch::Noted> {
    let class = Class::of(block.origin);
    if class == planted.class() || class.is_container() {
        return None;
    }
    // SAFETY: `slot` is the stack pointer at the hooked entry, and holds the return address.
    let (freed, return_address) = unsafe {
        let freed = walk::origin(planted.root, caller.slot, caller.rbp);
        (freed, *caller.slot)
    };
    mismatch::note(region, address as u64, block, freed, return_address)
}

/// A reallocation counts as one free and one allocation, a failed one as neither.
///
/// As soon as the original has freed the old block, another thread may be given the same one: so it is taken out of the index before.
/// Where there is no other thread it is taken out afterwards, if nothing is asked of it before: until then its words have come into
/// the cache, in which they often are not, while the original works.
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
        mismatch::inner_free(args[0] as u64, planted);
        return original();
    };
    let (region, thread) = (region(), state.thread());
    region.writer.prefetch(args[0] as u64);
    let is_plain = CLASSES.load(Relaxed).is_power_of_two()
        && !region.writer.has_nested()
        && !region.counters.is_capture_due(thread);
    if is_plain && threads::is_single() {
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
    keep_peak(region, state);
    // Gone from blocks and counters together: another thread may copy both meanwhile.
    let old = region.writer.erase(args[0] as u64);
    if let Some(old) = old {
        region.counters.freed(thread, old.origin, old.size);
    }
    let noted = old.and_then(|old| note_mismatch(region, args[0], old, planted, caller));
    compiler_fence(Release);
    let block = inside(state, caller.slot, original);
    begin_writing(state);
    if let Some(noted) = noted {
        noted.finish();
    }
    let failed = block == 0 && size != 0;
    if let Some(old) = old {
        if Class::of(old.origin).is_container() && block != args[0] && !failed {
            pools::container_freed(region, thread, args[0] as u64, old);
        }
        if failed {
            region.writer.insert(args[0] as u64, old.size, old.origin);
            region.counters.not_freed(thread, old.origin, old.size);
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

unsafe extern "C" fn on_pool_alloc(
    a: usize,
    b: usize,
    c: usize,
    slot: *const u64,
    rbp: u64,
    planted: &'static Planted,
) -> usize {
    // SAFETY: the program's own call.
    let original = || unsafe { planted.call(a, b, c) };
    let Some(state) = enter(slot).filter(|state| pools::enter(state, slot)) else {
        return original();
    };
    let block = original();
    pools::leave(state);
    if block != 0 {
        begin_writing(state);
        // SAFETY: `slot` is the stack pointer at the hooked entry.
        let origin = unsafe { walk::origin(planted.root, slot, rbp) };
        let size = pools::requested(planted, [a, b, c]);
        pools::record(region(), state, origin, block as u64, size as u64);
        end_writing(state);
    }
    block
}

unsafe extern "C" fn on_pool_free(
    a: usize,
    b: usize,
    c: usize,
    slot: *const u64,
    _: u64,
    planted: &'static Planted,
) -> usize {
    let block = pools::given_back(planted, [a, b, c]);
    if let Some(state) = enter(slot)
        && block != 0
    {
        let region = region();
        begin_writing(state);
        keep_peak(region, state);
        if let Some(block) = region.writer.erase_nested(block as u64) {
            pools::forget(region, state.thread(), block);
        }
        end_writing(state);
    }
    // SAFETY: the program's own call.
    unsafe { planted.call(a, b, c) }
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
    unsafe {
        exec::exec(Named::Path(a), c, |environment| {
            planted.call(a, b, environment)
        })
    }
}

unsafe extern "C" fn on_exec_fd(
    a: usize,
    b: usize,
    c: usize,
    _: *const u64,
    _: u64,
    planted: &'static Planted,
) -> usize {
    // SAFETY: the program's own call; an open file and arrays are what fexecve is given.
    unsafe {
        exec::exec(Named::Descriptor(a), c, |environment| {
            planted.call(a, b, environment)
        })
    }
}

/// `execveat(fd, path, argv, envp, flags)`, and `syscall` with the number of an exec before its arguments.
unsafe extern "C" fn on_exec_of_many(arguments: &[usize; 6], planted: &'static Planted) -> usize {
    let [a, b, c, ..] = *arguments;
    let (program, at) = match (planted.role, a) {
        (Role::Syscall, SYS_EXECVE) => (Named::Path(b), 3),
        (Role::Syscall, _) => (Named::At(b, c), 4),
        _ => (Named::At(a, b), 3),
    };
    let original = |environment: usize| {
        let mut all = *arguments;
        all[at] = environment;
        // SAFETY: the trampoline is the original's entry; more integer arguments than it takes do no harm.
        let original: unsafe extern "C" fn(usize, usize, usize, usize, usize, usize) -> usize =
            unsafe { core::mem::transmute(planted.original as *const ()) };
        let [a, b, c, d, e, f] = all;
        // SAFETY: the program's own call.
        unsafe { original(a, b, c, d, e, f) }
    };
    // SAFETY: as above; what names the program and the environment are where the call has them.
    unsafe { exec::exec(program, arguments[at], original) }
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
