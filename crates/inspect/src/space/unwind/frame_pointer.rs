//! *What does a frame pointer hold that nobody kept?* — of a thread that is not stopped, registers are known only where a callee has put
//! them on the stack. Code that goes by its frame pointer says by what it did to the stack where that must lie.

use super::Unwinder;
use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::decode::decode;

/// Instructions of a function that are looked at.
const PROLOGUE: usize = 24;
/// Bytes of a stack that are looked through.
const REACH: usize = 1 << 16;

impl Unwinder<'_> {
    /// The frame pointer of the function that starts at `start`, when it is at `pc` with its stack pointer at
    /// `sp`: from what its first instructions took off the stack pointer.
    pub(super) fn frame_pointer(&self, start: RunAddr, pc: RunAddr, sp: RunAddr) -> Option<u64> {
        self.by_first_instructions(start, pc, sp)
            .or_else(|| self.by_direct_call(start, sp))
    }

    fn by_first_instructions(&self, start: RunAddr, pc: RunAddr, sp: RunAddr) -> Option<u64> {
        let mut code = [0; 16 * PROLOGUE];
        let len = usize::try_from(pc.0.checked_sub(start.0)?)
            .ok()?
            .min(code.len());
        let code = code.get_mut(..len)?;
        if !self.memory.read_at(start, code) {
            return None;
        }
        let mut below: Option<u64> = None;
        let mut rest = &*code;
        for _ in 0..PROLOGUE {
            let Ok(instruction) = decode(rest) else { break };
            let (this, next) = rest.split_at(usize::from(instruction.len));
            rest = next;
            match this {
                // mov rbp, rsp
                [0x48, 0x89, 0xe5] | [0x48, 0x8b, 0xec] => below = Some(0),
                // push r
                [0x50..=0x57] | [0x41, 0x50..=0x57] => below = below.map(|below| below + 8),
                // sub rsp, n
                [0x48, 0x83 | 0x81, 0xec, ..] => {
                    let taken = instruction
                        .immediate
                        .and_then(|field| u64::try_from(field.value).ok());
                    below = below.zip(taken).map(|(below, taken)| below + taken);
                }
                _ if instruction.flow != pointee_patch::arch::x86_64::instruction::Flow::Next => {
                    break;
                }
                _ => {}
            }
        }
        let base = sp.0.checked_add(below?)?;
        let back = self.word(base.checked_add(8)?)?;
        self.is_return_address(RunAddr(back)).then_some(base)
    }

    /// Of a function that takes off more while it runs: above its stack pointer lies, behind the pointer that it keeps, an address
    /// to which a call of this very function returns.
    fn by_direct_call(&self, start: RunAddr, sp: RunAddr) -> Option<u64> {
        let mut stack = vec![0; REACH];
        // Up to the stack's end, where that is nearer.
        while !self.memory.read_at(sp, &mut stack) {
            stack.truncate(stack.len() / 2);
            if stack.len() < 16 {
                return None;
            }
        }
        let returns_from_it = |word: &[u8]| {
            let back = word.try_into().map_or(0, u64::from_le_bytes);
            // A relative call reaches 2 GiB; most words on a stack are no addresses of code.
            if back.abs_diff(start.0) > 1 << 31 {
                return false;
            }
            let mut call = [0; 5];
            let is_read = self
                .memory
                .read_at(RunAddr(back.wrapping_sub(5)), &mut call);
            let [0xe8, distance @ ..] = call else {
                return false;
            };
            let distance = i64::from(i32::from_le_bytes(distance));
            is_read && back.wrapping_add_signed(distance) == start.0
        };
        let words = stack.chunks_exact(8).skip(1);
        let at = words.enumerate().find(|(_, word)| returns_from_it(word));
        Some(sp.0 + at?.0 as u64 * 8)
    }

    /// Whether a call ends at `address`.
    pub(super) fn is_return_address(&self, address: RunAddr) -> bool {
        let mut before = [0; 7];
        if !self
            .memory
            .read_at(RunAddr(address.0.wrapping_sub(7)), &mut before)
        {
            return false;
        }
        // call rel32; call r/m64 in its forms of two to seven bytes.
        before[2] == 0xe8
            || (2..=7).any(|len| {
                let tail = &before[7 - len..];
                tail[0] == 0xff
                    && tail[1] >> 3 & 7 == 2
                    && decode(tail).is_ok_and(|call| usize::from(call.len) == len)
            })
            || (before[4] == 0x41 && before[5] == 0xff && before[6] >> 3 & 7 == 2)
    }
}
