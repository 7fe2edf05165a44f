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
//! A counter is moved up over instructions that can neither fault nor go elsewhere, if the flags are
//! dead there: nobody can tell. Where they are live nowhere near, they are kept by `lahf` and
//! `seto`: in a register that is overwritten before it is read, else below the red zone (128 bytes,
//! psABI 3.2.2), with the stack pointer moved, so that a signal's frame does not hit it.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::Register;
use pointee_model::addr::{LinkAddr, RunAddr};
use pointee_patch::arch::x86_64::decode::decode;
use pointee_patch::arch::x86_64::emit::Emitter;
use pointee_patch::arch::x86_64::relocate::{call_as_jump, relocate_one};
use pointee_patch::placement::{Event, Header, NOBODY, PAD_MAX, PAGE, PadBytes, UNLOCKED};

use crate::blocks::Blocks;
use crate::code::{Code, Kind, Place};
use crate::flags::{Liveness, dead_register, is_plain};
use crate::place::{Displaced, Pad, Placement, callers};
use crate::values::{self, Operands};

/// How far a counter is moved up.
const HOIST: usize = 8;
/// How far ahead a dead register is looked for.
const LOOK_AHEAD: usize = 12;
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
                let fields = values::emit(&mut self.island, operands, self.routine);
                self.records
                    .extend(fields.into_iter().map(|field| (index, field)));
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

    /// For each point among `first..last`, the instruction before which it is counted; sorted.
    fn slots(&self, first: usize, last: usize, liveness: &Liveness) -> Vec<(usize, usize)> {
        let mut slots: Vec<(usize, usize)> = (first..last)
            .filter(|point| self.wishes.points[*point])
            .map(|point| {
                let lowest = first.max(point.saturating_sub(HOIST));
                let mut slot = point;
                while !liveness.are_dead(slot) {
                    if slot == lowest || !is_plain(self.code.bytes(&self.code.places[slot - 1])) {
                        return (point, point);
                    }
                    slot -= 1;
                }
                (slot, point)
            })
            .collect();
        slots.sort_unstable();
        slots
    }

    /// `call [slot]`, at a function's entry, where no flags and no red zone are in use.
    fn call_slot(&mut self, event: Event) {
        self.heard += 1;
        self.island.extend([0xff, 0x15]);
        let end = self.island.len() + 4;
        let distance = event.slot().wrapping_sub(end) as u32;
        self.island.extend(distance.to_le_bytes());
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

    /// Counts `due` before instruction `index`.
    fn count(&mut self, index: usize, last: usize, due: &[usize], liveness: &Liveness) {
        if due.is_empty() {
            return;
        }
        if liveness.are_dead(index) {
            due.iter().for_each(|point| self.increment(*point));
            return;
        }
        let ahead = &self.code.places[index..last.min(index + LOOK_AHEAD)];
        let dead = dead_register(ahead.iter().map(|place| self.code.bytes(place)));
        match dead {
            Some(Register::RAX) => {}
            Some(register) => self.move_rax(register, true),
            None => {
                self.island
                    .extend([0x48, 0x8d, 0xa4, 0x24, 0x78, 0xff, 0xff, 0xff]); // lea rsp, [rsp-136]
                self.island.extend([0x48, 0x89, 0x04, 0x24]); // mov [rsp], rax
            }
        }
        self.island.extend([0x9f, 0x0f, 0x90, 0xc0]); // lahf; seto al
        due.iter().for_each(|point| self.increment(*point));
        self.island.extend([0x04, 0x7f, 0x9e]); // add al, 127: OF as it was; sahf
        match dead {
            Some(Register::RAX) => {}
            Some(register) => self.move_rax(register, false),
            None => {
                self.island.extend([0x48, 0x8b, 0x04, 0x24]); // mov rax, [rsp]
                self.island.extend([0x48, 0x8d, 0xa4, 0x24, 0x88, 0, 0, 0]); // lea rsp, [rsp+136]
            }
        }
    }

    /// `mov register, rax`, or back.
    fn move_rax(&mut self, register: Register, save: bool) {
        let number = register.number() as u8;
        let extended = u8::from(number >= 8);
        let code = if save {
            [0x48 | extended, 0x89, 0xc0 | number & 7]
        } else {
            [0x48 | extended, 0x8b, 0xc0 | number & 7]
        };
        // `mov r/m, rax` and `mov rax, r/m`: the register is in `rm` both times.
        self.island.extend(code);
    }

    /// `ds inc qword ptr [counter]`; the distance is filled in at the end.
    fn increment(&mut self, point: usize) {
        self.counters.push(self.island.len() as u32);
        self.counted.push(point as u32);
        self.island.extend([UNLOCKED, 0x48, 0xff, 0x05, 0, 0, 0, 0]);
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

    /// The pads that lead to the copies.
    fn pads(&self) -> Vec<PadBytes> {
        let mut pads = Vec::new();
        for (at, displaced) in self.placement.displaced.iter().enumerate() {
            let (Some(displaced), Some(start)) = (displaced, self.starts[at]) else {
                continue;
            };
            let copy = self.base + u64::from(start);
            match displaced.pad {
                Pad::None => {}
                Pad::Callers => self.redirect(self.blocks.all[at].start, copy, &mut pads),
                Pad::Near { at, prefix: None } => pads.extend(self.pad(at, &[JUMP], Some(copy))),
                Pad::Near {
                    at,
                    prefix: Some(prefix),
                } => pads.extend(self.pad(at, &[prefix, JUMP], Some(copy))),
                Pad::Call { at } => {
                    let len = usize::from(self.code.places[displaced.first as usize].len);
                    let mut head = [FILLER; PAD_MAX];
                    head[len - 5] = CALL;
                    pads.extend(self.pad(at, &head[..len - 4], Some(copy)));
                }
                Pad::Trap { at } => pads.extend(self.pad(at, &[TRAP], None).map(|pad| PadBytes {
                    trap: Some(start),
                    ..pad
                })),
                Pad::Short { at, relay, prefix } => {
                    let mut head: Vec<u8> = prefix.into_iter().chain([SHORT_JUMP, 0]).collect();
                    let distance = relay.wrapping_sub(at + head.len() as u64) as u8;
                    if let Some(last) = head.last_mut() {
                        *last = distance;
                    }
                    pads.extend(self.pad(at, &head, None));
                    pads.extend(self.pad(relay, &[JUMP], Some(copy)));
                }
                Pad::Overlap { at, relay } => {
                    pads.extend(self.pad(at, &[SHORT_JUMP], None));
                    pads.extend(self.pad(relay, &[JUMP], Some(copy)));
                }
            }
        }
        pads.sort_by_key(|pad| pad.at);
        pads
    }

    /// Sends what leads to `address`, and stays where it is, to `copy` instead.
    fn redirect(&self, address: u64, copy: u64, pads: &mut Vec<PadBytes>) {
        let from = self
            .callers
            .partition_point(|(target, _)| *target < address);
        for (_, source) in self.callers[from..]
            .iter()
            .take_while(|(target, _)| *target == address)
        {
            let place = &self.code.places[*source as usize];
            let block = self.blocks.of_place(*source as usize);
            let moved = self.placement.displaced[block].is_some_and(|displaced| {
                (displaced.first..displaced.last).contains(source)
                    && !(displaced.last_stays && *source + 1 == displaced.last)
            });
            let bytes = self.code.bytes(place);
            if let Some(head) = bytes
                .len()
                .checked_sub(4)
                .and_then(|len| bytes.get(..len))
                .filter(|_| !moved)
            {
                pads.extend(self.pad(place.at, head, Some(copy)));
            }
        }
    }

    /// Whether calls of `address` go to its copy.
    fn is_redirected(&self, address: u64) -> bool {
        let block = self.blocks.at(self.code, address);
        let displaced = block.and_then(|block| self.placement.displaced[block]);
        displaced.is_some_and(|displaced| displaced.pad == Pad::Callers)
    }

    /// `head`, and the distance to `target`.
    fn pad(&self, at: u64, head: &[u8], target: Option<u64>) -> Option<PadBytes> {
        let len = head.len() + if target.is_some() { 4 } else { 0 };
        let mut bytes = [0; PAD_MAX];
        bytes.get_mut(..head.len())?.copy_from_slice(head);
        if let Some(target) = target {
            let distance = target.wrapping_sub(at + len as u64) as u32;
            bytes
                .get_mut(head.len()..len)?
                .copy_from_slice(&distance.to_le_bytes());
        }
        let mut original = [0; PAD_MAX];
        original
            .get_mut(..len)?
            .copy_from_slice(self.code.elf.mapped_code_from(at)?.get(..len)?);
        Some(PadBytes {
            at: LinkAddr(at),
            len: len as u8,
            is_relative: target.is_some(),
            trap: None,
            bytes,
            original,
        })
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
