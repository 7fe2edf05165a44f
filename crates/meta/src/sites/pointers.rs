//! *Which allocation functions may be called through a pointer?*
//!
//! Those whose address the file takes, by whoever calls through a pointer of their type. Of the file's own functions debug info
//! states the type; of another file's functions the pointer does that leads to one when the program starts, or else the
//! manual page.

use super::allocators::{Allocators, signature};
use super::calls::{Key, Program};
use super::model::{Makes, Size};
use super::typing::{Pointee, Types};
use crate::elf::{Callee, Elf};
use crate::facts::Function;
use iced_x86::{Instruction, Mnemonic, OpKind};
use object::elf::ET_EXEC;
use pointee_model::image::{TypeIndex, TypeKind};
use std::collections::{HashMap, HashSet};

/// Makes calls through pointers calls of the functions of other files that allocate and whose address is taken.
pub(super) fn add_imported(
    program: &Program<'_>,
    types: &Types<'_>,
    allocators: &mut Allocators<'_>,
) {
    let mut known: Vec<(Vec<TypeIndex>, Key)> = Vec::new();
    for (cell, key) in &program.pointers {
        let makes_blocks = allocators
            .get(*key)
            .is_some_and(|allocator| allocator.makes == Makes::Whatever);
        // What else has the type of `strdup` may do anything.
        if makes_blocks && let Some(own) = signature_at(types, allocators, *cell) {
            known.push((own, *key));
        }
    }
    for key in &program.taken {
        known.extend(stated(types, allocators, *key).map(|own| (own, *key)));
    }
    for (own, key) in known {
        allocators.by_signature.entry(own).or_insert(key);
    }
}

/// Makes calls through pointers calls of those of the file's functions `added` whose address is taken.
pub(super) fn add_local(
    program: &Program<'_>,
    types: &Types<'_>,
    allocators: &mut Allocators<'_>,
    added: &HashSet<u32>,
) {
    let mut taken: Vec<u32> = added.intersection(&program.addressed).copied().collect();
    taken.sort_unstable();
    for at in taken {
        if let Some(function) = program.bodies[at as usize].function {
            let key = signature_of(types, function);
            allocators.by_signature.entry(key).or_insert(Key::Local(at));
        }
    }
}

fn signature_of(types: &Types<'_>, function: &Function) -> Vec<TypeIndex> {
    let mut parameters: Vec<_> = function
        .variables
        .iter()
        .filter(|variable| variable.inline.is_none())
        .filter_map(|variable| Some((variable.parameter?, variable.r#type?)))
        .collect();
    parameters.sort_by_key(|(number, _)| *number);
    signature(types, function.result, parameters.into_iter().map(|p| p.1))
}

/// The signature of what the pointer in a global at `cell` leads to.
fn signature_at(
    types: &Types<'_>,
    allocators: &Allocators<'_>,
    cell: u64,
) -> Option<Vec<TypeIndex>> {
    let (global, offset) = allocators.global_at(cell)?;
    let leaves = types.leaves(global, u64::try_from(offset).ok()?);
    leaves.into_iter().find_map(|leaf| {
        let Some(Pointee::Type(function)) = types.pointee(leaf) else {
            return None;
        };
        let entry = types
            .get(function)
            .filter(|entry| entry.kind == TypeKind::Function)?;
        let parameters = entry.members.iter().map(|member| member.r#type);
        Some(signature(types, entry.target, parameters))
    })
}

/// The signature of `malloc`, `calloc` and `realloc`, if the file has their types.
fn stated(types: &Types<'_>, allocators: &Allocators<'_>, key: Key) -> Option<Vec<TypeIndex>> {
    let allocator = allocators
        .get(key)
        .filter(|allocator| allocator.returns_it && allocator.makes == Makes::Whatever)?;
    let block = types.void_pointer()?;
    let number = ["long unsigned int", "unsigned long"]
        .iter()
        .find_map(|name| types.named(name).first().copied())?;
    let parameters = match (allocator.size, allocator.old) {
        (Size::Argument { index: 0, .. }, None) => vec![number],
        (Size::Product(0, 1), None) => vec![number; 2],
        (Size::Argument { index: 1, .. }, Some(0)) => vec![block, number],
        _ => return None,
    };
    Some(signature(types, Some(block), parameters.into_iter()))
}

/// The functions, by their entries, to which pointers in data lead when the program starts.
pub(super) fn addressed_in_data(
    elf: &Elf,
    entries: &HashMap<u64, u32>,
) -> impl Iterator<Item = u32> {
    // Code that is never moved has addresses among its constants too: two of them fill a vector register at once.
    let is_fixed = elf.file_kind() == ET_EXEC;
    let sections = elf.sections().iter().filter(move |section| {
        let is_data = section.flags.0 & WRITABLE != 0
            || (is_fixed && section.flags.0 & LOADED != 0 && !section.is_code());
        // Linkage slots serve direct calls; they say nothing about pointers.
        is_data && !section.file.is_empty() && !section.name.starts_with(".got")
    });
    let slots = sections.flat_map(|section| {
        let end = section.address.saturating_add(section.size);
        let first = section.address.checked_next_multiple_of(8).unwrap_or(end);
        (first..end).step_by(8)
    });
    slots.filter_map(|slot| match elf.got_target(slot)? {
        Callee::Local(address) => entries.get(&address).copied(),
        Callee::Imported(_) => None,
    })
}

/// `SHF_WRITE`.
const WRITABLE: u64 = 1;
/// `SHF_ALLOC`.
const LOADED: u64 = 2;

/// The address an instruction takes rather than calls.
pub(super) fn taken_address(instruction: &Instruction) -> Option<u64> {
    if instruction.is_ip_rel_memory_operand() {
        return (instruction.mnemonic() == Mnemonic::Lea)
            .then(|| instruction.ip_rel_memory_address());
    }
    (instruction.mnemonic() == Mnemonic::Mov
        && matches!(
            instruction.op1_kind(),
            OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64
        ))
    .then(|| instruction.immediate(1))
}

/// What the instruction reads a pointer from, if that is a cell with a fixed address.
pub(super) fn pointer_read(instruction: &Instruction) -> Option<u64> {
    let reads = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Register
        && instruction.is_ip_rel_memory_operand();
    reads.then(|| instruction.ip_rel_memory_address())
}
