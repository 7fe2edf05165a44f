//! *Which bytes are overwritten, so that control comes to the copies?*
//!
//! A **displaced** block runs in its copy, off in the island. Of its own bytes only the **pad** at
//! its start is executed any more, and no pad is needed if every way to it is a branch in another
//! copy, because those are sent to the copy directly. Bytes are given away in this order:
//!
//! ```text
//!   state      meaning
//!   KEPT       in use: code that stays, pads
//!   CALL       a call or system call at the end of a displaced block. The copy jumps to it, so that it
//!              returns as it always did; it moves only if a pad needs its bytes
//!   START      the first byte of a pad to be
//!   FREE       dead: displaced code, and padding between functions
//!
//!   pad        needs                           name
//!   E9 rel32   five bytes                      jump (of one instruction), neighbours, padding
//!   E8 rel32   a call of five bytes or more    call: the same call, of the copy instead
//!   EB rel8    two bytes, and five free ones   relay: a jump to a jump
//!              within 128
//!   (none)     a function that is only called  callers: each call or jump to it goes to the copy
//!              and jumped to directly
//! ```
//!
//! First the least is moved: at each point a **window** of just the instructions that the pad
//! covers. Where that fails — a branch goes in, or there is no room — all blocks of the function are
//! displaced: then inner branches are no obstacle, and the bytes between the starts that are
//! entered from outside are free; then those of the functions beside it. What is left stays in place, and then its
//! successors are entered from code in place, and need pads of their own. That is repeated until
//! nothing changes; each round only adds to what stays.

use std::cell::OnceCell;

use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::decode::decode;
use pointee_patch::arch::x86_64::emit::Emitter;
use pointee_patch::arch::x86_64::relocate::relocate_one;
use pointee_patch::arch::x86_64::{ENDBR64, PAD_LEN};

use crate::blocks::Blocks;
use crate::code::{Code, Kind, Place, mark};

/// How an instruction was reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Tactic {
    /// A five-byte jump on one instruction.
    Jump,
    /// A five-byte jump that displaces instructions beside it.
    Neighbours,
    /// A five-byte jump that reaches into padding.
    Padding,
    /// A call that calls the copy.
    Call,
    /// A two-byte jump to a jump near by.
    Relay,
    /// None of its own: control comes to it in copies only.
    Copied,
    /// Nothing is changed at a function's start: all its callers are known, and call the copy.
    Callers,
}

impl Tactic {
    /// All, in order of preference.
    pub const ALL: [Self; 7] = [
        Self::Jump,
        Self::Neighbours,
        Self::Padding,
        Self::Call,
        Self::Relay,
        Self::Copied,
        Self::Callers,
    ];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Jump => "jump",
            Self::Neighbours => "neighbours",
            Self::Padding => "padding",
            Self::Call => "call",
            Self::Relay => "relay",
            Self::Copied => "copied",
            Self::Callers => "callers",
        }
    }
}

/// Why an instruction has no probe.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Refusal {
    /// Fewer than two bytes, or none to relay through.
    NoRoom,
    /// The same, in a function with an indirect jump of unknown targets.
    UnknownJumps,
    /// A branch goes into its middle, or its meaning depends on its place.
    Immovable,
    /// Nothing known leads to it: it may be data.
    Unreached,
}

impl Refusal {
    /// In a few words.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoRoom => "no room for a jump",
            Self::UnknownJumps => "no room for a jump, in a function with unknown jump targets",
            Self::Immovable => "the instruction cannot be moved",
            Self::Unreached => "no known way leads there: it may be data",
        }
    }
}

/// How control comes from a block to its copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pad {
    /// Not at all: by other copies.
    None,
    Near {
        at: u64,
    },
    /// All of a call's bytes: the call is of the copy.
    Call {
        at: u64,
    },
    Short {
        at: u64,
        relay: u64,
    },
    /// All that lead here lead to the copy instead.
    Callers,
}

