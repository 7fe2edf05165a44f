//! *What does the program get to know of itself?* — the C API (`include/pointee.h`).
//!
//! ```text
//!   pointee.h    one slot in each executable or library that asks
//!     slot         found by its note, filled with the calls below when the module is seen
//!   what         address ─▶ registered allocator, block, variable, local: kind, base, size, type, site, allocator
//!     allocators   who gave it, who takes it back
//!     sites        origin ─▶ site and type
//!     objects      address ─▶ module ─▶ variable, function, section
//!     frames       address ─▶ frame of the asking thread ─▶ variable
//!     mappings     address ─▶ mapping
//!     stated       types that the program said itself
//!   types        one record for each type of the process (names: how it is written)
//!     lookup       a name ─▶ record
//!     subobjects   type and offset ─▶ what starts there: is_a, like_a, named_a
//! ```
//!
//! Invariants: calls take no lock, allocate nothing from the program, make no system call (but for mappings), and
//! may be made from signal handlers. What is remembered is the same whoever finds it out, so that the first store may stay.

#![allow(unsafe_code)] // Called from C, with pointers from there.

mod allocators;
mod frames;
mod lookup;
mod mappings;
mod names;
mod objects;
mod room;
mod sites;
mod slot;
mod stated;
mod subobjects;
mod types;

use crate::hooks::is_filtered;
use crate::modules::{self, Module};
use crate::region::{is_disabled, region};
use crate::sys;
use allocators::Allocator;
use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_void};
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use pointee_index::direct::Reader;
use pointee_index::read::Block;
use pointee_model::addr::LinkAddr;
use pointee_model::image::{NO_TYPE, TypeIndex, TypeKind};
use types::Record;

/// `enum pointee_kind`.
mod kind {
    pub(super) const NOTHING: u32 = 0;
    pub(super) const HEAP: u32 = 1;
    pub(super) const STATIC: u32 = 2;
    pub(super) const FUNCTION: u32 = 3;
    pub(super) const SECTION: u32 = 4;
    pub(super) const LOCAL: u32 = 5;
    pub(super) const FRAME: u32 = 6;
}

/// `struct pointee_answer`.
#[repr(C)]
pub(crate) struct Answer {
    kind: u32,
    reserved: u32,
    base: u64,
    size: u64,
    r#type: *const Record,
    site: u64,
    allocator: *const Allocator,
    name: *const c_char,
    module: *const c_char,
}

impl Answer {
    const EMPTY: Self = Self {
        kind: kind::NOTHING,
        reserved: 0,
        base: 0,
        size: 0,
        r#type: core::ptr::null(),
        site: 0,
        allocator: core::ptr::null(),
        name: core::ptr::null(),
        module: core::ptr::null(),
    };
}

/// `struct pointee_place`.
#[repr(C)]
pub(crate) struct Place {
    function: *const c_char,
    file: *const c_char,
    module: *const c_char,
    line: u32,
    reserved: u32,
    offset: u64,
}

type Visit = unsafe extern "C" fn(*const Answer, *mut c_void) -> i32;
type VisitFrame = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void, *mut c_void) -> i32;

/// `struct pointee_calls`: grows at its end only.
#[repr(C)]
struct Calls {
    version: u32,
    len: u32,
    what: unsafe extern "C" fn(),
    is: unsafe extern "C" fn(),
    walk_stack: unsafe extern "C" fn(),
    each_block: unsafe extern "C" fn(Visit, *mut c_void) -> i32,
    place: unsafe extern "C" fn(u64, *mut Place) -> i32,
    mapping: unsafe extern "C" fn(u64, *mut mappings::Mapping) -> i32,
    release: unsafe extern "C" fn(*mut c_void) -> i32,
    register: unsafe extern "C" fn(*const Allocator, u64, u64) -> i32,
    unregister: unsafe extern "C" fn(u64) -> i32,
    type_named: unsafe extern "C" fn(*const c_char) -> *const Record,
    type_derived: unsafe extern "C" fn(u32, *const Record, u64) -> *const Record,
    type_of_parts:
        unsafe extern "C" fn(u32, *const Record, u64, *const *const Record) -> *const Record,
    innermost: unsafe extern "C" fn(*const Record, u64, u32, *mut u64) -> *const Record,
    set_type: unsafe extern "C" fn(u64, *const Record) -> i32,
    site_id: unsafe extern "C" fn(u64) -> i32,
    site_by_id: unsafe extern "C" fn(i32) -> u64,
}

