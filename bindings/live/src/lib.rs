//! *How does a C or C++ program hook functions of its own process?* The face of `pointee-live` for C, documented in
//! `include/pointee_hooks.h`. World: **in the target**; the standard library is here only for a panic handler, nothing of it is called.

#![allow(unsafe_code)] // Functions for C, with C's pointers.

pub mod inlined;

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::AtomicU64;

use pointee_live::callers::visit_callers;
use pointee_live::wrap::{Call, Return};
use pointee_live::{
    Action, Context, Convention, Installed, Observers, Pause, Probe, Refusal, SlotHook, Stored,
};
use pointee_model::addr::RunAddr;

/// Instead of a register's number: the value itself is known.
const CONSTANT: c_int = -1;

/// `struct pointee_result`: what an operation did.
#[repr(C)]
pub struct Outcome {
    /// The hook; null when there is none.
    pub hook: *mut c_void,
    /// How long other threads stood still, in nanoseconds.
    pub pause: u64,
    /// How many of them.
    pub threads: u32,
    /// Why nothing was done, as a string; empty when it was.
    pub refusal: [c_char; 60],
}

impl Outcome {
    /// Nothing was done yet.
    const fn nothing() -> Self {
        Self {
            hook: std::ptr::null_mut(),
            pause: 0,
            threads: 0,
            refusal: [0; 60],
        }
    }

    fn new(done: Result<(usize, Pause), Refusal>) -> Self {
        let mut refusal = [0; 60];
        let (hook, pause) = done.unwrap_or_else(|why| {
            let room = refusal.iter_mut().zip(why.reason().bytes());
            // One byte less than there is room: the string ends.
            room.take(59).for_each(|(to, from)| *to = from as c_char);
            (0, Pause::default())
        });
        Self {
            hook: hook as *mut c_void,
            pause: pause.nanoseconds,
            threads: pause.threads,
            refusal,
        }
    }
}

/// Calls of `function` go to `replacement`; `*original` is set before the first does.
///
/// # Safety
/// `original` is valid for good; see `pointee_live::replace` for the rest.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pointee_replace(
    function: *const c_void,
    replacement: *const c_void,
    original: *mut *mut c_void,
) -> Outcome {
    let (function, replacement) = (RunAddr(function as u64), RunAddr(replacement as u64));
    // SAFETY: a pointer is as good as an atomic number; the rest is the caller's promise.
    let done = unsafe {
        let original = AtomicU64::from_ptr(original.cast());
        pointee_live::replace(function, replacement, original)
    };
    Outcome::new(done.map(|(hook, pause)| (hook.into_raw(), pause)))
}

/// `enter` and `leave` are called with `data` at each call and return of `function`.
///
/// # Safety
/// See `pointee_live::wrap`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pointee_wrap(
    function: *const c_void,
    enter: extern "C" fn(&mut Call),
    leave: extern "C" fn(&mut Return),
    data: u64,
) -> Outcome {
    let observers = Observers { enter, leave, data };
    // SAFETY: the caller's promise.
    let done = unsafe { pointee_live::wrap(RunAddr(function as u64), &observers) };
    Outcome::new(done.map(|(hook, pause)| (hook.into_raw(), pause)))
}

/// The call or jump at `site` goes to `destination`; `*original` is set before it first does.
///
/// # Safety
/// `original` is valid for good; see `pointee_live::redirect` for the rest.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pointee_redirect_call(
    site: *const c_void,
    destination: *const c_void,
    original: *mut *mut c_void,
) -> Outcome {
    let (site, destination) = (RunAddr(site as u64), RunAddr(destination as u64));
    // SAFETY: as in `pointee_replace`.
    let done = unsafe {
        let original = AtomicU64::from_ptr(original.cast());
        pointee_live::redirect(site, destination, original)
    };
    Outcome::new(done.map(|(hook, pause)| (hook.into_raw(), pause)))
}

