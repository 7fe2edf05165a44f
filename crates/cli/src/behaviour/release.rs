//! *Who takes back what a function gives?* — who is called with each of its blocks, once, before it gives that block again.

use super::{Candidates, FEW, Found, Role, is_nearly_all};
use crate::outside::Call;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Pointers into the heap, and what happened to them.
pub(super) struct Pointers<'c> {
    /// The calls whose first argument each was, in order.
    calls: HashMap<u64, Vec<&'c Call>>,
    /// When each was returned, in order.
    returned: HashMap<u64, Vec<u64>>,
}

/// When blocks of one function were taken back, as far as is known of it alone.
#[derive(Debug, Default)]
pub(super) struct Released {
    /// By this function.
    pub(super) by: Option<usize>,
    /// When, and which.
    pub(super) moments: Vec<(u64, u64)>,
}

impl<'c> Pointers<'c> {
    pub(super) fn new(calls: &'c [Call]) -> Self {
        let mut returned: HashMap<u64, Vec<u64>> = HashMap::new();
        for call in calls.iter().filter(|call| call.is_in_heap) {
            let moments = returned.entry(call.result).or_default();
            moments.extend(call.ended);
        }
        for moments in returned.values_mut() {
            moments.sort_unstable();
        }
        let mut by_first: HashMap<u64, Vec<&Call>> = HashMap::new();
        for call in calls {
            if returned.contains_key(&call.arguments[0]) {
                by_first.entry(call.arguments[0]).or_default().push(call);
            }
        }
        Self {
            calls: by_first,
            returned,
        }
    }

    /// Whether anybody returned `block` between two moments.
    fn is_returned(&self, block: u64, from: u64, until: u64) -> bool {
        let moments = self.returned.get(&block).map_or(&[][..], Vec::as_slice);
        let after = moments.partition_point(|moment| *moment <= from);
        moments.get(after).is_some_and(|moment| *moment < until)
    }

    /// When `block` was first taken after `from`, by a function that is such a one; never: the end of time.
    pub(super) fn taken(&self, block: u64, from: u64, is_taker: impl Fn(usize) -> bool) -> u64 {
        let called = self.calls.get(&block).map_or(&[][..], Vec::as_slice);
        let since = &called[called.partition_point(|call| call.began <= from)..];
        let taken = since.iter().find(|call| is_taker(call.function));
        taken.map_or(u64::MAX, |call| call.began)
    }

    /// Who takes back what `function`, with these calls, gives.
    pub(super) fn released(&self, function: usize, calls: &[&Call]) -> Released {
        // Of a block: when it was given, first and last of that call.
        let mut givings: HashMap<u64, Vec<(u64, u64)>> = HashMap::new();
        // What stays where it is when it grows is no other block.
        let is_new = |call: &&&Call| call.is_in_heap && call.arguments[0] != call.result;
        for call in calls.iter().filter(is_new) {
            if let Some(ended) = call.ended {
                let its = givings.entry(call.result).or_default();
                its.push((call.began, ended));
            }
        }
        let mut given_again = 0;
        let mut takers: BTreeMap<usize, Takes> = BTreeMap::new();
        for (block, its) in &mut givings {
            its.sort_unstable_by_key(|(_, ended)| *ended);
            let Some(called) = self.calls.get(block) else {
                given_again += its.len() - 1;
                continue;
            };
            for (at, (_, given)) in its.iter().enumerate() {
                let again = its.get(at + 1).map(|(began, _)| *began);
                let until = again.unwrap_or(u64::MAX);
                let from = called.partition_point(|call| call.began <= *given);
                let since = called[from..].iter().take_while(|call| call.began < until);
                // How often again though nobody had returned it meanwhile, and when the last time.
                let mut took: BTreeMap<usize, (usize, u64)> = BTreeMap::new();
                for call in since {
                    let (twice, last) = took.entry(call.function).or_insert((0, call.began));
                    let is_twice =
                        *last < call.began && !self.is_returned(*block, *last, call.began);
                    *twice += usize::from(is_twice);
                    *last = call.began;
                }
                // Moved by itself.
                let is_moved = took.remove(&function).is_some();
                let is_again = again.is_some() && !is_moved;
                given_again += usize::from(is_again);
                for (function, (twice, last)) in took {
                    let takes = takers.entry(function).or_default();
                    takes.blocks += 1;
                    takes.twice += twice;
                    takes.before_again += usize::from(is_again);
                    takes.last = takes.last.max(last);
                }
            }
        }
        let covers = |takes: &Takes| {
            let is_once = is_nearly_all(takes.blocks, takes.blocks + takes.twice);
            takes.blocks >= FEW && is_once && takes.before_again * 10 >= given_again * 9
        };
        let by = takers
            .into_iter()
            .filter(|(_, takes)| given_again > 0 && covers(takes))
            .max_by_key(|(_, takes)| takes.rank())
            .map(|(function, _)| function);
        let moments = |by: usize| {
            let blocks = givings.keys();
            let calls = blocks.filter_map(|block| self.calls.get(block)).flatten();
            let its = calls.filter(|call| call.function == by);
            its.map(|call| (call.began, call.arguments[0])).collect()
        };
        Released {
            by,
            moments: by.map(moments).unwrap_or_default(),
        }
    }
}

