//! *What lies at this address?* — the deepest allocation that is known.

#![allow(unsafe_code)] // Answers hold pointers for C; the asking thread's stack is read.

use super::allocators::{self, Allocator};
use super::carved::Carved;
use super::frames::{Caller, InFrame};
use super::types::Record;
use super::{Levels, frames, index, objects, sites, stated, thread_locals};
use crate::modules::Module;
use crate::region::region;
use crate::signal_stacks;
use crate::{mappings, threads};
use core::ffi::c_char;
use pointee_index::read::Block;
use pointee_model::image::{NO_TYPE, TypeIndex, VariableRecord};

/// `enum pointee_kind`.
mod kind {
    pub(super) const NOTHING: u32 = 0;
    pub(super) const HEAP: u32 = 1;
    pub(super) const STATIC: u32 = 2;
    pub(super) const FUNCTION: u32 = 3;
    pub(super) const SECTION: u32 = 4;
    pub(super) const LOCAL: u32 = 5;
    pub(super) const FRAME: u32 = 6;
    pub(super) const THREAD: u32 = 7;
    pub(super) const MAPPING: u32 = 8;
    pub(super) const SIGNAL_STACK: u32 = 9;
    pub(super) const STACK: u32 = 10;
    pub(super) const ALLOCA: u32 = 11;
}

/// `struct pointee_answer`.
#[repr(C)]
pub(crate) struct Answer {
    kind: u32,
    /// The kernel's number of the thread whose it is; 0 for the asking thread's own, and where it is no thread's.
    thread: u32,
    pub(super) base: u64,
    size: u64,
    pub(super) r#type: *const Record,
    site: u64,
    pub(super) allocator: *const Allocator,
    name: *const c_char,
    module: *const c_char,
}

impl Answer {
    pub(super) const EMPTY: Self = Self {
        kind: kind::NOTHING,
        thread: 0,
        base: 0,
        size: 0,
        r#type: core::ptr::null(),
        site: 0,
        allocator: core::ptr::null(),
        name: core::ptr::null(),
        module: core::ptr::null(),
    };
}

/// # Safety
/// `caller` is a call of this thread that goes on.
#[inline(always)]
pub(super) unsafe fn tell(
    address: u64,
    skip: u32,
    answer: &mut Answer,
    caller: Caller<'_>,
) -> bool {
    let Some(index) = index() else {
        *answer = Answer::EMPTY;
        return false;
    };
    let Err(skip) = allocators::ask(address, skip, answer) else {
        return true;
    };
    *answer = Answer::EMPTY;
    let has_signal_stacks = region().signal_stacks.any();
    let is_plain = |size: u64| !(has_signal_stacks && size >= signal_stacks::LEAST);
    if skip == 0 && !region().nested.any() && !thread_locals::may_be_blocks() {
        match index.outer.block_near(address) {
            Some(block) if is_plain(block.size) => {
                tell_block(&block, answer);
                return true;
            }
            None if beyond(index, address, answer, is_plain) => return true,
            _ => {}
        }
    }
    // What a signal stack was made of lies one further out.
    let is_inside = skip > 0 && has_signal_stacks && signal_stacks::holding(address).is_some();
    match index.block_at(address, skip - u32::from(is_inside)) {
        Ok(block) => tell_block(&block, answer),
        Err(0) => {
            // First: musl keeps the first thread's block in a static of its own.
            if let Some(found) = thread_locals::at(address) {
                fill_thread_local(answer, &found);
            } else if let Some(module) = objects::holding(address) {
                in_module(module, address, answer);
            }
        }
        Err(_) => return false,
    }
    if answer.kind != kind::NOTHING {
        if skip == 0
            && thread_locals::may_be_blocks()
            && let Some(found) = thread_locals::at(address)
        {
            *answer = Answer::EMPTY;
            fill_thread_local(answer, &found);
            return true;
        }
        if has_signal_stacks && skip == 0 && answer.size >= signal_stacks::LEAST {
            // SAFETY: the caller's promise.
            unsafe { on_signal_stack(address, answer, caller) };
        }
        return true;
    }
    // SAFETY: the caller's promise.
    unsafe { on_stack(address, answer, caller) || on_signal_stack(address, answer, caller) }
}

/// Answers with what lies on the signal stack that holds `address`, if there is one.
///
/// # Safety
/// As for [`tell`].
#[cold]
unsafe fn on_signal_stack(address: u64, answer: &mut Answer, caller: Caller<'_>) -> bool {
    let Some(stack) = signal_stacks::holding(address) else {
        return false;
    };
    *answer = Answer::EMPTY;
    // SAFETY: the caller's promise.
    if stack.holds(caller.slot) && unsafe { on_stack(address, answer, caller) } {
        return true;
    }
    answer.kind = kind::SIGNAL_STACK;
    answer.thread = stack.thread;
    answer.base = stack.start;
    answer.size = stack.len;
    answer.allocator = &raw const allocators::STACK;
    true
}

