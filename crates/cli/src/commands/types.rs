//! `pointee types`: *which types do these objects have, and of which do they disagree?*

use crate::configuration;
use crate::images;
use crate::output::{Format, Listing, json, print};
use crate::subject::{Subject, Wanted};
use anyhow::Result;
use pointee_inspect::space::Stop;
use pointee_inspect::text::{Style, grouped, short};
use pointee_inspect::types::{Conflict, TypeRow, conflicts, unique};
use pointee_meta::cache::LoadedImage;
use pointee_model::image::Image;
use std::fmt::Write;
use std::io::Read;
use std::path::Path;

/// List the types of binaries, of all that a process has loaded, or of a snapshot
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pointee types /usr/bin/git
  pointee types --name commit ./git     with the members of each
  pointee types --conflicts 4711        same name, different layout, in two of its objects
  pointee types --format json libfoo.so.1 libfoo.so.2

A type that several objects define alike is listed once. Debug info is needed, wherever it is installed.")]
pub(crate) struct Arguments {
    /// Executables and libraries, process ids, snapshot files.
    #[arg(value_name = "FILE|PID|SNAPSHOT", required = true)]
    subjects: Vec<String>,
    /// Only names that two objects define, each in its own way.
    #[arg(long)]
    conflicts: bool,
    /// Only types whose name holds this text; shows their members.
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    #[command(flatten)]
    listing: Listing,
}

/// What holds the images of one subject.
enum Opened {
    File(String, LoadedImage),
    Process(Box<Subject>),
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let opened: Vec<Opened> = arguments
        .subjects
        .iter()
        .map(|name| open(name))
        .collect::<Result<_>>()?;
    let mut objects: Vec<(String, Image<'_>)> = Vec::new();
    for one in &opened {
        match one {
            Opened::File(path, loaded) => objects.push((path.clone(), loaded.image())),
            Opened::Process(subject) => {
                let views = subject.images.views().into_iter();
                let modules = subject.process.modules.iter().zip(views);
                objects.extend(
                    modules.filter_map(|(module, view)| Some((module.path.clone(), view?))),
                );
            }
        }
    }
    let listing = &arguments.listing;
    let style = listing.style_of_stdout();
    let wanted = |name: &str| {
        let text = arguments.name.as_deref();
        text.is_none_or(|text| name.contains(text))
    };
    let output = if arguments.conflicts {
        let mut rows = conflicts(&objects);
        rows.retain(|row| wanted(&row.name));
        match listing.format {
            Format::Json => json(&rows)?,
            Format::Text => render_conflicts(&rows, objects.len(), style),
        }
    } else {
        let mut rows = unique(&objects);
        rows.retain(|row| wanted(&row.name));
        match listing.format {
            Format::Json => json(&rows)?,
            Format::Text => render(&rows, arguments.name.is_some(), style),
        }
    };
    print(&output)
}

fn open(name: &str) -> Result<Opened> {
    let path = Path::new(name);
    if name.parse::<u32>().is_err() && is_elf(path) {
        let options = configuration::options();
        let loaded = images::of_file(path, &options)?;
        return Ok(Opened::File(name.to_owned(), loaded));
    }
    let subject = Subject::survey(name, Stop::Never, Wanted::All)?;
    Ok(Opened::Process(Box::new(subject)))
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == *b"\x7fELF"
}

fn render(rows: &[TypeRow], members: bool, style: Style) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(out, "{} types", style.bold(&grouped(rows.len() as u64)));
    for row in rows.iter().take(style.rows) {
        let size = row.size.map_or_else(|| "?".to_owned(), grouped);
        let modules: Vec<&str> = row.modules.iter().map(|path| short(path, 1)).collect();
        let _ = writeln!(
            out,
            "{size:>10}  {}  {}",
            style.kind(&row.name),
            style.faint(&modules.join(", ")),
        );
        for member in row.members.iter().filter(|_| members) {
            let size = member.size.map_or_else(|| "?".to_owned(), grouped);
            let bits = match (member.bit_offset, member.bit_size) {
                (Some(first), Some(bits)) => format!(" : {bits} from bit {first}"),
                _ => String::new(),
            };
            let _ = writeln!(
                out,
                "            {:>6} {size:>6}  {}{bits}  {}",
                member.offset,
                member.name,
                style.faint(&member.r#type),
            );
        }
    }
    more(&mut out, rows.len(), style);
    out
}

fn render_conflicts(rows: &[Conflict], objects: usize, style: Style) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "{} names that {objects} objects disagree about",
        style.bold(&grouped(rows.len() as u64))
    );
    for row in rows.iter().take(style.rows) {
        let _ = writeln!(out, "  {}: {}", style.kind(&row.name), row.difference);
        for definition in &row.definitions {
            let modules: Vec<&str> = definition
                .modules
                .iter()
                .map(|path| short(path, 1))
                .collect();
            let size = definition.size.map_or_else(|| "?".to_owned(), grouped);
            let _ = writeln!(out, "{size:>10}  {}", modules.join(", "));
        }
    }
    more(&mut out, rows.len(), style);
    out
}

fn more(out: &mut String, rows: usize, style: Style) {
    if rows > style.rows {
        let hidden = rows - style.rows;
        // Writing to a string does not fail.
        let _ = writeln!(out, "{:>10}  {hidden} more (--all shows them)", "…");
    }
}
