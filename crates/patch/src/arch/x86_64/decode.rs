//! *Where does this instruction end, what does it refer to by distance, and where does control go?*
//!
//! That is all that relocation needs to know, so that is all that is decoded: the length, the
//! operand bytes that are relative to the instruction's own address, and the flow. Nothing is
//! allocated, nothing is looked up outside two tables of 256 letters.
//!
//! ```text
//!   [legacy prefixes] [REX] opcode          [ModRM [SIB] [displacement]] [immediate]
//!   C5 xx | C4 xx xx | 62 xx xx xx  opcode   ModRM [SIB] [displacement]  [immediate]
//!   8F xx xx (XOP)                  opcode   ModRM [SIB] [displacement]  [immediate]
//! ```
//!
//! Rules that are easy to get wrong:
//!
//! - A REX prefix counts only directly before the opcode; a legacy prefix after it cancels it.
//! - Near branches ignore the prefix 66 here, as Intel's processors do in 64-bit mode. AMD's do
//!   not: without REX.W they read a 16-bit distance. Code that has to run on both never holds the
//!   form; relocation refuses it.
//! - `mod = 0, rm = 5` is RIP-relative, whatever REX.B says.
//! - APX (`REX2`, the extended EVEX) and MVEX are errors, not guesses.
//!
//! Undefined instructions of a regular shape may decode: the length is what the processor would
//! have fetched, but that the instruction is defined is not asserted.

use super::MAX_INSTRUCTION_LEN;
pub use super::instruction::{
    DecodeError, Encoding, Field, Flow, Instruction, Map, ModRm, Prefixes, Relative,
};
use super::opcode_tables::{AFTER_0F, PRIMARY, VEX_0F, letter};

/// Decodes the instruction that `code` begins with.
///
/// # Errors
///
/// See [`DecodeError`]; at most [`MAX_INSTRUCTION_LEN`] bytes are looked at.
pub fn decode(code: &[u8]) -> Result<Instruction, DecodeError> {
    let mut bytes = Bytes { code, at: 0 };
    let (prefixes, first) = read_prefixes(&mut bytes)?;
    let opcode = read_opcode(&mut bytes, prefixes, first)?;
    read_operands(&mut bytes, prefixes, opcode)
}

/// A cursor that knows the two ways in which an instruction can run out of bytes.
struct Bytes<'a> {
    code: &'a [u8],
    at: usize,
}

impl Bytes<'_> {
    fn peek(&self) -> Result<u8, DecodeError> {
        if self.at >= MAX_INSTRUCTION_LEN {
            return Err(DecodeError::TooLong);
        }
        self.code
            .get(self.at)
            .copied()
            .ok_or(DecodeError::Truncated)
    }

    fn next(&mut self) -> Result<u8, DecodeError> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    fn here(&self) -> u8 {
        self.at as u8 // at most 15
    }

    /// A little-endian signed number of `len` ≤ 8 bytes; `None` for no bytes.
    fn field(&mut self, len: u8) -> Result<Option<Field>, DecodeError> {
        if len == 0 {
            return Ok(None);
        }
        let at = self.here();
        let mut value = 0_u64;
        for i in 0..len {
            value |= u64::from(self.next()?) << (8 * i);
        }
        let unused = 64 - 8 * u32::from(len);
        let value = ((value << unused) as i64) >> unused;
        Ok(Some(Field { at, len, value }))
    }
}

/// An opcode and the letter that tells what follows it.
struct Opcode {
    encoding: Encoding,
    map: Map,
    byte: u8,
    at: u8,
    letter: u8,
}

/// The legacy prefixes and REX, and the byte behind them.
fn read_prefixes(bytes: &mut Bytes<'_>) -> Result<(Prefixes, u8), DecodeError> {
    let mut prefixes = Prefixes::default();
    loop {
        let byte = bytes.next()?;
        let mut rex = 0;
        match byte {
            0x66 => prefixes.operand_size = true,
            0x67 => prefixes.address_size = true,
            0xf0 => prefixes.lock = true,
            0xf2 | 0xf3 => prefixes.repeat = Some(byte),
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => prefixes.segment = Some(byte),
            0x40..=0x4f => rex = byte,
            _ => return Ok((prefixes, byte)),
        }
        prefixes.rex = rex;
    }
}

