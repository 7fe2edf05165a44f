//! *How do instructions run elsewhere as they ran at home?*
//!
//! ```text
//!   instruction             in the copy, target in reach      target out of reach
//!   ---------------------   -------------------------------   ------------------------------------
//!   no distance in it       the same bytes
//!   RIP-relative operand    the same, displacement re-based   refused
//!   jmp rel8, rel32         jmp rel32                         jmp [rip+0]; .quad target
//!   jcc rel8, rel32         jcc rel32                         jncc over the far jump
//!   loop, jrcxz …           the same to +2; jmp short over a jump to the target, near or far
//!   call rel32              push [home]; jmp target; .quad    push [home]; jmp [rip+8]; .quad, .quad
//!   call r/m                push [home]; jmp r/m; .quad       (RIP-relative r/m: refused)
//! ```
//!
//! **Calls return home.** A displaced call pushes the return address that it had at its old place,
//! so the callee, `backtrace()`, the unwinder and a site-keyed allocation hook all see the
//! original code, and nothing returns into a copy that may have been given back. That only works
//! when the old return address still holds code: the call must be the last of the displaced
//! instructions, else it is [`RelocateError::ReturnIntoPad`]. Its price is a mispredicted return,
//! and that a thread under a hardware shadow stack (Linux ≥ 6.6, opted into by the program) faults.
//!
//! **Jumps into the displaced bytes** go to their copies. To the *end* of the displaced bytes is
//! outside, home. Prefixes of branches are dropped: they are hints, or MPX, which is gone — except
//! for 66, on which the makers of processors disagree, see [`super::decode`].

use pointee_model::addr::RunAddr;

use super::decode::{DecodeError, Flow, Instruction, Map, ModRm, decode};
use super::emit::{EmitError, Emitter};

/// The most instructions that are displaced at once.
pub const MAX_DISPLACED: usize = 16;

/// Why instructions cannot run elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RelocateError {
    /// Bytes that are no instruction, or end amid one.
    Decode(DecodeError),
    /// More than [`MAX_DISPLACED`] instructions.
    TooMany,
    /// The buffer for the copy is too small.
    Full,
    /// A RIP-relative operand is out of reach of the copy.
    OperandOutOfReach,
    /// A call that would return into the displaced bytes.
    ReturnIntoPad,
    /// A call through an address that is computed from the stack pointer, which the pushed
    /// return address moves, and no displacement of the same length makes up for it.
    CallThroughStack,
    /// A branch into the middle of a displaced instruction.
    BranchIntoInstruction,
    /// A form whose meaning depends on the processor, or is only known at its place: `xbegin`, a
    /// far call, a branch with prefix 66, an operand relative to EIP.
    NotRelocatable,
    /// An `int3`: most likely a debugger's breakpoint, not the program's code.
    Breakpoint,
}

impl From<DecodeError> for RelocateError {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

impl From<EmitError> for RelocateError {
    fn from(error: EmitError) -> Self {
        match error {
            EmitError::Full => Self::Full,
            EmitError::OutOfReach => Self::OperandOutOfReach,
        }
    }
}

/// One displaced instruction: where it was and where its copy is, counted from the first byte of
/// the originals and of the copies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Landing {
    /// Its first byte among the originals.
    pub original: u8,
    /// The first byte of what stands for it in the copy.
    pub copy: u8,
    /// It is a call: its copy begins with a push of the return address.
    pub pushes: bool,
}

/// What [`relocate`] has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relocated {
    landings: [Landing; MAX_DISPLACED],
    count: u8,
    /// Bytes of the copy.
    pub len: usize,
    /// Whether control can arrive at the end of the copy, where the caller must jump home.
    pub falls_through: bool,
}

impl Relocated {
    /// The displaced instructions, in order.
    #[must_use]
    pub fn landings(&self) -> &[Landing] {
        &self.landings[..usize::from(self.count)]
    }
}

