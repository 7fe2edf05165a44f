//! *What do the reads and writes of a number do that says how much of a chunk is taken?*
//!
//! A cursor may count instead of pointing: the next free byte is that of a *chunk* which lies so many further.
//!
//! ```text
//!   block = pool->base + pool->used;  pool->used += size;
//!           ~~~~~~~~~~~~~~~~~~~~~~~ a count read, and added to the start of its chunk: the block
//! ```
//!
//! The chunk's start is kept in a pointer to bytes, or is an array of bytes or numbers, in the same object or in a variable. What was read of the
//! count is a [`Value::Count`]; together with such a start it is the block.

use super::CountWrite;
use super::allocators::Allocators;
use super::calls::Key;
use super::flow::Interpreter;
use super::memory::Address;
use super::model::COPY;
use super::pools::{Cell, Keeps, Moved, Watch, Write};
use super::state::{State, general};
use super::typing::{Pointee, Types};
use super::value::{ANYWHERE, OriginSet, Value, is_number};
use iced_x86::{Instruction, OpKind};
use pointee_model::image::{TypeIndex, TypeKind};
use std::collections::{HashMap, HashSet};

/// Programs that are linked for a fixed address have one above this (System V ABI for x86-64, §3.3.3).
pub(super) const LOWEST_ADDRESS: i64 = 0x40_0000;

/// Where the bytes begin that are counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Chunk {
    /// Where this pointer points to.
    Held(Cell),
    /// Here; so many bytes, 0 if that is not stated.
    Array(Cell, u64),
}

/// What is known of a count that is a pool's cursor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counted {
    pub(super) chunk: Chunk,
    /// Bytes of what it counts.
    pub(super) scale: u8,
}

/// A block that a count tells of, where its address is computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Take {
    pub(super) address: u64,
    pub(super) cell: Cell,
    pub(super) read: u64,
    pub(super) counted: Counted,
}

/// How a write of a count changes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Growth {
    /// By so much, whatever it was.
    By(u32),
    /// By what it then is more; it was rounded up to a multiple of `1 << _` first.
    Rounded(u8),
    /// It is set: what lies behind is taken back.
    Set,
}

/// What a pointer is made to point to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Filler {
    Allocated,
    Reallocated,
    /// By who calls.
    Given,
    Unknown,
}

/// What was seen of counts in one function, beside reads and writes.
#[derive(Default)]
pub(super) struct CountsSeen {
    pub(super) takes: Vec<Take>,
    /// Compared with something, or taken from it: there is a limit.
    pub(super) limited: HashSet<Cell>,
    /// Made less by some number.
    pub(super) lowered: HashSet<Cell>,
    /// Set to what has nothing to do with what they were, and where.
    pub(super) set: Vec<(Cell, u64)>,
    /// Writes by which they perhaps begin anew.
    pub(super) anew: HashSet<u64>,
    /// Reads of which something was taken off.
    subtracted: HashSet<u64>,
    /// Pointers to bytes that are written.
    pub(super) filled: Vec<(Cell, Filler)>,
    /// Pointers to bytes that are freed, or copied from.
    pub(super) left: HashSet<Cell>,
    /// By read: bytes of the block that are read, written; from, and how many.
    pub(super) loaded: HashMap<u64, Vec<(i64, usize)>>,
    pub(super) stored: HashMap<u64, Vec<(i64, usize)>>,
}

