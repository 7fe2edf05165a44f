//! *Which functions allocate, to judge by what they do?* — for a program whose functions have no names.
//!
//! Given are calls: arguments, results, and whether a result lies in memory that the kernel gave the program. A function *gives* if it
//! returns distinct pointers into that memory, each followed by as much room as one of its arguments says, and not by much more. It *takes back* if it
//! is called with nothing but such pointers, never twice for one giving, and before each that is given again.
//!
//! ```text
//!   main ▶ xmalloc(64) ▶ malloc(64) ▶ _int_malloc(arena, 64)        one block: a *giving*, that all three return
//! ```
//!
//! Of the functions that return one block, the one counts that returns the most blocks, of equals the innermost: its callers are wrappers, and what it calls
//! does not see all. What it leaves over is asked for again: that finds calloc, realloc, memalign, and a second allocator. A block within
//! another that is alive was cut out of it, by a pool or a wrapper that puts a header before: it counts for none of them.
//!
//! | question | answered in |
//! | --- | --- |
//! | which argument is the size, and what does a function do? | `room.rs` |
//! | who takes back what it gives? | `release.rs` |
//! | which of those that return a block? | here |

mod release;
mod room;
#[cfg(test)]
mod tests;

use crate::outside::Call;
use release::{Pointers, taker};
use room::{Room, Size, lie_within_others};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Blocks that a function must have given, or taken, to be judged at all.
const FEW: usize = 4;
/// Of a hundred calls, so many may be otherwise: signals and jumps hide some.
const OTHERWISE: usize = 3;
const PAGE: u64 = 4096;

/// What a function was found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Role {
    Malloc,
    Calloc,
    Realloc,
    Memalign,
    Free,
}

impl Role {
    /// As the configuration names it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Malloc => "malloc",
            Self::Calloc => "calloc",
            Self::Realloc => "realloc",
            Self::Memalign => "memalign",
            Self::Free => "free",
        }
    }
}

/// A function that was found, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) function: usize,
    pub(crate) role: Role,
    /// Blocks that it gave or took.
    pub(crate) blocks: usize,
    /// Of those, how many had been given before: by others after a free, or taken and given again.
    pub(crate) again: usize,
    /// The smallest and the largest size asked for.
    pub(crate) sizes: (u64, u64),
}

/// What a run shows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Functions that give blocks, and last the one that takes them back.
    pub(crate) families: Vec<Vec<Found>>,
    /// Functions that give blocks which nobody was seen to take back: where others are, perhaps an arena of which all goes at once.
    pub(crate) rest: Vec<Found>,
    /// Blocks that were taken back, and of which it is not known who gave them.
    pub(crate) from_unknown: usize,
}

/// What `calls`, in the order of their beginnings, show.
pub(crate) fn judge(calls: &[Call]) -> Shown {
    let pointers = Pointers::new(calls);
    let mut by_function: BTreeMap<usize, Vec<&Call>> = BTreeMap::new();
    for call in calls {
        by_function.entry(call.function).or_default().push(call);
    }
    let mut given = Returned::new();
    for call in calls.iter().filter(|call| call.is_in_heap) {
        *given.entry(call.result).or_default() += 1;
    }
    let candidates: Candidates = by_function
        .iter()
        .filter(|(_, calls)| returns_blocks(calls))
        .filter_map(|(function, calls)| {
            let released = pointers.released(*function, calls);
            Some((*function, Room::of(calls, &given, released)?))
        })
        .collect();
    let mut left = givers(calls, &candidates);
    let all: BTreeSet<usize> = left.iter().map(|it| it.function).collect();
    left.retain(|it| !room::holds_others(calls, it.function, &all, &candidates, &pointers));
    let mut shown = Shown::default();
    // What one function takes back is one family: the first is that of the function that gives most.
    while let Some(taken) = taker(calls, &pointers, &left, &candidates) {
        let took: HashSet<u64> = by_function[&taken.found.function]
            .iter()
            .map(|call| call.arguments[0])
            .collect();
        let is_taken = |it: &Found| {
            let mut its = by_function[&it.function].iter();
            its.any(|call| call.is_in_heap && took.contains(&call.result))
        };
        let (mut family, others): (Vec<Found>, Vec<Found>) =
            left.iter().cloned().partition(is_taken);
        let all = family.clone();
        family.retain(|it| release::returns_new(calls, it.function, &all, taken.found.function));
        if family.is_empty() {
            break;
        }
        left = others;
        let mut from_unknown = taken.from_unknown;
        family.extend(seldom(calls, &by_function, &family, &mut from_unknown));
        shown.from_unknown += from_unknown.len();
        family.push(taken.found);
        shown.families.push(family);
    }
    shown.rest = left;
    shown
}