fn read_opcode(
    bytes: &mut Bytes<'_>,
    prefixes: Prefixes,
    first: u8,
) -> Result<Opcode, DecodeError> {
    match first {
        0x0f => {}
        0xc4 | 0xc5 | 0x62 => return read_vector_opcode(bytes, prefixes, first),
        // `pop r/m` has 0 in ModRM.reg; a map number of 8 and more makes it XOP (AMD APM 3, 1.2.5).
        0x8f if bytes.peek()? & 0x1f >= 8 => return read_vector_opcode(bytes, prefixes, first),
        byte => return Ok(legacy(bytes, Map::Primary, byte, letter(&PRIMARY, byte))),
    }
    match bytes.next()? {
        0x38 => {
            let byte = bytes.next()?;
            Ok(legacy(bytes, Map::Map0F38, byte, b'm'))
        }
        0x3a => {
            let byte = bytes.next()?;
            Ok(legacy(bytes, Map::Map0F3A, byte, b'M'))
        }
        byte => Ok(legacy(bytes, Map::Map0F, byte, letter(&AFTER_0F, byte))),
    }
}

fn legacy(bytes: &Bytes<'_>, map: Map, byte: u8, letter: u8) -> Opcode {
    let at = bytes.here() - 1;
    Opcode {
        encoding: Encoding::Legacy,
        map,
        byte,
        at,
        letter,
    }
}

/// The rest of a VEX, EVEX or XOP prefix, and the opcode behind it.
fn read_vector_opcode(
    bytes: &mut Bytes<'_>,
    prefixes: Prefixes,
    first: u8,
) -> Result<Opcode, DecodeError> {
    // Each of these prefixes before a vector prefix is #UD (SDM 2, 2.3.2–2.3.4).
    if prefixes.operand_size || prefixes.lock || prefixes.repeat.is_some() || prefixes.rex != 0 {
        return Err(DecodeError::Undefined);
    }
    let (encoding, number) = match first {
        0xc5 => {
            bytes.next()?;
            (Encoding::Vex, 1)
        }
        0xc4 | 0x8f => {
            let number = bytes.next()? & 0x1f;
            bytes.next()?;
            let encoding = if first == 0xc4 {
                Encoding::Vex
            } else {
                Encoding::Xop
            };
            (encoding, number)
        }
        _ => {
            let first_payload = bytes.next()?;
            let second_payload = bytes.next()?;
            bytes.next()?;
            // Fixed bits; APX gives them meanings that are not known here.
            if first_payload & 0x08 != 0 || second_payload & 0x04 == 0 {
                return Err(DecodeError::Undefined);
            }
            (Encoding::Evex, first_payload & 7)
        }
    };
    let byte = bytes.next()?;
    let (map, letter) = match (encoding, number) {
        (Encoding::Vex, 1) => (Map::Map0F, letter(&VEX_0F, byte)),
        (Encoding::Evex, 1) if byte == 0x77 => return Err(DecodeError::Undefined),
        (Encoding::Evex, 1) => (Map::Map0F, letter(&VEX_0F, byte)),
        (Encoding::Vex | Encoding::Evex, 2) => (Map::Map0F38, b'm'),
        (Encoding::Vex | Encoding::Evex, 3) => (Map::Map0F3A, b'M'),
        (Encoding::Evex, 5 | 6) => (Map::Numbered(number), b'm'),
        (Encoding::Xop, 8) => (Map::Numbered(number), b'M'),
        (Encoding::Xop, 9) => (Map::Numbered(number), b'm'),
        (Encoding::Xop, 10) => (Map::Numbered(number), b'X'),
        _ => return Err(DecodeError::Undefined),
    };
    Ok(Opcode {
        encoding,
        map,
        byte,
        at: bytes.here() - 1,
        letter,
    })
}