/// Writes into `copy`, which will lie at `to`, what `code` does at `from`. `code` holds whole
/// instructions, all of which are displaced.
///
/// # Errors
///
/// [`RelocateError`]; the contents of `copy` are then of no use.
pub fn relocate(
    code: &[u8],
    from: RunAddr,
    to: RunAddr,
    copy: &mut [u8],
) -> Result<Relocated, RelocateError> {
    if code.len() > usize::from(u8::MAX) {
        return Err(RelocateError::TooMany);
    }
    let copy_len = copy.len().min(usize::from(u8::MAX));
    let copy = &mut copy[..copy_len];
    let mut relocated = Relocated {
        landings: [Landing::default(); MAX_DISPLACED],
        count: 0,
        len: 0,
        falls_through: true,
    };
    // Twice: the lengths do not depend on where the copies of inner targets lie, so the first
    // round finds the landings, with every inner target taken for the start of the copy.
    for landings_known in [false, true] {
        let known = relocated;
        let home = Home {
            from,
            len: code.len(),
            landings: landings_known.then(|| known.landings()),
            to,
        };
        let mut emitter = Emitter::new(copy, to);
        let mut at = 0;
        let mut count = 0;
        while at < code.len() {
            let rest = &code[at..];
            let instruction = decode(rest)?;
            let slot = relocated
                .landings
                .get_mut(count)
                .ok_or(RelocateError::TooMany)?;
            *slot = Landing {
                original: at as u8,
                copy: emitter.len() as u8,
                pushes: matches!(instruction.flow, Flow::Call(_) | Flow::IndirectCall),
            };
            home.copy(&instruction, rest, at, &mut emitter)?;
            at += usize::from(instruction.len);
            count += 1;
            // A call's copy returns to the original code, never to the end of the copy. Behind a
            // trap its handler may go on.
            relocated.falls_through = match instruction.flow {
                Flow::Call(_) | Flow::IndirectCall => false,
                Flow::Trap => true,
                flow => !flow.ends_block(),
            };
        }
        relocated.count = count as u8;
        relocated.len = emitter.len();
    }
    Ok(relocated)
}

/// Where the copy of one instruction holds what depends on places, counted from the copy's first
/// byte. Whoever moves the copy afterwards corrects these.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Fields {
    /// Four bytes: the distance from their end (and the immediate behind them) to the operand, or to
    /// the target of a direct branch or call.
    pub relative: Option<u8>,
    /// Eight bytes: the address that a displaced call returns to.
    pub absolute: Option<u8>,
}

/// Writes at `emitter` what the single `instruction` does, whose bytes are `bytes`, and which lies
/// at `at`. `destination` is where its copy is to go if it is a direct branch or call, `home` where
/// it is to return to if it is a call.
///
/// All targets have to be near ([`Emitter::is_near`]): the forms, and so the length, are then the
/// same wherever they lie.
///
/// # Errors
///
/// [`RelocateError`]; what was written is then of no use.
pub fn relocate_one(
    instruction: &Instruction,
    bytes: &[u8],
    at: RunAddr,
    destination: RunAddr,
    home: RunAddr,
    emitter: &mut Emitter<'_>,
) -> Result<Fields, RelocateError> {
    let direct = instruction.flow.relative().is_some();
    if direct && instruction.prefixes.short_operand() {
        return Err(RelocateError::NotRelocatable);
    }
    if direct && !emitter.is_near(destination) {
        return Err(RelocateError::OperandOutOfReach);
    }
    let field = |at: u8| Fields {
        relative: Some(at),
        absolute: None,
    };
    match instruction.flow {
        Flow::Jump(_) => {
            emitter.jump(destination)?;
            Ok(field(1))
        }
        Flow::ConditionalJump(_) => {
            emitter.jump_if(instruction.opcode, destination)?;
            Ok(field(2))
        }
        Flow::Loop(r) => {
            copy_loop(&bytes[..usize::from(r.at)], destination, emitter)?;
            Ok(field(r.at + 4))
        }
        Flow::Call(_) => {
            copy_call(destination, home, emitter)?;
            Ok(Fields {
                relative: Some(7),
                absolute: Some(11),
            })
        }
        Flow::IndirectCall => {
            copy_indirect_call(instruction, bytes, at, home, emitter)?;
            Ok(Fields {
                relative: instruction.rip_relative.map(|at| at + 6),
                absolute: Some(6 + instruction.len),
            })
        }
        // The transaction then runs in copies; if it aborts, what it counted there is undone with all else.
        Flow::TransactionBegin(_) => {
            emitter.relative(&[0xc7, 0xf8], destination, 0)?;
            Ok(field(2))
        }
        Flow::Trap if instruction.is(Map::Primary, 0xcc) => Err(RelocateError::Breakpoint),
        Flow::Next | Flow::IndirectJump | Flow::Return | Flow::Trap | Flow::Syscall => {
            copy_rebased(instruction, bytes, at, emitter)?;
            Ok(Fields {
                relative: instruction.rip_relative,
                absolute: None,
            })
        }
    }
}

