//! *Where does this process record?*
//!
//! One region a process, mapped once at start, at one address for life. With a session's socket it is a
//! memfd, which the session keeps when the process is gone; otherwise it is private memory. A
//! forked child gets a copy at the same address ([`crate::process`]).

#![allow(unsafe_code)] // Sets up and replaces the region's mapping, and holds the pointers into it.

use crate::environment::{HandOff, PathBuffer};
use crate::fast;
use crate::peak;
use crate::sys::{self, map};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::{Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU32};
use pointee_index::counters::{Counters, FIRST_OWN, SHARED};
use pointee_index::direct::Reader;
use pointee_index::handoff::{HELLO_MAGIC, Hello, key};
use pointee_index::layout::{Layout, MAGIC, VERSION, unseen};
use pointee_index::mismatches::Mismatches;
use pointee_index::nested::Nested;
use pointee_index::origins::{Origins, ROOTS};
use pointee_index::pages::Pages;
use pointee_index::signal_stacks::SignalStacks;
use pointee_index::{Geometry, Header, Writer};

/// The writers of this process's region and what belongs to it.
pub(crate) struct Region {
    pub(crate) base: *mut u8,
    pub(crate) layout: Layout,
    pub(crate) geometry: Geometry,
    pub(crate) writer: Writer,
    pub(crate) nested: Nested,
    pub(crate) pages: Pages,
    pub(crate) origins: Origins,
    pub(crate) counters: Counters,
    pub(crate) mismatches: Mismatches,
    pub(crate) signal_stacks: SignalStacks,
    pub(crate) reader: Reader,
    /// Whether others hold the region too; else it is private memory.
    pub(crate) shared: bool,
    /// How much of it is in the file that others hold, if any: all, or all but the tables.
    pub(crate) shared_len: u64,
    pub(crate) socket: PathBuffer,
    pub(crate) handoff: HandOff,
}

struct Cell(UnsafeCell<MaybeUninit<Region>>);
// SAFETY: written once, before the first hook is planted; read-only afterwards.
unsafe impl Sync for Cell {}

static REGION: Cell = Cell(UnsafeCell::new(MaybeUninit::uninit()));
/// Set while this process must not record: it could not get a region of its own.
static DISABLED: AtomicBool = AtomicBool::new(false);
/// How many execs came before.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// What a reader outside looks for by name: where the region lies.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Beacon {
    magic: u64,
    base: *mut u8,
    len: u64,
}

/// The symbol `pointee_index` of `libpointee.so`.
#[repr(transparent)]
pub(crate) struct BeaconCell(UnsafeCell<Beacon>);
// SAFETY: written once at start, before other threads exist.
unsafe impl Sync for BeaconCell {}

/// Where the region lies, for readers outside.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub(crate) static pointee_index: BeaconCell = BeaconCell(UnsafeCell::new(Beacon {
    magic: 0,
    base: core::ptr::null_mut(),
    len: 0,
}));

/// The region. Only code reached from a planted hook, or from start after [`set_up`], may call this.
#[inline(always)]
pub(crate) fn region() -> &'static Region {
    // SAFETY: hooks are planted after `set_up` has written it.
    unsafe { (*REGION.0.get()).assume_init_ref() }
}

impl Region {
    /// Whether the tables are memory of this process alone.
    pub(crate) fn are_tables_private(&self) -> bool {
        !self.shared || self.shared_len < self.layout.len
    }

    #[inline(always)]
    pub(crate) fn header(&self) -> &'static Header {
        // SAFETY: the region stays mapped as long as the process lives.
        unsafe { &*self.base.cast::<Header>() }
    }
}

/// Whether this process records nothing.
pub(crate) fn is_disabled() -> bool {
    DISABLED.load(Relaxed)
}

/// Records nothing from now on in this process.
pub(crate) fn disable() {
    DISABLED.store(true, Relaxed);
}

pub(crate) fn set_generation(generation: u32) {
    GENERATION.store(generation, Relaxed);
}

pub(crate) fn generation() -> u32 {
    GENERATION.load(Relaxed)
}

/// How large the heap may grow for the index to see all of it.
fn heap_room() -> u64 {
    const RLIMIT_AS: usize = 9;
    let limit = sys::limit(RLIMIT_AS);
    if limit == u64::MAX {
        64 << 30
    } else {
        limit / 4
    }
}

