//! *Which instructions are in this stretch of code?* A linear sweep: from the first byte, each
//! instruction after the other. Bytes that do not decode (tables between functions) are stepped
//! over one at a time, so the sweep always ends and finds its feet again after a few instructions.

use pointee_model::addr::{LinkAddr, RunAddr};

use super::decode::{Flow, Instruction, decode};

/// The addresses that code can be said to lie at.
pub trait CodeAddress: Copy {
    /// The address `bytes` further on, wrapping.
    #[must_use]
    fn plus(self, bytes: u64) -> Self;
}

impl CodeAddress for RunAddr {
    fn plus(self, bytes: u64) -> Self {
        self.plus(bytes)
    }
}

impl CodeAddress for LinkAddr {
    fn plus(self, bytes: u64) -> Self {
        self.plus(bytes)
    }
}

/// The instructions of `code`, each with its address; `base` is that of the first byte.
pub fn sweep<A: CodeAddress>(code: &[u8], base: A) -> Sweep<'_, A> {
    Sweep {
        code,
        base,
        offset: 0,
    }
}

/// The calls of `code`, direct and indirect, each with the address of its first byte.
pub fn find_calls<A: CodeAddress>(code: &[u8], base: A) -> impl Iterator<Item = (A, Instruction)> {
    sweep(code, base)
        .filter(|(_, instruction)| matches!(instruction.flow, Flow::Call(_) | Flow::IndirectCall))
}

/// The target of the direct branch `instruction`, which lies at `at`.
pub fn branch_target<A: CodeAddress>(at: A, instruction: &Instruction) -> Option<A> {
    instruction
        .target_offset()
        .map(|offset| at.plus(offset as u64))
}

/// What the RIP-relative operand of `instruction`, which lies at `at`, refers to.
pub fn rip_target<A: CodeAddress>(at: A, instruction: &Instruction) -> Option<A> {
    instruction
        .rip_offset()
        .map(|offset| at.plus(offset as u64))
}

/// See [`sweep`].
#[derive(Clone, Debug)]
pub struct Sweep<'a, A> {
    code: &'a [u8],
    base: A,
    offset: usize,
}

impl<A: CodeAddress> Iterator for Sweep<'_, A> {
    type Item = (A, Instruction);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = self.code.get(self.offset..).filter(|r| !r.is_empty())?;
            let at = self.base.plus(self.offset as u64);
            match decode(rest) {
                Ok(instruction) => {
                    self.offset += usize::from(instruction.len);
                    return Some((at, instruction));
                }
                Err(_) => self.offset += 1,
            }
        }
    }
}
