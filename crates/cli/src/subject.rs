//! *What is asked about?* — a running process or a snapshot; both give the same things.

use crate::images::ImageSource;
use anyhow::{Context, Result, bail};
use pointee_index::Index;
use pointee_inspect::images::Images;
use pointee_inspect::memory::{ProcessMemory, Region};
use pointee_inspect::process::{Ending, ProcessData};
use pointee_inspect::report::{Circumstances, ProcessReport, State};
use pointee_inspect::resolve::Resolver;
use pointee_inspect::running;
use pointee_inspect::snapshot::{Info, Snapshot};
use pointee_inspect::value::Contents;
use std::path::Path;

/// A process that is alive, or one that was saved.
pub(crate) struct Subject {
    pub(crate) index: Index<Region>,
    pub(crate) process: ProcessData,
    pub(crate) images: Images,
    pub(crate) circumstances: Circumstances,
    pub(crate) memory: Option<ProcessMemory>,
    saved: Option<Saved>,
}

struct Saved {
    contents: Option<pointee_inspect::pages::SavedPages>,
    no_contents: Option<String>,
    at_peak: bool,
}

impl Subject {
    /// Opens what `name` names: digits are a process, all else is a file.
    pub(crate) fn open(name: &str) -> Result<Self> {
        match name.parse() {
            Ok(pid) => Self::of_process(pid),
            Err(_) => Self::of_snapshot(Path::new(name)),
        }
    }

    fn of_process(pid: u32) -> Result<Self> {
        let index = running::open(pid)?;
        let process = ProcessData::read(&index);
        if running::is_of_another(pid, &process) {
            bail!("process {pid} is not recorded; it shares the index of its parent");
        }
        let images = ImageSource::new().for_process(&process);
        let circumstances = Circumstances {
            pid,
            parent: process.parent,
            generation: 0,
            state: State::Running,
            exit: None,
            unseen: Vec::new(),
        };
        Ok(Self {
            index,
            process,
            images,
            circumstances,
            memory: ProcessMemory::open(pid).ok(),
            saved: None,
        })
    }

    fn of_snapshot(path: &Path) -> Result<Self> {
        let snapshot = Snapshot::open(path).with_context(|| path.display().to_string())?;
        let process = ProcessData::read(&snapshot.index);
        let info = snapshot.info;
        let state = match process.ending {
            Ending::Exec => State::Exec,
            _ => info.state,
        };
        Ok(Self {
            index: snapshot.index,
            process,
            images: snapshot.images,
            circumstances: Circumstances {
                pid: info.pid,
                parent: info.parent,
                generation: info.generation,
                state,
                exit: info.exit,
                unseen: info.unseen,
            },
            memory: None,
            saved: Some(Saved {
                contents: snapshot.contents,
                no_contents: info.no_contents,
                at_peak: info.at_peak,
            }),
        })
    }

    /// For questions about sites and types.
    pub(crate) fn resolver(&self) -> Resolver<'_> {
        Resolver::new(&self.process, &self.images)
    }

    /// The report of it.
    pub(crate) fn report(&self) -> ProcessReport {
        ProcessReport::new(&self.resolver(), &self.circumstances)
    }

    /// Whether the tables are to tell of the highest point.
    pub(crate) fn is_at_peak(&self) -> bool {
        self.saved.as_ref().is_some_and(|saved| saved.at_peak)
    }

    /// The process's memory, if it can be had.
    pub(crate) fn contents(&self) -> Option<&dyn Contents> {
        let saved = self
            .saved
            .as_ref()
            .and_then(|saved| saved.contents.as_ref());
        let live = self.memory.as_ref().map(|memory| memory as &dyn Contents);
        live.or(saved.map(|pages| pages as &dyn Contents))
    }

    /// Why there is no memory.
    pub(crate) fn why_no_contents(&self) -> Option<&str> {
        if self.contents().is_some() {
            return None;
        }
        let told = self
            .saved
            .as_ref()
            .and_then(|saved| saved.no_contents.as_deref());
        Some(told.unwrap_or("the snapshot was saved without --memory"))
    }

    /// What a snapshot of it says beside its index.
    pub(crate) fn info(&self) -> Info {
        info(&self.circumstances, self.is_at_peak())
    }
}

/// What a snapshot says beside the index.
pub(crate) fn info(circumstances: &Circumstances, at_peak: bool) -> Info {
    Info {
        pid: circumstances.pid,
        parent: circumstances.parent,
        generation: circumstances.generation,
        state: circumstances.state,
        exit: circumstances.exit,
        unseen: circumstances.unseen.clone(),
        at_peak,
        no_contents: None,
        images: Vec::new(),
    }
}
