//! *Which argument of a function is the size of what it returns?* — the one that fills the room up to the next block, and goes not beyond.
//!
//! Only blocks that are alive are held against each other: earlier ones may have been larger, and were divided since. A block is alive
//! until it is taken back, by the function of which that is assumed, or moved, or until another lies where it was.

use super::release::{Pointers, Released};
use super::{Candidates, FEW, Returned, Role, is_nearly_all};
use crate::outside::Call;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Blocks with so much between them do not lie side by side.
const APART: u64 = 1 << 20;
/// No block is larger, nor is a pointer so small.
const LARGEST: u64 = 1 << 40;

/// Which arguments say how many bytes are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Argument(usize),
    Product,
}

impl Size {
    pub(super) fn of(self, call: &Call) -> u64 {
        match self {
            Self::Argument(at) => call.arguments[at],
            Self::Product => call.arguments[0].saturating_mul(call.arguments[1]),
        }
    }
}

/// What a function gives.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) role: Role,
    pub(super) size: Size,
    pub(super) released: Released,
}

impl Room {
    /// That which a function with these calls gives, if it does.
    pub(super) fn of(calls: &[&Call], given: &Returned, released: Released) -> Option<Self> {
        let giving: Vec<&Call> = calls
            .iter()
            .copied()
            .filter(|call| call.ended.is_some() && call.is_in_heap)
            .collect();
        let sizes = [Size::Argument(0), Size::Argument(1), Size::Product];
        let (_, role, size) = sizes
            .into_iter()
            .filter_map(|size| {
                let role = role(&giving, size, given)?;
                Some((filled(&giving, role, size, &released)?, role, size))
            })
            .max_by(|one, other| one.0.total_cmp(&other.0))?;
        Some(Self {
            role,
            size,
            released,
        })
    }
}

/// What a function does whose size is `size`, by its other argument.
fn role(giving: &[&Call], size: Size, given: &Returned) -> Option<Role> {
    let count = |holds: &dyn Fn(&Call) -> bool| giving.iter().filter(|call| holds(call)).count();
    let first = |call: &Call| call.arguments[0];
    match size {
        Size::Argument(0) => Some(Role::Malloc),
        Size::Product => Some(Role::Calloc),
        Size::Argument(_) => {
            // A block that was moved is gone until it is given again: what stays, as the state of an interpreter, was none.
            let mut moved = Returned::new();
            for call in giving.iter().filter(|call| first(call) != call.result) {
                *moved.entry(first(call)).or_default() += 1;
            }
            let is_old = |call: &Call| {
                let times = moved.get(&first(call)).copied().unwrap_or(0);
                first(call) == 0 || given.get(&first(call)).is_some_and(|given| times <= *given)
            };
            let is_aligned = |call: &Call| {
                first(call).is_power_of_two() && call.result.is_multiple_of(first(call))
            };
            let has_old = count(&|call| first(call) != 0) > 0;
            if has_old && is_nearly_all(count(&is_old), giving.len()) {
                Some(Role::Realloc)
            } else if is_nearly_all(count(&is_aligned), giving.len()) {
                Some(Role::Memalign)
            } else {
                None
            }
        }
    }
}

/// Role and size of a function that was called too few times to compare: a malloc whose sizes can be some, or a calloc.
pub(super) fn of_few(calls: &[&Call]) -> Option<(Role, Size)> {
    const LARGE: u64 = 1 << 20;
    let can_be = |size: Size| {
        let mut giving = calls.iter().filter(|call| call.is_in_heap);
        giving.all(|call| (1..LARGE).contains(&size.of(call)))
    };
    // Who wants so little, each time?
    let is_count = calls.iter().all(|call| call.arguments[0] < 8);
    if is_count && can_be(Size::Product) {
        return Some((Role::Calloc, Size::Product));
    }
    can_be(Size::Argument(0)).then_some((Role::Malloc, Size::Argument(0)))
}

