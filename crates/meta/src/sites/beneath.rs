//! *Which functions do a program's own `malloc` and its like rest on?*
//!
//! A program that brings an allocator of its own calls it in more ways than by the names of the C
//! library: `malloc(n)` is `internal_malloc(n, 0, 0, 0)`, and a checked variant calls the latter with a file
//! and a line. A function to which an allocation function hands its size and whose result it
//! returns is one too.

use super::allocators::{Allocator, Allocators};
use super::calls::{Key, Program};
use super::flow::Interpreter;
use super::model::Size;
use super::outcome::Met;
use super::parameters::parameters;
use super::typing::{Pointee, Types};
use super::value::Value;

/// Functions looked at; the layers of an allocator are few.
const MOST: usize = 64;

/// Adds the functions beneath the allocation functions that the file itself defines.
pub(super) fn add<'f>(program: &Program<'f>, types: &Types<'f>, allocators: &mut Allocators<'f>) {
    let mut upper: Vec<u32> = allocators.local_roots();
    upper.sort_unstable();
    let mut next = 0;
    while let Some(at) = upper.get(next).copied().filter(|_| next < MOST) {
        next += 1;
        for (callee, allocator) in beneath(program, types, allocators, at) {
            allocators.insert(callee, allocator);
            if let Key::Local(callee) = callee {
                upper.push(callee);
            }
        }
    }
}

/// The functions whose result function `at` returns for a size that it was given.
fn beneath<'f>(
    program: &Program<'f>,
    types: &Types<'f>,
    allocators: &mut Allocators<'f>,
    at: u32,
) -> Vec<(Key, Allocator)> {
    let Some(upper) = allocators.get(Key::Local(at)).cloned() else {
        return Vec::new();
    };
    let body = &program.bodies[at as usize];
    let mut candidates: Vec<Key> = body
        .calls
        .iter()
        .map(|call| call.callee)
        .filter(|callee| allocators.get(*callee).is_none())
        .filter(|callee| {
            let result = program.body(*callee).map(|callee| {
                let function = callee.function?;
                Some(types.pointee(function.result?))
            });
            matches!(result, Some(None | Some(Some(Pointee::Void))))
        })
        .collect();
    candidates.sort_unstable();
    candidates.dedup();
    if candidates.is_empty() {
        return Vec::new();
    }
    let supposed = Allocator {
        size: Size::Unknown,
        old: None,
        ..upper.clone()
    };
    for callee in &candidates {
        allocators.insert(*callee, supposed.clone());
    }
    let outcome = Interpreter::new(program, types, allocators, body).run();
    for callee in &candidates {
        allocators.remove(*callee);
    }
    let returned = |met: &&Met| outcome.returned.contains(&(met.call, 0));
    let met = outcome.met.iter().filter(returned);
    met.filter(|met| candidates.contains(&met.callee))
        .filter_map(|met| Some((met.callee, handed_down(&upper, met)?)))
        .filter(|(callee, allocator)| takes(program, types, *callee, allocator.size))
        .collect()
}

/// Whether a function has the parameters that say how much is asked for: what its caller was given lies in their registers still where it
/// has none.
fn takes(program: &Program<'_>, types: &Types<'_>, callee: Key, size: Size) -> bool {
    let Some(body) = program.body(callee) else {
        return false;
    };
    let given = parameters(body, types).by_register;
    let is_given = |index: u8| given[usize::from(index) % 6].is_some();
    match size {
        Size::Argument { index, .. } => is_given(index),
        Size::Product(a, b) => is_given(a) && is_given(b),
        Size::Unknown | Size::Derived(_) => true,
    }
}

/// The rule of a callee, given that of its caller, by which arguments are the caller's own.
fn handed_down(upper: &Allocator, met: &Met) -> Option<Allocator> {
    let place = |wanted: Value| {
        let found = met.arguments.iter().position(|value| *value == wanted)?;
        u8::try_from(found).ok()
    };
    let parameter = |index| place(Value::Parameter { index, offset: 0 });
    let bytes = |index| Size::Argument {
        index,
        scale: 1,
        add: 0,
    };
    let size = match upper.size {
        Size::Argument {
            index,
            scale: 1,
            add: 0,
        } => bytes(parameter(index)?),
        Size::Product(a, b) => match (parameter(a), parameter(b)) {
            (Some(a), Some(b)) => Size::Product(a, b),
            _ => bytes(place(Value::Product(a, b))?),
        },
        _ => return None,
    };
    Some(Allocator {
        size,
        old: upper.old.and_then(parameter),
        ..upper.clone()
    })
}