impl<'f> Interpreter<'_, 'f> {
    /// The block that a count makes of a chunk's start.
    pub(super) fn block_of(
        &self,
        start: Value,
        displacement: i64,
        count: Value,
        at: u64,
    ) -> Option<Value> {
        let (block, _) = self.taken(start, displacement, count, at)?;
        Some(block)
    }

    fn taken(
        &self,
        start: Value,
        displacement: i64,
        count: Value,
        at: u64,
    ) -> Option<(Value, Counted)> {
        let Value::Count {
            reads, scale, add, ..
        } = count
        else {
            return None;
        };
        let (chunk, offset) = self.chunk_at(start, displacement, scale, at)?;
        let offset = match add {
            ANYWHERE => ANYWHERE,
            _ => offset.wrapping_add(add),
        };
        let block = Value::Allocated {
            origins: reads,
            offset,
        };
        Some((block, Counted { chunk, scale }))
    }

    /// The chunk that begins at a pointer plus `displacement`, and how far that is behind its start: compilers may add the number
    /// before they go to an array's start in its object.
    fn chunk_at(
        &self,
        start: Value,
        displacement: i64,
        scale: u8,
        at: u64,
    ) -> Option<(Chunk, i64)> {
        if let Value::Allocated { origins, offset } = start {
            if !is_number(offset) {
                return None;
            }
            let loads = &self.outcome.carving.loads;
            let mut cells = self
                .origins
                .calls(origins)
                .iter()
                .filter_map(|read| loads.get(read));
            let (cell, Keeps::Pointer) = *cells.next()? else {
                return None;
            };
            let is_one = cells.all(|(other, _)| *other == cell);
            let offset = offset.wrapping_add(displacement);
            return is_one.then_some((Chunk::Held(cell), offset));
        }
        let (target, offset) = match start {
            // In code that lies at a fixed address, addresses are numbers.
            Value::Constant(address) if address >= LOWEST_ADDRESS => {
                self.global_at(address as u64)?
            }
            Value::Typed { .. } | Value::Global(_) | Value::Parameter { .. } => {
                self.object_of(start, &State::at_entry(), at)?
            }
            _ => return None,
        };
        let offset = offset.checked_add(displacement)?;
        let (begin, room, unit) = self.types.raw_array(target, offset)?;
        // What lies behind a record is counted in bytes; more are elements of an array of such records.
        let is_behind = self.types.size(target) == u64::try_from(begin).ok();
        if u64::from(scale) % unit != 0 || is_behind && scale != 1 {
            return None;
        }
        let behind = offset - begin;
        let cell = match start {
            Value::Global(address) => {
                Cell::Global(address.wrapping_add_signed(displacement - behind))
            }
            Value::Constant(address) => {
                Cell::Global((address as u64).wrapping_add_signed(displacement - behind))
            }
            _ => {
                let (record, offset) = self.types.innermost(target, begin);
                Cell::Member(record, offset)
            }
        };
        Some((Chunk::Array(cell, room), behind))
    }

    /// The sum of two values of which one is a count.
    pub(super) fn counted_sum(
        &mut self,
        a: Value,
        b: Value,
        displacement: i64,
        at: u64,
    ) -> Option<Value> {
        match (a, b) {
            (Value::Count { reads, .. }, Value::Count { reads: other, .. }) => {
                let both = self.origins.union(reads, other);
                let sum = Value::Count {
                    reads: both,
                    rounded: 0,
                    scale: 1,
                    anew: false,
                    add: ANYWHERE,
                };
                Some(sum)
            }
            (count @ Value::Count { reads, .. }, start)
            | (start, count @ Value::Count { reads, .. }) => {
                let (block, counted) = self.taken(start, displacement, count, at)?;
                if self.recording {
                    self.note_take(reads, counted, at);
                }
                Some(block)
            }
            _ => None,
        }
    }

    fn note_take(&mut self, reads: OriginSet, counted: Counted, at: u64) {
        let carving = &mut self.outcome.carving;
        for read in self.origins.calls(reads) {
            if let Some((cell, Keeps::Count)) = carving.loads.get(read) {
                carving.counts.takes.push(Take {
                    address: at,
                    cell: *cell,
                    read: *read,
                    counted,
                });
            }
        }
    }

    /// A comparison, or a difference of which the second part is a count: there is a limit to that.
    pub(super) fn note_limit(&mut self, instruction: &Instruction, state: &State) {
        if !self.recording || self.watch != Watch::All || instruction.op_count() < 2 {
            return;
        }
        let is_zero = |value| value == Value::Constant(0);
        let a = self.read(instruction, 0, state);
        let b = match instruction.op1_kind() {
            OpKind::Register if instruction.op0_register() == instruction.op1_register() => return,
            _ => self.read(instruction, 1, state),
        };
        for (count, other) in [(a, b), (b, a)] {
            if !is_zero(other) {
                self.limit(count);
            }
        }
    }

    fn limit(&mut self, count: Value) {
        let Value::Count { reads, .. } = count else {
            return;
        };
        let carving = &mut self.outcome.carving;
        let cells = self.origins.calls(reads).iter();
        let cells = cells.filter_map(|read| carving.loads.get(read));
        let counts = cells.filter(|(_, keeps)| *keeps == Keeps::Count);
        carving.counts.limited.extend(counts.map(|(cell, _)| *cell));
    }

    /// `a - b`.
    pub(super) fn note_difference(&mut self, a: Value, b: Value) {
        if !self.recording || self.watch != Watch::All {
            return;
        }
        self.limit(b);
        if let (Value::Count { reads, .. }, false) = (a, matches!(b, Value::Constant(_))) {
            let reads = self.origins.calls(reads);
            self.outcome.carving.counts.subtracted.extend(reads);
        }
    }

    /// A write of a count. Says whether it moves a cursor.
    pub(super) fn write_count(
        &mut self,
        cell: Cell,
        address: &Address,
        value: Value,
        at: u64,
    ) -> bool {
        let is_own = |reads: OriginSet| {
            let loads = &self.outcome.carving.loads;
            let calls = self.origins.calls(reads).iter();
            let own = calls.filter(|read| loads.get(read).is_some_and(|(of, _)| *of == cell));
            own.copied().collect::<Vec<u64>>()
        };
        let (reads, add, rounded, anew) = match value {
            Value::Count {
                reads,
                rounded,
                scale: 1,
                anew,
                add,
            } => (is_own(reads), add, rounded, anew),
            _ => (Vec::new(), 0, 0, false),
        };
        let growth = match add {
            _ if reads.is_empty() => Some(Growth::Set),
            ANYWHERE => (!anew).then_some(Growth::Rounded(rounded)),
            add => u32::try_from(add).ok().filter(|by| *by > 0).map(Growth::By),
        };
        if self.watch == Watch::All {
            let counts = &mut self.outcome.carving.counts;
            let is_less = is_number(add) && add < 0
                || add == ANYWHERE && reads.iter().any(|read| counts.subtracted.contains(read));
            if is_less {
                counts.lowered.insert(cell);
            }
            if reads.is_empty() {
                counts.set.push((cell, at));
            }
            if anew {
                counts.anew.insert(at);
            }
        } else {
            let within = self.offset_in_operand(address, at);
            let moves = &mut self.outcome.carving.moves;
            if let Some(growth) = growth {
                moves.insert(at, (cell, within, growth));
            }
        }
        if reads.is_empty() || add == 0 {
            return false;
        }
        self.outcome.carving.writes.push(Write {
            address: at,
            cell,
            reads,
            by: Some(add).filter(|by| is_number(*by)),
        });
        true
    }

    /// What holds the number that an instruction writes to a count holds what the count is from then on, as if it had read that; what is more than that, too.
    pub(super) fn go_on_counting(
        &mut self,
        address: &Address,
        value: Value,
        state: &mut State,
        at: u64,
    ) {
        let Value::Count {
            reads,
            rounded,
            scale: 1,
            add,
            ..
        } = value
        else {
            return;
        };
        if !self.watches() || add == 0 {
            return;
        }
        let object = self.object_at(address, state, at);
        let Some((cell, Keeps::Count)) = self.cell(address, object) else {
            return;
        };
        let loads = &self.outcome.carving.loads;
        let mut calls = self.origins.calls(reads).iter();
        if !calls.any(|read| loads.get(read).is_some_and(|(of, _)| *of == cell)) {
            return;
        }
        // No instruction begins there.
        let here = at + 1;
        self.outcome
            .carving
            .loads
            .insert(here, (cell, Keeps::Count));
        let origins = self.carved(here);
        let from_here = |add: i64| Value::Count {
            reads: origins,
            rounded: 0,
            scale: 1,
            anew: false,
            add,
        };
        if add == ANYWHERE {
            let written = self.instruction_at(at).map(Instruction::op1_register);
            if let Some(register) = written.and_then(general)
                && state.registers[register] == value
            {
                state.registers[register] = from_here(0);
            }
            return;
        }
        state.change(|held| match held {
            Value::Count {
                reads: of,
                rounded: to,
                scale: 1,
                add: more,
                ..
            } if (of, to) == (reads, rounded) && is_number(more) && more >= add => {
                from_here(more - add)
            }
            other => other,
        });
    }

    /// A write of a pointer to bytes: a chunk may begin there.
    pub(super) fn note_filled(&mut self, address: &Address, value: Value, state: &State, at: u64) {
        if !(self.watches() && self.recording) {
            return;
        }
        let object = self.object_at(address, state, at);
        let Some((cell, Keeps::Pointer)) = self.cell(address, object) else {
            return;
        };
        if self.watch == Watch::Known && self.moved(cell) != Some(Moved::Base) {
            return;
        }
        let filler = match value {
            Value::Constant(0) => return,
            Value::Allocated { origins, .. } => {
                let calls = self.origins.calls(origins).iter();
                let callees = calls.filter_map(|call| self.callee_at(*call));
                let mut known = callees.filter_map(|callee| self.allocators.get(callee));
                match known.next() {
                    None => Filler::Unknown,
                    Some(first) if first.old.is_some() || known.any(|it| it.old.is_some()) => {
                        Filler::Reallocated
                    }
                    Some(_) => Filler::Allocated,
                }
            }
            Value::Parameter { .. } => Filler::Given,
            Value::Global(_) => Filler::Allocated,
            _ => Filler::Unknown,
        };
        self.outcome.carving.counts.filled.push((cell, filler));
    }

    /// A read or write of a block's bytes.
    pub(super) fn note_use(&mut self, address: &Address, size: usize, writes: bool) {
        let Value::Allocated { origins, offset } = address.value else {
            return;
        };
        if !self.recording || self.watch != Watch::All || offset == ANYWHERE {
            return;
        }
        let carving = &mut self.outcome.carving;
        for read in self.origins.calls(origins) {
            if matches!(carving.loads.get(read), Some((_, Keeps::Count))) {
                let uses = match writes {
                    true => &mut carving.counts.stored,
                    false => &mut carving.counts.loaded,
                };
                uses.entry(*read).or_default().push((offset, size));
            }
        }
    }

    /// A block that is given to a function, which may write all of it; or a chunk's start, to what frees or copies it.
    pub(super) fn note_given(&mut self, callee: Option<Key>, arguments: &[Value; 6]) {
        if self.watch != Watch::All {
            return;
        }
        let source = match callee.map(|callee| self.program.name(callee)) {
            Some("free") => Some(arguments[0]),
            Some(name) if COPY.contains(&name) => Some(arguments[1]),
            _ => None,
        };
        if let Some(Value::Allocated { origins, .. }) = source {
            let carving = &mut self.outcome.carving;
            let reads = self.origins.calls(origins).iter();
            let cells = reads.filter_map(|read| carving.loads.get(read));
            carving.counts.left.extend(cells.map(|(cell, _)| *cell));
        }
        for argument in arguments {
            if let Value::Allocated { .. } = argument {
                let whole = Address {
                    value: *argument,
                    base: None,
                    displacement: 0,
                    indexed: false,
                };
                self.note_use(&whole, usize::MAX, true);
            }
        }
    }
}

