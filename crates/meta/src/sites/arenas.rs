//! *Which numbers are the cursors of pools?*
//!
//! Many numbers are added to pointers and grow: lengths of texts, places in what is read, tops of stacks, indexes of rings. One says how much of a
//! chunk is handed out if, in the whole file,
//!
//! - wherever it grows, what lay between it and where it was is a block that is kept: stored as a pointer, handed on, or returned;
//! - always of the same chunk, which is an array of bytes or numbers, or is kept in a pointer to bytes that is set to fresh memory, or to what a caller
//!   gives, and never to what was reallocated (so buffers of text are none);
//! - somewhere it is compared with a limit;
//! - nothing is taken off it (stacks are none), and code that makes it grow does not set it to a number without getting memory (rings are none);
//! - no block is read where nothing was written (what is read from a file, or received, is none);
//! - and somewhere the block has what makes it one: the code is that of a function that returns a pointer to no type or to bytes, inlined or not; or it
//!   is kept as a record, and the number grew by the size of that, or by that rounded up.
//!
//! Arrays of records need none of this: what lies in them has their type. Marks and releases set the number back, and take back what lies behind.

use super::allocators::Allocators;
use super::calls::{Body, Program};
use super::changing::{Changes, counts, innermost};
use super::counting::{Chunk, Counted, Filler, Take};
use super::flow::Interpreter;
use super::outcome::{Outcome, Seen};
use super::pools::{self, Cell, DEPTH, Moved, Watch, Write};
use super::typing::{Pointee, Types};
use super::value::{Computed, Value, is_number};
use pointee_model::evidence::Witness;
use pointee_model::image::TypeIndex;
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};

/// A record's size may be rounded up to a multiple of this, at most.
const LARGEST_ALIGNMENT: u64 = 64;

/// Functions that are looked at first, then twice as many, and so on.
const FEW: usize = 32;

/// One place where a number grows.
struct Growth {
    cell: Cell,
    /// What it counts, if a block was seen there.
    counted: Option<Counted>,
    is_kept: bool,
    /// Whether the function there, inlined or not, returns a pointer to no type, or to bytes.
    by_function: Option<Pointee>,
    /// Whether the block is a record, of just the size that the number grew by.
    is_record: bool,
    /// Whether something is seen of it that is a record.
    has_record: bool,
    /// Whether something is written to the block, or its size rounded, as nobody does who reads.
    is_filled: bool,
    /// Whether something is read from it that was not written there.
    is_read: bool,
    /// Whether the number begins anew there.
    is_ring: bool,
}

impl Growth {
    /// Whether what lies between is a block, as it is wherever a pool's cursor grows.
    const fn is_block(&self) -> bool {
        self.counted.is_some() && self.is_kept && !self.is_read && !self.is_ring
    }
}

/// A function that changes numbers.
struct Changing<'p, 'f> {
    at: u32,
    body: &'p Body<'f>,
    /// Those of which it may show that they are cursors, as far as its variables tell.
    cells: HashSet<Cell>,
}

impl Changing<'_, '_> {
    /// Whether it may show that of one that is not dead.
    fn tells(&self, dead: &HashSet<Cell>) -> bool {
        !self.cells.is_subset(dead)
    }
}

/// What one function tells.
#[derive(Default)]
struct Seeing {
    growths: Vec<Growth>,
    limited: HashSet<Cell>,
    lowered: HashSet<Cell>,
}