/// Something that happens to a block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Gone,
    Given(u64),
}

/// What happens to the blocks of a function: when, to which.
fn changes(
    giving: &[&Call],
    role: Role,
    size: Size,
    released: &Released,
) -> Vec<(u64, u64, Change)> {
    let mut changes: Vec<(u64, u64, Change)> = released
        .moments
        .iter()
        .map(|(when, block)| (*when, *block, Change::Gone))
        .collect();
    for call in giving {
        if role == Role::Realloc {
            changes.push((call.began, call.arguments[0], Change::Gone));
        }
        if let Some(ended) = call.ended {
            changes.push((ended, call.result, Change::Given(size.of(call))));
        }
    }
    changes.sort_unstable();
    changes
}

/// How much of the room between blocks `size` accounts for, from 0 to 1; `None` if it cannot be the size.
fn filled(giving: &[&Call], role: Role, size: Size, released: &Released) -> Option<f64> {
    let sizes: BTreeSet<u64> = giving.iter().map(|call| size.of(call)).collect();
    if sizes.len() < 2 || sizes.last().is_none_or(|largest| *largest >= LARGEST) {
        return None;
    }
    let mut side_by_side = Neighbours::default();
    let mut alive = Alive::default();
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    for (_, block, change) in changes(giving, role, size, released) {
        let Change::Given(size) = change else {
            alive.remove(block);
            continue;
        };
        if let Some((start, size)) = alive.before(block) {
            side_by_side.add(size, block - start);
        }
        if let Some(start) = alive.after(block) {
            side_by_side.add(size, start - block);
        }
        alive.insert(block, size);
        last.insert(block, size);
    }
    // One array that grows is alone: it is held against itself, where it lay before.
    if side_by_side.pairs < FEW - 1 {
        side_by_side = Neighbours::default();
        for ((start, size), (next, _)) in last.iter().zip(last.iter().skip(1)) {
            side_by_side.add(*size, next - start);
        }
    }
    let is_moved_and_taken = role == Role::Realloc && released.by.is_some();
    side_by_side.share(is_moved_and_taken)
}

/// Blocks with the next one behind them.
#[derive(Default)]
struct Neighbours {
    pairs: usize,
    overlaps: usize,
    share: f64,
}

impl Neighbours {
    fn add(&mut self, size: u64, gap: u64) {
        if gap >= APART {
            return;
        }
        self.pairs += 1;
        if size > gap {
            self.overlaps += 1;
        } else {
            self.share += size as f64 / gap as f64;
        }
    }

    /// The share; of a function that is known by the blocks that it is called with, too, even if most of what lies between its blocks is another's.
    fn share(&self, is_known_otherwise: bool) -> Option<f64> {
        // Not all that is taken back need have been seen: some overlap.
        let fits = self.pairs >= FEW - 1 && self.overlaps * 5 <= self.pairs;
        let fits_well = is_known_otherwise && self.overlaps * 20 <= self.pairs;
        let share = self.share / self.pairs.max(1) as f64;
        (fits && (share >= 0.2 || fits_well)).then_some(share)
    }
}

/// Blocks that are alive, none over another.
#[derive(Default)]
struct Alive(BTreeMap<u64, u64>);

impl Alive {
    fn remove(&mut self, block: u64) {
        self.0.remove(&block);
    }

    fn before(&self, block: u64) -> Option<(u64, u64)> {
        let (start, size) = self.0.range(..block).next_back()?;
        Some((*start, *size))
    }

    fn after(&self, block: u64) -> Option<u64> {
        Some(*self.0.range(block + 1..).next()?.0)
    }

    /// Whether `address` lies in one, and not at its start.
    fn hold(&self, address: u64) -> bool {
        self.before(address)
            .is_some_and(|(start, size)| address - start < size)
    }

