//! *Which bytes go where, so that calls of a function arrive at a hook?*
//!
//! Planning is a function from bytes to bytes. It reads the code of one function and answers with
//! an [`EntryPlan`]: the launch pad, the bytes that it overwrites, the trampoline — or with a
//! [`Refusal`]. Nothing is written here, so a plan can be made on another machine than it is used
//! on, from a file as well as from memory.
//!
//! See the crate's documentation for what is refused and why.

mod one_byte;

use core::fmt;

use pointee_model::addr::RunAddr;

use crate::arch::sweep::{branch_target, sweep};
use crate::arch::x86_64::emit::Code;
use crate::arch::x86_64::relocate::{Landing, MAX_DISPLACED, RelocateError};
use crate::arch::{Architecture, Decoded, Native};
use crate::branches::{Effect, PadSpan};

pub use one_byte::{one_byte_jump, plan_one_byte};

const PAD_LEN: usize = Native::PAD_LEN;
const LANDING_MARK: &[u8] = Native::LANDING_MARK;
type Instruction = <Native as Architecture>::Instruction;

/// The most bytes that a trampoline takes. The worst that five bytes can touch: two `loop`s out of
/// reach (18 bytes each in the copy), a third one stretched by prefixes to 15 bytes (31), and a far
/// jump home (14).
pub const TRAMPOLINE_MAX: usize = 81;

/// A function's entry, as it is before it is patched.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its code from the entry on, *and the padding behind it*. It must end before the next thing
    /// that can be entered: padding bytes may become part of the launch pad.
    pub code: &'a [u8],
    /// Where the first byte lies.
    pub at: RunAddr,
    /// The bytes of `code` that are the function's own; `None` when its end is not known, then
    /// all of `code` is searched for branches into the pad.
    pub body_len: Option<usize>,
}

/// Why a function's entry is left alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// It ends before the pad does, and what follows is not padding.
    TooShort,
    /// A branch goes into the middle of the pad.
    InwardBranch,
    /// Bytes that are to be displaced are no instruction known here.
    Undecodable,
    /// The relay is more than 2 GiB away: allocate it nearer.
    RelayOutOfReach,
    /// A displaced instruction refers to data more than 2 GiB from the trampoline.
    OperandOutOfReach,
    /// A displaced call would return into the pad.
    ReturnIntoPad,
    /// A displaced call takes its target from the stack.
    CallThroughStack,
    /// A displaced instruction has no equivalent elsewhere.
    NotRelocatable,
    /// A breakpoint lies in the bytes to be displaced: a debugger was here first.
    Breakpoint,
    /// The pad would cover several instructions, and where the function's indirect jumps or its exceptions arrive is not known.
    UnknownTargets,
    /// No instruction of the function begins there.
    NoInstruction,
}

impl Refusal {
    /// The reason in a few words.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TooShort => "too short for a launch pad",
            Self::InwardBranch => "a branch goes into the launch pad",
            Self::Undecodable => "unknown instruction",
            Self::RelayOutOfReach => "relay out of reach",
            Self::OperandOutOfReach => "operand out of reach of the trampoline",
            Self::ReturnIntoPad => "a call would return into the launch pad",
            Self::CallThroughStack => "a call takes its target from the stack",
            Self::NotRelocatable => "an instruction cannot be relocated",
            Self::Breakpoint => "a breakpoint is planted there",
            Self::UnknownTargets => "unknown jumps might go into the launch pad",
            Self::NoInstruction => "no instruction begins there",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl core::error::Error for Refusal {}

impl From<RelocateError> for Refusal {
    fn from(error: RelocateError) -> Self {
        match error {
            RelocateError::Decode(_) => Self::Undecodable,
            RelocateError::OperandOutOfReach => Self::OperandOutOfReach,
            RelocateError::ReturnIntoPad => Self::ReturnIntoPad,
            RelocateError::CallThroughStack => Self::CallThroughStack,
            RelocateError::BranchIntoInstruction => Self::InwardBranch,
            RelocateError::Breakpoint => Self::Breakpoint,
            RelocateError::TooMany | RelocateError::Full | RelocateError::NotRelocatable => {
                Self::NotRelocatable
            }
        }
    }
}

/// What to write where, so that calls of one function go to a relay and a call of the trampoline
/// does what a call of the function did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryPlan {
    /// The function's entry.
    pub entry: RunAddr,
    /// Where the pad begins, counted from the entry. For a plan of an entry: 4 behind an `endbr64`, else 0.
    pub pad_offset: u32,
    /// The pad: a jump to the relay.
    pub pad: [u8; PAD_LEN],
    /// What lay there before.
    pub original: [u8; PAD_LEN],
    /// The bytes of the displaced instructions, from the pad's first. More than the pad's when the
    /// last of them sticks out of it; fewer when padding follows the end of a short function.
    pub displaced_len: u8,
    /// Where the trampoline must lie.
    pub trampoline_at: RunAddr,
    /// The displaced instructions, relocated, and the jump home behind them.
    pub trampoline: Code<TRAMPOLINE_MAX>,
    /// A jump of the function's own code goes to the pad's first byte: the head of a loop, or a
    /// tail call of itself. The hook sees each of them as one more call.
    pub looped: bool,
    landings: [Landing; MAX_DISPLACED],
    landing_count: u8,
    copies_len: u8,
}

