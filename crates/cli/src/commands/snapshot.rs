//! `pointee snapshot`: *how is it now?*, to be asked later.

use crate::saving;
use crate::subject::{Subject, Wanted};
use anyhow::{Result, bail};
use pointee_inspect::running::FindError;
use pointee_inspect::snapshot::{self, Heap};
use pointee_inspect::space::Stop;
use std::path::PathBuf;

/// Save what is known of a running process to a file
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pointee snapshot 4711 heap.pointee
  pointee snapshot --memory 4711 heap.pointee
  pointee histo heap.pointee               on this machine or on another

The process is read from outside and goes on meanwhile: blocks that come and go while it is read
may be missing or doubled.")]
pub(crate) struct Arguments {
    /// A process id (or a snapshot, to be saved anew with the images of today).
    #[arg(value_name = "PID|SNAPSHOT")]
    subject: String,
    /// The file to write.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Save the contents of heap, stacks and variables too.
    #[arg(long)]
    memory: bool,
    /// Stop each thread for a moment, so that the frames of those that run are saved too.
    #[arg(long)]
    stop: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let stop = match arguments.stop {
        true => Stop::Briefly,
        false => Stop::Never,
    };
    let subject = Subject::survey(&arguments.subject, stop, Wanted::All)?;
    let Some(index) = &subject.index else {
        bail!(FindError::NotRecorded(subject.circumstances.pid));
    };
    let heap = match (&subject.memory, arguments.memory) {
        (_, false) => Heap::Unwanted,
        (Some(memory), true) => Heap::Of(memory),
        (None, true) => Heap::Gone,
    };
    saving::write(&arguments.file, |out| {
        snapshot::write(
            out,
            subject.info(),
            index,
            &subject.process,
            &subject.images,
            &subject.layout,
            &heap,
        )
    })
}
