//! *How are frames unwound that stand in generated code?* Rules in DWARF (`.eh_frame`) for each byte of it, written where the
//! code is.
//!
//! A trampoline holds the first instructions of a function, so its rules are the function's own for those instructions,
//! moved to where the copies lie. They are found through the process's unwinder; where the function has none, its
//! trampoline gets none, and unwinding stops in it as it would have stopped in the function.

use pointee_model::addr::RunAddr;
use pointee_patch::EntryPlan;
use pointee_patch::arch::x86_64::context::{Frame, RBX_AT};

use crate::unwinder::Rules;

/// Room for the rules of one slot, in bytes.
const ROOM: usize = 512;

/// A section `.eh_frame`: one CIE and FDE for each part, and the zero at its end.
#[derive(Clone, Copy)]
pub(crate) struct Frames {
    bytes: [u8; ROOM],
    len: usize,
    /// Something did not fit.
    cut: bool,
}

const DEF_CFA: u8 = 0x0c;
const DEF_CFA_OFFSET: u8 = 0x0e;
const OFFSET: u8 = 0x80;
const ADVANCE: u8 = 0x40;
const ADVANCE_4: u8 = 0x04;
const SET_LOC: u8 = 0x01;
const DEF_CFA_REGISTER: u8 = 0x0d;
const EXPRESSION: u8 = 0x10;
const REMEMBER: u8 = 0x0a;
const RESTORE: u8 = 0x0b;
const RBX: u8 = 3;
const RBP: u8 = 6;
const RSP: u8 = 7;
/// `DW_OP_breg3`: an offset from `rbx`.
const AT_RBX: u8 = 0x73;
const RETURN_ADDRESS: u8 = 16;

/// How the return address is found from the word below the CFA, a thunk's address plus one: it is saved at that address plus
/// the distance that stands 23 bytes behind it. (`DW_CFA_expression` of the return address: `lit8; minus; deref; dup;
/// plus_uconst 23; deref; plus`.)
pub(crate) const THUNK_RULE: [u8; 11] = [
    0x10,
    RETURN_ADDRESS,
    8,
    0x38,
    0x1c,
    0x06,
    0x12,
    0x23,
    23,
    0x06,
    0x22,
];

/// `push [rip+d]`, as a call is copied (`relocate.rs` of `pointee-patch`).
const PUSH_LEN: u64 = 6;

/// As at a function's entry: the return address on top of the stack.
const AT_ENTRY: [u8; 5] = [DEF_CFA, RSP, 8, OFFSET | RETURN_ADDRESS, 1];

/// What a CIE says besides its instructions.
#[derive(Clone, Copy)]
struct Alignments<'a>(&'a [u8]);

/// Code by bytes, data by eight downwards, the return address in its usual column.
const USUAL: Alignments<'static> = Alignments(&[1, 0x78, RETURN_ADDRESS]);

impl Frames {
    pub(crate) const fn empty() -> Self {
        Self {
            bytes: [0; ROOM],
            len: 0,
            cut: false,
        }
    }

    /// Of thunks: the function has returned, everything is as in its caller but the counter.
    pub(crate) fn of_thunks(at: RunAddr, len: u64) -> Self {
        let mut frames = Self::empty();
        frames.part(USUAL, &[DEF_CFA, RSP, 0], at, len, |frames| {
            frames.put(&THUNK_RULE);
            Some(())
        });
        frames
    }

    /// Of a relay alone.
    pub(crate) fn of_relay(at: RunAddr, len: u64) -> Self {
        let mut frames = Self::empty();
        frames.part(USUAL, &AT_ENTRY, at, len, |_| Some(()));
        frames
    }

