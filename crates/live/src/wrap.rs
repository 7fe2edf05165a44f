//! *How is a function of any signature seen when it is called and when it returns?* By changing where it returns to.
//!
//! ```text
//!   call f ─► pad ─► relay: push hook ─► entry stub: save all, call `enter`, restore ─► trampoline ─► f
//!                                          │ the return address goes to a cell;
//!                                          ▼ in its place on the stack: the thunk of that cell
//!   caller ◄───────────────────────── exit stub: save all, call `leave`, restore ◄── thunk ◄── ret
//! ```
//!
//! Nothing else on the stack moves, so arguments on it, results in memory and any number of arguments are where they were.
//! All registers that a call may change are saved around both stubs, with the vector registers in full.
//!
//! **The true return address.** Thunk and cell are a fixed distance apart, which is written in the thunk. The unwind rule of
//! all thunks and of the exit stub is therefore one (`THUNK_RULE` in `frames.rs`): the return address is saved
//! at that distance from `*(CFA − 8)`, for the word that was returned through is the thunk's own address. libgcc, gdb
//! and whoever else reads rules in DWARF goes through. The processor's own prediction of returns misses once for each such call.
//!
//! **Cells** are a stack for each thread. A cell whose place on the program's stack lies below the one of a
//! new call was left by `longjmp` or an exception, and is used again.
//!
//! # Limits
//!
//! 128 calls deep in each thread, 1,024 threads: beyond that, and for calls made by the callbacks themselves or by
//! a signal handler that interrupts one, the function runs unseen ([`missed`]). A thread that moves
//! to another stack while in a wrapped call (`swapcontext`) is taken for one that jumped. Hardware shadow stacks, which
//! Linux switches on only for programs that ask, do not let a return address be changed.

#![allow(unsafe_code)] // Changes return addresses.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use pointee_model::addr::RunAddr;

use crate::announce::Announcement;
use crate::callers;
use crate::entry;
use crate::frames::Frames;
use crate::hook::{Hook, Installed, Purpose};
use crate::lines::{Lines, What};
use crate::listing;
use crate::refusal::Refusal;
use crate::stop::{self, Pause};
use crate::stubs::{self, Saved};
use crate::sys::{self, map};
use crate::text::Text;

/// Bytes of a thunk, and of a cell: the same, so that one distance leads from any thunk to its cell.
const STRIDE: u64 = 32;
/// Cells of one thread: a page of thunks.
const DEPTH: usize = 128;
/// Threads that have cells.
const THREADS: usize = 1024;
const STACK_LEN: u64 = STRIDE * DEPTH as u64;
const ALL_LEN: u64 = STACK_LEN * THREADS as u64;

/// What is called at each call and return of a function, with the number given to [`wrap`]. They are not themselves
/// seen, must return, and may change what they are given.
#[derive(Clone, Copy, Debug)]
pub struct Observers {
    /// Before the function's first instruction.
    pub enter: extern "C" fn(&mut Call),
    /// After its last. Not called when the function is left by `longjmp` or an exception.
    pub leave: extern "C" fn(&mut Return),
    /// Given to both.
    pub data: u64,
}

impl PartialEq for Observers {
    fn eq(&self, other: &Self) -> bool {
        let key = |o: &Self| (o.enter as usize, o.leave as usize, o.data);
        key(self) == key(other)
    }
}

impl Eq for Observers {}

/// A function that is being called.
#[repr(C)]
#[derive(Debug)]
pub struct Call {
    /// The function.
    pub function: RunAddr,
    /// As given to [`wrap`].
    pub data: u64,
    /// Where it will return to.
    pub return_address: RunAddr,
    /// Its arguments on the stack, in words; how many, only its type tells.
    pub stack: *mut u64,
    /// Its arguments in registers, and the others.
    pub registers: *mut Saved,
}

/// A function that has returned.
#[repr(C)]
#[derive(Debug)]
pub struct Return {
    /// The function.
    pub function: RunAddr,
    /// As given to [`wrap`].
    pub data: u64,
    /// Where it returns to.
    pub return_address: RunAddr,
    /// Its result in registers, and the others.
    pub registers: *mut Saved,
}

/// One call under way.
#[repr(C, align(32))]
struct Cell {
    /// First, for the unwind rule.
    return_address: u64,
    /// Where on the stack it was.
    place: u64,
    hook: *const Hook,
    _unused: u64,
}
const _: () = assert!(size_of::<Cell>() as u64 == STRIDE);

/// Thunks and cells of all threads. Made by the first wrap, given back when none is left.
struct Arena {
    /// The first thunk; 0 when there is no arena.
    thunks: AtomicU64,
    /// The first cell.
    cells: AtomicU64,
    /// Rises when an arena is made, so that threads forget what they had of the one before.
    number: AtomicU32,
    process: AtomicU32,
    owners: [AtomicU32; THREADS],
}

static ARENA: Arena = Arena {
    thunks: AtomicU64::new(0),
    cells: AtomicU64::new(0),
    number: AtomicU32::new(0),
    process: AtomicU32::new(0),
    owners: [const { AtomicU32::new(0) }; THREADS],
};

