//! *Which instructions are in this stretch of x86-64 code?* [`crate::arch::sweep`], and what only this architecture has.

use super::instruction::{Flow, Instruction};
pub use crate::arch::sweep::{CodeAddress, branch_target};

/// See [`sweep`].
pub type Sweep<'a, A> = crate::arch::sweep::Sweep<'a, A, Instruction>;

/// The instructions of `code`, each with its address; `base` is that of the first byte.
pub fn sweep<A: CodeAddress>(code: &[u8], base: A) -> Sweep<'_, A> {
    crate::arch::sweep::sweep(code, base)
}

/// The calls of `code`, direct and indirect, each with the address of its first byte.
pub fn find_calls<A: CodeAddress>(code: &[u8], base: A) -> impl Iterator<Item = (A, Instruction)> {
    sweep(code, base)
        .filter(|(_, instruction)| matches!(instruction.flow, Flow::Call(_) | Flow::IndirectCall))
}

/// What the RIP-relative operand of `instruction`, which lies at `at`, refers to.
pub fn rip_target<A: CodeAddress>(at: A, instruction: &Instruction) -> Option<A> {
    instruction
        .rip_offset()
        .map(|offset| at.plus(offset as u64))
}