/// `call r/m` as `jmp r/m`, for a copy that is itself called: the return address is on the stack.
/// Gives where its displacement lies, if that is relative.
///
/// # Errors
///
/// [`RelocateError`].
pub fn call_as_jump(
    instruction: &Instruction,
    bytes: &[u8],
    at: RunAddr,
    emitter: &mut Emitter<'_>,
) -> Result<Option<u8>, RelocateError> {
    let (jump, len) = jump_instead(instruction, bytes)?;
    copy_rebased(instruction, &jump[..len], at, emitter)?;
    Ok(instruction.rip_relative)
}

/// The place that the instructions come from, and where those within it have gone.
struct Home<'l> {
    from: RunAddr,
    len: usize,
    landings: Option<&'l [Landing]>,
    to: RunAddr,
}

impl Home<'_> {
    /// Where a branch to `target` has to go in the copy.
    fn destination(&self, target: RunAddr) -> Result<RunAddr, RelocateError> {
        let offset = target.0.wrapping_sub(self.from.0);
        if offset >= self.len as u64 {
            return Ok(target);
        }
        let Some(landings) = self.landings else {
            return Ok(self.to);
        };
        landings
            .iter()
            .find(|landing| u64::from(landing.original) == offset)
            .map(|landing| self.to.plus(u64::from(landing.copy)))
            .ok_or(RelocateError::BranchIntoInstruction)
    }

    /// Copies `instruction`, the first of `rest`, `offset` bytes into the displaced ones.
    fn copy(
        &self,
        instruction: &Instruction,
        rest: &[u8],
        offset: usize,
        emitter: &mut Emitter<'_>,
    ) -> Result<(), RelocateError> {
        let at = self.from.plus(offset as u64);
        let bytes = &rest[..usize::from(instruction.len)];
        let target = |distance: i32| {
            at.plus(u64::from(instruction.len))
                .plus(i64::from(distance) as u64)
        };
        if instruction.flow.relative().is_some() && instruction.prefixes.short_operand() {
            return Err(RelocateError::NotRelocatable);
        }
        match instruction.flow {
            Flow::Jump(r) => emitter.jump(self.destination(target(r.distance))?)?,
            Flow::ConditionalJump(r) => {
                let target = self.destination(target(r.distance))?;
                emitter.jump_if(instruction.opcode, target)?;
            }
            Flow::Loop(r) => {
                let target = self.destination(target(r.distance))?;
                copy_loop(&bytes[..usize::from(r.at)], target, emitter)?;
            }
            Flow::Call(r) => {
                let target = target(r.distance);
                let inside = target.0.wrapping_sub(self.from.0);
                if inside != 0 && inside < self.len as u64 {
                    return Err(RelocateError::BranchIntoInstruction);
                }
                copy_call(target, self.return_home(instruction, offset)?, emitter)?;
            }
            Flow::IndirectCall => {
                let home = self.return_home(instruction, offset)?;
                copy_indirect_call(instruction, bytes, at, home, emitter)?;
            }
            Flow::TransactionBegin(_) => return Err(RelocateError::NotRelocatable),
            Flow::Trap if instruction.is(Map::Primary, 0xcc) => {
                return Err(RelocateError::Breakpoint);
            }
            Flow::Next | Flow::IndirectJump | Flow::Return | Flow::Trap | Flow::Syscall => {
                copy_rebased(instruction, bytes, at, emitter)?
            }
        }
        Ok(())
    }

    /// The return address of a displaced call.
    fn return_home(
        &self,
        instruction: &Instruction,
        offset: usize,
    ) -> Result<RunAddr, RelocateError> {
        let end = offset + usize::from(instruction.len);
        if end < self.len {
            return Err(RelocateError::ReturnIntoPad);
        }
        Ok(self.from.plus(end as u64))
    }
}

