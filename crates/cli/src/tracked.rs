//! *Which processes did the run see, and what became of each?*
//!
//! Every program that announced itself is kept with its index's file. A process that executes another program
//! announces itself again under the same id: the earlier one is then over. Files of ended
//! processes are read and closed early when descriptors run short.

use crate::session::Arrival;
use crate::supervise::End;
use pointee_index::Index;
use pointee_inspect::at_peak::RegionAtPeak;
use pointee_inspect::memory::{Region, RegionFile};
use pointee_inspect::process::{Ending, ProcessData};
use pointee_inspect::report::{Circumstances, Exit, State};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// What is held of a process.
#[derive(Debug)]
enum Held {
    /// Its region.
    Open(File),
    /// What it said, all but its blocks.
    Read(Box<ProcessData>),
    /// Why there is nothing.
    Unreadable(String),
}

const PRIVATE: &str = "it was private to the process (no file for it may be made under its limits), and is gone with it";

/// Programs that are held open at most.
const EXECUTABLES: usize = 128;

/// One program in one process.
#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) pid: u32,
    parent: u32,
    pub(crate) generation: u32,
    held: Held,
    /// The blocks at its highest point, if they were asked for.
    peak: Option<File>,
    /// `None`: it had ended before we looked.
    handle: Option<OwnedFd>,
}

impl Tracked {
    fn is_alive(&self) -> bool {
        self.handle.as_ref().is_some_and(|handle| !is_over(handle))
    }

    /// What is known of it from outside.
    pub(crate) fn circumstances(&self, state: State, exit: Option<Exit>) -> Circumstances {
        Circumstances {
            pid: self.pid,
            parent: self.parent,
            generation: self.generation,
            state,
            exit,
            unseen: Vec::new(),
        }
    }

    /// Opens the index.
    pub(crate) fn index(&self) -> Result<Index<Region>, String> {
        match &self.held {
            Held::Open(file) => {
                let file = file.try_clone().map_err(|error| error.to_string())?;
                open(file)
            }
            Held::Read(_) => {
                Err("its index was closed early, for want of file descriptors".to_owned())
            }
            Held::Unreadable(reason) => Err(reason.clone()),
        }
    }

    /// Opens the index with the blocks of its highest point. `false`: they were not kept, and these are the blocks of now.
    pub(crate) fn index_at_peak(&self) -> Result<(Index<Region>, bool), String> {
        let now = self.index()?;
        let (Held::Open(file), Some(copies)) = (&self.held, &self.peak) else {
            return Ok((now, false));
        };
        let cloned = || Ok((file.try_clone()?, copies.try_clone()?));
        let region = cloned()
            .and_then(|(file, copies)| RegionAtPeak::new(file, copies, now.layout()))
            .map_err(|error: io::Error| error.to_string())?;
        let total = ProcessData::read(&now).total;
        match region {
            Some(region) if region.live_bytes() > total.live().bytes => {
                let index = Index::open(Region::AtPeak(region));
                Ok((index.map_err(|error| error.to_string())?, true))
            }
            // A heap that is as high as it ever was seen to be is at its highest now.
            _ => Ok((now, total.peak.bytes <= total.live().bytes)),
        }
    }

    /// Bytes that the copies of its highest point take.
    pub(crate) fn size_of_copies(&self) -> u64 {
        let copies = self.peak.as_ref().and_then(|file| file.metadata().ok());
        // In units of 512, whatever the file system's blocks are (stat(2)).
        copies.map_or(0, |metadata| metadata.blocks() * 512)
    }

    /// All that it said.
    pub(crate) fn into_data(self) -> Result<ProcessData, String> {
        match self.held {
            Held::Open(file) => Ok(ProcessData::read(&open(file)?)),
            Held::Read(data) => Ok(*data),
            Held::Unreadable(reason) => Err(reason),
        }
    }

    /// Reads what can be read of an ended process and closes its file.
    fn close(&mut self) {
        self.handle = None;
        self.peak = None;
        let held = std::mem::replace(&mut self.held, Held::Unreadable(String::new()));
        self.held = match held {
            Held::Open(file) => match open(file) {
                Ok(index) => Held::Read(Box::new(ProcessData::read(&index))),
                Err(reason) => Held::Unreadable(reason),
            },
            other => other,
        };
    }
}

fn open(file: File) -> Result<Index<Region>, String> {
    let region = RegionFile::new(file).map_err(|error| error.to_string())?;
    Index::open(Region::File(region)).map_err(|error| error.to_string())
}

/// All that were seen, in order of arrival.
#[derive(Debug)]
pub(crate) struct Processes {
    tracked: Vec<Tracked>,
    /// Files that may be held open.
    room: usize,
    open: usize,
    /// The programs that ran, by device and inode.
    executables: HashMap<(u64, u64), File>,
}

