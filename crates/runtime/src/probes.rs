//! *How do probes get into the program's code?*
//!
//! The command plans ([`pointee_patch::placement`]), this file applies. For each object that is
//! loaded, at start or later, it asks the command for a placement over a socket, and gets two files:
//! the placement, and the memory of its counters, which the command keeps when the process is gone.
//!
//! ```text
//!   this process                                 the command
//!     connect, Request + path + the open file ──▶
//!                                              ◀── Answer + placement file + counters file
//!     island mapped near the object, corrected, then made executable; counters behind it
//!     pads compared with what is in memory, all of them, then written
//! ```
//!
//! Placements that count nothing and tell the hooks of pools that were inlined come the same way from another place ([`crate::carvings`]).
//!
//! Nothing is written where one byte differs from the file. Nothing here runs again until an object
//! is loaded, or the process is about to become two: then every counter gets its `lock`.

#![allow(unsafe_code)] // Maps and writes code.

use crate::modules::{self, Module};
use crate::region::region;
use crate::sys::{self, map};
use crate::{carvings, signal_calls, traps};
use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use pointee_index::handoff::{ANSWER_MAGIC, Answer, REQUEST_MAGIC, Request, key};
use pointee_model::addr::LinkAddr;
use pointee_patch::placement::{Event, PAGE, Placement};

/// Objects with probes at most.
const ROOM: usize = 512;
/// Bytes of code written at once.
const CHUNK: usize = 64 << 10;
/// Reach of a `jmp rel32`, less room for what lies around.
const REACH: u64 = (1 << 31) - (64 << 20);

/// An object with its probes.
#[derive(Clone, Copy)]
struct Applied {
    bias: u64,
    start: u64,
    placement: Placement<'static>,
    /// Where the island lies.
    island: u64,
}

impl Applied {
    /// Bytes of island and counters.
    fn len(&self) -> usize {
        let header = self.placement.header;
        header.island_len as usize + header.counters_len()
    }
}

struct Ledger {
    applied: [Option<Applied>; ROOM],
    /// How many of them are complete; a handler of traps reads those while another is added.
    count: AtomicUsize,
}

struct Cell(UnsafeCell<Ledger>);
// SAFETY: used by one thread at a time: the first, or the one that holds the dynamic linker's lock; by
// `lock_all` before there is a second.
unsafe impl Sync for Cell {}

static LEDGER: Cell = Cell(UnsafeCell::new(Ledger {
    applied: [None; ROOM],
    count: AtomicUsize::new(0),
}));

/// Whether counters have to be locked.
static CONCURRENT: AtomicBool = AtomicBool::new(false);
/// Whether the process is under a system call filter: no more calls of ours then.
static FILTERED: AtomicBool = AtomicBool::new(false);

/// Whether the command wants probes, rather than a record of allocations.
pub(crate) fn are_wanted() -> bool {
    region().handoff.field(key::PROBES).is_some()
}

/// Whether objects that arrive can still be given probes.
pub(crate) fn can_be_added() -> bool {
    !FILTERED.load(Relaxed)
}

/// Whether a system call of ours may end the process.
pub(crate) fn is_filtered() -> bool {
    FILTERED.load(Relaxed)
}

/// Puts probes into everything that is loaded.
pub(crate) fn start() {
    modules::each(add);
}

/// Puts probes into an object that nobody runs in yet (or, at start, this thread alone).
pub(crate) fn add(module: &Module) {
    if !module.holds(add as fn(&Module) as usize as u64) {
        put(module, request);
    }
}

/// Puts a placement into an object that nobody runs in yet, the one that `files` gives for it if it has none from before.
pub(crate) fn put(module: &Module, files: impl FnOnce(&Module) -> Option<Files>) {
    // SAFETY: see `Cell`.
    let ledger = unsafe { &*LEDGER.0.get() };
    let same = |applied: &Applied| applied.bias == module.bias && applied.start == module.start;
    let before = ledger.applied.iter().flatten().copied().find(same);
    if before.is_some_and(|applied| write_pads(&applied)) {
        return; // The same file at the same place; its island serves again.
    }
    let count = ledger.count.load(Relaxed);
    if count == ROOM {
        return;
    }
    let Some(applied) = files(module).and_then(|files| apply(module, &files)) else {
        return;
    };
    // SAFETY: see `Cell`; nobody reads it before it is counted.
    unsafe { (&raw mut (*LEDGER.0.get()).applied[count]).write(Some(applied)) };
    // A trap may be met as soon as it is written.
    ledger.count.store(count + 1, Release);
    if !write_pads(&applied) {
        ledger.count.store(count, Release);
        let (island, len) = (applied.island as *mut u8, applied.len());
        // SAFETY: mapped by `map_near`, and nothing leads there.
        unsafe { sys::munmap(island, len) };
        return;
    }
    let header = &applied.placement.header;
    let tally = applied.island + header.island_len + header.tally() as u64;
    // SAFETY: behind the counters, which other processes only ever add to as well.
    unsafe { &*(tally as *const AtomicU64) }.fetch_add(1, Relaxed);
    if header.unwatched > 0 {
        lock_all();
    }
    if applied.placement.header.carvings > 0 {
        carvings::note(module, &applied.placement, delta(&applied));
    }
}