/// The numbers that are cursors.
pub(super) fn find<'f>(
    program: &Program<'f>,
    types: &Types<'f>,
    allocators: &Allocators<'f>,
) -> HashMap<Cell, Counted> {
    let counts = counts(types);
    let offsets: HashSet<i64> = counts.values().flatten().map(|(at, _)| *at).collect();
    let bodies = program.bodies.par_iter().enumerate();
    let changing: Vec<Changing<'_, '_>> = bodies
        .filter_map(|(at, body)| {
            let changes = Changes::of(program, types, allocators, &offsets, body)?;
            Some(Changing {
                at: at as u32,
                body,
                cells: changes.cells(types, body.function?, &counts),
            })
        })
        .collect();
    let see = |at: u32, body| seeing(program, types, allocators, body, at);
    // What shows that a number may be a cursor. Most numbers are known not to be one after a few functions, and need no more of them.
    let mut dead: HashSet<Cell> = HashSet::new();
    let mut seen: Vec<Seeing> = Vec::new();
    let mut looked_at: HashSet<u32> = HashSet::new();
    let mut waiting: Vec<&Changing<'_, '_>> = changing.iter().collect();
    let mut many = FEW;
    loop {
        waiting.retain(|it| it.tells(&dead));
        if waiting.is_empty() {
            break;
        }
        let rest = waiting.split_off(many.min(waiting.len()));
        let new = waiting.par_iter().map(|it| see(it.at, it.body));
        let new: Vec<Seeing> = new.collect();
        looked_at.extend(waiting.iter().map(|it| it.at));
        for seen in &new {
            dead.extend(&seen.lowered);
            let none = seen.growths.iter().filter(|growth| !growth.is_block());
            dead.extend(none.map(|growth| growth.cell));
        }
        seen.extend(new);
        (waiting, many) = (rest, many * 2);
    }
    let growths = seen.iter().flat_map(|seen| &seen.growths);
    let cells: HashSet<Cell> = growths
        .filter(|growth| growth.is_record || growth.by_function.is_some())
        .map(|growth| growth.cell)
        .filter(|cell| !dead.contains(cell))
        .collect();
    if cells.is_empty() {
        return HashMap::new();
    }
    // And what else there is of it.
    let others = changing.par_iter().filter(|it| {
        !looked_at.contains(&it.at)
            && pools::writes_at(program, types, allocators, it.body, &cells, true)
    });
    let others: Vec<Seeing> = others.map(|it| see(it.at, it.body)).collect();
    seen.extend(others);
    let mut limited = HashSet::new();
    let mut lowered = HashSet::new();
    let mut growths: HashMap<Cell, Vec<Growth>> = HashMap::new();
    for seen in seen {
        limited.extend(seen.limited);
        lowered.extend(seen.lowered);
        for growth in seen.growths {
            growths.entry(growth.cell).or_default().push(growth);
        }
    }
    let mut found: HashMap<Cell, Counted> = growths
        .into_iter()
        .filter(|(cell, _)| limited.contains(cell) && !lowered.contains(cell))
        .filter_map(|(cell, growths)| Some((cell, of_pool(&growths)?)))
        .filter(|(cell, counted)| can_be_told(*cell, counted.chunk))
        .collect();
    if found.is_empty() {
        return found;
    }
    let held: HashSet<Cell> = found
        .values()
        .filter_map(|counted| match counted.chunk {
            Chunk::Held(cell) => Some(cell),
            Chunk::Array(..) => None,
        })
        .collect();
    let fillers = fillers(program, types, allocators, &held);
    found.retain(|_, counted| match counted.chunk {
        Chunk::Array(..) => true,
        Chunk::Held(cell) => {
            let of_cell = |wanted: &[Filler]| {
                fillers
                    .iter()
                    .any(|(of, filler)| *of == cell && wanted.contains(filler))
            };
            of_cell(&[Filler::Allocated, Filler::Given]) && !of_cell(&[Filler::Reallocated])
        }
    });
    found
}

/// Whether what a number counts from can be found from where the number is.
fn can_be_told(count: Cell, chunk: Chunk) -> bool {
    let (Chunk::Held(base) | Chunk::Array(base, _)) = chunk;
    match (count, base) {
        (_, Cell::Global(_)) => true,
        (Cell::Member(record, _), Cell::Member(other, _)) => record == other,
        (Cell::Global(_), Cell::Member(..)) => false,
    }
}

/// What all the places where one number grows have in common, if it is a pool's.
fn of_pool(growths: &[Growth]) -> Option<Counted> {
    let counted = growths.first()?.counted?;
    let is_block = |growth: &Growth| growth.counted == Some(counted) && growth.is_block();
    let has_record = growths.iter().any(|growth| growth.has_record);
    let proves = |growth: &Growth| {
        growth.is_record
            || match growth.by_function {
                Some(Pointee::Void) => true,
                Some(Pointee::Type(_)) => has_record,
                None => false,
            }
    };
    let is_pool = growths.iter().all(is_block)
        && growths.iter().any(proves)
        && growths.iter().any(|growth| growth.is_filled);
    is_pool.then_some(counted)
}

