//! *Which objects are loaded, and what do they import?* Asked of the dynamic linker (`dl_iterate_phdr`, which also keeps
//! objects from going away meanwhile) and read from the objects in memory.

#![allow(unsafe_code)] // Calls the dynamic linker and reads what it has loaded.

use core::ffi::{CStr, c_char, c_void};

use pointee_model::addr::{LinkAddr, LoadBias, RunAddr};

// Addresses that are zero where there is no such function.
core::arch::global_asm!(
    ".weak dl_iterate_phdr, dlsym",
    ".section .data.rel.ro.pointee_live,\"aw\",@progbits",
    ".balign 8",
    ".hidden pointee_live_objects",
    ".globl pointee_live_objects",
    "pointee_live_objects: .quad dl_iterate_phdr",
    ".hidden pointee_live_dlsym",
    ".globl pointee_live_dlsym",
    "pointee_live_dlsym: .quad dlsym",
    ".text",
);

type Visit = unsafe extern "C" fn(*const Info, usize, *mut c_void) -> i32;

unsafe extern "C" {
    static pointee_live_objects: Option<unsafe extern "C" fn(Visit, *mut c_void) -> i32>;
    static pointee_live_dlsym:
        Option<unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void>;
}

/// The head of `struct dl_phdr_info`.
#[repr(C)]
struct Info {
    bias: u64,
    name: *const c_char,
    segments: *const Segment,
    count: u16,
}

/// `Elf64_Phdr`.
#[repr(C)]
#[derive(Debug)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    physical: u64,
    file_len: u64,
    len: u64,
    alignment: u64,
}

/// `Elf64_Rela`.
#[repr(C)]
struct Relocation {
    offset: u64,
    kind: u32,
    symbol: u32,
    addend: i64,
}

/// `Elf64_Sym`.
#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    len: u64,
}

/// A loaded object.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    bias: LoadBias,
    segments: &'a [Segment],
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_NOTE: u32 = 4;
const PT_GNU_RELRO: u32 = 0x6474_e552;

/// Calls `visit` with each loaded object.
pub(crate) fn visit<F: FnMut(&Object<'_>)>(mut visit: F) {
    /// # Safety
    /// As called by `dl_iterate_phdr` with an `F`.
    unsafe extern "C" fn each<F: FnMut(&Object<'_>)>(
        info: *const Info,
        _: usize,
        visit: *mut c_void,
    ) -> i32 {
        // SAFETY: the dynamic linker's, valid during the call; `visit` is the closure below.
        let (info, visit) = unsafe { (&*info, &mut *visit.cast::<F>()) };
        if !info.segments.is_null() {
            visit(&Object {
                bias: LoadBias(info.bias),
                // SAFETY: as above.
                segments: unsafe {
                    core::slice::from_raw_parts(info.segments, usize::from(info.count))
                },
            });
        }
        0
    }
    // SAFETY: a word of ours, and libc's function with its arguments.
    unsafe {
        if let Some(iterate) = pointee_live_objects {
            iterate(each::<F>, (&raw mut visit).cast());
        }
    }
}

/// Where `name` leads that is looked up in all objects, in their order.
pub(crate) fn find(name: &CStr) -> Option<RunAddr> {
    // SAFETY: libc's function; a null handle is RTLD_DEFAULT.
    let at = unsafe { pointee_live_dlsym?(core::ptr::null_mut(), name.as_ptr()) };
    (!at.is_null()).then_some(RunAddr(at as u64))
}

