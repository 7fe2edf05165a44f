//! *How does another process make a system call for us?* One of its tasks, which stands, is sent to a `syscall` instruction that is
//! in its memory already, and gets its registers back. Its signals wait meanwhile.
//!
//! A task that was interrupted in a system call of its own makes that again when it goes on, as after every stop: the kernel sees to it
//! where it looks for signals, so the task is brought back to that place before it gets its registers.

use super::kernel::{self, Event};
use anyhow::{Context, Result, bail};
use libc::user_regs_struct;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A task that makes calls; it is as before when this is dropped.
#[derive(Debug)]
pub(super) struct Calls {
    task: Pid,
    registers: user_regs_struct,
    mask: u64,
    syscall_at: u64,
    /// `SIGSTOP` came, which cannot wait.
    stop: bool,
}

impl Calls {
    /// `task` stands, and `syscall_at` is the address of a `syscall`.
    pub(super) fn begin(task: Pid, syscall_at: u64) -> Result<Self> {
        let calls = Self {
            task,
            registers: ptrace::getregs(task).context("registers")?,
            mask: kernel::blocked(task).context("its signals")?,
            syscall_at,
            stop: false,
        };
        kernel::block(task, u64::MAX).context("its signals")?;
        Ok(calls)
    }

    /// Makes one call.
    pub(super) fn call(&mut self, number: i64, arguments: [u64; 6]) -> Result<u64> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let registers = user_regs_struct {
            rip: self.syscall_at,
            rax: number as u64,
            orig_rax: u64::MAX, // Not in a call: nothing is made again.
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.registers
        };
        ptrace::setregs(self.task, registers).context("registers")?;
        for _entry_and_exit in 0..2 {
            self.next_stop()?;
        }
        let result = ptrace::getregs(self.task).context("registers")?.rax;
        match result as i64 {
            error @ -4095..0 => {
                Err(Errno::from_raw(-error as i32)).context("a system call in the process")
            }
            _ => Ok(result),
        }
    }

    fn next_stop(&mut self) -> Result<()> {
        loop {
            kernel::go_on(libc::PTRACE_SYSCALL, self.task, 0).context("ptrace")?;
            match kernel::wait(self.task).context("ptrace")? {
                Event::Call => return Ok(()),
                Event::Gone => bail!("the process has ended"),
                Event::Signal(libc::SIGSTOP) => self.stop = true,
                Event::Signal(_) | Event::Interrupted | Event::Exec => {}
            }
        }
    }

    /// Has the task run `function` on the stack below `stack`, where `stack` itself, 8 bytes off a multiple of 16, holds the address
    /// of the `syscall` to return to. What it returns must be the number of no system call.
    pub(super) fn run(&mut self, function: u64, arguments: [u64; 4], stack: u64) -> Result<()> {
        /// A start makes a few hundred calls.
        const STOPS: u32 = 1 << 20;
        let [rdi, rsi, rdx, rcx] = arguments;
        let registers = user_regs_struct {
            rip: function,
            rsp: stack,
            orig_rax: u64::MAX,
            rdi,
            rsi,
            rdx,
            rcx,
            // The direction flag and all others as a function expects them (System V psABI, §3.2.1).
            eflags: 0x202,
            ..self.registers
        };
        ptrace::setregs(self.task, registers).context("registers")?;
        for _ in 0..STOPS {
            kernel::go_on(libc::PTRACE_SYSCALL, self.task, 0).context("ptrace")?;
            match kernel::wait(self.task).context("ptrace")? {
                Event::Call => {
                    let now = ptrace::getregs(self.task).context("registers")?;
                    if now.rip == self.syscall_at + 2 && now.rsp == stack + 8 {
                        // The program goes on with the thread pointer that the function gave it, if any.
                        self.registers.fs_base = now.fs_base;
                        return Ok(());
                    }
                }
                Event::Gone => bail!("the process has ended"),
                Event::Signal(libc::SIGSTOP) => self.stop = true,
                // All others are blocked, but for those by which the processor says that it cannot go on.
                Event::Signal(signal) => bail!("the runtime got signal {signal}"),
                Event::Interrupted | Event::Exec => {}
            }
        }
        bail!("the runtime did not come back")
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        let back = ptrace::interrupt(self.task)
            .and_then(|()| kernel::go_on(libc::PTRACE_CONT, self.task, 0))
            .and_then(|()| kernel::settle(self.task));
        if back == Ok(true) {
            let _ = ptrace::setregs(self.task, self.registers);
            let _ = kernel::block(self.task, self.mask);
        }
        if self.stop {
            let _ = kill(self.task, Signal::SIGSTOP);
        }
    }
}
