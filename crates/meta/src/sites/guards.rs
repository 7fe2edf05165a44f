//! *Which copies of a function run in its place where a pointer leads to it?*
//!
//! A compiler that has a profile turns a call through a pointer into a comparison with the function that it nearly always was, and often
//! puts a copy of that function behind it (gcc's indirect call promotion, `-fprofile-use`; LLVM has the same). The two instructions are the *guard*, what it goes to
//! where the pointer leads elsewhere is the *general* way:
//!
//! ```text
//!         cmp  rax, F       ┐ guard                  or  lea rdx, [rip + F]
//!         jne  other        ┘                            cmp rax, rdx
//!         …                   a copy of F
//!  other: call rax            the general way
//! ```
//!
//! A hook at F sees nothing of what the copies do. Where the branch always goes the general way, every such call is one of F again: what the program means
//! is the same, since that way serves all functions. A comparison is taken for a guard only if what is not equal comes, in a straight line and without a look at the flags,
//! to a call or jump through the very register that was compared; and only outside of F, which may well ask whether the pointer leads to itself.

use super::unnamed;
use crate::elf::Elf;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};
use object::elf::EM_X86_64;
use pointee_model::image::GuardRecord;
use std::collections::{HashMap, HashSet};

/// Instructions between the comparison and its branch: schedulers put moves there.
const BETWEEN: usize = 6;
/// Instructions of the general way up to the call. CPython's longest has 9.
const WAY: usize = 32;
/// Bytes of one function that are looked at.
const LONGEST: u64 = 1 << 20;

/// The guards of copies of `functions` (first byte, one past the last; in order), in order of address.
pub(crate) fn find(elf: &Elf, functions: &[(u64, u64)]) -> Vec<GuardRecord> {
    let mut found = Vec::new();
    if elf.machine() != EM_X86_64 || functions.is_empty() {
        return found;
    }
    let names = mentions(elf, functions);
    if names.is_empty() {
        return found;
    }
    for (start, end, _) in unnamed::unwound(elf) {
        let first = names.partition_point(|at| *at < start);
        let is_mentioned = names.get(first).is_some_and(|at| *at < end);
        let is_own = functions.iter().any(|own| (own.0..own.1).contains(&start));
        if is_mentioned && !is_own {
            let is_one = |address| functions.iter().any(|(entry, _)| *entry == address);
            let guards = in_function(elf, (start, end), is_one);
            let copies = guards.iter().filter(|guard| guard.holds_copy);
            found.extend(copies.filter_map(Guard::record));
        }
    }
    found.sort_by_key(|guard| guard.address);
    found
}

/// Where code holds the address of one of `functions` as an operand, as it seems from the bytes.
fn mentions(elf: &Elf, functions: &[(u64, u64)]) -> Vec<u64> {
    let mut found = Vec::new();
    for section in elf.text_sections() {
        let bytes = elf.stored_bytes(section);
        for (offset, four) in (0..).zip(bytes.windows(4)) {
            let at = section.address.wrapping_add(offset);
            let Ok(four) = <[u8; 4]>::try_from(four) else {
                continue;
            };
            let value = i64::from(i32::from_le_bytes(four)) as u64;
            let relative = at.wrapping_add(4).wrapping_add(value);
            let is_entry = |(entry, _): &(u64, u64)| *entry == value || *entry == relative;
            if functions.iter().any(is_entry) {
                found.push(at);
            }
        }
    }
    found.sort_unstable();
    found
}

/// A comparison of a pointer with a function, the branch included.
struct Guard {
    branch: Instruction,
    bytes: Vec<u8>,
    function: u64,
    /// What is equal goes on in a copy, and does not call the function.
    holds_copy: bool,
}

fn in_function(elf: &Elf, (start, end): (u64, u64), is_wanted: impl Fn(u64) -> bool) -> Vec<Guard> {
    let len = end.saturating_sub(start).min(LONGEST) as usize;
    let Some(code) = elf.code_at(start, len) else {
        return Vec::new();
    };
    let all: Vec<Instruction> = Decoder::with_ip(64, code, start, DecoderOptions::NONE)
        .iter()
        .collect();
    let targets: HashSet<u64> = all.iter().filter_map(branch_target).collect();
    let held = held_before(&all, &targets);
    let mut guards = Vec::new();
    for (at, (instruction, held)) in all.iter().zip(&held).enumerate() {
        if let Some((pointer, function)) = held.compared(instruction)
            && is_wanted(function)
            && let Some(branch) = branch_of(&all[at + 1..], pointer, &targets)
            && let Some(guard) = guard(elf, branch, pointer, function)
        {
            guards.push(guard);
        }
    }
    guards
}

fn branch_target(instruction: &Instruction) -> Option<u64> {
    let is_near = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64;
    is_near.then(|| instruction.near_branch_target())
}

