//! *What do the copies look like?*
//!
//! ```text
//!   for each displaced block, in order of address:
//!     for each of its instructions:
//!       the counters that belong before it   [save flags] ds inc [rip+counter] [restore flags]
//!       values that are taken down there     save; mov rax, register; lea rcx, [rip+record]; call; restore
//!       the instruction, relocated           branches to displaced blocks go to their copies
//!     a jump to what comes next, unless its copy comes next here too
//! ```
//!
//! A call or a system call is not copied where it can stay: the copy jumps to it, and it returns to a
//! pad. So a thread that waits is never seen in a copy. System calls about signals are handed over to whoever
//! keeps `SIGTRAP` for the traps ([`crate::signals`]).
//!
//! Where counters stand is told in `counters.rs`, what leads to the copies in `pads.rs`.

mod counters;
mod pads;

use std::collections::{BTreeMap, BTreeSet};

use pointee_model::addr::{LinkAddr, RunAddr};
use pointee_patch::arch::x86_64::decode::decode;
use pointee_patch::arch::x86_64::emit::Emitter;
use pointee_patch::arch::x86_64::relocate::{call_as_jump, relocate_one};
use pointee_patch::placement::{Event, Header, NOBODY, PAGE, PadBytes};

use crate::blocks::Blocks;
use crate::carvings::{self, Carvings, Told};
use crate::code::{Code, Kind, Place};
use crate::flags::Liveness;
use crate::place::{Displaced, Pad, Placement, callers};
use crate::values::{self, Operands};

/// `jmp rel32`, `jmp rel8`, `call rel32`, `int3`.
pub(crate) const JUMP: u8 = 0xe9;
pub(crate) const SHORT_JUMP: u8 = 0xeb;
pub(crate) const CALL: u8 = 0xe8;
pub(crate) const TRAP: u8 = 0xcc;
const FILL: u8 = TRAP;
/// `addr32`: no effect on a near call, and the linker's own way to make one a byte longer.
pub(crate) const FILLER: u8 = 0x67;

/// The bytes of a placement, and where its counters belong.
#[derive(Debug)]
pub(crate) struct Island {
    pub(crate) bytes: Vec<u8>,
    /// For each counter, the instruction that it counts.
    pub(crate) counted: Vec<u32>,
    /// For each value that is taken down, in order of its point, the number of its first word among the counters.
    pub(crate) recorded: Vec<u32>,
    /// See [`crate::Plan::copies`].
    pub(crate) copies: Vec<(LinkAddr, u32)>,
}

/// Copies that do not fit: more than a 32-bit offset can name.
#[derive(Debug)]
pub(crate) struct TooLarge;

/// What is done at which instructions, by the numbers of their places.
#[derive(Debug)]
pub(crate) struct Wishes<'w> {
    /// These are counted.
    pub(crate) points: &'w [bool],
    /// These take down values that pass them.
    pub(crate) operands: &'w Operands,
    /// These call their event's slot.
    pub(crate) watched: &'w BTreeMap<usize, Event>,
    /// These system calls are handed over.
    pub(crate) signal_calls: &'w BTreeSet<usize>,
    /// Whoever applies the placement has to be ready for traps.
    pub(crate) traps: bool,
    /// These tell of the cursor that they write.
    pub(crate) carvings: &'w Carvings,
}

struct Builder<'b, 'e> {
    code: &'b Code<'e>,
    blocks: &'b Blocks,
    placement: &'b Placement,
    base: u64,
    wishes: &'b Wishes<'b>,
    /// How many of those that are watched call their slots.
    heard: usize,
    island: Vec<u8>,
    /// Where each block's copy begins.
    starts: Vec<Option<u32>>,
    relative: Vec<u32>,
    absolute: Vec<u32>,
    /// Offset of each counter's instruction.
    counters: Vec<u32>,
    counted: Vec<u32>,
    copies: Vec<(LinkAddr, u32)>,
    /// Where the routine is that takes values down.
    routine: u32,
    /// For each value, its point and where the distance to its record is.
    records: Vec<(usize, u32)>,
    /// Distances to blocks: field, address. Known when all copies are written.
    links: Vec<(u32, u64)>,
    /// All direct branches and calls, if any of their targets is reached by them alone.
    callers: Vec<(u64, u32)>,
}