static MISSED: AtomicU64 = AtomicU64::new(0);

/// Calls of wrapped functions that were not seen.
#[must_use]
pub fn missed() -> u64 {
    MISSED.load(Relaxed)
}

/// Has `observers` called at each call and return of `function`, whatever its type.
///
/// # Errors
///
/// [`Refusal`]: nothing has changed.
///
/// # Safety
/// The observers may be called on any thread of the program, wherever `function` is; what they change is theirs to answer for.
pub unsafe fn wrap(
    function: RunAddr,
    observers: &Observers,
) -> Result<(Installed, Pause), Refusal> {
    let mut held = stop::exclusive();
    make_arena()?;
    entry::install(&mut held, function, Purpose::Wrap(*observers), |_| {})
}

/// What the engine keeps in thread-local storage, zero at first.
#[repr(C)]
pub(crate) struct Local {
    /// The stack pointer of the stub that runs observers; 0 when none does.
    busy: u64,
    cells: *mut Cell,
    depth: u32,
    arena: u32,
}

impl Local {
    /// Whether observers run further up this stack. What a jump out of them has left does not count.
    fn is_busy(&self, sp: u64) -> bool {
        self.busy > sp
    }

    /// The next free cell for a return address at `place`, and its thunk.
    fn push(&mut self, place: u64) -> Option<(&mut Cell, u64)> {
        if self.arena != ARENA.number.load(Acquire) {
            let (cells, arena) = claim()?;
            (self.cells, self.depth, self.arena) = (cells, 0, arena);
        }
        while self.depth > 0 {
            // SAFETY: below the depth.
            let last = unsafe { &*self.cells.add(self.depth as usize - 1) };
            // At the same place: a tail call, if the thunk still stands there.
            // SAFETY: the place is that of the return address of the call under way.
            let tail = last.place == place && unsafe { *(place as *const u64) } == thunk_of(last);
            if last.place > place || tail {
                break;
            }
            self.depth -= 1;
        }
        if self.depth as usize == DEPTH {
            return None;
        }
        // SAFETY: within this thread's cells.
        let cell = unsafe { &mut *self.cells.add(self.depth as usize) };
        self.depth += 1;
        let thunk = thunk_of(cell);
        Some((cell, thunk))
    }
}

fn thunk_of(cell: &Cell) -> u64 {
    let offset = core::ptr::from_ref(cell) as u64 - ARENA.cells.load(Relaxed);
    // One byte in: unwinders look up the address before the one that is returned to.
    ARENA.thunks.load(Relaxed) + offset + 1
}

/// From the entry stub: a call has come, its return address is at `place`. The answer: where it goes on.
pub(crate) unsafe extern "C" fn enter(
    saved: *mut Saved,
    place: *mut u64,
    hook: *const Hook,
) -> u64 {
    // SAFETY: hooks stay while a thread is in the stub.
    let (function, RunAddr(original), purpose) = unsafe { Hook::served(hook) };
    // SAFETY: this thread's own.
    let local = unsafe { &mut *stubs::local() };
    if local.is_busy(saved as u64) {
        MISSED.fetch_add(1, Relaxed);
        return original;
    }
    local.busy = saved as u64;
    let busy = &raw mut local.busy;
    // SAFETY: the call's frame.
    let return_address = unsafe { *place };
    let observers = match purpose {
        Purpose::Wrap(observers) => observers,
        Purpose::Callers(callers) => {
            let destination = callers::first_hit(&callers, hook, return_address);
            // SAFETY: as below.
            unsafe { busy.write_volatile(0) };
            return destination;
        }
        // No relay of theirs leads here.
        Purpose::Replace(_) | Purpose::Probe(_) | Purpose::Relay(_) => {
            // SAFETY: as below.
            unsafe { busy.write_volatile(0) };
            return original;
        }
    };
    if let Some((cell, thunk)) = local.push(place as u64) {
        cell.return_address = return_address;
        cell.place = place as u64;
        cell.hook = hook;
        let mut call = Call {
            function,
            data: observers.data,
            return_address: RunAddr(return_address),
            // SAFETY: what lies above the return address.
            stack: unsafe { place.add(1) },
            registers: saved,
        };
        (observers.enter)(&mut call);
        // SAFETY: from here on the cell stands for the return address.
        unsafe { *place = thunk };
    } else {
        MISSED.fetch_add(1, Relaxed);
    }
    // SAFETY: this thread's own; not through a reference that a handler's call could have disturbed.
    unsafe { busy.write_volatile(0) };
    original
}