/// The branch on equality that follows a comparison of `pointer`, which is still there then; nobody comes in between.
fn branch_of(
    rest: &[Instruction],
    pointer: Register,
    targets: &HashSet<u64>,
) -> Option<Instruction> {
    let mut info = InstructionInfoFactory::new();
    for instruction in rest.iter().take(BETWEEN) {
        if targets.contains(&instruction.ip()) {
            return None;
        }
        if matches!(instruction.mnemonic(), Mnemonic::Je | Mnemonic::Jne) {
            return Some(*instruction);
        }
        let is_plain = instruction.flow_control() == FlowControl::Next
            && instruction.rflags_modified() == 0
            && !writes(&mut info, instruction).any(|written| written == pointer);
        if !is_plain {
            return None;
        }
    }
    None
}

fn guard(elf: &Elf, branch: Instruction, pointer: Register, function: u64) -> Option<Guard> {
    let (taken, fallen) = (branch.near_branch_target(), branch.next_ip());
    let (equal, other) = match branch.mnemonic() {
        Mnemonic::Je => (taken, fallen),
        _ => (fallen, taken),
    };
    let bytes = elf.code_at(branch.ip(), branch.len())?;
    comes_to_call(elf, other, pointer).then(|| Guard {
        branch,
        bytes: bytes.to_vec(),
        function,
        holds_copy: !calls(elf, equal, function),
    })
}

impl Guard {
    /// The branch as it has to be, to go the general way always; `None` for a form that compilers do not write.
    fn record(&self) -> Option<GuardRecord> {
        let always: &[u8] = match *self.bytes.as_slice() {
            [0x75, to] => &[0xeb, to],
            [0x74, _] => &[0x66, 0x90],
            [0x0f, 0x85, a, b, c, d] => &[0x90, 0xe9, a, b, c, d],
            [0x0f, 0x84, ..] if self.bytes.len() == 6 => &[0x66, 0x0f, 0x1f, 0x44, 0, 0],
            _ => return None,
        };
        let mut record = GuardRecord {
            address: self.branch.ip(),
            function: self.function,
            original: [0; GuardRecord::LONGEST],
            always: [0; GuardRecord::LONGEST],
            len: always.len() as u8,
            reserved: [0; 3],
        };
        record.original[..always.len()].copy_from_slice(&self.bytes);
        record.always[..always.len()].copy_from_slice(always);
        Some(record)
    }
}

/// Whether the straight line from `at` on calls, or jumps, through what `pointer` holds there.
fn comes_to_call(elf: &Elf, at: u64, pointer: Register) -> bool {
    let mut info = InstructionInfoFactory::new();
    let mut holders = vec![pointer];
    along(elf, at, |instruction| match instruction.flow_control() {
        FlowControl::IndirectCall | FlowControl::IndirectBranch => {
            let through = instruction.op0_register();
            let is_register = instruction.op0_kind() == OpKind::Register;
            Some(is_register && holders.contains(&through))
        }
        FlowControl::UnconditionalBranch => None,
        FlowControl::Next if instruction.rflags_read() == 0 => {
            let is_copied = instruction.code() == Code::Mov_r64_rm64
                || instruction.code() == Code::Mov_rm64_r64;
            let is_copied = is_copied
                && instruction.op1_kind() == OpKind::Register
                && holders.contains(&instruction.op1_register());
            let written: Vec<Register> = writes(&mut info, instruction).collect();
            holders.retain(|holder| !written.contains(holder));
            if is_copied && instruction.op0_kind() == OpKind::Register {
                holders.push(instruction.op0_register());
            }
            None
        }
        _ => Some(false),
    })
}

/// Whether the straight line from `at` on calls `function`, or jumps to it.
fn calls(elf: &Elf, at: u64, function: u64) -> bool {
    let is_it = |instruction: &Instruction| branch_target(instruction) == Some(function);
    along(elf, at, |instruction| match instruction.flow_control() {
        FlowControl::Call | FlowControl::UnconditionalBranch if is_it(instruction) => Some(true),
        FlowControl::Next | FlowControl::UnconditionalBranch => None,
        _ => Some(false),
    })
}

/// What `decide` says of the first instruction, from `at` on along direct jumps, of which it says something.
fn along(elf: &Elf, mut at: u64, mut decide: impl FnMut(&Instruction) -> Option<bool>) -> bool {
    for _ in 0..WAY {
        let Some(code) = elf.bytes_from(at).filter(|_| elf.is_code(at)) else {
            return false;
        };
        let instruction = Decoder::with_ip(64, code, at, DecoderOptions::NONE).decode();
        if instruction.is_invalid() {
            return false;
        }
        if let Some(decided) = decide(&instruction) {
            return decided;
        }
        at = match instruction.flow_control() {
            FlowControl::UnconditionalBranch => instruction.near_branch_target(),
            _ => instruction.next_ip(),
        };
    }
    false
}

