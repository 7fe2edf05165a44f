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
//! does not see all. What it leaves over is asked for again: that finds calloc, realloc, memalign, and a second allocator.

use crate::outside::Call;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Blocks that a function must have given, or taken, to be judged at all.
const FEW: usize = 4;
/// Of a hundred calls, so many may be otherwise: signals and jumps hide some.
const OTHERWISE: usize = 3;
/// Blocks with so much between them do not lie side by side.
const APART: u64 = 1 << 20;
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

/// What `calls`, in the order of their beginnings, show.
pub(crate) fn judge(calls: &[Call]) -> Vec<Found> {
    let mut by_function: BTreeMap<usize, Vec<&Call>> = BTreeMap::new();
    for call in calls {
        by_function.entry(call.function).or_default().push(call);
    }
    let mut given = HashMap::new();
    for call in calls.iter().filter(|call| call.is_in_heap) {
        *given.entry(call.result).or_default() += 1;
    }
    let candidates: BTreeMap<usize, (Role, Size)> = by_function
        .iter()
        .filter_map(|(function, calls)| Some((*function, gives(calls, &given)?)))
        .collect();
    let mut found = givers(calls, &candidates);
    if let Some(taker) = taker(calls, &by_function, &found) {
        let givers = found.clone();
        found.retain(|it| returns_new(calls, it.function, &givers, taker.function));
        found.push(taker);
    }
    found
}

/// Which arguments say how many bytes are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Argument(usize),
    Product,
}

impl Size {
    fn of(self, call: &Call) -> u64 {
        match self {
            Self::Argument(at) => call.arguments[at],
            Self::Product => call.arguments[0].saturating_mul(call.arguments[1]),
        }
    }
}

fn is_nearly_all(part: usize, whole: usize) -> bool {
    part * 100 >= whole * (100 - OTHERWISE)
}

/// Pointers into the heap: how many calls returned each.
type Returned = HashMap<u64, usize>;

/// What a function gives, if it does.
fn gives(calls: &[&Call], given: &Returned) -> Option<(Role, Size)> {
    let ended: Vec<&Call> = calls
        .iter()
        .copied()
        .filter(|call| call.ended.is_some())
        .collect();
    let giving: Vec<&Call> = ended
        .iter()
        .copied()
        .filter(|call| call.is_in_heap)
        .collect();
    let refused = ended.iter().filter(|call| call.result == 0).count();
    let new = giving
        .iter()
        .filter(|call| !call.arguments.contains(&call.result));
    let is_of_pointers = is_nearly_all(giving.len() + refused, ended.len())
        && giving.iter().all(|call| call.result.is_multiple_of(8));
    // Nothing but whole pages: that is mmap.
    let is_of_pages = giving.iter().all(|call| call.result.is_multiple_of(PAGE));
    if !is_of_pointers || is_of_pages || new.count() < FEW {
        return None;
    }
    [Size::Argument(0), Size::Argument(1), Size::Product]
        .into_iter()
        .filter_map(|size| {
            let role = role(&giving, size, given)?;
            Some((filled(&giving, size)?, role, size))
        })
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, role, size)| (role, size))
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

/// How much of the room between blocks `size` accounts for, from 0 to 1; `None` if it cannot be the size.
fn filled(giving: &[&Call], size: Size) -> Option<f64> {
    let sizes: BTreeSet<u64> = giving.iter().map(|call| size.of(call)).collect();
    if sizes.len() < 2 || sizes.last().is_none_or(|largest| *largest >= 1 << 40) {
        return None;
    }
    // Of the last block at each place: earlier ones may have been larger, and were divided since.
    let last: BTreeMap<u64, u64> = giving
        .iter()
        .map(|call| (call.result, size.of(call)))
        .collect();
    let (mut pairs, mut overlaps, mut share) = (0usize, 0usize, 0.0);
    for ((start, size), (next, _)) in last.iter().zip(last.iter().skip(1)) {
        let gap = next - start;
        if gap < APART {
            pairs += 1;
            overlaps += usize::from(*size > gap);
            share += (*size).min(gap) as f64 / gap as f64;
        }
    }
    // A block that was freed may have another in its middle: some overlap.
    let fits = pairs >= FEW - 1 && overlaps * 5 <= pairs;
    let share = share / pairs.max(1) as f64;
    (fits && share >= 0.2).then_some(share)
}