static CALLS: Calls = Calls {
    version: 1,
    len: size_of::<Calls>() as u32,
    what: what_stub,
    is: is_stub,
    walk_stack: walk_stack_stub,
    each_block,
    place,
    mapping,
    release,
    register,
    unregister,
    type_named,
    type_derived,
    type_of_parts,
    innermost,
    set_type,
    site_id,
    site_by_id,
};

/// Set once there is room for what is remembered.
static IS_UP: AtomicBool = AtomicBool::new(false);

struct ReaderCell(UnsafeCell<MaybeUninit<Reader>>);
// SAFETY: written once, before `IS_UP` is set.
unsafe impl Sync for ReaderCell {}
static READER: ReaderCell = ReaderCell(UnsafeCell::new(MaybeUninit::uninit()));

/// A module was loaded: fills its slot, if it has one. One thread at a time.
pub(crate) fn arrived(module: &'static Module) {
    slot::fill(module, || {
        if set_up() {
            core::ptr::from_ref(&CALLS).cast_mut().cast()
        } else {
            core::ptr::null_mut()
        }
    });
    if IS_UP.load(Relaxed) {
        objects::add(module);
    }
}

fn set_up() -> bool {
    if IS_UP.load(Relaxed) {
        return true;
    }
    if !(room::set_up() && types::set_up() && sites::set_up()) {
        return false;
    }
    // SAFETY: the region stays mapped; nobody reads the cell before `IS_UP` is set.
    unsafe {
        let reader = Reader::new(region().base, &region().layout);
        (*READER.0.get()).write(reader);
    }
    modules::each(objects::add);
    IS_UP.store(true, Release);
    true
}

/// The index; `None` where this process records nothing.
#[inline(always)]
fn index() -> Option<&'static Reader> {
    // SAFETY: written before `IS_UP` was set.
    (IS_UP.load(Acquire) && !is_disabled()).then(|| unsafe { (*READER.0.get()).assume_init_ref() })
}

/// Where a call came from: the stack pointer at its entry, and the frame pointer.
#[derive(Clone, Copy)]
struct Caller {
    slot: u64,
    rbp: u64,
}

macro_rules! stubs {
    ($($(#[$doc:meta])* $name:ident($slot:literal, $rbp:literal) = $to:ident;)+) => { $(
        $(#[$doc])*
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                concat!("mov ", $slot, ", rsp"),
                concat!("mov ", $rbp, ", rbp"),
                "jmp {to}",
                to = sym $to,
            );
        }
    )+ };
}

stubs! {
    /// `int what(const void *, unsigned skip, struct pointee_answer *)`, and the caller.
    what_stub("rcx", "r8") = what;
    /// `int is(const void *, unsigned how, const void *wanted)`, and the caller.
    is_stub("rcx", "r8") = is;
    /// `int walk_stack(callback, void *)`, and the caller.
    walk_stack_stub("rdx", "rcx") = walk_stack;
}

unsafe extern "C" fn what(
    address: u64,
    skip: u32,
    answer: &mut Answer,
    slot: u64,
    rbp: u64,
) -> i32 {
    // SAFETY: the stub's registers.
    let is_known = unsafe { tell(address, skip, answer, Caller { slot, rbp }) };
    i32::from(is_known)
}

