//! *What is known of one instruction?* Its length, its parts that are numbers, and where control
//! goes after it. No operand is named and no mnemonic: see [`super::decode`] for what is decoded
//! and why. An [`Instruction`] holds no address, all distances are as they stand in the bytes.

/// Why bytes are not an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DecodeError {
    /// The bytes end before the instruction does.
    Truncated,
    /// More than [`super::MAX_INSTRUCTION_LEN`] bytes.
    TooLong,
    /// No instruction of 64-bit mode, or one of an extension that is not known here.
    Undefined,
}

/// The prefix form that an opcode was written in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Encoding {
    /// Legacy prefixes and REX.
    Legacy,
    /// The two- and three-byte VEX prefixes.
    Vex,
    /// The four-byte EVEX prefix.
    Evex,
    /// AMD's XOP prefix.
    Xop,
}

/// Which table of 256 opcodes an opcode byte belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Map {
    /// The one-byte opcodes.
    Primary,
    /// Behind `0F`.
    Map0F,
    /// Behind `0F 38`.
    Map0F38,
    /// Behind `0F 3A`.
    Map0F3A,
    /// Any other, by its number: 5 and 6 under EVEX, 8 to 10 under XOP.
    Numbered(u8),
}

/// The legacy prefixes and REX.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Prefixes {
    /// The REX byte (`40`–`4F`), 0 where there is none or it has no effect.
    pub rex: u8,
    /// `66`.
    pub operand_size: bool,
    /// `67`.
    pub address_size: bool,
    /// `F0`.
    pub lock: bool,
    /// The last of `F2` and `F3`.
    pub repeat: Option<u8>,
    /// The last segment prefix (in 64-bit mode only `64` and `65` have an effect).
    pub segment: Option<u8>,
}

impl Prefixes {
    /// REX.W: the operand has 64 bits, whatever the prefix 66 says.
    #[must_use]
    pub const fn wide(self) -> bool {
        self.rex & 8 != 0
    }

    /// The operand has 16 bits.
    #[must_use]
    pub const fn short_operand(self) -> bool {
        self.operand_size && !self.wide()
    }
}

/// The ModRM byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ModRm(pub u8);

impl ModRm {
    /// Bits 7–6: 3 means that `rm` is a register.
    #[must_use]
    pub const fn mode(self) -> u8 {
        self.0 >> 6
    }

    /// Bits 5–3, without REX.R.
    #[must_use]
    pub const fn reg(self) -> u8 {
        self.0 >> 3 & 7
    }

    /// Bits 2–0, without REX.B.
    #[must_use]
    pub const fn rm(self) -> u8 {
        self.0 & 7
    }
}

/// A number inside an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Field {
    /// Its first byte, counted from the instruction's.
    pub at: u8,
    /// Its bytes. Two immediates (`enter`, `extrq`) are one field.
    pub len: u8,
    /// Its value, sign-extended.
    pub value: i64,
}

/// The distance of a direct branch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Relative {
    /// From the end of the instruction to its target, in bytes.
    pub distance: i32,
    /// Where the distance is stored, counted from the instruction's first byte.
    pub at: u8,
    /// The bytes it takes: 1 or 4, or 2 in an `xbegin`.
    pub width: u8,
}

/// Where control goes after an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Flow {
    /// To the next instruction.
    Next,
    /// `jmp rel`.
    Jump(Relative),
    /// `jcc rel`.
    ConditionalJump(Relative),
    /// `loop`, `loope`, `loopne`, `jrcxz`, `jecxz`: conditional, with no form longer than `rel8`.
    Loop(Relative),
    /// `call rel32`.
    Call(Relative),
    /// `xbegin`: the next instruction, and the target if the transaction aborts.
    TransactionBegin(Relative),
    /// `call` through a register or memory, near or far.
    IndirectCall,
    /// `jmp` through a register or memory, near or far.
    IndirectJump,
    /// `ret`, `iret` and the rarer ends of a handler or of a mode: control goes elsewhere.
    Return,
    /// `int3`, `int1`, `int n`, `ud0`–`ud2`, `hlt`: an exception.
    Trap,
    /// `syscall`, `sysenter`, `int 0x80`: into the kernel and back.
    Syscall,
}

impl Flow {
    /// The distance, of a direct branch of any kind.
    #[must_use]
    pub const fn relative(self) -> Option<Relative> {
        match self {
            Self::Jump(r)
            | Self::ConditionalJump(r)
            | Self::Loop(r)
            | Self::Call(r)
            | Self::TransactionBegin(r) => Some(r),
            _ => None,
        }
    }

    /// Whether control never arrives at the next instruction (it may when a handler or a debugger
    /// steps over a trap).
    #[must_use]
    pub const fn ends_block(self) -> bool {
        matches!(
            self,
            Self::Jump(_) | Self::IndirectJump | Self::Return | Self::Trap
        )
    }
}

/// What is known of one instruction. It holds no address: it is the same wherever it lies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Instruction {
    /// Its bytes, 1 to [`super::MAX_INSTRUCTION_LEN`].
    pub len: u8,
    /// The form of its prefix.
    pub encoding: Encoding,
    /// The table that its opcode is from.
    pub map: Map,
    /// Its opcode byte (of a 3DNow! instruction: `0F`, in [`Map::Map0F`]).
    pub opcode: u8,
    /// Where the opcode byte lies.
    pub opcode_at: u8,
    /// Its legacy prefixes.
    pub prefixes: Prefixes,
    /// Its ModRM byte.
    pub modrm: Option<ModRm>,
    /// Its SIB byte.
    pub sib: Option<u8>,
    /// The displacement of its memory operand (under EVEX a one-byte one is still to be scaled).
    pub displacement: Option<Field>,
    /// Where its four-byte displacement lies, if that counts from the instruction's end.
    pub rip_relative: Option<u8>,
    /// Its immediate. Distances of branches are in [`Self::flow`].
    pub immediate: Option<Field>,
    /// Where control goes.
    pub flow: Flow,
}

impl Instruction {
    /// Whether it is opcode `opcode` of `map`, in the legacy encoding.
    #[must_use]
    pub fn is(&self, map: Map, opcode: u8) -> bool {
        self.encoding == Encoding::Legacy && self.map == map && self.opcode == opcode
    }

    /// The target of a direct branch, counted from the instruction's first byte.
    #[must_use]
    pub fn target_offset(&self) -> Option<i64> {
        let relative = self.flow.relative()?;
        Some(i64::from(self.len) + i64::from(relative.distance))
    }

    /// What a RIP-relative operand refers to, counted from the instruction's first byte.
    #[must_use]
    pub fn rip_offset(&self) -> Option<i64> {
        self.rip_relative?;
        Some(i64::from(self.len) + self.displacement?.value)
    }

    /// Whether it does nothing: `nop` of one or many bytes.
    #[must_use]
    pub fn is_nop(&self) -> bool {
        // `F3 90` is `pause`, `REX.B 90` is `xchg r8, rax`.
        let plain = self.prefixes.repeat != Some(0xf3) && self.prefixes.rex & 1 == 0;
        (self.is(Map::Primary, 0x90) && plain)
            || (self.is(Map::Map0F, 0x1f) && self.modrm.is_some_and(|m| m.reg() == 0))
    }
}
