//! *Which instructions are in this stretch of code?* A linear sweep: from the first byte, each
//! instruction after the other. Bytes that do not decode (tables between functions) are stepped
//! over one at a time, so the sweep always ends and finds its feet again after a few instructions.

use core::marker::PhantomData;

use pointee_model::addr::{LinkAddr, RunAddr};

use super::Decoded;

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
pub fn sweep<A: CodeAddress, I: Decoded>(code: &[u8], base: A) -> Sweep<'_, A, I> {
    Sweep {
        code,
        base,
        offset: 0,
        instruction: PhantomData,
    }
}

/// The target of the direct branch `instruction`, which lies at `at`.
pub fn branch_target<A: CodeAddress>(at: A, instruction: &impl Decoded) -> Option<A> {
    instruction
        .target_offset()
        .map(|offset| at.plus(offset as u64))
}

/// See [`sweep`].
#[derive(Clone, Debug)]
pub struct Sweep<'a, A, I> {
    code: &'a [u8],
    base: A,
    offset: usize,
    instruction: PhantomData<I>,
}

impl<A: CodeAddress, I: Decoded> Iterator for Sweep<'_, A, I> {
    type Item = (A, I);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = self.code.get(self.offset..).filter(|r| !r.is_empty())?;
            let at = self.base.plus(self.offset as u64);
            match I::decoded(rest) {
                Some(instruction) => {
                    self.offset += instruction.size();
                    return Some((at, instruction));
                }
                None => self.offset += 1,
            }
        }
    }
}