/// `loop`, `jrcxz` and kin, whose bytes before the distance are `head`.
fn copy_loop(head: &[u8], target: RunAddr, emitter: &mut Emitter<'_>) -> Result<(), RelocateError> {
    emitter.bytes(head)?;
    emitter.bytes(&[2, 0xeb, emitter.jump_len(target) as u8])?;
    Ok(emitter.jump(target)?)
}

/// `call target` as a push of `home` and `jmp target`.
fn copy_call(
    target: RunAddr,
    home: RunAddr,
    emitter: &mut Emitter<'_>,
) -> Result<(), RelocateError> {
    emitter.push_from(emitter.jump_len(target))?;
    emitter.jump(target)?;
    emitter.bytes(&home.0.to_le_bytes())?;
    Ok(())
}

/// `bytes` with the displacement of a RIP-relative operand re-based.
fn copy_rebased(
    instruction: &Instruction,
    bytes: &[u8],
    at: RunAddr,
    emitter: &mut Emitter<'_>,
) -> Result<(), RelocateError> {
    let (Some(field), Some(offset)) = (instruction.rip_relative, instruction.rip_offset()) else {
        return Ok(emitter.bytes(bytes)?);
    };
    // Relative to EIP, the operand lies in the low 4 GiB, wherever the code does.
    if instruction.prefixes.address_size {
        return Err(RelocateError::NotRelocatable);
    }
    let (head, tail) = bytes.split_at(usize::from(field));
    let tail = tail.get(4..).unwrap_or_default();
    emitter.relative(head, at.plus(offset as u64), tail.len())?;
    Ok(emitter.bytes(tail)?)
}

/// `call r/m` as a push of `home` and `jmp r/m`.
fn copy_indirect_call(
    instruction: &Instruction,
    bytes: &[u8],
    at: RunAddr,
    home: RunAddr,
    emitter: &mut Emitter<'_>,
) -> Result<(), RelocateError> {
    let (jump, len) = jump_instead(instruction, bytes)?;
    emitter.push_from(len)?;
    copy_rebased(instruction, &jump[..len], at, emitter)?;
    Ok(emitter.bytes(&home.0.to_le_bytes())?)
}

/// The `call r/m` with opcode extension 4 in place of 2, and its length.
fn jump_instead(
    instruction: &Instruction,
    bytes: &[u8],
) -> Result<([u8; super::MAX_INSTRUCTION_LEN], usize), RelocateError> {
    let modrm = instruction.modrm.unwrap_or(ModRm(0));
    if modrm.reg() != 2 || instruction.prefixes.short_operand() {
        return Err(RelocateError::NotRelocatable);
    }
    let extended = instruction.prefixes.rex & 1 != 0;
    let base = match (modrm.mode(), instruction.sib) {
        (3, _) => modrm.rm(),
        (_, Some(sib)) => sib & 7,
        _ => 0,
    };
    let mut jump = [0; super::MAX_INSTRUCTION_LEN];
    jump[..bytes.len()].copy_from_slice(bytes);
    if base == 4 && !extended {
        // The return address is on the stack already: what lies there is eight bytes further.
        let at = usize::from(instruction.opcode_at) + 3;
        let moved = match (modrm.mode(), bytes.get(at..)) {
            (1, Some([near])) => {
                let near = near.cast_signed().checked_add(8);
                near.map(|near| jump[at] = near.cast_unsigned())
            }
            (2, Some(far)) => far.try_into().ok().and_then(|far| {
                let far = i32::from_le_bytes(far).checked_add(8)?;
                jump.get_mut(at..at + 4)?
                    .copy_from_slice(&far.to_le_bytes());
                Some(())
            }),
            _ => None,
        };
        moved.ok_or(RelocateError::CallThroughStack)?;
    }
    if let Some(byte) = jump.get_mut(usize::from(instruction.opcode_at) + 1) {
        *byte = (modrm.0 & !0x38) | 4 << 3;
    }
    Ok((jump, bytes.len()))
}
