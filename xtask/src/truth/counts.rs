//! *Of the allocations that programs really make, how many have a type?*

use super::Options;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

/// Sites without a type that are shown, the largest first.
const SHOWN: usize = 8;

#[derive(Default)]
struct Counts {
    typed: u64,
    opaque: u64,
    all: u64,
}

/// Runs each command line, and prints the share of allocations that have one type, or are said to be opaque: of
/// those that the program's own file makes, and of all.
pub(super) fn run(options: &Options) -> Result<()> {
    if options.files.is_empty() {
        bail!("truth counts wants command lines");
    }
    let workspace = Workspace::open()?;
    let pointee = match &options.pointee {
        Some(pointee) => pointee.clone(),
        None => workspace.build_pointee()?,
    };
    let report = workspace.folder("truth")?.join("counts.json");
    let (mut own, mut all) = (Counts::default(), Counts::default());
    for line in &options.files {
        let line = line.to_string_lossy();
        let mut command = Command::new("sh");
        let words = [pointee.as_os_str(), report.as_os_str()].map(|word| word.to_string_lossy());
        // The first process only, unless another program is wanted of what it starts.
        let follow = match options.program {
            Some(_) => "",
            None => "--no-follow ",
        };
        command.arg("-c").arg(format!(
            "exec '{}' run {follow}--format json --report '{}' -- {line}",
            words[0], words[1]
        ));
        // How it ends is its own affair: a server is ended by a signal.
        drop(std::fs::remove_file(&report));
        let ended = command.stdin(Stdio::null()).output()?;
        let text = std::fs::read_to_string(&report).with_context(|| {
            let said = String::from_utf8_lossy(&ended.stderr);
            format!("{line}: {}, without a report\n{said}", ended.status)
        })?;
        let said: Value = serde_json::from_str(&text)?;
        println!("{line}");
        let is_wanted = |process: &&Value| {
            let program = Path::new(process["program"].as_str().unwrap_or_default());
            let name = program.file_name().map(|name| name.to_string_lossy());
            options.program.is_none() || name.as_deref() == options.program.as_deref()
        };
        let processes = said.as_array().context("an array of processes")?;
        if !processes.iter().any(|process| is_wanted(&process)) {
            bail!("no process of the program was recorded");
        }
        for process in processes.iter().filter(is_wanted) {
            count(process, &mut own, &mut all);
        }
    }
    println!("all: {}; with libraries {}", own.words(), all.words());
    Ok(())
}

fn count(report: &Value, own: &mut Counts, all: &mut Counts) {
    let program = report["program"].as_str().unwrap_or_default();
    let sites = report["sites"].as_array();
    let (mut here, mut everywhere) = (Counts::default(), Counts::default());
    let mut untyped: Vec<(u64, String)> = Vec::new();
    for site in sites.into_iter().flatten() {
        let allocations = site["allocations"].as_u64().unwrap_or(0);
        let verdict = site["verdict"].as_str().unwrap_or_default();
        let is_own = site["module"] == program;
        for counts in [is_own.then_some(&mut here), Some(&mut everywhere)] {
            let Some(counts) = counts else { continue };
            counts.all += allocations;
            match verdict {
                "single" | "agreed" => counts.typed += allocations,
                "opaque" => counts.opaque += allocations,
                _ => {}
            }
        }
        if !matches!(verdict, "single" | "agreed" | "opaque") {
            let place = format!(
                "{} {}+{} {verdict}",
                site["function"].as_str().unwrap_or("?"),
                site["module"].as_str().unwrap_or("?"),
                site["offset"].as_str().unwrap_or("?"),
            );
            untyped.push((allocations, place));
        }
    }
    println!("  {}; with libraries {}", here.words(), everywhere.words());
    untyped.sort_by_key(|(allocations, _)| std::cmp::Reverse(*allocations));
    for (allocations, place) in untyped.iter().take(SHOWN) {
        println!("    {allocations:>10}  {place}");
    }
    for (sum, one) in [(own, here), (all, everywhere)] {
        sum.typed += one.typed;
        sum.opaque += one.opaque;
        sum.all += one.all;
    }
}

impl Counts {
    fn words(&self) -> String {
        let share = |part: u64| 100.0 * part as f64 / self.all.max(1) as f64;
        format!(
            "{} allocations, {:.3} % typed, {:.3} % opaque, together {:.3} %",
            self.all,
            share(self.typed),
            share(self.opaque),
            share(self.typed + self.opaque),
        )
    }
}
