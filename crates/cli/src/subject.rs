//! *What is asked about?* — a running process or a snapshot; both give the same things.
//!
//! A process that is not recorded has no index: its heap is not known, the rest of its address space is.

use crate::images::ImageSource;
use anyhow::{Context, Result, bail};
use pointee_index::Index;
use pointee_inspect::images::Images;
use pointee_inspect::memory::{ProcessMemory, Region};
use pointee_inspect::process::{Ending, ProcessData};
use pointee_inspect::report::{Circumstances, ProcessReport, State};
use pointee_inspect::resolve::Resolver;
use pointee_inspect::running::{self, FindError};
use pointee_inspect::snapshot::{Info, Snapshot};
use pointee_inspect::space::{Layout, Space, Stop};
use pointee_inspect::value::Contents;
use pointee_model::addr::RunAddr;
use std::collections::BTreeSet;
use std::path::Path;

/// A process that is alive, or one that was saved.
pub(crate) struct Subject {
    /// `None`: not recorded.
    pub(crate) index: Option<Index<Region>>,
    pub(crate) process: ProcessData,
    pub(crate) images: Images,
    pub(crate) circumstances: Circumstances,
    pub(crate) memory: Option<ProcessMemory>,
    /// The address space; nothing in it if it was not looked at.
    pub(crate) layout: Layout,
    /// Module numbers of the layout's objects.
    pub(crate) modules: Vec<u32>,
    saved: Option<Saved>,
}

struct Saved {
    contents: Option<pointee_inspect::pages::SavedPages>,
    no_contents: Option<String>,
    at_peak: bool,
    blocks_at_peak: bool,
}

/// Whose images are needed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// Of all that is loaded.
    All,
    /// Of what lies at these addresses.
    At(&'a [u64]),
}

impl Subject {
    /// Opens what `name` names, which has an index: digits are a process, all else is a file.
    pub(crate) fn open(name: &str) -> Result<Self> {
        match name.parse() {
            Ok(pid) => {
                let index = running::open(pid)?;
                let process = ProcessData::read(&index);
                if running::is_of_another(pid, &process) {
                    bail!("process {pid} is not recorded; it shares the index of its parent");
                }
                let images = ImageSource::new().for_process(&process);
                Ok(Self::of_process(pid, Some(index), process, images))
            }
            Err(_) => Self::of_snapshot(Path::new(name)),
        }
    }

    /// Opens what `name` names with its address space, whether it is recorded or not.
    pub(crate) fn survey(name: &str, stop: Stop, wanted: Wanted<'_>) -> Result<Self> {
        let Ok(pid) = name.parse() else {
            return Self::of_snapshot(Path::new(name));
        };
        let index = match running::open(pid) {
            Ok(index) => Some(index),
            Err(FindError::NotRecorded(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let recorded = index.and_then(|index| {
            let process = ProcessData::read(&index);
            (!running::is_of_another(pid, &process)).then_some((index, process))
        });
        let (index, mut process) = match recorded {
            Some((index, process)) => (Some(index), process),
            None => (None, ProcessData::unrecorded(pid)),
        };
        let layout = Layout::of_process(pid, stop)
            .with_context(|| format!("process {pid} may not be looked at"))?;
        let modules = layout.join(&mut process);
        let objects: BTreeSet<u32> = match wanted {
            Wanted::All => modules.iter().copied().collect(),
            Wanted::At(addresses) => addresses
                .iter()
                .flat_map(|address| layout.objects_needed(RunAddr(*address)))
                .filter_map(|object| modules.get(object).copied())
                .collect(),
        };
        let images = ImageSource::new().for_paths_and(&process, objects);
        let mut subject = Self::of_process(pid, index, process, images);
        subject.layout = layout;
        subject.modules = modules;
        Ok(subject)
    }

    fn of_process(
        pid: u32,
        index: Option<Index<Region>>,
        process: ProcessData,
        images: Images,
    ) -> Self {
        Self {
            index,
            circumstances: Circumstances {
                pid,
                parent: process.parent,
                generation: 0,
                state: State::Running,
                exit: None,
                unseen: Vec::new(),
            },
            process,
            images,
            memory: ProcessMemory::open(pid).ok(),
            layout: Layout::default(),
            modules: Vec::new(),
            saved: None,
        }
    }

    fn of_snapshot(path: &Path) -> Result<Self> {
        let snapshot = Snapshot::open(path).with_context(|| path.display().to_string())?;
        let mut process = ProcessData::read(&snapshot.index);
        let modules = snapshot.layout.join(&mut process);
        let mut info = snapshot.info;
        if process.ending == Ending::Exec {
            info.circumstances.state = State::Exec;
        }
        Ok(Self {
            index: Some(snapshot.index),
            process,
            images: snapshot.images,
            circumstances: info.circumstances,
            memory: None,
            layout: snapshot.layout,
            modules,
            saved: Some(Saved {
                contents: snapshot.contents,
                no_contents: info.no_contents,
                at_peak: info.at_peak,
                blocks_at_peak: info.blocks_at_peak,
            }),
        })
    }

    /// For questions about addresses.
    pub(crate) fn space<'a>(&'a self, resolver: &'a Resolver<'a>) -> Space<'a> {
        Space::new(
            &self.layout,
            &self.modules,
            resolver,
            self.index.as_ref(),
            self.contents(),
        )
    }

    /// For questions about sites and types.
    pub(crate) fn resolver(&self) -> Resolver<'_> {
        Resolver::new(&self.process, &self.images)
    }

    /// The report of it.
    pub(crate) fn report(&self) -> ProcessReport {
        let mut report = ProcessReport::new(&self.resolver(), &self.circumstances);
        report.recording = None;
        report
    }

    /// Whether the tables are to tell of the highest point.
    pub(crate) fn is_at_peak(&self) -> bool {
        self.saved.as_ref().is_some_and(|saved| saved.at_peak)
    }

    /// Whether its blocks are those of the highest point, too.
    pub(crate) fn has_blocks_at_peak(&self) -> bool {
        self.saved
            .as_ref()
            .is_some_and(|saved| saved.blocks_at_peak)
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
        Info {
            blocks_at_peak: self.has_blocks_at_peak(),
            ..info(&self.circumstances, self.is_at_peak())
        }
    }
}

/// What a snapshot says beside the index.
pub(crate) fn info(circumstances: &Circumstances, at_peak: bool) -> Info {
    Info {
        circumstances: circumstances.clone(),
        at_peak,
        blocks_at_peak: false,
        no_contents: None,
        images: Vec::new(),
    }
}
