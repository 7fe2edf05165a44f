//! *Which functions change a number just as the cursor of a pool is changed?* — as far as their instructions tell one by one, since few are worth
//! being looked at more closely ([`super::arenas`]).

use super::allocators::Allocators;
use super::calls::{Body, Program, contains, each_instruction};
use super::counting;
use super::pools::Cell;
use super::typing::{Pointee, Types};
use crate::facts::Function;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use pointee_model::image::TypeIndex;
use std::collections::{HashMap, HashSet};

/// Bytes that a record may have: what grows by less counts other things.
const RECORD: std::ops::Range<u64> = 8..1 << 20;

/// The innermost inlined call that an instruction belongs to.
pub(super) fn innermost(function: &Function, address: u64) -> Option<usize> {
    let inlines = function.inlines.iter().enumerate();
    let around = inlines.filter(|(_, inline)| contains(&inline.ranges, address));
    around
        .max_by_key(|(_, inline)| inline.depth)
        .map(|(at, _)| at)
}

/// Of each record that has bytes, or a pointer to them, where it has numbers, from its start.
pub(super) fn counts(types: &Types<'_>) -> HashMap<TypeIndex, Vec<(i64, Cell)>> {
    let mut found = HashMap::new();
    for index in 0..types.types.len() as TypeIndex {
        if !types.is_structure(index) || types.strip(index) != index {
            continue;
        }
        let mut parts = Parts::default();
        parts.add(types, index, 0, 4);
        if parts.has_bytes && !parts.numbers.is_empty() {
            let numbers = parts.numbers.into_iter().map(|at| {
                let (record, offset) = types.innermost(index, at);
                (at, Cell::Member(record, offset))
            });
            found.insert(index, numbers.collect());
        }
    }
    found
}

