//! *Which functions hand out memory on behalf of their callers?*
//!
//! A function is a wrapper when an allocation's result flows to its own result and
//!
//! - the result is a `void *` and the size is computed from its parameters (or nothing in the
//!   function tells a type), or
//! - the result is a pointer to a base type or to bytes, and the size *is* a parameter, or one that is
//!   kept somewhere, and records start with the base: what becomes of it only the caller knows, or
//! - what it hands out is a copy of a string parameter, or
//! - what it hands out was put into an object that another function made for it ([`filled`]).
//!
//! Calls of a wrapper are allocation sites in turn, so this is a fixed point. Functions are told
//! apart by address, never by name.

use super::allocators::{Allocator, Allocators};
use super::calls::{Body, Call, Key, Program};
use super::flow::Interpreter;
use super::handing::{behind_header, handed_back, hands_out, hands_through, may_hand_on};
use super::model::{Makes, Size};
use super::outcome::{Met, Outcome, Seen};
use super::parameters::parameters;
use super::rust::{self, Stored};
use super::typing::{Pointee, Types};
use super::value::{ANYWHERE, Value, is_number};
use super::{Options, Wrapper, beneath, filled, pointers, pools, unnamed};
use crate::facts::Facts;
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};

/// Rounds of the fixed point; chains of wrappers in real programs end before six.
const ROUNDS: usize = 16;

/// The result of the fixed point.
pub(super) struct Found<'f> {
    pub(super) allocators: Allocators<'f>,
    pub(super) wrappers: Vec<Wrapper>,
    /// By function.
    pub(super) outcomes: Vec<(u32, Outcome)>,
    /// Calls made inside wrappers on behalf of their callers.
    pub(super) inner: HashSet<u64>,
}

/// Finds all wrappers and interprets every function that allocates.
pub(super) fn fixpoint<'f>(
    program: &Program<'f>,
    types: &Types<'f>,
    facts: &'f Facts,
    options: &Options,
) -> Found<'f> {
    let mut allocators = Allocators::roots(program, types, facts, options);
    beneath::add(program, types, &mut allocators);
    let roots: HashSet<Key> = allocators.by_key.keys().copied().collect();
    pools::add(program, types, &mut allocators);
    pointers::add_imported(program, types, &mut allocators);
    let unread = unnamed::unread_results(program);
    let mut outcomes: HashMap<u32, (Vec<Key>, Outcome)> = HashMap::new();
    let mut views = views(program, &allocators);
    for _ in 0..ROUNDS {
        // Only functions that may turn out to be wrappers: the others once, when all wrappers are known.
        let done = interpret(
            program,
            types,
            &allocators,
            &views,
            &outcomes,
            |at, view| {
                !allocators.by_key.contains_key(&Key::Local(at))
                    && may_be_wrapper(program, types, &allocators, &unread, at, view)
            },
        );
        let mut new = Vec::new();
        for (at, view, outcome) in done {
            if !allocators.by_key.contains_key(&Key::Local(at))
                && let Some((allocator, _)) =
                    derive(program, types, &allocators, &unread, at, &outcome)
            {
                new.push((at, allocator));
            }
            outcomes.insert(at, (view, outcome));
        }
        if new.is_empty() {
            let seen = outcomes.iter().map(|(at, (_, outcome))| (*at, outcome));
            new = filled::makers(program, &allocators, seen);
        }
        if new.is_empty() {
            break;
        }
        // By signature are told those whose signature is known.
        let added: HashSet<u32> = new
            .iter()
            .map(|(at, _)| *at)
            .filter(|at| program.bodies[*at as usize].function.is_some())
            .collect();
        let mut is_new = vec![false; program.bodies.len()];
        for (at, allocator) in new {
            allocators.by_key.insert(Key::Local(at), allocator);
            is_new[at as usize] = true;
        }
        let signatures = allocators.by_signature.len();
        pointers::add_local(program, types, &mut allocators, &added);
        let calls_more = allocators.by_signature.len() > signatures;
        let is_due = |call: &Call| match call.callee {
            Key::Local(at) => is_new[at as usize],
            Key::Indirect => calls_more,
            _ => false,
        };
        let bodies = program.bodies.par_iter().zip(&mut views);
        bodies
            .filter(|(body, _)| body.calls.iter().any(is_due))
            .for_each(|(body, seen)| *seen = view(program, body, &allocators));
    }
    let rest = interpret(program, types, &allocators, &views, &outcomes, |_, _| true);
    outcomes.extend(
        rest.into_iter()
            .map(|(at, view, outcome)| (at, (view, outcome))),
    );
    let mut outcomes: Vec<(u32, Outcome)> = outcomes
        .into_iter()
        .map(|(at, (_, outcome))| (at, outcome))
        .collect();
    outcomes.sort_by_key(|(at, _)| *at);
    let mut inner = HashSet::new();
    let mut wrappers = Vec::new();
    for (at, outcome) in &outcomes {
        if roots.contains(&Key::Local(*at)) {
            // What an allocator takes from another is its callers' answer too.
            inner.extend(outcome.met.iter().map(|met| met.call));
        } else if let Some(allocator) = allocators.by_key.get(&Key::Local(*at)) {
            if allocator.member.is_some() {
                inner.extend(outcome.filled.iter().map(|(call, _)| *call));
            } else if let Some((_, calls)) =
                derive(program, types, &allocators, &unread, *at, outcome)
            {
                inner.extend(calls);
            }
            wrappers.push(wrapper(program, &allocators, *at, allocator));
        }
    }
    // Pools of which nothing was gone through, since what they call allocates in another way than by handing on.
    let seen: HashSet<u32> = outcomes.iter().map(|(at, _)| *at).collect();
    let unseen = allocators.pools.iter().filter(|at| !seen.contains(at));
    wrappers.extend(unseen.filter_map(|at| {
        let allocator = allocators.by_key.get(&Key::Local(*at))?;
        Some(wrapper(program, &allocators, *at, allocator))
    }));
    wrappers.sort_by_key(|wrapper| wrapper.entry);
    Found {
        allocators,
        wrappers,
        outcomes,
        inner,
    }
}

