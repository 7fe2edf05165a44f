//! *Which code cuts blocks out of memory that is there already, by moving a pointer?*
//!
//! A *cursor* is a member or global that points to the next free byte of a chunk. Who takes the bytes it points to and
//! moves it by a size allocates, whether a function does so or code it was inlined into:
//!
//! ```text
//!   block = pool->next;  pool->next = block + size;      (or, downwards, pool->next -= size; block = pool->next)
//!                        ~~~~~~~~~~ the site is this write
//! ```
//!
//! A cursor may also count: `block = pool->start + pool->used; pool->used += size`.
//!
//! That code of this shape is an allocator and no reader of a buffer is told by functions: one hands out the bytes
//! as they were pointed to, not `const`, their number is computed from its parameters, and somewhere it gets memory for more; but not by having what
//! it cuts from reallocated, which would move the blocks, and is how buffers grow.
//! The cursors of such functions are then known wherever they are moved.

use super::allocators::{Allocator, Allocators};
use super::arenas;
use super::calls::{Body, Key, Program, each_instruction};
use super::counting::{Chunk, Counted, CountsSeen, Filler, Growth};
use super::handing::rule_of;
use super::model::{self, Makes, Size};
use super::outcome::Outcome;
use super::parameters::parameters;
use super::typing::{Pointee, Types};
use super::value::{ANYWHERE, Value, is_number};
use iced_x86::{Mnemonic, OpKind, Register};
use pointee_model::image::{TypeIndex, TypeKind};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Calls followed to see whether a pool gets memory for more: through the function that makes a chunk, and the
/// program's checked malloc.
pub(super) const DEPTH: u32 = 4;

/// Calls followed to see whether it has its chunk reallocated. What is further away than its own helper, checked mallocs that report
/// errors for one, reallocates other things.
const HELPERS: u32 = 1;

/// A place that keeps a pointer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Cell {
    /// A member, by offset, of every object of a type.
    Member(TypeIndex, i64),
    /// A variable with a fixed address.
    Global(u64),
}

/// How a cursor is moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Moved {
    /// By the size of the block.
    BySize,
    /// The same, downwards.
    Down,
    /// To where another pointer of the pool has gone already, as obstacks do.
    ToTheEnd,
    /// By the size of the block; it is a number.
    Counted(Counted),
    /// Not at all: it is where such a number counts from.
    Base,
}

/// Which cells an interpretation takes for cursors.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Watch {
    /// The known ones.
    #[default]
    Known,
    /// Each pointer to bytes: to find out.
    All,
}

/// What was seen of cursors in one function.
#[derive(Default)]
pub(super) struct Carving {
    /// By instruction that reads one.
    pub(super) loads: HashMap<u64, (Cell, Keeps)>,
    /// What is added to, or taken off, what an instruction has read.
    pub(super) steps: HashMap<u64, Step>,
    pub(super) writes: Vec<Write>,
    /// By instruction, every write of a known cursor, also what sets it back: the cursor, where in the operand it lies, and of a number how it changes.
    pub(super) moves: BTreeMap<u64, (Cell, i64, Growth)>,
    /// What was seen of numbers.
    pub(super) counts: CountsSeen,
}

/// What a cursor is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeps {
    Pointer,
    /// The number of bytes that are taken, or of units of so many.
    Count,
}

#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) by: Value,
    pub(super) down: bool,
}

/// A function that cuts blocks out of chunks.
struct Pool {
    at: u32,
    /// What its callers get.
    allocator: Allocator,
    cell: Cell,
    keeps: Keeps,
    /// The pointer to what the cursor counts in.
    held: Option<Cell>,
    /// Whether the cursor goes down.
    down: bool,
}

/// A write that moves a cursor.
pub(super) struct Write {
    pub(super) address: u64,
    pub(super) cell: Cell,
    /// The reads whose value, moved, is written.
    pub(super) reads: Vec<u64>,
    /// Bytes, if a constant number.
    pub(super) by: Option<i64>,
}

