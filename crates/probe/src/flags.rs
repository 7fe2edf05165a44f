//! *Does anybody read the flags that a counter would change?*
//!
//! `inc` changes OF, SF, ZF, AF and PF, and leaves CF alone. Where all five are written again before
//! they are read, a counter needs nothing saved. That is asked over the whole file: backwards
//! through the blocks until nothing changes.
//!
//! At calls and returns the ABI has no flags (psABI 3.2.1). Hand-written code has its own rules, so
//! calls within the file are followed: into the callee, and back to the return. Calls that leave the
//! file obey the ABI.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register, RflagsBits,
};

use crate::blocks::Blocks;
use crate::code::{Code, Kind};

/// The flags that `inc` changes.
const CHANGED: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::PF;
/// Rounds until what calls and returns carry has settled; what has not by then is live everywhere.
const ROUNDS: usize = 12;

/// What one instruction does to the flags.
#[derive(Clone, Copy, Default)]
struct Effect {
    reads: u8,
    kills: u8,
}

/// Packs the five flags.
fn packed(flags: u32) -> u8 {
    let flags = flags & CHANGED;
    [
        RflagsBits::OF,
        RflagsBits::SF,
        RflagsBits::ZF,
        RflagsBits::AF,
        RflagsBits::PF,
    ]
    .iter()
    .enumerate()
    .fold(0, |all, (at, bit)| all | u8::from(flags & bit != 0) << at)
}

const ALL: u8 = 31;

/// Which flags are live before each instruction.
#[derive(Debug)]
pub(crate) struct Liveness {
    /// One byte an instruction.
    before: Vec<u8>,
}

impl Liveness {
    /// Looks at all of `code`.
    pub(crate) fn of(code: &Code<'_>, blocks: &Blocks) -> Self {
        let effects: Vec<Effect> = code
            .places
            .iter()
            .map(|place| effect(code.bytes(place)))
            .collect();
        let mut before = vec![0u8; code.places.len()];
        // What is live at the returns of each function.
        let mut at_return = vec![0u8; code.functions.len()];
        let mut settled = false;
        for _ in 0..ROUNDS {
            let mut changed = false;
            for at in (0..blocks.all.len()).rev() {
                let block = &blocks.all[at];
                let last = block.last as usize - 1;
                let place = &code.places[last];
                let function = place.function as usize;
                let mut live = match place.kind {
                    Kind::Return => at_return[function],
                    // By the ABI; or, when it stays in the function, it is in `OUTSIDE` blocks that
                    // were made by a compiler, which carries no flags over a jump table.
                    Kind::IndirectJump => {
                        if code.unresolved[function] {
                            ALL
                        } else {
                            at_return[function]
                        }
                    }
                    Kind::IndirectCall | Kind::Trap => 0,
                    Kind::Call => code.find(place.target).map_or(0, |to| before[to]),
                    Kind::Fixed => ALL,
                    _ => 0,
                };
                if !matches!(place.kind, Kind::Call | Kind::IndirectCall) {
                    for to in blocks.successors(code, at) {
                        live |= before[blocks.all[to].first as usize];
                    }
                    let leaves = place.kind == Kind::Jump || place.kind == Kind::ConditionalJump;
                    if leaves
                        && blocks.at(code, place.target).is_none()
                        && code.find(place.target).is_none()
                    {
                        live |= at_return[function];
                    }
                }
                // A call's callee returns with what is live behind the call; a tail call's, with
                // what is live at our own returns.
                if place.target != 0
                    && let Some(to) = code.find(place.target)
                {
                    let callee = code.places[to].function as usize;
                    let returned = match place.kind {
                        Kind::Call => blocks
                            .next(at)
                            .map_or(0, |next| before[blocks.all[next].first as usize]),
                        _ if callee != function => at_return[function],
                        _ => 0,
                    };
                    if at_return[callee] | returned != at_return[callee] {
                        at_return[callee] |= returned;
                        changed = true;
                    }
                }
                for index in (block.first as usize..=last).rev() {
                    let effect = effects[index];
                    live = (live & !effect.kills) | effect.reads;
                    if before[index] | live != before[index] {
                        before[index] |= live;
                        changed = true;
                    }
                    live = before[index];
                }
            }
            if !changed {
                settled = true;
                break;
            }
        }
        if !settled {
            before.fill(ALL);
        }
        Self { before }
    }

    /// Whether a counter before instruction `place` may change the flags.
    pub(crate) fn are_dead(&self, place: usize) -> bool {
        self.before[place] == 0
    }
}

fn effect(bytes: &[u8]) -> Effect {
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    if instruction.is_invalid() {
        return Effect {
            reads: ALL,
            kills: 0,
        };
    }
    let reads = match instruction.mnemonic() {
        // The kernel keeps them, a signal handler's frame holds them: nobody else looks.
        Mnemonic::Syscall => 0,
        _ => packed(instruction.rflags_read()),
    };
    // A count of zero, in a register or for a repetition, leaves the flags as they were.
    let by_register = matches!(
        instruction.mnemonic(),
        Mnemonic::Shl
            | Mnemonic::Sal
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Shld
            | Mnemonic::Shrd
    ) && (0..instruction.op_count()).any(|at| {
        instruction.op_kind(at) == OpKind::Register && instruction.op_register(at) == Register::CL
    });
    let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let kills = if by_register || repeated {
        0
    } else {
        packed(instruction.rflags_modified())
    };
    Effect { reads, kills }
}

/// Whether the instruction can be swapped with a counter: it neither faults nor goes elsewhere, so
/// that nobody can tell.
pub(crate) fn is_plain(bytes: &[u8]) -> bool {
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    let touches_memory = (0..instruction.op_count()).any(|at| {
        !matches!(
            instruction.op_kind(at),
            OpKind::Register
                | OpKind::Immediate8
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        )
    });
    let lea = instruction.mnemonic() == Mnemonic::Lea;
    (!touches_memory || lea)
        && !instruction.is_stack_instruction()
        && !instruction.is_privileged()
        && instruction.flow_control() == FlowControl::Next
        && !matches!(
            instruction.mnemonic(),
            Mnemonic::Div | Mnemonic::Idiv | Mnemonic::Syscall
        )
        && !instruction.is_invalid()
}

/// A general register that the instructions `bytes` overwrite before they read it; `rax` rather
/// than another.
pub(crate) fn dead_register<'b>(bytes: impl Iterator<Item = &'b [u8]>) -> Option<Register> {
    const CANDIDATES: [Register; 9] = [
        Register::RAX,
        Register::RCX,
        Register::RDX,
        Register::RSI,
        Register::RDI,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
    ];
    let mut info = InstructionInfoFactory::new();
    // One bit a candidate: read already, or overwritten unread.
    let (mut read, mut dead) = (0u16, 0u16);
    for bytes in bytes {
        let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        if instruction.is_invalid() || instruction.flow_control() != FlowControl::Next {
            break;
        }
        let mut written = 0;
        for used in info.info(&instruction).used_registers() {
            let full = used.register().full_register();
            let Some(at) = CANDIDATES.iter().position(|candidate| *candidate == full) else {
                continue;
            };
            let whole = used.register().size() >= 4;
            if used.access() == OpAccess::Write && whole {
                written |= 1 << at;
            } else {
                read |= 1 << at;
            }
        }
        dead |= written & !read;
        if dead & 1 != 0 {
            break;
        }
    }
    CANDIDATES
        .iter()
        .enumerate()
        .find(|(at, _)| dead & 1 << at != 0)
        .map(|(_, register)| *register)
}