/// The records that are at hand where there is something of a type: itself, what it points to, and what members of that point to.
fn records_at(types: &Types<'_>, of: TypeIndex, mut each: impl FnMut(TypeIndex)) {
    let pointed = |mut of: TypeIndex| {
        for _ in 0..2 {
            let Some(Pointee::Type(target)) = types.pointee(of) else {
                break;
            };
            of = target;
        }
        types.strip(of)
    };
    let record = pointed(of);
    each(record);
    if types.is_structure(record)
        && let Some(entry) = types.get(record)
    {
        for member in &entry.members {
            each(pointed(member.r#type));
        }
    }
}

#[derive(Default)]
struct Parts {
    numbers: Vec<i64>,
    has_bytes: bool,
}

impl Parts {
    fn add(&mut self, types: &Types<'_>, index: TypeIndex, at: i64, depth: u32) {
        let Some(entry) = types.get(types.strip(index)) else {
            return;
        };
        for member in &entry.members {
            let Ok(offset) = i64::try_from(member.offset) else {
                continue;
            };
            let offset = offset.saturating_add(at);
            let r#type = types.strip(member.r#type);
            if types.is_structure(r#type) {
                if depth > 0 && self.numbers.len() < 256 {
                    self.add(types, r#type, offset, depth - 1);
                }
            } else if types.is_count(r#type, 0) && member.bit_size == 0 {
                self.numbers.push(offset);
            } else if types.is_raw_pointer(r#type) {
                self.has_bytes = true;
            } else {
                let mut arrays = Vec::new();
                types.raw_arrays(r#type, 0, 1, &mut arrays);
                self.has_bytes |= !arrays.is_empty();
            }
        }
    }
}

/// Where a number was read: at a fixed address, or so far from something; and its size.
type Place = (bool, u64, usize);

/// Which numbers a function changes just as cursors are, as far as its instructions tell one by one.
#[derive(Default)]
pub(super) struct Changes {
    /// Those so far from something.
    offsets: HashSet<i64>,
    /// Those of variables, or of their members.
    variables: HashSet<Cell>,
}

/// Registers and places on the stack that hold what was read; and whether as much was added as a record may have.
#[derive(Default)]
struct Holders {
    registers: HashMap<Register, (Place, bool)>,
    stack: HashMap<u64, (Place, bool)>,
    /// What was read and added to what may be a pointer.
    summed: HashSet<Place>,
}

impl Holders {
    fn sum(&mut self, register: Register) {
        if let Some((place, _)) = self.registers.get(&register) {
            self.summed.insert(*place);
        }
    }

    /// What a register instruction does.
    fn step(&mut self, instruction: &Instruction, to: Register, from: Register) {
        let base = instruction.memory_base().full_register();
        let index = instruction.memory_index().full_register();
        let copied = match instruction.mnemonic() {
            Mnemonic::Lea => {
                let by = instruction.memory_displacement64();
                if index != Register::None || by >= counting::LOWEST_ADDRESS as u64 {
                    self.sum(base);
                    self.sum(index);
                }
                let more = self.registers.get(&base).filter(|_| RECORD.contains(&by));
                more.map(|(place, _)| (*place, true))
            }
            Mnemonic::Add if to != Register::None => {
                let by = instruction.try_immediate(1).unwrap_or(0);
                if instruction.op0_register().size() == 8 && by == 0 {
                    self.sum(to);
                    self.sum(from);
                }
                let more = self.registers.get(&to).filter(|_| RECORD.contains(&by));
                more.map(|(place, _)| (*place, true))
            }
            Mnemonic::Mov | Mnemonic::Movsxd if from != Register::None => {
                self.registers.get(&from).copied()
            }
            _ => None,
        };
        if let Some(copied) = copied.filter(|_| to != Register::None) {
            self.registers.insert(to, copied);
        }
    }
}

impl Changes {
    /// `None`: it changes no number at one of the offsets, and none that is a variable.
    pub(super) fn of(
        program: &Program<'_>,
        types: &Types<'_>,
        allocators: &Allocators<'_>,
        offsets: &HashSet<i64>,
        body: &Body<'_>,
    ) -> Option<Self> {
        let function = body.function?;
        let mut read: HashSet<Place> = HashSet::new();
        let mut holders = Holders::default();
        // Those that are changed, and whether so as a cursor is.
        let mut changed: HashMap<Place, bool> = HashMap::new();
        each_instruction(program.elf, body, |instruction| {
            let [to, from] = [0, 1].map(|operand| match instruction.op_kind(operand) {
                OpKind::Register => instruction.op_register(operand).full_register(),
                _ => Register::None,
            });
            holders.step(instruction, to, from);
            let size = instruction.memory_size().size();
            let is_number = matches!(size, 4 | 8)
                && instruction.op_kinds().any(|kind| kind == OpKind::Memory)
                && instruction.memory_index() == Register::None
                && instruction.mnemonic() != Mnemonic::Lea;
            if !is_number {
                return;
            }
            let fixed = instruction.is_ip_rel_memory_operand();
            let at = match fixed {
                true => instruction.ip_rel_memory_address(),
                false => instruction.memory_displacement64(),
            };
            let place = (fixed, at, size);
            let on_stack = matches!(instruction.memory_base(), Register::RSP | Register::RBP);
            if instruction.op0_kind() != OpKind::Memory {
                let kept = holders.stack.get(&at).filter(|_| on_stack);
                let what = kept.copied().unwrap_or((place, false));
                read.insert(place);
                match instruction.mnemonic() {
                    // One of both may be the number, and the other the pointer.
                    Mnemonic::Add if size == 8 => {
                        holders.sum(to);
                        holders.summed.insert(what.0);
                    }
                    Mnemonic::Mov | Mnemonic::Movsxd if to != Register::None => {
                        holders.registers.insert(to, what);
                    }
                    _ => {}
                }
                return;
            }
            let held = holders.registers.get(&from).copied();
            if let Some(held) = held.filter(|_| on_stack) {
                holders.stack.insert(at, held);
            }
            if !is_change(instruction) && !read.contains(&place) {
                return;
            }
            let as_record = match instruction.mnemonic() {
                Mnemonic::Add => RECORD.contains(&instruction.try_immediate(1).unwrap_or(0)),
                _ => held == Some((place, true)),
            };
            let is_known = match fixed {
                true => allocators
                    .global_at(at)
                    .is_some_and(|(target, offset)| types.is_count(target, offset)),
                false => offsets.contains(&(at as i64)),
            };
            if is_known {
                *changed.entry(place).or_default() |=
                    as_record || hands_out_bytes(types, function, instruction.ip());
            }
        });
        let mut found = Self::default();
        for (place, as_cursor) in &changed {
            match *place {
                _ if !as_cursor || !holders.summed.contains(place) => {}
                (true, at, _) => drop(found.variables.insert(Cell::Global(at))),
                (false, at, _) => drop(found.offsets.insert(at as i64)),
            }
        }
        (!changed.is_empty()).then_some(found)
    }

    /// Which these may be, as far as the function's variables tell.
    pub(super) fn cells(
        self,
        types: &Types<'_>,
        function: &Function,
        counts: &HashMap<TypeIndex, Vec<(i64, Cell)>>,
    ) -> HashSet<Cell> {
        let mut cells = self.variables;
        let mut seen = HashSet::new();
        for of in function.variables.iter().filter_map(|it| it.r#type) {
            if !seen.insert(of) {
                continue;
            }
            records_at(types, of, |record| {
                let counts = counts.get(&record).into_iter().flatten();
                let own = counts.filter(|(at, _)| self.offsets.contains(at));
                cells.extend(own.map(|(_, cell)| *cell));
            });
        }
        cells
    }
}

/// Whether an instruction makes what lies in memory more or less.
fn is_change(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Add | Mnemonic::Sub | Mnemonic::Inc | Mnemonic::Dec
    )
}

/// Whether the function, inlined or not, that an instruction belongs to hands out bytes.
fn hands_out_bytes(types: &Types<'_>, function: &Function, address: u64) -> bool {
    let result = match innermost(function, address) {
        Some(inline) => function.inlines[inline].result,
        None => function.result,
    };
    result.is_some_and(|result| types.is_raw_pointer(result))
}
