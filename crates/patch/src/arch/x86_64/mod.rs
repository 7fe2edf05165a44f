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

/// Bytes of a launch pad: `jmp rel32`.
pub const PAD_LEN: usize = 5;

/// The longest instruction the processor accepts (Intel SDM vol. 2, 2.3.11).
pub const MAX_INSTRUCTION_LEN: usize = 15;

/// `endbr64`: the landing mark of indirect branches. It must stay the first thing at its address.
pub const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
