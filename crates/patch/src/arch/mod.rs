//! *What differs from one processor to the next?*
//!
//! Each architecture is a folder with the same files: `instruction` (what is known of one),
//! `decode` (bytes → instruction), `relocate` (instructions → the same instructions elsewhere),
//! `emit` (the few forms that we write ourselves), `sweep` (a run of code → its instructions), `liveness` (what later instructions
//! still read), `context` (what is saved around a handler), `stores` (what an instruction writes).
//! Its type says in the words of [`Architecture`] what planning needs: [`crate::plan`] and [`crate::branches`] know no more of
//! it. Whoever writes code of their own (stubs, islands) names the architecture that they write for.

pub mod sweep;
pub mod x86_64;

use core::fmt::Debug;
use pointee_model::addr::RunAddr;

/// The architecture that is planned for.
pub type Native = x86_64::X86_64;

/// What planning asks of an architecture.
pub trait Architecture {
    /// What is known of one instruction.
    type Instruction: Decoded;
    /// The bytes of a launch pad.
    type Pad: AsRef<[u8]> + Copy;
    /// What relocation has done.
    type Relocated;
    /// Why there is no such code elsewhere.
    type RelocateError: Debug;

    /// How many bytes a launch pad has.
    const PAD_LEN: usize;
    /// The instruction that marks where indirect branches may land. It stays the first thing at its address.
    const LANDING_MARK: &'static [u8];

    /// The pad at `at` that leads to `target`; `None` if that is out of its reach.
    fn pad(at: RunAddr, target: RunAddr) -> Option<Self::Pad>;

    /// Writes into `copy`, which will lie at `to`, what the whole instructions `code` do at `from`.
    ///
    /// # Errors
    ///
    /// Why that cannot be; the contents of `copy` are then of no use.
    fn relocate(
        code: &[u8],
        from: RunAddr,
        to: RunAddr,
        copy: &mut [u8],
    ) -> Result<Self::Relocated, Self::RelocateError>;
}

/// What planning asks of an instruction.
pub trait Decoded: Copy {
    /// The first instruction of `code`; `None` if it is none that is known.
    fn decoded(code: &[u8]) -> Option<Self>;

    /// Its bytes, at least one.
    fn size(&self) -> usize;

    /// Where a direct branch goes, counted from the instruction's first byte.
    fn target_offset(&self) -> Option<i64>;

    /// Whether it is a direct call.
    fn is_direct_call(&self) -> bool;

    /// Whether it jumps to where only running tells.
    fn is_indirect_jump(&self) -> bool;

    /// Whether control never arrives at the next instruction.
    fn ends_block(&self) -> bool;

    /// Whether a debugger may have planted it.
    fn is_breakpoint(&self) -> bool;

    /// Whether compilers put it between functions.
    fn is_padding(&self) -> bool;
}