/// What a function was called with.
#[derive(Default)]
struct Takes {
    /// Blocks that were given and not taken by it since, ...
    blocks: usize,
    /// ... that it had taken since, ...
    twice: usize,
    /// ... and what was never given; of that, the pointers into the heap that somebody else returned.
    others: usize,
    unknown: HashSet<u64>,
    /// Blocks that were given again after it had taken them.
    before_again: usize,
    /// When it was called the last time.
    last: u64,
}

impl Takes {
    /// Of those that take the same blocks the innermost counts: it is called last.
    fn rank(&self) -> (usize, u64) {
        (self.blocks, self.last)
    }
}

/// The function that takes back, and the blocks that it took of which nobody knows who gave them.
pub(super) struct Taken {
    pub(super) found: Found,
    pub(super) from_unknown: HashSet<u64>,
}

/// Something that happened to a block.
#[derive(Clone, Copy)]
enum Event {
    /// By a function, in a call that began then.
    Given(usize, u64),
    Taken(usize),
}

/// The function that takes back what the first of `givers` gives that anybody takes back, and others.
pub(super) fn taker(
    calls: &[Call],
    pointers: &Pointers<'_>,
    givers: &[Found],
    candidates: &Candidates,
) -> Option<Taken> {
    let gives = |function: usize| givers.iter().find(|found| found.function == function);
    let taken_by = |function: usize| candidates.get(&function)?.released.by;
    let first = givers.iter().find_map(|found| taken_by(found.function))?;
    let is_taken_back = |function: usize| taken_by(function) == Some(first);
    let mut events: Vec<(u64, u64, Event)> = Vec::new();
    for call in calls {
        let first = call.arguments[0];
        match (gives(call.function), call.ended) {
            (Some(found), Some(ended)) if call.is_in_heap => {
                let given = Event::Given(call.function, call.began);
                events.push((ended, call.result, given));
                if found.role == Role::Realloc && first != 0 {
                    events.push((call.began, first, Event::Taken(call.function)));
                }
            }
            (None, _) if first != 0 => {
                events.push((call.began, first, Event::Taken(call.function)));
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
                takes.last = when;
                match blocks.get_mut(&block) {
                    None if pointers.calls.contains_key(&block) => _ = takes.unknown.insert(block),
                    None => takes.others += 1,
                    Some((_, since)) if since.contains(&function) => takes.twice += 1,
                    Some((_, since)) => {
                        takes.blocks += 1;
                        since.push(function);
                    }
                }
            }
            // What an inner function gave during the call is passed on.
            Event::Given(function, began) => {
                if let Some((before, since)) = blocks.insert(block, (when, Vec::new()))
                    && before < began
                    && is_taken_back(function)
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
        let is_known = takes.unknown.len() * 4 <= takes.blocks;
        takes.blocks >= FEW && is_nearly_all(takes.blocks, all) && is_known && covers
    };
    takers
        .into_iter()
        .filter(|(function, takes)| gives(*function).is_none() && is_taker(takes))
        .max_by_key(|(_, takes)| takes.rank())
        .map(|(function, takes)| Taken {
            found: Found {
                function,
                role: Role::Free,
                blocks: takes.blocks,
                again: takes.before_again,
                sizes: (0, 0),
            },
            from_unknown: takes.unknown,
        })
}

/// Whether a function returns blocks that nobody has when it is called: else it hands on what others gave, as one that takes from a list.
pub(super) fn returns_new(calls: &[Call], function: usize, givers: &[Found], taker: usize) -> bool {
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