/// Where a thread goes on that met a trap at `at`; `None` if it is none of ours.
pub(crate) fn copy_of_trap(at: u64) -> Option<u64> {
    // SAFETY: what is counted is not written any more.
    let ledger = unsafe { &*LEDGER.0.get() };
    let count = ledger.count.load(Acquire);
    // The latest first: an object may lie where another was.
    ledger
        .applied
        .get(..count)?
        .iter()
        .rev()
        .flatten()
        .find_map(|applied| {
            let offset = applied
                .placement
                .find_trap(LinkAddr(at.wrapping_sub(applied.bias)))?;
            Some(applied.island + u64::from(offset))
        })
}

fn apply(module: &Module, files: &Files) -> Option<Applied> {
    let placement = map_placement(files.placement);
    let applied = placement.and_then(|placement| {
        let header = placement.header;
        if header.traps != 0 && !traps::take_over() {
            return None;
        }
        let island_len = usize::try_from(header.island_len).ok()?;
        let len = island_len.checked_add(header.counters_len())?;
        let island = map_near(module, len)?;
        let applied = Applied {
            bias: module.bias,
            start: module.start,
            placement,
            island: island as u64,
        };
        if write_island(module, &applied, island, island_len, files.counters) {
            Some(applied)
        } else {
            // SAFETY: mapped by `map_near`, and nothing leads there.
            unsafe { sys::munmap(island, len) };
            None
        }
    });
    sys::close(files.placement);
    files.counters.map(sys::close);
    applied
}

/// What the command gives for an object, as descriptors.
pub(crate) struct Files {
    pub(crate) placement: usize,
    pub(crate) counters: Option<usize>,
}

/// Asks the command for the placement of `module`.
fn request(module: &Module) -> Option<Files> {
    let path = if module.is_executable {
        c"/proc/self/exe"
    } else {
        module.path.as_c_str()
    };
    let file = usize::try_from(sys::open(path, false)).ok()?;
    let socket = sys::sockets::connect_packets(region().handoff.path(key::PROBES).as_bytes());
    let answer = socket.and_then(|socket| {
        let request = Request {
            magic: REQUEST_MAGIC,
            pid: sys::getpid() as u32,
            reserved: 0,
        };
        let parts = [&request.to_bytes()[..], module.path.as_bytes()];
        let sent = sys::sockets::send_with_file(socket, parts, file);
        let mut bytes = [0; Answer::LEN];
        let files = sent
            .then(|| sys::sockets::receive_with_files(socket, &mut bytes))
            .flatten();
        sys::close(socket);
        let [placement, counters] = files?;
        let files = Files {
            placement,
            counters: Some(counters),
        };
        if u64::from_le_bytes(bytes) == ANSWER_MAGIC {
            Some(files)
        } else {
            sys::close(placement);
            sys::close(counters);
            None
        }
    });
    sys::close(file);
    answer
}

fn map_placement(file: usize) -> Option<Placement<'static>> {
    let len = sys::file_len(file);
    if len == 0 {
        return None;
    }
    let at = sys::mmap(0, len, map::READ, map::PRIVATE, file as isize);
    if at.is_null() {
        return None;
    }
    // SAFETY: mapped for good; the command seals the file's length before it sends it.
    let parsed = Placement::parse(unsafe { core::slice::from_raw_parts(at, len) });
    if parsed.is_none() {
        // SAFETY: just mapped, and not referred to.
        unsafe { sys::munmap(at, len) };
    }
    parsed
}

