//! *What do the process's unwinders know, and what are they told?* Their functions are looked up as weak symbols when this library
//! is loaded, so that nothing is asked of a program that has none.
//!
//! | unwinder | is told by |
//! | --- | --- |
//! | libgcc's | `__register_frame`, a section |
//! | LLVM's libunwind | `__unw_add_dynamic_eh_frame_section`; its `__register_frame` takes one record and leaves a section alone |
//! | libunwind of nongnu.org | `_U_dyn_register`, a table with an entry for each stretch of code |
//!
//! Not told: one that is loaded later, or linked into the program without exporting these.

#![allow(unsafe_code)] // Calls unwinders and reads the rules they point to.

use pointee_model::addr::RunAddr;

// Addresses that are zero where there is no such function.
core::arch::global_asm!(
    ".weak _Unwind_Find_FDE, __register_frame, __deregister_frame, dladdr",
    ".weak __unw_add_dynamic_eh_frame_section, __unw_remove_dynamic_eh_frame_section",
    ".weak _U_dyn_register, _U_dyn_cancel",
    ".section .data.rel.ro.pointee_live,\"aw\",@progbits",
    ".balign 8",
    ".hidden pointee_live_find_fde",
    ".globl pointee_live_find_fde",
    "pointee_live_find_fde: .quad _Unwind_Find_FDE",
    ".hidden pointee_live_sections",
    ".globl pointee_live_sections",
    "pointee_live_sections: .quad __register_frame, __deregister_frame",
    ".quad __unw_add_dynamic_eh_frame_section, __unw_remove_dynamic_eh_frame_section",
    ".hidden pointee_live_tables",
    ".globl pointee_live_tables",
    "pointee_live_tables: .quad _U_dyn_register, _U_dyn_cancel",
    ".hidden pointee_live_dladdr",
    ".globl pointee_live_dladdr",
    "pointee_live_dladdr: .quad dladdr",
    ".text",
);

unsafe extern "C" {
    static pointee_live_find_fde: Option<unsafe extern "C" fn(u64, *mut Bases) -> *const u8>;
    static pointee_live_sections: [[Option<unsafe extern "C" fn(*const u8)>; 2]; 2];
    static pointee_live_tables: [Option<unsafe extern "C" fn(*mut Table)>; 2];
    static pointee_live_dladdr: Option<unsafe extern "C" fn(u64, *mut Symbol) -> i32>;
}

/// `Dl_info`.
#[repr(C)]
struct Symbol {
    file: *const u8,
    base: u64,
    name: *const core::ffi::c_char,
    address: u64,
}

/// What the unwinders were told of one section with rules. May not move meanwhile.
pub(crate) struct Registration {
    told: bool,
    table: Table,
    entries: [[i32; 2]; STRETCHES],
}

/// Stretches of code that one section is about, at most.
const STRETCHES: usize = 4;

/// `unw_dyn_info_t` of libunwind-dynamic.h, for a table.
#[repr(C)]
struct Table {
    next: *mut Self,
    previous: *mut Self,
    start: u64,
    end: u64,
    global_pointer: u64,
    format: i32,
    _padding: i32,
    load_offset: u64,
    name: u64,
    base: u64,
    /// In words of eight bytes.
    len: u64,
    /// Pairs of distances from the base: of code, sorted, and of its FDE.
    entries: u64,
}

/// `UNW_INFO_FORMAT_REMOTE_TABLE`: the other kinds of table are for something else by now.
const DISTANCES: i32 = 2;

impl Registration {
    pub(crate) const fn none() -> Self {
        Self {
            told: false,
            table: Table {
                next: core::ptr::null_mut(),
                previous: core::ptr::null_mut(),
                start: 0,
                end: 0,
                global_pointer: 0,
                format: DISTANCES,
                _padding: 0,
                load_offset: 0,
                name: 0,
                base: 0,
                len: 0,
                entries: 0,
            },
            entries: [[0; 2]; STRETCHES],
        }
    }

    /// Tells of a section with rules for what lies at `at` and `len` bytes on; it stays until [`Self::withdraw`].
    pub(crate) fn tell(&mut self, section: &[u8], at: RunAddr, len: u64) {
        self.told = true;
        // SAFETY: words of ours, and the unwinders' functions with a section that ends with a zero, and a table that stays.
        unsafe {
            for [register, _] in pointee_live_sections {
                if let Some(register) = register {
                    register(section.as_ptr());
                }
            }
            if let [Some(register), Some(_)] = pointee_live_tables {
                let count = self.write_entries(section, at);
                self.table.start = at.0;
                self.table.end = at.0 + len;
                self.table.format = DISTANCES;
                self.table.base = at.0;
                self.table.len = count as u64;
                self.table.entries = self.entries.as_ptr() as u64;
                if count > 0 {
                    register(&raw mut self.table);
                }
            }
        }
    }

