//! *How is a descendant recorded that becomes a statically linked program?* — it asks, on a socket of the session, to be traced until that
//! program stands before its first instruction; the runtime is mapped into it there, and it is let go.
//!
//! Whatever fails, the program runs as it would without us, and the report says why it was not seen. One process is served after the
//! other, while the supervisor looks after nothing else: each stands before an `execve` already.

use crate::acquaintance;
use crate::launch;
use crate::outside::{Held, Mapped};
use crate::static_program;
use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, getsockopt,
    listen, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use pointee_index::handoff::{NEXT_FAILED, NEXT_TRACED, Next};
use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What was to be followed and could not.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) generation: u32,
    pub(crate) program: String,
    pub(crate) reason: String,
}

/// The socket, and what is mapped into programs.
#[derive(Debug)]
pub(crate) struct Following {
    socket: OwnedFd,
    runtime: PathBuf,
    /// Where images are that the runtime is given.
    images: Option<PathBuf>,
    /// What the first program was told.
    handoff: Vec<u8>,
    lost: RefCell<Vec<Lost>>,
}

impl Following {
    /// Listens at `path`.
    pub(crate) fn open(
        path: &Path,
        runtime: PathBuf,
        images: Option<&Path>,
        handoff: Vec<u8>,
    ) -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        bind(socket.as_raw_fd(), &UnixAddr::new(path)?)
            .and_then(|()| listen(&socket, Backlog::MAXCONN))
            .with_context(|| format!("cannot listen at {}", path.display()))?;
        Ok(Self {
            socket,
            runtime,
            images: images.map(Path::to_owned),
            handoff,
            lost: RefCell::default(),
        })
    }

    /// Serves all who have asked.
    pub(crate) fn serve(&self) {
        while let Ok(connection) = accept4(self.socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // Who goes away or asks nonsense is left.
            let _ = self.follow(&adopt(connection));
        }
    }

    /// Those that were not recorded.
    pub(crate) fn into_lost(self) -> Vec<Lost> {
        self.lost.into_inner()
    }

    fn follow(&self, connection: &OwnedFd) -> Result<()> {
        let fd = connection.as_raw_fd();
        setsockopt(connection, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
        let mut bytes = [0; Next::LEN];
        let len = recv(fd, &mut bytes, MsgFlags::empty())?;
        let next = bytes.get(..len).and_then(Next::from_bytes);
        let next = next.context("no request")?;
        let pid = Pid::from_raw(getsockopt(connection, sockopt::PeerCredentials)?.pid());
        let held = Held::seize(pid)?;
        let has_failed = || {
            let mut said = [0];
            let got = recv(fd, &mut said, MsgFlags::MSG_DONTWAIT);
            got == Ok(1) && said == [NEXT_FAILED]
        };
        let executed = send(fd, &[NEXT_TRACED], MsgFlags::MSG_NOSIGNAL)
            .map_err(Into::into)
            .and_then(|_| held.until_program_unless(has_failed));
        if !matches!(executed, Ok(true)) {
            return held.let_go();
        }
        let program = std::fs::read_link(format!("/proc/{pid}/exe"));
        let program =
            program.map_or_else(|_| "(not known)".into(), |path| path.display().to_string());
        if let Some(images) = &self.images {
            acquaintance::introduce_declared(Path::new(&program), images);
        }
        let mapped = Mapped {
            runtime: self.runtime.clone(),
            handoff: launch::with_generation(&self.handoff, next.generation),
        };
        if let Err(error) = load(&held, pid, &mapped) {
            self.lost.borrow_mut().push(Lost {
                pid: pid.as_raw() as u32,
                parent: parent_of(pid),
                generation: next.generation,
                program,
                reason: format!("{error:#}"),
            });
            return held.let_go();
        }
        Ok(())
    }
}

fn load(held: &Held, pid: Pid, mapped: &Mapped) -> Result<()> {
    if let Some(reason) = static_program::why_unseen(Path::new(&format!("/proc/{pid}/exe"))) {
        bail!("{reason}");
    }
    held.load(mapped)
}

/// 0 if it has ended.
fn parent_of(pid: Pid) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

#[allow(unsafe_code)] // nix hands over accepted connections as numbers.
fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

impl AsFd for Following {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
