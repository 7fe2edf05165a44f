//! *Which objects are loaded?*
//!
//! In a statically linked program: itself, and this library, for ever. Else read from the dynamic linker's own list (`r_debug`, `link_map`: System V gABI and `<link.h>`), at
//! start and each time the linker calls the empty function it keeps for debuggers (`r_brk`), which is hooked.
//! A module that goes keeps its record; its nodes in the origin tree are retired, so that
//! whatever is loaded at its addresses next is told apart.

#![allow(unsafe_code)] // Walks the dynamic linker's structures and the headers of loaded objects.

use crate::build_id::BuildId;
use crate::environment::PathBuffer;
use crate::region::{add_string, region};
use crate::sys;
use crate::unwind_table::UnwindTable;
use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use pointee_index::layout::{PAGE, unseen};
use pointee_index::records::{self, module_flags};
use pointee_model::addr::LinkAddr;
use pointee_model::call::{Call, classify};
use pointee_model::entries::is_language_library;
use pointee_model::image::Image;

/// The public head of glibc's and musl's `struct link_map`.
#[repr(C)]
pub(crate) struct LinkMap {
    bias: u64,
    name: *const i8,
    dynamic: *const [u64; 2],
    next: *const LinkMap,
}

/// `struct r_debug_extended`: the public `r_debug` and, from version 2 (glibc 2.35), the next namespace's.
#[repr(C)]
pub(crate) struct Debug {
    version: i32,
    map: *const LinkMap,
    pub(crate) notify: u64,
    state: i32,
    linker: u64,
    next: *const Debug,
}

/// The lists of all namespaces (`dlmopen` makes more than one).
///
/// # Safety
/// `debug` is the process's `r_debug`, and stays.
unsafe fn namespaces(debug: *const Debug) -> impl Iterator<Item = *const Debug> {
    core::iter::successors(Some(debug), |debug| {
        // SAFETY: an element of the chain; the field is there from version 2 on.
        let next = unsafe {
            if (**debug).version >= 2 {
                (**debug).next
            } else {
                core::ptr::null()
            }
        };
        (!next.is_null()).then_some(next)
    })
}

/// Calls `each` with bias, name, dynamic section and record of every object in the lists, and whether it is in the first.
///
/// # Safety
/// As for [`namespaces`], and the lists are consistent.
unsafe fn each_loaded(
    debug: *const Debug,
    mut each: impl FnMut(u64, &[u8], *const [u64; 2], *const LinkMap, bool),
) {
    // SAFETY: the caller's promise.
    for (at, debug) in unsafe { namespaces(debug) }.enumerate() {
        // SAFETY: an element of the chain.
        let mut map = unsafe { (*debug).map };
        while !map.is_null() {
            // SAFETY: an element of the list; names are C strings.
            unsafe {
                each(
                    (*map).bias,
                    CStr::from_ptr((*map).name).to_bytes(),
                    (*map).dynamic,
                    map,
                    at == 0,
                );
                map = (*map).next;
            }
        }
    }
}

/// A program header (ELF-64).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    offset: u64,
    pub(crate) address: u64,
    physical: u64,
    pub(crate) file_len: u64,
    pub(crate) len: u64,
    align: u64,
}

const PT_LOAD: u32 = 1;
pub(crate) const PT_NOTE: u32 = 4;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;

/// A loaded object.
pub(crate) struct Module {
    /// Number of its record.
    pub(crate) number: u32,
    /// First and one past the last byte.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) bias: u64,
    pub(crate) dynamic: *const [u64; 2],
    /// First and one past the last byte of its executable segment.
    pub(crate) text: (u64, u64),
    unwind: Option<UnwindTable>,
    /// Address and number of its program headers.
    headers: (u64, u64),
    /// Its metadata image, if the session has given one: up to date, so that walks may stop by it.
    pub(crate) image: Option<Image<'static>>,
    build_id: BuildId,
    loaded: AtomicBool,
    /// The dynamic linker's record; stale once it is unloaded.
    link_map: AtomicU64,
    pub(crate) path: PathBuffer,
    pub(crate) is_executable: bool,
    /// A program with its libc inside, and no dynamic linker.
    pub(crate) is_static: bool,
    /// Not in one that `dlmopen` made.
    pub(crate) is_in_base_namespace: bool,
}

const ROOM: usize = 1024;