    /// Has the unwinders forget what they were told of `section`.
    pub(crate) fn withdraw(&mut self, section: &[u8]) {
        if !core::mem::take(&mut self.told) {
            return;
        }
        // SAFETY: as above; they know the section, or the same functions were missing then.
        unsafe {
            for [_, deregister] in pointee_live_sections {
                if let Some(deregister) = deregister {
                    deregister(section.as_ptr());
                }
            }
            if let [_, Some(deregister)] = pointee_live_tables
                && self.table.len > 0
            {
                deregister(&raw mut self.table);
                self.table.len = 0;
            }
        }
    }

    /// An entry for each FDE of the section: their number; 0 if one is out of reach. The section is one of `frames.rs`, whose
    /// addresses are plain and in order.
    fn write_entries(&mut self, section: &[u8], base: RunAddr) -> usize {
        let word = |at: usize| Some(u32::from_le_bytes(*section.get(at..)?.first_chunk()?));
        let mut at = 0;
        let mut count = 0;
        while let Some(len) = word(at).filter(|len| *len != 0) {
            // A CIE has a zero where an FDE has the distance of its CIE.
            if word(at + 4) != Some(0)
                && let Some(start) = section.get(at + 8..).and_then(|rest| rest.first_chunk())
            {
                let fde = section.as_ptr() as u64 + at as u64;
                let from_base = |to: u64| i32::try_from(to.wrapping_sub(base.0) as i64).ok();
                let pair = from_base(u64::from_le_bytes(*start)).zip(from_base(fde));
                let (Some((code, fde)), Some(entry)) = (pair, self.entries.get_mut(count)) else {
                    return 0;
                };
                *entry = [code, fde];
                count += 1;
            }
            at += 4 + len as usize;
        }
        count
    }
}

/// The name of an exported function.
pub(crate) fn name_of(function: RunAddr) -> Option<&'static [u8]> {
    let symbol = look_up(function)?;
    let exact = !symbol.name.is_null() && symbol.address == function.0;
    // SAFETY: the name lies in the object, which is loaded while it is looked at.
    exact.then(|| unsafe { core::ffi::CStr::from_ptr(symbol.name) }.to_bytes())
}

