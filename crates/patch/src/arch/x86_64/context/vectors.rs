//! *How are the vector registers kept that somebody still reads?* Few of them one by one, all by `xsavec`.
//!
//! **Upper halves.** With AVX a handler may change the upper halves even of registers whose lower ones it preserves, so all
//! of a live register is saved. Loading a zero into an upper half would make the processor take it for used, and slow
//! down all SSE code behind it: whether they are all zero is seen from what was saved, and then `vzeroupper` is what restores them.
//! (`xgetbv` would tell too, at 13 ns here; all sixteen registers take 9 to save and restore.)
//!
//! **MXCSR** is written back only if a handler has changed it: `ldmxcsr` takes 5 ns.

use super::super::emit::{EmitError, Emitter};
use super::moves::{constant, long_operand, stack_operand, store};
use super::{Processor, RAX, SAVED_VECTORS_AT, VECTORS_AT, Width};

/// The vector register in which the upper halves of all are added up.
pub(super) const SUM: u16 = 1;
/// Offsets below the vectors' 16 × 64 bytes: MXCSR before and after, and whether an upper half is in use.
const MXCSR_AT: i32 = 1024;
const MXCSR_AFTER: i32 = 1028;
const DIRTY_AT: i32 = 1032;
const FEW_LEN: i32 = 1088;
/// Where the header of an area of `xsave` must be zero (Intel SDM 1, 13.4.2).
const XSAVE_ZERO: core::ops::Range<i32> = 528..576;
const VZEROUPPER: [u8; 3] = [0xc5, 0xf8, 0x77];

/// `mov eax, components; xor edx, edx`.
pub(super) fn components(
    emitter: &mut Emitter<'_>,
    processor: &Processor,
) -> Result<(), EmitError> {
    constant(emitter, RAX, u64::from(processor.xsave_components))?;
    emitter.bytes(&[0x31, 0xd2])
}

/// Sets [`Registers::vectors`](super::Registers::vectors) to the stack pointer, and which they are to `rax`.
fn tell_vectors(emitter: &mut Emitter<'_>) -> Result<(), EmitError> {
    emitter.bytes(&[0x48, 0x89, 0xa3])?; // mov [rbx + …], rsp
    emitter.bytes(&VECTORS_AT.to_le_bytes())?;
    emitter.bytes(&[0x48, 0x89, 0x83])?; // mov [rbx + …], rax
    emitter.bytes(&SAVED_VECTORS_AT.to_le_bytes())
}

/// Makes room of `len` bytes, a multiple of 64, below `rsp`.
fn make_room(emitter: &mut Emitter<'_>, len: i32) -> Result<(), EmitError> {
    emitter.bytes(&[0x48, 0x83, 0xe4, 0xc0])?; // and rsp, -64
    emitter.bytes(&[0x48, 0x81, 0xec])?; // sub rsp, len
    emitter.bytes(&len.to_le_bytes())
}

/// `rax` is 0.
pub(super) fn save_all(emitter: &mut Emitter<'_>, processor: &Processor) -> Result<(), EmitError> {
    make_room(emitter, processor.xsave_len.next_multiple_of(64) as i32)?;
    for at in XSAVE_ZERO.step_by(8) {
        store(emitter, RAX, at)?;
    }
    emitter.bytes(&[0x48, 0xff, 0xc8])?; // dec rax
    tell_vectors(emitter)?;
    components(emitter, processor)?;
    emitter.bytes(&[0x0f, 0xc7, 0x24, 0x24]) // xsavec [rsp]
}

fn numbers(few: u16) -> impl Iterator<Item = u8> {
    (0..16).filter(move |number| few >> number & 1 != 0)
}

/// A move of all of a vector register to or from its place.
fn move_vector(
    emitter: &mut Emitter<'_>,
    number: u8,
    width: Width,
    save: bool,
) -> Result<(), EmitError> {
    let opcode = if save { 0x29 } else { 0x28 };
    let extended = number >= 8;
    match width {
        Width::Sse if extended => emitter.bytes(&[0x44, 0x0f, opcode])?,
        Width::Sse => emitter.bytes(&[0x0f, opcode])?,
        Width::Avx => emitter.bytes(&[0xc5, if extended { 0x7c } else { 0xfc }, opcode])?,
        Width::Avx512 => {
            let first = if extended { 0x71 } else { 0xf1 };
            emitter.bytes(&[0x62, first, 0x7c, 0x48, opcode])?;
        }
    }
    long_operand(emitter, (number & 7) << 3 | 4, i32::from(number) * 64)
}

