//! *What does the process's unwinder know, and what is it told?* libgcc's, when it is loaded: its functions are looked up as
//! weak symbols, so that nothing is asked of a program that has none.

#![allow(unsafe_code)] // Calls the unwinder and reads the rules it points to.

use pointee_model::addr::RunAddr;

// Addresses that are zero where there is no such function.
core::arch::global_asm!(
    ".weak _Unwind_Find_FDE, __register_frame, __deregister_frame, dladdr",
    ".section .data.rel.ro.pointee_live,\"aw\",@progbits",
    ".balign 8",
    ".hidden pointee_live_find_fde",
    ".globl pointee_live_find_fde",
    "pointee_live_find_fde: .quad _Unwind_Find_FDE",
    ".hidden pointee_live_frames",
    ".globl pointee_live_frames",
    "pointee_live_frames: .quad __register_frame, __deregister_frame",
    ".hidden pointee_live_dladdr",
    ".globl pointee_live_dladdr",
    "pointee_live_dladdr: .quad dladdr",
    ".text",
);

unsafe extern "C" {
    static pointee_live_find_fde: Option<unsafe extern "C" fn(u64, *mut Bases) -> *const u8>;
    static pointee_live_frames: [Option<unsafe extern "C" fn(*const u8)>; 2];
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

/// Tells libgcc of a section with rules; it stays until [`deregister`].
pub(crate) fn register(frames: &[u8]) {
    // SAFETY: a word of ours, and libgcc's function with a section that ends with a zero.
    unsafe {
        if let Some(register) = pointee_live_frames[0] {
            register(frames.as_ptr());
        }
    }
}

/// Has libgcc forget a section that it was told of.
pub(crate) fn deregister(frames: &[u8]) {
    // SAFETY: as above; libgcc knows the section, or the same function was missing then.
    unsafe {
        if let Some(deregister) = pointee_live_frames[1] {
            deregister(frames.as_ptr());
        }
    }
}

/// The name of an exported function.
pub(crate) fn name_of(function: RunAddr) -> Option<&'static [u8]> {
    let mut symbol = Symbol {
        file: core::ptr::null(),
        base: 0,
        name: core::ptr::null(),
        address: 0,
    };
    // SAFETY: libc's function; the name lies in the object, which is loaded while it is looked at.
    unsafe {
        let found = pointee_live_dladdr?(function.0, &raw mut symbol);
        let exact = found != 0 && !symbol.name.is_null() && symbol.address == function.0;
        exact.then(|| core::ffi::CStr::from_ptr(symbol.name).to_bytes())
    }
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
