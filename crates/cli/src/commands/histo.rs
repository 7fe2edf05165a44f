//! `pointee histo`: *what is this heap made of?*

use crate::output::{Format, Listing, json, print};
use crate::subject::Subject;
use anyhow::Result;
use pointee_inspect::report::Grouping;
use pointee_inspect::text;

/// Show the heap of a running process or of a snapshot
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pointee histo 4711                    by type, and where it was allocated
  pointee histo heap.pointee --by site --all
  pointee histo 4711 --format json | jq '.types[0]'

The process must run under `pointee run`, or have the runtime preloaded (see runtime-path). It is
read from outside; nothing runs in it, and it is not stopped.")]
pub(crate) struct Arguments {
    /// A process id, or a snapshot file.
    #[arg(value_name = "PID|SNAPSHOT")]
    subject: String,
    /// What one row stands for.
    #[arg(long, value_enum, default_value = "type")]
    by: By,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    Type,
    Site,
    Allocator,
    Function,
    Module,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let subject = Subject::open(&arguments.subject)?;
    let report = subject.report();
    let listing = &arguments.listing;
    let mut style = listing.style_of_stdout();
    style.at_peak = subject.is_at_peak();
    let grouped = |grouping, column: &str| {
        let groups = report.grouped(grouping);
        match listing.format {
            Format::Json => json(&report.with_groups(&groups)),
            Format::Text => Ok(text::render_groups(
                &report,
                &format!("The heap by {column}"),
                column,
                &groups,
                style,
            )),
        }
    };
    let output = match (arguments.by, listing.format) {
        (By::Type | By::Site, Format::Json) => json(&report)?,
        (By::Type, Format::Text) => text::render(&report, style),
        (By::Site, Format::Text) => text::render_sites(&report, style),
        (By::Allocator, _) => grouped(Grouping::Allocator, "allocator")?,
        (By::Function, _) => grouped(Grouping::Function, "function")?,
        (By::Module, _) => grouped(Grouping::Module, "module")?,
    };
    print(&output)
}