pub(super) fn save_few(emitter: &mut Emitter<'_>, few: u16, width: Width) -> Result<(), EmitError> {
    make_room(emitter, FEW_LEN)?;
    constant(emitter, RAX, u64::from(few))?;
    tell_vectors(emitter)?;
    for number in numbers(few) {
        move_vector(emitter, number, width, true)?;
    }
    emitter.bytes(&[0x0f, 0xae])?; // stmxcsr
    stack_operand(emitter, 3, MXCSR_AT)?;
    if width == Width::Sse {
        return Ok(());
    }
    // All that are live into register 0, whose lowest 128 bits do not count.
    for number in numbers(few).filter(|number| *number != 0) {
        let rm = 0xc0 | number & 7;
        match width {
            Width::Avx512 => {
                let first = if number >= 8 { 0xd1 } else { 0xf1 };
                emitter.bytes(&[0x62, first, 0xfd, 0x48, 0xeb, rm])?; // vporq zmm0, zmm0, …
            }
            _ if number >= 8 => emitter.bytes(&[0xc4, 0xc1, 0x7c, 0x56, rm])?, // vorps ymm0, ymm0, …
            _ => emitter.bytes(&[0xc5, 0xfc, 0x56, rm])?,
        }
    }
    emitter.bytes(&[0xc4, 0xe3, 0x7d, 0x19, 0xc2, 1])?; // vextractf128 xmm2, ymm0, 1
    if width == Width::Avx512 {
        emitter.bytes(&[0x62, 0xf3, 0xfd, 0x48, 0x1b, 0xc1, 1])?; // vextractf64x4 ymm1, zmm0, 1
        emitter.bytes(&[0xc5, 0xf4, 0x56, 0xd2])?; // vorps ymm2, ymm1, ymm2
    }
    emitter.bytes(&[0xc4, 0xe2, 0x7d, 0x17, 0xd2])?; // vptest ymm2, ymm2
    emitter.bytes(&[0x0f, 0x95])?; // setne [rsp + DIRTY_AT]
    stack_operand(emitter, 0, DIRTY_AT)?;
    emitter.bytes(&VZEROUPPER)
}

pub(super) fn restore_few(
    emitter: &mut Emitter<'_>,
    few: u16,
    width: Width,
) -> Result<(), EmitError> {
    if width == Width::Sse {
        for number in numbers(few) {
            move_vector(emitter, number, width, false)?;
        }
    } else {
        let len = |width: Width| -> u32 {
            let each = |number: u8| match width {
                Width::Sse => 8 + u32::from(number >= 8),
                Width::Avx => 9,
                Width::Avx512 => 11,
            };
            numbers(few).map(each).sum()
        };
        emitter.bytes(&VZEROUPPER)?;
        emitter.bytes(&[0x80])?; // cmp [rsp + DIRTY_AT], 0
        stack_operand(emitter, 7, DIRTY_AT)?;
        emitter.bytes(&[0])?;
        emitter.bytes(&[0x0f, 0x85])?; // jne
        emitter.bytes(&(len(Width::Sse) + 5).to_le_bytes())?;
        for number in numbers(few) {
            move_vector(emitter, number, Width::Sse, false)?;
        }
        emitter.bytes(&[0xe9])?;
        emitter.bytes(&len(width).to_le_bytes())?;
        for number in numbers(few) {
            move_vector(emitter, number, width, false)?;
        }
    }
    emitter.bytes(&[0x0f, 0xae])?; // stmxcsr
    stack_operand(emitter, 3, MXCSR_AFTER)?;
    emitter.bytes(&[0x8b])?; // mov eax, [rsp + MXCSR_AFTER]
    stack_operand(emitter, RAX, MXCSR_AFTER)?;
    emitter.bytes(&[0x3b])?; // cmp eax, [rsp + MXCSR_AT]
    stack_operand(emitter, RAX, MXCSR_AT)?;
    emitter.bytes(&[0x74, 8])?; // je over
    emitter.bytes(&[0x0f, 0xae])?; // ldmxcsr
    stack_operand(emitter, 2, MXCSR_AT)
}