impl Object<'_> {
    /// Whether `address` lies in it.
    pub(crate) fn holds(&self, address: RunAddr) -> bool {
        self.segments
            .iter()
            .any(|segment| segment.kind == PT_LOAD && self.covers(segment, address))
    }

    /// Its address at link time, in this process.
    pub(crate) fn to_run(&self, address: LinkAddr) -> RunAddr {
        self.bias.to_run(address)
    }

    /// Whether its notes say that it is the build with this ID.
    pub(crate) fn is_build(&self, id: &[u8]) -> bool {
        let notes = self
            .segments
            .iter()
            .filter(|segment| segment.kind == PT_NOTE);
        notes.into_iter().any(|segment| {
            let start = self.bias.to_run(LinkAddr(segment.address));
            if !self.holds(start) || !self.holds(start.plus(segment.len.saturating_sub(1))) {
                return false;
            }
            // SAFETY: a segment that is loaded.
            let notes =
                unsafe { core::slice::from_raw_parts(start.0 as *const u8, segment.len as usize) };
            build_id(notes, segment.alignment) == Some(id)
        })
    }

    /// Whether the dynamic linker has made `address` read-only after it had relocated the object.
    pub(crate) fn is_read_only_after_relocation(&self, address: RunAddr) -> bool {
        self.segments
            .iter()
            .any(|segment| segment.kind == PT_GNU_RELRO && self.covers(segment, address))
    }

    fn covers(&self, segment: &Segment, address: RunAddr) -> bool {
        let start = self.bias.to_run(LinkAddr(segment.address));
        address
            .offset_from(start)
            .is_some_and(|offset| offset < segment.len)
    }

    /// Calls `visit` with each word that holds the address of the imported symbol `name`.
    pub(crate) fn imports(&self, name: &CStr, mut visit: impl FnMut(RunAddr)) {
        const DT_PLTRELSZ: u64 = 2;
        const DT_STRTAB: u64 = 5;
        const DT_SYMTAB: u64 = 6;
        const DT_RELA: u64 = 7;
        const DT_RELASZ: u64 = 8;
        const DT_JMPREL: u64 = 23;
        let (mut strings, mut symbols) = (None, None);
        let mut tables = [(None, 0), (None, 0)];
        for [tag, value] in self.dynamic() {
            match *tag {
                DT_STRTAB => strings = self.pointer(*value),
                DT_SYMTAB => symbols = self.pointer(*value),
                DT_RELA => tables[0].0 = self.pointer(*value),
                DT_RELASZ => tables[0].1 = *value,
                DT_JMPREL => tables[1].0 = self.pointer(*value),
                DT_PLTRELSZ => tables[1].1 = *value,
                _ => {}
            }
        }
        let (Some(strings), Some(symbols)) = (strings, symbols) else {
            return;
        };
        for (table, len) in tables {
            let Some(table) = table else { continue };
            let count = len as usize / size_of::<Relocation>();
            // SAFETY: the table by which the dynamic linker has relocated the object.
            let table = unsafe { core::slice::from_raw_parts(table.0 as *const Relocation, count) };
            for relocation in table.iter().filter(|relocation| relocation.symbol != 0) {
                if !holds_address(relocation) {
                    continue;
                }
                // SAFETY: a symbol that the dynamic linker has looked up, or will.
                let imported = unsafe {
                    let symbol = (symbols.0 as *const Symbol).add(relocation.symbol as usize);
                    CStr::from_ptr((strings.0 as *const c_char).add((*symbol).name as usize))
                };
                let slot = self.bias.to_run(LinkAddr(relocation.offset));
                if imported == name && slot.0.is_multiple_of(8) {
                    visit(slot);
                }
            }
        }
    }

    /// The dynamic section, up to its end mark.
    fn dynamic(&self) -> &[[u64; 2]] {
        let segment = self
            .segments
            .iter()
            .find(|segment| segment.kind == PT_DYNAMIC);
        let Some(segment) = segment else { return &[] };
        let start = self.bias.to_run(LinkAddr(segment.address));
        let count = segment.len as usize / 16;
        // SAFETY: a segment that is loaded.
        let all = unsafe { core::slice::from_raw_parts(start.0 as *const [u64; 2], count) };
        let end = all.iter().position(|entry| entry[0] == 0).unwrap_or(count);
        &all[..end]
    }

    /// A pointer in the dynamic section: glibc relocates most of them in place, but not those of the kernel's object.
    fn pointer(&self, value: u64) -> Option<RunAddr> {
        [RunAddr(value), self.bias.to_run(LinkAddr(value))]
            .into_iter()
            .find(|at| self.holds(*at))
    }
}

/// What the note of GNU's about the build says, among `notes`.
fn build_id(mut notes: &[u8], alignment: u64) -> Option<&[u8]> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let alignment = if alignment == 8 { 8 } else { 4 };
    loop {
        let (head, rest) = notes.split_first_chunk::<12>()?;
        let word = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
        let (name_len, len) = (word(0)? as usize, word(4)? as usize);
        let name = rest.get(..name_len)?;
        // Both are filled up, counted from where the note begins.
        let at = (12 + name_len).next_multiple_of(alignment) - 12;
        let text = rest.get(at..at.checked_add(len)?)?;
        if word(8)? == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return Some(text);
        }
        notes = rest.get((12 + at + len).next_multiple_of(alignment) - 12..)?;
    }
}

/// Whether the word is filled with the address of the symbol itself.
fn holds_address(relocation: &Relocation) -> bool {
    const R_X86_64_64: u32 = 1;
    const R_X86_64_GLOB_DAT: u32 = 6;
    const R_X86_64_JUMP_SLOT: u32 = 7;
    match relocation.kind {
        R_X86_64_GLOB_DAT | R_X86_64_JUMP_SLOT => true,
        R_X86_64_64 => relocation.addend == 0,
        _ => false,
    }
}
