//! *Which parameter does each argument register carry at the entry of a function?*
//!
//! By the System V ABI for x86-64 (§3.2.3) from the declared types. A clone from which the compiler
//! removed parameters (`.constprop`, `.isra`) does not follow its declaration; there the places
//! that debug info states for the entry count.

use super::calls::Body;
use super::state::{ARGUMENTS, State, from_dwarf};
use super::typing::Types;
use super::value::Value;
use crate::facts::{Place, Variable};
use pointee_model::image::{TypeIndex, TypeKind};

/// One parameter in an argument register.
#[derive(Clone, Copy)]
pub(super) struct Parameter<'f> {
    pub(super) name: &'f str,
    pub(super) r#type: TypeIndex,
}

/// The parameters of one function, by argument register.
#[derive(Clone, Default)]
pub(super) struct Parameters<'f> {
    pub(super) by_register: [Option<Parameter<'f>>; 6],
}

impl Parameters<'_> {
    pub(super) fn entry_state(&self) -> State {
        let mut state = State::at_entry();
        for (index, register) in (0..).zip(ARGUMENTS) {
            state.registers[register] = Value::Parameter { index, offset: 0 };
        }
        state
    }
}

/// The parameters of `body`; none for a function without debug info.
pub(super) fn parameters<'f>(body: &Body<'f>, types: &Types<'f>) -> Parameters<'f> {
    let Some(function) = body.function else {
        return Parameters::default();
    };
    let mut declared: Vec<&Variable> = function
        .variables
        .iter()
        .filter(|variable| variable.inline.is_none() && variable.parameter.is_some())
        .collect();
    declared.sort_by_key(|variable| variable.parameter);

    let by_abi = by_abi(&declared, function.result, types);
    let by_place = by_place(&declared, body.entry);
    let agree = by_place
        .iter()
        .zip(&by_abi)
        .all(|(place, abi)| match (place, abi) {
            (Some(place), Some(abi)) => place.name == abi.name,
            (Some(_), None) => false,
            (None, _) => true,
        });
    Parameters {
        by_register: if agree { by_abi } else { by_place },
    }
}

fn by_place<'f>(declared: &[&'f Variable], entry: u64) -> [Option<Parameter<'f>>; 6] {
    let mut found = [None; 6];
    for variable in declared {
        let register = variable.places.iter().find_map(|(start, end, place)| {
            let here = (*start..*end).contains(&entry);
            match place {
                Place::Register(number) if here => from_dwarf(*number),
                _ => None,
            }
        });
        if let (Some(register), Some(r#type)) = (register, variable.r#type)
            && let Some(at) = ARGUMENTS.iter().position(|known| *known == register)
        {
            found[at] = Some(Parameter {
                name: &variable.name,
                r#type,
            });
        }
    }
    found
}

fn by_abi<'f>(
    declared: &[&'f Variable],
    result: Option<TypeIndex>,
    types: &Types<'_>,
) -> [Option<Parameter<'f>>; 6] {
    let mut found = [None; 6];
    // Where the class of one is not known, the places of those after it are not either.
    let known = declared.iter().map_while(|variable| variable.r#type);
    let registers = registers(known, result, types);
    for (variable, register) in declared.iter().zip(registers) {
        if let (Some(register), Some(r#type)) = (register, variable.r#type) {
            found[register] = Some(Parameter {
                name: &variable.name,
                r#type,
            });
        }
    }
    found
}

/// The types of what each argument register carries, given the types of the parameters.
pub(super) fn in_registers(
    declared: impl Iterator<Item = TypeIndex>,
    result: Option<TypeIndex>,
    types: &Types<'_>,
) -> [Option<TypeIndex>; 6] {
    let declared: Vec<TypeIndex> = declared.collect();
    let mut found = [None; 6];
    for (r#type, register) in
        declared
            .iter()
            .zip(registers(declared.iter().copied(), result, types))
    {
        if let Some(register) = register {
            found[register] = Some(*r#type);
        }
    }
    found
}

/// The argument register of each parameter that has one to itself.
fn registers(
    declared: impl Iterator<Item = TypeIndex>,
    result: Option<TypeIndex>,
    types: &Types<'_>,
) -> Vec<Option<usize>> {
    const COUNT: usize = ARGUMENTS.len();
    // A result in memory takes the first register for its address.
    let mut next = usize::from(result.and_then(|result| types.size(result)).unwrap_or(0) > 16);
    declared
        .map(|r#type| {
            let words = integer_words(r#type, types);
            let own = (words == 1 && next < COUNT).then_some(next);
            // What does not fit into the registers left goes to memory as a whole.
            if next + words <= COUNT {
                next += words;
            }
            own
        })
        .collect()
}

/// How many general registers a value of the type is passed in.
fn integer_words(index: TypeIndex, types: &Types<'_>) -> usize {
    /// `DW_ATE_complex_float`, `DW_ATE_float`.
    const FLOATS: [u8; 2] = [3, 4];
    let Some(entry) = types.get(types.strip(index)) else {
        return 1;
    };
    let size = types.size(index).unwrap_or(8);
    match entry.kind {
        TypeKind::Base if FLOATS.contains(&entry.encoding) => 0,
        TypeKind::Struct | TypeKind::Class | TypeKind::Union | TypeKind::Array if size > 16 => 0,
        TypeKind::Struct | TypeKind::Class | TypeKind::Union | TypeKind::Array => (0..size
            .div_ceil(8))
            .filter(|word| {
                let leaves: Vec<TypeIndex> = (word * 8..word * 8 + 8)
                    .flat_map(|byte| types.leaves(index, byte))
                    .collect();
                !leaves.iter().all(|leaf| {
                    types
                        .get(*leaf)
                        .is_some_and(|leaf| FLOATS.contains(&leaf.encoding))
                })
            })
            .count(),
        _ => usize::try_from(size.div_ceil(8).clamp(1, 2)).unwrap_or(1),
    }
}
