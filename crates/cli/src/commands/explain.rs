//! `pointee explain`: *what was changed in this process, and why?* (Of an executable: [`explain_file`].)

use super::explain_file;
use crate::output::{Format, Listing, json, print};
use crate::perf_map;
use crate::subject::Subject;
use anyhow::{Context, Result, bail};
use pointee_inspect::explain::{Explanation, HookRow};
use pointee_inspect::text::{Style, bytes, grouped, short};
use std::fmt::Write;
use std::path::Path;

/// List every hook with its reason, and every byte of code that differs from the files
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pointee explain 4711
  pointee explain 4711 --format json | jq '.differences[] | select(.hook == null)'
  pointee explain heap.pointee          the hooks on record; a snapshot has no code to compare
  pointee explain ./server              which functions allocate for their callers, why, and what
                                        the configuration says of them

Of a running process all code is compared with the files it was loaded from, and every resolved
binding is looked at. What no hook explains is listed as unexplained.")]
pub(crate) struct Arguments {
    /// A process id, a snapshot file, or an executable or library.
    #[arg(value_name = "PID|SNAPSHOT|FILE")]
    subject: String,
    /// Of a process: also write the names of its hooks for perf, to /tmp/perf-PID.map.
    #[arg(long)]
    perf_map: bool,
    #[command(flatten)]
    listing: Listing,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if explain_file::is_elf(Path::new(&arguments.subject)) {
        return explain_file::run(Path::new(&arguments.subject), &arguments.listing);
    }
    let subject = Subject::open(&arguments.subject)?;
    if arguments.perf_map {
        if subject.memory.is_none() {
            bail!("--perf-map is about a process that runs");
        }
        let pid = subject.circumstances.pid;
        perf_map::write(pid, &subject.process.hooks)
            .with_context(|| format!("cannot write /tmp/perf-{pid}.map"))?;
    }
    let explanation = match subject.memory {
        Some(_) => Explanation::of_process(&subject.process, subject.circumstances.pid)
            .context("the process cannot be compared with its files")?,
        None => Explanation::of_record(&subject.process),
    };
    let output = match arguments.listing.format {
        Format::Json => json(&explanation)?,
        Format::Text => render(&explanation, arguments.listing.style_of_stdout()),
    };
    print(&output)
}

fn render(explanation: &Explanation, style: Style) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(out, "{}", style.bold("Hooks"));
    for hook in &explanation.hooks {
        hook_lines(&mut out, hook, style);
    }
    if explanation.compared_bytes == 0 {
        return out;
    }
    let _ = writeln!(out, "\n{}", style.bold("Code that differs from its file"));
    let unexplained = explanation
        .differences
        .iter()
        .filter(|difference| difference.hook.is_none());
    for difference in unexplained.clone() {
        let line = format!(
            "  {} in {}: {} became {}, unexplained",
            difference.address,
            short(&difference.module, 1),
            difference.in_file,
            difference.in_memory,
        );
        let _ = writeln!(out, "{}", style.warn(&line));
    }
    let _ = writeln!(
        out,
        "  {} of code compared: {} places differ, {} of them without a reason",
        bytes(explanation.compared_bytes),
        grouped(explanation.differences.len() as u64),
        grouped(unexplained.count() as u64),
    );
    let _ = writeln!(
        out,
        "\n{}",
        style.bold("Bindings that lead into the runtime")
    );
    for binding in &explanation.bindings {
        let symbol = binding.symbol.as_deref().unwrap_or("?");
        let _ = writeln!(
            out,
            "  {} {symbol} in {} → {}",
            binding.slot,
            short(&binding.module, 1),
            binding.target
        );
    }
    let _ = writeln!(
        out,
        "  {} of {} slots looked at",
        grouped(explanation.bindings.len() as u64),
        grouped(explanation.compared_bindings),
    );
    let _ = writeln!(out, "\n{}", style.bold("Memory that was added"));
    for added in &explanation.added {
        let _ = writeln!(
            out,
            "  {:>16} {} {:>12}  {}",
            added.start,
            added.permissions,
            bytes(added.bytes),
            added.what
        );
    }
    for reason in &explanation.not_compared {
        let _ = writeln!(out, "{}", style.warn(&format!("  not compared: {reason}")));
    }
    out
}

fn hook_lines(out: &mut String, hook: &HookRow, style: Style) {
    let module = hook.module.as_deref().map_or("?", |path| short(path, 1));
    let offset = hook.offset.as_deref().unwrap_or("?");
    let _ = writeln!(
        out,
        "  {}  {}",
        style.kind(&hook.function),
        style.faint(&format!("{module}+{offset}, at {}", hook.address))
    );
    let _ = writeln!(out, "      {}", hook.why);
    if let Some(trampoline) = &hook.trampoline {
        let _ = writeln!(
            out,
            "      {} → {}  {}",
            hook.before,
            hook.after,
            style.faint(&format!("trampoline {trampoline}"))
        );
    }
}
