//! *What of the processor's state does a function still read behind an instruction?* Whoever puts code there need not
//! save the rest.
//!
//! What is not understood counts as read. Two conventions are offered, for the one thing that a function's code cannot tell:
//! what its callers and callees rely on.
//!
//! | | [`Convention::Psabi`] | [`Convention::Unknown`] |
//! | --- | --- | --- |
//! | flags at calls and returns | dead (psABI x86-64, 3.2.1) | read |
//! | vector registers | those that the function names; where it calls or leaves by a jump, the eight of arguments; the two of results | all |
//! | direction flag | clear, if the function never sets it | read |
//!
//! GCC's `-fipa-ra` breaks the first between functions of one unit: callers rely on what a callee happens to leave alone.
//! For a function that its own unit calls, only [`Convention::Unknown`] is safe.

use super::decode::{Encoding, Flow, Instruction, Map, decode};

/// Which flags are to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Flags {
    /// None is read before it is written.
    Dead,
    /// Carry, parity, adjust, zero, sign and overflow. The direction flag is clear.
    Arithmetic,
    /// The direction flag too.
    All,
}

/// Which vector registers are to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Vectors {
    /// Those of 0 to 15 whose bit is set, in full width. Nobody reads the others, masks or the x87 unit.
    Few(u16),
    /// All that there is.
    All,
}

/// What is read behind an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Live {
    /// Of the flags.
    pub flags: Flags,
    /// Of the vector registers.
    pub vectors: Vectors,
}

/// What callers and callees rely on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Convention {
    /// What the psABI lets them.
    Psabi,
    /// Anything.
    Unknown,
}

/// Registers of results, and of arguments.
const RESULTS: u16 = 0x0003;
const ARGUMENTS: u16 = 0x00ff;
/// How many instructions are followed in search of a write to the flags.
const STEPS: usize = 64;

impl Live {
    /// Everything.
    pub const ALL: Self = Self {
        flags: Flags::All,
        vectors: Vectors::All,
    };

    /// What is read from the instruction on that begins `offset` bytes into the function `body`.
    #[must_use]
    pub fn at(body: &[u8], offset: usize, convention: Convention) -> Self {
        if convention == Convention::Unknown {
            return Self {
                flags: if flags_are_dead(body, offset, convention) {
                    Flags::Dead
                } else {
                    Flags::All
                },
                vectors: Vectors::All,
            };
        }
        let mut named = RESULTS;
        let mut sets_direction = false;
        let mut vectors_known = true;
        let mut at = 0;
        while let Some(rest) = body.get(at..).filter(|rest| !rest.is_empty()) {
            let Ok(instruction) = decode(rest) else {
                return Self::ALL;
            };
            let bytes = &rest[..usize::from(instruction.len)];
            sets_direction |= instruction.is(Map::Primary, 0xfd);
            match named_vectors(&instruction, bytes) {
                Some(more) => named |= more,
                None => vectors_known = false,
            }
            named |= match instruction.flow {
                Flow::Call(_) | Flow::IndirectCall | Flow::IndirectJump | Flow::Syscall => {
                    ARGUMENTS
                }
                Flow::Jump(_) | Flow::ConditionalJump(_) if leaves(&instruction, at, body) => {
                    ARGUMENTS
                }
                _ => 0,
            };
            at += bytes.len();
        }
        Self {
            flags: if sets_direction {
                Flags::All
            } else if flags_are_dead(body, offset, convention) {
                Flags::Dead
            } else {
                Flags::Arithmetic
            },
            vectors: if vectors_known {
                Vectors::Few(named)
            } else {
                Vectors::All
            },
        }
    }
}

fn leaves(instruction: &Instruction, at: usize, body: &[u8]) -> bool {
    let target = instruction.target_offset().map(|offset| at as i64 + offset);
    target.is_none_or(|target| target < 0 || target >= body.len() as i64)
}

