//! *Which system call instructions may change what is mapped, and where can a jump to a hook go?*
//!
//! Libraries call the kernel through libc, whose functions are hooked by name; the dynamic linker, and some programs, do so by an instruction of
//! their own. One counts if the number in `eax` is one of [`NUMBERS`], or is not known: it came from before the straight line that
//! the instruction ends.
//!
//! ```text
//!   mov  eax, 9
//!   xor  r9d, r9d    ┐ window: at least the five bytes of a jump, whole instructions, and no way
//!   syscall          ┘ in but at its start, which is a place that the function branches to or falls into
//! ```
//!
//! The window ends with the system call; where that cannot be, it starts with it. Ways in are the branches of the function, which unwind tables
//! delimit: where it jumps through a register, or catches exceptions, a window of several instructions is none. Without one the
//! instruction is recorded all the same: what it does is not seen, and that is known.

use super::unnamed;
use crate::elf::Elf;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};
use object::elf::EM_X86_64;
use pointee_model::image::SystemCallRecord;
use std::collections::HashSet;

/// `mmap`, `mprotect`, `munmap`, `brk`, `mremap`, `shmat`, `sigaltstack`, `pkey_mprotect` (arch/x86/entry/syscalls/syscall_64.tbl).
const NUMBERS: [u64; 8] = [9, 10, 11, 12, 25, 30, 131, 329];
/// Bytes of a jump.
const JUMP: usize = 5;
/// Bytes of one function that are looked at.
const LONGEST: u64 = 1 << 20;
/// `syscall`.
const INSTRUCTION: [u8; 2] = [0x0f, 0x05];

/// Those of a file, in order of address.
pub(super) fn find(elf: &Elf) -> Vec<SystemCallRecord> {
    let mut found = Vec::new();
    if elf.machine() != EM_X86_64 {
        return found;
    }
    let mut functions = Vec::new();
    for section in elf.text_sections() {
        let bytes = elf.stored_bytes(section);
        let addresses = (0..).map(|offset| section.address.wrapping_add(offset));
        let mut places = bytes.windows(2).zip(addresses);
        // Most files have none, and unwind tables need not be read.
        let Some((_, first)) = places.find(|(two, _)| **two == INSTRUCTION) else {
            continue;
        };
        if functions.is_empty() {
            functions = unnamed::unwound(elf);
        }
        let rest = places.filter_map(|(two, at)| (*two == INSTRUCTION).then_some(at));
        let mut last = None;
        for at in std::iter::once(first).chain(rest) {
            let after = functions.partition_point(|(start, ..)| *start <= at);
            let around = after.checked_sub(1).map(|number| functions[number]);
            let Some((start, end, catches)) = around.filter(|(start, end, _)| {
                at < *end && end - start <= LONGEST && last != Some(*start)
            }) else {
                continue;
            };
            last = Some(start);
            if let Some(code) = elf.code_at(start, (end - start) as usize) {
                in_function(code, start, catches, &mut found);
            }
        }
    }
    found.sort_by_key(|call| call.window);
    found
}

fn in_function(code: &[u8], start: u64, catches: bool, found: &mut Vec<SystemCallRecord>) {
    let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    let all: Vec<Instruction> = decoder.iter().collect();
    let targets: HashSet<u64> = all
        .iter()
        .filter(|instruction| instruction.op_count() > 0)
        .filter(|instruction| instruction.op0_kind() == OpKind::NearBranch64)
        .map(Instruction::near_branch_target)
        .collect();
    let jumps_anywhere = all
        .iter()
        .any(|instruction| instruction.flow_control() == FlowControl::IndirectBranch);
    let function = Function {
        code,
        start,
        all: &all,
        targets: &targets,
        is_closed: !catches && !jumps_anywhere,
    };
    let calls = all.iter().enumerate();
    let calls = calls.filter(|(_, instruction)| instruction.code() == Code::Syscall);
    for (at, _) in calls {
        let number = function.number(at);
        if number.is_none_or(|number| NUMBERS.contains(&number)) {
            found.push(function.record(at, number));
        }
    }
}

struct Function<'a> {
    code: &'a [u8],
    start: u64,
    all: &'a [Instruction],
    targets: &'a HashSet<u64>,
    /// All ways in are known.
    is_closed: bool,
}