fn read_operands(
    bytes: &mut Bytes<'_>,
    prefixes: Prefixes,
    opcode: Opcode,
) -> Result<Instruction, DecodeError> {
    let mut instruction = Instruction {
        len: 0,
        encoding: opcode.encoding,
        map: opcode.map,
        opcode: opcode.byte,
        opcode_at: opcode.at,
        prefixes,
        modrm: None,
        sib: None,
        displacement: None,
        rip_relative: None,
        immediate: None,
        flow: Flow::Next,
    };
    let word = if prefixes.short_operand() { 2 } else { 4 };
    match opcode.letter {
        b'm' | b'M' | b'Z' | b't' | b'T' | b'q' | b'X' => {
            read_memory_operand(bytes, &mut instruction)?;
        }
        // The mode bits of `mov cr` and `mov dr` are ignored: the operand is a register.
        b'r' => instruction.modrm = Some(ModRm(bytes.next()?)),
        _ => {}
    }
    let has_test_immediate = instruction.modrm.is_some_and(|m| m.reg() < 2);
    let immediate_len = match opcode.letter {
        b'b' | b'M' | b'j' => 1,
        b'w' => 2,
        b'e' => 3,
        b'z' | b'Z' => word,
        b'X' | b'J' => 4,
        b'v' if prefixes.wide() => 8,
        b'v' => word,
        b'o' if prefixes.address_size => 4,
        b'o' => 8,
        b't' if has_test_immediate => 1,
        b'T' if has_test_immediate => word,
        b'q' if prefixes.operand_size || prefixes.repeat == Some(0xf2) => 2,
        b'.' | b'm' | b'r' | b't' | b'T' | b'q' => 0,
        _ => return Err(DecodeError::Undefined),
    };
    instruction.immediate = bytes.field(immediate_len)?;
    instruction.len = bytes.here();
    if opcode.encoding == Encoding::Legacy {
        instruction.flow = flow(&instruction, opcode.letter);
    }
    if instruction.flow.relative().is_some() {
        instruction.immediate = None;
    }
    Ok(instruction)
}

/// ModRM, SIB and displacement (SDM 2, tables 2-2 and 2-3; 2.2.1.6 for RIP-relative).
fn read_memory_operand(
    bytes: &mut Bytes<'_>,
    instruction: &mut Instruction,
) -> Result<(), DecodeError> {
    let modrm = ModRm(bytes.next()?);
    instruction.modrm = Some(modrm);
    if modrm.mode() == 3 {
        return Ok(());
    }
    if modrm.rm() == 4 {
        instruction.sib = Some(bytes.next()?);
    }
    let no_base = modrm.rm() == 5 || instruction.sib.is_some_and(|sib| sib & 7 == 5);
    let len = match modrm.mode() {
        0 if no_base => 4,
        0 => 0,
        1 => 1,
        _ => 4,
    };
    instruction.displacement = bytes.field(len)?;
    if modrm.mode() == 0 && modrm.rm() == 5 {
        instruction.rip_relative = instruction.displacement.map(|field| field.at);
    }
    Ok(())
}

fn flow(instruction: &Instruction, letter: u8) -> Flow {
    let reg = instruction.modrm.map_or(0, ModRm::reg);
    // Branches keep their distance where other instructions have an immediate.
    let relative = |make: fn(Relative) -> Flow| match instruction.immediate {
        Some(field) => make(Relative {
            distance: field.value as i32, // of at most four bytes
            at: field.at,
            width: field.len,
        }),
        None => Flow::Next,
    };
    match (instruction.map, instruction.opcode) {
        (Map::Primary, 0xe8) => relative(Flow::Call),
        (Map::Primary, 0xe9 | 0xeb) => relative(Flow::Jump),
        (Map::Primary, 0xe0..=0xe3) => relative(Flow::Loop),
        (Map::Primary | Map::Map0F, _) if matches!(letter, b'j' | b'J') => {
            relative(Flow::ConditionalJump)
        }
        (Map::Primary, 0xc7) if instruction.modrm == Some(ModRm(0xf8)) => {
            relative(Flow::TransactionBegin)
        }
        (Map::Primary, 0xc2 | 0xc3 | 0xca | 0xcb | 0xcf) | (Map::Map0F, 0x07 | 0x35 | 0xaa) => {
            Flow::Return
        }
        (Map::Primary, 0xcd) if instruction.immediate.is_some_and(|i| i.value as u8 == 0x80) => {
            Flow::Syscall
        }
        (Map::Map0F, 0x01) if is_system_return(instruction) => Flow::Return,
        (Map::Map0F, 0x05 | 0x34) => Flow::Syscall,
        (Map::Primary, 0xcc | 0xcd | 0xf1 | 0xf4) | (Map::Map0F, 0x0b | 0xb9 | 0xff) => Flow::Trap,
        (Map::Primary, 0xff) if matches!(reg, 2 | 3) => Flow::IndirectCall,
        (Map::Primary, 0xff) if matches!(reg, 4 | 5) => Flow::IndirectJump,
        _ => Flow::Next,
    }
}

/// `uiret`, `eretu`, `erets` (SDM 2 and the FRED specification) and AMD's `skinit`.
fn is_system_return(instruction: &Instruction) -> bool {
    let repeat = instruction.prefixes.repeat;
    match instruction.modrm {
        Some(ModRm(0xec)) => repeat == Some(0xf3),
        Some(ModRm(0xca)) => repeat.is_some(),
        Some(ModRm(0xde)) => true,
        _ => false,
    }
}