/// Writes the copies and the pads.
pub(crate) fn build(
    code: &Code<'_>,
    blocks: &Blocks,
    liveness: &Liveness,
    placement: &Placement,
    wishes: &Wishes<'_>,
) -> Result<Island, TooLarge> {
    let end = code
        .elf
        .segments()
        .iter()
        .map(|s| s.address.saturating_add(s.memory_size))
        .max()
        .unwrap_or(0);
    // Anywhere within reach will do: all distances are corrected when it is loaded.
    let base = end.next_multiple_of(PAGE as u64) + PAGE as u64;
    let mut builder = Builder {
        code,
        blocks,
        placement,
        base,
        wishes,
        heard: 0,
        island: vec![0; Event::COUNT * 8],
        starts: vec![None; blocks.all.len()],
        relative: Vec::new(),
        absolute: Vec::new(),
        counters: Vec::new(),
        counted: Vec::new(),
        copies: Vec::new(),
        routine: 0,
        records: Vec::new(),
        links: Vec::new(),
        callers: Vec::new(),
    };
    for told in wishes.carvings.values() {
        builder.absolute.push(builder.island.len() as u32);
        builder.island.extend(told.carving.to_bytes());
    }
    if !wishes.operands.is_empty() {
        builder.routine = builder.island.len() as u32;
        builder.island.extend(values::ROUTINE);
    }
    if placement
        .displaced
        .iter()
        .flatten()
        .any(|displaced| displaced.pad == Pad::Callers)
    {
        builder.callers = callers(code);
    }
    for (at, displaced) in placement.displaced.iter().enumerate() {
        if let Some(displaced) = displaced {
            builder.copy(at, displaced, liveness)?;
        }
    }
    builder.link();
    Ok(builder.finish())
}

impl Builder<'_, '_> {
    fn here(&self) -> u64 {
        self.base + self.island.len() as u64
    }

    /// The copy of one block.
    fn copy(
        &mut self,
        at: usize,
        displaced: &Displaced,
        liveness: &Liveness,
    ) -> Result<(), TooLarge> {
        if self.island.len() > 1 << 30 {
            return Err(TooLarge);
        }
        let (first, last) = (displaced.first as usize, displaced.last as usize);
        self.starts[at] = Some(self.island.len() as u32);
        let behind_mark = match displaced.pad {
            Pad::Near { at, .. }
            | Pad::Short { at, .. }
            | Pad::Overlap { at, .. }
            | Pad::Trap { at } => at != self.code.places[first].at,
            Pad::None | Pad::Call { .. } | Pad::Callers => false,
        };
        let slots = self.slots(first, last, liveness);
        let mut slots = slots.into_iter().peekable();
        for index in first..last {
            let place = self.code.places[index];
            // Whoever comes to a copy by a call has the return address on the stack already.
            if !matches!(displaced.pad, Pad::Call { .. }) {
                self.copies
                    .push((LinkAddr(place.at), self.island.len() as u32));
            }
            let mut due = Vec::new();
            while let Some((_, point)) = slots.next_if(|(slot, _)| *slot == index) {
                due.push(point);
            }
            if let Some(event) = self.wishes.watched.get(&index) {
                self.call_slot(*event);
            }
            self.count(index, last, &due, liveness);
            if let Some(operands) = self
                .wishes
                .operands
                .get(&index)
                .filter(|_| self.wishes.points[index])
            {
                let pushed = if matches!(displaced.pad, Pad::Call { .. }) {
                    8
                } else {
                    0
                };
                let fields = values::emit(&mut self.island, operands, self.routine, pushed);
                self.records
                    .extend(fields.into_iter().map(|field| (index, field)));
            }
            if let Some(told) = self.wishes.carvings.get(&index) {
                self.tell_of_carving(told);
            }
            let is_last = index + 1 == last;
            if index == first && behind_mark {
                continue; // The `endbr64` runs at home.
            }
            if is_last && self.wishes.signal_calls.contains(&index) {
                self.hand_over(&place, displaced.last_stays);
                return Ok(());
            }
            if is_last && displaced.last_stays {
                self.jump_to_module(place.at);
                return Ok(());
            }
            if is_last && matches!(displaced.pad, Pad::Call { .. }) {
                self.copy_called(&place);
                return Ok(());
            }
            self.copy_instruction(&place);
        }
        let final_place = self.code.places[last - 1];
        let next = final_place.end();
        if final_place.kind.ends_flow() && final_place.kind != Kind::Trap
            || final_place.kind.is_call()
        {
            return Ok(());
        }
        let adjoining = self
            .blocks
            .next(at)
            .filter(|_| last == self.blocks.all[at].last as usize);
        let follows = adjoining.is_some_and(|next| self.goes_on_in(next));
        if !follows {
            self.jump(next);
        }
        Ok(())
    }