/// Writable pages, all of which all of `module` can reach.
fn map_near(module: &Module, len: usize) -> Option<*mut u8> {
    let near = |at: u64| {
        let end = at + len as u64;
        module.end.max(end) - module.start.min(at) < REACH
    };
    let len_pages = len as u64;
    let mut distance = 1u64 << 20;
    while distance < REACH {
        let below = module.start.checked_sub(distance + len_pages);
        for hint in [below, module.end.checked_add(distance)]
            .into_iter()
            .flatten()
        {
            let hint = hint & !(PAGE as u64 - 1);
            if hint < 1 << 16 || !near(hint) {
                continue;
            }
            let flags = map::PRIVATE | map::ANONYMOUS | map::FIXED_NOREPLACE | map::NORESERVE;
            let at = sys::mmap(hint as usize, len, map::READ | map::WRITE, flags, -1);
            if at.is_null() {
                continue;
            }
            if near(at as u64) {
                return Some(at);
            }
            // SAFETY: just mapped by a kernel that takes the address for a hint only.
            unsafe { sys::munmap(at, len) };
        }
        distance += (distance / 4).next_multiple_of(1 << 16);
    }
    None
}

fn write_island(
    module: &Module,
    applied: &Applied,
    at: *mut u8,
    len: usize,
    counters: Option<usize>,
) -> bool {
    let placement = &applied.placement;
    // SAFETY: mapped writable, `len` bytes, and ours alone.
    let island = unsafe { core::slice::from_raw_parts_mut(at, len) };
    let from = placement.island();
    if from.len() != len || len < Event::COUNT * 8 {
        return false;
    }
    island.copy_from_slice(from);
    if placement
        .correct(island, applied.bias, delta(applied))
        .is_none()
    {
        return false;
    }
    let stubs: [(Event, unsafe extern "C" fn()); 4] = [
        (Event::LinkMap, link_map_stub),
        (Event::Concurrency, concurrency_stub),
        (Event::Prctl, prctl_stub),
        (Event::Syscall, syscall_stub),
    ];
    for (event, stub) in stubs {
        let address = (stub as usize as u64).to_le_bytes();
        island[event.slot()..event.slot() + 8].copy_from_slice(&address);
    }
    if placement.header.carvings != 0 && !carvings::fill_in(module, &placement.header, island) {
        return false;
    }
    let slot = Event::SignalCall.slot();
    island[slot..slot + 8].copy_from_slice(&signal_calls::stub().to_le_bytes());
    if CONCURRENT.load(Relaxed) {
        placement.lock(island);
    }
    // SAFETY: both ranges were mapped by `map_near` for this; nobody runs in the first yet.
    unsafe {
        sys::mprotect(at, len, map::READ | map::EXEC)
            && counters.is_none_or(|counters| {
                let len_behind = placement.header.counters_len();
                let protection = map::READ | map::WRITE;
                sys::mmap_over(
                    at.add(len),
                    len_behind,
                    protection,
                    map::SHARED,
                    counters as isize,
                )
            })
    }
}

/// How much further the island lies from the module than it was laid out for.
fn delta(applied: &Applied) -> i64 {
    let laid_out = applied.placement.header.base.wrapping_add(applied.bias);
    applied.island.wrapping_sub(laid_out) as i64
}

/// Compares all pads with what is in memory, then writes them. `false` if nothing was written.
fn write_pads(applied: &Applied) -> bool {
    let delta = delta(applied);
    // SAFETY: pads lie in the module's code, which is readable: the command took them from its segments.
    let now = |at: u64, len: usize| unsafe { core::slice::from_raw_parts(at as *const u8, len) };
    let run = |at: u64| at.wrapping_add(applied.bias);
    let module = modules::find(applied.start);
    let unchanged = applied.placement.pads().all(|pad| {
        let (at, len) = (run(pad.at.0), usize::from(pad.len));
        // A pad may lie behind the code, up to the end of its last page.
        let inside = module.is_some_and(|module| {
            let end = module.end.next_multiple_of(PAGE as u64);
            (module.start..end).contains(&at) && len as u64 <= end - at
        });
        inside && pad.written(delta).is_some() && now(at, len) == &pad.original[..len]
    });
    let memory = usize::try_from(sys::open(c"/proc/self/mem", true));
    let (true, Ok(memory)) = (unchanged, memory) else {
        if let Ok(memory) = memory {
            sys::close(memory);
        }
        return false;
    };
    let buffer = sys::mmap(
        0,
        CHUNK,
        map::READ | map::WRITE,
        map::PRIVATE | map::ANONYMOUS,
        -1,
    );
    if buffer.is_null() {
        sys::close(memory);
        return false;
    }
    // SAFETY: just mapped, ours alone.
    let chunk = unsafe { core::slice::from_raw_parts_mut(buffer, CHUNK) };
    let mut pads = applied.placement.pads().peekable();
    let mut written = true;
    while let Some(first) = pads.peek() {
        let from = run(first.at.0);
        let mut len = 0;
        while let Some(pad) =
            pads.next_if(|pad| run(pad.at.0) + u64::from(pad.len) - from <= CHUNK as u64)
        {
            let (offset, end) = (
                (run(pad.at.0) - from) as usize,
                (run(pad.at.0) - from) as usize + usize::from(pad.len),
            );
            if len < end {
                chunk[len..end].copy_from_slice(now(from + len as u64, end - len));
                len = end;
            }
            if let Some(bytes) = pad.written(delta) {
                chunk[offset..end].copy_from_slice(&bytes[..usize::from(pad.len)]);
            }
        }
        // SAFETY: the bytes were planned for that place, and no thread runs there.
        written &= unsafe { sys::pwrite(memory, chunk.as_ptr(), len, from as usize) };
    }
    // SAFETY: mapped above, not referred to any more.
    unsafe { sys::munmap(buffer, CHUNK) };
    sys::close(memory);
    written
}

