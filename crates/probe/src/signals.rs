//! *Which system calls may be about signals?*
//!
//! A trap is a `SIGTRAP`, and the kernel ends a process that is trapped while that signal is blocked or ignored. So where
//! there are traps, whoever handles them has to come before every system call that blocks or takes a signal. A
//! system call counts as one when the number in `eax` is one of [`NUMBERS`], or is not known: it came
//! from before the instruction's block.

use std::collections::BTreeSet;

use iced_x86::{
    Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

use crate::blocks::Blocks;
use crate::code::{Code, Kind, mark};

/// `rt_sigaction`, `rt_sigprocmask`, `execve`, `rt_sigpending`, `rt_sigtimedwait`, `rt_sigsuspend`, `pselect6`,
/// `ppoll`, `epoll_pwait`, `execveat`, `epoll_pwait2` (arch/x86/entry/syscalls/syscall_64.tbl).
const NUMBERS: [u64; 11] = [13, 14, 59, 127, 128, 130, 270, 271, 281, 322, 441];

/// Those of a file, by the number of their place.
pub(crate) fn calls(code: &Code<'_>, blocks: &Blocks) -> BTreeSet<usize> {
    let mut calls = BTreeSet::new();
    for block in blocks.all.iter().filter(|block| !block.fixed) {
        let last = block.last as usize - 1;
        let place = &code.places[last];
        if place.kind != Kind::Syscall || !place.is(mark::REACHED) {
            continue;
        }
        if number(code, block.first as usize, last).is_none_or(|number| NUMBERS.contains(&number)) {
            calls.insert(last);
        }
    }
    calls
}

/// What `eax` holds before instruction `last`, if one of the block's instructions says so.
fn number(code: &Code<'_>, first: usize, last: usize) -> Option<u64> {
    let mut info = InstructionInfoFactory::new();
    for place in code.places[first..last].iter().rev() {
        let instruction = Decoder::new(64, code.bytes(place), DecoderOptions::NONE).decode();
        let writes = info.info(&instruction).used_registers().iter().any(|used| {
            used.register().full_register() == Register::RAX
                && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
        });
        if !writes {
            continue;
        }
        let known = instruction.mnemonic() == Mnemonic::Mov
            && instruction.op_register(0).size() >= 4
            && matches!(
                instruction.op1_kind(),
                OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64
            );
        let zeroed = instruction.mnemonic() == Mnemonic::Xor
            && instruction.op_register(0) == instruction.op_register(1);
        return match (known, zeroed) {
            (true, _) => Some(instruction.immediate(1)),
            (_, true) => Some(0),
            _ => None,
        };
    }
    None
}
