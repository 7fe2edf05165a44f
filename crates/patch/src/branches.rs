//! *Does a branch go into the middle of a launch pad?*
//!
//! The function's own branches are searched by [`crate::plan_entry`]. That is not always enough:
//! hand-written functions share code (`mempcpy` of glibc jumps behind the first instruction of
//! `memcpy`), and the cold half of a function can jump back to where it was split off. So, where
//! the code around is at hand, have it searched once for all pads of a file:
//! [`find_inward_branches`]. One linear sweep, some ten milliseconds for a libc.
//!
//! Only direct branches are seen.

use pointee_model::addr::RunAddr;

use crate::arch::sweep::{branch_target, sweep};
use crate::arch::{Architecture, Decoded, Native};

const PAD_LEN: usize = Native::PAD_LEN;
type Instruction = <Native as Architecture>::Instruction;

/// The bytes of a launch pad and of the instructions that it displaces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PadSpan {
    /// Its first byte.
    pub at: RunAddr,
    /// The bytes of the displaced instructions.
    pub displaced_len: u8,
}

/// What a branch means to a pad.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// It goes elsewhere, or from one displaced instruction to another, as its copy will.
    None,
    /// A jump to the pad's first byte: the hook takes it for a call.
    Loop,
    /// A call of the pad's first byte, as it should be.
    Call,
    /// It goes behind the pad's first byte, where no instruction begins any more.
    Inward,
}

impl PadSpan {
    /// What the branch `instruction`, which lies at `at`, means to this pad.
    #[must_use]
    pub fn effect(&self, at: RunAddr, instruction: &Instruction) -> Effect {
        match branch_target(at, instruction) {
            Some(target) => self.effect_to(at, target, instruction),
            None => Effect::None,
        }
    }

    fn effect_to(&self, at: RunAddr, target: RunAddr, instruction: &Instruction) -> Effect {
        let into = target.0.wrapping_sub(self.at.0);
        if into >= PAD_LEN as u64 {
            return Effect::None;
        }
        let displaced_len = u64::from(self.displaced_len);
        let displaced = at.0.wrapping_sub(self.at.0) < displaced_len;
        match into {
            0 if instruction.is_direct_call() => Effect::Call,
            _ if displaced && into < displaced_len => Effect::None,
            0 => Effect::Loop,
            _ => Effect::Inward,
        }
    }
}

/// A branch into the middle of a pad.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct InwardBranch {
    /// Where the branch lies.
    pub from: RunAddr,
    /// Where it goes.
    pub target: RunAddr,
    /// The index of the pad.
    pub pad: usize,
}

/// The branches of `code`, which lies at `at`, into the middle of one of `pads`, which are
/// *sorted by address*. `code` is as it was before any of the pads was written.
pub fn find_inward_branches<'a>(
    code: &'a [u8],
    at: RunAddr,
    pads: &'a [PadSpan],
) -> impl Iterator<Item = InwardBranch> + 'a {
    sweep(code, at).filter_map(move |(from, instruction): (_, Instruction)| {
        let target = branch_target(from, &instruction)?;
        let pad = pads
            .partition_point(|pad| pad.at <= target)
            .checked_sub(1)?;
        let inward = pads[pad].effect_to(from, target, &instruction) == Effect::Inward;
        inward.then_some(InwardBranch { from, target, pad })
    })
}
