//! *What do debuggers see of relays and trampolines?* Names: a file in memory for each island (`debug_file.rs` of `pointee-patch`), in the list of gdb's
//! interface for compilers at run time (gdb manual, "JIT Compilation Interface"). The list is the runtime's own, with hidden names, which gdb
//! finds among the library's symbols: another compiler in the process keeps its own.
//!
//! Names only. A relay moves nothing on the stack, so that gdb gets to the caller; what a displaced instruction has pushed it has to guess.
//!
//! Written when hooks were planted, a few microseconds; nobody is told unless a debugger has put its breakpoint into the empty function below.

#![allow(unsafe_code)] // A list for debuggers, and assembly for its names.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::Ordering::Acquire;

use crate::region::region;
use pointee_index::records::Hook;
use pointee_model::addr::RunAddr;
use pointee_patch::debug_file::{DebugFile, Function};

/// Islands that can be announced.
pub(crate) const ISLANDS: usize = 32;
/// Room for the file of one: a symbol and a name for each of its slots.
const ROOM: usize = 12 << 10;
/// Behind the name of what is hooked.
const SUFFIX: &[u8] = b"@hook";
/// Of a name, at most.
const NAME: usize = 64;
/// A section of unwind rules with none.
const NO_FRAMES: [u8; 4] = [0; 4];

/// `struct jit_code_entry`, and its file.
#[repr(C)]
struct Announcement {
    next: *mut Self,
    previous: *mut Self,
    file: *const u8,
    len: u64,
    room: [u8; ROOM],
}

/// `struct jit_descriptor`.
#[repr(C)]
struct Descriptor {
    version: u32,
    action: u32,
    relevant: *mut Announcement,
    first: *mut Announcement,
}

const REGISTERED: u32 = 1;
const UNREGISTERED: u32 = 2;

core::arch::global_asm!(
    ".text",
    ".hidden __jit_debug_register_code",
    ".globl __jit_debug_register_code",
    ".type __jit_debug_register_code, @function",
    "__jit_debug_register_code:",
    ".cfi_startproc",
    "nop", // a debugger's breakpoint
    "ret",
    ".cfi_endproc",
    ".size __jit_debug_register_code, . - __jit_debug_register_code",
    ".data",
    ".balign 8",
    ".hidden __jit_debug_descriptor",
    ".globl __jit_debug_descriptor",
    ".type __jit_debug_descriptor, @object",
    "__jit_debug_descriptor: .long 1, 0",
    ".quad 0, 0",
    ".size __jit_debug_descriptor, 24",
    ".text",
);

unsafe extern "C" {
    static mut __jit_debug_descriptor: Descriptor;
    fn __jit_debug_register_code();
}

struct Announcements(UnsafeCell<[Announcement; ISLANDS]>);
// SAFETY: used by one thread at a time, as the ledger of `plant.rs` is.
unsafe impl Sync for Announcements {}

static ANNOUNCEMENTS: Announcements = Announcements(UnsafeCell::new(
    [const {
        Announcement {
            next: ptr::null_mut(),
            previous: ptr::null_mut(),
            file: ptr::null(),
            len: 0,
            room: [0; ROOM],
        }
    }; ISLANDS],
));

/// Tells of the island with this number, of which `used` bytes from `at` on are slots of `slot` bytes, each with somebody's trampoline. What was
/// told of it before is taken back.
///
/// # Safety
/// By one thread at a time.
pub(crate) unsafe fn announce(number: usize, at: u64, used: usize, slot: usize) {
    // SAFETY: the caller's promise.
    let Some(announcement) = (unsafe { (*ANNOUNCEMENTS.0.get()).get_mut(number) }) else {
        return;
    };
    if announcement.len != 0 {
        // SAFETY: it is in the list.
        unsafe { announcement.take_out() };
    }
    let functions = hooks().filter_map(|hook| {
        let into = hook.trampoline.checked_sub(at)?;
        (into < used as u64).then_some(Function {
            at: RunAddr(at + into - into % slot as u64),
            len: slot as u64,
            name: [name_of(hook), SUFFIX],
        })
    });
    let file = DebugFile {
        at: RunAddr(at),
        len: used as u64,
        frames: &NO_FRAMES,
        frames_at: RunAddr(NO_FRAMES.as_ptr() as u64),
        listing: None,
    };
    let Some(len) = file.write(&mut announcement.room, functions) else {
        return;
    };
    announcement.file = announcement.room.as_ptr();
    announcement.len = len as u64;
    // SAFETY: it is not in the list, and stays where it is.
    unsafe { announcement.put_in() };
}

impl Announcement {
    /// # Safety
    /// It is not in the list.
    unsafe fn put_in(&mut self) {
        // SAFETY: the list is the runtime's own, of parts that stay; the rest is the caller's promise.
        unsafe {
            let list = &raw mut __jit_debug_descriptor;
            self.previous = ptr::null_mut();
            self.next = (*list).first;
            if let Some(next) = self.next.as_mut() {
                next.previous = self;
            }
            (*list).first = self;
            self.tell(REGISTERED);
        }
    }

    /// # Safety
    /// It is in the list.
    unsafe fn take_out(&mut self) {
        // SAFETY: as above.
        unsafe {
            let list = &raw mut __jit_debug_descriptor;
            match self.previous.as_mut() {
                Some(previous) => previous.next = self.next,
                None => (*list).first = self.next,
            }
            if let Some(next) = self.next.as_mut() {
                next.previous = self.previous;
            }
            self.tell(UNREGISTERED);
        }
        self.len = 0;
    }

    /// # Safety
    /// By one thread at a time.
    unsafe fn tell(&mut self, action: u32) {
        // SAFETY: the caller's promise.
        unsafe {
            let list = &raw mut __jit_debug_descriptor;
            (*list).relevant = self;
            (*list).action = action;
            __jit_debug_register_code();
            (*list).action = 0;
        }
    }
}

/// What is noted of all hooks so far.
fn hooks() -> impl Iterator<Item = &'static Hook> + Clone {
    let region = region();
    let count = region
        .header()
        .hooks
        .load(Acquire)
        .min(region.geometry.hooks);
    // SAFETY: the records that were written, in a section that stays.
    let hooks = unsafe {
        let first = region.base.add(region.layout.hooks as usize);
        core::slice::from_raw_parts(first.cast::<Hook>(), count as usize)
    };
    hooks.iter()
}

fn name_of(hook: &Hook) -> &'static [u8] {
    let region = region();
    let left = region.geometry.strings.saturating_sub(hook.name);
    // SAFETY: within the string section, which stays; nobody writes a string twice.
    let text = unsafe {
        let first = region
            .base
            .add((region.layout.strings + u64::from(hook.name)) as usize);
        core::slice::from_raw_parts(first, (left as usize).min(NAME))
    };
    let end = text.iter().position(|byte| *byte == 0);
    &text[..end.unwrap_or(text.len())]
}
