//! *What do we know of x86-64 code?* Long mode only: the 16- and 32-bit modes are another
//! instruction set, and nothing here reads them.

pub mod context;
pub mod decode;
pub mod emit;
pub mod instruction;
pub mod liveness;
mod opcode_tables;
pub mod relocate;
pub mod stores;
pub mod sweep;

use super::{Architecture, Decoded};
use pointee_model::addr::RunAddr;

/// x86-64, as planning sees it.
#[derive(Debug, Clone, Copy)]
pub struct X86_64;

/// Bytes of a launch pad: `jmp rel32`.
pub const PAD_LEN: usize = 5;

/// The longest instruction the processor accepts (Intel SDM vol. 2, 2.3.11).
pub const MAX_INSTRUCTION_LEN: usize = 15;

/// `endbr64`: the landing mark of indirect branches. It must stay the first thing at its address.
pub const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

impl Architecture for X86_64 {
    type Instruction = instruction::Instruction;
    type Pad = [u8; PAD_LEN];
    type Relocated = relocate::Relocated;
    type RelocateError = relocate::RelocateError;

    const PAD_LEN: usize = PAD_LEN;
    const LANDING_MARK: &'static [u8] = &ENDBR64;

    fn pad(at: RunAddr, target: RunAddr) -> Option<Self::Pad> {
        emit::near_jump(at, target)
    }

    fn relocate(
        code: &[u8],
        from: RunAddr,
        to: RunAddr,
        copy: &mut [u8],
    ) -> Result<Self::Relocated, Self::RelocateError> {
        relocate::relocate(code, from, to, copy)
    }
}

impl Decoded for instruction::Instruction {
    fn decoded(code: &[u8]) -> Option<Self> {
        decode::decode(code).ok()
    }

    fn size(&self) -> usize {
        self.len.into()
    }

    fn target_offset(&self) -> Option<i64> {
        Self::target_offset(self)
    }

    fn is_direct_call(&self) -> bool {
        matches!(self.flow, instruction::Flow::Call(_))
    }

    fn is_indirect_jump(&self) -> bool {
        self.flow == instruction::Flow::IndirectJump
    }

    fn ends_block(&self) -> bool {
        self.flow.ends_block()
    }

    fn is_breakpoint(&self) -> bool {
        self.is(instruction::Map::Primary, 0xcc)
    }

    fn is_padding(&self) -> bool {
        self.is_nop() || self.is_breakpoint()
    }
}
