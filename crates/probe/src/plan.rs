//! *What is planned for a file, and how does each point fare?*

use std::collections::{BTreeMap, BTreeSet};

use pointee_meta::elf::Elf;
use pointee_model::addr::LinkAddr;
use pointee_patch::placement::Event;

use crate::blocks::{Block, Blocks};
use crate::carvings::Carvings;
use crate::code::{Code, Kind, mark};
use crate::flags::Liveness;
use crate::functions::{Exclusion, Function};
use crate::island;
use crate::place::{self, Pad, Placement};
use crate::points::{At, is_padding, mark_points};
use crate::signals;
use crate::subjects::{self, Subjects};
use crate::tactics::{Refusal, Tactic};
use crate::values::{self, Operand, Operands, Source, Value, ValueKind};

/// What is wanted of a file.
#[derive(Clone, Copy)]
pub struct Wanted<'w> {
    /// Which instructions.
    pub at: At,
    /// In which functions, by name.
    pub functions: &'w dyn Fn(&str) -> bool,
    /// Of which things, by name, where the instructions are about things: variables that are written, functions that were inlined.
    pub subjects: &'w dyn Fn(&str) -> bool,
    /// Whether what no jump fits at gets an `int3`.
    pub traps: bool,
    /// Whether the placement's slots are called ([`Event`]): of what happens in the process, whoever applies it hears nothing else.
    pub watched: bool,
}

impl Wanted<'_> {
    /// All of the kind, traps allowed.
    #[must_use]
    pub fn all(at: At) -> Self {
        Self {
            at,
            functions: &|_| true,
            subjects: &|_| true,
            traps: true,
            watched: true,
        }
    }
}

impl std::fmt::Debug for Wanted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wanted({:?})", self.at)
    }
}

/// Functions of glibc that whoever applies a placement has to hear of, by their exported names.
const WATCHED: [(&str, Event); 8] = [
    ("pthread_create", Event::Concurrency),
    ("clone", Event::Concurrency),
    ("fork", Event::Concurrency),
    ("_Fork", Event::Concurrency),
    ("__libc_fork", Event::Concurrency),
    ("prctl", Event::Prctl),
    ("syscall", Event::Syscall),
    ("_dl_debug_state", Event::LinkMap),
];

/// Why there is no plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanError {
    /// Another processor's code.
    #[error("not x86-64 code")]
    Machine,
    /// Copies of more than a gigabyte.
    #[error("its code is too large to be displaced")]
    TooLarge,
}

/// One instruction at which is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Point {
    /// Its function, by its number in [`Plan::functions`].
    pub function: u32,
    /// Bytes from the function's start.
    pub offset: u32,
    /// What it is about, where that was asked for, by its number in [`Plan::subjects`].
    pub subject: Option<u32>,
    /// How it was placed, and the number of its counter; or why not.
    pub placed: Result<(Tactic, u32), Refusal>,
}

/// What to do with one file.
#[derive(Debug)]
pub struct Plan {
    /// The functions that were found, by address; also those that are not counted as such.
    pub functions: Vec<Function>,
    /// Names of the things that points are about.
    pub subjects: Vec<String>,
    /// In order of address.
    pub points: Vec<Point>,
    /// By the number of a point's counter, the values that pass it as far as they are known.
    pub values: BTreeMap<u32, Vec<Value>>,
    /// How many of what is asked for are no points, by rule.
    pub excluded: BTreeMap<Exclusion, u64>,
    /// See [`pointee_patch::placement`].
    pub placement: Vec<u8>,
    /// Displaced instructions in order of address, and the offset in the island where the copy of each begins, its counters first. A
    /// thread about to execute the one may go on at the other: registers, stack, and all flags that are read are the same.
    pub copies: Vec<(LinkAddr, u32)>,
}

