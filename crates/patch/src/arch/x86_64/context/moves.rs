//! *How are registers and flags moved to the stack and back?* No flag changes but by what restores them, and no register but as each says.
//!
//! Flags are kept by `lahf` and `seto`, 0.8 ns here, rather than by `pushfq` and `popfq`, 4.8 ns; those keep the direction flag too, and are
//! used where that is not known to be clear.

use super::super::emit::{EmitError, Emitter};

/// `lahf; seto al`: in `rax`, without changing what it keeps.
pub(super) fn save_flags(emitter: &mut Emitter<'_>) -> Result<(), EmitError> {
    emitter.bytes(&[0x9f, 0x0f, 0x90, 0xc0])
}

/// `add al, 127; sahf`: the sum overflows if the flag was set.
pub(super) fn restore_flags(emitter: &mut Emitter<'_>) -> Result<(), EmitError> {
    emitter.bytes(&[0x04, 0x7f, 0x9e])
}

/// `lea rsp, [rsp + by]`, which changes no flag.
pub(super) fn move_stack(emitter: &mut Emitter<'_>, by: i32) -> Result<(), EmitError> {
    emitter.bytes(&[0x48, 0x8d])?;
    stack_operand(emitter, 4, by)
}

/// ModRM, SIB and displacement of `[rsp + offset]` with `reg`.
pub(super) fn stack_operand(
    emitter: &mut Emitter<'_>,
    reg: u8,
    offset: i32,
) -> Result<(), EmitError> {
    let reg = (reg & 7) << 3 | 4;
    match i8::try_from(offset) {
        Ok(short) => emitter.bytes(&[0x40 | reg, 0x24, short as u8]),
        Err(_) => long_operand(emitter, reg, offset),
    }
}

/// The same, always with four bytes: a shorter one is scaled under EVEX.
pub(super) fn long_operand(
    emitter: &mut Emitter<'_>,
    reg: u8,
    offset: i32,
) -> Result<(), EmitError> {
    emitter.bytes(&[0x80 | reg, 0x24])?;
    emitter.bytes(&offset.to_le_bytes())
}

/// `mov [rsp + offset], register`.
pub(super) fn store(emitter: &mut Emitter<'_>, register: u8, offset: i32) -> Result<(), EmitError> {
    emitter.bytes(&[0x48 | (register >> 3) << 2, 0x89])?;
    stack_operand(emitter, register, offset)
}

/// `mov register, [rsp + offset]`.
pub(super) fn load(emitter: &mut Emitter<'_>, register: u8, offset: i32) -> Result<(), EmitError> {
    emitter.bytes(&[0x48 | (register >> 3) << 2, 0x8b])?;
    stack_operand(emitter, register, offset)
}

/// `mov register, value`, in the shortest form.
pub(super) fn constant(
    emitter: &mut Emitter<'_>,
    register: u8,
    value: u64,
) -> Result<(), EmitError> {
    match u32::try_from(value) {
        Ok(short) => {
            emitter.bytes(&[0xb8 | register])?;
            emitter.bytes(&short.to_le_bytes())
        }
        Err(_) => {
            emitter.bytes(&[0x48, 0xb8 | register])?;
            emitter.bytes(&value.to_le_bytes())
        }
    }
}