impl Function<'_> {
    /// What `eax` holds before instruction `at`, if the straight line to it says so.
    fn number(&self, at: usize) -> Option<u64> {
        let mut info = InstructionInfoFactory::new();
        let mut next = at;
        for (place, instruction) in self.all[..at].iter().enumerate().rev() {
            // Whoever jumps in brings a number of his own.
            if self.targets.contains(&self.all[next].ip())
                || instruction.flow_control() != FlowControl::Next
            {
                return None;
            }
            next = place;
            let writes = info.info(instruction).used_registers().iter().any(|used| {
                used.register().full_register() == Register::RAX
                    && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
            });
            if !writes {
                continue;
            }
            let is_constant = instruction.mnemonic() == Mnemonic::Mov
                && instruction.op0_register().size() >= 4
                && matches!(
                    instruction.op1_kind(),
                    OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64
                );
            let is_zeroed = instruction.mnemonic() == Mnemonic::Xor
                && instruction.op0_register() == instruction.op1_register();
            return match (is_constant, is_zeroed) {
                (true, _) => Some(instruction.immediate(1)),
                (_, true) => Some(0),
                _ => None,
            };
        }
        None
    }

    fn record(&self, at: usize, number: Option<u64>) -> SystemCallRecord {
        let call = self.all[at].ip();
        let (start, end) = self.window(at).unwrap_or((call, call));
        let mut original = [0; SystemCallRecord::LONGEST];
        let offset = (start - self.start) as usize;
        let len = (end - start) as usize;
        original[..len].copy_from_slice(&self.code[offset..offset + len]);
        SystemCallRecord {
            window: start,
            number: number.map_or(SystemCallRecord::UNKNOWN, |number| number as u32),
            len: len as u8,
            offset: (call - start) as u8,
            original,
            reserved: [0; 2],
        }
    }

    /// The bytes that a jump may replace.
    fn window(&self, at: usize) -> Option<(u64, u64)> {
        let end = self.all[at].next_ip();
        let before = (0..=at).rev().map(|first| (first, end));
        let behind = self.all[at..].iter().map(|last| (at, last.next_ip()));
        let whole = |(first, end): (usize, u64)| {
            let start = self.all[first].ip();
            (end - start >= JUMP as u64).then_some((first, start, end))
        };
        let fits = |(first, start, end): (usize, u64, u64)| {
            let others = self.all[first..]
                .iter()
                .take_while(|instruction| instruction.ip() < end);
            let is_straight = others.enumerate().all(|(nth, instruction)| {
                let is_entered = nth > 0 && self.targets.contains(&instruction.ip());
                let is_plain = instruction.code() == Code::Syscall
                    || instruction.flow_control() == FlowControl::Next;
                !is_entered && is_plain && !instruction.is_invalid()
            });
            let is_short = end - start <= SystemCallRecord::LONGEST as u64;
            let calls = self.all[first..]
                .iter()
                .take_while(|instruction| instruction.ip() < end)
                .filter(|instruction| instruction.code() == Code::Syscall);
            let is_own = is_short && is_straight && calls.count() == 1 && self.is_closed;
            is_own.then_some((start, end))
        };
        before
            .take(JUMP)
            .find_map(whole)
            .and_then(fits)
            .or_else(|| behind.take(JUMP).find_map(whole).and_then(fits))
    }
}

#[cfg(test)]
mod tests {
    use super::in_function;
    use pointee_model::image::SystemCallRecord;

    /// Window and offset of the one call in `code`, and its number.
    fn check(code: &[u8], catches: bool, expected: Option<(u64, u8, u8, u32)>) {
        let mut found = Vec::new();
        in_function(code, 0x1000, catches, &mut found);
        let found = found
            .first()
            .map(|call| (call.window - 0x1000, call.len, call.offset, call.number));
        assert_eq!(found, expected, "{code:02x?}");
    }

    #[test]
    fn windows() {
        const NOT_KNOWN: u32 = SystemCallRecord::UNKNOWN;
        // mov eax, 9; syscall; ret
        let plain = [0xb8, 9, 0, 0, 0, 0x0f, 5, 0xc3];
        check(&plain, false, Some((0, 7, 5, 9)));
        // A number that maps nothing.
        check(&[0xb8, 1, 0, 0, 0, 0x0f, 5, 0xc3], false, None);
        // mov eax, 11; xor r9d, r9d; syscall; ret
        let short = [0xb8, 11, 0, 0, 0, 0x45, 0x31, 0xc9, 0x0f, 5, 0xc3];
        check(&short, false, Some((5, 5, 3, 11)));
        // jmp to the syscall from below: behind it, `cmp rax, -4096; jmp` has room; the number is not known.
        let entered = [
            0xb8, 9, 0, 0, 0, 0x0f, 5, 0x48, 0x3d, 0, 0xf0, 0xff, 0xff, 0xeb, 0xf6,
        ];
        check(&entered, false, Some((5, 8, 0, NOT_KNOWN)));
        // mov eax, edi; syscall; ret: too short before, and what follows does not go on.
        let tight = [0x89, 0xf8, 0x0f, 5, 0xc3];
        check(&tight, false, Some((2, 0, 0, NOT_KNOWN)));
        // Exceptions may come back anywhere.
        check(&short, true, Some((8, 0, 0, 11)));
        // jmp rax elsewhere in the function.
        let anywhere = [&short[..], &[0xff, 0xe0]].concat();
        check(&anywhere, false, Some((8, 0, 0, 11)));
    }
}