fn geometry() -> Geometry {
    const RLIMIT_AS: usize = 9;
    if sys::limit(RLIMIT_AS) == u64::MAX {
        Geometry::roomy(heap_room())
    } else {
        Geometry::narrow(heap_room())
    }
}

/// A memfd that may be as long as `len`, or a negative number. Never raises SIGXFSZ.
pub(crate) fn new_file(len: u64) -> isize {
    const RLIMIT_FSIZE: usize = 1;
    if sys::limit(RLIMIT_FSIZE) < len {
        return -1;
    }
    let fd = sys::memfd(c"pointee");
    if fd >= 0 && sys::ftruncate(fd as usize, len as usize) < 0 {
        sys::close(fd as usize);
        return -1;
    }
    fd
}

/// Puts private memory where the tables of the region at `base` lie, so that the kernel copies them when the process forks, and only as
/// they change. `false`, and nothing has changed, where the process's limits count such memory.
fn make_private(base: *mut u8, layout: &Layout) -> bool {
    const RLIMIT_DATA: usize = 2;
    let flags = map::PRIVATE | map::ANONYMOUS | map::NORESERVE;
    let len = (layout.len - layout.tables) as usize;
    let tables = base.wrapping_add(layout.tables as usize);
    // SAFETY: the end of a mapping just made, which nobody has used.
    sys::limit(RLIMIT_DATA) == u64::MAX
        && unsafe { sys::mmap_over(tables, len, map::READ | map::WRITE, flags, -1) }
}

/// Maps the region and writes its header. `false` if there is no room for it: the program runs without us.
pub(crate) fn set_up(handoff: HandOff) -> bool {
    let geometry = geometry();
    let layout = Layout::of(&geometry);
    let len = layout.len as usize;
    let socket = handoff.path(key::SOCKET);
    let fd = if socket.is_empty() {
        -1
    } else {
        new_file(layout.len)
    };
    let shared = fd >= 0;
    let flags = if shared {
        map::SHARED
    } else {
        map::PRIVATE | map::ANONYMOUS
    };
    let base = sys::mmap(0, len, map::READ | map::WRITE, flags | map::NORESERVE, fd);
    if base.is_null() {
        if shared {
            sys::close(fd as usize);
        }
        return false;
    }
    GENERATION.store(handoff.number(key::GENERATION).unwrap_or(0), Relaxed);
    let are_private =
        shared && handoff.field(key::BLOCKS) == Some(b"live") && make_private(base, &layout);
    sys::leave_out_of_cores(base, len);
    // SAFETY: a fresh mapping of the layout's length, zero throughout, which stays.
    unsafe {
        let header = base.cast::<Header>();
        (&raw mut (*header).geometry).write(geometry);
        let region = Region {
            base,
            layout,
            geometry,
            writer: Writer::new(base, &layout),
            nested: Nested::new(base, &layout),
            pages: Pages::new(base, &layout),
            origins: Origins::new(base, &layout),
            counters: Counters::new(base, layout),
            mismatches: Mismatches::new(base, &layout),
            signal_stacks: SignalStacks::new(base, &layout),
            reader: Reader::new(base, &layout),
            shared,
            shared_len: if are_private {
                layout.tables
            } else {
                layout.len
            },
            socket,
            handoff,
        };
        (*REGION.0.get()).write(region);
        let beacon = pointee_index.0.get();
        (*beacon).base = base;
        (*beacon).len = layout.len;
        (*beacon).magic = MAGIC;
    }
    fast::set_up(region());
    let header = region().header();
    header.base.store(base as u64, Relaxed);
    header.version.store(VERSION, Relaxed);
    header.pid.store(sys::getpid() as u32, Relaxed);
    header.parent.store(sys::getppid() as u32, Relaxed);
    header.origins.store(ROOTS, Relaxed);
    header.strings.store(1, Relaxed);
    header.started.store(sys::now(), Relaxed);
    header.threads.store(FIRST_OWN, Relaxed);
    header.private_tables.store(u32::from(are_private), Relaxed);
    region().counters.give(SHARED, 0, 0);
    if !shared {
        header.unseen.fetch_or(unseen::PRIVATE_INDEX, Relaxed);
    }
    header.magic.store(MAGIC, Release);
    if shared {
        announce([
            usize::try_from(fd).ok(),
            peak::set_up(region()),
            usize::try_from(sys::open(c"/proc/self/exe", false)).ok(),
        ]);
    } else {
        announce([None; 3]);
    }
    true
}