/// From the exit stub: the function returned through `thunk`. The answer: the true return address.
pub(crate) unsafe extern "C" fn leave(saved: *mut Saved, thunk: u64) -> u64 {
    let offset = thunk - 1 - ARENA.thunks.load(Relaxed);
    let cell = (ARENA.cells.load(Relaxed) + offset) as *const Cell;
    // SAFETY: the thunk's cell, in use until now.
    let (return_address, hook) = unsafe { ((*cell).return_address, (*cell).hook) };
    // SAFETY: hooks stay while a call of theirs is under way.
    let (function, _, purpose) = unsafe { Hook::served(hook) };
    // SAFETY: this thread's own.
    let local = unsafe { &mut *stubs::local() };
    // What lies above was left by a jump.
    local.depth = (offset / STRIDE % DEPTH as u64) as u32;
    if let Purpose::Wrap(observers) = purpose
        && !local.is_busy(saved as u64)
    {
        local.busy = saved as u64;
        let busy = &raw mut local.busy;
        let mut result = Return {
            function,
            data: observers.data,
            return_address: RunAddr(return_address),
            registers: saved,
        };
        (observers.leave)(&mut result);
        // SAFETY: as in `enter`.
        unsafe { busy.write_volatile(0) };
    }
    return_address
}

/// Cells for this thread, with their thunks written.
fn claim() -> Option<(*mut Cell, u32)> {
    let number = ARENA.number.load(Acquire);
    let own = sys::thread_id();
    let free = |owner: &AtomicU32| owner.compare_exchange(0, own, AcqRel, Relaxed).is_ok();
    let index = ARENA.owners.iter().position(free).or_else(inherit)?;
    let at = STACK_LEN * index as u64;
    let (thunks, cells) = (ARENA.thunks.load(Acquire), ARENA.cells.load(Acquire));
    let distance = cells.wrapping_sub(thunks);
    let mut page = [0x90_u8; STACK_LEN as usize];
    for thunk in page.chunks_exact_mut(STRIDE as usize) {
        // nop; jmp [rip+9]; …; .quad exit stub, distance of the cell from the byte after the nop
        thunk[..7].copy_from_slice(&[0x90, 0xff, 0x25, 9, 0, 0, 0]);
        thunk[16..24].copy_from_slice(&stubs::exit_stub().0.to_le_bytes());
        thunk[24..].copy_from_slice(&distance.wrapping_sub(1).to_le_bytes());
    }
    let text = Text::open().ok()?;
    // SAFETY: thunks that nobody returns to yet: a thread that had them is dead.
    unsafe { text.write(RunAddr(thunks + at), &page) }.ok()?;
    Some(((cells + at) as *mut Cell, number))
}

/// The cells of a thread that is dead. In a forked child, whose threads have other numbers, none is known to be.
fn inherit() -> Option<usize> {
    let (pid, own) = (sys::process_id(), sys::thread_id());
    if ARENA.process.load(Relaxed) != pid {
        return None;
    }
    ARENA.owners.iter().position(|owner| {
        let tid = owner.load(Relaxed);
        !sys::has_thread(pid, tid) && owner.compare_exchange(tid, own, AcqRel, Relaxed).is_ok()
    })
}

/// Under the engine's lock.
fn make_arena() -> Result<(), Refusal> {
    if ARENA.thunks.load(Relaxed) != 0 {
        return Ok(());
    }
    let no_room = |_| Refusal::NoRoom;
    let thunks = sys::map_pages(None, ALL_LEN as usize, map::READ | map::EXEC).map_err(no_room)?;
    let cells =
        sys::map_pages(None, ALL_LEN as usize, map::READ | map::WRITE).map_err(|error| {
            // SAFETY: just mapped.
            unsafe { sys::unmap_pages(thunks, ALL_LEN as usize) };
            no_room(error)
        })?;
    for owner in &ARENA.owners {
        owner.store(0, Relaxed);
    }
    ARENA.process.store(sys::process_id(), Relaxed);
    ARENA.cells.store(cells, Release);
    ARENA.thunks.store(thunks, Release);
    ARENA.number.fetch_add(1, AcqRel);
    announced().announce(
        &Frames::of_thunks(RunAddr(thunks), ALL_LEN),
        &Lines::all(What::Return, ALL_LEN),
        RunAddr(thunks),
        b"returned",
    );
    listing::add_thunks();
    Ok(())
}

struct Told(core::cell::UnsafeCell<Announcement>);
// SAFETY: used by the holder of the engine's lock.
unsafe impl Sync for Told {}

/// What unwinder and debugger were told of the thunks. Under the engine's lock.
pub(crate) fn announced() -> &'static mut Announcement {
    static TOLD: Told = Told(core::cell::UnsafeCell::new(Announcement::new()));
    // SAFETY: under the lock, and not kept.
    unsafe { &mut *TOLD.0.get() }
}

/// Under the engine's lock, when no wrapped function is left.
pub(crate) fn give_back_arena() {
    let thunks = ARENA.thunks.swap(0, AcqRel);
    if thunks != 0 {
        announced().withdraw();
        // SAFETY: no hook, no thread in a stub and no return address leads here.
        unsafe {
            sys::unmap_pages(thunks, ALL_LEN as usize);
            sys::unmap_pages(ARENA.cells.load(Relaxed), ALL_LEN as usize);
        }
    }
}

/// The addresses of thunks, as they stand on stacks.
pub(crate) fn thunks() -> [u64; 2] {
    let first = ARENA.thunks.load(Relaxed);
    [first, if first == 0 { 0 } else { first + ALL_LEN }]
}
