//! *Which processes announced themselves, and where are their indexes?*
//!
//! A session is a private folder with a datagram socket in it. Every process that is
//! recorded sends one datagram: who it is, and its region's file descriptor. The file outlives the
//! process, so its index is there whatever ended it.

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind, recvmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::statvfs::FsFlags;
use pointee_index::handoff::Hello;
use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// One process (one program in it: an exec makes another) that is recorded.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Process id as we see it.
    pub(crate) pid: u32,
    /// What it said.
    pub(crate) hello: Hello,
    /// Its region; `None` if that is private to it.
    pub(crate) region: Option<File>,
    /// The blocks at its highest point, if they were asked for.
    pub(crate) peak: Option<File>,
    /// Its executable, as it was when it started.
    pub(crate) executable: Option<File>,
}

/// The folder and the socket; both go when it is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    folder: PathBuf,
    socket: OwnedFd,
}

/// Whether files there may be executed: where the cache cannot be written, the runtime is put there.
fn may_hold_code(folder: &Path) -> bool {
    nix::sys::statvfs::statvfs(folder)
        .is_ok_and(|about| !about.flags().contains(FsFlags::ST_NOEXEC))
}

impl Session {
    /// Opens one.
    pub(crate) fn open() -> Result<Self> {
        let candidates = [
            std::env::var_os("XDG_RUNTIME_DIR"),
            std::env::var_os("TMPDIR"),
        ];
        // A socket's path has room for 107 bytes (unix(7)).
        let parents = candidates
            .into_iter()
            .flatten()
            .map(PathBuf::from)
            .filter(|parent| parent.is_absolute() && parent.as_os_str().len() < 80)
            // In memory: on a disk the few files may cost more to remove than a short program takes.
            .chain(Some(PathBuf::from("/dev/shm")).filter(|parent| may_hold_code(parent)))
            .chain([PathBuf::from("/tmp")]);
        let folder = parents
            .filter_map(|parent| nix::unistd::mkdtemp(&parent.join("pointee-XXXXXX")).ok())
            .next()
            .context(
                "no folder for the session can be made (tried XDG_RUNTIME_DIR, TMPDIR, /dev/shm and /tmp)",
            )?;
        let socket = listen(&folder.join("socket"));
        let socket = socket.inspect_err(|_| {
            let _ = std::fs::remove_dir_all(&folder);
        })?;
        Ok(Self { folder, socket })
    }

    /// Where processes send to.
    pub(crate) fn socket_path(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// A place for files that live as long as the session.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What has arrived and was not yet received.
    pub(crate) fn receive(&self) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        loop {
            match self.receive_one() {
                Ok(Some(arrival)) => arrivals.push(arrival),
                Ok(None) => {}
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return arrivals,
            }
        }
    }

    /// `Ok(None)`: a datagram that is none of ours.
    fn receive_one(&self) -> Result<Option<Arrival>, nix::errno::Errno> {
        let mut bytes = [0; Hello::LEN];
        let mut control = nix::cmsg_space!([i32; 3], libc::ucred);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<UnixAddr>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            flags,
        )?;
        let mut files = Vec::new();
        let mut pid = None;
        if let Ok(messages) = message.cmsgs() {
            for control in messages {
                match control {
                    ControlMessageOwned::ScmRights(fds) => {
                        files.extend(fds.into_iter().map(adopt));
                    }
                    ControlMessageOwned::ScmCredentials(credentials) => {
                        pid = u32::try_from(credentials.pid()).ok();
                    }
                    _ => {}
                }
            }
        }
        let hello = Hello::from_bytes(&bytes);
        let mut files = files.into_iter();
        Ok(match (hello, pid, files.next()) {
            (Some(hello), Some(pid), region) if region.is_some() == (hello.region_len != 0) => {
                Some(Arrival {
                    pid,
                    hello,
                    region,
                    peak: if hello.peak == 1 { files.next() } else { None },
                    executable: files.next(),
                })
            }
            _ => None,
        })
    }
}

#[allow(unsafe_code)] // nix hands over received descriptors as numbers.
fn adopt(fd: i32) -> File {
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    unsafe { File::from_raw_fd(fd) }
}

fn listen(path: &Path) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::PassCred, &true)?;
    // Arrivals wait while a report is made; each takes well under a kilobyte.
    let _ = setsockopt(&socket, sockopt::RcvBuf, &(1 << 20));
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)
        .with_context(|| format!("cannot listen at {}", path.display()))?;
    Ok(socket)
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
