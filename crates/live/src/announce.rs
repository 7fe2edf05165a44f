//! *Who is told of generated code?* The process's unwinders (`unwinder.rs`), and a debugger, by a file in memory that
//! the interface for compilers at run time offers (`__jit_debug_descriptor`; gdb manual, "JIT Compilation Interface").
//!
//! ```text
//!   file:  header | sections: .text (where the code is) .eh_frame .symtab .strtab | rules | symbol | names
//! ```
//!
//! The list of files is this library's own, with hidden names: another compiler in the process keeps its own.

#![allow(unsafe_code)] // A list for debuggers, and assembly for its names.

use pointee_model::addr::RunAddr;

use crate::frames::Frames;
use crate::perf_map;
use crate::unwinder::Registration;

/// Room for a file in memory.
const ROOM: usize = 1408;
/// Behind the name of what is hooked.
const SUFFIX: &[u8] = b"@hook\0";
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
            frames: Frames::empty(),
            file: [0; ROOM],
        }
    }

    /// Tells of `len` bytes of code at `at`, called `name`. Under the engine's lock; no thread stands still, for the unwinder
    /// takes locks of its own.
    pub(crate) fn announce(&mut self, frames: &Frames, at: RunAddr, len: u64, name: &[u8]) {
        self.announce_to_debuggers(frames, at, len, name);
        self.unwinders.tell(self.frames.as_slice(), at, len);
    }

    /// The same without a word to the unwinder, and so at any moment. Under the engine's lock.
    pub(crate) fn announce_to_debuggers(
        &mut self,
        frames: &Frames,
        at: RunAddr,
        len: u64,
        name: &[u8],
    ) {
        self.withdraw();
        self.frames = *frames;
        let file_len = write_file(&mut self.file, self.frames.as_slice(), at, len, name);
        (self.at, self.len) = (at, len);
        // Between the names of sections and the last zero.
        let end = file_len.map_or(0, |file_len| file_len - 1);
        self.name = [
            end - (name.len().min(NAME) + SUFFIX.len() - 1).min(end),
            end,
        ];
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
        if let Some(name) = self.file.get(self.name[0]..self.name[1])
            && !name.is_empty()
        {
            perf_map::add(self.at, self.len, name);
        }
    }

    /// Takes back what was told.
    pub(crate) fn withdraw(&mut self) {
        if !core::mem::take(&mut self.told) {
            return;
        }
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

/// Writes an ELF file of code at `at`. Its length; `None` when it does not fit.
fn write_file(file: &mut [u8], frames: &[u8], at: RunAddr, len: u64, name: &[u8]) -> Option<usize> {
    const HEADER: usize = 64;
    const SECTION: usize = 64;
    const SECTIONS: usize = 5;
    const SYMBOLS: usize = 48;
    const NAMES: &[u8] = b"\0.text\0.eh_frame\0.symtab\0.strtab\0";
    let name = name.get(..name.len().min(NAME))?;
    let frames_at = HEADER + SECTION * SECTIONS;
    let symbols_at = (frames_at + frames.len()).next_multiple_of(8);
    let names_at = symbols_at + SYMBOLS;
    let names_len = NAMES.len() + name.len() + SUFFIX.len();
    let end = names_at + names_len;
    let file = file.get_mut(..end)?;
    file.fill(0);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    // An executable for x86-64 with sections only.
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1]);
    put(40, &(HEADER as u64).to_le_bytes());
    put(
        52,
        &[
            HEADER as u8,
            0,
            0,
            0,
            0,
            0,
            SECTION as u8,
            0,
            SECTIONS as u8,
            0,
            4,
            0,
        ],
    );
    // name, type, flags, address, offset, size, link, info, alignment, entry size
    let sections: [[u64; 10]; SECTIONS] = [
        [0; 10],
        [1, 8, 6, at.0, frames_at as u64, len, 0, 0, 16, 0],
        [
            7,
            1,
            2,
            frames.as_ptr() as u64,
            frames_at as u64,
            frames.len() as u64,
            0,
            0,
            8,
            0,
        ],
        [17, 2, 0, 0, symbols_at as u64, SYMBOLS as u64, 4, 1, 8, 24],
        [25, 3, 0, 0, names_at as u64, names_len as u64, 0, 0, 1, 0],
    ];
    for (number, section) in sections.iter().enumerate() {
        let mut to = HEADER + number * SECTION;
        for (field, value) in section.iter().enumerate() {
            let bytes = value.to_le_bytes();
            let len = if matches!(field, 0 | 1 | 6 | 7) { 4 } else { 8 };
            put(to, &bytes[..len]);
            to += len;
        }
    }
    put(frames_at, frames);
    // A global function in .text.
    put(symbols_at + 24, &(NAMES.len() as u32).to_le_bytes());
    put(symbols_at + 28, &[0x12, 0, 1, 0]);
    put(symbols_at + 32, &at.0.to_le_bytes());
    put(symbols_at + 40, &len.to_le_bytes());
    put(names_at, NAMES);
    put(names_at + NAMES.len(), name);
    put(names_at + NAMES.len() + name.len(), SUFFIX);
    Some(end)
}
