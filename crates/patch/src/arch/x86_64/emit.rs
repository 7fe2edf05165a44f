//! *How are the few instructions written that we make ourselves?* Jumps in their near and far
//! forms, a pushed constant, the relay. Whatever is written leaves flags and registers alone; only
//! the relay uses one, `r11`.
//!
//! A jump is *near* (`jmp rel32`) when its target is in reach, else *far*: `jmp [rip+0]` with the
//! target in the eight bytes behind it.

use pointee_model::addr::RunAddr;

/// Bytes of `jmp rel32`.
pub const NEAR_JUMP_LEN: usize = 5;

/// Bytes of `jmp [rip+0]` and the address behind it.
pub const FAR_JUMP_LEN: usize = 14;

/// `jmp [rip+0]`.
const FAR_JUMP: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];

/// The most bytes that [`relay`] takes.
pub const RELAY_MAX: usize = 10 + FAR_JUMP_LEN;

/// How far from both ends of the reach of a `rel32` we stay when near or far is decided before the
/// final place of an instruction is known. No piece of code written here is as long.
const REACH_MARGIN: i64 = 4096;

/// The distance that a `rel32` field holds in an instruction that ends at `end`.
#[must_use]
pub fn distance(end: RunAddr, target: RunAddr) -> Option<i32> {
    i32::try_from(target.0.wrapping_sub(end.0) as i64).ok()
}

/// Whether `target` can be reached from all code within a page of `from`.
#[must_use]
pub fn is_near(from: RunAddr, target: RunAddr) -> bool {
    let distance = target.0.wrapping_sub(from.0) as i64;
    let reach = i64::from(i32::MAX) - REACH_MARGIN;
    (-reach..=reach).contains(&distance)
}

/// `jmp rel32` at `at`; `None` when `target` is out of reach.
#[must_use]
pub fn near_jump(at: RunAddr, target: RunAddr) -> Option<[u8; NEAR_JUMP_LEN]> {
    let distance = distance(at.plus(NEAR_JUMP_LEN as u64), target)?;
    let mut bytes = [0xe9, 0, 0, 0, 0];
    bytes[1..].copy_from_slice(&distance.to_le_bytes());
    Some(bytes)
}

/// Why code cannot be written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EmitError {
    /// The buffer is too small.
    Full,
    /// A distance does not fit into 32 bits.
    OutOfReach,
}

/// Writes code into `buffer` that is to run at `base`.
#[derive(Debug)]
pub struct Emitter<'b> {
    buffer: &'b mut [u8],
    base: RunAddr,
    len: usize,
}

impl<'b> Emitter<'b> {
    /// A writer at the start of `buffer`, which will lie at `base`.
    pub fn new(buffer: &'b mut [u8], base: RunAddr) -> Self {
        Self {
            buffer,
            base,
            len: 0,
        }
    }

    /// The bytes written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the next byte will lie.
    #[must_use]
    pub fn here(&self) -> RunAddr {
        self.base.plus(self.len as u64)
    }

    /// Whether jumps from this buffer to `target` are written in the near form. The answer does
    /// not depend on how much was written, so that the length of a jump never does.
    #[must_use]
    pub fn is_near(&self, target: RunAddr) -> bool {
        is_near(self.base, target)
    }

    /// `bytes` as they are.
    ///
    /// # Errors
    ///
    /// [`EmitError::Full`].
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), EmitError> {
        let end = self.len + bytes.len();
        self.buffer
            .get_mut(self.len..end)
            .ok_or(EmitError::Full)?
            .copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// `opcode` and the distance to `target`, with `trailing` more bytes of the instruction to be
    /// written by the caller.
    ///
    /// # Errors
    ///
    /// [`EmitError`].
    pub fn relative(
        &mut self,
        opcode: &[u8],
        target: RunAddr,
        trailing: usize,
    ) -> Result<(), EmitError> {
        let end = self.here().plus((opcode.len() + 4 + trailing) as u64);
        let distance = distance(end, target).ok_or(EmitError::OutOfReach)?;
        self.bytes(opcode)?;
        self.bytes(&distance.to_le_bytes())
    }

    /// `jmp target`, near or far.
    ///
    /// # Errors
    ///
    /// [`EmitError::Full`].
    pub fn jump(&mut self, target: RunAddr) -> Result<(), EmitError> {
        if self.is_near(target) {
            return self.relative(&[0xe9], target, 0);
        }
        self.bytes(&FAR_JUMP)?;
        self.bytes(&target.0.to_le_bytes())
    }

    /// The bytes that [`Self::jump`] takes.
    #[must_use]
    pub fn jump_len(&self, target: RunAddr) -> usize {
        if self.is_near(target) {
            NEAR_JUMP_LEN
        } else {
            FAR_JUMP_LEN
        }
    }

    /// `jcc target`; `condition` is the low nibble of the opcode. Far, it is the opposite short
    /// jump over a far jump.
    ///
    /// # Errors
    ///
    /// [`EmitError::Full`].
    pub fn jump_if(&mut self, condition: u8, target: RunAddr) -> Result<(), EmitError> {
        let condition = condition & 15;
        if self.is_near(target) {
            return self.relative(&[0x0f, 0x80 | condition], target, 0);
        }
        self.bytes(&[0x70 | (condition ^ 1), FAR_JUMP_LEN as u8])?;
        self.jump(target)
    }

    /// `push [rip+…]` of a constant that the caller writes `gap` bytes behind this instruction.
    /// One instruction, so that no signal handler finds half of the constant on the stack.
    ///
    /// # Errors
    ///
    /// [`EmitError::Full`].
    pub fn push_from(&mut self, gap: usize) -> Result<(), EmitError> {
        self.bytes(&[0xff, 0x35])?;
        self.bytes(&(gap as u32).to_le_bytes())
    }
}

/// Code of at most `N` bytes, by value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Code<const N: usize> {
    bytes: [u8; N],
    len: u8,
}

impl<const N: usize> Code<N> {
    /// The code that `write` writes, to run at `base`.
    pub(crate) fn emit<E>(
        base: RunAddr,
        write: impl FnOnce(&mut Emitter<'_>) -> Result<(), E>,
    ) -> Result<Self, E> {
        const { assert!(N <= u8::MAX as usize) }
        let mut bytes = [0; N];
        let mut emitter = Emitter::new(&mut bytes, base);
        write(&mut emitter)?;
        let len = emitter.len() as u8; // at most N
        Ok(Self { bytes, len })
    }

    /// `more` must fit.
    fn append(&mut self, more: &[u8]) {
        let len = usize::from(self.len);
        self.bytes[len..len + more.len()].copy_from_slice(more);
        self.len += more.len() as u8;
    }

    /// The code.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl<const N: usize> core::ops::Deref for Code<N> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// The stub between a launch pad and a hook that is shared by many: `mov r11, context`, then a
/// jump to `target`, near or far. To run at `at`.
///
/// `r11` belongs to nobody at a call: it is not saved by the callee and carries no argument (psABI
/// x86-64, 3.2.3; `r10` is the static chain), and the linker's own lazy-binding stubs use it.
#[must_use]
pub fn relay(at: RunAddr, context: u64, target: RunAddr) -> Code<RELAY_MAX> {
    let mut code = Code {
        bytes: [0; RELAY_MAX],
        len: 0,
    };
    code.append(&[0x49, 0xbb]);
    code.append(&context.to_le_bytes());
    match near_jump(at.plus(10), target) {
        Some(jump) => code.append(&jump),
        None => {
            code.append(&FAR_JUMP);
            code.append(&target.0.to_le_bytes());
        }
    }
    code
}