struct Modules {
    all: UnsafeCell<[core::mem::MaybeUninit<Module>; ROOM]>,
    used: AtomicU32,
}
// SAFETY: an element is written before `used` grows over it and not moved afterwards; writers hold
// the dynamic linker's lock.
unsafe impl Sync for Modules {}

static MODULES: Modules = Modules {
    all: UnsafeCell::new([const { core::mem::MaybeUninit::uninit() }; ROOM]),
    used: AtomicU32::new(0),
};

fn module(at: u32) -> &'static Module {
    // SAFETY: below `used`, so initialised.
    unsafe { (*MODULES.all.get())[at as usize].assume_init_ref() }
}

/// The loaded module that holds `address`.
pub(crate) fn find(address: u64) -> Option<&'static Module> {
    (0..MODULES.used.load(Acquire))
        .map(module)
        .find(|module| (module.start..module.end).contains(&address) && module.loaded.load(Relaxed))
}

/// The module whose record has `number`, loaded or not.
pub(crate) fn numbered(number: u32) -> Option<&'static Module> {
    // Records and elements are appended together.
    let known = number < MODULES.used.load(Acquire);
    known
        .then(|| module(number))
        .filter(|module| module.number == number)
}

impl Module {
    /// Calls `each` with owner, type, and address of the description of every ELF note in memory.
    pub(crate) fn each_note(&self, mut each: impl FnMut([u8; 8], u32, u64)) {
        let (headers, count) = self.headers;
        for at in 0..count {
            // SAFETY: within the program header table of a loaded object.
            let segment = unsafe { *(headers as *const Segment).add(at as usize) };
            if segment.kind != PT_NOTE {
                continue;
            }
            let mut note = self.bias.wrapping_add(segment.address);
            let end = note.wrapping_add(segment.len);
            while note + 20 <= end {
                // SAFETY: twelve bytes of header and eight of name are below `end`.
                let (header, owner) =
                    unsafe { (*(note as *const [u32; 3]), *((note + 12) as *const [u8; 8])) };
                let [name_len, len, kind] = header;
                let description = note + 12 + u64::from(name_len).next_multiple_of(4);
                if description + u64::from(len) > end {
                    break;
                }
                if name_len == 8 {
                    each(owner, kind, description);
                }
                note = description + u64::from(len).next_multiple_of(4);
            }
        }
    }

    /// Bytes of its thread-local block, and what that is aligned to; `None` if it has none.
    pub(crate) fn thread_local_block(&self) -> Option<(u64, u64)> {
        const PT_TLS: u32 = 7;
        // SAFETY: within the program header table of a loaded object.
        let segment = |at: u64| unsafe { *(self.headers.0 as *const Segment).add(at as usize) };
        let mut segments = (0..self.headers.1).map(segment);
        let found = segments.find(|segment| segment.kind == PT_TLS)?;
        Some((found.len, found.align.max(1)))
    }