    /// Of a slot: its relay, of which the first `pushed` bytes push a word if that is not zero, and its trampoline.
    pub(crate) fn of_slot(
        relay: RunAddr,
        relay_len: u64,
        pushed: u8,
        plan: &EntryPlan,
        rules: Option<&Rules>,
    ) -> Self {
        let mut frames = Self::empty();
        frames.part(USUAL, &AT_ENTRY, relay, relay_len, |frames| {
            if pushed != 0 {
                frames.put(&[ADVANCE | pushed, DEF_CFA_OFFSET, 16]);
            }
            Some(())
        });
        let Some(rules) = rules.filter(|rules| rules.start == plan.entry) else {
            return frames;
        };
        let len = plan.trampoline.len() as u64;
        let alignments = Alignments(rules.alignments);
        frames.part(
            alignments,
            rules.initial,
            plan.trampoline_at,
            len,
            |frames| frames.moved(plan, rules),
        );
        frames
    }

    /// Of a probe: what is done, `len` bytes with `frame`, and the displaced instructions behind it.
    pub(crate) fn of_probe(
        at: RunAddr,
        len: u64,
        frame: Option<Frame>,
        plan: &EntryPlan,
        rules: &Rules,
    ) -> Self {
        let mut frames = Self::empty();
        let alignments = Alignments(rules.alignments);
        if len > 0 {
            frames.part(alignments, rules.initial, at, len, |frames| {
                let until = u64::from(plan.pad_offset);
                let cfa = frames.rules_before(rules, until)?;
                match frame {
                    Some(frame) => frames.around_actions(cfa, &frame),
                    None => Some(()),
                }
            });
        }
        let (to, len) = (plan.trampoline_at, plan.trampoline.len() as u64);
        frames.part(alignments, rules.initial, to, len, |frames| {
            frames.moved(plan, rules)
        });
        frames
    }

    /// The function's instructions that hold `until` bytes into it, all at once. The answer: its rule for the CFA, a register and an
    /// offset; the register alone counts where there is an expression.
    fn rules_before(&mut self, rules: &Rules, until: u64) -> Option<(u8, u64)> {
        let mut cfa = (RSP, 8);
        // Prologues and epilogues in the middle of a function nest no deeper.
        let mut remembered = [cfa; 4];
        let mut depth = 0_usize;
        let mut original = 0;
        for (program, initial) in [(rules.initial, true), (rules.program, false)] {
            let mut program = program;
            while let Some((&code, rest)) = program.split_first() {
                let (advance, len) = step(code, rest)?;
                if let Some(delta) = advance {
                    original += delta * u64::from(*rules.alignments.first()?);
                    if original > until {
                        return Some(cfa);
                    }
                } else {
                    match code {
                        DEF_CFA => {
                            let (register, at) = leb(rest, 0)?;
                            cfa = (register as u8, leb(rest, at)?.0);
                        }
                        DEF_CFA_REGISTER => cfa.0 = leb(rest, 0)?.0 as u8,
                        DEF_CFA_OFFSET => cfa.1 = leb(rest, 0)?.0,
                        // An expression: whatever it reads, it is not the stack pointer.
                        0x0f => cfa.0 = RBP,
                        REMEMBER => {
                            *remembered.get_mut(depth)? = cfa;
                            depth += 1;
                        }
                        RESTORE => {
                            depth = depth.checked_sub(1)?;
                            cfa = *remembered.get(depth)?;
                        }
                        _ => {}
                    }
                    if !initial {
                        self.put(program.get(..=len)?);
                    }
                }
                program = rest.get(len..)?;
            }
        }
        Some(cfa)
    }

