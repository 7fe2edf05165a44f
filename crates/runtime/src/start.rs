//! *How does recording begin?*
//!
//! As a preloaded library linked `-z initfirst`, the constructor runs before every other one, and so before the
//! program's first allocation. It is given `argc, argv, envp` by glibc and musl alike.
//!
//! Into a statically linked program the command maps this library, before the program's first instruction, and calls
//! [`pointee_start`]: there is no libc yet, and no thread pointer ([`threads::before_libc`]).

#![allow(unsafe_code)] // Reads the initial stack and the program headers.

use crate::environment::{self, HandOff};
use crate::modules::{self, Debug, Program};
use crate::plant::Planter;
use crate::region::{self, region};
use crate::{
    api, carvings, declared, hooks, locate, mappings, operators, probes, process, threads,
};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicPtr};
use pointee_index::handoff::key;
use pointee_index::layout::{PAGE, unseen};
use pointee_index::records::Role;

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: unsafe extern "C" fn(usize, *const *const u8, *mut *mut u8) = construct;

static IS_OVER: AtomicBool = AtomicBool::new(false);
static DEBUG: AtomicPtr<Debug> = AtomicPtr::new(core::ptr::null_mut());

unsafe extern "C" fn construct(_: usize, _: *const *const u8, envp: *mut *mut u8) {
    if envp.is_null() {
        return;
    }
    // SAFETY: the initial environment on the stack, no other thread running.
    unsafe {
        let vector = auxiliary_vector(envp);
        let handoff = environment::take(envp);
        start_linked(handoff, program(vector));
    }
}

/// Begins recording in a statically linked program that this library was mapped into at `own`, and that stands before its first
/// instruction with its stack pointer at `stack`. `text` is a hand-off as in the environment variable, `len` bytes.
///
/// What it returns is the number of no system call: the command lets it return to a `syscall` instruction, where it waits for that.
///
/// # Safety
/// `text` and the initial stack are readable; relocations of this library have been applied; there is no other thread.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pointee_start(
    text: *const u8,
    len: usize,
    stack: *mut *mut u8,
    own: u64,
) -> usize {
    // SAFETY: the caller's promise. The stack begins with the number of arguments, the arguments, and a null.
    unsafe {
        let handoff = HandOff::from_bytes(core::slice::from_raw_parts(text, len));
        let arguments = *stack as usize;
        let vector = auxiliary_vector(stack.add(arguments + 2));
        start_static(handoff, program(vector), own);
    }
    usize::MAX
}

/// # Safety
/// `envp` ends with NULL and is followed by the auxiliary vector.
unsafe fn auxiliary_vector(envp: *mut *mut u8) -> *const [u64; 2] {
    let mut at = envp;
    // SAFETY: up to the terminating NULL.
    unsafe {
        while !(*at).is_null() {
            at = at.add(1);
        }
        at.add(1).cast::<[u64; 2]>().cast_const()
    }
}

/// # Safety
/// `vector` is the auxiliary vector.
unsafe fn program(mut vector: *const [u64; 2]) -> Program {
    const AT_PHDR: u64 = 3;
    const AT_PHNUM: u64 = 5;
    const AT_BASE: u64 = 7;
    let mut program = Program {
        headers: 0,
        headers_len: 0,
        linker: 0,
        vector: vector as u64,
    };
    loop {
        // SAFETY: the vector ends with an AT_NULL entry.
        let [kind, value] = unsafe { *vector };
        match kind {
            0 => return program,
            AT_PHDR => program.headers = value,
            AT_PHNUM => program.headers_len = value,
            AT_BASE => program.linker = value,
            _ => {}
        }
        vector = vector.wrapping_add(1);
    }
}

/// Sets up what hooks write to. `false` if there is no room for it.
fn set_up(handoff: HandOff, program: &Program) -> bool {
    if !region::set_up(handoff) {
        return false;
    }
    threads::set_up();
    threads::starts_on(program.vector);
    process::set_up();
    true
}

/// # Safety
/// As for [`pointee_start`].
unsafe fn start_static(handoff: HandOff, program: Program, own: u64) {
    let own_path = handoff.path(key::RUNTIME);
    if !set_up(handoff, &program) {
        return;
    }
    // SAFETY: the caller's promise.
    if unsafe { modules::take_static(program, own, own_path.as_bytes()) } {
        threads::before_libc();
        plant_all(program);
    } else {
        region().header().unseen.fetch_or(unseen::NO_LIBC, Relaxed);
    }
}

