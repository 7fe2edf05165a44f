//! *Where can indirect jumps go?*
//!
//! Compilers make three kinds, and each leaves its targets where they can be found:
//!
//! ```text
//!   jmp r, jmp [m]  with a pointer loaded from memory, an argument, a lea   → some address of code, all of which are marked
//!   jmp [T + i*8]                                                           → a table of addresses at T
//!   movslq r, [T + i*4]; add r, T; jmp r                                    → a table of distances at T
//! ```
//!
//! Tables of distances are read wherever the address of data is taken (`lea`): as long as an entry
//! leads to code it counts, which is too many rather than too few. A jump through a register that
//! was computed in any other way is *unresolved*: hand-written code. All instructions of its
//! function are then marked as if control could come to each of them.

use iced_x86::{
    Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

use crate::code::{Code, Kind, mark};

/// Entries of one table that are read at most.
const ENTRIES: usize = 1 << 16;
/// How far back from a jump the instruction that computed its register is looked for.
const LOOK_BACK: usize = 64;

/// Marks all targets.
pub(crate) fn resolve(code: &mut Code<'_>, bases: &[u64]) {
    let mut targets = Vec::new();
    let readable: Vec<u64> = bases
        .iter()
        .copied()
        .filter(|base| first_target(code, *base).is_some_and(|target| code.find(target).is_some()))
        .collect();
    for (at, base) in readable.iter().enumerate() {
        let until = readable.get(at + 1).copied().unwrap_or(u64::MAX);
        read_distances(code, *base, until, &mut targets);
    }
    for base in bases {
        read_addresses(code, *base, &mut targets);
    }
    for target in targets {
        code.mark(target, mark::OUTSIDE);
    }
    for number in 0..code.functions.len() {
        let (first, last) = code.spans[number];
        let unresolved = (first..last).any(|at| {
            code.places[at as usize].kind == Kind::IndirectJump && !is_resolved(code, at as usize)
        });
        if unresolved {
            code.unresolved[number] = true;
            for place in &mut code.places[first as usize..last as usize] {
                place.marks |= mark::OUTSIDE;
            }
        }
    }
}

fn distance_at(code: &Code<'_>, at: u64) -> Option<i64> {
    let bytes = code.elf.code_at(at, 4)?.try_into().ok()?;
    Some(i64::from(i32::from_le_bytes(bytes)))
}

fn first_target(code: &Code<'_>, base: u64) -> Option<u64> {
    let target = base.wrapping_add_signed(distance_at(code, base)?);
    (target != base && code.is_executable(target)).then_some(target)
}

/// A table of four-byte distances from its own start.
fn read_distances(code: &Code<'_>, base: u64, until: u64, targets: &mut Vec<u64>) {
    for entry in 0..ENTRIES as u64 {
        let at = base.wrapping_add(4 * entry);
        let Some(distance) = distance_at(code, at).filter(|_| at < until) else {
            return;
        };
        let target = base.wrapping_add_signed(distance);
        if !code.is_executable(target) {
            return;
        }
        targets.push(target);
    }
}

/// A table of eight-byte addresses, in a file that is not relocated.
fn read_addresses(code: &Code<'_>, base: u64, targets: &mut Vec<u64>) {
    for entry in 0..ENTRIES as u64 {
        let word = code.elf.code_at(base.wrapping_add(8 * entry), 8);
        let Some(target) = word
            .and_then(|word| word.try_into().ok())
            .map(u64::from_le_bytes)
        else {
            return;
        };
        if !code.is_executable(target) {
            return;
        }
        targets.push(target);
    }
}

/// Whether the targets of the indirect jump `at` are among those that are marked.
fn is_resolved(code: &Code<'_>, at: usize) -> bool {
    let decode = |at: usize| {
        let place = &code.places[at];
        Decoder::with_ip(64, code.bytes(place), place.at, DecoderOptions::NONE).decode()
    };
    let jump = decode(at);
    if jump.op0_kind() != OpKind::Register {
        return true;
    }
    let mut wanted = jump.op0_register().full_register();
    let mut info = InstructionInfoFactory::new();
    let function = code.places[at].function;
    let first = code.spans[function as usize].0 as usize;
    for before in (first..at).rev().take(LOOK_BACK) {
        let instruction = decode(before);
        let writes = info.info(&instruction).used_registers().iter().any(|used| {
            used.register().full_register() == wanted
                && matches!(
                    used.access(),
                    OpAccess::Write
                        | OpAccess::ReadWrite
                        | OpAccess::CondWrite
                        | OpAccess::ReadCondWrite
                )
        });
        if !writes {
            continue;
        }
        let wide = instruction.op0_register().size() == 8;
        match instruction.mnemonic() {
            Mnemonic::Mov if instruction.op1_kind() == OpKind::Register && wide => {
                wanted = instruction.op1_register().full_register();
            }
            // From memory, or an address as it is.
            Mnemonic::Mov | Mnemonic::Pop => return true,
            Mnemonic::Lea => return instruction.is_ip_rel_memory_operand(),
            // A table's address and an entry of it, in either order.
            Mnemonic::Add => {
                return (first..before).rev().take(LOOK_BACK).any(|at| {
                    let load = decode(at);
                    load.mnemonic() == Mnemonic::Movsxd
                        && load.memory_index() != Register::None
                        && load.memory_index_scale() == 4
                });
            }
            Mnemonic::Call => return wanted == Register::RAX,
            // A choice between two that were loaded: the other one is looked for further up.
            Mnemonic::Cmove
            | Mnemonic::Cmovne
            | Mnemonic::Cmova
            | Mnemonic::Cmovae
            | Mnemonic::Cmovb
            | Mnemonic::Cmovbe => {}
            _ => return false,
        }
    }
    // Nothing before it in the function wrote the register: an argument, or a value from a far block.
    at - first <= LOOK_BACK
}