    /// How the rules change while the stack pointer is moved for what is done, and `rbx` is used.
    fn around_actions(&mut self, (register, offset): (u8, u64), frame: &Frame) -> Option<()> {
        let mut at = 0;
        let mut advance = |frames: &mut Self, to: u16| {
            frames.put(&[ADVANCE_4]);
            frames.put(&u32::from(to - at).to_le_bytes());
            at = to;
        };
        let by_stack = register == RSP;
        if !by_stack && register != RBP {
            return None;
        }
        let moved = offset + u64::from(frame.moved);
        advance(self, frame.begins);
        if by_stack {
            self.put(&[DEF_CFA_OFFSET]);
            self.put_leb(moved);
        }
        if frame.based != 0 {
            self.put(&[REMEMBER]);
            advance(self, frame.based);
            if by_stack {
                self.put(&[DEF_CFA, RBX]);
                self.put_leb(moved);
            }
            self.put(&[EXPRESSION, RBX, 2, AT_RBX, RBX_AT]);
            advance(self, frame.unbased);
            self.put(&[RESTORE]);
        }
        if by_stack {
            advance(self, frame.ends);
            self.put(&[DEF_CFA_OFFSET]);
            self.put_leb(offset);
        }
        Some(())
    }

    fn put_leb(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.put(&[number as u8 | 0x80]);
            number >>= 7;
        }
        self.put(&[number as u8]);
    }

    /// The section; a reader stops at the zero that it ends with.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn put(&mut self, bytes: &[u8]) {
        // Four bytes stay for the zero at the end.
        match self.bytes.get_mut(self.len..self.len + bytes.len()) {
            Some(room) if self.len + bytes.len() + 4 <= ROOM => {
                room.copy_from_slice(bytes);
                self.len += bytes.len();
            }
            _ => self.cut = true,
        }
    }

    /// A CIE with `initial` instructions, an FDE for `len` bytes from `at`, whose own are put by `rest`. Left out when it
    /// does not fit, or `rest` gives up.
    fn part(
        &mut self,
        alignments: Alignments<'_>,
        initial: &[u8],
        at: RunAddr,
        len: u64,
        rest: impl FnOnce(&mut Self) -> Option<()>,
    ) {
        self.len = self.len.saturating_sub(4); // the zero of the part before
        let before = self.len;
        let cie = self.record(|frames, _| {
            frames.put(&[0, 0, 0, 0, 1, 0]); // its mark, version, no letters: addresses are plain
            frames.put(alignments.0);
            frames.put(initial);
            Some(())
        });
        let done = cie.and_then(|cie| {
            self.record(|frames, start| {
                frames.put(&((start + 4 - cie) as u32).to_le_bytes());
                frames.put(&at.0.to_le_bytes());
                frames.put(&len.to_le_bytes());
                rest(frames)
            })
        });
        if done.is_none() || self.cut {
            self.len = before;
            self.cut = false;
        }
        self.len = (self.len + 4).min(ROOM);
        self.bytes[self.len - 4..].fill(0);
    }

    /// A record with its length before it, filled up to a multiple of eight with `nop`. The answer: where it starts.
    fn record(&mut self, fill: impl FnOnce(&mut Self, usize) -> Option<()>) -> Option<usize> {
        let start = self.len;
        self.put(&[0; 4]);
        fill(self, start)?;
        while !self.cut && (self.len - start) % 8 != 4 {
            self.put(&[0]);
        }
        let len = (self.len - start).checked_sub(4)? as u32;
        let field = self.bytes.get_mut(start..start + 4)?;
        field.copy_from_slice(&len.to_le_bytes());
        Some(start)
    }

    /// The function's instructions for the displaced bytes, each put where the copy is that it speaks of.
    fn moved(&mut self, plan: &EntryPlan, rules: &Rules) -> Option<()> {
        let mut copy = 0;
        self.moved_to(plan, rules, &mut copy)?;
        // A call is copied as a push and a jump, at which the frame is larger; it is the last of what is displaced.
        if let Some(call) = plan.landings().last().filter(|landing| landing.pushes) {
            let until = u64::from(plan.pad_offset) + u64::from(call.original);
            let (register, offset) = Self::empty().rules_before(rules, until)?;
            if register == RSP {
                self.advance_to(u64::from(call.copy) + PUSH_LEN, &mut copy);
                self.put(&[DEF_CFA_OFFSET]);
                self.put_leb(offset + 8);
            }
        }
        Some(())
    }

    fn advance_to(&mut self, to: u64, copy: &mut u64) {
        if to > *copy {
            self.put(&[ADVANCE_4]);
            self.put(&((to - *copy) as u32).to_le_bytes());
            *copy = to;
        }
    }

    fn moved_to(&mut self, plan: &EntryPlan, rules: &Rules, copy: &mut u64) -> Option<()> {
        let mut program = rules.program;
        let mut original = 0_u64;
        while let Some((&code, rest)) = program.split_first() {
            let (advance, len) = step(code, rest)?;
            match advance {
                Some(delta) => {
                    original += delta * u64::from(*rules.alignments.first()?);
                    let into = original.saturating_sub(u64::from(plan.pad_offset));
                    let Some(to) = copy_of(plan, into) else {
                        return Some(());
                    };
                    self.advance_to(to, copy);
                }
                None => self.put(program.get(..=len)?),
            }
            program = rest.get(len..)?;
        }
        Some(())
    }
}

