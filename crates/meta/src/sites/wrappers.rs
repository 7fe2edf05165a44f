//! *Which functions hand out memory on behalf of their callers?*
//!
//! A function is a wrapper when an allocation's result flows to its own result and
//!
//! - the result is a `void *` and the size is computed from its parameters (or nothing in the
//!   function tells a type), or
//! - the result is a pointer to a base type or to bytes, and the size *is* a parameter: what
//!   becomes of it only the caller knows, or
//! - what it hands out is a copy of a string parameter.
//!
//! Calls of a wrapper are allocation sites in turn, so this is a fixed point. Functions are told
//! apart by address, never by name.

use super::calls::{Key, Program};
use super::flow::{Interpreter, Met, Outcome, Seen};
use super::model::{self, Makes, Size};
use super::rust::{self, Stored};
use super::typing::{Pointee, Types};
use super::value::{ANYWHERE, Computed, Value, is_number, offset_parameter};
use super::{Wrapper, beneath, identity, unnamed};
use crate::config::Declared;
use crate::facts::{Facts, Global};
use pointee_model::evidence::{Role, Witness};
use pointee_model::image::{TypeIndex, TypeKind};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::sync::RwLock;

/// Rounds of the fixed point; chains of wrappers in real programs end before six.
const ROUNDS: usize = 16;

/// One allocation function: a root or a wrapper.
#[derive(Clone, Debug)]
pub(super) struct Allocator {
    pub(super) size: Size,
    /// The argument that is the old block.
    pub(super) old: Option<u8>,
    /// The argument through which the result is stored.
    pub(super) out: Option<u8>,
    pub(super) makes: Makes,
    /// What a wrapper's result points to, when that is not `void`.
    pub(super) base: Option<TypeIndex>,
    /// Where in the block the result points; not 0 when the wrapper keeps a header before it.
    pub(super) offset: i64,
    /// Bytes that the wrapper keeps for itself before what it hands out; callers know nothing of them.
    pub(super) header: i64,
    /// Whether the result is the block. A collection keeps it where nobody follows.
    pub(super) returns_it: bool,
    /// What a function of a generic collection stores, and in what role.
    pub(super) stores: Option<(TypeIndex, Role)>,
    /// Whether the result is some element of an array that the function lets grow: `T *push(array)`.
    pub(super) element: bool,
}

impl Allocator {
    /// One that the configuration names.
    fn declared(declared: &Declared) -> Self {
        Self {
            size: declared.size,
            old: declared.old,
            out: None,
            makes: Makes::Whatever,
            base: None,
            offset: 0,
            header: 0,
            returns_it: true,
            stores: None,
            element: false,
        }
    }

    /// Where in the block the result of a call with these arguments points.
    pub(super) fn offset_of(&self, arguments: &[Value; 6]) -> i64 {
        match offset_parameter(self.offset) {
            // What is seen of one element holds for the array.
            _ if self.element => 0,
            Some(index) => match arguments[usize::from(index) % 6] {
                Value::Constant(offset) => offset,
                _ => ANYWHERE,
            },
            None => self.offset,
        }
    }
}

/// All allocation functions of the file and what the interpreter must know beside them.
pub(super) struct Allocators<'f> {
    by_key: HashMap<Key, Allocator>,
    by_signature: HashMap<Vec<TypeIndex>, Key>,
    /// At link-time addresses, in order of these.
    globals: &'f [Global],
    identities: RwLock<HashMap<Key, Option<u8>>>,
}

/// The result of the fixed point.
pub(super) struct Found<'f> {
    pub(super) allocators: Allocators<'f>,
    pub(super) wrappers: Vec<Wrapper>,
    /// By function.
    pub(super) outcomes: Vec<(u32, Outcome)>,
    /// Calls made inside wrappers on behalf of their callers.
    pub(super) inner: HashSet<u64>,
}