/// What is said of a wrapper.
fn wrapper(
    program: &Program<'_>,
    allocators: &Allocators<'_>,
    at: u32,
    allocator: &Allocator,
) -> Wrapper {
    let body = &program.bodies[at as usize];
    Wrapper {
        entry: body.entry,
        name: body.name.to_owned(),
        size: allocator.size,
        old: allocator.old,
        offset: Some(allocator.offset)
            .filter(|at| is_number(*at))
            .map_or(0, |at| at + allocator.header),
        member: allocator.member,
        result: allocator.base,
        is_pool: allocators.pools.contains(&at),
    }
}

/// Goes through the functions, of those that are `wanted` by number and view, that allocate, and whose view is another than
/// that of their outcome. `views` are by number.
fn interpret<'f>(
    program: &Program<'f>,
    types: &Types<'f>,
    allocators: &Allocators<'f>,
    views: &[Vec<Key>],
    outcomes: &HashMap<u32, (Vec<Key>, Outcome)>,
    wanted: impl Fn(u32, &[Key]) -> bool + Sync,
) -> Vec<(u32, Vec<Key>, Outcome)> {
    let is_known = |at: u32, view: &[Key]| outcomes.get(&at).is_some_and(|(seen, _)| seen == view);
    let work: Vec<(u32, &Vec<Key>)> = views
        .par_iter()
        .enumerate()
        .map(|(at, view)| (at as u32, view))
        .filter(|(_, view)| !view.is_empty())
        .filter(|(at, view)| !is_known(*at, view) && wanted(*at, view))
        .collect();
    work.into_par_iter()
        .map(|(at, view)| {
            let body = &program.bodies[at as usize];
            let outcome = Interpreter::new(program, types, allocators, body).run();
            (at, view.clone(), outcome)
        })
        .collect()
}