/// The registers, whole, that an instruction may write.
fn writes<'i>(
    info: &'i mut InstructionInfoFactory,
    instruction: &Instruction,
) -> impl Iterator<Item = Register> + 'i {
    let used = info.info(instruction).used_registers().iter();
    used.filter(|used| !matches!(used.access(), OpAccess::Read | OpAccess::CondRead))
        .map(|used| used.register().full_register())
}

/// What registers hold before each instruction of a function: what they do on all ways there. Where a way comes through a register, or from
/// another piece of code, nothing is known.
fn held_before(all: &[Instruction], targets: &HashSet<u64>) -> Vec<Held> {
    let index: HashMap<u64, usize> = all.iter().map(Instruction::ip).zip(0..).collect();
    let mut before: Vec<Option<Held>> = vec![None; all.len()];
    let falls = |at: usize| at.checked_sub(1).is_some_and(|at| falls_through(&all[at]));
    let starts = (0..all.len()).filter(|at| !falls(*at) && !targets.contains(&all[*at].ip()));
    let mut pending: Vec<usize> = starts.collect();
    for at in &pending {
        before[*at] = Some(Held::default());
    }
    while let Some(at) = pending.pop() {
        let instruction = &all[at];
        let mut after = before[at].clone().unwrap_or_default();
        after.step(instruction);
        let next = (at + 1 < all.len() && falls_through(instruction)).then_some(at + 1);
        let target = match instruction.flow_control() {
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
                branch_target(instruction).and_then(|to| index.get(&to).copied())
            }
            _ => None,
        };
        for to in next.into_iter().chain(target) {
            let is_new = match &mut before[to] {
                Some(known) => known.keep_common(&after),
                unknown => {
                    *unknown = Some(after.clone());
                    true
                }
            };
            if is_new {
                pending.push(to);
            }
        }
    }
    before.into_iter().map(Option::unwrap_or_default).collect()
}

/// Whether control may go on with the next instruction, or come back to it.
pub(super) fn falls_through(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::Next
            | FlowControl::ConditionalBranch
            | FlowControl::Call
            | FlowControl::IndirectCall
    )
}

/// Which registers hold a constant.
#[derive(Clone, Default)]
struct Held(Vec<(Register, u64)>);

impl Held {
    /// Forgets what `others` do not hold too. Whether there was any.
    fn keep_common(&mut self, others: &Self) -> bool {
        let before = self.0.len();
        self.0.retain(|held| others.0.contains(held));
        self.0.len() != before
    }

    fn of(&self, register: Register) -> Option<u64> {
        let mut held = self.0.iter();
        held.find_map(|(holder, value)| (*holder == register).then_some(*value))
    }

    /// A pointer's register and the address that it is compared with.
    fn compared(&self, instruction: &Instruction) -> Option<(Register, u64)> {
        match instruction.code() {
            Code::Cmp_RAX_imm32 | Code::Cmp_rm64_imm32
                if instruction.op0_kind() == OpKind::Register =>
            {
                Some((instruction.op0_register(), instruction.immediate(1)))
            }
            Code::Cmp_r64_rm64 | Code::Cmp_rm64_r64
                if instruction.op0_kind() == OpKind::Register
                    && instruction.op1_kind() == OpKind::Register =>
            {
                let (a, b) = (instruction.op0_register(), instruction.op1_register());
                let second = self.of(b).map(|value| (a, value));
                second.or_else(|| self.of(a).map(|value| (b, value)))
            }
            _ => None,
        }
    }

    fn step(&mut self, instruction: &Instruction) {
        const KEPT: [Register; 6] = [
            Register::RBX,
            Register::RBP,
            Register::R12,
            Register::R13,
            Register::R14,
            Register::R15,
        ];
        match instruction.flow_control() {
            FlowControl::Next | FlowControl::ConditionalBranch => {
                let mut info = InstructionInfoFactory::new();
                let written: Vec<Register> = writes(&mut info, instruction).collect();
                self.0.retain(|(register, _)| !written.contains(register));
            }
            FlowControl::Call | FlowControl::IndirectCall => {
                self.0.retain(|(register, _)| KEPT.contains(register));
            }
            _ => {}
        }
        let value = match instruction.code() {
            Code::Lea_r64_m if instruction.is_ip_rel_memory_operand() => {
                Some(instruction.ip_rel_memory_address())
            }
            Code::Mov_r32_imm32 => Some(instruction.immediate(1)),
            _ => None,
        };
        if let Some(value) = value {
            self.0
                .push((instruction.op0_register().full_register(), value));
        }
    }
}

#[cfg(test)]
mod tests;
