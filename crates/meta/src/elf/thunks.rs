//! *Which calls and jumps are returns, or lead where a register says?*
//!
//! gcc and clang write returns as jumps to `__x86_return_thunk` and what goes through a register as calls of
//! `__x86_indirect_thunk_rax` and its like, if they are asked to (`-mfunction-return=thunk`, `-mindirect-branch=thunk`): against speculation.
//! The names are the compilers' own. Read as what they stand for, such functions look like all others.

use super::Elf;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};
use std::collections::HashMap;

/// What a thunk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thunk {
    Return,
    /// By its encoding number.
    Through(u8),
}

const RETURN: &str = "__x86_return_thunk";
const THROUGH: &str = "__x86_indirect_thunk_";
/// By encoding number.
const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// The thunk of a name.
fn thunk(name: &str) -> Option<Thunk> {
    if name == RETURN {
        return Some(Thunk::Return);
    }
    let register = name.strip_prefix(THROUGH)?;
    let number = REGISTERS.iter().position(|known| *known == register)?;
    Some(Thunk::Through(number as u8))
}

/// All thunks of a file, by address.
pub(super) fn find(elf: &Elf) -> HashMap<u64, Thunk> {
    let symbols = elf
        .symbols()
        .filter(|symbol| symbol.name.starts_with("__x86_"));
    symbols
        .filter_map(|symbol| Some((symbol.address, thunk(symbol.name)?)))
        .collect()
}

impl Elf {
    /// The instruction that a jump to a thunk, or a call of one, stands for; others stay as they are.
    pub(crate) fn meant(&self, instruction: &mut Instruction) {
        let control = instruction.flow_control();
        if !matches!(
            control,
            FlowControl::UnconditionalBranch | FlowControl::Call
        ) {
            return;
        }
        let thunks = self.thunks.get_or_init(|| find(self));
        if thunks.is_empty() {
            return;
        }
        let is_jump = control == FlowControl::UnconditionalBranch;
        let Some(thunk) = thunks.get(&instruction.near_branch_target()) else {
            return;
        };
        let code: &[u8] = match *thunk {
            Thunk::Return if is_jump => &[0xc3],
            Thunk::Return => return,
            // REX.B for the upper half of the registers; `jmp` and `call` are FF /4 and FF /2 (Intel SDM, volume 2, §2.2.1, §3.2).
            Thunk::Through(number) => &[
                0x40 | number >> 3,
                0xff,
                if is_jump { 0xe0 } else { 0xd0 } | number & 7,
            ],
        };
        let mut meant = Decoder::new(64, code, DecoderOptions::NONE).decode();
        meant.set_len(instruction.len());
        meant.set_ip(instruction.ip());
        *instruction = meant;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let rows = [
            ("__x86_return_thunk", Some(Thunk::Return)),
            ("__x86_indirect_thunk_r12", Some(Thunk::Through(12))),
            ("__x86_indirect_thunk_xmm1", None),
            ("__x86_get_pc_thunk", None),
        ];
        for (name, expect) in rows {
            assert_eq!(thunk(name), expect, "{name}");
        }
    }
}
