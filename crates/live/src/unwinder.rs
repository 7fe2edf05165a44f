//! *What does the process's unwinder know, and what is it told?* libgcc's, when it is loaded: its functions are looked up as
//! weak symbols, so that nothing is asked of a program that has none.

#![allow(unsafe_code)] // Calls the unwinder and reads the rules it points to.

use pointee_model::addr::RunAddr;

// Addresses that are zero where there is no such function.
core::arch::global_asm!(
    ".weak _Unwind_Find_FDE",
    ".section .data.rel.ro.pointee_live,\"aw\",@progbits",
    ".balign 8",
    ".hidden pointee_live_find_fde",
    ".globl pointee_live_find_fde",
    "pointee_live_find_fde: .quad _Unwind_Find_FDE",
    ".text",
);

unsafe extern "C" {
    static pointee_live_find_fde: Option<unsafe extern "C" fn(u64, *mut Bases) -> *const u8>;
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

/// Unwind rules of a stretch of code.
pub(crate) struct Rules {
    pub(crate) start: RunAddr,
    pub(crate) len: u64,
}

pub(crate) fn rules_at(at: RunAddr) -> Option<Rules> {
    // SAFETY: a word of ours.
    let find = unsafe { pointee_live_find_fde }?;
    let mut bases = Bases::default();
    // SAFETY: libgcc's function, with its arguments. It finds nothing, or rules that are loaded.
    let fde = unsafe { find(at.0, &raw mut bases) };
    if fde.is_null() {
        return None;
    }
    // SAFETY: an FDE begins with its length, the way to its CIE, and the range in the CIE's encoding.
    let (cie, range) = unsafe {
        let way = fde.add(4).cast::<u32>().read_unaligned();
        (
            fde.add(4).sub(way as usize),
            fde.add(12).cast::<u32>().read_unaligned(),
        )
    };
    (encoding(cie)? == PC_RELATIVE_4).then_some(Rules {
        start: RunAddr(bases.function),
        len: u64::from(range),
    })
}

/// How addresses are written in the FDEs of this CIE.
fn encoding(cie: *const u8) -> Option<u8> {
    // SAFETY: a loaded CIE: length, 0, version, and what its letters say.
    unsafe {
        let mut letters = cie.add(9);
        if letters.read() != b'z' {
            return None;
        }
        let mut at = letters;
        while at.read() != 0 {
            at = at.add(1);
        }
        at = skip_leb(skip_leb(at.add(1))).add(1); // alignments, return address column
        at = skip_leb(at); // length of what follows
        loop {
            letters = letters.add(1);
            match letters.read() {
                b'R' => return Some(at.read()),
                b'L' => at = at.add(1),
                b'S' | b'B' => {}
                b'P' if at.read() & 0x0f == 0x0b => at = at.add(5),
                _ => return None,
            }
        }
    }
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