/// What the dynamic linker knows of an address.
pub(crate) struct Known {
    /// The exported function that holds it, and where that begins.
    pub(crate) function: Option<(&'static [u8], RunAddr)>,
    /// The path of the object.
    pub(crate) object: &'static [u8],
    /// Where it is loaded.
    pub(crate) loaded_at: RunAddr,
}

/// See [`Known`]; `None` outside of all objects.
pub(crate) fn symbol_at(at: RunAddr) -> Option<Known> {
    let symbol = look_up(at)?;
    // SAFETY: as in `name_of`.
    unsafe {
        let function = (!symbol.name.is_null()).then(|| {
            let name = core::ffi::CStr::from_ptr(symbol.name).to_bytes();
            (name, RunAddr(symbol.address))
        });
        (!symbol.file.is_null()).then(|| Known {
            function,
            object: core::ffi::CStr::from_ptr(symbol.file.cast()).to_bytes(),
            loaded_at: RunAddr(symbol.base),
        })
    }
}

fn look_up(at: RunAddr) -> Option<Symbol> {
    let mut symbol = Symbol {
        file: core::ptr::null(),
        base: 0,
        name: core::ptr::null(),
        address: 0,
    };
    // SAFETY: libc's function; it fills the structure.
    let found = unsafe { pointee_live_dladdr?(at.0, &raw mut symbol) };
    (found != 0).then_some(symbol)
}

/// `struct dwarf_eh_bases` of libgcc.
#[repr(C)]
#[derive(Default)]
struct Bases {
    text: u64,
    data: u64,
    function: u64,
}

/// `DW_EH_PE_pcrel | DW_EH_PE_sdata4`, as linkers want it.
const PC_RELATIVE_4: u8 = 0x1b;

/// How long the function is that begins at `function`, by its unwind rules.
pub(crate) fn function_len(function: RunAddr) -> Option<u64> {
    let rules = rules_at(function)?;
    (rules.start == function).then_some(rules.len)
}

/// Unwind rules of a stretch of code, as they are loaded.
pub(crate) struct Rules {
    pub(crate) start: RunAddr,
    pub(crate) len: u64,
    /// Of code, of data, and the column of the return address.
    pub(crate) alignments: &'static [u8],
    /// The instructions that hold from the start on.
    pub(crate) initial: &'static [u8],
    /// Those of this stretch.
    pub(crate) program: &'static [u8],
    /// It has a table of where exceptions are caught.
    pub(crate) catches: bool,
}

/// The rules that the unwinder finds for the function at `at`; `None` too for encodings that linkers do not write.
pub(crate) fn rules_at(at: RunAddr) -> Option<Rules> {
    // SAFETY: a word of ours.
    let find = unsafe { pointee_live_find_fde }?;
    let mut bases = Bases::default();
    // SAFETY: libgcc's function, with its arguments. It finds nothing, or rules that are loaded.
    let fde = unsafe { find(at.0, &raw mut bases) };
    if fde.is_null() {
        return None;
    }
    // SAFETY: records that the unwinder itself would go by: each with its length; an FDE with the way to its CIE, and the
    // range in the encoding that is asked for.
    unsafe {
        let cie = fde
            .add(4)
            .sub(fde.add(4).cast::<u32>().read_unaligned() as usize);
        let Cie {
            tables,
            alignments,
            initial,
        } = read_cie(cie)?;
        let range = fde.add(12).cast::<u32>().read_unaligned();
        let block = skip_leb(fde.add(16));
        let program = skip_block(fde.add(16));
        // The address of its table, in whatever encoding; zero if it has none.
        let catches = tables && until(block, program)?.iter().any(|byte| *byte != 0);
        Some(Rules {
            start: RunAddr(bases.function),
            len: u64::from(range),
            alignments,
            initial,
            program: until(program, end_of(fde))?,
            catches,
        })
    }
}

struct Cie {
    /// FDEs lead to tables for exceptions.
    tables: bool,
    alignments: &'static [u8],
    initial: &'static [u8],
}

/// Reads a CIE whose FDEs hold addresses as [`PC_RELATIVE_4`].
///
/// # Safety
/// `cie` is a loaded CIE.
unsafe fn read_cie(cie: *const u8) -> Option<Cie> {
    // SAFETY: length, 0, version, letters, alignments, and what the letters say.
    unsafe {
        let mut letter = cie.add(9);
        if letter.read() != b'z' {
            return None;
        }
        let mut alignments = letter;
        while alignments.read() != 0 {
            alignments = alignments.add(1);
        }
        alignments = alignments.add(1);
        let block = skip_leb(skip_leb(alignments)).add(1);
        let mut at = skip_leb(block);
        let (mut encoding, mut tables) = (0, false);
        loop {
            letter = letter.add(1);
            match letter.read() {
                b'R' => {
                    encoding = at.read();
                    at = at.add(1);
                }
                b'L' => {
                    tables = true;
                    at = at.add(1);
                }
                // Four bytes, relative or not, by address or indirectly.
                b'P' if at.read() & 0x07 == 0x03 => at = at.add(5),
                b'S' | b'B' => {}
                0 => break,
                _ => return None,
            }
        }
        (encoding == PC_RELATIVE_4).then_some(Cie {
            tables,
            alignments: until(alignments, block)?,
            initial: until(skip_block(block), end_of(cie))?,
        })
    }
}

/// # Safety
/// `record` is a loaded CIE or FDE.
unsafe fn end_of(record: *const u8) -> *const u8 {
    // SAFETY: the caller's promise.
    unsafe { record.add(4 + record.cast::<u32>().read_unaligned() as usize) }
}

/// # Safety
/// `start` to `end` lies in one loaded record, unless they are the wrong way round.
unsafe fn until(start: *const u8, end: *const u8) -> Option<&'static [u8]> {
    let len = (end as usize).checked_sub(start as usize)?;
    // SAFETY: the caller's promise. It is not kept beyond the operation in which the object was found loaded.
    Some(unsafe { core::slice::from_raw_parts(start, len) })
}

/// # Safety
/// `at` is at a block: its length, then its bytes.
unsafe fn skip_block(at: *const u8) -> *const u8 {
    // SAFETY: the caller's promise. Lengths here are below 128.
    unsafe { skip_leb(at).add(usize::from(at.read() & 0x7f)) }
}

/// # Safety
/// `at` is at a number in LEB128.
unsafe fn skip_leb(mut at: *const u8) -> *const u8 {
    // SAFETY: the caller's promise.
    unsafe {
        while at.read() & 0x80 != 0 {
            at = at.add(1);
        }
        at.add(1)
    }
}
