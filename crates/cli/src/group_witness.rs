//! *Was a signal sent to us alone, or to our whole process group?* — then the program has had it as well.
//!
//! A signal does not say which. So a second process of the group, with every signal blocked, does nothing but
//! exist: what is pending for it was sent to the group. The kernel signals the newest member of a group
//! first (kernel/pid.c adds it at the head of the list, `__kill_pgrp_info` walks from there), so the witness, made by us, has
//! a signal before we do.
//!
//! It is nobody's child but init's: who looks for the children of `pointee run` finds the program alone.

#![allow(unsafe_code)] // fork, and what the child does instead of exec.

use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The second process. Ends when it is dropped, and with this process however that ends.
#[derive(Debug)]
pub(crate) struct GroupWitness {
    /// Its id, and where it is told which signal to consume, until we close it. `None`: none could be made.
    process: Option<(i32, UnixStream)>,
}

impl GroupWitness {
    /// Makes one. This process has one thread.
    pub(crate) fn new() -> Self {
        Self {
            process: make().ok(),
        }
    }

    /// Whether a `signal` that we got was for the whole group; `false` if that cannot be told. To be asked of each that
    /// we get, so that none is left pending for the next of its kind to be taken for it.
    pub(crate) fn has_had(&mut self, signal: Signal) -> bool {
        let had = self.pending() >> (signal as i32 - 1) & 1 != 0;
        if had && self.consume(signal).is_err() {
            // Stopped or killed: what is pending for it stays so.
            *self = Self::new();
        }
        had
    }

    fn consume(&mut self, signal: Signal) -> std::io::Result<()> {
        if let Some((_, socket)) = &mut self.process {
            let mut number = [signal as u8];
            socket.write_all(&number)?;
            socket.read_exact(&mut number)?;
        }
        Ok(())
    }

    /// Bit n - 1: signal n.
    fn pending(&self) -> u64 {
        let Some((process, _)) = self.process else {
            return 0;
        };
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
        pending
            .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
            .unwrap_or(0)
    }
}

/// How long the answer of a process that has nothing else to do is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

fn make() -> std::io::Result<(i32, UnixStream)> {
    let (mut ours, theirs) = UnixStream::pair()?;
    // SAFETY: this process has one thread, and the child makes system calls only.
    match unsafe { fork() }? {
        // SAFETY: so does its child.
        ForkResult::Child => match unsafe { fork() } {
            Ok(ForkResult::Child) => wait_for_end(theirs.as_raw_fd()),
            // SAFETY: ends without running destructors.
            _ => unsafe { libc::_exit(0) },
        },
        ForkResult::Parent { child } => {
            drop(theirs);
            waitpid(child, None)?;
            ours.set_read_timeout(Some(PATIENCE))?;
            let mut id = [0; 4];
            ours.read_exact(&mut id)?;
            Ok((i32::from_ne_bytes(id), ours))
        }
    }
}

/// Says its id at `socket`, then consumes the signals whose numbers come there, until the other end is closed. Takes no
/// other signal and holds no other descriptor.
fn wait_for_end(socket: i32) -> ! {
    // SAFETY: system calls with valid arguments, all safe after fork.
    unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut signals);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const signals, std::ptr::null_mut());
        libc::dup2(socket, 0);
        if libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0) != 0 {
            libc::_exit(0);
        }
        let id = libc::getpid().to_ne_bytes();
        libc::write(0, id.as_ptr().cast(), id.len());
        let mut number = 0u8;
        while libc::read(0, (&raw mut number).cast(), 1) == 1 {
            libc::sigemptyset(&raw mut signals);
            libc::sigaddset(&raw mut signals, i32::from(number));
            let now = std::mem::zeroed();
            libc::sigtimedwait(&raw const signals, std::ptr::null_mut(), &raw const now);
            libc::write(0, (&raw const number).cast(), 1);
        }
        libc::_exit(0)
    }
}
