//! *Was this block asked for by `new`, by `new[]`, or in C's way?*
//!
//! Those of libstdc++ and libc++ call `malloc`, which is hooked, and their frame is on the stack; `new[]` jumps to `new` and leaves none, so what
//! the next caller calls is read from its code. Their `operator delete` is nothing but a jump to `free`, perhaps by way
//! of another: it is hooked by leading it to the end of that chain at once, the trampoline of the `free` that it would come
//! to. So a `delete` goes through one hook, as a `free` does, and the hook knows which of both it was.
//!
//! A program's own `operator new` may end in a jump to `malloc`, and leave no frame either: where there is one, what
//! the callers of `malloc` call is read as well.
//!
//! An object whose `operator delete` does more than jump is left as it is: there `new` and `delete` are C's way.

#![allow(unsafe_code)] // Holds the ranges of functions, written by one thread at a time.

use crate::callee;
use crate::hooks::{self, Planted};
use crate::locate::{self, Function};
use crate::modules::{self, Module};
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU32};
use pointee_index::class::{Class, Kind};
use pointee_index::origins::Node;
use pointee_index::records::Role;
use pointee_model::entries::is_language_library;

/// Where an `operator new` lies.
#[derive(Clone, Copy)]
struct Operator {
    start: u64,
    end: u64,
    kind: Kind,
    /// Number of its module.
    module: u32,
}

/// A process has those of one library, rarely of a second.
const ROOM: usize = 128;
/// Jumps from one `operator delete` to the next, at most.
const LONGEST: usize = 4;

struct Table {
    all: UnsafeCell<[Operator; ROOM]>,
    used: AtomicU32,
}
// SAFETY: an element is written before `used` grows over it and not changed afterwards; the dynamic linker's lock keeps
// writers apart.
unsafe impl Sync for Table {}

static TABLE: Table = Table {
    all: UnsafeCell::new(
        [Operator {
            start: 0,
            end: 0,
            kind: Kind::New,
            module: 0,
        }; ROOM],
    ),
    used: AtomicU32::new(0),
};

/// Whether there is an operator that may leave no frame.
static MAY_LEAVE_NO_FRAME: AtomicBool = AtomicBool::new(false);

/// Hooks the operators of a new module that can be told apart at no cost. To be called when all that were loaded with it
/// have their own allocation functions hooked.
/// `plant` hooks a function whose original is that of another, and says whether it could.
pub(crate) fn arrived(
    module: &'static Module,
    mut plant: impl FnMut(&Function, &'static Planted) -> bool,
) {
    if !module.is_in_base_namespace {
        // What an unbound name leads to there is looked up in another order.
        return;
    }
    let mut is_told_apart = false;
    locate::operators(module, |function| {
        if function.role == Role::Delete
            && let Some(end) = end_of_chain(function.address)
        {
            is_told_apart |= plant(function, end);
        }
    });
    if is_told_apart {
        locate::operators(module, |function| {
            if function.role == Role::New {
                note(module, function);
            }
        });
    }
}

/// The hooked `free` that an `operator delete` comes to by nothing but jumps.
fn end_of_chain(entry: u64) -> Option<&'static Planted> {
    let mut at = entry;
    for _ in 0..LONGEST {
        at = callee::jumps_to(at)?;
        if let Some(planted) = hooks::planted_at(at) {
            return planted.frees().then_some(planted);
        }
    }
    None
}

fn note(module: &Module, function: &Function) {
    let at = TABLE.used.load(Relaxed);
    let is_known = operator_at(function.address).is_some();
    if at as usize >= ROOM || is_known {
        return;
    }
    // SAFETY: above `used`; see `Table`.
    unsafe {
        (*TABLE.all.get())[at as usize] = Operator {
            start: function.address,
            end: function.address + function.len.max(1),
            kind: Kind::of_operator(function.name),
            module: module.number,
        };
    }
    TABLE.used.store(at + 1, Release);
    if !is_language_library(module.file_name()) {
        MAY_LEAVE_NO_FRAME.store(true, Relaxed);
    }
}

/// The kind of the operator that holds `address`.
fn operator_at(address: u64) -> Option<Kind> {
    let used = TABLE.used.load(Acquire) as usize;
    (0..used)
        // SAFETY: below `used`.
        .map(|at| unsafe { (*TABLE.all.get())[at] })
        .find(|operator| {
            let is_there = (operator.start..operator.end).contains(&address);
            // Where one was unloaded, other code may lie.
            is_there && modules::numbered(operator.module).is_some_and(Module::is_loaded)
        })
        .map(|operator| operator.kind)
}

/// The class of the origin of a call that returns to `return_address`, called by the frame of `below` (`None`: called the hooked
/// function itself), given the class so far; and whether that is undecided.
pub(crate) fn class_of_frame(
    so_far: Class,
    return_address: u64,
    below: Option<&Node>,
) -> (Class, bool) {
    if TABLE.used.load(Relaxed) == 0 {
        return (so_far, false);
    }
    // A return address may lie right behind the function, if it calls what does not return.
    if let Some(kind) = operator_at(return_address - 1) {
        return (so_far.with_kind(kind), kind != Kind::NewArray);
    }
    let Some(below) = below else {
        if !MAY_LEAVE_NO_FRAME.load(Relaxed) {
            return (so_far, false);
        }
        let called = callee::called_before(return_address);
        return match called.and_then(operator_at) {
            Some(kind) => (so_far.with_kind(kind), false),
            None => (so_far, called.and_then(hooks::planted_at).is_none()),
        };
    };
    let inner = below.return_address.load(Relaxed);
    let is_undecided = below.frame().is_undecided;
    if !is_undecided || operator_at(inner - 1).is_none() {
        return (so_far, is_undecided);
    }
    let called = callee::called_before(return_address).and_then(operator_at);
    match called {
        Some(kind) => (so_far.with_kind(kind), false),
        None => (so_far, true),
    }
}

/// The function that the call before `return_address` names, or 0.
pub(crate) fn called_by(return_address: u64) -> u64 {
    if modules::find(return_address).is_none() {
        return 0;
    }
    callee::called_before(return_address).unwrap_or(0)
}