/// # Safety
/// `caller` is a call of this thread that goes on.
#[inline(always)]
unsafe fn tell(address: u64, skip: u32, answer: &mut Answer, caller: Caller) -> bool {
    let Some(index) = index() else {
        *answer = Answer::EMPTY;
        return false;
    };
    let Err(skip) = allocators::ask(address, skip, answer) else {
        return true;
    };
    *answer = Answer::EMPTY;
    if let Some(block) = index.block_at(address) {
        if skip != 0 {
            return false;
        }
        tell_block(&block, answer);
        return true;
    }
    if skip != 0 {
        return false;
    }
    if let Some(module) = objects::holding(address) {
        return in_module(module, address, answer);
    }
    // SAFETY: the caller's promise.
    unsafe { on_stack(address, answer, caller) }
}

#[inline(always)]
fn tell_block(block: &Block, answer: &mut Answer) {
    answer.kind = kind::HEAP;
    answer.base = block.base;
    answer.size = block.size;
    if let Some(made) = sites::of(block.origin) {
        answer.site = made.site();
        answer.r#type = made.record();
        answer.allocator = made.allocator();
    }
    if let Some(stated) = stated::of(block) {
        answer.r#type = stated;
    }
}

fn fill_type(answer: &mut Answer, module: &'static Module, index: TypeIndex) {
    if index != NO_TYPE
        && let Some(record) = objects::type_of(module, index)
    {
        answer.r#type = record;
    }
}

fn in_module(module: &'static Module, address: u64, answer: &mut Answer) -> bool {
    answer.allocator = &raw const allocators::STATIC;
    answer.module = module.path.as_c_str().as_ptr();
    if let Some((variable, start)) = objects::variable_at(module, address) {
        answer.kind = kind::STATIC;
        answer.base = start;
        answer.size = variable.size;
        answer.name = string(module, variable.name);
        fill_type(answer, module, variable.r#type);
    } else if let Some((_, function)) = objects::function_at(module, address) {
        answer.kind = kind::FUNCTION;
        answer.base = function.start.wrapping_add(module.bias);
        answer.size = function.end - function.start;
        answer.name = string(module, function.name);
    } else if let Some((_, section)) = objects::section_at(module, address) {
        answer.kind = kind::SECTION;
        answer.base = section.address.wrapping_add(module.bias);
        answer.size = section.size;
        answer.name = string(module, section.name);
    } else {
        answer.kind = kind::SECTION;
        answer.base = module.start;
        answer.size = module.end - module.start;
    }
    true
}

fn string(module: &Module, at: u32) -> *const c_char {
    let text = module.image.as_ref().and_then(|image| image.c_string(at));
    text.unwrap_or(core::ptr::null())
}

/// # Safety
/// As for [`tell`].
unsafe fn on_stack(address: u64, answer: &mut Answer, caller: Caller) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        frames::walk(caller.slot, caller.rbp, |frame| {
            if !frame.spans(address) {
                return frame.end > address;
            }
            answer.kind = kind::FRAME;
            answer.base = frame.slot + 8;
            answer.size = frame.end - frame.slot - 8;
            answer.site = frame.return_address;
            answer.allocator = &raw const allocators::STACK;
            answer.module = frame.module().path.as_c_str().as_ptr();
            if let Some(local) = frame.local_at(address) {
                answer.kind = kind::LOCAL;
                answer.base = local.start;
                answer.name = string(local.module, local.record.name);
                fill_type(answer, local.module, local.record.r#type);
                answer.size = answer.r#type.as_ref().map_or(0, |record| record.size);
            }
            true
        });
    }
    answer.kind != kind::NOTHING
}

/// Values of `enum pointee_relation`.
mod relation {
    pub(super) const IS: u32 = 0;
    pub(super) const LIKE: u32 = 1;
    /// The wanted is a name.
    pub(super) const NAMED: u32 = 2;
    pub(super) const LIKE_NAMED: u32 = 3;
}

const NO: i32 = 0;
const YES: i32 = 1;
const NOT_KNOWN: i32 = -1;