/// What is moved of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Displaced {
    /// The instructions: first, one past the last.
    pub(crate) first: u32,
    pub(crate) last: u32,
    pub(crate) pad: Pad,
    /// The last of them is a call, or a system call, that stays, and is jumped to.
    pub(crate) last_stays: bool,
}

/// Where everything goes.
#[derive(Debug)]
pub(crate) struct Placement {
    /// For each block.
    pub(crate) displaced: Vec<Option<Displaced>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Choice {
    InPlace,
    /// These instructions.
    Window(u32, u32),
    Whole,
}

const KEPT: u8 = 0;
const FREE: u8 = 1;
const CALL: u8 = 2;
const START: u8 = 3;

/// A round may always leave something; hostile files could make it a long time.
const ROUNDS: usize = 64;
/// How far a short jump goes either way.
const SHORT_REACH: i64 = 127;

/// Places a probe at each instruction with `points`.
pub(crate) fn place(code: &Code<'_>, blocks: &Blocks, points: &[bool], dense: bool) -> Placement {
    let mut work = Work {
        code,
        blocks,
        points,
        choices: vec![Choice::InPlace; blocks.all.len()],
        given_up: vec![false; blocks.all.len()],
        redirected: vec![false; blocks.all.len()],
        callers: OnceCell::new(),
        whole: vec![dense; code.functions.len()],
    };
    let mut rounds = 0;
    loop {
        work.choose();
        let attempt = work.attempt();
        rounds += 1;
        if attempt.failed.is_empty() {
            return Placement {
                displaced: attempt.displaced,
            };
        }
        let whole_before = work.whole.clone();
        for at in attempt.failed {
            let function = code.places[blocks.all[at].first as usize].function as usize;
            if !whole_before[function] && !code.unresolved[function] {
                work.whole[function] = true;
            } else if work.displace_neighbours(function, blocks.all[at].start) {
                // Tried once more, with their bytes.
            } else if !work.redirected[at] && rounds < ROUNDS && work.can_redirect(at) {
                work.redirected[at] = true;
            } else if rounds < ROUNDS {
                work.given_up[at] = true;
            } else {
                let (first, last) = code.spans[function];
                let (first, last) = (
                    blocks.of_place(first as usize),
                    blocks.of_place(last as usize - 1),
                );
                work.given_up[first..=last].fill(true);
            }
        }
    }
}

struct Work<'w, 'e> {
    code: &'w Code<'e>,
    blocks: &'w Blocks,
    points: &'w [bool],
    choices: Vec<Choice>,
    given_up: Vec<bool>,
    redirected: Vec<bool>,
    /// All direct branches and calls: target, source; sorted.
    callers: OnceCell<Vec<(u64, u32)>>,
    /// Functions of which every block is displaced.
    whole: Vec<bool>,
}

struct Attempt {
    displaced: Vec<Option<Displaced>>,
    failed: Vec<usize>,
}

impl Work<'_, '_> {
    /// Displaces the functions beside `function` too, if a short jump from `address` reaches them:
    /// for their bytes. Whether there was one.
    fn displace_neighbours(&mut self, function: usize, address: u64) -> bool {
        let mut any = false;
        let functions = &self.code.functions;
        for beside in [function.wrapping_sub(1), function + 1] {
            let near = functions.get(beside).is_some_and(|beside| {
                let reach = SHORT_REACH as u64;
                beside.start < address + reach && address < beside.end + reach
            });
            if near && !self.whole[beside] && !self.code.unresolved[beside] {
                self.whole[beside] = true;
                any = true;
            }
        }
        any
    }

    /// Whether control comes to block `at` only by branches and calls whose distance can be changed.
    fn can_redirect(&self, at: usize) -> bool {
        let block = &self.blocks.all[at];
        let place = &self.code.places[block.first as usize];
        let (first, _) = self.code.spans[place.function as usize];
        if first != block.first || place.is(mark::POINTED) {
            return false;
        }
        let above = first
            .checked_sub(1)
            .map(|above| &self.code.places[above as usize]);
        let run_into = above.is_some_and(|above| {
            above.end() == place.at && !above.kind.ends_flow() && !above.kind.is_call()
        });
        let callers = self.callers.get_or_init(|| callers(self.code));
        let from = callers.partition_point(|(target, _)| *target < place.at);
        let mut sources = callers[from..]
            .iter()
            .take_while(|(target, _)| *target == place.at);
        !run_into
            && sources.all(|(_, source)| {
                let source = &self.code.places[*source as usize];
                source.kind != Kind::Fixed && usize::from(source.len) >= PAD_LEN
            })
    }