/// Bytes to be written at an address of the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write {
    /// Where the first byte goes.
    pub at: RunAddr,
    /// The bytes.
    pub bytes: [u8; PAD_LEN],
}

impl EntryPlan {
    /// Where the pad goes. The trampoline and the relay must be in place, and executable, before.
    #[must_use]
    pub fn installation(&self) -> Write {
        Write {
            at: self.pad_at(),
            bytes: self.pad,
        }
    }

    /// What undoes [`Self::installation`], byte for byte. The trampoline may only be given back
    /// when no thread is in it and none can return to a hook that calls it.
    #[must_use]
    pub fn removal(&self) -> Write {
        Write {
            at: self.pad_at(),
            bytes: self.original,
        }
    }

    /// The pad's first byte.
    #[must_use]
    pub fn pad_at(&self) -> RunAddr {
        self.entry.plus(u64::from(self.pad_offset))
    }

    fn pad_covers_several(&self) -> bool {
        let inside = |landing: &Landing| (1..PAD_LEN as u8).contains(&landing.original);
        self.landings().iter().any(inside)
    }

    /// The pad, as branches can run into it.
    #[must_use]
    pub fn span(&self) -> PadSpan {
        PadSpan {
            at: self.pad_at(),
            displaced_len: self.displaced_len,
        }
    }

    /// The displaced instructions in order: where each was, counted from the pad, and where its
    /// copy is, counted from the trampoline.
    #[must_use]
    pub fn landings(&self) -> &[Landing] {
        &self.landings[..usize::from(self.landing_count)]
    }

    /// The bytes of the trampoline that stand for displaced instructions. What follows, if anything does, is the jump home.
    #[must_use]
    pub fn copies_len(&self) -> u8 {
        self.copies_len
    }

    /// Where a thread that was stopped at `pc` has to go on once the pad is written: its own
    /// address when it is clear of the pad or at its start, the copy of its instruction when it is
    /// inside. `None`: inside, but at no instruction; it must run on before the pad is written.
    #[must_use]
    pub fn resume_after_installation(&self, pc: RunAddr) -> Option<RunAddr> {
        let offset = pc.0.wrapping_sub(self.pad_at().0);
        if offset == 0 || offset >= PAD_LEN as u64 {
            return Some(pc);
        }
        let landing = self
            .landings()
            .iter()
            .find(|landing| u64::from(landing.original) == offset)?;
        Some(self.trampoline_at.plus(u64::from(landing.copy)))
    }

    /// What a thread at `pc` in the trampoline is doing in terms of the function: for unwinders and
    /// for symbols. `None` outside the trampoline.
    #[must_use]
    pub fn original_of(&self, pc: RunAddr) -> Option<Original> {
        let offset = pc.0.wrapping_sub(self.trampoline_at.0);
        if offset >= self.trampoline.len() as u64 {
            return None;
        }
        if offset >= u64::from(self.copies_len) {
            return Some(Original {
                at: self.pad_at().plus(u64::from(self.displaced_len)),
                return_pushed: false,
            });
        }
        let landing = self
            .landings()
            .iter()
            .rev()
            .find(|landing| u64::from(landing.copy) <= offset)?;
        Some(Original {
            at: self.pad_at().plus(u64::from(landing.original)),
            return_pushed: landing.pushes && offset > u64::from(landing.copy),
        })
    }
}

