//! *Which instructions write to this variable?* Where an allocator or a lock is inlined into its callers, there is no entry to hook: what is
//! left of the function is a store to a global of its, and a probe there sees what is stored.
//!
//! Found are stores by an operand relative to the instruction, as all code for x86-64 that can be loaded anywhere has them. Not found:
//! stores through a pointer to the variable.

use super::decode::{Encoding, Flow, Instruction, Map};
use super::sweep::{CodeAddress, rip_target, sweep};

/// What an instruction stores.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stored {
    /// The general register of this number, as it is before the instruction.
    Register(u8),
    /// A constant.
    Immediate(i64),
    /// A vector register, or something that depends on what was there.
    Other,
}

/// The instructions of `code`, which lies at `base`, that write to bytes from `cell` on, up to `len` of them. Each with where it lies.
pub fn find_stores<A: CodeAddress + PartialOrd + Copy>(
    code: &[u8],
    base: A,
    cell: A,
    len: u64,
) -> impl Iterator<Item = (A, Stored)> {
    let end = cell.plus(len);
    sweep(code, base).filter_map(move |(at, instruction)| {
        let target = rip_target(at, &instruction)?;
        if target < cell || target >= end {
            return None;
        }
        Some((at, stored(&instruction)?))
    })
}

/// What `instruction` writes to its memory operand; `None` if it writes nothing there. Intel SDM 2, appendix A.
#[must_use]
pub fn stored(instruction: &Instruction) -> Option<Stored> {
    let modrm = instruction.modrm.filter(|modrm| modrm.mode() != 3)?;
    let opcode = instruction.opcode;
    let register = Stored::Register(modrm.reg() | (instruction.prefixes.rex & 4) << 1);
    let writes = match (instruction.encoding, instruction.map) {
        (Encoding::Legacy, Map::Primary) => match opcode {
            // mov, xchg
            0x86..=0x89 => return Some(register),
            0xc6 | 0xc7 if modrm.reg() == 0 => {
                return Some(Stored::Immediate(instruction.immediate?.value));
            }
            // add, or, adc, sbb, and, sub, xor
            0x00..=0x37 => opcode & 7 < 2,
            0x80 | 0x81 | 0x83 => modrm.reg() != 7,
            // mov from a segment register, pop, shifts
            0x8c | 0x8f | 0xc0 | 0xc1 | 0xd0..=0xd3 => true,
            // not, neg; inc, dec
            0xf6 | 0xf7 => matches!(modrm.reg(), 2 | 3),
            0xfe | 0xff => modrm.reg() < 2,
            // x87
            0xd9 => matches!(modrm.reg(), 2 | 3 | 6 | 7),
            0xdb => matches!(modrm.reg(), 1..=3 | 7),
            0xdd | 0xdf => matches!(modrm.reg(), 1..=3 | 6 | 7),
            _ => false,
        },
        (Encoding::Legacy, Map::Map0F) => match opcode {
            // movnti
            0xc3 => return Some(register),
            // sldt, str; sgdt, sidt, smsw
            0x00 => modrm.reg() < 2,
            0x01 => matches!(modrm.reg(), 0 | 1 | 4),
            // setcc; bts, btr, btc; shld, shrd; cmpxchg, xadd
            0x90..=0x9f | 0xab | 0xb3 | 0xbb | 0xa4 | 0xa5 | 0xac | 0xad => true,
            0xb0 | 0xb1 | 0xc0 | 0xc1 => true,
            0xba => modrm.reg() > 4,
            // fxsave, stmxcsr, xsave, xsaveopt; cmpxchg16b, xsavec, xsaves
            0xae => {
                matches!(modrm.reg(), 0 | 3 | 4)
                    || modrm.reg() == 6 && !instruction.prefixes.operand_size
            }
            0xc7 => matches!(modrm.reg(), 1 | 4 | 5 | 7),
            _ => vector_store(opcode, instruction.prefixes.repeat == Some(0xf3)),
        },
        // movbe; crc32 has its opcode
        (Encoding::Legacy, Map::Map0F38) => {
            opcode == 0xf1 && instruction.prefixes.repeat != Some(0xf2)
        }
        // pextr, extractps
        (Encoding::Legacy, Map::Map0F3A) => matches!(opcode, 0x14..=0x17),
        _ => return extended(instruction, opcode),
    };
    writes.then_some(Stored::Other)
}

/// Stores of vector registers among the opcodes behind `0F`.
fn vector_store(opcode: u8, repeat: bool) -> bool {
    matches!(
        opcode,
        0x11 | 0x13 | 0x17 | 0x29 | 0x2b | 0x7f | 0xd6 | 0xe7
    ) || opcode == 0x7e && !repeat
}

/// Under VEX and EVEX. `vmovq`, by prefix a load, and the conversions to narrower elements are told by bits of the prefix that are not
/// decoded: they count as stores.
fn extended(instruction: &Instruction, opcode: u8) -> Option<Stored> {
    let evex = instruction.encoding == Encoding::Evex;
    let writes = match instruction.map {
        Map::Map0F => vector_store(opcode, false) || !evex && matches!(opcode, 0x91 | 0xae),
        Map::Map0F38 if evex => {
            matches!(opcode, 0x10..=0x15 | 0x20..=0x25 | 0x30..=0x35 | 0x63 | 0x8a | 0x8b | 0xa0..=0xa3)
        }
        Map::Map0F38 => matches!(opcode, 0x2e | 0x2f | 0x8e),
        Map::Map0F3A => matches!(opcode, 0x14..=0x17 | 0x19 | 0x1b | 0x1d | 0x39 | 0x3b),
        _ => false,
    };
    (writes && instruction.flow == Flow::Next).then_some(Stored::Other)
}