    /// Decides what is moved of each block.
    fn choose(&mut self) {
        for at in 0..self.blocks.all.len() {
            let block = &self.blocks.all[at];
            let function = self.code.places[block.first as usize].function as usize;
            self.choices[at] = if !block.reached || block.fixed || self.given_up[at] {
                Choice::InPlace
            } else if self.whole[function] {
                Choice::Whole
            } else {
                self.window(at)
            };
        }
    }

    /// The least to be moved so that the points of a block get a pad.
    fn window(&self, at: usize) -> Choice {
        let block = self.blocks.all[at];
        let (first, last) = (block.first as usize, block.last as usize);
        let is_point = |place: &usize| self.points[*place];
        let Some(first_point) = (first..last).find(is_point) else {
            return Choice::InPlace;
        };
        let last_point = (first..last).rev().find(is_point).unwrap_or(first_point);
        let places = &self.code.places;
        // A call of five bytes becomes another call.
        if first_point + 1 == last && is_long_call(&places[first_point]) {
            return Choice::Window(first_point as u32, last as u32);
        }
        // Up to the call, if there is one, so that it can stay; else up to the end of the block.
        let ends_with_call = places[last - 1].kind.stays();
        let limits = [places[last - 1].at, block.end];
        for limit in &limits[usize::from(!ends_with_call)..] {
            let from = (first..=first_point)
                .rev()
                .find(|from| self.pad_at(*from) + PAD_LEN as u64 <= *limit);
            if let Some(from) = from {
                let pad_end = self.pad_at(from) + PAD_LEN as u64;
                let to = (from..last)
                    .find(|to| places[*to].end() >= pad_end)
                    .unwrap_or(last - 1);
                return Choice::Window(from as u32, to.max(last_point) as u32 + 1);
            }
        }
        Choice::Window(first_point as u32, last as u32)
    }

    /// Where the pad for copies from instruction `from` on begins: behind an `endbr64`.
    fn pad_at(&self, from: usize) -> u64 {
        let place = &self.code.places[from];
        if place.len == 4 && self.code.bytes(place) == ENDBR64 {
            place.end()
        } else {
            place.at
        }
    }

    /// Whether control can come to each block other than from copies.
    fn entered(&self) -> Vec<bool> {
        let mut entered: Vec<bool> = self.blocks.all.iter().map(|block| block.outside).collect();
        for (at, choice) in self.choices.iter().enumerate() {
            let leaves_in_place = match choice {
                Choice::InPlace => true,
                Choice::Window(_, to) => *to != self.blocks.all[at].last,
                Choice::Whole => false,
            };
            if leaves_in_place {
                for to in self.blocks.successors(self.code, at) {
                    entered[to] = true;
                }
            }
        }
        entered
    }

