//! *What is asked of the kernel, and what does it say of a task?* `ptrace` and `waitpid`, with signals as numbers: those
//! for real time have no names.

#![allow(unsafe_code)] // System calls that no crate in use offers for signals of real time and for masks.

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// How long a task may take to stop. One that waits for a disk, or for a `vfork`ed child, takes as long as that does.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_micros(50);

/// What became of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// It was interrupted, or stopped with its whole process. Nothing of it is under way.
    Interrupted,
    /// It enters a system call, or comes from one.
    Call,
    /// It has executed a program, which has not begun.
    Exec,
    /// It would get this signal.
    Signal(i32),
    /// It is no more.
    Gone,
}

/// The next event of `task`.
pub(super) fn wait(task: Pid) -> Result<Event, Errno> {
    wait_within(task, PATIENCE)
}

/// The same; `ETIMEDOUT` where there is none for so long.
pub(super) fn wait_within(task: Pid, patience: Duration) -> Result<Event, Errno> {
    let deadline = Instant::now() + patience;
    let mut looks = 0u32;
    loop {
        let mut status = 0;
        // SAFETY: `status` is written, nothing else.
        let found =
            unsafe { libc::waitpid(task.as_raw(), &raw mut status, libc::__WALL | libc::WNOHANG) };
        match found {
            0 if Instant::now() > deadline => return Err(Errno::ETIMEDOUT),
            0 => {
                looks += 1;
                if looks < 20 {
                    std::thread::yield_now();
                } else {
                    std::thread::sleep(PAUSE);
                }
            }
            1.. if !libc::WIFSTOPPED(status) => return Ok(Event::Gone),
            1.. if status >> 16 == libc::PTRACE_EVENT_STOP => return Ok(Event::Interrupted),
            1.. if status >> 16 == libc::PTRACE_EVENT_EXEC => return Ok(Event::Exec),
            1.. => {
                return Ok(match libc::WSTOPSIG(status) {
                    signal if signal == libc::SIGTRAP | 0x80 => Event::Call,
                    signal => Event::Signal(signal),
                });
            }
            _ => match Errno::last() {
                Errno::EINTR => {}
                Errno::ECHILD => return Ok(Event::Gone),
                error => return Err(error),
            },
        }
    }
}

/// Waits until anything happens to any task that is traced; `status` is what (wait(2)).
pub(super) fn wait_any(status: &mut i32) -> Result<Pid, Errno> {
    // SAFETY: `status` is written, nothing else.
    Errno::result(unsafe { libc::waitpid(-1, status, libc::__WALL) }).map(Pid::from_raw)
}

/// Whether two tasks have the same memory.
pub(super) fn share_memory(one: Pid, other: Pid) -> bool {
    const KCMP_VM: libc::c_long = 1;
    let (one, other) = (
        libc::c_long::from(one.as_raw()),
        libc::c_long::from(other.as_raw()),
    );
    // SAFETY: touches no memory.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) == 0 }
}

/// Lets `task` go on with `signal`, 0 for none: until anything happens, until its next system call, for one instruction.
pub(super) fn go_on(request: libc::c_uint, task: Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: these requests read and write no memory of ours.
    Errno::result(unsafe { libc::ptrace(request, task.as_raw(), 0, signal) }).map(drop)
}

/// Sees to it that `task`, which stands or is being interrupted, is [`Event::Interrupted`]: signals that come first are delivered.
/// `false` if it is no more.
pub(super) fn settle(task: Pid) -> Result<bool, Errno> {
    loop {
        let signal = match wait(task)? {
            Event::Interrupted => return Ok(true),
            Event::Gone => return Ok(false),
            Event::Signal(signal) => signal,
            Event::Call | Event::Exec => 0,
        };
        let again = ptrace::interrupt(task).and_then(|()| go_on(libc::PTRACE_CONT, task, signal));
        match again {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether `signal` waits for `task` itself, as those do that an instruction raised. `false` if that cannot be told.
pub(super) fn is_pending(task: Pid, signal: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{task}/status")).unwrap_or_default();
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigPnd:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (signal - 1) != 0)
}

/// The signals that `task` blocks.
pub(super) fn blocked(task: Pid) -> Result<u64, Errno> {
    let mut mask = 0u64;
    // SAFETY: eight bytes are written.
    let done = unsafe {
        libc::ptrace(
            libc::PTRACE_GETSIGMASK,
            task.as_raw(),
            size_of::<u64>(),
            &raw mut mask,
        )
    };
    Errno::result(done).map(|_| mask)
}

/// Makes `task` block `mask`.
pub(super) fn block(task: Pid, mask: u64) -> Result<(), Errno> {
    // SAFETY: eight bytes are read.
    let done = unsafe {
        libc::ptrace(
            libc::PTRACE_SETSIGMASK,
            task.as_raw(),
            size_of::<u64>(),
            &raw const mask,
        )
    };
    Errno::result(done).map(drop)
}