/// Whether [`derive()`] may find a function of this view to be a wrapper, whatever it does with what it allocates: `false` is certain.
fn may_be_wrapper(
    program: &Program<'_>,
    types: &Types<'_>,
    allocators: &Allocators<'_>,
    unread: &HashSet<u32>,
    at: u32,
    view: &[Key],
) -> bool {
    let body = &program.bodies[at as usize];
    if body.name == "main" {
        return false;
    }
    if rust::is_collection(body) {
        return true;
    }
    let Some(function) = body.function else {
        return !unread.contains(&at);
    };
    let makes_text = |key: &Key| {
        let allocator = allocators.get(*key);
        allocator.is_some_and(|allocator| allocator.makes == Makes::Characters)
    };
    if view.iter().any(makes_text) {
        return true;
    }
    may_hand_on(types, body, function)
}

/// The view of each function.
fn views(program: &Program<'_>, allocators: &Allocators<'_>) -> Vec<Vec<Key>> {
    let bodies = program.bodies.par_iter();
    bodies.map(|body| view(program, body, allocators)).collect()
}

/// Which allocation functions a function calls, as known now: its interpretation depends on that.
fn view(program: &Program<'_>, body: &Body<'_>, allocators: &Allocators<'_>) -> Vec<Key> {
    let mut view: Vec<Key> = body
        .calls
        .iter()
        .map(|call| call.callee)
        .chain(body.taken.iter().copied())
        .filter(|callee| allocators.by_key.contains_key(callee))
        .collect();
    if body.calls.iter().any(|call| call.callee == Key::Indirect) && body.function.is_some() {
        view.extend(allocators.by_signature.values());
        view.extend(program.pointers.iter().map(|(_, key)| *key));
    }
    if body.moves_stack || allocators.movers.contains(&body.entry) {
        view.push(Key::Carved);
    }
    view.sort_unstable();
    view.dedup();
    view
}

/// What callers of a function get, if it is a wrapper; and its calls that are theirs.
fn derive(
    program: &Program<'_>,
    types: &Types<'_>,
    allocators: &Allocators<'_>,
    unread: &HashSet<u32>,
    at: u32,
    outcome: &Outcome,
) -> Option<(Allocator, Vec<u64>)> {
    let body = &program.bodies[at as usize];
    if body.name == "main" {
        return None;
    }
    if rust::is_collection(body) {
        return collection(types, body, outcome);
    }
    let result = body.function.map(|function| handed_back(types, function));
    let mut found: Option<Allocator> = None;
    let mut calls = Vec::new();
    for met in &outcome.met {
        if let Some(member) = allocators.get(met.callee).and_then(|it| it.member) {
            if let Some(allocator) = filled::taken(program, body, met, member) {
                calls.push(met.call);
                found = found.or(Some(allocator));
            }
            continue;
        }
        let Some(&(_, offset)) = outcome.returned.iter().find(|(call, _)| *call == met.call) else {
            if let Some(allocator) =
                hands_through(types, body, allocators.get(met.callee), met, outcome)
            {
                calls.push(met.call);
                found = found.or(Some(allocator));
            }
            continue;
        };
        let Some(callee) = allocators.get(met.callee) else {
            continue;
        };
        let Some(mut allocator) = hands_out(types, body, callee, met, offset, result, outcome)
        else {
            continue;
        };
        // Nothing states a result; what is left in its register may be no more than left there.
        if result.is_none() && unread.contains(&at) {
            return None;
        }
        match allocator.size {
            Size::Argument {
                index, scale: 1, ..
            } if behind_header(allocator.size, offset) => {
                // What it keeps before the block, and what it may keep behind it, its callers do not ask for.
                allocator.header = offset;
                allocator.size = Size::Argument {
                    index,
                    scale: 1,
                    add: 0,
                };
            }
            _ => {
                allocator.offset = offset;
                // What a unit is a parameter of, and not the count, hands out one of them.
                let is_one_of_them =
                    matches!(allocator.size, Size::Derived(_)) && allocator.unit.is_some();
                if is_any_factor(met.size) && offset != ANYWHERE {
                    allocator.unit = None;
                }
                if offset == ANYWHERE && is_one_of_them {
                    allocator.element = true;
                } else if offset == ANYWHERE && allocator.size == Size::Unknown {
                    let numbers = match result {
                        Some(Some(Pointee::Void)) => numbers_given(types, body),
                        _ => Vec::new(),
                    };
                    allocator.element = numbers.is_empty();
                    // Who is given a long number hands out room of so many bytes, and who is given others what they make.
                    if let [(index, 8)] = numbers[..] {
                        allocator.size = Size::Argument {
                            index,
                            scale: 1,
                            add: 0,
                        };
                    }
                    if !allocator.element {
                        allocator.offset = 0;
                    }
                }
            }
        }
        calls.push(met.call);
        found = Some(match found {
            None => allocator,
            // One way hands out all that it asks for, another a place in a larger block: the latter is as good as a block.
            Some(before) if before.offset == ANYWHERE && allocator.offset == 0 => {
                both(allocator, before)
            }
            Some(before) => both(before, allocator),
        });
    }
    Some((found?, calls))
}