    /// Whether the copy of block `next` is the next to be written, and can be run into.
    fn goes_on_in(&self, next: usize) -> bool {
        self.placement.displaced[next].is_some_and(|displaced| {
            displaced.first == self.blocks.all[next].first
                && !matches!(displaced.pad, Pad::Call { .. })
        })
    }

    /// `call [slot]`, at a function's entry, where no flags and no red zone are in use.
    fn call_slot(&mut self, event: Event) {
        self.heard += 1;
        self.island.extend([0xff, 0x15]);
        let end = self.island.len() + 4;
        let distance = event.slot().wrapping_sub(end) as u32;
        self.island.extend(distance.to_le_bytes());
    }

    /// Calls the slot of [`Event::Carve`] before an instruction that writes a cursor.
    fn tell_of_carving(&mut self, told: &Told) {
        let emitted = carvings::emit(&mut self.island, told);
        if let Some((field, target)) = emitted {
            let distance = target.wrapping_sub(self.base + u64::from(field) + 4);
            self.fill(field, distance as u32);
            self.relative.push(field);
        }
    }

    /// A system call that may be about signals: whoever fills the slot makes it, or jumps to `r11`.
    fn hand_over(&mut self, place: &Place, stays: bool) {
        self.load_address(&[0x48, 0x8d, 0x0d], place.end()); // lea rcx, [rip+next]
        let moved = if stays {
            self.load_address(&[0x4c, 0x8d, 0x1d], place.at); // lea r11, [rip+syscall]
            None
        } else {
            self.island.extend([0x4c, 0x8d, 0x1d, 6, 0, 0, 0]);
            Some(place.end())
        };
        self.island.extend([0xff, 0x25]);
        let end = self.island.len() + 4;
        let distance = Event::SignalCall.slot().wrapping_sub(end) as u32;
        self.island.extend(distance.to_le_bytes());
        if let Some(next) = moved {
            self.island.extend([0x0f, 0x05]);
            self.jump(next);
        }
    }

    /// `lea`, all but its distance, of an address in the module.
    fn load_address(&mut self, lea: &[u8], address: u64) {
        self.island.extend(lea);
        self.relative.push(self.island.len() as u32);
        let distance = address.wrapping_sub(self.here() + 4);
        self.island.extend((distance as u32).to_le_bytes());
    }

    /// One instruction that is not a call that stays.
    fn copy_instruction(&mut self, place: &Place) {
        let bytes = self.code.bytes(place);
        let Ok(instruction) = decode(bytes) else {
            return;
        };
        let is_branch = place.target != 0 && !place.kind.is_call();
        let destination = RunAddr(if is_branch { self.base } else { place.target });
        let mut buffer = [0; 64];
        let mut emitter = Emitter::new(&mut buffer, RunAddr(self.here()));
        let copied = relocate_one(
            &instruction,
            bytes,
            RunAddr(place.at),
            destination,
            RunAddr(place.end()),
            &mut emitter,
        );
        let len = emitter.len();
        let start = self.island.len() as u32;
        // What `place` displaced was tried there; were it refused nevertheless, a trap says where.
        let Ok(fields) = copied else {
            self.island.push(FILL);
            return;
        };
        self.island.extend(&buffer[..len]);
        if let Some(field) = fields.relative {
            let field = start + u32::from(field);
            if is_branch || place.kind == Kind::Call && self.is_redirected(place.target) {
                self.links.push((field, place.target));
            } else {
                self.relative.push(field);
            }
        }
        if let Some(field) = fields.absolute {
            self.absolute.push(start + u32::from(field));
        }
    }

