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
//!   EB         one byte, and five free ones    overlap: a jump to a jump; the distance of the first is
//!              just there                      the byte behind it, whose meaning stays
//!   (none)     a function that is only called  callers: each call or jump to it goes to the copy
//!              and jumped to directly
//!   CC         one byte                        trap: the handler of its signal goes on in the copy
//! ```
//!
//! First the least is moved: at each point a **window** of just the instructions that the pad
//! covers. Where that fails — a branch goes in, or there is no room — all blocks of the function are
//! displaced: then inner branches are no obstacle, and the bytes between the starts that are
//! entered from outside are free; then those of the functions beside it. Points that are left get a trap, where that is
//! allowed; what needs none stays in place, and then its
//! successors are entered from code in place, and need pads of their own. That is repeated until
//! nothing changes; each round only adds to what is trapped or stays.
//!
//! **Overlap.** The byte behind may be code that stays: then the jump goes one way only. If it is the first of another pad, that
//! one can choose among a few bytes: its own first, or a prefix that means nothing to a jump.
//!
//! An instruction that a branch enters amid, over its `lock` prefix, keeps all bytes but the first: only a trap fits.

use std::cell::OnceCell;

use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::decode::decode;
use pointee_patch::arch::x86_64::emit::Emitter;
use pointee_patch::arch::x86_64::relocate::relocate_one;
use pointee_patch::arch::x86_64::{ENDBR64, PAD_LEN};

use crate::blocks::Blocks;
use crate::code::{Code, Kind, Place, mark};
use crate::overlap::Overlaps;
use crate::room::{Bytes, CALL, FREE, KEPT, SHORT_REACH, START};

/// How control comes from a block to its copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pad {
    /// Not at all: by other copies.
    None,
    Near {
        at: u64,
        /// What the jump begins with, if a byte before it shares it.
        prefix: Option<u8>,
    },
    /// All of a call's bytes: the call is of the copy.
    Call {
        at: u64,
    },
    Short {
        at: u64,
        relay: u64,
        /// As of [`Pad::Near`].
        prefix: Option<u8>,
    },
    /// A short jump of which only the first byte is written: the next one has its distance.
    Overlap {
        at: u64,
        relay: u64,
    },
    /// All that lead here lead to the copy instead.
    Callers,
    Trap {
        at: u64,
    },
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

/// A round may always leave something; hostile files could make it a long time.
const ROUNDS: usize = 64;

