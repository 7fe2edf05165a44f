//! *When is a snapshot saved, and of which processes?*
//!
//! The first process's newest program goes to the file named; every other program that is kept goes beside it, as
//! `FILE.PID` (`FILE.PID.GENERATION` for one that was replaced by exec).

use crate::images::ImageSource;
use crate::subject::info;
use crate::tracked::{Processes, Tracked};
use anyhow::{Context, Result, anyhow};
use pointee_index::Index;
use pointee_inspect::memory::{ProcessMemory, Region};
use pointee_inspect::process::ProcessData;
use pointee_inspect::report::{Circumstances, State};
use pointee_inspect::snapshot::{self, Heap, Info};
use pointee_inspect::space::{Layout, Stop};
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// When.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum At {
    /// At the end, of the highest point of the heap.
    Peak,
    /// At the end.
    Exit,
    /// After a while.
    After(Duration),
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "peak" => Ok(Self::Peak),
            "exit" => Ok(Self::Exit),
            _ => {
                let seconds: f64 = text
                    .parse()
                    .map_err(|_| "neither `peak` nor `exit` nor a number of seconds".to_owned())?;
                Duration::try_from_secs_f64(seconds)
                    .map(Self::After)
                    .map_err(|error| error.to_string())
            }
        }
    }
}

impl At {
    /// The time to wait, if it is one.
    pub(crate) fn after(&self) -> Option<Duration> {
        match self {
            Self::After(after) => Some(*after),
            Self::Peak | Self::Exit => None,
        }
    }
}

/// Saves the first process's newest program as it is now.
pub(crate) fn while_running(
    tracked: Option<&Tracked>,
    source: &mut ImageSource,
    file: &Path,
    with_memory: bool,
) {
    let Some(tracked) = tracked else {
        eprintln!("pointee: no snapshot: the program is not recorded");
        return;
    };
    let circumstances = tracked.circumstances(State::Running, None);
    let memory = with_memory.then(|| ProcessMemory::open(tracked.pid));
    let heap = match &memory {
        None => Heap::Unwanted,
        Some(Ok(memory)) => Heap::Of(memory),
        Some(Err(_)) => Heap::Gone,
    };
    let saved = tracked
        .index()
        .map_err(|reason| no_snapshot(tracked, &reason))
        .and_then(|index| {
            let info = info(&circumstances, false);
            save(tracked, &index, source, info, &heap, file)
        });
    say(saved);
}

fn no_snapshot(tracked: &Tracked, reason: &str) -> anyhow::Error {
    anyhow!("no snapshot of process {}: {reason}", tracked.pid)
}

/// Saves all programs at the end.
pub(crate) fn at_end(
    processes: &[(Tracked, Circumstances)],
    source: &mut ImageSource,
    first: u32,
    file: &Path,
    at: At,
    with_memory: bool,
) {
    let newest = processes
        .iter()
        .rposition(|(tracked, _)| tracked.pid == first);
    if newest.is_none() {
        eprintln!("pointee: no snapshot: the program was not recorded");
    }
    for (number, (tracked, circumstances)) in processes.iter().enumerate() {
        let name = if Some(number) == newest {
            file.to_owned()
        } else {
            beside(file, circumstances)
        };
        let memory =
            (circumstances.state == State::Running).then(|| ProcessMemory::open(tracked.pid));
        let heap = match (&memory, with_memory) {
            (_, false) => Heap::Unwanted,
            (Some(Ok(memory)), true) => Heap::Of(memory),
            (_, true) => Heap::Gone,
        };
        let save = |source: &mut ImageSource| {
            let (index, blocks_at_peak) = match at {
                At::Peak => tracked.index_at_peak(),
                At::Exit | At::After(_) => tracked.index().map(|index| (index, false)),
            }
            .map_err(|reason| no_snapshot(tracked, &reason))?;
            let info = Info {
                blocks_at_peak,
                ..info(circumstances, at == At::Peak)
            };
            save(tracked, &index, source, info, &heap, &name)
        };
        // A process that runs on may write over its highest point, with a higher one.
        let mut saved = save(source);
        for _ in 1..ATTEMPTS {
            if matches!(saved, Ok(Saved::Overtaken)) {
                saved = save(source);
            }
        }
        say(saved);
    }
}

/// How often the snapshot of a process that runs on is begun.
const ATTEMPTS: u32 = 3;

/// What became of a snapshot.
#[derive(Debug, Clone, Copy)]
enum Saved {
    Whole,
    /// The process wrote over what was being saved; there is no file.
    Overtaken,
}

fn beside(file: &Path, circumstances: &Circumstances) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}", circumstances.pid));
    if circumstances.state == State::Exec {
        name.push(format!(".{}", circumstances.generation));
    }
    name.into()
}

/// A snapshot that fails is said, and changes nothing else.
fn say(saved: Result<Saved>) {
    match saved {
        Ok(Saved::Whole) => {}
        Ok(Saved::Overtaken) => {
            eprintln!("pointee: no snapshot: the heap grew faster than it could be saved")
        }
        Err(error) => eprintln!("pointee: {error:#}"),
    }
}

fn save(
    tracked: &Tracked,
    index: &Index<Region>,
    source: &mut ImageSource,
    info: Info,
    heap: &Heap<'_>,
    file: &Path,
) -> Result<Saved> {
    let mut process = ProcessData::read(index);
    // Of a process that has ended there is no address space any more.
    let layout = match info.circumstances.state {
        State::Running => Layout::of_process(tracked.pid, Stop::Never).unwrap_or_default(),
        State::Ended | State::Exec => Layout::default(),
    };
    let modules = layout.join(&mut process);
    let images = source.for_paths_and(&process, modules.into_iter().collect());
    write(file, |out| {
        snapshot::write(out, info, index, &process, &images, &layout, heap)
    })?;
    match index.memory() {
        Region::AtPeak(region) if !region.is_whole() => {
            let _ = std::fs::remove_file(file);
            Ok(Saved::Overtaken)
        }
        _ => Ok(Saved::Whole),
    }
}

/// Writes a file; one that could not be written whole is removed.
pub(crate) fn write(
    file: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    let created =
        File::create(file).with_context(|| format!("cannot create {}", file.display()))?;
    let is_regular = created.metadata().is_ok_and(|metadata| metadata.is_file());
    write(&mut BufWriter::new(created)).with_context(|| {
        if is_regular {
            let _ = std::fs::remove_file(file);
        }
        format!("the snapshot {} could not be written", file.display())
    })
}

impl Processes {
    /// The newest program of process `pid`.
    pub(crate) fn newest(&self, pid: u32) -> Option<&Tracked> {
        self.all().iter().rev().find(|tracked| tracked.pid == pid)
    }
}