impl<'f> Allocators<'f> {
    fn roots(program: &Program<'_>, facts: &'f Facts, declared: &[Declared]) -> Self {
        let imports = (0..)
            .zip(&program.imports)
            .map(|(at, name)| (Key::Import(at), *name));
        let locals = (0..)
            .zip(&program.bodies)
            .map(|(at, body)| (Key::Local(at), body.linkage_name));
        let by_key = imports
            .chain(locals)
            .filter_map(|(key, name)| {
                let Some(row) = model::row(name) else {
                    let declared = declared.iter().rev().find(|declared| declared.is(name))?;
                    return Some((key, Allocator::declared(declared)));
                };
                Some((
                    key,
                    Allocator {
                        size: row.size,
                        old: row.old,
                        out: row.out,
                        makes: row.makes,
                        base: None,
                        offset: 0,
                        header: 0,
                        returns_it: row.out.is_none() && !model::is_string_member(name),
                        stores: None,
                        element: false,
                    },
                ))
            })
            .collect();
        Self {
            by_key,
            by_signature: HashMap::new(),
            globals: fixed(&facts.globals),
            identities: RwLock::new(HashMap::new()),
        }
    }

    pub(super) fn get(&self, key: Key) -> Option<&Allocator> {
        self.by_key.get(&key)
    }

    pub(super) fn insert(&mut self, key: Key, allocator: Allocator) {
        self.by_key.insert(key, allocator);
    }

    pub(super) fn remove(&mut self, key: Key) {
        self.by_key.remove(&key);
    }

    /// The functions of this file that hand out memory of a size they are given.
    pub(super) fn local_roots(&self) -> Vec<u32> {
        let roots = self.by_key.iter().filter_map(|(key, known)| match key {
            Key::Local(at) if known.returns_it && known.makes == Makes::Whatever => Some(*at),
            _ => None,
        });
        roots.collect()
    }

    /// The allocation function, among those whose address is taken, of a function type.
    pub(super) fn of_signature(&self, types: &Types<'_>, function: TypeIndex) -> Option<Key> {
        if self.by_signature.is_empty() {
            return None;
        }
        let entry = types.get(function)?;
        let parameters = entry.members.iter().map(|member| member.r#type);
        self.by_signature
            .get(&signature(types, entry.target, parameters))
            .copied()
    }

    /// The argument that a small function returns unchanged.
    pub(super) fn returned_argument(&self, program: &Program<'_>, callee: Key) -> Option<u8> {
        if let Ok(known) = self.identities.read()
            && let Some(argument) = known.get(&callee)
        {
            return *argument;
        }
        let argument = program
            .body(callee)
            .and_then(|body| identity::returned_argument(program.elf, body));
        if let Ok(mut known) = self.identities.write() {
            known.insert(callee, argument);
        }
        argument
    }

    fn global(&self, address: u64) -> Option<&Global> {
        let after = self
            .globals
            .partition_point(|global| global.address <= address);
        let global = self.globals.get(after.checked_sub(1)?)?;
        (address.checked_sub(global.address)? < global.size.max(1)).then_some(global)
    }

    /// Type and offset in it of the global that `address` lies in.
    pub(super) fn global_at(&self, address: u64) -> Option<(TypeIndex, i64)> {
        let global = self.global(address)?;
        Some((
            global.r#type?,
            i64::try_from(address - global.address).ok()?,
        ))
    }

    pub(super) fn global_name(&self, address: u64) -> String {
        self.global(address)
            .map_or_else(String::new, |global| global.name.clone())
    }
}

/// The globals that are not thread-local; those come last.
fn fixed(globals: &[Global]) -> &[Global] {
    &globals[..globals.partition_point(|global| !global.thread_local)]
}

/// Finds all wrappers and interprets every function that allocates.
pub(super) fn fixpoint<'f>(
    program: &Program<'f>,
    types: &Types<'f>,
    facts: &'f Facts,
    declared: &[Declared],
) -> Found<'f> {
    let mut allocators = Allocators::roots(program, facts, declared);
    beneath::add(program, types, &mut allocators);
    let roots: HashSet<Key> = allocators.by_key.keys().copied().collect();
    let unread = unnamed::unread_results(program);
    let mut outcomes: HashMap<u32, (Vec<Key>, Outcome)> = HashMap::new();
    for _ in 0..ROUNDS {
        // Only functions that may turn out to be wrappers: the others once, when all wrappers are known.
        let done = interpret(program, types, &allocators, &outcomes, |at, view| {
            !allocators.by_key.contains_key(&Key::Local(at))
                && may_be_wrapper(program, types, &allocators, &unread, at, view)
        });
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
            break;
        }
        // By signature are told those whose signature is known.
        let added: HashSet<u32> = new
            .iter()
            .map(|(at, _)| *at)
            .filter(|at| program.bodies[*at as usize].function.is_some())
            .collect();
        for (at, allocator) in new {
            allocators.by_key.insert(Key::Local(at), allocator);
        }
        let mut taken: Vec<u32> = program.address_taken(&added).into_iter().collect();
        taken.sort_unstable();
        for at in taken {
            if let Some(function) = program.bodies[at as usize].function {
                let mut parameters: Vec<_> = function
                    .variables
                    .iter()
                    .filter(|variable| variable.inline.is_none())
                    .filter_map(|variable| Some((variable.parameter?, variable.r#type?)))
                    .collect();
                parameters.sort_by_key(|(number, _)| *number);
                let key = signature(types, function.result, parameters.into_iter().map(|p| p.1));
                allocators.by_signature.entry(key).or_insert(Key::Local(at));
            }
        }
    }
    let rest = interpret(program, types, &allocators, &outcomes, |_, _| true);
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
            if let Some((_, calls)) = derive(program, types, &allocators, &unread, *at, outcome) {
                inner.extend(calls);
            }
            let body = &program.bodies[*at as usize];
            wrappers.push(Wrapper {
                entry: body.entry,
                name: body.name.to_owned(),
                size: allocator.size,
                old: allocator.old,
                offset: Some(allocator.offset)
                    .filter(|at| is_number(*at))
                    .map_or(0, |at| at + allocator.header),
                result: allocator.base,
            });
        }
    }
    Found {
        allocators,
        wrappers,
        outcomes,
        inner,
    }
}

