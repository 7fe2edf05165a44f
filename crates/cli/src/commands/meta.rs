//! `pointee meta`: *what is known of this file?*

use crate::configuration;
use crate::images;
use crate::output::{Format, Listing, json, print};
use anyhow::{Context, Result, bail};
use pointee_inspect::text::{Style, bytes, grouped};
use pointee_meta::cache::{self, LoadedImage, Origin};
use pointee_meta::elf::Elf;
use pointee_model::image::{NO_TYPE, header_flags, site_flags};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Make the metadata image of a file, and say what is in it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pointee meta /usr/bin/python3 /lib/x86_64-linux-gnu/libc.so.6
  pointee meta --embed server.with-image ./server

Images are made when they are first needed and kept in the user's cache directory; this makes them
beforehand. An embedded image lies in a section that is not loaded, and goes wherever the file goes.")]
pub(crate) struct Arguments {
    /// Executables and libraries.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Write a copy of the one FILE that carries its image.
    #[arg(long, value_name = "OUT")]
    embed: Option<PathBuf>,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Serialize)]
struct Row {
    file: String,
    build_id: Option<String>,
    /// The build ID, or what stands in for it.
    identity: String,
    debug_info: bool,
    sources: bool,
    /// `embedded`, `cached` or `made`.
    origin: &'static str,
    /// Where the image lies.
    image: Option<String>,
    bytes: usize,
    types: usize,
    functions: usize,
    sites: usize,
    typed_sites: usize,
    wrapper_sites: usize,
    /// Functions that hand out memory to other files.
    exports: usize,
    /// Functions of other files that are known to, by these files' images.
    imports: usize,
    variables: usize,
    diagnostics: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let options = configuration::options();
    if let Some(out) = &arguments.embed {
        let [file] = arguments.files.as_slice() else {
            bail!("--embed takes one file");
        };
        let (map, learned) = images::alone(file, &options)?;
        cache::embed(map.file(0), &learned, out, &options)
            .with_context(|| file.display().to_string())?;
        return Ok(());
    }
    let mut rows = Vec::new();
    for file in &arguments.files {
        let loaded = images::of_file(file, &options)?;
        let elf = Elf::open(file).with_context(|| file.display().to_string())?;
        rows.push(row(file, &elf, &loaded));
    }
    let output = match arguments.listing.format {
        Format::Json => json(&rows)?,
        Format::Text => {
            let style = arguments.listing.style_of_stdout();
            rows.iter()
                .map(|row| render(row, style))
                .collect::<Vec<_>>()
                .join("\n")
        }
    };
    print(&output)
}

fn row(file: &Path, elf: &Elf, loaded: &LoadedImage) -> Row {
    let image = loaded.image();
    let has = |flag| image.header().flags & flag != 0;
    let (origin, path) = match loaded.origin() {
        Origin::Embedded => ("embedded", None),
        Origin::Cached(path) => ("cached", Some(path)),
        Origin::Made(path) => ("made", path.as_ref()),
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let build_id: String = hex(elf.build_id());
    let is_wrapper = |flags: u16| flags & site_flags::WRAPPER != 0;
    Row {
        file: file.to_string_lossy().into_owned(),
        build_id: Some(build_id).filter(|id| !id.is_empty()),
        identity: hex(elf.identity()),
        debug_info: has(header_flags::HAS_DWARF),
        sources: has(header_flags::HAS_SOURCES),
        origin,
        image: path.map(|path| path.to_string_lossy().into_owned()),
        bytes: loaded.bytes().len(),
        types: image.types.len(),
        functions: image.functions.len(),
        sites: image.sites.len(),
        typed_sites: image
            .sites
            .iter()
            .filter(|site| site.r#type != NO_TYPE && !is_wrapper(site.flags))
            .count(),
        wrapper_sites: image
            .sites
            .iter()
            .filter(|site| is_wrapper(site.flags))
            .count(),
        exports: image.exports.len(),
        imports: image.imports.len(),
        variables: image.variables.len(),
        diagnostics: loaded.diagnostics().to_vec(),
    }
}

fn render(row: &Row, style: Style) -> String {
    let mut out = String::new();
    let mut line = |label: &str, text: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "  {}{text}", style.faint(&format!("{label:<12}")));
    };
    let debug_info = match (row.debug_info, row.sources) {
        (true, true) => "with debug info and sources",
        (true, false) => "with debug info",
        (false, _) => "no debug info: symbols only",
    };
    let stand_in = || format!("none; {} stands in for it", row.identity);
    line("build ID", &row.build_id.clone().unwrap_or_else(stand_in));
    line("made from", debug_info);
    line(
        "image",
        &format!(
            "{}, {}: {}",
            bytes(row.bytes as u64),
            row.origin,
            row.image.as_deref().unwrap_or("not stored")
        ),
    );
    line(
        "holds",
        &format!(
            "{} types, {} functions, {} variables",
            grouped(row.types as u64),
            grouped(row.functions as u64),
            grouped(row.variables as u64)
        ),
    );
    line(
        "sites",
        &format!(
            "{}: {} with a type, {} in wrappers",
            grouped(row.sites as u64),
            grouped(row.typed_sites as u64),
            grouped(row.wrapper_sites as u64)
        ),
    );
    line(
        "allocators",
        &format!(
            "{} exported, {} of other files learned",
            grouped(row.exports as u64),
            grouped(row.imports as u64)
        ),
    );
    for diagnostic in row.diagnostics.iter().take(style.rows) {
        line("note", diagnostic);
    }
    format!("{}\n{out}", style.bold(&row.file))
}
