//! `pointee what`: *what lies at this address?*

use crate::output::{Format, Listing, json, print};
use crate::subject::Subject;
use anyhow::Result;
use pointee_inspect::lookup::{self, Answer, SiteAnswer};
use pointee_inspect::text::{Style, short};
use pointee_model::addr::Alleged;
use std::fmt::Write;

/// Tell what lies at an address: allocation, type, field, where it was made, its value
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pointee what 4711 0x55d0c0ffee10
  pointee what crash.pointee 0x7f1200001230 0x7f1200001238 --format json

Any byte of a block will do, not only its first. Values are shown when the memory can be read: of a
running process, or of a snapshot saved with --memory.")]
pub(crate) struct Arguments {
    /// A process id, or a snapshot file.
    #[arg(value_name = "PID|SNAPSHOT")]
    subject: String,
    /// Addresses: hexadecimal with 0x, decimal without.
    #[arg(required = true, value_name = "ADDRESS", value_parser = address)]
    addresses: Vec<u64>,
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
    let subject = Subject::open(&arguments.subject)?;
    let resolver = subject.resolver();
    let answer = |address: &u64| {
        lookup::what(
            &subject.index,
            &resolver,
            subject.contents(),
            Alleged(*address),
        )
    };
    let answers: Vec<Answer> = arguments.addresses.iter().map(answer).collect();
    let output = match arguments.listing.format {
        Format::Json => json(&answers)?,
        Format::Text => {
            let style = arguments.listing.style_of_stdout();
            let texts = answers
                .iter()
                .map(|answer| render(answer, subject.why_no_contents(), style));
            let note = subject.is_at_peak().then_some(OF_THE_END);
            let texts = note.map(str::to_owned).into_iter().chain(texts);
            texts.collect::<Vec<_>>().join("\n")
        }
    };
    print(&output)
}

/// A snapshot of the peak holds what was alive then by path; block by block it holds the end.
const OF_THE_END: &str = "Blocks are as at the end of the run; what was alive at the highest is known by type and site \
                          (`pointee histo`), not by address.\n";

fn render(answer: &Answer, no_contents: Option<&str>, style: Style) -> String {
    let mut out = String::new();
    let mut line = |label: &str, text: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "  {}{text}", style.faint(&format!("{label:<10}")));
    };
    let size = answer
        .size
        .map_or_else(|| "?".to_owned(), |size| size.to_string());
    let base = answer.base.as_deref().unwrap_or("?");
    let module = answer.module.as_deref().map_or("?", |path| short(path, 1));
    match answer.kind {
        None => line("", "in no block, variable or function that is known"),
        Some("heap") => {
            let offset = answer.offset.unwrap_or(0);
            line(
                "block",
                &format!("{base}, {size} bytes, alive; the address lies {offset} bytes in"),
            );
        }
        Some("module") => line("file", module),
        Some(kind) => {
            let name = answer.name.as_deref().unwrap_or("?");
            let offset = answer.offset.unwrap_or(0);
            line(
                kind,
                &format!(
                    "{name} in {module}, {base}, {size} bytes; the address lies {offset} bytes in"
                ),
            );
        }
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
    if let Some(site) = &answer.site {
        site_lines(site, module, &mut line);
    }
    format!("{}\n{out}", style.bold(&answer.address))
}

fn site_lines(site: &SiteAnswer, module: &str, line: &mut impl FnMut(&str, &str)) {
    let function = site.function.as_deref().unwrap_or("?");
    let place = match (&site.file, site.line) {
        (Some(file), Some(number)) => {
            format!("{function} at {file}:{number} ({module}+{})", site.offset)
        }
        _ => format!("{function} ({module}+{})", site.offset),
    };
    line("allocated", &place);
    for inlined in &site.inlined {
        let function = inlined.function.as_deref().unwrap_or("?");
        if let (Some(file), Some(number)) = (&inlined.file, inlined.line) {
            line("  inlined", &format!("with {function} at {file}:{number}"));
        }
    }
    if !site.wrappers.is_empty() {
        line("through", &site.wrappers.join(" ← "));
    }
    line(
        "allocator",
        &format!("{}, by {}", site.allocator, site.entry),
    );
    if !site.evidence.is_empty() {
        line(
            "evidence",
            &format!("{} ({})", site.evidence.join(", "), site.verdict),
        );
    }
}