fn fill_thread_local(answer: &mut Answer, found: &thread_locals::Found) {
    answer.kind = kind::THREAD;
    answer.base = found.start;
    answer.size = found.len;
    answer.allocator = &raw const allocators::THREAD;
    answer.module = found.module.path.as_ptr();
    if let Some(variable) = found.variable {
        answer.name = string(found.module, variable.name);
        fill_type(answer, found.module, variable.r#type);
    }
}

#[inline(always)]
pub(super) fn tell_block(block: &Block, answer: &mut Answer) {
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

/// Answers with the variable at `address`, unless a block was cut out of it there, or with a block that starts far off. None is near by.
#[inline(never)]
fn beyond(
    index: &Levels,
    address: u64,
    answer: &mut Answer,
    is_plain: impl Fn(u64) -> bool,
) -> bool {
    let Some(module) = objects::holding(address) else {
        let block = index.outer.block_beyond(address, 0..u64::MAX);
        let block = block.filter(|block| is_plain(block.size));
        if let Some(block) = &block {
            tell_block(block, answer);
        }
        return block.is_some();
    };
    let Some((variable, start)) = objects::variable_at(module, address) else {
        return false;
    };
    // A block in it starts in it. And musl keeps the first thread's block in a static of its own.
    let within = start..start.saturating_add(variable.size);
    if module.is_static
        || !is_plain(variable.size)
        || index.outer.block_beyond(address, within).is_some()
    {
        return false;
    }
    fill_static(answer, module, variable, start);
    true
}

fn fill_static(
    answer: &mut Answer,
    module: &'static Module,
    variable: &'static VariableRecord,
    start: u64,
) {
    answer.allocator = &raw const allocators::STATIC;
    answer.module = module.path.as_ptr();
    answer.kind = kind::STATIC;
    answer.base = start;
    answer.size = variable.size;
    answer.name = string(module, variable.name);
    fill_type(answer, module, variable.r#type);
}

fn in_module(module: &'static Module, address: u64, answer: &mut Answer) {
    answer.allocator = &raw const allocators::STATIC;
    answer.module = module.path.as_ptr();
    if let Some((variable, start)) = objects::variable_at(module, address) {
        fill_static(answer, module, variable, start);
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
}

pub(super) fn string(module: &Module, at: u32) -> *const c_char {
    let text = objects::image(module).and_then(|image| image.c_string(at));
    text.unwrap_or(core::ptr::null())
}

/// Addresses below are never mapped (`vm.mmap_min_addr`), and small numbers are no pointers.
const LOWEST_MAPPED: u64 = 1 << 16;

#[cold]
pub(super) fn in_mapping(address: u64, answer: &mut Answer) -> bool {
    if index().is_none() || address < LOWEST_MAPPED {
        return false;
    }
    let Some(mapping) = mappings::at(address) else {
        return false;
    };
    let whole = mapping.start..mapping.end;
    let pages = if threads::is_first_stack(&whole) {
        whole
    } else {
        // The kernel makes one mapping of neighbours; what was mapped by one call is told apart.
        region().pages.alike(address, whole)
    };
    if let Some((thread, thread_pointer)) = threads::whose_stack(&pages) {
        answer.kind = kind::STACK;
        answer.base = pages.start;
        answer.size = pages.end - pages.start;
        answer.thread = thread;
        answer.allocator = &raw const allocators::STACK;
        if let Some(found) = thread_locals::of_thread(thread_pointer, address) {
            fill_thread_local(answer, &found);
        }
        return true;
    }
    answer.base = mapping.start;
    answer.size = mapping.end - mapping.start;
    answer.kind = kind::MAPPING;
    answer.allocator = &raw const allocators::MAPPINGS;
    let made = region().pages.at(address);
    if let Some(made) = sites::of(made.origin()).filter(|_| made.origin() != 0) {
        answer.site = made.site();
    }
    true
}

/// # Safety
/// As for [`tell`].
unsafe fn on_stack(address: u64, answer: &mut Answer, caller: Caller<'_>) -> bool {
    // What a handler on a stack of its own interrupted may lie below.
    let is_upward = signal_stacks::own().is_none_or(|stack| !stack.holds(caller.slot));
    // SAFETY: the caller's promise.
    unsafe {
        frames::walk(caller, |frame| {
            if !frame.spans(address) {
                return is_upward && frame.end > address;
            }
            answer.kind = kind::FRAME;
            answer.base = frame.slot + 8;
            answer.size = frame.end - frame.slot - 8;
            answer.site = frame.goes_on_at;
            answer.allocator = &raw const allocators::STACK;
            answer.module = frame.module().path.as_ptr();
            match frame.holding(address) {
                Some(InFrame::Variable(local)) => {
                    answer.kind = kind::LOCAL;
                    answer.base = local.start;
                    answer.name = string(frame.module(), local.record.name);
                    fill_type(answer, frame.module(), local.record.r#type);
                    answer.size = answer.r#type.as_ref().map_or(0, |record| record.size);
                }
                Some(InFrame::Carved(carved)) => fill_carved(answer, frame.module(), &carved),
                None => {}
            }
            true
        });
    }
    answer.kind != kind::NOTHING
}

fn fill_carved(answer: &mut Answer, module: &'static Module, carved: &Carved) {
    answer.kind = kind::ALLOCA;
    answer.base = carved.start;
    answer.size = carved.len;
    if let Some(record) = carved.r#type {
        answer.r#type = record;
    }
    if let Some(variable) = carved.variable {
        answer.kind = kind::LOCAL;
        answer.name = string(module, variable.name);
    } else if carved.site != 0 {
        answer.site = carved.site;
    }
}
