//! *Who waits for the program, and what happens to signals meanwhile?*
//!
//! The supervisor behaves as if it were not there. The terminal sends its signals to the whole
//! foreground group, the program included, so those are swallowed here, and so is what somebody sends to the
//! group; signals sent to the supervisor alone by `kill` are passed on. When the program stops, the supervisor stops by the same signal, so that
//! the shell sees what it would see without it; it ends with the program's status, or by its signal.

use crate::following::Following;
use crate::group_witness::GroupWitness;
use crate::session::{Arrival, Session};
use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Status(i32),
    Signal(i32),
}

/// Signals that are taken from the queue instead of having their effect.
const TAKEN: [Signal; 12] = [
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTSTP,
    Signal::SIGCONT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
    Signal::SIGPIPE,
];

/// The queue of signals; the mask is as before when it is dropped.
#[derive(Debug)]
pub(crate) struct Signals {
    queue: SignalFd,
    before: SigSet,
    witness: GroupWitness,
}

impl Signals {
    /// Takes them from here on.
    pub(crate) fn take() -> Result<Self> {
        let taken: SigSet = TAKEN.into_iter().collect();
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&taken), Some(&mut before))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let queue = SignalFd::with_flags(&taken, flags).context("signalfd")?;
        Ok(Self {
            queue,
            before,
            witness: GroupWitness::new(),
        })
    }

    /// The mask as it was.
    pub(crate) fn mask_before(&self) -> &SigSet {
        &self.before
    }

    /// Passes on to `child` what was sent to us alone.
    fn pass_on(&mut self, child: Pid) {
        while let Ok(Some(info)) = self.queue.read_signal() {
            let Ok(signal) = Signal::try_from(info.ssi_signo as i32) else {
                continue;
            };
            // The kernel's own (terminal, hang-up) went to the program as well; what we and it sent
            // ourselves is none either.
            let sent_by_somebody = info.ssi_code <= 0;
            let from_child = info.ssi_pid == child.as_raw() as u32;
            if signal != Signal::SIGCHLD
                && !self.witness.has_had(signal)
                && sent_by_somebody
                && !from_child
            {
                let _ = kill(child, signal);
            }
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // What came while the program ended was for the program.
        while let Ok(Some(_)) = self.queue.read_signal() {}
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}

/// Waits until `child` has ended. `arrived` gets every process that announces itself; those that ask for it are followed; `due` is called
/// once, `after` the start, if the program still runs then.
pub(crate) fn supervise(
    child: Pid,
    signals: &mut Signals,
    session: &Session,
    following: Option<&Following>,
    after: Option<Duration>,
    mut arrived: impl FnMut(Arrival),
    mut due: impl FnMut(),
) -> Result<End> {
    let mut deadline = after.map(|after| Instant::now() + after);
    loop {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                // One more, lest the last fraction of a millisecond be spent spinning.
                PollTimeout::try_from(left.as_millis().saturating_add(1))
                    .unwrap_or(PollTimeout::MAX)
            }
        };
        let mut sources = vec![
            PollFd::new(session.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.queue.as_fd(), PollFlags::POLLIN),
        ];
        sources
            .extend(following.map(|following| PollFd::new(following.as_fd(), PollFlags::POLLIN)));
        match poll(&mut sources, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the program"),
        }
        session.receive().into_iter().for_each(&mut arrived);
        if let Some(following) = following {
            following.serve();
        }
        signals.pass_on(child);
        if let Some(end) = look_after(child, signals)? {
            // What was sent before the end is in the queue by now.
            session.receive().into_iter().for_each(&mut arrived);
            return Ok(end);
        }
        if deadline.is_some_and(|at| Instant::now() >= at) {
            deadline = None;
            due();
        }
    }
}

/// Looks whether the child ended or stopped.
fn look_after(child: Pid, signals: &Signals) -> Result<Option<End>> {
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Exited(_, status)) => return Ok(Some(End::Status(status))),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Some(End::Signal(signal as i32))),
            Ok(WaitStatus::Stopped(_, signal)) => stop_by(signal, signals),
            Ok(_) => return Ok(None),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the program"),
        }
    }
}

/// Stops this process as the program was stopped; returns when it is continued.
fn stop_by(signal: Signal, signals: &Signals) {
    let mut only = SigSet::empty();
    only.add(signal);
    let _ = nix::sys::signal::raise(signal);
    // Delivered here, before the next line.
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&only), None);
    if signals.queue_takes(signal) {
        let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&only), None);
    }
}

impl Signals {
    fn queue_takes(&self, signal: Signal) -> bool {
        TAKEN.contains(&signal)
    }
}

/// Ends this process as the program ended: same status, or same signal without a core of its own.
#[allow(unsafe_code)] // Resets a disposition and raises the signal.
pub(crate) fn end_as(end: End) -> ! {
    match end {
        End::Status(status) => std::process::exit(status),
        End::Signal(number) => {
            let no_core = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: calls with valid arguments; the process is about to end.
            unsafe {
                libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
                libc::prctl(libc::PR_SET_DUMPABLE, 0);
                libc::signal(number, libc::SIG_DFL);
                let mut only: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&raw mut only);
                libc::sigaddset(&raw mut only, number);
                libc::sigprocmask(libc::SIG_UNBLOCK, &raw const only, std::ptr::null_mut());
                libc::raise(number);
            }
            // Only a signal that does not end processes by default comes here; a shell would say this.
            std::process::exit(128 + number)
        }
    }
}