/// Each call of `function` goes where `choose` says for the place it returns to; `*original` is set before.
///
/// # Safety
/// `original` is valid for good; see `pointee_live::redirect_callers` for the rest.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pointee_redirect_callers(
    function: *const c_void,
    choose: extern "C" fn(RunAddr, u64) -> RunAddr,
    data: u64,
    original: *mut *mut c_void,
) -> Outcome {
    // SAFETY: as in `pointee_replace`.
    let done = unsafe {
        let original = AtomicU64::from_ptr(original.cast());
        pointee_live::redirect_callers(RunAddr(function as u64), choose, data, original)
    };
    Outcome::new(done.map(|(hook, pause)| (hook.into_raw(), pause)))
}

/// `struct pointee_caller`.
#[repr(C)]
pub struct Caller {
    return_address: RunAddr,
    destination: RunAddr,
    in_place: c_int,
}

/// The places from which a function was called. Their number, or -1.
///
/// # Safety
/// `callers` has room for `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pointee_callers(
    hook: *mut c_void,
    callers: *mut Caller,
    room: usize,
) -> c_long {
    let mut count = 0;
    let visit = |caller: pointee_live::callers::Caller| {
        if count < room {
            let known = Caller {
                return_address: caller.return_address,
                destination: caller.destination,
                in_place: c_int::from(caller.in_place),
            };
            // SAFETY: within the room.
            unsafe { callers.add(count).write(known) };
        }
        count += 1;
    };
    match Installed::from_raw(hook as usize) {
        Some(hook) if visit_callers(&hook, visit) => count as c_long,
        _ => -1,
    }
}

/// `struct pointee_imports`: room for a hook of slots.
#[repr(C)]
pub struct Imports {
    hook: MaybeUninit<SlotHook>,
    _unused: [MaybeUninit<u64>; IMPORTS - size_of::<SlotHook>() / 8],
}

/// Words that C sets aside.
const IMPORTS: usize = 8;

/// Objects but those that hold one of `except` reach `destination` where they import `name`. The number of slots, or -1.
///
/// # Safety
/// `imports` stays until [`pointee_restore_imports`], `original` for good; `except` holds `count` addresses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pointee_redirect_imports(
    imports: *mut Imports,
    name: *const c_char,
    destination: *const c_void,
    except: *const RunAddr,
    count: usize,
    original: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let except = slice(except, count);
        let (name, destination) = (CStr::from_ptr(name), RunAddr(destination as u64));
        let original = AtomicU64::from_ptr(original.cast());
        let Ok(hook) = pointee_live::redirect_imports(name, destination, except, original) else {
            return -1;
        };
        let slots = hook.len();
        (*imports).hook.write(hook);
        slots as c_int
    }
}

/// Looks for slots of objects that were loaded since. Their number, or -1.
///
/// # Safety
/// `imports` was filled, and not restored; `except` holds `count` addresses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pointee_refresh_imports(
    imports: *mut Imports,
    name: *const c_char,
    except: *const RunAddr,
    count: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let found = unsafe {
        let hook = (*imports).hook.assume_init_mut();
        hook.refresh(CStr::from_ptr(name), slice(except, count))
    };
    found.map_or(-1, |found| found as c_int)
}

/// The slots lead where they did. How many were restored, or -1.
///
/// # Safety
/// `imports` was filled, and not restored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pointee_restore_imports(imports: *mut Imports) -> c_int {
    // SAFETY: the caller's promise; it is not used again.
    let hook = unsafe { (*imports).hook.assume_init_read() };
    hook.remove().map_or(-1, |restored| restored as c_int)
}

/// # Safety
/// `first` is at `count` addresses, or `count` is 0.
unsafe fn slice<'a>(first: *const RunAddr, count: usize) -> &'a [RunAddr] {
    if count == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(first, count) }
}

/// Calls of wrapped functions that were not seen.
#[unsafe(no_mangle)]
pub extern "C" fn pointee_missed() -> u64 {
    pointee_live::wrap::missed()
}