/// The functions that account for all blocks given.
fn givers(calls: &[Call], candidates: &BTreeMap<usize, (Role, Size)>) -> Vec<Found> {
    let groups = groups(calls, candidates);
    let mut left: BTreeSet<usize> = (0..groups.len()).collect();
    let mut found = Vec::new();
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
        let is_found = |function: &usize| found.iter().any(|it: &Found| it.function == *function);
        let best = seen
            .into_iter()
            .filter(|(function, _)| !is_found(function))
            .max_by_key(|(_, (groups, depth))| (groups.len(), *depth));
        let Some((function, (its, _))) = best else {
            return found;
        };
        if its.len() < FEW {
            return found;
        }
        left.retain(|group| !its.contains(group));
        let Some((role, size)) = candidates.get(&function).copied() else {
            return found;
        };
        let own: Vec<&Call> = calls
            .iter()
            .filter(|call| call.function == function && call.is_in_heap)
            .collect();
        let sizes = own.iter().map(|call| size.of(call));
        let places: HashSet<u64> = own.iter().map(|call| call.result).collect();
        found.push(Found {
            function,
            role,
            blocks: own.len(),
            again: own.len() - places.len(),
            sizes: (sizes.clone().min().unwrap_or(0), sizes.max().unwrap_or(0)),
        });
    }
}