impl Interpreter<'_, '_> {
    /// What a write of a known count tells of; `None` if nothing should be told of it.
    pub(super) fn count_write(
        &self,
        cell: Cell,
        counted: Counted,
        growth: Growth,
        at: u64,
    ) -> Option<CountWrite> {
        let (base, held, room) = match counted.chunk {
            Chunk::Held(base) => (base, true, 0),
            Chunk::Array(base, room) => (base, false, room),
        };
        let (base, fixed) = match (cell, base) {
            (Cell::Member(record, offset), Cell::Member(other, base)) if record == other => {
                (base.checked_sub(offset)?, false)
            }
            (_, Cell::Global(address)) => (i64::try_from(address).ok()?, true),
            _ => return None,
        };
        // Another chunk is begun there: what was taken of the one before stays.
        let counts = &self.outcome.carving.counts;
        let is_begun = held
            && counts
                .filled
                .iter()
                .any(|(filled, _)| counted.chunk == Chunk::Held(*filled));
        if growth == Growth::Set && is_begun {
            return None;
        }
        let size = match cell {
            Cell::Member(record, offset) => self.types.number_size(record, offset)?,
            Cell::Global(address) => {
                let (target, offset) = self.global_at(address)?;
                self.types.number_size(target, offset)?
            }
        };
        let written = self.instruction_at(at)?.memory_size().size();
        if size == 4 && written != 4 || size == 8 && written < 8 {
            return None;
        }
        Some(CountWrite {
            base,
            fixed,
            held,
            room: if fixed { room } else { 0 },
            scale: counted.scale,
            narrow: size == 4,
            step: match growth {
                Growth::By(step) => Some(step),
                _ => None,
            },
            rounded: match growth {
                Growth::Rounded(bits) => bits,
                _ => 0,
            },
            only_back: growth == Growth::Set,
        })
    }
}