/// Whether a size is a parameter times something that is not known: which is the count, and which the unit?
fn is_any_factor(size: Value) -> bool {
    matches!(size, Value::Multiple { from: 0, .. })
}

/// The arguments of a function that are numbers and may be sizes, and how many bytes each has.
fn numbers_given(types: &Types<'_>, body: &Body<'_>) -> Vec<(u8, u64)> {
    let given = (0..).zip(parameters(body, types).by_register);
    let numbers = given.filter_map(|(index, parameter)| {
        let r#type = types.strip(parameter?.r#type);
        let size = types.size(r#type).filter(|size| *size >= 4)?;
        types.is_integer(r#type).then_some((index, size))
    });
    numbers.collect()
}

/// A function of Rust's collections allocates for whoever calls it, if all it allocates is of one type.
fn collection(
    types: &Types<'_>,
    body: &Body<'_>,
    outcome: &Outcome,
) -> Option<(Allocator, Vec<u64>)> {
    let mut stores = Vec::new();
    let mut calls = Vec::new();
    for met in &outcome.met {
        let stored = match body.function {
            Some(function) => rust::stored(function, types, met.call),
            None => Stored::Erased { through: true },
        };
        match stored {
            // Its own site, of whatever type its result shows.
            Stored::Erased { through: true }
                if !rust::is_erased(body) || is_seen_typed(types, met, outcome) =>
            {
                return None;
            }
            Stored::Erased { through: true } => stores.push(None),
            Stored::Type {
                index,
                role,
                through: true,
                ..
            } => stores.push(Some((index, role))),
            Stored::Undescribed => return None,
            // Code of the program, inlined: its own site.
            _ => continue,
        }
        calls.push(met.call);
    }
    let first = *stores.first()?;
    stores.iter().all(|other| *other == first).then(|| {
        let allocator = Allocator {
            returns_it: false,
            stores: first,
            ..Allocator::of(Size::Unknown, Makes::Whatever)
        };
        (allocator, calls)
    })
}

/// Whether the block is seen as anything but bytes.
fn is_seen_typed(types: &Types<'_>, met: &Met, outcome: &Outcome) -> bool {
    outcome.observations.iter().any(|seen| {
        seen.call == met.call
            && matches!(&seen.seen, Seen::Types(list) if list.iter().any(|at| !types.is_byte(*at)))
    })
}

/// What callers get if a wrapper hands out what `one` says, or what `other` says.
fn both(one: Allocator, other: Allocator) -> Allocator {
    Allocator {
        size: if one.size == other.size {
            one.size
        } else {
            either(one.size, other.size)
        },
        old: one.old.or(other.old),
        unit: one.unit.or(other.unit),
        out: one.out.or(other.out),
        kept: one.kept || other.kept,
        ..one
    }
}

/// The size rule when two calls in one wrapper differ: the one that says something, if one does.
fn either(a: Size, b: Size) -> Size {
    match (a, b) {
        (Size::Unknown, other) | (other, Size::Unknown) => other,
        (Size::Derived(x), Size::Derived(y)) => Size::Derived(x | y),
        // One path rounds up what the other takes as it is: the request is the argument.
        (Size::Derived(_), plain) | (plain, Size::Derived(_)) => plain,
        _ => Size::Unknown,
    }
}
