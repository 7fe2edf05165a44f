//! `pointee maps`: *what is the whole address space made of?*

use crate::output::{Format, Listing, json, print};
use crate::subject::{Subject, Wanted};
use anyhow::{Result, bail};
use pointee_inspect::census::{Census, KindRow, MappingRow, census};
use pointee_inspect::space::{Mapper, Stop};
use pointee_inspect::text::{Style, bytes, grouped, short};
use std::fmt::Write;

/// Sum up all mapped bytes by the deepest thing they belong to
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pointee maps 4711
  pointee maps --all 4711               every mapping, not only the largest
  pointee maps 4711 --format json | jq .kinds

Every mapped byte counts once, under the deepest allocation that holds it: a heap block, a variable,
a local variable of a frame, or a part of an allocator's own. The process need not be recorded, but
then its heap is known only as far as glibc's chunk headers tell.")]
pub(crate) struct Arguments {
    /// A process id, or a snapshot file.
    #[arg(value_name = "PID|SNAPSHOT")]
    subject: String,
    /// Stop each thread for a moment, so that the frames of those that run are known too.
    #[arg(long)]
    stop: bool,
    #[command(flatten)]
    listing: Listing,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let stop = match arguments.stop {
        true => Stop::Briefly,
        false => Stop::Never,
    };
    let subject = Subject::survey(&arguments.subject, stop, Wanted::All)?;
    if subject.layout.mappings.is_empty() {
        bail!(
            "{}: saved without an address space (the process had ended)",
            arguments.subject
        );
    }
    let resolver = subject.resolver();
    let space = subject.space(&resolver);
    let census = census(&space, subject.circumstances.pid);
    let output = match arguments.listing.format {
        Format::Json => json(&census)?,
        Format::Text => render(&census, arguments.listing.style_of_stdout()),
    };
    print(&output)
}

fn render(census: &Census, style: Style) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(out, "{}", style.bold("Bytes by kind"));
    for row in &census.kinds {
        let _ = writeln!(
            out,
            "  {:>12} {:>10}  {}",
            bytes(row.bytes),
            grouped(row.leaves),
            style.kind(row.kind),
        );
    }
    let _ = writeln!(out, "  {:>12} mapped in all", bytes(census.mapped_bytes));
    let shares = &census.shares;
    let _ = writeln!(out, "\n{}", style.bold("Known only roughly"));
    share(
        &mut out,
        shares.writable_static_bytes_by_section_only,
        shares.writable_static_bytes,
        "writable static bytes, with debug info, by section only",
    );
    share(
        &mut out,
        shares.arena_bytes_by_mapping_only,
        shares.arena_bytes,
        "arena bytes, by mapping only",
    );
    share(
        &mut out,
        shares.frames_without_function,
        shares.frames,
        "frames, in files with debug info, without function",
    );
    share(
        &mut out,
        shares.other_frames_without_function,
        shares.other_frames,
        "frames, in other code, without function",
    );
    for frame in &census.unnamed_frames {
        let _ = writeln!(out, "{}", style.faint(&format!("  {frame}")));
    }
    for cut in &census.cut_stacks {
        let _ = writeln!(out, "{}", style.warn(&format!("  {cut}")));
    }
    mappers(&mut out, census, style);
    let _ = writeln!(out, "\n{}", style.bold("Mappings"));
    let mut mappings: Vec<&MappingRow> = census.mappings.iter().collect();
    if style.rows < mappings.len() {
        mappings.sort_by_key(|mapping| std::cmp::Reverse(mapping.bytes));
    }
    for mapping in mappings.iter().take(style.rows) {
        let kinds: Vec<String> = mapping.kinds.iter().take(6).map(kind).collect();
        let path = match (mapping.path.as_str(), &mapping.mapped_by) {
            ("", Some(mapper)) => format!("by {}", mapper.in_words()),
            ("", None) => "anonymous".to_owned(),
            (path, _) => short(path, 1).to_owned(),
        };
        let _ = writeln!(
            out,
            "  {:>14} {:>12} {} {}  {}",
            mapping.start,
            bytes(mapping.bytes),
            mapping.permissions,
            path,
            style.faint(&kinds.join(", ")),
        );
    }
    if let Some(left @ 1..) = mappings.len().checked_sub(style.rows) {
        let _ = writeln!(out, "  {left} more: --all");
    }
    out
}

/// Who mapped what is known by nothing else, and how much was mapped unseen.
fn mappers(out: &mut String, census: &Census, style: Style) {
    let pages = census.pages;
    if pages.as_seen == 0 {
        // Not recorded.
        return;
    }
    let title = style.bold("Memory known by who mapped it only");
    let _ = writeln!(out, "\n{title}");
    for row in census.mapped_by.iter().take(style.rows) {
        let name = row.mapper.as_ref().map(Mapper::in_words);
        let _ = writeln!(
            out,
            "  {:>12} {:>10}  {}",
            bytes(row.bytes),
            grouped(row.leaves),
            name.as_deref().unwrap_or("(not seen)"),
        );
    }
    share(
        out,
        pages.pages - pages.as_seen,
        pages.pages,
        "pages mapped, or changed, by calls that were not seen",
    );
}

fn kind(row: &KindRow) -> String {
    format!("{} {}", row.kind, bytes(row.bytes))
}

fn share(out: &mut String, part: u64, whole: u64, what: &str) {
    let percent = match whole {
        0 => 0.0,
        _ => part as f64 * 100.0 / whole as f64,
    };
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "  {percent:>11.2}% {what} ({} of {})",
        grouped(part),
        grouped(whole)
    );
}