impl Allocators<'_> {
    /// Bytes of what a cell counts.
    pub(super) fn unit_of(&self, cell: Cell) -> i64 {
        match self.cursors.get(&cell) {
            Some((Moved::Counted(counted), _)) => i64::from(counted.scale),
            _ => 1,
        }
    }
}

impl Types<'_> {
    /// The bytes of the number at an offset in a type.
    fn number_size(&self, target: TypeIndex, offset: i64) -> Option<u64> {
        let leaves = self.leaves(target, u64::try_from(offset).ok()?);
        self.size(*leaves.first()?)
    }

    /// Whether a number lies at an offset in a type that may say how much of something is taken.
    pub(super) fn is_count(&self, target: TypeIndex, offset: i64) -> bool {
        let leaves = u64::try_from(offset).map(|offset| self.leaves(target, offset));
        let is_number =
            |at: &TypeIndex| self.is_integer(*at) && matches!(self.size(*at), Some(4 | 8));
        matches!(leaves.as_deref(), Ok([leaf]) if is_number(leaf))
    }

    /// The array of bytes or numbers in a type that `offset` lies in, or that is the only one behind it: its offset, its bytes (0: not stated), and those of one
    /// element. What lies behind a record without any is one.
    pub(super) fn raw_array(&self, index: TypeIndex, offset: i64) -> Option<(i64, u64, u64)> {
        let mut arrays = Vec::new();
        self.raw_arrays(index, 0, 6, &mut arrays);
        let lies_in = |(begin, room, _): &&(i64, u64, u64)| {
            let within = offset
                .checked_sub(*begin)
                .and_then(|at| u64::try_from(at).ok());
            within.is_some_and(|at| *room == 0 || at < *room)
        };
        if let Some(found) = arrays.iter().rev().find(lies_in) {
            return Some(*found);
        }
        let size = i64::try_from(self.size(index)?).ok()?;
        if offset >= 0 && self.is_structure(index) && arrays.is_empty() {
            return Some((size, 0, 1));
        }
        let mut behind = arrays.iter().filter(|(begin, ..)| *begin > offset);
        match (behind.next(), behind.next()) {
            (Some(only), None) if offset >= 0 => Some(*only),
            _ => None,
        }
    }

    /// All arrays of bytes or numbers in a type.
    pub(super) fn raw_arrays(
        &self,
        index: TypeIndex,
        at: i64,
        depth: u32,
        out: &mut Vec<(i64, u64, u64)>,
    ) {
        let index = self.strip(index);
        let (Some(entry), Some(depth)) = (self.get(index), depth.checked_sub(1)) else {
            return;
        };
        match entry.kind {
            TypeKind::Array => {
                let element = entry.target.map(|at| self.strip(at));
                let is_number = |at: TypeIndex| {
                    self.get(at)
                        .is_some_and(|element| element.kind == TypeKind::Base)
                };
                if let Some(element) = element.filter(|at| is_number(*at))
                    && let Some(unit) = self.size(element).filter(|unit| *unit > 0)
                {
                    let room = self.size(index).filter(|room| *room > unit);
                    out.push((at, room.unwrap_or(0), unit));
                }
            }
            TypeKind::Struct | TypeKind::Class | TypeKind::Union if out.len() < 16 => {
                for member in &entry.members {
                    let begin = i64::try_from(member.offset).ok();
                    if let Some(begin) = begin.and_then(|begin| begin.checked_add(at)) {
                        self.raw_arrays(member.r#type, begin, depth, out);
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether an offset in a type has a pointer to bytes that may be written.
    pub(super) fn is_raw_pointer(&self, index: TypeIndex) -> bool {
        let raw = match self.pointee(index) {
            Some(Pointee::Void) => true,
            Some(Pointee::Type(target)) => self.is_character(target),
            None => false,
        };
        raw && !self.points_to_const(index)
    }
}