/// Adds the functions that cut blocks out of chunks, the cursors they move, and the other code that may move these.
pub(super) fn add<'f>(program: &Program<'f>, types: &Types<'f>, allocators: &mut Allocators<'f>) {
    for (record, member, within) in model::CURSORS {
        let cell = types.record(record).and_then(|record| {
            let members = &types.get(record)?.members;
            let offset = members.iter().find(|known| known.name == *member)?.offset;
            Some(Cell::Member(record, i64::try_from(offset).ok()?))
        });
        let entry = cell.map(|cell| (cell, (Moved::ToTheEnd, *within)));
        allocators.cursors.extend(entry);
    }
    // What grows a block that is under way there hands out a part of it.
    let modelled: HashSet<TypeIndex> = allocators
        .cursors
        .keys()
        .filter_map(|cell| record_of(*cell))
        .collect();
    let found: Vec<Pool> = program
        .bodies
        .par_iter()
        .enumerate()
        .filter(|(at, body)| {
            may_be_pool(types, body) && allocators.get(Key::Local(*at as u32)).is_none()
        })
        .filter_map(|(at, body)| {
            let outcome = arenas::watch(program, types, allocators, body);
            let pool = pool(types, body, at as u32, &outcome)?;
            let record = record_of(pool.cell);
            record
                .is_none_or(|it| !modelled.contains(&it))
                .then_some(pool)
        })
        .collect();
    // What goes down is no reader, nor is what lies in one record with it.
    let gets_more: Vec<bool> = found
        .iter()
        .map(|pool| pool.down || gets_memory(program, allocators, pool.at, DEPTH))
        .collect();
    let records: HashSet<TypeIndex> = found
        .iter()
        .zip(&gets_more)
        .filter_map(|(pool, gets_more)| record_of(pool.cell).filter(|_| *gets_more))
        .collect();
    let held: HashSet<Cell> = found.iter().filter_map(|pool| pool.held).collect();
    let fillers = arenas::fillers(program, types, allocators, &held);
    let is_regrown = |pool: &Pool| {
        let mut fillers = fillers.iter();
        fillers.any(|(cell, filler)| Some(*cell) == pool.held && *filler == Filler::Reallocated)
    };
    let grows: Vec<bool> = found
        .iter()
        .map(|pool| reallocates(program, allocators, pool.at, HELPERS) || is_regrown(pool))
        .collect();
    let buffers: HashSet<TypeIndex> = found
        .iter()
        .zip(&grows)
        .filter_map(|(pool, grows)| record_of(pool.cell).filter(|_| *grows))
        .collect();
    let counts = arenas::find(program, types, allocators);
    for ((pool, gets_more), grows) in found.into_iter().zip(gets_more).zip(grows) {
        if grows || record_of(pool.cell).is_some_and(|known| buffers.contains(&known)) {
            continue;
        }
        let is_known = counts.contains_key(&pool.cell)
            || record_of(pool.cell).is_some_and(|known| records.contains(&known));
        if gets_more || is_known {
            if pool.keeps == Keeps::Pointer {
                let moved = if pool.down {
                    Moved::Down
                } else {
                    Moved::BySize
                };
                allocators.cursors.insert(pool.cell, (moved, ""));
            }
            allocators.pools.insert(pool.at);
            allocators.insert(Key::Local(pool.at), pool.allocator);
        }
    }
    arenas::insert(counts, allocators);
    if !allocators.cursors.is_empty() {
        let cursors = allocators.cursors.iter();
        let moved = cursors.filter(|(_, (moved, _))| *moved != Moved::Base);
        let cells: HashSet<Cell> = moved.map(|(cell, _)| *cell).collect();
        let movers = program.bodies.par_iter().enumerate();
        let movers: HashSet<u64> = movers
            .filter(|(at, body)| {
                body.function.is_some()
                    && !allocators.pools.contains(&(*at as u32))
                    && writes_at(program, types, allocators, body, &cells, true)
                    && counts_here(allocators, body)
            })
            .map(|(_, body)| body.entry)
            .collect();
        allocators.movers = movers;
    }
}