    /// What lies there was taken back.
    fn insert(&mut self, block: u64, size: u64) {
        if self.hold(block)
            && let Some((start, _)) = self.before(block)
        {
            self.0.remove(&start);
        }
        let end = block.saturating_add(size);
        while let Some(start) = self.after(block).filter(|start| *start < end) {
            self.0.remove(&start);
        }
        self.0.insert(block, size);
    }
}

/// The calls, by number, that return something within a living block of another function: of one whose blocks are taken back. A heap lies in what
/// the kernel was asked for, which is not.
pub(super) fn lie_within_others(calls: &[Call], candidates: &Candidates) -> HashSet<usize> {
    let mut events: Vec<(u64, usize, u64, Change, usize)> = Vec::new();
    for (number, call) in calls.iter().enumerate() {
        let Some(room) = candidates.get(&call.function) else {
            continue;
        };
        let Some(ended) = call.ended.filter(|_| call.is_in_heap) else {
            continue;
        };
        if room.role == Role::Realloc {
            let gone = (call.began, call.function, call.arguments[0]);
            events.push((gone.0, gone.1, gone.2, Change::Gone, number));
        }
        let given = Change::Given(room.size.of(call));
        events.push((ended, call.function, call.result, given, number));
    }
    for (function, room) in candidates {
        for (when, block) in &room.released.moments {
            events.push((*when, *function, *block, Change::Gone, usize::MAX));
        }
    }
    events.sort_unstable_by_key(|(when, function, block, change, _)| {
        (*when, *function, *block, *change)
    });
    let mut alive: BTreeMap<usize, Alive> = BTreeMap::new();
    let mut within = HashSet::new();
    for (_, function, block, change, number) in events {
        let room = &candidates[&function];
        let is_taken_back = room.released.by.is_some() || room.role == Role::Realloc;
        match change {
            // Whoever gave it.
            Change::Gone => alive.values_mut().for_each(|alive| alive.remove(block)),
            Change::Given(size) => {
                let mut others = alive.iter().filter(|(other, _)| **other != function);
                if others.any(|(_, alive)| alive.hold(block)) {
                    within.insert(number);
                }
                if is_taken_back {
                    alive.entry(function).or_default().insert(block, size);
                }
            }
        }
    }
    within
}

/// Whether what `function` gives is divided by another of `all`, whose blocks are taken back: half of its blocks have some of those inside while they are
/// alive. That is what a heap is made of.
pub(super) fn holds_others(
    calls: &[Call],
    function: usize,
    all: &BTreeSet<usize>,
    candidates: &Candidates,
    pointers: &Pointers<'_>,
) -> bool {
    let Some(room) = candidates.get(&function) else {
        return false;
    };
    let rooms = || all.iter().filter_map(|it| Some((*it, candidates.get(it)?)));
    let takers: BTreeSet<usize> = rooms().filter_map(|(_, room)| room.released.by).collect();
    let is_taken_back =
        |other: usize| rooms().any(|(it, room)| it == other && room.released.by.is_some());
    let others: BTreeSet<(u64, u64)> = calls
        .iter()
        .filter(|call| call.is_in_heap && call.function != function && is_taken_back(call.function))
        .map(|call| (call.result, call.began))
        .collect();
    let (mut blocks, mut divided) = (0usize, 0usize);
    let own = calls
        .iter()
        .filter(|call| call.function == function && call.is_in_heap);
    for call in own.filter(|call| room.size.of(call) > 0) {
        blocks += 1;
        let from = call.ended.unwrap_or(u64::MAX);
        let moves = (room.role == Role::Realloc).then_some(function);
        let until = pointers.taken(call.result, from, |it| {
            takers.contains(&it) || Some(it) == moves
        });
        let end = call.result.saturating_add(room.size.of(call));
        let mut within = others.range((call.result, 0)..(end, 0));
        divided += usize::from(within.any(|(_, began)| from < *began && *began < until));
    }
    divided * 2 >= blocks.max(1)
}