    /// The image that was made last, from the user's cache: not known to be up to date.
    pub(crate) fn cached_image(&self) -> Option<Image<'static>> {
        self.build_id.cached_image()
    }

    /// The dynamic linker's record of it.
    pub(crate) fn link_map(&self) -> u64 {
        self.link_map.load(Relaxed)
    }

    /// Its build ID in hexadecimal digits.
    pub(crate) fn build_id_hex(&self) -> PathBuffer {
        self.build_id.hex()
    }

    /// Whether it is loaded now.
    pub(crate) fn is_loaded(&self) -> bool {
        self.loaded.load(Relaxed)
    }

    /// Where its unwind rules are.
    pub(crate) fn unwind_table(&self) -> Option<&UnwindTable> {
        self.unwind.as_ref()
    }

    /// Calls `each` with name, address, length and declared role (0: none) of every allocation function that the image knows.
    pub(crate) fn each_entry(&self, mut each: impl FnMut(&'static str, u64, u64, u32)) {
        let Some(image) = &self.image else { return };
        for entry in image.entries {
            let address = entry.address.wrapping_add(self.bias);
            if (self.text.0..self.text.1).contains(&address) {
                each(image.string(entry.name), address, entry.size, entry.role);
            }
        }
    }

    pub(crate) fn holds(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// Whether `len` bytes from `address` on lie in it.
    pub(crate) fn holds_all(&self, address: u64, len: u64) -> bool {
        self.holds(address) && self.end - address >= len
    }

    /// What the image says of the call that returns to `return_address`.
    pub(crate) fn call(&self, return_address: u64) -> Call {
        let address = LinkAddr(return_address.wrapping_sub(self.bias));
        let is_library = is_language_library(self.file_name());
        classify(self.image.as_ref(), is_library, address).0
    }

    pub(crate) fn file_name(&self) -> &[u8] {
        let path = self.path.as_bytes();
        let start = path.iter().rposition(|byte| *byte == b'/');
        &path[start.map_or(0, |slash| slash + 1)..]
    }
}

/// What the kernel told the process about its main program.
#[derive(Clone, Copy)]
pub(crate) struct Program {
    pub(crate) headers: u64,
    pub(crate) headers_len: u64,
    pub(crate) linker: u64,
    /// Where on its first stack that was said.
    pub(crate) vector: u64,
}

/// Calls `each` for every loaded module.
pub(crate) fn each(each: impl FnMut(&'static Module)) {
    let used = MODULES.used.load(Acquire);
    (0..used)
        .map(module)
        .filter(|module| module.loaded.load(Relaxed))
        .for_each(each);
}

/// The linker's `r_debug`, by the main program's `DT_DEBUG`.
///
/// # Safety
/// The program's headers are mapped.
pub(crate) unsafe fn debug_of(program: &Program) -> Option<*const Debug> {
    const PT_DYNAMIC: u32 = 2;
    const PT_PHDR: u32 = 6;
    const DT_DEBUG: u64 = 21;
    // SAFETY: the caller's promise.
    let segment = |at: u64| unsafe { *(program.headers as *const Segment).add(at as usize) };
    let of_kind = |kind| {
        (0..program.headers_len)
            .map(segment)
            .find(|segment| segment.kind == kind)
    };
    let bias = of_kind(PT_PHDR).map_or(0, |table| program.headers.wrapping_sub(table.address));
    let mut entry = bias.wrapping_add(of_kind(PT_DYNAMIC)?.address) as *const [u64; 2];
    loop {
        // SAFETY: the dynamic section ends with DT_NULL.
        let [tag, value] = unsafe { *entry };
        match tag {
            0 => return None,
            DT_DEBUG if value != 0 => return Some(value as *const Debug),
            _ => entry = entry.wrapping_add(1),
        }
    }
}

/// Whether the list may be walked.
///
/// # Safety
/// `debug` is the process's `r_debug`.
pub(crate) unsafe fn is_consistent(debug: *const Debug) -> bool {
    const RT_CONSISTENT: i32 = 0;
    // SAFETY: the caller's promise.
    unsafe { namespaces(debug).all(|debug| (*debug).state == RT_CONSISTENT) }
}

/// Brings the table up to date with the linker's list. Calls `arrived` for each new module.
///
/// # Safety
/// `debug` is the process's `r_debug`, and the caller is the thread that changed it (or the only one).
pub(crate) unsafe fn refresh(
    debug: *const Debug,
    program: Option<Program>,
    mut arrived: impl FnMut(&'static Module),
) {
    let known = MODULES.used.load(Acquire);
    let mut seen = [0u64; ROOM / 64];
    let mut count = 0u32;
    let each = |bias, name: &[u8], dynamic, link_map: *const LinkMap, is_in_base_namespace| {
        let same = |module: &Module| {
            module.dynamic == dynamic && module.bias == bias && module.loaded.load(Relaxed)
        };
        if let Some(at) = (0..MODULES.used.load(Relaxed)).find(|at| same(module(*at))) {
            seen[at as usize / 64] |= 1 << (at % 64);
            return;
        }
        if let Some(at) = revived(bias, name, dynamic) {
            seen[at as usize / 64] |= 1 << (at % 64);
            module(at).link_map.store(link_map as u64, Relaxed);
            arrived(module(at));
            return;
        }
        // The first object of all is the main program.
        let main = program.filter(|_| count == 0);
        let linker = program.map_or(0, |program| program.linker);
        count += 1;
        // SAFETY: the object is loaded.
        if let Some(mut new) = unsafe { describe(bias, name, dynamic, main, linker) }
            && let Some(new) = {
                new.is_in_base_namespace = is_in_base_namespace;
                new.link_map = (link_map as u64).into();
                add(new)
            }
        {
            arrived(new);
        }
    };
    // SAFETY: the lists are consistent when the linker says so.
    unsafe { each_loaded(debug, each) };
    for at in 0..known {
        let module = module(at);
        let gone = seen[at as usize / 64] & 1 << (at % 64) == 0;
        if gone && module.loaded.swap(false, Relaxed) {
            region().origins.unload(module.number);
            set_unloaded(module.number, sys::now());
        }
    }
}

/// Notes the two objects of a statically linked program, whose `program.linker` is 0: itself, and this library, whose file
/// `own_path` is mapped at `own`. `false` if the program's headers are not where the kernel says.
///
/// # Safety
/// No other thread runs; both are mapped.
pub(crate) unsafe fn take_static(program: Program, own: u64, own_path: &[u8]) -> bool {
    // Neither has symbols that a linker would bind.
    let none = core::ptr::null();
    // SAFETY: the caller's promise. The program is the first, as in the linker's list.
    unsafe {
        let module = bias_of(&program).and_then(|bias| describe(bias, b"", none, Some(program), 0));
        let Some(mut module) = module else {
            return false;
        };
        module.is_static = true;
        module.unwind = module.unwind.or_else(|| UnwindTable::made_for(&module));
        add(module);
        describe(own, own_path, none, None, 0).and_then(add);
    }
    true
}

/// How far a program without a dynamic linker lies from where it was linked to: its header lies at the start of its file, and so in the
/// segment that begins there, and its program headers lie right behind (System V gABI; all linkers in use).
///
/// # Safety
/// The program's headers are mapped.
unsafe fn bias_of(program: &Program) -> Option<u64> {
    let header = program.headers.checked_sub(64)?;
    // SAFETY: in front of the program headers, in the same segment, if the file is as any linker writes it.
    let is_there = header & (PAGE - 1) == 0 && unsafe { headers_at(header) }?.0 == program.headers;
    // SAFETY: within the program header table.
    let segment = |at: u64| unsafe { *(program.headers as *const Segment).add(at as usize) };
    (0..program.headers_len)
        .map(segment)
        .find(|segment| segment.kind == PT_LOAD && segment.offset == 0 && is_there)
        .map(|segment| header.wrapping_sub(segment.address))
}

/// The number of the module that was unloaded and is now loaded again: same file, same place. Its record, its nodes and its
/// hooks' trampolines serve again; a program that loads and unloads a plugin for ever needs no more of them.
fn revived(bias: u64, name: &[u8], dynamic: *const [u64; 2]) -> Option<u32> {
    let at = (0..MODULES.used.load(Relaxed)).find(|at| {
        let module = module(*at);
        !module.loaded.load(Relaxed)
            && module.bias == bias
            && module.dynamic == dynamic
            && module.path.as_bytes() == name
            // SAFETY: an object is loaded at this bias, so its headers are mapped.
            && unsafe { build_id_at(bias) } == Some(module.build_id)
    })?;
    let back = module(at);
    region().origins.revive(back.number);
    set_unloaded(back.number, u64::MAX);
    back.loaded.store(true, Relaxed);
    Some(at)
}

/// # Safety
/// A shared object's first segment is mapped at `bias`, if it is not zero, and nobody has patched it yet.
unsafe fn build_id_at(bias: u64) -> Option<BuildId> {
    // SAFETY: the caller's promise.
    unsafe { headers_at(bias).map(|(headers, count)| BuildId::of_loaded(bias, headers, count)) }
}

fn add(new: Module) -> Option<&'static Module> {
    let at = MODULES.used.load(Relaxed);
    if at as usize == ROOM {
        region()
            .header()
            .unseen
            .fetch_or(unseen::MODULES_FULL, Relaxed);
        return None;
    }
    // SAFETY: above `used`: nobody reads it; writers are one at a time.
    unsafe { (*MODULES.all.get())[at as usize].write(new) };
    MODULES.used.store(at + 1, Release);
    Some(module(at))
}

/// # Safety
/// An object is loaded with this bias and dynamic section.
unsafe fn describe(
    bias: u64,
    name: &[u8],
    dynamic: *const [u64; 2],
    main: Option<Program>,
    linker: u64,
) -> Option<Module> {
    let is_executable = main.is_some();
    let (headers, count) = match main {
        Some(program) => (program.headers, program.headers_len),
        // SAFETY: a shared object's ELF header is at its bias, unless it was linked elsewhere.
        _ => unsafe { headers_at(bias)? },
    };
    let (mut start, mut end) = (u64::MAX, 0);
    let mut text = (0, 0);
    let mut unwind = None;
    for at in 0..count {
        // SAFETY: within the program header table.
        let segment = unsafe { *(headers as *const Segment).add(at as usize) };
        let from = bias.wrapping_add(segment.address);
        let to = from.wrapping_add(segment.len);
        match segment.kind {
            PT_LOAD => {
                start = start.min(from & !4095);
                end = end.max(to.next_multiple_of(4096));
                if segment.flags & 1 != 0 && text.0 == 0 {
                    text = (from, to);
                }
            }
            PT_GNU_EH_FRAME => unwind = UnwindTable::of_header(from, to),
            _ => {}
        }
    }
    if start >= end {
        return None;
    }
    // SAFETY: an object that is loaded, and not hooked yet.
    let build_id = unsafe { BuildId::of_loaded(bias, headers, count) };
    let path = if is_executable {
        executable_path()
    } else {
        PathBuffer::of(&[name])
    };
    let mut flags = 0;
    if is_executable {
        flags |= module_flags::EXECUTABLE;
    }
    if (start..end).contains(&(region as fn() -> _ as usize as u64)) {
        flags |= module_flags::RUNTIME;
    }
    if (start..end).contains(&linker) {
        flags |= module_flags::DYNAMIC_LINKER;
    }
    let number = record(
        start,
        end,
        bias,
        path.as_bytes(),
        build_id.as_bytes(),
        flags,
    );
    let image = build_id.session_image();
    Some(Module {
        number,
        start,
        end,
        bias,
        dynamic,
        text,
        unwind,
        headers: (headers, count),
        image,
        build_id,
        loaded: AtomicBool::new(true),
        link_map: AtomicU64::new(0),
        path,
        is_executable,
        is_static: false,
        is_in_base_namespace: true,
    })
}

/// # Safety
/// `at` is readable if it is not zero.
unsafe fn headers_at(at: u64) -> Option<(u64, u64)> {
    if at == 0 {
        return None;
    }
    // SAFETY: the caller's promise; an ELF header is 64 bytes.
    let header = unsafe { core::ptr::read_unaligned(at as *const [u8; 64]) };
    if header[..4] != *b"\x7fELF" {
        return None;
    }
    let offset = u64::from_le_bytes(header[32..40].try_into().ok()?);
    let count = u16::from_le_bytes(header[56..58].try_into().ok()?);
    Some((at.wrapping_add(offset), u64::from(count)))
}

fn executable_path() -> PathBuffer {
    let mut buffer = [0u8; 1000];
    let len = sys::readlink(c"/proc/self/exe", &mut buffer);
    usize::try_from(len)
        .ok()
        .and_then(|len| buffer.get(..len))
        .map_or(PathBuffer::empty(), |path| PathBuffer::of(&[path]))
}

/// Appends the module's record; `u32::MAX` when there is no room.
fn record(start: u64, end: u64, bias: u64, path: &[u8], build_id: &[u8], flags: u32) -> u32 {
    let region = region();
    let header = region.header();
    let number = header.modules.load(Relaxed);
    if number >= region.geometry.modules {
        header.unseen.fetch_or(unseen::MODULES_FULL, Relaxed);
        return u32::MAX;
    }
    let mut bytes = [0; 20];
    let len = build_id.len().min(20);
    bytes[..len].copy_from_slice(&build_id[..len]);
    let path = add_string(path);
    if flags & module_flags::EXECUTABLE != 0 {
        header.program.store(path, Relaxed);
    }
    // SAFETY: within the module section, above the used records.
    unsafe {
        let records = region
            .base
            .add(region.layout.modules as usize)
            .cast::<records::Module>();
        records.add(number as usize).write(records::Module {
            start,
            end,
            bias,
            path,
            build_id_len: len as u32,
            build_id: bytes,
            flags,
            unloaded: u64::MAX.into(),
        });
    }
    header.modules.store(number + 1, Release);
    number
}

fn set_unloaded(number: u32, when: u64) {
    let region = region();
    if number >= region.geometry.modules {
        return;
    }
    // SAFETY: a record that was written.
    unsafe {
        let records = region
            .base
            .add(region.layout.modules as usize)
            .cast::<records::Module>();
        (*records.add(number as usize))
            .unloaded
            .store(when, Relaxed);
    }
}