/// Where in the trampoline the function is `into` bytes from the pad on; `None` when it never is.
fn copy_of(plan: &EntryPlan, into: u64) -> Option<u64> {
    let landing = plan
        .landings()
        .iter()
        .find(|landing| u64::from(landing.original) >= into);
    if let Some(landing) = landing {
        return Some(u64::from(landing.copy));
    }
    // The jump home, if the function goes on there.
    let home = plan.pad_at().plus(u64::from(plan.displaced_len));
    let is_home = |copy: &u64| {
        let there = plan.original_of(plan.trampoline_at.plus(*copy));
        there.is_some_and(|there| there.at == home)
    };
    let len = plan.trampoline.len() as u64;
    (0..len)
        .find(is_home)
        .filter(|_| into <= u64::from(plan.displaced_len))
}

/// How far the instruction `code` goes on in the function, if it does, and the bytes of its operands.
fn step(code: u8, rest: &[u8]) -> Option<(Option<u64>, usize)> {
    Some(match code {
        SET_LOC => return None,
        code if code & 0xc0 == ADVANCE => (Some(u64::from(code & 0x3f)), 0),
        0x02..=ADVANCE_4 => {
            let len = 1_usize << (code - 2);
            let mut delta = [0; 8];
            delta[..len].copy_from_slice(rest.get(..len)?);
            (Some(u64::from_le_bytes(delta)), len)
        }
        code => (None, operands_len(code, rest)?),
    })
}

/// The unsigned number at `at`, and where the next begins.
fn leb(bytes: &[u8], mut at: usize) -> Option<(u64, usize)> {
    let (mut number, mut shift) = (0_u64, 0);
    loop {
        let byte = *bytes.get(at)?;
        at += 1;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte & 0x80 == 0 {
            return Some((number, at));
        }
    }
}

/// Bytes of the operands of an instruction for frames (DWARF 5, 7.24; the Linux Standard Base for the last).
fn operands_len(code: u8, operands: &[u8]) -> Option<usize> {
    let number = |at: usize| {
        let len = operands
            .get(at..)?
            .iter()
            .position(|byte| byte & 0x80 == 0)?
            + 1;
        Some(at + len)
    };
    let block = |at: usize| {
        let end = number(at)?;
        // Blocks of 128 bytes and more are not met in prologues.
        (end == at + 1).then(|| Some(end + usize::from(*operands.get(at)?)))?
    };
    match code {
        code if code & 0xc0 == OFFSET => number(0),
        code if code & 0xc0 == 0xc0 => Some(0),
        0x00 | 0x0a | 0x0b => Some(0),
        0x06..=0x08 | 0x0d | 0x0e | 0x13 | 0x2e => number(0),
        0x05 | 0x09 | 0x0c | 0x11 | 0x12 | 0x14 | 0x15 => number(number(0)?),
        0x0f => block(0),
        0x10 | 0x16 => block(number(0)?),
        _ => None,
    }
}