unsafe extern "C" fn is(address: u64, how: u32, wanted: *const c_void, slot: u64, rbp: u64) -> i32 {
    let mut answer = Answer::EMPTY;
    // SAFETY: the stub's registers.
    let is_known = unsafe { tell(address, 0, &mut answer, Caller { slot, rbp }) };
    let Some(r#type) = types::given(answer.r#type).filter(|_| is_known) else {
        return NOT_KNOWN;
    };
    let offset = address.wrapping_sub(answer.base);
    if how == relation::NAMED {
        if wanted.is_null() {
            return NOT_KNOWN;
        }
        // SAFETY: the program gives a C string.
        let name = unsafe { CStr::from_ptr(wanted.cast()) }.to_bytes();
        let found = subobjects::any_at(r#type, offset, |record, at| {
            at == 0 && lookup::is_name_of(name, record)
        });
        return if found { YES } else { NO };
    }
    let wanted = if how == relation::LIKE_NAMED && !wanted.is_null() {
        // SAFETY: the program gives a C string.
        lookup::named(unsafe { CStr::from_ptr(wanted.cast()) }.to_bytes())
    } else {
        types::given(wanted.cast())
    };
    let Some(wanted) = wanted else {
        return NOT_KNOWN;
    };
    let found = subobjects::any_at(r#type, offset, |record, at| {
        at == 0
            && match how {
                relation::IS => core::ptr::eq(record, wanted),
                relation::LIKE | relation::LIKE_NAMED => subobjects::is_like(record, wanted, 0),
                _ => false,
            }
    });
    if found { YES } else { NO }
}

unsafe extern "C" fn walk_stack(
    visit: VisitFrame,
    argument: *mut c_void,
    slot: u64,
    rbp: u64,
) -> i32 {
    if index().is_none() {
        return NOT_KNOWN;
    }
    let mut result = 0;
    // SAFETY: the stub's registers; the program's own function.
    unsafe {
        frames::walk(slot, rbp, |frame| {
            let pointer = |address: u64| address as *mut c_void;
            result = visit(
                pointer(frame.return_address),
                pointer(frame.slot + 8),
                pointer(frame.rbp),
                argument,
            );
            result != 0
        });
    }
    result
}

/// Whether a page of the index was ever written, for pages in order: asked of the kernel by the window. All are, once the
/// process has put itself under a filter of system calls.
fn touched() -> impl FnMut(*const u8) -> bool {
    const WINDOW: usize = 128;
    const PAGE: usize = 4096;
    let mut resident = [0; WINDOW];
    let mut start = 0;
    move |page| {
        let page = page as usize;
        if is_filtered() {
            return true;
        }
        if start == 0 || !(start..start + WINDOW * PAGE).contains(&page) {
            start = page;
            if !sys::mincore(start as *const u8, &mut resident) {
                resident.fill(1);
            }
        }
        resident[(page - start) / PAGE] & 1 != 0
    }
}

unsafe extern "C" fn each_block(visit: Visit, argument: *mut c_void) -> i32 {
    let Some(index) = index() else {
        return NOT_KNOWN;
    };
    let mut result = 0;
    index.each_block(&region().writer, touched(), |block| {
        let mut answer = Answer::EMPTY;
        tell_block(&block, &mut answer);
        // SAFETY: the program's own function.
        result = unsafe { visit(&raw const answer, argument) };
        result == 0
    });
    result
}

unsafe extern "C" fn place(address: u64, place: *mut Place) -> i32 {
    let Some(module) = index().and_then(|_| objects::holding(address)) else {
        return 0;
    };
    let link = LinkAddr(address.wrapping_sub(module.bias));
    let line = module.image.as_ref().and_then(|image| image.line_at(link));
    let function = objects::function_at(module, address);
    let file = line.and_then(|row| module.image.as_ref()?.file_name_c(row.file));
    let new = Place {
        function: function.map_or(core::ptr::null(), |(_, function)| {
            string(module, function.name)
        }),
        file: file.unwrap_or(core::ptr::null()),
        module: module.path.as_c_str().as_ptr(),
        line: line.map_or(0, |row| row.line),
        reserved: 0,
        offset: link.0,
    };
    // SAFETY: the program's own structure.
    unsafe { place.write(new) };
    1
}

