//! *What does C call?* — the functions behind `struct pointee_calls`.

#![allow(unsafe_code)] // Called from C, with pointers from there.

use super::allocators::{self, Allocator};
use super::frames::{Caller, Saved};
use super::types::{self, Record};
use super::what::{Answer, in_mapping, string, tell, tell_block};
use super::{frames, index, lookup, objects, sites, stated, subobjects};
use crate::hooks::is_filtered;
use crate::mappings;
use crate::region::region;
use crate::sys;
use core::arch::naked_asm;
use core::ffi::{CStr, c_char, c_void};
use pointee_model::addr::LinkAddr;
use pointee_model::image::TypeKind;

/// `struct pointee_place`.
#[repr(C)]
pub(super) struct Place {
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
pub(super) struct Calls {
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

pub(super) static CALLS: Calls = Calls {
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

macro_rules! stubs {
    ($($(#[$doc:meta])* $name:ident($slot:literal, $rbp:literal, $saved:literal) = $to:ident;)+) => { $(
        $(#[$doc])*
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                "push r15",
                "push r14",
                "push r13",
                "push r12",
                "push rbx",
                concat!("lea ", $slot, ", [rsp + 40]"),
                concat!("mov ", $rbp, ", rbp"),
                concat!("mov ", $saved, ", rsp"),
                "call {to}",
                "add rsp, 40",
                "ret",
                to = sym $to,
            );
        }
    )+ };
}

stubs! {
    /// `int what(const void *, unsigned skip, struct pointee_answer *)`, and the caller.
    what_stub("rcx", "r8", "r9") = what;
    /// `int is(const void *, unsigned how, const void *wanted)`, and the caller.
    is_stub("rcx", "r8", "r9") = is;
    /// `int walk_stack(callback, void *)`, and the caller.
    walk_stack_stub("rdx", "rcx", "r8") = walk_stack;
}

unsafe extern "C" fn what(
    address: u64,
    skip: u32,
    answer: &mut Answer,
    slot: u64,
    rbp: u64,
    saved: &Saved,
) -> i32 {
    let caller = Caller { slot, rbp, saved };
    // SAFETY: the stub's registers.
    let is_known = unsafe { tell(address, skip, answer, caller) };
    i32::from(is_known || (skip == 0 && in_mapping(address, answer)))
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

unsafe extern "C" fn is(
    address: u64,
    how: u32,
    wanted: *const c_void,
    slot: u64,
    rbp: u64,
    saved: &Saved,
) -> i32 {
    let mut answer = Answer::EMPTY;
    let caller = Caller { slot, rbp, saved };
    // SAFETY: the stub's registers.
    let is_known = unsafe { tell(address, 0, &mut answer, caller) };
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
    saved: &Saved,
) -> i32 {
    if index().is_none() {
        return NOT_KNOWN;
    }
    let mut result = 0;
    // SAFETY: the stub's registers; the program's own function.
    unsafe {
        frames::walk(Caller { slot, rbp, saved }, |frame| {
            let pointer = |address: u64| address as *mut c_void;
            result = visit(
                pointer(frame.goes_on_at),
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
    let mut tell = |block| {
        let mut answer = Answer::EMPTY;
        tell_block(&block, &mut answer);
        // SAFETY: the program's own function.
        result = unsafe { visit(&raw const answer, argument) };
        result == 0
    };
    let mut goes_on = true;
    for level in [&index.outer, &index.nested] {
        if goes_on {
            level.each_block(&region().writer, touched(), |block| {
                goes_on = tell(block);
                goes_on
            });
        }
    }
    result
}

unsafe extern "C" fn place(address: u64, place: *mut Place) -> i32 {
    let Some(module) = index().and_then(|_| objects::holding(address)) else {
        return 0;
    };
    let link = LinkAddr(address.wrapping_sub(module.bias));
    let line = objects::image(module).and_then(|image| image.line_at(link));
    let function = objects::function_at(module, address);
    let file = line.and_then(|row| objects::image(module)?.file_name_c(row.file));
    let new = Place {
        function: function.map_or(core::ptr::null(), |(_, function)| {
            string(module, function.name)
        }),
        file: file.unwrap_or(core::ptr::null()),
        module: module.path.as_ptr(),
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
        let Some(block) = index().and_then(|index| index.block_at(address, 0).ok()) else {
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

pub(super) unsafe extern "C" fn type_named(name: *const c_char) -> *const Record {
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
    let block = index().and_then(|index| index.block_at(address, 0).ok());
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