/// Places a probe at each instruction with `points`; `dense` where that is nearly all of them.
pub(crate) fn place(
    code: &Code<'_>,
    blocks: &Blocks,
    points: &[bool],
    dense: bool,
    traps: bool,
) -> Placement {
    let mut work = Work {
        code,
        blocks,
        points,
        choices: vec![Choice::InPlace; blocks.all.len()],
        given_up: vec![false; blocks.all.len()],
        redirected: vec![false; blocks.all.len()],
        traps,
        trapped: vec![false; blocks.all.len()],
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
            } else if traps && !work.trapped[at] && work.has_points(at) {
                work.trapped[at] = true;
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
    /// Traps may be used, and are at these blocks.
    traps: bool,
    trapped: Vec<bool>,
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
    /// Displaces the next function on either side of `function` too, if a short jump from `address` reaches it:
    /// for its bytes. Whether there was one.
    fn displace_neighbours(&mut self, function: usize, address: u64) -> bool {
        let reach = SHORT_REACH as u64;
        let functions = &self.code.functions;
        let is_near = |beside: &usize| {
            let beside = &functions[*beside];
            beside.start < address.saturating_add(reach)
                && address < beside.end.saturating_add(reach)
        };
        let is_left = |beside: &usize| !self.whole[*beside] && !self.code.unresolved[*beside];
        let below = (0..function).rev().take_while(is_near).find(is_left);
        let above = (function + 1..functions.len())
            .take_while(is_near)
            .find(is_left);
        let beside = [below, above];
        for beside in beside.into_iter().flatten() {
            self.whole[beside] = true;
        }
        beside != [None, None]
    }

    fn has_points(&self, at: usize) -> bool {
        let block = &self.blocks.all[at];
        self.points[block.first as usize..block.last as usize].contains(&true)
    }

    /// Whether block `at` is one instruction that is entered amid, and gets a trap.
    fn is_trapped_inner(&self, at: usize) -> bool {
        self.traps && self.blocks.all[at].inner && self.has_points(at)
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
            self.choices[at] = if !block.reached || self.given_up[at] {
                Choice::InPlace
            } else if self.is_trapped_inner(at) {
                self.trapped[at] = true;
                Choice::Window(block.first, block.last)
            } else if block.fixed {
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
        if self.trapped[at] {
            let holder = (first_point
                + usize::from(self.pad_at(first_point) != places[first_point].at))
            .min(last - 1);
            return Choice::Window(first_point as u32, last_point.max(holder) as u32 + 1);
        }
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
            if leaves_in_place || self.is_trapped_inner(at) {
                for to in self.blocks.successors(self.code, at) {
                    entered[to] = true;
                }
            }
        }
        entered
    }

    /// Whether block `at`, an `endbr64` alone, can have its pad in the next block: if nothing else comes there
    /// but by copies.
    fn can_borrow(&self, at: usize, entered: &[bool]) -> bool {
        self.blocks
            .next(at)
            .is_some_and(|next| self.choices[next] == Choice::Whole && !entered[next])
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
            let last_place = &self.code.places[last as usize - 1];
            if !block.inner {
                bytes.set(places[0].at, end, FREE);
            }
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
                if pad_at < end && (block.inner || bytes.get(pad_at) != KEPT) {
                    bytes.set(pad_at, pad_at + 1, START);
                }
            }
            displaced[at] = Some(Displaced {
                first,
                last,
                pad: if needs_pad {
                    Pad::Near {
                        at: pad_at,
                        prefix: None,
                    }
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
            let Pad::Near { at: pad_at, .. } = *pad else {
                continue;
            };
            if self.redirected[at] {
                *pad = Pad::Callers;
                let start = self.blocks.all[at].start;
                bytes.set(start, self.blocks.all[at].end, KEPT);
                continue;
            }
            if pad_at >= self.code.places[*last as usize - 1].end() {
                if !self.can_borrow(at, &entered) || bytes.get(pad_at) != FREE {
                    failed.push(at);
                    continue;
                }
                bytes.set(pad_at, pad_at + 1, START);
            }
            if self.trapped[at] {
                if bytes.get(pad_at) == START {
                    bytes.set(pad_at, pad_at + 1, KEPT);
                    *pad = Pad::Trap { at: pad_at };
                } else {
                    failed.push(at);
                }
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
        let mut single = Vec::new();
        for (at, pad_at) in short {
            if !bytes.has_room(pad_at, 2) {
                single.push((at, pad_at));
                continue;
            }
            bytes.take(pad_at, 2);
            match (bytes.find_relay(pad_at), &mut displaced[at]) {
                (Some(relay), Some(displaced)) => {
                    displaced.pad = Pad::Short {
                        at: pad_at,
                        relay,
                        prefix: None,
                    };
                }
                _ => failed.push(at),
            }
        }
        let mut overlaps = Overlaps::new(self.code, &displaced, &single);
        for (at, pad_at) in single.into_iter().rev() {
            match overlaps.find(at, pad_at, &mut bytes, &mut displaced) {
                Some(relay) => {
                    if let Some(displaced) = &mut displaced[at] {
                        displaced.pad = Pad::Overlap { at: pad_at, relay };
                    }
                }
                None => failed.push(at),
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

/// Whether what stays can be made from elsewhere. (All else that is displaced can: see `Kind::Fixed`.)
fn can_move(code: &Code<'_>, place: &Place) -> bool {
    if !place.kind.is_call() {
        return place.kind != Kind::Breakpoint;
    }
    let mut buffer = [0; 64];
    let at = RunAddr(place.at);
    let mut emitter = Emitter::new(&mut buffer, at);
    decode(code.bytes(place))
        .is_ok_and(|i| relocate_one(&i, code.bytes(place), at, at, at, &mut emitter).is_ok())
}
