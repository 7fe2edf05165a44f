//! *How does C see inlined functions?* `struct pointee_instance`, as `include/pointee_hooks.h` has it.

#![allow(unsafe_code)] // Functions for C, with C's pointers.

use std::ffi::{c_char, c_int, c_long, c_void};
use std::ptr;

use pointee_patch::instances::{Operand, Source, Table};

use crate::{CONSTANT, Outcome, pointee_probe};

/// Operands that an instance has room for.
const OPERANDS: usize = 8;
/// Added to a register's number: the value is in memory.
const IN_MEMORY: c_int = 16;

/// `struct pointee_operand`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NamedOperand {
    name: *const c_char,
    value: i64,
    source: c_int,
    width: u8,
    is_signed: u8,
}

impl NamedOperand {
    const NONE: Self = Self {
        name: ptr::null(),
        value: 0,
        source: CONSTANT,
        width: 8,
        is_signed: 0,
    };

    fn new(operand: &Operand<'_>) -> Self {
        let (source, value) = match operand.source {
            Source::Constant(value) => (CONSTANT, value),
            Source::Register(number, offset) => (c_int::from(number), offset),
            Source::Memory(number, offset) => (IN_MEMORY + c_int::from(number), offset),
        };
        Self {
            name: operand.name.as_ptr(),
            value,
            source,
            width: operand.width,
            is_signed: u8::from(operand.is_signed),
        }
    }
}

/// `struct pointee_instance`.
#[repr(C)]
pub struct Instance {
    at: *mut c_void,
    function: *const c_char,
    holder: *const c_char,
    count: usize,
    operands: [NamedOperand; OPERANDS],
    placed: Outcome,
}

/// The places of `table` in what is loaded. How many there are; -1 if it is no table, or its file is not loaded.
///
/// # Safety
/// `table` is at `len` bytes that stay while what is found is used; `instances` has room for `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pointee_find_inlined(
    table: *const u8,
    len: usize,
    instances: *mut Instance,
    room: usize,
) -> c_long {
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(table, len) };
    let Some(table) = Table::read(bytes) else {
        return -1;
    };
    let mut count = 0;
    let objects = pointee_live::inlined(&table, |at, instance| {
        if count < room {
            let mut found = Instance {
                at: at.0 as *mut c_void,
                function: instance.function.as_ptr(),
                holder: instance.holder.as_ptr(),
                count: instance.operands().len().min(OPERANDS),
                operands: [NamedOperand::NONE; OPERANDS],
                placed: Outcome::nothing(),
            };
            for (to, operand) in found.operands.iter_mut().zip(instance.operands()) {
                *to = NamedOperand::new(&operand);
            }
            // SAFETY: within the room.
            unsafe { instances.add(count).write(found) };
        }
        count += 1;
    });
    if objects == 0 { -1 } else { count as c_long }
}

/// A probe at each of these places, with the address of its instance as data. How many were placed; each has its outcome.
///
/// # Safety
/// `instances` are `count`, and stay while the probes do; see `pointee_live::probe` for the rest.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pointee_probe_inlined(
    instances: *mut Instance,
    count: usize,
    context: c_int,
    handler: *const c_void,
    convention: c_int,
) -> c_long {
    let mut placed = 0;
    for number in 0..count {
        // SAFETY: the caller's promise.
        unsafe {
            let instance = instances.add(number);
            let data = instance as u64;
            let outcome = pointee_probe((*instance).at, context, handler, data, convention);
            placed += c_long::from(!outcome.hook.is_null());
            (*instance).placed = outcome;
        }
    }
    placed
}