    fn attempt(&self) -> Attempt {
        let entered = self.entered();
        let mut bytes = Bytes::new(self.code);
        bytes.free_padding(self.code, self.blocks);
        let mut displaced: Vec<Option<Displaced>> = vec![None; self.choices.len()];
        for (at, choice) in self.choices.iter().enumerate() {
            let block = &self.blocks.all[at];
            let (first, last, needs_pad) = match choice {
                Choice::InPlace => continue,
                Choice::Window(from, to) => (*from, *to, true),
                Choice::Whole => (block.first, block.last, entered[at]),
            };
            let places = &self.code.places[first as usize..last as usize];
            let Some(end) = places.last().map(Place::end) else {
                continue;
            };
            bytes.set(places[0].at, end, FREE);
            let last_place = &self.code.places[last as usize - 1];
            if last_place.kind.stays() {
                let state = if can_move(self.code, last_place) {
                    CALL
                } else {
                    KEPT
                };
                bytes.set(last_place.at, last_place.end(), state);
            }
            let pad_at = self.pad_at(first as usize);
            if needs_pad {
                bytes.set(places[0].at, pad_at, KEPT);
                if pad_at < end && bytes.get(pad_at) != KEPT {
                    bytes.set(pad_at, pad_at + 1, START);
                }
            }
            displaced[at] = Some(Displaced {
                first,
                last,
                pad: if needs_pad {
                    Pad::Near { at: pad_at }
                } else {
                    Pad::None
                },
                last_stays: false,
            });
        }
        let mut failed = Vec::new();
        let mut short = Vec::new();
        for (at, slot) in displaced.iter_mut().enumerate() {
            let Some(Displaced {
                first, last, pad, ..
            }) = slot
            else {
                continue;
            };
            let Pad::Near { at: pad_at } = *pad else {
                continue;
            };
            if self.redirected[at] {
                *pad = Pad::Callers;
                let start = self.blocks.all[at].start;
                bytes.set(start, self.blocks.all[at].end, KEPT);
                continue;
            }
            if pad_at >= self.code.places[*last as usize - 1].end() {
                failed.push(at); // An `endbr64` and nothing behind it.
                continue;
            }
            let only = &self.code.places[*first as usize];
            if *last == *first + 1 && is_long_call(only) && can_move(self.code, only) {
                *pad = Pad::Call { at: only.at };
                bytes.set(only.at, only.end(), KEPT);
            } else if bytes.has_room(pad_at, PAD_LEN) {
                bytes.take(pad_at, PAD_LEN);
            } else {
                short.push((at, pad_at));
            }
        }
        for (at, pad_at) in short {
            let relay = bytes
                .has_room(pad_at, 2)
                .then(|| {
                    bytes.take(pad_at, 2);
                    bytes.find_relay(pad_at)
                })
                .flatten();
            match (relay, &mut displaced[at]) {
                (Some(relay), Some(displaced)) => displaced.pad = Pad::Short { at: pad_at, relay },
                _ => failed.push(at),
            }
        }
        for displaced in displaced.iter_mut().flatten() {
            let last = &self.code.places[displaced.last as usize - 1];
            let moved = matches!(displaced.pad, Pad::Call { .. });
            let untouched = bytes.get(last.at) == CALL || !can_move(self.code, last);
            displaced.last_stays = last.kind.stays() && !moved && untouched;
        }
        Attempt { displaced, failed }
    }
}

/// All direct branches and calls of the file: target, source; sorted.
pub(crate) fn callers(code: &Code<'_>) -> Vec<(u64, u32)> {
    let direct = code
        .places
        .iter()
        .enumerate()
        .filter(|(_, place)| place.target != 0);
    let mut callers: Vec<(u64, u32)> = direct
        .map(|(at, place)| (place.target, at as u32))
        .collect();
    callers.sort_unstable();
    callers
}

/// Whether a call's own bytes have room for a `call rel32`.
fn is_long_call(place: &Place) -> bool {
    place.kind.is_call() && usize::from(place.len) >= PAD_LEN
}

/// Whether a call can be made from elsewhere. (All else that is displaced can: see `Kind::Fixed`.)
fn can_move(code: &Code<'_>, place: &Place) -> bool {
    if !place.kind.is_call() {
        return true;
    }
    let mut buffer = [0; 64];
    let at = RunAddr(place.at);
    let mut emitter = Emitter::new(&mut buffer, at);
    decode(code.bytes(place))
        .is_ok_and(|i| relocate_one(&i, code.bytes(place), at, at, at, &mut emitter).is_ok())
}

/// What each byte of the code is used for.
struct Bytes {
    from: u64,
    states: Vec<u8>,
}

impl Bytes {
    fn new(code: &Code<'_>) -> Self {
        let from = code.functions.first().map_or(0, |function| function.start);
        let to = code.places.last().map_or(from, Place::end);
        // Sections lie in the file, so the span of the code does not exceed it by much; what a
        // damaged header claims beyond is left alone.
        let len = to
            .saturating_sub(from)
            .saturating_add(64)
            .min(2 * code.elf.bytes().len() as u64 + 64);
        Self {
            from,
            states: vec![KEPT; len as usize],
        }
    }