impl Plan {
    /// Plans for what is wanted of `elf`.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn new(elf: &Elf, wanted: &Wanted<'_>) -> Result<Self, PlanError> {
        if elf.machine() != object::elf::EM_X86_64 {
            return Err(PlanError::Machine);
        }
        let code = Code::read(elf);
        let blocks = Blocks::of(&code);
        let (about, operands) = subjects_and_values(&code, wanted);
        let marked = mark_points(&code, wanted.at, &about, wanted.functions);
        let dense = wanted.at == At::Instruction;
        let watched = if wanted.watched {
            watched(&code)
        } else {
            BTreeMap::new()
        };
        let mut needed = marked.clone();
        watched.keys().for_each(|place| needed[*place] = true);
        let signal_calls = if wanted.traps {
            signals::calls(&code, &blocks)
        } else {
            BTreeSet::new()
        };
        signal_calls.iter().for_each(|place| needed[*place] = true);
        let mut placement = place::place(&code, &blocks, &needed, dense, wanted.traps);
        let seen = |placement: &Placement| {
            signal_calls
                .iter()
                .all(|place| tactic(&code, placement, blocks.of_place(*place), *place).is_some())
        };
        let unseen = !seen(&placement);
        if unseen {
            placement = place::place(&code, &blocks, &needed, dense, false);
        }
        let liveness = Liveness::of(&code, &blocks);
        let wishes = island::Wishes {
            points: &marked,
            operands: &operands,
            watched: &watched,
            signal_calls: &signal_calls,
            traps: wanted.traps,
            carvings: &Carvings::new(),
        };
        let island = island::build(&code, &blocks, &liveness, &placement, &wishes)
            .map_err(|island::TooLarge| PlanError::TooLarge)?;
        let mut counters = vec![None; code.places.len()];
        for (number, place) in island.counted.iter().enumerate() {
            counters[*place as usize] = Some(number as u32);
        }
        let mut records = island.recorded.into_iter();
        let values_of = |(place, operands): (&usize, &Vec<Operand>)| {
            let counter = counters.get(*place).copied().flatten()?;
            let known = operands.iter().map(|operand| Value {
                name: operand.name.clone(),
                form: operand.form,
                kind: match operand.source {
                    Source::Constant(value) => ValueKind::Constant(value),
                    _ => ValueKind::Recorded(records.next().unwrap_or(u32::MAX)),
                },
            });
            Some((counter, known.collect()))
        };
        let values = operands.iter().filter_map(values_of).collect();
        let names: BTreeSet<&String> = about.values().collect();
        let names: Vec<String> = names.into_iter().cloned().collect();
        let mut points = Vec::new();
        for (at, block) in blocks.all.iter().enumerate() {
            for place in block.first..block.last {
                let index = place as usize;
                if !marked[index] {
                    continue;
                }
                let tactic = tactic(&code, &placement, at, index);
                points.push(Point {
                    function: code.places[index].function,
                    offset: (code.places[index].at
                        - code.functions[code.places[index].function as usize].start)
                        as u32,
                    subject: about
                        .get(&index)
                        .and_then(|name| names.binary_search(name).ok())
                        .map(|number| number as u32),
                    placed: match (tactic, counters[index]) {
                        (Some(tactic), Some(counter)) => Ok((tactic, counter)),
                        _ => Err(refusal(&code, block, index, unseen)),
                    },
                });
            }
        }
        let excluded = excluded(&code, wanted);
        Ok(Self {
            excluded,
            functions: code.functions,
            subjects: names,
            points,
            values,
            placement: island.bytes,
            copies: island.copies,
        })
    }

    /// How many points each tactic served.
    #[must_use]
    pub fn tactics(&self) -> BTreeMap<Tactic, u64> {
        let mut counts = BTreeMap::new();
        for (tactic, _) in self.points.iter().filter_map(|point| point.placed.ok()) {
            *counts.entry(tactic).or_default() += 1;
        }
        counts
    }
}