/// Whether all arithmetic flags are written before one is read, on the one way from `offset` on.
fn flags_are_dead(body: &[u8], offset: usize, convention: Convention) -> bool {
    let abi = convention == Convention::Psabi;
    let mut at = offset;
    for _ in 0..STEPS {
        let Some(Ok(instruction)) = body.get(at..).map(decode) else {
            return false;
        };
        match instruction.flow {
            Flow::Call(_) | Flow::IndirectCall | Flow::Return | Flow::IndirectJump => return abi,
            Flow::Jump(_) if leaves(&instruction, at, body) => return abi,
            Flow::Jump(_) => {
                let target = instruction.target_offset().map(|offset| at as i64 + offset);
                at = target.map_or(body.len(), |target| target as usize);
                continue;
            }
            Flow::Next => {}
            _ => return false,
        }
        match flags_effect(&instruction) {
            FlagsEffect::Writes => return true,
            FlagsEffect::Keeps => at += usize::from(instruction.len),
            FlagsEffect::Reads => return false,
        }
    }
    false
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FlagsEffect {
    /// All six arithmetic flags, or leaves those undefined that it does not write.
    Writes,
    /// Reads none and leaves at least one as it was.
    Keeps,
    /// Or may.
    Reads,
}

/// Intel SDM 1, appendix A.
fn flags_effect(instruction: &Instruction) -> FlagsEffect {
    use FlagsEffect::{Keeps, Reads, Writes};
    let reg = instruction.modrm.map_or(0, |modrm| modrm.reg());
    let opcode = instruction.opcode;
    // Repeated, it may write nothing; elsewhere the prefix has no meaning that is known here.
    let repeated = instruction.map == Map::Primary && instruction.prefixes.repeat.is_some();
    let string = matches!(opcode, 0xa4 | 0xa5 | 0xaa..=0xad | 0x90);
    if repeated && !string {
        return Reads;
    }
    match (instruction.encoding, instruction.map) {
        (Encoding::Legacy, Map::Primary) => match opcode {
            // adc, sbb
            0x10..=0x15 | 0x18..=0x1d => Reads,
            0x80 | 0x81 | 0x83 if matches!(reg, 2 | 3) => Reads,
            // add, or, and, sub, xor, cmp; test; imul
            0x00..=0x3d if opcode & 7 < 6 => Writes,
            0x80 | 0x81 | 0x83 | 0x84 | 0x85 | 0xa8 | 0xa9 | 0x69 | 0x6b => Writes,
            // test, neg, mul, imul
            0xf6 | 0xf7 if matches!(reg, 0 | 1 | 3 | 4 | 5) => Writes,
            // not; inc, dec; push
            0xf6 | 0xf7 if reg == 2 => Keeps,
            0xfe | 0xff if matches!(reg, 0 | 1) => Keeps,
            0xff if reg == 6 => Keeps,
            // shl, shr, sar, by one
            0xd0 | 0xd1 if reg >= 4 => Writes,
            // by a count that may be zero; rol, ror
            0xc0 | 0xc1 | 0xd0..=0xd3 if !matches!(reg, 2 | 3) => Keeps,
            // push, pop, movsxd, xchg, mov, lea, nop, cdqe, cqo, movs, stos, lods, leave
            0x50..=0x5f | 0x63 | 0x68 | 0x6a | 0x86..=0x8d | 0x8f => Keeps,
            0x90..=0x99 | 0xa4 | 0xa5 | 0xaa..=0xad | 0xb0..=0xbf => Keeps,
            0xc6 | 0xc7 if reg == 0 => Keeps,
            0xc9 => Keeps,
            _ => Reads,
        },
        (Encoding::Legacy | Encoding::Vex, Map::Map0F) => match opcode {
            // ucomis, comis
            0x2e | 0x2f => Writes,
            // moves, conversions, arithmetic of vectors
            0x10..=0x17 | 0x28..=0x2d | 0x51..=0x76 | 0x7c..=0x7f => Keeps,
            0xc2 | 0xc4..=0xc6 | 0xd0..=0xfe => Keeps,
            _ if instruction.encoding == Encoding::Vex => Reads,
            // nop, movzx, movsx, bswap; imul
            0x1f | 0xb6 | 0xb7 | 0xbe | 0xbf | 0xc8..=0xcf => Keeps,
            0x0d | 0x18 => Keeps,
            0xaf => Writes,
            _ => Reads,
        },
        _ => Reads,
    }
}

/// The vector registers below 16 that the instruction may name; `None` when it may name others, masks, or the x87 unit.
fn named_vectors(instruction: &Instruction, bytes: &[u8]) -> Option<u16> {
    let opcode = instruction.opcode;
    match (instruction.encoding, instruction.map) {
        (Encoding::Legacy, Map::Primary) => (!matches!(opcode, 0x9b | 0xd8..=0xdf)).then_some(0),
        (Encoding::Legacy, Map::Map0F) => match opcode {
            // System instructions, nop, prefetch, cmov, jcc, setcc, cpuid, bit tests, movzx and kin, cmpxchg, xadd, movnti, bswap
            0x00..=0x0b | 0x0d | 0x18..=0x1f | 0x30..=0x37 | 0x40..=0x4f | 0x80..=0xad => Some(0),
            0xaf..=0xc1 | 0xc3 | 0xc8..=0xcf => Some(0),
            // Fences; but not what stores or loads the state as a whole.
            0xae => (instruction.modrm?.mode() == 3
                || matches!(instruction.modrm?.reg(), 2 | 3 | 7))
            .then_some(0),
            0xc7 => (instruction.modrm?.mode() == 3 || instruction.modrm?.reg() == 1).then_some(0),
            // MMX registers are the x87 unit's, and so are conversions from and to them.
            0x60..=0x7f | 0xc4 | 0xc5 | 0xd1..=0xff
                if !instruction.prefixes.operand_size && instruction.prefixes.repeat.is_none() =>
            {
                None
            }
            // 3DNow!
            0x0e | 0x0f => None,
            0x2a | 0x2c | 0x2d if instruction.prefixes.repeat.is_none() => None,
            0xd6 if !instruction.prefixes.operand_size => None,
            _ => legacy_operands(instruction),
        },
        (Encoding::Legacy, Map::Map0F38 | Map::Map0F3A) => {
            // Without prefix some of these are of MMX registers; all others have none of them.
            let integer = instruction.map == Map::Map0F38 && opcode >= 0xf0;
            let hash = matches!(opcode, 0xc8..=0xcd);
            (instruction.prefixes.operand_size || integer || hash)
                .then(|| legacy_operands(instruction))?
        }
        (Encoding::Vex, _) => vex_operands(instruction, bytes),
        _ => None,
    }
}

/// Both operands; the rarer ones with a register that is not named have it among the results'.
fn legacy_operands(instruction: &Instruction) -> Option<u16> {
    let modrm = instruction.modrm?;
    let rex = instruction.prefixes.rex;
    let reg = modrm.reg() | (rex & 4) << 1;
    let rm = modrm.rm() | (rex & 1) << 3;
    let rm = if modrm.mode() == 3 { 1 << rm } else { 0 };
    Some(1 << reg | rm)
}

fn vex_operands(instruction: &Instruction, bytes: &[u8]) -> Option<u16> {
    let opcode = instruction.opcode;
    // Behind the prefix's last byte comes the opcode.
    let before = bytes.get(..usize::from(instruction.opcode_at))?;
    let (first, last) = match *before {
        [.., 0xc4, first, last] => (first, last),
        // The short form stands for the bits that it lacks.
        [.., 0xc5, last] => (last | 0x60, last),
        _ => return None,
    };
    match (instruction.map, opcode) {
        // Masks.
        (Map::Map0F, 0x41..=0x4b | 0x90..=0x93 | 0x98 | 0x99) => return None,
        (Map::Map0F3A, 0x30..=0x33) => return None,
        // vzeroupper, vzeroall
        (Map::Map0F, 0x77) => return Some(0),
        // Tiles, and what is newer.
        (Map::Map0F38, 0x49..=0x5e) if !matches!(opcode, 0x50..=0x53 | 0x58..=0x5a) => return None,
        _ => {}
    }
    let modrm = instruction.modrm?;
    let reg = modrm.reg() | (!first >> 4 & 8);
    let rm = modrm.rm() | (!first >> 2 & 8);
    let middle = !last >> 3 & 15;
    let mut named = 1 << reg | 1 << middle;
    match (modrm.mode(), instruction.sib) {
        (3, _) => named |= 1 << rm,
        // The index of a gather.
        (_, Some(sib)) => named |= 1 << (sib >> 3 & 7 | (!first >> 3 & 8)),
        _ => {}
    }
    if instruction.map == Map::Map0F3A {
        named |= 1 << (instruction.immediate?.value as u8 >> 4);
    }
    Some(named)
}
