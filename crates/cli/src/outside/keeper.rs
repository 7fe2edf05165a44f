//! *What becomes of the process when the command is killed while it stands, or has probes?* Nothing: the work is done by a second
//! process, the keeper, which nobody who kills the command by its number hits. When the command is no more, the keeper
//! takes the probes away and ends.
//!
//! ```text
//!   command   waits for the keeper, passes SIGINT, SIGTERM and SIGHUP on, ends as it ends
//!   keeper    in a process group of its own: the terminal's signals come to it by the command only
//! ```
//!
//! A `SIGKILL` for the keeper itself, while the process stands, is what is left: see the module around.

#![allow(unsafe_code)] // fork.

use crate::supervise::{End, end_as};
use anyhow::{Context, Result};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getppid, setpgid};

/// Whatever of these comes, the probes are taken away.
const ENDS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Goes on in the keeper only. The answer: what tells it to end. Before there is a second thread.
pub(crate) fn begin() -> Result<SignalFd> {
    let ends: SigSet = ENDS.into_iter().collect();
    let mut taken = ends;
    taken.add(Signal::SIGCHLD);
    taken.thread_block()?;
    let command = Pid::this();
    // SAFETY: this process has one thread, so the child's memory is whole.
    if let ForkResult::Parent { child } = unsafe { fork() }.context("fork")? {
        end_as(wait(child, &taken)?);
    }
    setpgid(Pid::from_raw(0), Pid::from_raw(0)).context("setpgid")?;
    let signals = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    set_pdeathsig(Signal::SIGTERM)?;
    // It may have been killed before that.
    if getppid() != command {
        kill(Pid::this(), Signal::SIGTERM)?;
    }
    Ok(signals)
}

/// Passes signals on to `keeper` until it has ended.
fn wait(keeper: Pid, taken: &SigSet) -> Result<End> {
    loop {
        match taken.wait()? {
            Signal::SIGCHLD => match waitpid(keeper, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::Exited(_, status) => return Ok(End::Status(status)),
                WaitStatus::Signaled(_, signal, _) => return Ok(End::Signal(signal as i32)),
                _ => {}
            },
            signal => drop(kill(keeper, signal)),
        }
    }
}