unsafe extern "C" fn mapping(address: u64, to: *mut mappings::Mapping) -> i32 {
    let Some(found) = mappings::at(address) else {
        return 0;
    };
    // SAFETY: the program's own structure.
    unsafe { to.write(found) };
    1
}

unsafe extern "C" fn release(object: *mut c_void) -> i32 {
    let mut answer = Answer::EMPTY;
    let address = object as u64;
    let is_registered = index().is_some() && allocators::ask(address, 0, &mut answer).is_ok();
    if !is_registered {
        let Some(block) = index().and_then(|index| index.block_at(address)) else {
            return NOT_KNOWN;
        };
        answer.base = block.base;
        answer.allocator =
            sites::of(block.origin).map_or(core::ptr::null(), sites::Made::allocator);
    }
    // SAFETY: allocators stay; the program says that nobody uses the object.
    let released = unsafe {
        answer
            .allocator
            .as_ref()
            .is_some_and(|allocator| allocator.release(answer.base as *mut c_void))
    };
    if released { YES } else { NOT_KNOWN }
}

unsafe extern "C" fn register(allocator: *const Allocator, start: u64, len: u64) -> i32 {
    if allocators::register(allocator, start, len) {
        YES
    } else {
        NOT_KNOWN
    }
}

unsafe extern "C" fn unregister(start: u64) -> i32 {
    if allocators::unregister(start) {
        YES
    } else {
        NOT_KNOWN
    }
}

fn pointer(record: Option<&'static Record>) -> *const Record {
    record.map_or(core::ptr::null(), core::ptr::from_ref)
}

unsafe extern "C" fn type_named(name: *const c_char) -> *const Record {
    if name.is_null() || index().is_none() {
        return core::ptr::null();
    }
    // SAFETY: the program gives a C string.
    pointer(lookup::named(unsafe { CStr::from_ptr(name) }.to_bytes()))
}

unsafe extern "C" fn type_derived(kind: u32, target: *const Record, length: u64) -> *const Record {
    let kind = TypeKind::from_byte(u8::try_from(kind).unwrap_or(0));
    pointer(types::given(target).and_then(|target| types::derived(kind, target, length)))
}

unsafe extern "C" fn type_of_parts(
    kind: u32,
    result: *const Record,
    count: u64,
    parts: *const *const Record,
) -> *const Record {
    if count > 1 << 10 || index().is_none() {
        return core::ptr::null();
    }
    let parts = if count == 0 {
        &[]
    } else {
        // SAFETY: the program gives an array of as many.
        unsafe { core::slice::from_raw_parts(parts, count as usize) }
    };
    let made = if kind == TypeKind::Union as u32 {
        types::union(parts)
    } else if result.is_null() {
        types::void().and_then(|void| types::function(void, parts))
    } else {
        types::given(result).and_then(|result| types::function(result, parts))
    };
    pointer(made)
}

unsafe extern "C" fn innermost(
    record: *const Record,
    offset: u64,
    skip: u32,
    inside: *mut u64,
) -> *const Record {
    let found = types::given(record).and_then(|record| subobjects::innermost(record, offset, skip));
    if let Some((_, distance)) = found
        && !inside.is_null()
    {
        // SAFETY: the program's own variable.
        unsafe { inside.write(distance) };
    }
    pointer(found.map(|(record, _)| record))
}

unsafe extern "C" fn set_type(address: u64, record: *const Record) -> i32 {
    let block = index().and_then(|index| index.block_at(address));
    let is_set = block
        .zip(types::given(record))
        .is_some_and(|(block, record)| stated::set(&block, record));
    if is_set { YES } else { NOT_KNOWN }
}

unsafe extern "C" fn site_id(site: u64) -> i32 {
    index()
        .and_then(|_| sites::id_of(site))
        .map_or(NOT_KNOWN, |id| id as i32)
}

unsafe extern "C" fn site_by_id(id: i32) -> u64 {
    let id = u32::try_from(id).ok().filter(|_| index().is_some());
    id.and_then(sites::of_id).unwrap_or(0)
}