/// Whether a function is none of those that manage what a cursor lies in.
fn counts_here(allocators: &Allocators<'_>, body: &Body<'_>) -> bool {
    let mut cursors = allocators.cursors.values();
    cursors.all(|(_, within)| within.is_empty() || !is_within(body.name, within))
}

pub(super) fn cursor_name(types: &Types<'_>, allocators: &Allocators<'_>, cell: Cell) -> String {
    match cell {
        Cell::Member(record, offset) => types.path(record, offset),
        Cell::Global(address) => {
            let name = allocators.global_name(address);
            let member = allocators.global_at(address).map(|(target, offset)| {
                let path = types.path(target, offset);
                let start = types.path(target, -1).len();
                path.get(start..).unwrap_or_default().to_owned()
            });
            name + &member.unwrap_or_default()
        }
    }
}

fn record_of(cell: Cell) -> Option<TypeIndex> {
    match cell {
        Cell::Member(record, _) => Some(record),
        Cell::Global(_) => None,
    }
}

/// Whether a function hands out bytes that may be written, and is given a number.
fn may_be_pool(types: &Types<'_>, body: &Body<'_>) -> bool {
    let Some(result) = body.function.and_then(|function| function.result) else {
        return false;
    };
    let bytes = match types.pointee(result) {
        Some(Pointee::Void) => true,
        Some(Pointee::Type(target)) => types.is_character(target),
        None => false,
    };
    let given = parameters(body, types).by_register;
    let is_number = |at: TypeIndex| types.is_integer(types.strip(at)) && types.size(at) >= Some(4);
    bytes
        && !types.points_to_const(result)
        && given
            .iter()
            .flatten()
            .any(|parameter| is_number(parameter.r#type))
}

/// A function that returns what a cursor pointed to and moves it by a size that its callers ask for.
fn pool(types: &Types<'_>, body: &Body<'_>, at: u32, outcome: &Outcome) -> Option<Pool> {
    let result = body.function?.result?;
    let base = match types.pointee(result)? {
        Pointee::Void => None,
        Pointee::Type(target) => Some(target),
    };
    let carving = &outcome.carving;
    let (cell, keeps, write, step) = outcome.returned.iter().find_map(|(read, offset)| {
        let (cell, keeps) = *carving.loads.get(read)?;
        carving.writes.iter().find_map(|write| {
            let moved = write
                .reads
                .iter()
                .find_map(|read| carving.steps.get(read))?;
            let handed_out = match (keeps, moved.down) {
                (_, false) => *offset >= 0 && is_number(*offset),
                (Keeps::Count, true) => false,
                (Keeps::Pointer, true) => *offset == ANYWHERE && write.reads.contains(read),
            };
            (write.cell == cell && handed_out).then_some((cell, keeps, write, *moved))
        })
    })?;
    if write.by.is_some() {
        return None;
    }
    let size = rule_of(step.by);
    let from = match size {
        Size::Unknown => 0,
        Size::Argument { index, .. } => 1 << index,
        Size::Product(a, b) => 1 << a | 1 << b,
        Size::Derived(mask) => mask,
    };
    let given = parameters(body, types).by_register;
    let numbers: Vec<u8> = (0..)
        .zip(given)
        .filter(|(index, _)| from >> index & 1 == 1)
        .filter(|(_, parameter)| {
            let r#type = parameter.and_then(|parameter| types.get(types.strip(parameter.r#type)));
            r#type.is_some_and(|entry| entry.kind == TypeKind::Base)
        })
        .map(|(index, _)| index)
        .collect();
    // However it rounds up what it is asked for, that is what its callers get.
    let size = match (size, &numbers[..]) {
        (Size::Derived(_), [index]) => Size::Argument {
            index: *index,
            scale: 1,
            add: 0,
        },
        (size, _) => size,
    };
    (!numbers.is_empty()).then(|| Pool {
        at,
        allocator: Allocator {
            base,
            ..Allocator::of(size, Makes::Whatever)
        },
        cell,
        keeps,
        held: carving
            .counts
            .takes
            .iter()
            .find_map(|take| match take.counted.chunk {
                Chunk::Held(held) if take.cell == cell => Some(held),
                _ => None,
            }),
        down: step.down,
    })
}

/// Whether a function calls one that allocates, through others if need be.
pub(super) fn gets_memory(
    program: &Program<'_>,
    allocators: &Allocators<'_>,
    at: u32,
    depth: u32,
) -> bool {
    program.bodies[at as usize]
        .calls
        .iter()
        .any(|call| match call.callee {
            key if allocators.get(key).is_some() => true,
            Key::Local(callee) if depth > 0 && callee != at => {
                gets_memory(program, allocators, callee, depth - 1)
            }
            _ => false,
        })
}

/// Whether a function calls one that reallocates, through others if need be.
pub(super) fn reallocates(
    program: &Program<'_>,
    allocators: &Allocators<'_>,
    at: u32,
    depth: u32,
) -> bool {
    program.bodies[at as usize].calls.iter().any(|call| {
        match (allocators.get(call.callee), call.callee) {
            (Some(allocator), _) => allocator.old.is_some(),
            (None, Key::Local(callee)) if depth > 0 && callee != at => {
                reallocates(program, allocators, callee, depth - 1)
            }
            _ => false,
        }
    })
}

/// Whether the code writes a word at the distance of one of `cells`, of four bytes too if `narrow`; most does not.
pub(super) fn writes_at(
    program: &Program<'_>,
    types: &Types<'_>,
    allocators: &Allocators<'_>,
    body: &Body<'_>,
    cells: &HashSet<Cell>,
    narrow: bool,
) -> bool {
    let mut found = false;
    each_instruction(program.elf, body, |instruction| {
        // Two pointers may be written at once.
        let size = instruction.memory_size().size();
        let word = matches!(
            instruction.mnemonic(),
            Mnemonic::Mov | Mnemonic::Add | Mnemonic::Sub | Mnemonic::Inc | Mnemonic::Dec
        ) && (size == 8 || narrow && size == 4);
        let pair = size == 16 && instruction.op1_register().is_xmm();
        if found || instruction.op0_kind() != OpKind::Memory || !(word || pair) {
            return;
        }
        found = if instruction.is_ip_rel_memory_operand() {
            let address = instruction.ip_rel_memory_address();
            let above = address.wrapping_add(8);
            is_one_at(types, allocators, cells, address)
                || pair && is_one_at(types, allocators, cells, above)
        } else {
            let distance = instruction.memory_displacement64() as i64;
            let written = distance..distance.saturating_add(size as i64);
            instruction.memory_base() != Register::RSP
                && cells
                    .iter()
                    .any(|cell| matches!(cell, Cell::Member(_, offset) if written.contains(offset)))
        };
    });
    found
}

/// Whether a function is one of those that manage a record, whose names begin so; gnulib's copies have a prefix.
fn is_within(name: &str, within: &str) -> bool {
    let name = name.strip_prefix("rpl").unwrap_or(name);
    name.trim_start_matches('_').starts_with(within)
}

/// Whether one of `cells` lies at a fixed address.
fn is_one_at(
    types: &Types<'_>,
    allocators: &Allocators<'_>,
    cells: &HashSet<Cell>,
    address: u64,
) -> bool {
    let member = || {
        let (target, offset) = allocators.global_at(address)?;
        let (record, offset) = types.innermost(target, offset);
        Some(Cell::Member(record, offset))
    };
    cells.contains(&Cell::Global(address)) || member().is_some_and(|cell| cells.contains(&cell))
}