/// `handler` is called before each execution of `instruction`; see the header for the numbers.
///
/// # Safety
/// See `pointee_live::probe`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pointee_probe(
    instruction: *const c_void,
    context: c_int,
    handler: *const c_void,
    data: u64,
    convention: c_int,
) -> Outcome {
    let context = match context {
        0 => Context::Nothing,
        1 => Context::General,
        _ => Context::Everything,
    };
    let action = Action::Call {
        handler: RunAddr(handler as u64),
        data,
        context,
    };
    // SAFETY: the caller's promise.
    unsafe { put(instruction, action, convention) }
}

/// The word at `cell` grows by one before each execution of `instruction`.
///
/// # Safety
/// See `pointee_live::probe`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pointee_count(
    instruction: *const c_void,
    cell: *mut u64,
    shared: c_int,
    convention: c_int,
) -> Outcome {
    let action = Action::Count {
        cell: RunAddr(cell as u64),
        shared: shared != 0,
    };
    // SAFETY: the caller's promise.
    unsafe { put(instruction, action, convention) }
}

/// # Safety
/// See `pointee_live::probe`.
unsafe fn put(instruction: *const c_void, action: Action, convention: c_int) -> Outcome {
    let convention = match convention {
        1 => Convention::Psabi,
        _ => Convention::Unknown,
    };
    // SAFETY: the caller's promise.
    let done = unsafe { pointee_live::probe(RunAddr(instruction as u64), action, convention) };
    Outcome::new(done.map(|(probe, pause)| (probe.into_raw() as usize, pause)))
}

/// Takes a probe out.
#[unsafe(no_mangle)]
pub extern "C" fn pointee_remove_probe(probe: *mut c_void) -> Outcome {
    let done = match Probe::from_raw(probe as u64) {
        Some(probe) => probe.remove().map_err(|(_, refusal)| refusal),
        None => Err(Refusal::NotHooked),
    };
    Outcome::new(done.map(|pause| (0, pause)))
}

/// `struct pointee_store`.
#[repr(C)]
pub struct Store {
    at: RunAddr,
    source: c_int,
    value: i64,
}

/// The instructions that write to one of `len` bytes at `variable`. Their number, or -1.
///
/// # Safety
/// `stores` has room for `room`; no code is unloaded meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pointee_find_stores(
    variable: *const c_void,
    len: usize,
    stores: *mut Store,
    room: usize,
) -> c_long {
    const OTHER: c_int = -2;
    let mut count = 0;
    let done = pointee_live::stores_to(RunAddr(variable as u64), len as u64, |at, stored| {
        let (source, value) = match stored {
            Stored::Register(number) => (c_int::from(number), 0),
            Stored::Immediate(value) => (CONSTANT, value),
            Stored::Other => (OTHER, 0),
        };
        if count < room {
            // SAFETY: within the room.
            unsafe { stores.add(count).write(Store { at, source, value }) };
        }
        count += 1;
    });
    done.map_or(-1, |()| count as c_long)
}

/// Takes a hook out.
#[unsafe(no_mangle)]
pub extern "C" fn pointee_remove(hook: *mut c_void) -> Outcome {
    let done = match Installed::from_raw(hook as usize) {
        Some(hook) => hook.remove().map_err(|(_, refusal)| refusal),
        None => Err(Refusal::NotHooked),
    };
    Outcome::new(done.map(|pause| (0, pause)))
}

/// Gives back what removed hooks have left. The number of hooks that may still be in use, or -1.
#[unsafe(no_mangle)]
pub extern "C" fn pointee_settle() -> c_int {
    pointee_live::settle().map_or(-1, |left| left as c_int)
}

/// From now on `/tmp/perf-PID.map` is written. 0, or -1 if it cannot be.
#[unsafe(no_mangle)]
pub extern "C" fn pointee_write_perf_map() -> c_int {
    pointee_live::write_perf_map().map_or(-1, |()| 0)
}

/// From now on each hook has a file in `/tmp/pointee-code-PID` that tells what its code is for. 0, or -1 if there cannot be.
#[unsafe(no_mangle)]
pub extern "C" fn pointee_write_listings() -> c_int {
    pointee_live::write_listings().map_or(-1, |()| 0)
}