/// A place in the trampoline, in terms of the function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Original {
    /// The instruction that is about to run, or whose copy of several instructions is under way.
    /// The jump home stands for the instruction that it goes to.
    pub at: RunAddr,
    /// It is a call, and its return address is on the stack already: the frame is eight bytes
    /// larger than the function's unwind rules tell.
    pub return_pushed: bool,
}

/// Plans to send the calls of a function to `relay_at`, with a trampoline at `trampoline_at`.
///
/// # Errors
///
/// [`Refusal`]: the function is better left alone.
pub fn plan_entry(
    entry: &Entry<'_>,
    trampoline_at: RunAddr,
    relay_at: RunAddr,
) -> Result<EntryPlan, Refusal> {
    plan(entry, pad_offset(entry.code), trampoline_at, relay_at)
}

/// An instruction of a function that is known as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The function; its length must be known.
    pub function: Entry<'a>,
    /// Where the instruction begins, counted from the entry.
    pub offset: usize,
    /// Exceptions may be caught in the function.
    pub catches: bool,
}

/// Plans to send control from one instruction of a function to `probe_at`, with the displaced instructions at `trampoline_at`,
/// for code that comes back to these when it is done. At the first instruction that is an `endbr64` it is sent from behind it.
///
/// # Errors
///
/// [`Refusal`]: the function is better left alone.
pub fn plan_instruction(
    place: &Place<'_>,
    trampoline_at: RunAddr,
    probe_at: RunAddr,
) -> Result<EntryPlan, Refusal> {
    let body_len = place.function.body_len.unwrap_or(0);
    let body = place
        .function
        .code
        .get(..body_len)
        .ok_or(Refusal::NoInstruction)?;
    let mut offset = place.offset;
    let mut at = 0;
    let mut unknown = place.catches;
    let mut begins = false;
    while let Some(rest) = body.get(at..).filter(|rest| !rest.is_empty()) {
        let instruction = Instruction::decoded(rest).ok_or(Refusal::Undecodable)?;
        begins |= at == offset;
        unknown |= instruction.is_indirect_jump();
        at += instruction.size();
    }
    if !begins {
        return Err(Refusal::NoInstruction);
    }
    if offset == 0 {
        offset = pad_offset(body);
    }
    let plan = plan(&place.function, offset, trampoline_at, probe_at)?;
    // Where the prologue is nothing but the entry leads there.
    match unknown && plan.pad_covers_several() && offset > LANDING_MARK.len() {
        true => Err(Refusal::UnknownTargets),
        false => Ok(plan),
    }
}

/// Where a pad at the entry of `code` goes.
fn pad_offset(code: &[u8]) -> usize {
    match code.starts_with(LANDING_MARK) {
        true => LANDING_MARK.len(),
        false => 0,
    }
}

fn plan(
    entry: &Entry<'_>,
    pad_offset: usize,
    trampoline_at: RunAddr,
    relay_at: RunAddr,
) -> Result<EntryPlan, Refusal> {
    let body_len = entry
        .body_len
        .unwrap_or(entry.code.len())
        .min(entry.code.len());
    let from_pad = entry.code.get(pad_offset..).ok_or(Refusal::NoInstruction)?;
    let pad_at = entry.at.plus(pad_offset as u64);
    let own_len = body_len.saturating_sub(pad_offset);

    let displaced_len = displaced_len(from_pad, own_len)?;
    let displaced = &from_pad[..displaced_len];
    let mut original = [0; PAD_LEN];
    original.copy_from_slice(from_pad.get(..PAD_LEN).ok_or(Refusal::TooShort)?);
    let span = PadSpan {
        at: pad_at,
        displaced_len: displaced_len as u8, // at most four bytes and an instruction
    };
    let looped = check_branches(&entry.code[..body_len], entry.at, &span)?;
    let pad = Native::pad(pad_at, relay_at).ok_or(Refusal::RelayOutOfReach)?;
    let pads = Pads {
        offset: u32::try_from(pad_offset).map_err(|_| Refusal::NoInstruction)?,
        pad,
        original,
        looped,
    };
    // Of a function shorter than the pad there is no rest: its last instruction leaves it.
    pads.displace(entry.at, displaced, trampoline_at, displaced_len >= PAD_LEN)
}