fn seeing<'f>(
    program: &Program<'f>,
    types: &Types<'f>,
    allocators: &Allocators<'f>,
    body: &Body<'f>,
    at: u32,
) -> Seeing {
    let outcome = watch(program, types, allocators, body);
    let gets_memory = || pools::gets_memory(program, allocators, at, DEPTH);
    let is_count = |write: &&Write| {
        let mut reads = write.reads.iter();
        reads.all(|read| {
            let load = outcome.carving.loads.get(read);
            matches!(load, Some((_, pools::Keeps::Count)))
        })
    };
    let lowered = outcome.carving.counts.lowered.clone();
    let mut writes: Vec<&Write> = outcome.carving.writes.iter().filter(is_count).collect();
    writes.sort_by_key(|write| write.address);
    // Each block is of one write, and each write has its block.
    let mut taken: HashSet<u64> = HashSet::new();
    let growths = writes.into_iter().map(|write| {
        let takes = outcome.carving.counts.takes.iter();
        let own = takes.filter(|take| take.cell == write.cell && !taken.contains(&take.address));
        let near = own.min_by_key(|take| {
            let is_other = !write.reads.contains(&take.read);
            (is_other, take.address.abs_diff(write.address))
        });
        taken.extend(near.map(|take| take.address));
        growth(types, body, &outcome, write, near, gets_memory)
    });
    Seeing {
        growths: growths.collect(),
        limited: outcome.carving.counts.limited.clone(),
        lowered,
    }
}

fn growth(
    types: &Types<'_>,
    body: &Body<'_>,
    outcome: &Outcome,
    write: &Write,
    near: Option<&Take>,
    gets_memory: impl Fn() -> bool,
) -> Growth {
    let carving = &outcome.carving;
    let counts = &carving.counts;
    let reads: HashSet<u64> = match near {
        None => HashSet::new(),
        Some(near) => {
            let there = counts.takes.iter();
            let there =
                there.filter(|take| take.cell == write.cell && take.address == near.address);
            there.map(|take| take.read).collect()
        }
    };
    let is_it = |call: u64| reads.contains(&call);
    let function = body.function;
    let scope = function.and_then(|function| innermost(function, write.address));
    // It may have a header, which stays the pool's.
    let is_handed_out = |offset: i64| offset >= 0 && is_number(offset);
    let is_returned = outcome
        .returned
        .iter()
        .any(|(call, offset)| is_it(*call) && is_handed_out(*offset));
    let result = match scope.zip(function) {
        Some((inline, function)) => function.inlines[inline].result,
        None => function.and_then(|it| it.result).filter(|_| is_returned),
    };
    let by_function = result
        .filter(|result| types.is_raw_pointer(*result))
        .and_then(|result| types.pointee(result));
    let mut seen_as: Vec<TypeIndex> = Vec::new();
    let mut is_kept = is_returned || reads.iter().any(|read| outcome.stored.contains(read));
    for seen in outcome.observations.iter().filter(|seen| is_it(seen.call)) {
        is_kept |= matches!(
            seen.witness,
            Witness::Field | Witness::Global | Witness::Parameter | Witness::Constructor
        );
        if let Seen::Types(list) = &seen.seen {
            seen_as.extend(list.iter().filter(|at| types.is_structure(**at)));
        }
    }
    let counted = near.map(|take| take.counted);
    let bytes = write.by.and_then(|by| {
        let scale = counted.map_or(1, |counted| counted.scale);
        u64::try_from(by).ok()?.checked_mul(u64::from(scale))
    });
    let is_record = seen_as
        .iter()
        .filter_map(|at| types.size(*at))
        .any(|size| bytes.is_some_and(|bytes| is_rounded(size, bytes)));
    let uses = |of: &HashMap<u64, Vec<(i64, usize)>>| -> Vec<(i64, usize)> {
        reads
            .iter()
            .filter_map(|read| of.get(read))
            .flatten()
            .copied()
            .collect()
    };
    let (loaded, stored) = (uses(&counts.loaded), uses(&counts.stored));
    let is_written = |(from, len): &(i64, usize)| {
        let end =
            |from: i64, len: usize| from.saturating_add(i64::try_from(len).unwrap_or(i64::MAX));
        let mut stored = stored.iter();
        stored.any(|(at, size)| *at < end(*from, *len) && *from < end(*at, *size))
    };
    let step = write.reads.iter().find_map(|read| carving.steps.get(read));
    let is_rounded = step.is_some_and(|step| {
        matches!(
            step.by,
            Value::Linear {
                x: Computed::Nearly,
                ..
            }
        )
    });
    // In what it just got, it begins anew.
    let begins = counts.anew.contains(&write.address)
        || counts.set.iter().any(|(cell, at)| {
            *cell == write.cell && function.and_then(|function| innermost(function, *at)) == scope
        });
    Growth {
        cell: write.cell,
        counted,
        is_kept,
        by_function,
        is_record,
        has_record: !seen_as.is_empty(),
        is_filled: !stored.is_empty() || is_returned && (is_rounded || gets_memory()),
        is_read: !loaded.iter().all(is_written),
        is_ring: begins && !gets_memory(),
    }
}

