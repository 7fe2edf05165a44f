//! `pointee what`: *what lies at this address?*

use crate::configuration;
use crate::output::{Format, Listing, json, print};
use crate::subject::{Subject, Wanted};
use anyhow::Result;
use pointee_inspect::lookup::{self, Answer, Link, SiteAnswer};
use pointee_inspect::report::PlaceRow;
use pointee_inspect::space::Stop;
use pointee_inspect::text::{Style, share, short};
use pointee_model::addr::Alleged;
use std::fmt::Write;

/// Tell what lies at an address: allocation, type, field, where it was made, its value
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pointee what 4711 0x55d0c0ffee10
  pointee what --stop 4711 0x7ffd3a2b1c40       a variable of a thread that runs
  pointee what crash.pointee 0x7f1200001230 0x7f1200001238 --format json

Any byte will do, of a heap block, a static or thread-local variable, a local variable of any
thread's frame, a literal, a function, an argument, a mapped file. Values are shown when the memory
can be read: of a running process, or of a snapshot saved with --memory. A process that is not
recorded has no known blocks, only what glibc's chunk headers tell.

Nothing is stopped, unless with --stop: then each thread is, for some microseconds, and a wait in
epoll_wait may end early (signal(7)).")]
pub(crate) struct Arguments {
    /// A process id, or a snapshot file.
    #[arg(value_name = "PID|SNAPSHOT")]
    subject: String,
    /// Addresses: hexadecimal with 0x, decimal without.
    #[arg(required = true, value_name = "ADDRESS", value_parser = address)]
    addresses: Vec<u64>,
    /// Stop each thread for a moment, so that the frames of those that run are known too.
    #[arg(long)]
    stop: bool,
    #[command(flatten)]
    listing: Listing,
}

fn address(text: &str) -> Result<u64, &'static str> {
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "expected an address: decimal digits, or hexadecimal ones after 0x")
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let stop = match arguments.stop {
        true => Stop::Briefly,
        false => Stop::Never,
    };
    let wanted = Wanted::At(&arguments.addresses);
    let subject = Subject::survey(&arguments.subject, stop, wanted)?;
    let resolver = subject.resolver();
    let space = subject.space(&resolver);
    let answer = |address: &u64| {
        let mut answer = lookup::what(&space, Alleged(*address));
        if let Some(site) = &mut answer.site {
            let called = site.callee.as_deref().unwrap_or(&site.entry);
            site.freed_by = configuration::config().freed_by(called);
        }
        answer
    };
    let answers: Vec<Answer> = arguments.addresses.iter().map(answer).collect();
    let output = match arguments.listing.format {
        Format::Json => json(&answers)?,
        Format::Text => {
            let style = arguments.listing.style_of_stdout();
            let unmapped = match subject.layout.mappings.is_empty() {
                true => "in no block; nothing else was saved, for the process had ended",
                false => "nothing is mapped there",
            };
            let texts = answers
                .iter()
                .map(|answer| render(answer, subject.why_no_contents(), unmapped, style));
            let note = subject.is_at_peak().then(|| moment_of_blocks(&subject));
            let texts = note.into_iter().chain(texts);
            texts.collect::<Vec<_>>().join("\n")
        }
    };
    print(&output)
}

/// When the blocks of a snapshot of the peak were alive.
fn moment_of_blocks(subject: &Subject) -> String {
    if subject.has_blocks_at_peak() {
        let process = &subject.process;
        let seen = share(process.total.peak.bytes, process.peak_bytes);
        return format!("Blocks are those alive at the highest point (seen at {seen} of it).\n");
    }
    "Blocks are as at the end of the run: those of the highest point could not be kept. What was alive then is known by \
     type and site (`pointee histo`), not by address.\n"
        .to_owned()
}