/// Functions that may allocate, with what is known of the room that they give.
type Candidates = BTreeMap<usize, Room>;

/// Pointers into the heap: how many calls returned each.
type Returned = HashMap<u64, usize>;

fn is_nearly_all(part: usize, whole: usize) -> bool {
    part * 100 >= whole * (100 - OTHERWISE)
}

/// Whether a function, with these calls, returns pointers into the heap and hardly anything else.
fn returns_blocks(calls: &[&Call]) -> bool {
    let ended = calls.iter().filter(|call| call.ended.is_some());
    let (mut all, mut giving, mut refused, mut new) = (0usize, 0usize, 0usize, 0usize);
    let mut is_of_pages = true;
    for call in ended {
        all += 1;
        refused += usize::from(call.result == 0);
        if !call.is_in_heap {
            continue;
        }
        if !call.result.is_multiple_of(8) {
            return false;
        }
        giving += 1;
        new += usize::from(!call.arguments.contains(&call.result));
        // Nothing but whole pages: that is mmap.
        is_of_pages &= call.result.is_multiple_of(PAGE);
    }
    is_nearly_all(giving + refused, all) && !is_of_pages && new >= FEW
}

/// The functions that account for all blocks given.
fn givers(calls: &[Call], candidates: &Candidates) -> Vec<Found> {
    let groups = nests(calls, |call| candidates.contains_key(&call.function));
    let within = lie_within_others(calls, candidates);
    let is_outer = |group: &usize| !groups[*group].iter().any(|call| within.contains(call));
    let mut left: BTreeSet<usize> = (0..groups.len()).filter(is_outer).collect();
    // A wrapper that does not always call what it wraps, since it keeps some, or need not move one.
    let wraps = |function: usize, other: usize| {
        groups.iter().any(|group| {
            let place = |it: usize| group.iter().position(|call| calls[*call].function == it);
            place(other).is_some_and(|inner| place(function).is_some_and(|outer| outer < inner))
        })
    };
    let mut found: Vec<Found> = Vec::new();
    let mut wrappers = BTreeSet::new();
    loop {
        // Of a function: the groups it is in, and how far inside.
        let mut seen: BTreeMap<usize, (BTreeSet<usize>, usize)> = BTreeMap::new();
        for group in &left {
            for (depth, call) in groups[*group].iter().enumerate() {
                let entry = seen.entry(calls[*call].function).or_default();
                entry.0.insert(*group);
                entry.1 += depth;
            }
        }
        let is_found = |function: &usize| {
            wrappers.contains(function) || found.iter().any(|it| it.function == *function)
        };
        let best = seen
            .into_iter()
            .filter(|(function, _)| !is_found(function))
            .max_by_key(|(_, (groups, depth))| (groups.len(), *depth));
        let Some((function, (its, _))) = best.filter(|(_, (its, _))| its.len() >= FEW) else {
            return found;
        };
        let Some(room) = candidates.get(&function) else {
            return found;
        };
        let mut alike = found.iter().filter(|it| it.role == room.role);
        if alike.any(|it| wraps(function, it.function)) {
            wrappers.insert(function);
            continue;
        }
        left.retain(|group| !its.contains(group));
        let own = calls.iter().filter(|call| call.function == function);
        found.push(giver(function, room.role, room.size, own));
    }
}