/// Whether so many bytes are a size, or that rounded up.
fn is_rounded(size: u64, bytes: u64) -> bool {
    let mut alignment = 1;
    while alignment <= LARGEST_ALIGNMENT {
        if size > 0 && size.next_multiple_of(alignment) == bytes {
            return true;
        }
        alignment *= 2;
    }
    false
}

/// What the pointers to chunks are set to, in all of the file.
pub(super) fn fillers<'f>(
    program: &Program<'f>,
    types: &Types<'f>,
    allocators: &Allocators<'f>,
    held: &HashSet<Cell>,
) -> Vec<(Cell, Filler)> {
    if held.is_empty() {
        return Vec::new();
    }
    let bodies = (0..).zip(&program.bodies);
    let bodies: Vec<(u32, &Body<'_>)> =
        bodies.filter(|(_, body)| body.function.is_some()).collect();
    bodies
        .into_par_iter()
        .filter(|(_, body)| {
            has_one(types, body, held)
                || pools::writes_at(program, types, allocators, body, held, false)
        })
        .flat_map_iter(|(at, body)| {
            let outcome = watch(program, types, allocators, body);
            let mut filled = outcome.carving.counts.filled.clone();
            filled.retain(|(cell, _)| held.contains(cell));
            for (cell, filler) in &mut filled {
                let is_left = outcome.carving.counts.left.contains(cell);
                *filler = match *filler {
                    // What was there is copied, or freed: the buffer grows.
                    Filler::Allocated | Filler::Unknown if is_left => Filler::Reallocated,
                    // Which of its functions gave it is not known yet.
                    Filler::Unknown if pools::reallocates(program, allocators, at, DEPTH) => {
                        Filler::Reallocated
                    }
                    Filler::Unknown if pools::gets_memory(program, allocators, at, DEPTH) => {
                        Filler::Allocated
                    }
                    other => other,
                };
            }
            filled
        })
        .collect()
}

/// Whether a function has a variable that one of the pointers is a member of.
fn has_one(types: &Types<'_>, body: &Body<'_>, held: &HashSet<Cell>) -> bool {
    let variables = body
        .function
        .map_or(&[][..], |function| &function.variables);
    variables.iter().filter_map(|it| it.r#type).any(|of| {
        let of = types.strip(of);
        let mut records = held.iter();
        records.any(|cell| matches!(cell, Cell::Member(record, _) if *record == of))
    })
}

/// What a function does with all that may be a cursor. What it makes itself has the type that its variables and stores tell.
pub(super) fn watch<'f>(
    program: &Program<'f>,
    types: &Types<'f>,
    allocators: &Allocators<'f>,
    body: &Body<'f>,
) -> Outcome {
    let interpreter = || Interpreter::new(program, types, allocators, body).watching(Watch::All);
    let outcome = interpreter().run();
    let mut told: HashMap<u64, Option<TypeIndex>> = HashMap::new();
    for met in &outcome.met {
        let seen = outcome
            .observations
            .iter()
            .filter(|seen| seen.call == met.call);
        for seen in seen {
            let Seen::Types(list) = &seen.seen else {
                continue;
            };
            let only = match list[..] {
                [only] if types.is_structure(only) => Some(only),
                _ => None,
            };
            let known = told.entry(met.call).or_insert(only);
            if *known != only {
                *known = None;
            }
        }
    }
    let hints: HashMap<u64, TypeIndex> = told
        .into_iter()
        .filter_map(|(call, only)| Some((call, only?)))
        .collect();
    match hints.is_empty() {
        true => outcome,
        false => interpreter().with_hints(hints).run(),
    }
}

/// Puts what was found among the cursors.
pub(super) fn insert(found: HashMap<Cell, Counted>, allocators: &mut Allocators<'_>) {
    for (cell, counted) in found {
        allocators
            .cursors
            .insert(cell, (Moved::Counted(counted), ""));
        if let Chunk::Held(base) = counted.chunk {
            allocators.cursors.entry(base).or_insert((Moved::Base, ""));
        }
    }
}