impl Processes {
    /// None yet; `files` is the limit of open files.
    pub(crate) fn new(files: u64) -> Self {
        let room = usize::try_from(files).unwrap_or(usize::MAX).min(1 << 16);
        Self {
            tracked: Vec::new(),
            // Three for each process, and some for ourselves.
            room: room.saturating_sub(64) / 3,
            open: 0,
            executables: HashMap::new(),
        }
    }

    /// Adds one.
    pub(crate) fn add(&mut self, arrival: Arrival) {
        if self.open >= self.room {
            for tracked in &mut self.tracked {
                if matches!(tracked.held, Held::Open(_)) && !tracked.is_alive() {
                    tracked.close();
                    self.open -= 1;
                }
            }
        }
        self.open += 1;
        if let Some(executable) = arrival.executable
            && let Ok(metadata) = executable.metadata()
            && self.executables.len() < EXECUTABLES
        {
            self.executables
                .insert((metadata.dev(), metadata.ino()), executable);
        }
        self.tracked.push(Tracked {
            pid: arrival.pid,
            parent: arrival.hello.parent,
            generation: arrival.hello.generation,
            held: arrival
                .region
                .map_or_else(|| Held::Unreadable(PRIVATE.to_owned()), Held::Open),
            peak: arrival.peak,
            handle: handle_of(arrival.pid),
        });
    }

    /// The programs that ran, open since they started.
    pub(crate) fn executables(&self) -> impl Iterator<Item = &File> {
        self.executables.values()
    }

    /// In order of arrival.
    pub(crate) fn all(&self) -> &[Tracked] {
        &self.tracked
    }

    /// Takes them apart: the first process's programs first, then by arrival, each with what became of it.
    pub(crate) fn with_ends(self, first: u32, end: End) -> Vec<(Tracked, Circumstances)> {
        let mut processes = self.tracked;
        processes.sort_by_key(|tracked| tracked.pid != first);
        let names: Vec<(u32, u32)> = processes
            .iter()
            .map(|tracked| (tracked.pid, tracked.generation))
            .collect();
        let mut reports = Vec::new();
        for (at, tracked) in processes.into_iter().enumerate() {
            // The same id with no later generation is another process: ids are used again.
            let replaced = names[at + 1..]
                .iter()
                .any(|(pid, generation)| *pid == tracked.pid && *generation > tracked.generation);
            let (state, exit) = if replaced {
                (State::Exec, None)
            } else if tracked.pid == first {
                (State::Ended, Some(exit_of(end)))
            } else if tracked.is_alive() {
                (State::Running, None)
            } else {
                (State::Ended, tracked.handle.as_ref().and_then(exit_by))
            };
            let circumstances = tracked.circumstances(state, exit);
            reports.push((tracked, circumstances));
        }
        reports
    }
}

/// In the words of a report.
pub(crate) fn exit_of(end: End) -> Exit {
    match end {
        End::Status(status) => Exit::Code(status),
        End::Signal(signal) => Exit::Signal(signal),
    }
}

/// Corrects what became of a process by what its own index says: it went on as a program that
/// did not announce itself.
pub(crate) fn went_on_unseen(data: &ProcessData, circumstances: &Circumstances) -> bool {
    data.ending == Ending::Exec && circumstances.state != State::Exec
}

#[allow(unsafe_code)] // pidfd_open has no face in std or nix.
fn handle_of(pid: u32) -> Option<OwnedFd> {
    // SAFETY: takes two numbers, gives a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel has just made it for us.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How a process that is not our child ended. Known since Linux 6.15 (`PIDFD_GET_INFO`, linux/pidfd.h).
#[allow(unsafe_code)] // The ioctl has no face in std or nix.
fn exit_by(handle: &OwnedFd) -> Option<Exit> {
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    /// The first version of `struct pidfd_info`: mask, cgroup, three process ids, eight of users and
    /// groups, the status.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        status: i32,
    }
    let mut info = Info {
        mask: PIDFD_INFO_EXIT,
        ..Info::default()
    };
    let request = libc::_IOWR::<Info>(0xff, 11);
    // SAFETY: the kernel writes at most the size that the request states.
    let result = unsafe { libc::ioctl(handle.as_raw_fd(), request, &raw mut info) };
    if result != 0 || info.mask & PIDFD_INFO_EXIT == 0 {
        return None;
    }
    if libc::WIFSIGNALED(info.status) {
        return Some(Exit::Signal(libc::WTERMSIG(info.status)));
    }
    libc::WIFEXITED(info.status).then(|| Exit::Code(libc::WEXITSTATUS(info.status)))
}

/// A process handle becomes readable when the process ends.
fn is_over(handle: &OwnedFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    debug_assert!(handle.as_raw_fd() >= 0);
    let mut source = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
    poll(&mut source, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Raises this process's limit of open files; gives back what it was (soft, hard).
pub(crate) fn raise_file_limit() -> io::Result<(u64, u64)> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok((soft, hard))
}