/// # Safety
/// The main program's headers are mapped, the dynamic linker has finished loading, and there is no other thread.
unsafe fn start_linked(handoff: HandOff, program: Program) {
    // SAFETY: the caller's promise.
    let Some(debug) = (unsafe { modules::debug_of(&program) }) else {
        return;
    };
    if !set_up(handoff, &program) {
        return;
    }
    DEBUG.store(debug.cast_mut(), Relaxed);
    let mut sanitized = false;
    // SAFETY: the linker has finished loading, and no other thread runs.
    unsafe {
        modules::refresh(debug, Some(program), |module| {
            sanitized |= locate::is_sanitized(module);
            // musl's libc is its own dynamic linker, and patches of its functions are not known to be safe.
            sanitized |= module.start <= program.linker
                && program.linker < module.end
                && locate::is_libc(module);
        });
    }
    if sanitized {
        region().header().unseen.fetch_or(unseen::NO_LIBC, Relaxed);
        return;
    }
    if probes::are_wanted() {
        probes::start();
        return;
    }
    let Some(planter) = plant_all(program) else {
        return;
    };
    // SAFETY: `r_debug` stays where it is.
    let notify = unsafe { (*debug).notify };
    if let Some(linker) = modules::find(notify) {
        let function = locate::Function {
            name: "r_brk",
            role: Role::LinkMap,
            address: notify,
            len: 1,
            declared: None,
        };
        planter.plant(linker, &function);
    }
}

/// Plants all hooks in what is loaded; the planter, if that can be done.
fn plant_all(program: Program) -> Option<Planter> {
    let header = region().header();
    let mut allocators = 0;
    declared::set_up();
    modules::each(api::arrived);
    threads::find_single();
    let Some(planter) = Planter::new() else {
        header.unseen.fetch_or(unseen::HOOK_REFUSED, Relaxed);
        return None;
    };
    modules::each(|module| {
        if module.holds(program.linker) {
            return;
        }
        carvings::arrived(module);
        locate::functions(module, |function| {
            allocators += u32::from(function.role == Role::Malloc);
            planter.plant(module, &function);
        });
        planter.open_guards(module);
    });
    modules::each(|module| {
        operators::arrived(module, |function, end| {
            planter.plant_shortcut(module, function, end)
        });
    });
    if allocators == 0 {
        header.unseen.fetch_or(unseen::NO_LIBC, Relaxed);
    }
    modules::each(|module| planter.plant_system_calls(module));
    mappings::take_over();
    IS_OVER.store(true, Relaxed);
    Some(planter)
}

/// Whether what is loaded from now on was not loaded with the program.
pub(crate) fn is_over() -> bool {
    IS_OVER.load(Relaxed)
}

/// The linker says that its list changed, or is about to.
pub(crate) fn link_map_changed() {
    let debug = DEBUG.load(Relaxed);
    if debug.is_null() || region::is_disabled() || hooks::is_filtered() {
        return;
    }
    // SAFETY: called by the thread that holds the linker's lock.
    unsafe {
        if !modules::is_consistent(debug) {
            return;
        }
        if probes::are_wanted() {
            if probes::can_be_added() {
                modules::refresh(debug, None, probes::add);
            }
            return;
        }
        let mut planter = None;
        // As many as come with one call, nearly always; the operators of others are C's way.
        let mut newcomers = [None; 64];
        let mut count = 0;
        modules::refresh(debug, None, |module| {
            api::arrived(module);
            carvings::arrived(module);
            locate::functions(module, |function| {
                if let Some(planter) = planter.get_or_insert_with(Planter::new) {
                    planter.plant(module, &function);
                }
            });
            if let Some(Some(planter)) = &planter {
                planter.open_guards(module);
            }
            if let Some(place) = newcomers.get_mut(count) {
                *place = Some(module);
                count += 1;
            }
        });
        for module in newcomers.into_iter().flatten() {
            let planter = planter.get_or_insert_with(Planter::new);
            if let Some(planter) = planter {
                planter.plant_system_calls(module);
            }
            // Where the dynamic linker's own calls are not seen.
            mappings::restate(module.start, module.end.next_multiple_of(PAGE));
            operators::arrived(module, |function, end| {
                planter
                    .as_ref()
                    .is_some_and(|planter| planter.plant_shortcut(module, function, end))
            });
        }
    }
}
