//! *Which reads and writes of one function take a block off a pool?*
//!
//! A read of a cursor gives what may be a block; the write that moves the cursor makes it one. While pools are looked for, each
//! pointer to bytes is taken for a cursor.

use super::CursorWrite;
use super::counting::Growth;
use super::flow::Interpreter;
use super::memory::Address;
use super::outcome::{Met, Outcome, Seen};
use super::pools::{Carving, Cell, Keeps, Moved, Step, Watch, Write, cursor_name};
use super::state::State;
use super::typing::Pointee;
use super::value::{Value, is_number};
use pointee_model::image::TypeIndex;
use std::collections::{HashMap, HashSet};

impl<'f> Interpreter<'_, 'f> {
    /// Looks for cursors.
    pub(super) fn watching(mut self, watch: Watch) -> Self {
        self.watch = watch;
        self
    }

    /// The cell that an operand is, if it keeps a pointer to bytes.
    pub(super) fn cell(
        &self,
        address: &Address,
        object: Option<(TypeIndex, i64)>,
    ) -> Option<(Cell, Keeps)> {
        if address.indexed {
            return None;
        }
        let (target, offset) = object?;
        let keeps = match self.types.pointees_at(target, offset)[..] {
            [Pointee::Void] => Keeps::Pointer,
            [Pointee::Type(target)] if self.types.is_character(target) => Keeps::Pointer,
            [] if self.types.is_count(target, offset) => Keeps::Count,
            _ => return None,
        };
        let (record, offset) = self.types.innermost(target, offset);
        let member = Cell::Member(record, offset);
        let cell = match address.value {
            // What is a cursor in every object of a type is one in those at fixed addresses too.
            Value::Global(address) if !self.allocators.cursors.contains_key(&member) => {
                Cell::Global(address)
            }
            _ => member,
        };
        Some((cell, keeps))
    }

    /// How a cell is moved, if it is watched.
    pub(super) fn moved(&self, cell: Cell) -> Option<Moved> {
        match self.watch {
            Watch::All => Some(Moved::BySize),
            Watch::Known => self.allocators.cursors.get(&cell).map(|(moved, _)| *moved),
        }
    }

    pub(super) fn watches(&self) -> bool {
        self.watch == Watch::All || self.moves_cursors
    }

    /// What a read of a cursor gives: perhaps a block.
    pub(super) fn read_cursor(
        &mut self,
        address: &Address,
        object: Option<(TypeIndex, i64)>,
        at: u64,
    ) -> Option<Value> {
        if !self.watches() {
            return None;
        }
        let (cell, keeps) = self.cell(address, object)?;
        self.moved(cell)?;
        self.carving().loads.insert(at, (cell, keeps));
        let origins = self.carved(at);
        Some(match keeps {
            Keeps::Pointer => Value::Allocated { origins, offset: 0 },
            Keeps::Count => Value::Count {
                reads: origins,
                rounded: 0,
                scale: 1,
                anew: false,
                add: 0,
            },
        })
    }

    /// `a + b` or `a - b`, of which one may be what a cursor was.
    pub(super) fn note_step(&mut self, a: Value, b: Value, down: bool) {
        if !self.watches() {
            return;
        }
        let (origins, by) = match (a, b) {
            (Value::Allocated { .. }, Value::Count { .. })
            | (Value::Count { .. }, Value::Allocated { .. }) => return,
            (Value::Allocated { origins, .. } | Value::Count { reads: origins, .. }, by) => {
                (origins, by)
            }
            (by, Value::Allocated { origins, .. } | Value::Count { reads: origins, .. })
                if !down =>
            {
                (origins, by)
            }
            _ => return,
        };
        if !by.is_number() {
            return;
        }
        for read in self.origins.calls(origins).to_vec() {
            if self.carving().loads.contains_key(&read) {
                let known = self.carving().steps.get(&read).map(|step| step.by);
                // The distance to the end of the chunk, for one, comes from no parameter.
                if known.is_none_or(|known| known.from() == 0) {
                    self.carving().steps.insert(read, Step { by, down });
                }
            }
        }
    }

    /// A write of a word. Says whether it moves a cursor.
    pub(super) fn write_cursor(
        &mut self,
        address: &Address,
        size: usize,
        value: Value,
        state: &State,
        at: u64,
    ) -> bool {
        if !self.watches() {
            return false;
        }
        let object = self.object_at(address, state, at);
        let Some((cell, keeps)) = self.cell(address, object) else {
            return false;
        };
        let Some(moved) = self.moved(cell).filter(|moved| *moved != Moved::Base) else {
            return false;
        };
        if keeps == Keeps::Count {
            return self.write_count(cell, address, value, at);
        }
        if size != 8 {
            return false;
        }
        if self.watch == Watch::Known {
            let within = self.offset_in_operand(address, at);
            let moves = &mut self.carving().moves;
            moves.insert(at, (cell, within, Growth::Rounded(0)));
        }
        let carving = &self.outcome.carving;
        let of_cell = |read: &u64| carving.loads.get(read).is_some_and(|(of, _)| *of == cell);
        let (reads, by) = match (moved, value) {
            (Moved::BySize | Moved::Down, Value::Allocated { origins, offset }) if offset != 0 => {
                let calls = self.origins.calls(origins).iter().copied();
                (
                    calls.filter(of_cell).collect(),
                    Some(offset).filter(|by| is_number(*by)),
                )
            }
            (Moved::ToTheEnd, _) => {
                let before = carving.loads.keys().copied().filter(|read| *read < at);
                (before.filter(of_cell).collect::<Vec<u64>>(), None)
            }
            _ => return false,
        };
        if reads.is_empty() {
            return false;
        }
        self.carving().writes.push(Write {
            address: at,
            cell,
            reads,
            by,
        });
        true
    }

    /// How far an address lies in what the instruction at `at` writes: it may write two pointers at once.
    pub(super) fn offset_in_operand(&self, address: &Address, at: u64) -> i64 {
        let Some(instruction) = self.instruction_at(at) else {
            return 0;
        };
        match address.value {
            Value::Global(cell) if instruction.is_ip_rel_memory_operand() => {
                cell.wrapping_sub(instruction.ip_rel_memory_address()) as i64
            }
            _ => {
                let displacement = instruction.memory_displacement64() as i64;
                address.displacement.wrapping_sub(displacement)
            }
        }
    }

    /// Every write of a cursor in this function.
    fn cursor_writes(&self) -> Vec<CursorWrite> {
        let moves = self.outcome.carving.moves.iter();
        let writes = moves.filter_map(|(at, (cell, within, growth))| {
            let (moved, _) = self.allocators.cursors.get(cell)?;
            let count = match moved {
                Moved::Counted(counted) => Some(self.count_write(*cell, *counted, *growth, *at)?),
                _ => None,
            };
            Some(CursorWrite {
                address: *at,
                next: self.next_ip(*at)?,
                cursor: cursor_name(self.types, self.allocators, *cell),
                within: u8::try_from(*within).ok().filter(|within| *within <= 8)?,
                down: *moved == Moved::Down,
                count,
            })
        });
        writes.collect()
    }

    fn carving(&mut self) -> &mut Carving {
        &mut self.outcome.carving
    }

    /// The blocks become those of the writes that take them off their pools; what turned out to be no block is forgotten.
    pub(super) fn settle_cursors(&mut self) {
        if self.watch == Watch::All {
            return;
        }
        self.outcome.cursor_writes = self.cursor_writes();
        if self.outcome.carving.loads.is_empty() {
            return;
        }
        let writes = self.outcome.carving.writes.iter();
        let after: HashMap<u64, u64> = writes
            .filter_map(|write| Some((write.address, self.next_ip(write.address)?)))
            .collect();
        let Outcome {
            carving,
            met,
            observations,
            returned,
            handed,
            ..
        } = &mut self.outcome;
        let mut taken_by: HashMap<u64, u64> = HashMap::new();
        for (read, (cell, _)) in &carving.loads {
            let mut own = carving.writes.iter().filter(|write| write.cell == *cell);
            let nearest = own
                .clone()
                .filter(|write| write.reads.contains(read))
                .chain(carving.writes.iter().filter(|write| write.cell == *cell))
                .find(|write| write.address >= *read)
                .or_else(|| own.next());
            taken_by.extend(nearest.map(|write| (*read, write.address)));
        }
        let settle = |call: &mut u64| match (taken_by.get(call), carving.loads.get(call)) {
            (Some(write), _) => {
                *call = *write;
                true
            }
            (None, is_read) => is_read.is_none(),
        };
        observations.retain_mut(|seen| {
            let holder = match &mut seen.seen {
                Seen::Into { call, .. } => settle(call),
                _ => true,
            };
            holder && settle(&mut seen.call)
        });
        returned.retain_mut(|(call, _)| settle(call));
        handed.retain_mut(|(call, _)| settle(call));
        let seen: HashSet<u64> = observations.iter().map(|seen| seen.call).collect();
        let mut writes: Vec<&Write> = carving.writes.iter().collect();
        writes.sort_by_key(|write| write.address);
        writes.dedup_by_key(|write| write.address);
        for write in writes {
            if seen.contains(&write.address) {
                let step = write.reads.iter().find_map(|read| carving.steps.get(read));
                let place = cursor_name(self.types, self.allocators, write.cell);
                let size = match write.by {
                    Some(by) => Value::Constant(by.abs()),
                    None => step.map_or(Value::Unknown, |step| step.by),
                };
                let size = size.times(self.allocators.unit_of(write.cell));
                let next = after.get(&write.address).copied();
                met.extend(next.map(|next| Met::carved(write.address, next, place, size)));
            }
        }
    }
}
