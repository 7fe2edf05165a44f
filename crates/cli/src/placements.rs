//! *Who plans, and who keeps the counts?* A socket in the session's folder, and a thread behind it.
//!
//! A process that loads an object asks for its placement ([`pointee_index::handoff::Request`]), and
//! waits. The object's file is planned once; whoever asks for it again gets the same placement and the same
//! counters, so that the counts of a program and of what it forked add up. Counters are memory files: what was
//! counted is here whatever ended the program.

use crate::glob;
use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept4, bind, listen, recvmsg, sendmsg, socket,
};
use pointee_index::handoff::{ANSWER_MAGIC, REQUEST_MAGIC, Request};
use pointee_meta::elf::Elf;
use pointee_patch::placement::{Header, Placement};
use pointee_probe::{At, Plan, Wanted};
use std::collections::HashMap;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Longest path of an object.
const PATH_MAX: usize = 4096;

/// What is wanted of every object.
#[derive(Debug)]
pub(crate) struct Wish {
    /// Which instructions.
    pub(crate) at: At,
    /// Patterns of which one has to match the object's path or file name; none: all match.
    pub(crate) modules: Vec<String>,
    /// The same of the function.
    pub(crate) functions: Vec<String>,
    /// The same of the thing that the instructions are about.
    pub(crate) subjects: Vec<String>,
    /// Whether what no jump fits at gets an `int3`.
    pub(crate) traps: bool,
    /// Whether the process tells of its threads, children and objects.
    pub(crate) watched: bool,
}

impl Wish {
    /// Whether anything is wanted of the object at `path`.
    pub(crate) fn wants(&self, path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        any(&self.modules, &[path, name])
    }

    /// Whether instructions about the thing with this name are wanted.
    pub(crate) fn is_subject(&self, name: &str) -> bool {
        any(&self.subjects, &[name])
    }

    /// Plans for one file.
    pub(crate) fn plan(&self, elf: &Elf, path: &str) -> Result<Plan> {
        let module = self.wants(path);
        let wanted = Wanted {
            at: self.at,
            functions: &|name| module && any(&self.functions, &[name]),
            subjects: &|name| module && self.is_subject(name),
            traps: self.traps,
            watched: self.watched,
        };
        Ok(Plan::new(elf, &wanted)?)
    }
}

/// Whether one of `patterns` matches one of `names`, or there is none.
fn any(patterns: &[String], names: &[&str]) -> bool {
    let fits = |pattern: &String| names.iter().any(|name| glob::matches(pattern, name));
    patterns.is_empty() || patterns.iter().any(fits)
}

/// One object that was asked for.
#[derive(Debug)]
pub(crate) struct Planned {
    /// As the process knows it; of the program itself, the file's own.
    pub(crate) path: String,
    pub(crate) plan: Plan,
    placement: OwnedFd,
    counters: File,
}

impl Planned {
    /// The counters as they are now.
    pub(crate) fn counts(&self) -> Vec<u64> {
        counts(&self.counters)
    }

    /// Whether its pads were written in any process.
    pub(crate) fn is_written(&self) -> bool {
        let header = Placement::parse(&self.plan.placement).map(|placement| placement.header);
        header.is_some_and(|header| {
            let mut tally = [0; 8];
            let read = self
                .counters
                .read_exact_at(&mut tally, header.tally() as u64);
            read.is_ok() && tally != [0; 8]
        })
    }
}

/// What is in a file of counters now.
fn counts(counters: &File) -> Vec<u64> {
    let len = counters.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    if counters.read_exact_at(&mut bytes, 0).is_err() {
        return Vec::new();
    }
    let words = bytes
        .chunks_exact(8)
        .filter_map(|word| word.try_into().ok());
    words.map(u64::from_le_bytes).collect()
}

type ByFile = Mutex<HashMap<(u64, u64), Option<Arc<Planned>>>>;

/// The socket, and what was asked for at it.
#[derive(Debug)]
pub(crate) struct Planner {
    socket: OwnedFd,
    wish: Wish,
    by_file: ByFile,
    order: Mutex<Vec<Arc<Planned>>>,
}