/// What is said of a function that gives, by its calls.
fn giver<'c>(
    function: usize,
    role: Role,
    size: Size,
    calls: impl Iterator<Item = &'c Call>,
) -> Found {
    let own: Vec<&Call> = calls.filter(|call| call.is_in_heap).collect();
    let sizes = own.iter().map(|call| size.of(call));
    let places: HashSet<u64> = own.iter().map(|call| call.result).collect();
    Found {
        function,
        role,
        blocks: own.len(),
        again: own.len() - places.len(),
        sizes: (sizes.clone().min().unwrap_or(0), sizes.max().unwrap_or(0)),
    }
}

/// The calls, of those that are wanted, that return one block, the outermost first; for each block.
fn nests(calls: &[Call], is_wanted: impl Fn(&Call) -> bool) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    // By result: the group that began last, and when its outermost call ended.
    let mut open: HashMap<u64, (u64, usize)> = HashMap::new();
    for (number, call) in calls.iter().enumerate() {
        let Some(ended) = call.ended.filter(|_| call.is_in_heap && is_wanted(call)) else {
            continue;
        };
        match open.get(&call.result) {
            Some((until, group)) if ended <= *until || call.began < *until => {
                groups[*group].push(number)
            }
            _ => {
                open.insert(call.result, (ended, groups.len()));
                groups.push(vec![number]);
            }
        }
    }
    groups
}

/// Those that gave too little to be judged by it, but blocks that were taken back like all others: a malloc that was called once, for a file's buffer.
/// Of those that return such a block, and whose first argument, or the product of the first two, can be its size, the one counts that gave most, of equals the
/// innermost; a wrapper of what is known is none. What they gave is taken out of `from_unknown`.
fn seldom(
    calls: &[Call],
    by_function: &BTreeMap<usize, Vec<&Call>>,
    found: &[Found],
    from_unknown: &mut HashSet<u64>,
) -> Vec<Found> {
    let is_known = |call: &Call| found.iter().any(|it| it.function == call.function);
    let returns = |call: &Call| {
        let is_new = call.is_in_heap && !call.arguments.contains(&call.result);
        is_new && from_unknown.contains(&call.result)
    };
    let mut left = nests(calls, returns);
    left.retain(|nest| !nest.iter().any(|call| is_known(&calls[*call])));
    let wraps_known = |function: usize| {
        let both = nests(calls, |call| call.function == function || is_known(call));
        let is_its = |call: &usize| calls[*call].function == function;
        let mut both = both.iter();
        both.any(|nest| nest.iter().any(is_its) && !nest.iter().all(is_its))
    };
    let fitting = |function: usize| {
        let its = by_function.get(&function)?;
        let (role, size) = room::of_few(its)?;
        let it = giver(function, role, size, its.iter().copied());
        (!wraps_known(function)).then_some((function, it))
    };
    let functions: BTreeSet<usize> = left
        .iter()
        .flatten()
        .map(|call| calls[*call].function)
        .collect();
    let fitting: BTreeMap<usize, Found> = functions.into_iter().filter_map(fitting).collect();
    let mut seldom: Vec<Found> = Vec::new();
    loop {
        let inwards = left.iter().flat_map(|nest| nest.iter().enumerate());
        let best = inwards
            .filter_map(|(depth, call)| Some((fitting.get(&calls[*call].function)?, depth)))
            .max_by_key(|(it, depth)| (it.blocks, *depth));
        let Some((best, _)) = best else {
            return seldom;
        };
        left.retain(|nest| {
            let is_its = nest
                .iter()
                .any(|call| calls[*call].function == best.function);
            if is_its {
                from_unknown.remove(&calls[nest[0]].result);
            }
            !is_its
        });
        seldom.push(best.clone());
    }
}