fn render(answer: &Answer, no_contents: Option<&str>, unmapped: &str, style: Style) -> String {
    let mut out = String::new();
    let mut line = |label: &str, text: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "  {}{text}", style.faint(&format!("{label:<9} ")));
    };
    let module = answer.module.as_deref().map_or("?", |path| short(path, 1));
    match answer.kind {
        None => line("", unmapped),
        Some(kind) => head(answer, kind, module, &mut line),
    }
    if answer.kind == Some("heap") || answer.r#type.is_some() {
        line(
            "type",
            &answer
                .r#type
                .as_deref()
                .map_or_else(|| style.faint("not known"), |name| style.kind(name)),
        );
    }
    if let (Some(field), Some(r#type)) = (&answer.field, &answer.field_type) {
        line("field", &format!("{field}: {}", style.kind(r#type)));
    }
    if let Some(value) = &answer.value {
        line("value", value);
    }
    if let Some(whole) = answer
        .whole
        .as_ref()
        .filter(|whole| Some(*whole) != answer.value.as_ref())
    {
        line("whole", whole);
    }
    if let (Some(reason), Some(_)) = (no_contents, &answer.r#type) {
        line("value", &style.faint(&format!("not there: {reason}")));
    }
    if let Some(code) = &answer.code {
        line("code", &place(code));
        for inlined in &answer.inlined {
            line("  inlined", &format!("with {}", place(inlined)));
        }
    }
    if !answer.in_registers.is_empty() {
        line("registers", &answer.in_registers.join(", "));
    }
    if let Some(site) = &answer.site {
        site_lines(site, module, &mut line);
    }
    for link in &answer.chain {
        line("in", &chain_link(link));
    }
    if let Some(note) = &answer.note {
        line("note", &style.warn(note));
    }
    format!("{}\n{out}", style.bold(&answer.address))
}

/// What it is, in a line.
fn head(answer: &Answer, kind: &str, module: &str, line: &mut impl FnMut(&str, &str)) {
    let base = answer.base.as_deref().unwrap_or("?");
    let size = answer
        .size
        .map_or_else(|| "?".to_owned(), |size| size.to_string());
    let offset = answer.offset.unwrap_or(0);
    let extent = format!("{base}, {size} bytes; the address lies {offset} bytes in");
    if kind == "heap" {
        return line(
            "block",
            &format!("{base}, {size} bytes, alive; the address lies {offset} bytes in"),
        );
    }
    let mut text = String::new();
    if let Some(name) = &answer.name {
        text.push_str(name);
        text.push(' ');
    }
    if let Some(thread) = &answer.thread {
        text.push_str(&match answer.frame {
            Some(frame) => format!(
                "in frame #{frame} of thread {} {}, ",
                thread.id, thread.name
            ),
            None => format!("of thread {} {}, ", thread.id, thread.name),
        });
    } else if answer.module.is_some() {
        text.push_str(&format!("in {module}, "));
    } else if !text.is_empty() {
        text.push_str("at ");
    }
    text.push_str(&extent);
    line(kind, &text);
}

fn place(place: &PlaceRow) -> String {
    let function = place.function.as_deref().unwrap_or("?");
    match (&place.file, place.line) {
        (Some(file), Some(number)) => format!("{function} at {file}:{number}"),
        _ => function.to_owned(),
    }
}

fn chain_link(link: &Link) -> String {
    let name = link.name.as_deref().unwrap_or("?");
    let permissions = link
        .permissions
        .as_ref()
        .map_or_else(String::new, |permissions| format!(", {permissions}"));
    let mapper = link.mapped_by.as_ref();
    let mapper = mapper.map_or_else(String::new, |by| format!(", by {}", by.in_words()));
    let offset = link
        .file_offset
        .map_or_else(String::new, |offset| format!(" from {offset:#x}"));
    format!(
        "{} {name}{offset}: {}, {} bytes{permissions}{mapper}",
        link.kind, link.base, link.size
    )
}

fn site_lines(site: &SiteAnswer, module: &str, line: &mut impl FnMut(&str, &str)) {
    let function = site.function.as_deref().unwrap_or("?");
    let place_of = match (&site.file, site.line) {
        (Some(file), Some(number)) => {
            format!("{function} at {file}:{number} ({module}+{})", site.offset)
        }
        _ => format!("{function} ({module}+{})", site.offset),
    };
    line("allocated", &place_of);
    for inlined in &site.inlined {
        line("  inlined", &format!("with {}", place(inlined)));
    }
    if !site.wrappers.is_empty() {
        line("through", &site.wrappers.join(" ← "));
    }
    let freed_by = site
        .freed_by
        .as_ref()
        .map_or_else(String::new, |name| format!("; to be freed by {name}"));
    line(
        "allocator",
        &format!("{}, by {}{freed_by}", site.allocator, site.entry),
    );
    if !site.evidence.is_empty() {
        line(
            "evidence",
            &format!("{} ({})", site.evidence.join(", "), site.verdict),
        );
    }
}