    /// A call whose return address is on the stack already.
    fn copy_called(&mut self, place: &Place) {
        if place.kind == Kind::Call {
            if self.is_redirected(place.target) {
                self.jump(place.target);
            } else {
                self.jump_to_module(place.target);
            }
            return;
        }
        let bytes = self.code.bytes(place);
        let mut buffer = [0; 32];
        let mut emitter = Emitter::new(&mut buffer, RunAddr(self.here()));
        let jump = decode(bytes)
            .ok()
            .and_then(|i| call_as_jump(&i, bytes, RunAddr(place.at), &mut emitter).ok());
        let len = emitter.len();
        let start = self.island.len() as u32;
        match jump {
            Some(field) => {
                self.island.extend(&buffer[..len]);
                self.relative
                    .extend(field.map(|field| start + u32::from(field)));
            }
            None => self.island.push(FILL),
        }
    }

    /// A jump to code that stays where it is.
    fn jump_to_module(&mut self, address: u64) {
        let field = self.island.len() as u32 + 1;
        self.island.push(JUMP);
        let distance = address.wrapping_sub(self.here() + 4);
        self.island.extend((distance as u32).to_le_bytes());
        self.relative.push(field);
    }

    /// A jump to an address, or rather to its copy.
    fn jump(&mut self, address: u64) {
        let field = self.island.len() as u32 + 1;
        self.island.extend([JUMP, 0, 0, 0, 0]);
        self.links.push((field, address));
    }

    /// The island offset of the copy of what lies at `address`, if that can be jumped to.
    fn copy_of(&self, address: u64) -> Option<u32> {
        let block = self.blocks.at(self.code, address)?;
        self.goes_on_in(block).then(|| self.starts[block]).flatten()
    }

    /// Fills in the distances of branches.
    fn link(&mut self) {
        for (field, address) in std::mem::take(&mut self.links) {
            let from = self.base + u64::from(field) + 4;
            let to = match self.copy_of(address) {
                Some(start) => self.base + u64::from(start),
                None => {
                    self.relative.push(field);
                    address
                }
            };
            self.fill(field, to.wrapping_sub(from) as u32);
        }
    }

    fn fill(&mut self, field: u32, value: u32) {
        let at = field as usize;
        self.island[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn finish(mut self) -> Island {
        self.island
            .resize(self.island.len().next_multiple_of(PAGE), FILL);
        let mut counters = std::mem::take(&mut self.counters);
        for (number, at) in counters.iter().enumerate() {
            let counter = self.island.len() as u64 + 8 * number as u64;
            self.fill(at + 4, counter.wrapping_sub(u64::from(*at) + 8) as u32);
        }
        let recorded = self.place_records(&mut counters);
        let pads = self.pads();
        let header = Header {
            base: self.base,
            island_len: self.island.len() as u64,
            relative: self.relative.len() as u32,
            absolute: self.absolute.len() as u32,
            counters: counters.len() as u32,
            pads: pads.len() as u32,
            unwatched: (self.wishes.watched.len() - self.heard) as u32,
            traps: u32::from(self.wishes.traps),
            carvings: self.wishes.carvings.len() as u32,
        };
        let mut bytes = header.to_bytes().to_vec();
        bytes.resize(PAGE, 0);
        bytes.append(&mut self.island);
        for list in [&self.relative, &self.absolute, &counters] {
            bytes.extend(list.iter().flat_map(|at| at.to_le_bytes()));
        }
        bytes.extend(pads.iter().flat_map(PadBytes::to_bytes));
        Island {
            bytes,
            counted: self.counted,
            recorded,
            copies: self.copies,
        }
    }

    /// Puts the records behind the counters, as words that no single instruction counts. The answer: the first word of each.
    fn place_records(&mut self, counters: &mut Vec<u32>) -> Vec<u32> {
        let mut records = std::mem::take(&mut self.records);
        // A block's values are written when the block is; what asks for them goes by the points.
        records.sort_by_key(|(point, _)| *point);
        let mut first_words = Vec::new();
        for (_, field) in records {
            let first = counters.len();
            let record = self.island.len() as u64 + 8 * first as u64;
            self.fill(field, record.wrapping_sub(u64::from(field) + 4) as u32);
            first_words.push(first as u32);
            counters.resize(first + values::WORDS, NOBODY);
        }
        first_words
    }
}