    fn get(&self, at: u64) -> u8 {
        let index = at.wrapping_sub(self.from) as usize;
        self.states.get(index).copied().unwrap_or(KEPT)
    }

    fn set(&mut self, from: u64, to: u64, state: u8) {
        for at in from..to {
            let index = at.wrapping_sub(self.from) as usize;
            if let Some(byte) = self.states.get_mut(index) {
                *byte = state;
            }
        }
    }

    /// Whether a pad of `len` bytes can begin at `at`.
    fn has_room(&self, at: u64, len: usize) -> bool {
        self.get(at) == START && (1..len as u64).all(|by| matches!(self.get(at + by), FREE | CALL))
    }

    /// Uses them. What is left of a call that loses bytes is free.
    fn take(&mut self, at: u64, len: usize) {
        let end = at + len as u64;
        let mut next = end;
        if self.get(end - 1) == CALL {
            while self.get(next) == CALL {
                self.set(next, next + 1, FREE);
                next += 1;
            }
        }
        self.set(at, end, KEPT);
    }

    /// Five free bytes within reach of a short jump at `at`; they are used then.
    fn find_relay(&mut self, at: u64) -> Option<u64> {
        let from = at + 2;
        let free =
            |bytes: &Self, relay: u64| (0..PAD_LEN as u64).all(|by| bytes.get(relay + by) == FREE);
        let relay = (0..=SHORT_REACH)
            .flat_map(|distance| [distance, -distance - 1])
            .map(|distance| from.wrapping_add_signed(distance))
            .find(|relay| free(self, *relay))?;
        self.set(relay, relay + PAD_LEN as u64, KEPT);
        Some(relay)
    }

    /// Frees what lies between functions, and between blocks, and does nothing.
    fn free_padding(&mut self, code: &Code<'_>, blocks: &Blocks) {
        for (number, function) in code.functions.iter().enumerate() {
            let until = code
                .functions
                .get(number + 1)
                .map_or(u64::MAX, |next| next.start);
            let (_, last) = code.spans[number];
            let final_place = last.checked_sub(1).map(|last| &code.places[last as usize]);
            // Some hand-written functions run through the padding into the next. A call is taken
            // for one that does not return, as no compiler puts another at a function's end.
            if !final_place.is_some_and(|place| place.kind.ends_flow() || place.kind.is_call()) {
                continue;
            }
            let mut at = function.end;
            while at < until {
                let len = padding_at(code, at);
                let end = at + len;
                let stray = code.strays.partition_point(|stray| *stray < at);
                let entered = code.strays.get(stray).is_some_and(|stray| *stray < end);
                if len == 0 || end > until || entered {
                    break;
                }
                self.set(at, end, FREE);
                at = end;
            }
        }
        for block in &blocks.all {
            let places = &code.places[block.first as usize..block.last as usize];
            let idle = !block.reached
                && !block.fixed
                && places.iter().all(|place| {
                    padding_at(code, place.at) == u64::from(place.len)
                        && !place.is(mark::TAKEN | mark::OUTSIDE | mark::TARGET)
                        && place.kind == Kind::Next
                });
            if idle {
                self.set(block.start, block.end, FREE);
            }
        }
    }
}

/// Bytes of the padding at `at`: a `nop` of any length, an `int3`, a zero.
fn padding_at(code: &Code<'_>, at: u64) -> u64 {
    let Some(bytes) = code.elf.bytes_from(at).filter(|_| code.is_executable(at)) else {
        return 0;
    };
    match decode(bytes) {
        _ if matches!(bytes.first(), Some(0xcc | 0x00)) => 1,
        Ok(instruction) if instruction.is_nop() => u64::from(instruction.len),
        _ => 0,
    }
}