impl Planner {
    /// Listens at `path`.
    pub(crate) fn open(path: &Path, wish: Wish) -> Result<Self> {
        let socket = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        bind(socket.as_raw_fd(), &UnixAddr::new(path)?)
            .and_then(|()| listen(&socket, Backlog::MAXCONN))
            .with_context(|| format!("cannot listen at {}", path.display()))?;
        Ok(Self {
            socket,
            wish,
            by_file: Mutex::default(),
            order: Mutex::default(),
        })
    }

    /// Answers, on a thread of its own, as long as this process lives.
    pub(crate) fn serve(self: &Arc<Self>) {
        let planner = Arc::clone(self);
        std::thread::spawn(move || {
            loop {
                match accept4(planner.socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                    // An asker that goes away or asks nonsense is left.
                    Ok(connection) => drop(planner.answer(&adopt(connection))),
                    Err(nix::errno::Errno::EINTR | nix::errno::Errno::ECONNABORTED) => {}
                    Err(_) => return,
                }
            }
        });
    }

    /// What was asked for, in order.
    pub(crate) fn planned(&self) -> Vec<Arc<Planned>> {
        self.order
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn answer(&self, connection: &OwnedFd) -> Option<()> {
        let (path, file) = receive(connection)?;
        let planned = self.planned_for(path, &File::from(file))?;
        let bytes = ANSWER_MAGIC.to_le_bytes();
        let fds = [planned.placement.as_raw_fd(), planned.counters.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        let parts = [IoSlice::new(&bytes)];
        sendmsg::<UnixAddr>(
            connection.as_raw_fd(),
            &parts,
            &control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .ok()?;
        Some(())
    }

    fn planned_for(&self, path: String, file: &File) -> Option<Arc<Planned>> {
        let metadata = file.metadata().ok()?;
        let key = (metadata.dev(), metadata.ino());
        let mut by_file = self.by_file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = by_file.get(&key) {
            return known.clone();
        }
        let planned = self.plan(path, file).map(Arc::new);
        by_file.insert(key, planned.clone());
        if let Some(planned) = &planned {
            self.order
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Arc::clone(planned));
        }
        planned
    }

    fn plan(&self, path: String, file: &File) -> Option<Planned> {
        let elf = Elf::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        let plan = self.wish.plan(&elf, &path).ok()?;
        let header = Placement::parse(&plan.placement)?.header;
        if header.pads == 0 {
            return None;
        }
        Some(Planned {
            path,
            placement: memory_file(c"pointee-placement", &plan.placement)?,
            counters: counters_file(&header)?,
            plan,
        })
    }
}

fn memory_file(name: &std::ffi::CStr, bytes: &[u8]) -> Option<OwnedFd> {
    let mut file = File::from(memfd_create(name, sealable()).ok()?);
    file.write_all(bytes).ok()?;
    // Whoever maps it may rely on it for good.
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).ok()?;
    Some(file.into())
}

fn counters_file(header: &Header) -> Option<File> {
    let file = File::from(memfd_create(c"pointee-counters", sealable()).ok()?);
    file.set_len(header.counters_len() as u64).ok()?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).ok()?;
    Some(file)
}

fn sealable() -> MFdFlags {
    MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING
}

/// A request: the object's path, and its file.
fn receive(connection: &OwnedFd) -> Option<(String, OwnedFd)> {
    let mut bytes = vec![0; Request::LEN + PATH_MAX];
    let mut control = nix::cmsg_space!([i32; 1]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(
        connection.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        flags,
    )
    .ok()?;
    let mut files = Vec::new();
    for control in message.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            files.extend(fds.into_iter().map(adopt));
        }
    }
    let len = message.bytes;
    let request = bytes.get(..len)?;
    let magic = request.get(..8)?.try_into().ok().map(u64::from_le_bytes)?;
    let path = String::from_utf8_lossy(request.get(Request::LEN..)?).into_owned();
    (magic == REQUEST_MAGIC).then_some((path, files.into_iter().next()?))
}

#[allow(unsafe_code)] // nix hands over received descriptors as numbers.
fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
