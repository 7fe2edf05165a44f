//! *Who is told of generated code?* The process's unwinders (`unwinder.rs`), and a debugger, by a file in memory
//! (`debug_file.rs` of `pointee-patch`) in a list that it looks for: `__jit_debug_descriptor` (gdb manual, "JIT Compilation Interface").
//! The file has a symbol named after what is hooked, the unwind rules, and the lines of a listing (`listing.rs`).
//!
//! The list of files is this library's own, with hidden names: another compiler in the process keeps its own.

#![allow(unsafe_code)] // A list for debuggers, and assembly for its names.

use pointee_model::addr::RunAddr;
use pointee_patch::debug_file::{DebugFile, Function, Listing};

use crate::frames::Frames;
use crate::lines::Lines;
use crate::listing;
use crate::perf_map;
use crate::sys;
use crate::unwinder::Registration;

/// Room for a file in memory.
const ROOM: usize = 2048;
/// Behind the name of what is hooked.
const SUFFIX: &[u8] = b"@hook";
/// Room for that name.
pub(crate) const NAME: usize = 96;

/// What was told of one piece of code. May not move while it is announced.
#[repr(C)]
pub(crate) struct Announcement {
    entry: Entry,
    told: bool,
    unwinders: Registration,
    at: RunAddr,
    len: u64,
    /// Where in the file the name is.
    name: [usize; 2],
    /// The process that announced it: of a forked child, its parent.
    process: u32,
    lines: Lines,
    frames: Frames,
    file: [u8; ROOM],
}

/// `struct jit_code_entry`.
#[repr(C)]
struct Entry {
    next: *mut Entry,
    previous: *mut Entry,
    file: *const u8,
    len: u64,
}

/// `struct jit_descriptor`.
#[repr(C)]
struct Descriptor {
    version: u32,
    action: u32,
    relevant: *mut Entry,
    first: *mut Entry,
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

impl Announcement {
    pub(crate) const fn new() -> Self {
        Self {
            entry: Entry {
                next: core::ptr::null_mut(),
                previous: core::ptr::null_mut(),
                file: core::ptr::null(),
                len: 0,
            },
            told: false,
            unwinders: Registration::none(),
            at: RunAddr(0),
            len: 0,
            name: [0; 2],
            process: 0,
            lines: Lines::none(),
            frames: Frames::empty(),
            file: [0; ROOM],
        }
    }

    /// Tells of code at `at` that is called `name` and ends where its lines do. Under the engine's lock; no thread stands still, for the unwinder
    /// takes locks of its own.
    pub(crate) fn announce(&mut self, frames: &Frames, lines: &Lines, at: RunAddr, name: &[u8]) {
        self.announce_to_debuggers(frames, lines, at, name);
        self.unwinders.tell(self.frames.as_slice(), at, self.len);
    }

    /// The same without a word to the unwinder, and so at any moment. Under the engine's lock.
    pub(crate) fn announce_to_debuggers(
        &mut self,
        frames: &Frames,
        lines: &Lines,
        at: RunAddr,
        name: &[u8],
    ) {
        self.withdraw();
        (self.frames, self.lines) = (*frames, *lines);
        (self.at, self.len, self.process) = (at, lines.end(), sys::process_id());
        let name = &name[..name.len().min(NAME)];
        let file_len = self.write_file(name);
        // The last of the file, but for a zero.
        let end = file_len.map_or(0, |file_len| file_len - 1);
        self.name = [end - (name.len() + SUFFIX.len()).min(end), end];
        self.write_to_perf_map();
        self.entry.file = self.file.as_ptr();
        self.entry.len = file_len.unwrap_or(0) as u64;
        self.told = true;
        if file_len.is_some() {
            // SAFETY: under the lock; the entry stays where it is until it is withdrawn.
            unsafe {
                let list = &raw mut __jit_debug_descriptor;
                self.entry.previous = core::ptr::null_mut();
                self.entry.next = (*list).first;
                if let Some(next) = self.entry.next.as_mut() {
                    next.previous = &raw mut self.entry;
                }
                (*list).first = &raw mut self.entry;
                tell(&raw mut self.entry, REGISTERED);
            }
        }
    }

    /// Under the engine's lock.
    pub(crate) fn write_to_perf_map(&self) {
        if !self.name().is_empty() {
            perf_map::add(self.at, self.len, self.name());
        }
    }

    /// Where the code begins.
    pub(crate) fn at(&self) -> RunAddr {
        self.at
    }

    /// What the code is called; nothing if it is not announced.
    pub(crate) fn name(&self) -> &[u8] {
        self.file.get(self.name[0]..self.name[1]).unwrap_or(&[])
    }

    pub(crate) fn process(&self) -> u32 {
        self.process
    }

    pub(crate) fn lines(&self) -> &Lines {
        &self.lines
    }

    /// The file's length; `None` when it does not fit.
    fn write_file(&mut self, name: &[u8]) -> Option<usize> {
        let function = Function {
            at: self.at,
            len: self.len,
            name: [name, SUFFIX],
        };
        let folder = listing::folder(self.process);
        let source = listing::file(self.at, [name, SUFFIX]);
        let rows = self.lines.offsets();
        let told = DebugFile {
            at: self.at,
            len: self.len,
            frames: self.frames.as_slice(),
            frames_at: RunAddr(self.frames.as_slice().as_ptr() as u64),
            listing: Some(Listing {
                folder: folder.bytes(),
                file: source.bytes(),
                rows: &rows[..self.lines.len()],
                end: self.len,
            }),
        };
        told.write(&mut self.file, core::iter::once(function))
    }

    /// Takes back what was told.
    pub(crate) fn withdraw(&mut self) {
        if !core::mem::take(&mut self.told) {
            return;
        }
        listing::remove(self);
        self.name = [0; 2];
        self.unwinders.withdraw(self.frames.as_slice());
        if self.entry.len != 0 {
            // SAFETY: as above.
            unsafe {
                let list = &raw mut __jit_debug_descriptor;
                match self.entry.previous.as_mut() {
                    Some(previous) => previous.next = self.entry.next,
                    None => (*list).first = self.entry.next,
                }
                if let Some(next) = self.entry.next.as_mut() {
                    next.previous = self.entry.previous;
                }
                tell(&raw mut self.entry, UNREGISTERED);
            }
        }
    }
}

/// # Safety
/// Under the engine's lock.
unsafe fn tell(entry: *mut Entry, action: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let list = &raw mut __jit_debug_descriptor;
        (*list).relevant = entry;
        (*list).action = action;
        __jit_debug_register_code();
        (*list).action = 0;
    }
}