/// The calls that return one block, the outermost first; for each block.
fn groups(calls: &[Call], candidates: &BTreeMap<usize, (Role, Size)>) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    // By result: the group that began last, and when its outermost call ended.
    let mut open: HashMap<u64, (u64, usize)> = HashMap::new();
    for (number, call) in calls.iter().enumerate() {
        let Some(ended) = call
            .ended
            .filter(|_| call.is_in_heap && candidates.contains_key(&call.function))
        else {
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

/// Whether a function returns blocks that nobody has when it is called: else it hands on what others gave, as one that takes from a list.
fn returns_new(calls: &[Call], function: usize, givers: &[Found], taker: usize) -> bool {
    // When it happened, to which block, and by which call it was given; taken otherwise.
    let mut changes: Vec<(u64, u64, Option<&Call>)> = Vec::new();
    for call in calls {
        let giver = givers.iter().find(|it| it.function == call.function);
        let takes = giver.map_or(call.function == taker, |it| it.role == Role::Realloc);
        if takes {
            changes.push((call.began, call.arguments[0], None));
        }
        if let (Some(_), Some(ended), true) = (giver, call.ended, call.is_in_heap) {
            changes.push((ended, call.result, Some(call)));
        }
    }
    changes.sort_by_key(|(when, ..)| *when);
    let mut given: HashMap<u64, u64> = HashMap::new();
    let (mut all, mut had) = (0usize, 0usize);
    for (when, block, by) in changes {
        let Some(call) = by else {
            given.remove(&block);
            continue;
        };
        let before = given.insert(block, when);
        if call.function == function {
            all += 1;
            // What an inner function gave during the call is passed on.
            had += usize::from(before.is_some_and(|before| before < call.began));
        }
    }
    // Not every free need have been seen.
    had * 5 <= all
}

/// Something that happened to a block.
#[derive(Clone, Copy)]
enum Event {
    /// By a call that began then.
    Given(u64),
    Taken(usize),
}

/// The function that takes back what `givers` give.
fn taker(
    calls: &[Call],
    by_function: &BTreeMap<usize, Vec<&Call>>,
    givers: &[Found],
) -> Option<Found> {
    let gives = |function: usize| givers.iter().find(|found| found.function == function);
    let mut events: Vec<(u64, u64, Event)> = Vec::new();
    for call in calls {
        match (gives(call.function), call.ended) {
            (Some(found), Some(ended)) if call.is_in_heap => {
                events.push((ended, call.result, Event::Given(call.began)));
                if found.role == Role::Realloc && call.arguments[0] != 0 {
                    events.push((call.began, call.arguments[0], Event::Taken(call.function)));
                }
            }
            (None, _) if call.arguments[0] != 0 => {
                events.push((call.began, call.arguments[0], Event::Taken(call.function)));
            }
            _ => {}
        }
    }
    events.sort_by_key(|(when, ..)| *when);
    // Of a block: when it was given, and who was called with it since.
    let mut blocks: HashMap<u64, (u64, Vec<usize>)> = HashMap::new();
    let mut takers: BTreeMap<usize, Takes> = BTreeMap::new();
    let mut given_again = 0;
    for (when, block, event) in events {
        match event {
            Event::Taken(function) => {
                let takes = takers.entry(function).or_default();
                match blocks.get_mut(&block) {
                    None => takes.others += 1,
                    Some((_, since)) if since.contains(&function) => takes.twice += 1,
                    Some((_, since)) => {
                        takes.blocks += 1;
                        since.push(function);
                    }
                }
            }
            // What an inner function gave during the call is passed on.
            Event::Given(began) => {
                if let Some((before, since)) = blocks.insert(block, (when, Vec::new()))
                    && before < began
                    && !since.iter().any(|function| gives(*function).is_some())
                {
                    given_again += 1;
                    for function in since {
                        takers.entry(function).or_default().before_again += 1;
                    }
                }
            }
        }
    }
    let is_taker = |takes: &Takes| {
        let all = takes.blocks + takes.others + takes.twice;
        let covers = given_again > 0 && takes.before_again * 10 >= given_again * 9;
        takes.blocks >= FEW && is_nearly_all(takes.blocks, all) && covers
    };
    let began_last = |function: usize| {
        let calls = by_function.get(&function);
        calls.and_then(|calls| calls.last()).map(|call| call.began)
    };
    takers
        .into_iter()
        .filter(|(function, takes)| gives(*function).is_none() && is_taker(takes))
        .max_by_key(|(function, takes)| (takes.blocks, began_last(*function)))
        .map(|(function, takes)| Found {
            function,
            role: Role::Free,
            blocks: takes.blocks,
            again: takes.before_again,
            sizes: (0, 0),
        })
}

/// What a function was called with.
#[derive(Default)]
struct Takes {
    /// Blocks that were given and not taken by it since, ...
    blocks: usize,
    /// ... that it had taken since, ...
    twice: usize,
    /// ... and what was never given.
    others: usize,
    /// Blocks that were given again after it had taken them.
    before_again: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A heap whose functions are 0 `xmalloc`, 1 `malloc`, 2 `_int_malloc` (of every other block), 3 `free`, 4 `strlen`, 5 `realloc`, 6 `calloc`.
    #[derive(Default)]
    struct Heap {
        calls: Vec<Call>,
        clock: u64,
        top: u64,
        free: Vec<(u64, u64)>,
    }

    impl Heap {
        fn call(&mut self, function: usize, arguments: [u64; 3]) -> usize {
            self.clock += 1;
            self.calls.push(Call {
                function,
                began: self.clock,
                ended: None,
                arguments,
                result: 0,
                is_in_heap: false,
            });
            self.calls.len() - 1
        }

        fn end(&mut self, call: usize, result: u64) {
            self.clock += 1;
            let call = &mut self.calls[call];
            (call.ended, call.result) = (Some(self.clock), result);
            call.is_in_heap = result >= 0x10000;
        }

        fn place(&mut self, size: u64) -> u64 {
            let room = (size + 8).next_multiple_of(16).max(32);
            if let Some(at) = self.free.iter().position(|(_, had)| *had == room) {
                return self.free.swap_remove(at).0;
            }
            self.top += room;
            0x10000 + self.top - room
        }

        fn malloc(&mut self, size: u64) -> u64 {
            let outer = self.call(0, [size, 7, 7]);
            let middle = self.call(1, [size, 7, 7]);
            let block = self.place(size);
            if size.is_multiple_of(32) {
                let inner = self.call(2, [0x4000, size, 7]);
                self.end(inner, block);
            }
            self.end(middle, block);
            self.end(outer, block);
            block
        }

        fn free(&mut self, block: u64, size: u64) {
            let call = self.call(3, [block, 1, 1]);
            self.end(call, 0);
            self.free
                .push((block, (size + 8).next_multiple_of(16).max(32)));
        }
    }

    #[test]
    fn what_a_heap_does_is_recognised() {
        let mut heap = Heap::default();
        for round in 0..20u64 {
            let blocks: Vec<(u64, u64)> = (0..30)
                .map(|at| 16 + (at * 13 + round) % 20 * 16)
                .map(|size| (heap.malloc(size), size))
                .collect();
            let zeroed = heap.call(6, [3 + round % 4, 24, 9]);
            let block = heap.place((3 + round % 4) * 24);
            heap.end(zeroed, block);
            for (block, size) in &blocks {
                let length = heap.call(4, [*block + 1, 0, 0]);
                heap.end(length, 5);
                let length = heap.call(4, [*block, 0, 0]);
                heap.end(length, 5);
                if size % 48 == 0 {
                    let grown = heap.call(5, [*block, size * 2, 0]);
                    let to = heap.place(size * 2);
                    heap.end(grown, to);
                    heap.free
                        .push((*block, (size + 8).next_multiple_of(16).max(32)));
                    heap.free(to, size * 2);
                } else {
                    heap.free(*block, *size);
                }
            }
        }
        let found: Vec<(usize, Role)> = judge(&heap.calls)
            .iter()
            .map(|found| (found.function, found.role))
            .collect();
        let expect = [
            (1, Role::Malloc),
            (5, Role::Realloc),
            (6, Role::Calloc),
            (3, Role::Free),
        ];
        assert_eq!(found, expect);
    }

    #[test]
    fn where_nothing_is_given_nothing_is_found() {
        let mut heap = Heap::default();
        for at in 0..100 {
            let call = heap.call(0, [at, 8, 8]);
            heap.end(call, at);
            // Returns what it was given, as memcpy does.
            let call = heap.call(1, [0x20000 + at * 64, 0, 64]);
            heap.end(call, 0x20000 + at * 64);
        }
        assert_eq!(judge(&heap.calls), []);
    }

    #[test]
    fn a_state_that_stays_is_no_block_that_is_moved() {
        let mut heap = Heap::default();
        let state = heap.malloc(512);
        for at in 0..100 {
            let call = heap.call(5, [state, 16 + at % 20 * 16, 0]);
            let block = heap.place(16 + at % 20 * 16);
            heap.end(call, block);
        }
        assert_eq!(judge(&heap.calls), []);
    }
}
