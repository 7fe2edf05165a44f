//! *Which bytes of the code may be overwritten?* One state a byte; `place` says what each means.

use pointee_patch::arch::x86_64::PAD_LEN;
use pointee_patch::arch::x86_64::decode::decode;

use crate::blocks::Blocks;
use crate::code::{Code, Kind, Place, mark};

pub(crate) const KEPT: u8 = 0;
pub(crate) const FREE: u8 = 1;
pub(crate) const CALL: u8 = 2;
pub(crate) const START: u8 = 3;

/// How far a short jump goes either way.
pub(crate) const SHORT_REACH: i64 = 127;

/// What each byte of the code is used for.
pub(crate) struct Bytes {
    from: u64,
    states: Vec<u8>,
}

impl Bytes {
    pub(crate) fn new(code: &Code<'_>) -> Self {
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

    pub(crate) fn get(&self, at: u64) -> u8 {
        let index = at.wrapping_sub(self.from) as usize;
        self.states.get(index).copied().unwrap_or(KEPT)
    }

    pub(crate) fn set(&mut self, from: u64, to: u64, state: u8) {
        for at in from..to {
            let index = at.wrapping_sub(self.from) as usize;
            if let Some(byte) = self.states.get_mut(index) {
                *byte = state;
            }
        }
    }

    /// Whether a pad of `len` bytes can begin at `at`.
    pub(crate) fn has_room(&self, at: u64, len: usize) -> bool {
        self.get(at) == START && (1..len as u64).all(|by| matches!(self.get(at + by), FREE | CALL))
    }

    /// Uses them. What is left of a call that loses bytes is free.
    pub(crate) fn take(&mut self, at: u64, len: usize) {
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
    pub(crate) fn find_relay(&mut self, at: u64) -> Option<u64> {
        let from = at + 2;
        (0..=SHORT_REACH)
            .flat_map(|distance| [distance, -distance - 1])
            .map(|distance| from.wrapping_add_signed(distance))
            .find(|relay| self.take_relay(*relay))
    }

    /// Whether the pad that ends at `end` can have another byte, which is used then.
    pub(crate) fn lengthen(&mut self, end: u64) -> bool {
        let can = matches!(self.get(end), FREE | CALL);
        if can {
            self.take(end, 1);
        }
        can
    }

    /// Whether nothing is made of the `len` bytes from `at` on.
    pub(crate) fn is_free(&self, at: u64, len: usize) -> bool {
        (0..len as u64).all(|by| self.get(at.wrapping_add(by)) == FREE)
    }

    /// The five bytes from `relay` on, if they are free; they are used then.
    pub(crate) fn take_relay(&mut self, relay: u64) -> bool {
        let free = self.is_free(relay, PAD_LEN);
        if free {
            self.set(relay, relay + PAD_LEN as u64, KEPT);
        }
        free
    }

    /// Frees what lies between functions, and between blocks, and does nothing.
    pub(crate) fn free_padding(&mut self, code: &Code<'_>, blocks: &Blocks) {
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
    let within = |bytes: &&[u8]| code.is_executable(at) || bytes.first() == Some(&0);
    let Some(bytes) = code.elf.mapped_code_from(at).filter(within) else {
        return 0;
    };
    match decode(bytes) {
        _ if matches!(bytes.first(), Some(0xcc | 0x00)) => 1,
        Ok(instruction) if instruction.is_nop() => u64::from(instruction.len),
        _ => 0,
    }
}
