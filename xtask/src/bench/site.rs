//! *What does it cost to find the site of an allocation?* — three ways to get past two wrappers, beside the calls alone.

use super::measure::{interleaved, median};
use super::table::{Table, figure};
use super::{Bench, Context, Result};
use crate::shell;
use std::process::Command;

/// How `site.c` calls them, and in words.
const WAYS: [(&str, &str); 4] = [
    ("none", "none: the calls alone"),
    ("each", "unwind tables, each time (libgcc)"),
    ("cached", "cached rules (what Pointee does)"),
    ("patched", "patched callers"),
];
const CALLS: &str = "3000000";

pub(super) fn measure(bench: &Bench) -> Result<()> {
    let program = bench.folder.join("site");
    bench.compile("site.c", &program, &["-fno-omit-frame-pointer"])?;
    let results = interleaved(bench.rounds, &WAYS, |(way, _)| -> Result<f64> {
        let text = shell::output(Command::new(&program).args([way, CALLS]))?;
        let figure = text.trim().parse();
        figure.with_context(|| format!("no figure in {text}"))
    });
    println!("## Finding the site, behind two wrappers, nanoseconds\n");
    let mut table = Table::new(["way", "a call", "over none"]);
    let nanoseconds: Vec<_> = results
        .iter()
        .map(|runs| median(runs.iter().flatten().copied()))
        .collect();
    for ((_, title), value) in WAYS.iter().zip(&nanoseconds) {
        let over = value.zip(nanoseconds[0]).map(|(value, none)| value - none);
        table.row([(*title).to_owned(), figure(*value, 1), figure(over, 1)]);
    }
    table.print();
    Ok(())
}