/// Goes through the functions, of those that are `wanted` by number and view, that allocate, and whose view is another than
/// that of their outcome.
fn interpret<'f>(
    program: &Program<'f>,
    types: &Types<'f>,
    allocators: &Allocators<'f>,
    outcomes: &HashMap<u32, (Vec<Key>, Outcome)>,
    wanted: impl Fn(u32, &[Key]) -> bool + Sync,
) -> Vec<(u32, Vec<Key>, Outcome)> {
    let is_known = |at: u32, view: &[Key]| outcomes.get(&at).is_some_and(|(seen, _)| seen == view);
    let work: Vec<(u32, Vec<Key>)> = program
        .bodies
        .par_iter()
        .enumerate()
        .filter_map(|(at, body)| {
            let (at, view) = (at as u32, view(body, allocators));
            let is_due = !view.is_empty() && !is_known(at, &view) && wanted(at, &view);
            is_due.then_some((at, view))
        })
        .collect();
    work.into_par_iter()
        .map(|(at, view)| {
            let body = &program.bodies[at as usize];
            let outcome = Interpreter::new(program, types, allocators, body).run();
            (at, view, outcome)
        })
        .collect()
}

/// Whether [`derive`] may find a function of this view to be a wrapper, whatever it does with what it allocates: `false` is certain.
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
    let hands_through = |r#type: TypeIndex| match types.pointee(r#type) {
        Some(Pointee::Type(target)) => types.pointee(target) == Some(Pointee::Void),
        _ => false,
    };
    let parameters = super::parameters::parameters(body, types).by_register;
    if parameters
        .into_iter()
        .flatten()
        .any(|parameter| hands_through(parameter.r#type))
    {
        return true;
    }
    match function.result.and_then(|result| types.pointee(result)) {
        None => false,
        Some(Pointee::Void) => true,
        Some(Pointee::Type(target)) => types.is_character(target) || is_record(types, target),
    }
}

fn is_record(types: &Types<'_>, at: TypeIndex) -> bool {
    types.get(at).is_some_and(|entry| {
        matches!(
            entry.kind,
            TypeKind::Struct | TypeKind::Class | TypeKind::Union
        )
    })
}

/// Which allocation functions a function calls, as known now: its interpretation depends on that.
fn view(body: &super::calls::Body<'_>, allocators: &Allocators<'_>) -> Vec<Key> {
    let mut view: Vec<Key> = body
        .calls
        .iter()
        .map(|call| call.callee)
        .filter(|callee| allocators.by_key.contains_key(callee))
        .collect();
    if body.calls.iter().any(|call| call.callee == Key::Indirect) && body.function.is_some() {
        view.extend(allocators.by_signature.values());
    }
    view.sort_unstable();
    view.dedup();
    view
}

fn signature(
    types: &Types<'_>,
    result: Option<TypeIndex>,
    parameters: impl Iterator<Item = TypeIndex>,
) -> Vec<TypeIndex> {
    let result = result.map_or(TypeIndex::MAX, |result| types.strip(result));
    std::iter::once(result)
        .chain(parameters.map(|parameter| types.strip(parameter)))
        .collect()
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
    let result = body
        .function
        .map(|function| function.result.and_then(|result| types.pointee(result)));
    let mut found: Option<Allocator> = None;
    let mut calls = Vec::new();
    for met in &outcome.met {
        let Some(&(_, offset)) = outcome.returned.iter().find(|(call, _)| *call == met.call) else {
            if let Some(allocator) = hands_through(types, body, met, outcome) {
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
                index,
                scale: 1,
                add,
            } if behind_header(allocator.size, offset) => {
                allocator.header = offset;
                allocator.size = Size::Argument {
                    index,
                    scale: 1,
                    add: add - offset,
                };
            }
            _ => {
                allocator.offset = offset;
                allocator.element = offset == ANYWHERE && allocator.size == Size::Unknown;
            }
        }
        calls.push(met.call);
        found = Some(match found {
            None => allocator,
            Some(before) => Allocator {
                size: if before.size == allocator.size {
                    before.size
                } else {
                    either(before.size, allocator.size)
                },
                old: before.old.or(allocator.old),
                ..before
            },
        });
    }
    Some((found?, calls))
}

/// A function of Rust's collections allocates for whoever calls it, if all it allocates is of one type.
fn collection(
    types: &Types<'_>,
    body: &super::calls::Body<'_>,
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
            size: Size::Unknown,
            old: None,
            out: None,
            makes: Makes::Whatever,
            base: None,
            offset: 0,
            header: 0,
            returns_it: false,
            stores: first,
            element: false,
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

/// What callers get from a function that stores an allocation of a size they ask for where a parameter
/// of type `void **` points.
fn hands_through(
    types: &Types<'_>,
    body: &super::calls::Body<'_>,
    met: &Met,
    outcome: &Outcome,
) -> Option<Allocator> {
    let (_, index) = *outcome.handed.iter().find(|(call, _)| *call == met.call)?;
    let size = size_rule(met);
    let parameter = super::parameters::parameters(body, types)
        .by_register
        .get(usize::from(index))
        .copied()??;
    let Some(Pointee::Type(target)) = types.pointee(parameter.r#type) else {
        return None;
    };
    let untyped = types.pointee(target) == Some(Pointee::Void);
    (untyped && size != Size::Unknown).then_some(Allocator {
        size,
        old: None,
        out: Some(index),
        makes: Makes::Whatever,
        base: None,
        offset: 0,
        header: 0,
        returns_it: false,
        stores: None,
        element: false,
    })
}

fn hands_out(
    types: &Types<'_>,
    body: &super::calls::Body<'_>,
    callee: &Allocator,
    met: &Met,
    offset: i64,
    result: Option<Option<Pointee>>,
    outcome: &Outcome,
) -> Option<Allocator> {
    let size = size_rule(met);
    let behind = behind_header(size, offset);
    let old = callee
        .old
        .and_then(|old| match met.arguments[usize::from(old) % 6] {
            Value::Parameter { index, offset: at } if at == 0 || (behind && at == -offset) => {
                Some(index)
            }
            _ => None,
        });
    let allocator = |size, base| Allocator {
        size,
        old,
        out: None,
        makes: Makes::Whatever,
        base,
        offset: 0,
        header: 0,
        returns_it: true,
        stores: None,
        element: false,
    };
    let passes_on = matches!(
        size,
        Size::Argument {
            scale: 1,
            add: 0,
            ..
        } | Size::Product(..)
    );
    if callee.makes == Makes::Characters {
        if body.function.is_none() {
            let copied = matches!(met.arguments[0], Value::Parameter { offset: 0, .. });
            return copied.then(|| Allocator {
                makes: Makes::Characters,
                ..allocator(Size::Unknown, None)
            });
        }
        let from_parameter = met.arguments.iter().any(|value| {
            matches!(value, Value::Parameter { index, offset: 0 }
                if is_string(types, body, *index))
        });
        return from_parameter.then(|| Allocator {
            makes: Makes::Characters,
            ..allocator(Size::Unknown, None)
        });
    }
    if callee.makes != Makes::Whatever {
        return None;
    }
    let seen_as = |character: bool| {
        outcome.observations.iter().any(|seen| {
            seen.call == met.call
                && seen.witness != Witness::Result
                && seen.witness != Witness::Reallocated
                && matches!(&seen.seen, Seen::Types(list)
                    if list.iter().any(|at| types.is_character(*at) == character))
        })
    };
    let (typed, bytes) = (seen_as(false), seen_as(true));
    match result {
        // No debug info: only a plain hand-through is taken for a wrapper, rounded at most.
        None => (passes_on || behind || is_one_parameter(met.size)).then(|| allocator(size, None)),
        Some(Some(Pointee::Void)) => match size {
            _ if passes_on || behind => Some(allocator(size, None)),
            _ if typed || bytes => None,
            // Whoever calls it, no caller's code is seen that could tell more.
            Size::Unknown if !body.is_called => None,
            _ => Some(allocator(size, None)),
        },
        Some(Some(Pointee::Type(target))) if types.is_character(target) => match size {
            Size::Argument { scale: 1, .. } | Size::Product(..) => {
                Some(allocator(size, Some(target)))
            }
            // A copy of a string parameter: the size is its length.
            Size::Derived(mask)
                if !typed && (0..6).any(|at| mask >> at & 1 == 1 && is_string(types, body, at)) =>
            {
                Some(Allocator {
                    makes: Makes::Characters,
                    ..allocator(Size::Unknown, None)
                })
            }
            _ => None,
        },
        Some(Some(Pointee::Type(target))) => {
            (is_record(types, target) && passes_on && !matches!(size, Size::Product(..)))
                .then(|| allocator(size, Some(target)))
        }
        Some(None) => None,
    }
}

/// Whether a wrapper asks for so many bytes more than its caller and hands out what lies behind them.
fn behind_header(size: Size, offset: i64) -> bool {
    matches!(size, Size::Argument { scale: 1, add, .. } if offset > 0 && add >= offset)
}

/// Whether a size is one parameter, perhaps rounded or replaced where it is 0.
fn is_one_parameter(size: Value) -> bool {
    matches!(size, Value::Linear { from, scale: 1, add: 0, .. } if from.count_ones() == 1)
}

fn is_string(types: &Types<'_>, body: &super::calls::Body<'_>, index: u8) -> bool {
    let known = super::parameters::parameters(body, types);
    known
        .by_register
        .get(usize::from(index))
        .and_then(Option::as_ref)
        .is_some_and(|parameter| {
            matches!(types.pointee(parameter.r#type), Some(Pointee::Type(target))
                if types.is_character(target))
        })
}

/// The size of an allocation in terms of the function's own parameters.
fn size_rule(met: &Met) -> Size {
    if let Some((
        Value::Parameter {
            index: a,
            offset: 0,
        },
        Value::Parameter {
            index: b,
            offset: 0,
        },
    )) = met.factors
    {
        return Size::Product(a, b);
    }
    match met.size {
        Value::Parameter { index, offset } => Size::Argument {
            index,
            scale: 1,
            add: offset,
        },
        Value::Linear {
            from,
            x: Computed::Exactly | Computed::Nearly,
            scale,
            add,
        } if from.count_ones() == 1 => Size::Argument {
            index: from.trailing_zeros() as u8,
            scale,
            add,
        },
        Value::Product(a, b) => Size::Product(a, b),
        value if value.from() != 0 => Size::Derived(value.from()),
        _ => met
            .factors
            .map(|(a, b)| a.from() | b.from())
            .filter(|mask| *mask != 0)
            .map_or(Size::Unknown, Size::Derived),
    }
}
