//! *Which system call did the stop interrupt, and does it go on as though nothing had been?*
//!
//! The kernel restarts most calls after a handler by itself. These it ends with `EINTR` (signal(7)), and a program would
//! see that somebody stopped it: `pause` would return, `sleep` end early. Where a second call with what is in the
//! registers waits for the same, it is made: the thread goes back by the two bytes of `syscall`, with its number in `rax`.
//!
//! The number is not in the frame; it is read from the code, where `mov eax, number` stands directly before `syscall`,
//! as in libc's wrappers. Elsewhere, and for `poll` and `epoll_wait` with a limit of time (which would wait longer), the
//! program sees `EINTR`. A thread that a signal of the program's own has just interrupted, and that is stopped before the
//! next instruction, loses that `EINTR`: a window of one instruction.

#![allow(unsafe_code)] // Reads code before a program counter.

use crate::stop::Context;
use crate::stop::register::{R8, R10, RAX, RCX, RDI, RDX, RIP, RSI};

/// `-EINTR`, as the kernel returns it.
const INTERRUPTED: u64 = 4_u64.wrapping_neg();
/// `mov eax, imm32`; `syscall`.
const CALL_LEN: u64 = 7;

/// Sets a thread back to the call that this stop's signal ended, if that may be.
pub(crate) fn interrupted_call(context: &mut Context) {
    let registers = &mut context.registers;
    let pc = registers[RIP];
    // Within one page, so that the bytes before are there. After `syscall`, rcx is the address behind it.
    if registers[RAX] != INTERRUPTED || registers[RCX] != pc || pc & 0xfff < CALL_LEN {
        return;
    }
    // SAFETY: in the page of an instruction that the thread is about to run; code is readable.
    let code = unsafe { *((pc - CALL_LEN) as *const [u8; CALL_LEN as usize]) };
    let [0xb8, n0, n1, n2, n3, 0x0f, 0x05] = code else {
        return;
    };
    let number = u32::from_le_bytes([n0, n1, n2, n3]);
    if may_repeat(number, registers) {
        registers[RAX] = u64::from(number);
        registers[RIP] = pc - 2;
    }
}

/// Whether the call waits for the same when it is made again; where the kernel has written what is left of the time, the
/// registers are changed to ask for that.
fn may_repeat(number: u32, registers: &mut [u64; 17]) -> bool {
    const POLL: u32 = 7;
    const SELECT: u32 = 23;
    const PAUSE: u32 = 34;
    const NANOSLEEP: u32 = 35;
    const SEMOP: u32 = 65;
    const MSGSND: u32 = 69;
    const MSGRCV: u32 = 70;
    const RT_SIGTIMEDWAIT: u32 = 128;
    const RT_SIGSUSPEND: u32 = 130;
    const FUTEX: u32 = 202;
    const IO_GETEVENTS: u32 = 208;
    const SEMTIMEDOP: u32 = 220;
    const CLOCK_NANOSLEEP: u32 = 230;
    const EPOLL_WAIT: u32 = 232;
    const PSELECT6: u32 = 270;
    const PPOLL: u32 = 271;
    const EPOLL_PWAIT: u32 = 281;
    const ABSOLUTE: u64 = 1;
    const FUTEX_COMMAND: u64 = 0x7f;
    const FUTEX_WAIT_BITSET: u64 = 9;
    match number {
        PAUSE | RT_SIGSUSPEND | SEMOP | MSGSND | MSGRCV => true,
        // The kernel leaves in their arguments what is left of the time.
        SELECT | PSELECT6 | PPOLL => true,
        POLL => (registers[RDX] as i32) < 0,
        EPOLL_WAIT | EPOLL_PWAIT => (registers[R10] as i32) < 0,
        RT_SIGTIMEDWAIT => registers[RDX] == 0,
        SEMTIMEDOP => registers[R10] == 0,
        IO_GETEVENTS => registers[R8] == 0,
        // Its time is a moment, not a length.
        FUTEX => registers[RSI] & FUTEX_COMMAND == FUTEX_WAIT_BITSET,
        CLOCK_NANOSLEEP if registers[RSI] & ABSOLUTE != 0 => true,
        CLOCK_NANOSLEEP if registers[R10] != 0 => {
            registers[RDX] = registers[R10];
            true
        }
        NANOSLEEP if registers[RSI] != 0 => {
            registers[RDI] = registers[RSI];
            true
        }
        _ => false,
    }
}