/// Makes all counters exact with several threads. There is one, still.
fn lock_all() {
    if CONCURRENT.swap(true, Relaxed) {
        return;
    }
    // SAFETY: see `Cell`.
    let ledger = unsafe { &*LEDGER.0.get() };
    let Ok(memory) = usize::try_from(sys::open(c"/proc/self/mem", true)) else {
        return;
    };
    for applied in ledger.applied.iter().flatten() {
        let len = applied.placement.header.island_len as usize;
        let copy = sys::mmap(
            0,
            len,
            map::READ | map::WRITE,
            map::PRIVATE | map::ANONYMOUS,
            -1,
        );
        if copy.is_null() {
            continue;
        }
        // SAFETY: the island stays mapped and readable; the copy is ours, and as long. No other
        // thread runs in the island while it is written.
        unsafe {
            let bytes = core::slice::from_raw_parts_mut(copy, len);
            bytes.copy_from_slice(core::slice::from_raw_parts(
                applied.island as *const u8,
                len,
            ));
            applied.placement.lock(bytes);
            sys::pwrite(memory, copy, len, applied.island as usize);
            sys::munmap(copy, len);
        }
    }
    sys::close(memory);
}

/// An [`Event`]: `first` is the first argument of the function that is being entered.
extern "C" fn hear(first: u64, event: u64) {
    const PR_SET_SECCOMP: u64 = 22;
    const SECCOMP: u64 = 317;
    /// `clone`, `fork`, `clone3`.
    const MAKERS: [u64; 3] = [56, 57, 435];
    const LINK_MAP: u64 = Event::LinkMap as u64;
    const PRCTL: u64 = Event::Prctl as u64;
    const SYSCALL: u64 = Event::Syscall as u64;
    match event {
        LINK_MAP => crate::start::link_map_changed(),
        PRCTL if first == PR_SET_SECCOMP => FILTERED.store(true, Relaxed),
        SYSCALL if first == SECCOMP => FILTERED.store(true, Relaxed),
        SYSCALL if !MAKERS.contains(&first) => {}
        PRCTL => {}
        _ if FILTERED.load(Relaxed) => {}
        _ => lock_all(),
    }
}

macro_rules! stub {
    ($name:ident, $event:expr) => {
        /// Called from a copy of a function's entry: keeps all registers that carry arguments (the functions
        /// have none in vector registers).
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                "push rax", "push rcx", "push rdx", "push rsi", "push rdi", "push r8", "push r9", "push r10", "push r11",
                "push rbp", "mov rbp, rsp", "and rsp, -16", "cld",
                "mov esi, {event}",
                "call {hear}",
                "mov rsp, rbp", "pop rbp",
                "pop r11", "pop r10", "pop r9", "pop r8", "pop rdi", "pop rsi", "pop rdx", "pop rcx", "pop rax",
                "ret",
                event = const $event as u64,
                hear = sym hear,
            )
        }
    };
}

stub!(link_map_stub, Event::LinkMap);
stub!(concurrency_stub, Event::Concurrency);
stub!(prctl_stub, Event::Prctl);
stub!(syscall_stub, Event::Syscall);