/// A pad, and what it replaces.
struct Pads {
    offset: u32,
    pad: [u8; PAD_LEN],
    original: [u8; PAD_LEN],
    looped: bool,
}

impl Pads {
    /// The plan for the function at `entry` whose instructions `displaced` lie where the pad goes.
    fn displace(
        self,
        entry: RunAddr,
        displaced: &[u8],
        trampoline_at: RunAddr,
        has_rest: bool,
    ) -> Result<EntryPlan, Refusal> {
        let pad_at = entry.plus(u64::from(self.offset));
        let mut landings = [Landing::default(); MAX_DISPLACED];
        let mut landing_count = 0;
        let mut copies_len = 0;
        let trampoline = Code::emit(trampoline_at, |emitter| {
            let mut copy = [0; TRAMPOLINE_MAX];
            let relocated = Native::relocate(displaced, pad_at, trampoline_at, &mut copy)?;
            let found = relocated.landings();
            landings[..found.len()].copy_from_slice(found);
            landing_count = found.len() as u8; // at most MAX_DISPLACED
            copies_len = relocated.len as u8; // at most TRAMPOLINE_MAX
            emitter.bytes(&copy[..relocated.len])?;
            if relocated.falls_through && has_rest {
                emitter.jump(pad_at.plus(displaced.len() as u64))?;
            }
            Ok::<_, RelocateError>(())
        })?;
        Ok(EntryPlan {
            entry,
            pad_offset: self.offset,
            pad: self.pad,
            original: self.original,
            displaced_len: displaced.len() as u8, // at most four bytes and an instruction
            trampoline_at,
            trampoline,
            looped: self.looped,
            landings,
            landing_count,
            copies_len,
        })
    }
}

/// How many bytes of `code`, which begins where the pad will, have to move: whole instructions
/// until the pad is covered, or until the function ends and padding covers the rest of the pad.
fn displaced_len(code: &[u8], own_len: usize) -> Result<usize, Refusal> {
    let mut at = 0;
    let mut furthest_inner_target = 0;
    while at < PAD_LEN {
        if at >= own_len {
            return Err(Refusal::TooShort);
        }
        let instruction = Instruction::decoded(&code[at..]).ok_or(Refusal::Undecodable)?;
        if instruction.is_breakpoint() {
            return Err(Refusal::Breakpoint);
        }
        if let Some(target) = inner_target(at, &instruction) {
            furthest_inner_target = furthest_inner_target.max(target);
        }
        at += instruction.size();
        let ends = instruction.ends_block() && furthest_inner_target < at;
        if ends && at < PAD_LEN {
            return match is_padding(code, at) {
                true => Ok(at),
                false => Err(Refusal::TooShort),
            };
        }
    }
    // An instruction that sticks out of the function was not one.
    if at > own_len {
        return Err(Refusal::TooShort);
    }
    Ok(at)
}

/// The target of the branch at `at`, if it lies in the pad.
fn inner_target(at: usize, instruction: &Instruction) -> Option<usize> {
    let target = at as i64 + instruction.target_offset()?;
    usize::try_from(target).ok().filter(|&t| t < PAD_LEN)
}

/// Whether only padding lies between `at` and the end of the pad. The last of it may reach further.
fn is_padding(code: &[u8], mut at: usize) -> bool {
    while at < PAD_LEN {
        match code.get(at..).and_then(Instruction::decoded) {
            Some(instruction) if instruction.is_padding() => at += instruction.size(),
            _ => return false,
        }
    }
    true
}

/// Searches the function for branches into the pad. The answer: whether a jump goes to its start.
fn check_branches(body: &[u8], at: RunAddr, pad: &PadSpan) -> Result<bool, Refusal> {
    let mut looped = false;
    for (branch_at, instruction) in sweep::<_, Instruction>(body, at) {
        match pad.effect(branch_at, &instruction) {
            // By way of the landing mark.
            Effect::None if pad.at != at && branch_target(branch_at, &instruction) == Some(at) => {
                looped |= !instruction.is_direct_call();
            }
            Effect::None | Effect::Call => {}
            Effect::Loop => looped = true,
            Effect::Inward => return Err(Refusal::InwardBranch),
        }
    }
    Ok(looped)
}
