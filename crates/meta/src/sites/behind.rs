//! *Which function does an exported one call through a pointer?*
//!
//! Allocators that a program may exchange are called through variables that lead to the usual ones when it starts; of these a stripped file has no
//! names:
//!
//! ```text
//!   PyObject_Malloc:  …                        _PyObject:  0
//!                     mov rax, [_PyObject + 8]             &_PyObject_Malloc   as the file has it, or its relocations
//!                     jmp rax                              …
//! ```

use super::unnamed;
use crate::elf::{Callee, Elf};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use object::elf::EM_X86_64;

/// First byte of the function, and one past its last, that the first pointer leads to that the code of `[start, end)` comes to before it calls or jumps anywhere,
/// whatever its conditions.
pub(crate) fn find(elf: &Elf, start: u64, end: u64) -> Option<(u64, u64)> {
    let code = elf.code_at(start, end.checked_sub(start)? as usize)?;
    let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    if elf.machine() != EM_X86_64 {
        return None;
    }
    let mut entry = None;
    while entry.is_none() && decoder.can_decode() {
        let instruction = decoder.decode();
        entry = pointer_read(&instruction).and_then(|at| initial(elf, at));
        let flow = instruction.flow_control();
        if !matches!(flow, FlowControl::Next | FlowControl::ConditionalBranch) {
            break;
        }
    }
    let mut functions = unnamed::functions(elf).into_iter();
    functions.find(|(start, _)| Some(*start) == entry)
}

/// The variable that an instruction reads a pointer from, to call through it or to have it in a register.
fn pointer_read(instruction: &Instruction) -> Option<u64> {
    let operand = match instruction.code() {
        Code::Mov_r64_rm64 => 1,
        Code::Call_rm64 | Code::Jmp_rm64 => 0,
        _ => return None,
    };
    let is_fixed = instruction.memory_index() == Register::None
        && matches!(instruction.memory_base(), Register::RIP | Register::None)
        && instruction.segment_prefix() == Register::None;
    let is_memory = instruction.op_kind(operand) == OpKind::Memory;
    (is_memory && is_fixed).then(|| instruction.memory_displacement64())
}

/// The code that the variable at `address` leads to when the program starts.
fn initial(elf: &Elf, address: u64) -> Option<u64> {
    let target = match elf.got_target(address) {
        Some(Callee::Local(target)) => target,
        Some(_) => return None,
        None => u64::from_le_bytes(*elf.bytes_from(address)?.first_chunk()?),
    };
    elf.is_code(target).then_some(target)
}