/// What is left out of the points by rule.
fn excluded(code: &Code<'_>, wanted: &Wanted<'_>) -> BTreeMap<Exclusion, u64> {
    let mut counts = BTreeMap::new();
    for (function, (first, last)) in code.functions.iter().zip(&code.spans) {
        if !(wanted.functions)(&function.label()) {
            continue;
        }
        let places = &code.places[*first as usize..*last as usize];
        match (wanted.at, function.exclusion) {
            (At::Entry, Some(exclusion)) => *counts.entry(exclusion).or_default() += 1,
            (At::Instruction, Some(Exclusion::SignalReturn)) => {
                *counts.entry(Exclusion::SignalReturn).or_default() += places.len() as u64;
            }
            (At::Instruction, _) => {
                // What is never reached and does nothing is padding, not an instruction.
                let unreached = places
                    .iter()
                    .filter(|place| !place.is(mark::REACHED) && !is_padding(code, place))
                    .count() as u64;
                if unreached > 0 {
                    *counts.entry(Exclusion::Unreached).or_default() += unreached;
                }
            }
            _ => {}
        }
    }
    counts
}

/// What the instructions that are asked for are about, and the values that pass them.
fn subjects_and_values(code: &Code<'_>, wanted: &Wanted<'_>) -> (Subjects, Operands) {
    let facts = match wanted.at {
        At::Inlined | At::Write => subjects::facts(code),
        _ => return Default::default(),
    };
    if wanted.at == At::Inlined {
        let instances = subjects::instances(code, &facts, wanted.subjects);
        let about = subjects::inlined(&instances);
        let operands = values::parameters(code, &facts, &instances);
        (about, operands)
    } else {
        let about = subjects::writes(code, &facts, wanted.subjects);
        let operands = values::stores(code, &facts, &about);
        (about, operands)
    }
}

/// The entries of [`WATCHED`] functions, if this is the C library or the dynamic linker.
fn watched(code: &Code<'_>) -> BTreeMap<usize, Event> {
    let mut watched = BTreeMap::new();
    let is_libc = code.elf.symbols().any(|symbol| {
        symbol.dynamic
            && symbol.is_defined()
            && matches!(symbol.name, "__libc_start_main" | "_dl_debug_state")
    });
    for symbol in code
        .elf
        .symbols()
        .filter(|symbol| is_libc && symbol.dynamic && symbol.is_function())
    {
        let event = WATCHED.iter().find(|(name, _)| *name == symbol.name);
        if let (Some((_, event)), Some(place)) = (event, code.find(symbol.address)) {
            watched.insert(place, *event);
        }
    }
    watched
}

fn refusal(code: &Code<'_>, block: &Block, index: usize, unseen: bool) -> Refusal {
    let place = &code.places[index];
    if !place.is(mark::REACHED) {
        Refusal::Unreached
    } else if block.fixed && !block.inner || place.kind == Kind::Breakpoint {
        Refusal::Immovable
    } else if unseen {
        Refusal::Unseen
    } else if block.fixed {
        Refusal::Immovable
    } else if code.unresolved[place.function as usize] {
        Refusal::UnknownJumps
    } else {
        Refusal::NoRoom
    }
}

/// How control comes to the counter of instruction `index` in block `at`.
fn tactic(code: &Code<'_>, placement: &Placement, at: usize, index: usize) -> Option<Tactic> {
    let displaced = placement.displaced[at]?;
    if !(displaced.first as usize..displaced.last as usize).contains(&index) {
        return None;
    }
    let first = displaced.first as usize;
    let padded = match displaced.pad {
        Pad::None => return Some(Tactic::Copied),
        Pad::Near { at, .. } => {
            let places = &code.places[first..displaced.last as usize];
            let holder = places
                .iter()
                .find(|place| place.at >= at)
                .unwrap_or(&code.places[first]);
            let end = code.places[displaced.last as usize - 1].end();
            if holder.len >= 5 {
                Tactic::Jump
            } else if at + 5 <= end || code.find(end).is_some() {
                Tactic::Neighbours
            } else {
                Tactic::Padding
            }
        }
        Pad::Call { .. } => Tactic::Call,
        Pad::Short { .. } => Tactic::Relay,
        Pad::Overlap { .. } => Tactic::Overlap,
        Pad::Callers => Tactic::Callers,
        Pad::Trap { .. } => Tactic::Trap,
    };
    Some(if index == first {
        padded
    } else {
        Tactic::Copied
    })
}