/// Sends the files of the region, of the blocks at the peak and of the executable to the session, those that there are, and
/// closes them; none, if the region is private. Nobody answers, and nothing is lost if nobody listens.
pub(crate) fn announce(files: [Option<usize>; 3]) {
    send(files);
    for file in files.into_iter().flatten() {
        sys::close(file);
    }
}

/// How many seconds the command may take to read what was sent before; it does nothing else meanwhile.
const PATIENCE: i64 = 2;
/// How often a signal may come meanwhile.
const INTERRUPTIONS: u32 = 8;
const EINTR: isize = -4;

fn send(files: [Option<usize>; 3]) {
    const AF_UNIX: u16 = 1;
    const SOCK_DGRAM: usize = 2;
    const SOCK_CLOEXEC: usize = 0o2_000_000;
    const SOL_SOCKET: u32 = 1;
    const SCM_RIGHTS: u32 = 1;

    #[repr(C)]
    struct Address {
        family: u16,
        path: [u8; 108],
    }
    #[repr(C)]
    struct Control {
        len: usize,
        level: u32,
        kind: u32,
        fds: [i32; 3],
    }
    #[repr(C)]
    struct Message {
        name: *const Address,
        name_len: u32,
        parts: *const [usize; 2],
        parts_len: usize,
        control: *const Control,
        control_len: usize,
        flags: u32,
    }

    let region = region();
    let path = region.socket.as_bytes();
    let mut address = Address {
        family: AF_UNIX,
        path: [0; 108],
    };
    let to = address.path[..107].get_mut(..path.len());
    let Some(to) = to.filter(|_| !path.is_empty()) else {
        return;
    };
    to.copy_from_slice(path);
    let header = region.header();
    let hello = Hello {
        magic: HELLO_MAGIC,
        region_len: if files[0].is_some() {
            region.layout.len
        } else {
            0
        },
        pid: header.pid.load(Relaxed),
        parent: header.parent.load(Relaxed),
        generation: generation(),
        peak: u32::from(files[1].is_some()),
    }
    .to_bytes();
    let parts = [hello.as_ptr() as usize, hello.len()];
    let mut fds = [0; 3];
    let mut count = 0;
    for fd in files.into_iter().flatten() {
        fds[count] = fd as i32;
        count += 1;
    }
    let control = Control {
        len: 16 + count * size_of::<i32>(),
        level: SOL_SOCKET,
        kind: SCM_RIGHTS,
        fds,
    };
    let message = Message {
        name: &raw const address,
        name_len: size_of::<Address>() as u32,
        parts: &raw const parts,
        parts_len: 1,
        control: if count == 0 {
            core::ptr::null()
        } else {
            &raw const control
        },
        control_len: if count == 0 { 0 } else { size_of::<Control>() },
        flags: 0,
    };
    let socket = sys::socket(AF_UNIX as usize, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if socket < 0 {
        return;
    }
    // A command that is stopped must not stop the program; its report will not know this process.
    sys::sockets::set_deadlines(socket as usize, PATIENCE);
    for _interrupted in 0..INTERRUPTIONS {
        // SAFETY: all pointers in the message are to locals that are alive.
        if unsafe { sys::sockets::sendmsg(socket as usize, (&raw const message).cast()) } != EINTR {
            break;
        }
    }
    sys::close(socket as usize);
}

/// Appends to the string section; 0 (the empty string) when it is full.
pub(crate) fn add_string(text: &[u8]) -> u32 {
    let region = region();
    let len = text.len() as u32 + 1;
    let at = region.header().strings.fetch_add(len, Relaxed);
    if u64::from(at) + u64::from(len) > u64::from(region.geometry.strings) {
        region.header().strings.fetch_sub(len, Relaxed);
        return 0;
    }
    // SAFETY: within the string section, in a part that nobody else was given.
    unsafe {
        let to = region
            .base
            .add((region.layout.strings + u64::from(at)) as usize);
        core::ptr::copy_nonoverlapping(text.as_ptr(), to, text.len());
    }
    at
}
