//! `pointee sites`: *which instructions of this file allocate, and what?*

use super::sites_explain;
use crate::configuration;
use crate::images;
use crate::output::{Format, Listing, json, print};
use anyhow::Result;
use pointee_inspect::report::PlaceRow;
use pointee_inspect::resolve::{evidence_in_words, position_at, shape_of};
use pointee_inspect::text::{Style, grouped, short};
use pointee_meta::{cache, sites};
use pointee_model::addr::LinkAddr;
use pointee_model::evidence::{Role, Verdict};
use pointee_model::image::{Image, SiteRecord, site_flags};
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

/// List every allocation site of a binary, with its type and how that is known
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pointee sites /usr/bin/jq
  pointee sites ./server --format json | jq '.[] | select(.type == null)'
  pointee sites --explain 0x8d0e6 ./server
  pointee sites --explain object.c:43 ./server

Nothing is run. Types need debug info, wherever it is installed.")]
pub(crate) struct Arguments {
    /// An executable or a library.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Look at no source text, only at code and debug info.
    #[arg(long)]
    no_sources: bool,
    /// A folder in which the source files that debug info names are looked for too; may be repeated.
    #[arg(long, value_name = "DIR")]
    source_root: Vec<PathBuf>,
    /// Show the reasoning for one site, step by step: the address of its call, or FILE:LINE.
    #[arg(long, value_name = "SITE")]
    explain: Option<String>,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Serialize)]
struct Row {
    module: String,
    offset: String,
    function: Option<String>,
    file: Option<String>,
    line: Option<u32>,
    callee: String,
    r#type: Option<String>,
    /// The part that the type plays in the allocation.
    role: &'static str,
    verdict: &'static str,
    evidence: Vec<String>,
    wrapper: bool,
    inlined: Vec<PlaceRow>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let configured = configuration::options();
    let options = cache::Options {
        sites: sites::Options {
            sources: !arguments.no_sources,
            source_roots: arguments.source_root.clone(),
            ..configured.sites
        },
        ..configured
    };
    if let Some(site) = &arguments.explain {
        return sites_explain::explain(&arguments.file, site, &options);
    }
    let loaded = images::of_file(&arguments.file, &options)?;
    let image = loaded.image();
    let module = arguments.file.to_string_lossy();
    let rows: Vec<Row> = image
        .sites
        .iter()
        .filter(|site| !site.stands_in())
        .map(|site| row(&image, &module, site))
        .collect();
    let output = match arguments.listing.format {
        Format::Json => json(&rows)?,
        Format::Text => render(&rows, arguments.listing.style_of_stdout()),
    };
    print(&output)
}

fn row(image: &Image<'_>, module: &str, site: &SiteRecord) -> Row {
    // The last byte of the call: the address after it may be another line's.
    let position = position_at(image, LinkAddr(site.return_address.wrapping_sub(1)));
    Row {
        module: module.to_owned(),
        offset: format!("{:#x}", site.call),
        function: position.place.function,
        file: position.place.file,
        line: position.place.line,
        callee: image.string(site.callee).to_owned(),
        r#type: shape_of(site, 0).map(|shape| shape.name(image)),
        role: Role::from_byte(site.role).word(),
        verdict: Verdict::from_byte(site.verdict).word(),
        evidence: evidence_in_words(image, site),
        wrapper: site.flags & site_flags::WRAPPER != 0,
        inlined: position.inlined.iter().map(PlaceRow::from).collect(),
    }
}

fn render(rows: &[Row], style: Style) -> String {
    let mut out = String::new();
    let wrapped = rows.iter().filter(|row| row.wrapper).count();
    let typed = rows
        .iter()
        .filter(|row| !row.wrapper && row.r#type.is_some())
        .count();
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "{} allocation sites: {} in wrappers; {} of the others have a type",
        style.bold(&grouped(rows.len() as u64)),
        grouped(wrapped as u64),
        grouped(typed as u64),
    );
    for row in rows.iter().take(style.rows) {
        let function = row.function.as_deref().unwrap_or("?");
        let place = match (&row.file, row.line) {
            (Some(file), Some(line)) => format!("{function} {}:{line}", short(file, 2)),
            _ => function.to_owned(),
        };
        let r#type = match &row.r#type {
            Some(name) => style.kind(name),
            None if row.wrapper => style.faint("(its caller's)"),
            None => style.faint("(not known)"),
        };
        let _ = writeln!(
            out,
            "{:>10}  {place}  {}  {type}  {}",
            row.offset,
            row.callee,
            style.faint(&row.evidence.join(", ")),
            r#type = r#type,
        );
    }
    if rows.len() > style.rows {
        let _ = writeln!(
            out,
            "{:>10}  {} more (--all shows them)",
            "…",
            rows.len() - style.rows
        );
    }
    out
}
