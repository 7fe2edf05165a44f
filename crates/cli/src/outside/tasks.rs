//! *How does everything in a process stand still?* Every task is seized and interrupted; that is repeated until no task is there
//! that is not known, because tasks which are not stopped yet make new ones.

use super::kernel;
use anyhow::{Context, Result, bail};
use libc::user_regs_struct;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A process that stands still; it goes on when this is dropped.
#[derive(Debug)]
pub(super) struct Stopped {
    pub(super) pid: Pid,
    tasks: BTreeSet<Pid>,
    since: Instant,
}

impl Stopped {
    /// Stops `pid`.
    pub(super) fn stop(pid: Pid) -> Result<Self> {
        let mut stopped = Self {
            pid,
            tasks: BTreeSet::new(),
            since: Instant::now(),
        };
        loop {
            let mut new = Vec::new();
            for task in listed(pid)? {
                if !stopped.tasks.contains(&task) && seize(pid, task)? {
                    new.push(task);
                }
            }
            if new.is_empty() {
                break;
            }
            for task in new {
                let stands = kernel::settle(task)
                    .with_context(|| format!("task {task} of process {pid} does not stop"))?;
                if stands {
                    stopped.tasks.insert(task);
                }
            }
        }
        if stopped.tasks.is_empty() {
            bail!("process {pid} has ended");
        }
        Ok(stopped)
    }

    /// Lets it go on. The answer: how long it stood.
    pub(super) fn release(self) -> Duration {
        let since = self.since;
        drop(self);
        since.elapsed()
    }

    /// The tasks that stand, with their registers.
    pub(super) fn registers(&self) -> Result<Vec<(Pid, user_regs_struct)>> {
        let mut all = Vec::with_capacity(self.tasks.len());
        for task in &self.tasks {
            match ptrace::getregs(*task) {
                Ok(registers) => all.push((*task, registers)),
                Err(Errno::ESRCH) => {} // Killed.
                Err(error) => return Err(error).context("registers"),
            }
        }
        Ok(all)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for task in &self.tasks {
            let _ = ptrace::detach(*task, None);
        }
    }
}

/// Whether the kernel is to make the system call again that `registers` come from, at the instruction before the program counter.
pub(super) fn is_in_call(registers: &user_regs_struct) -> bool {
    // Linux, include/linux/errno.h: ERESTARTSYS to ERESTART_RESTARTBLOCK.
    registers.orig_rax as i64 >= 0 && (-516..=-512).contains(&(registers.rax as i64))
}

fn listed(pid: Pid) -> Result<Vec<Pid>> {
    let folder = format!("/proc/{pid}/task");
    let entries =
        std::fs::read_dir(&folder).with_context(|| format!("there is no process {pid}"))?;
    let number = |entry: std::io::Result<std::fs::DirEntry>| {
        entry
            .ok()?
            .file_name()
            .to_str()?
            .parse()
            .ok()
            .map(Pid::from_raw)
    };
    Ok(entries.filter_map(number).collect())
}

/// A line of `/proc/PID/task/TID/status`.
pub(super) fn status(pid: Pid, task: Pid, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/status")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.map(|value| value.trim().to_owned())
}

/// Interrupts `task`; `false` if it has ended.
fn seize(pid: Pid, task: Pid) -> Result<bool> {
    let has_ended = || status(pid, task, "State").is_none_or(|state| state.starts_with(['Z', 'X']));
    if has_ended() {
        return Ok(false);
    }
    match status(pid, task, "TracerPid").as_deref() {
        None | Some("0") => {}
        Some(tracer) => bail!("process {pid} is traced by process {tracer}"),
    }
    match status(pid, task, "Seccomp").as_deref() {
        None | Some("0") => {}
        Some(_) => bail!(
            "process {pid} is under a filter of system calls (seccomp): those that memory is made with could end it"
        ),
    }
    match ptrace::seize(task, ptrace::Options::PTRACE_O_TRACESYSGOOD) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Ok(false),
        // So says the kernel of one that ends, too.
        Err(Errno::EPERM) if has_ended() => return Ok(false),
        Err(Errno::EPERM) => bail!(
            "process {pid} may not be traced: it is another user's, or kernel.yama.ptrace_scope forbids it"
        ),
        Err(error) => return Err(error).with_context(|| format!("process {pid}")),
    }
    match ptrace::interrupt(task) {
        Ok(()) | Err(Errno::ESRCH) => Ok(true),
        Err(error) => Err(error).with_context(|| format!("process {pid}")),
    }
}
