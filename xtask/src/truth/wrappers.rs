//! *Which allocation wrappers and pools are found, of those that a reader found, and which others?*
//!
//! A list has a line for each: the function's linker name, a tab, and the text that proves it. A line that begins with `!` has one
//! that is none, and why: found, it is *false*. One that begins with `+` has one that a reader came to only because it was found, and is
//! right; with `~`, one that hands out text which it makes itself: it may be told either way. What is found of the file's own functions
//! and stands in no line is *not judged*. A wrapper is found if calls of it are sites, if what it allocates is said to be its callers', or
//! if `explain` lists it, which it does also where the file has no call of it.
//! One that the compiler has put into all its callers has no calls; it is counted apart, found if the calls it makes are sites there.

use super::Options;
use super::sites;
use crate::bench::table::Table;
use crate::shell;
use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// Prints the recall of each pair of list and file, what was missed, and what is found beside the list.
pub(super) fn run(options: &Options) -> Result<()> {
    if options.files.is_empty() || !options.files.len().is_multiple_of(2) {
        bail!("truth wrappers wants pairs of a list and a file");
    }
    let (mut all, mut all_found) = (0, 0);
    let mut table = Table::new([
        "list",
        "there",
        "found",
        "missed",
        "false",
        "others right",
        "texts",
        "not judged",
    ]);
    let mut remarks = String::new();
    for pair in options.files.chunks(2) {
        let text = std::fs::read_to_string(&pair[0])?;
        let listed: BTreeSet<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .filter_map(|line| line.split('\t').next())
            .collect();
        let (judged, listed): (BTreeSet<&str>, BTreeSet<&str>) = listed
            .into_iter()
            .partition(|name| name.starts_with(['!', '~', '+']));
        let own = functions_of(&pair[1])?;
        let (found, inlined) = sites::wrappers(&pair[1], options)?;
        let explained = sites::explained(&pair[1], options)?;
        let is_found = |name: &str| found.contains(name) || explained.contains(name);
        let everywhere: Vec<_> = listed
            .iter()
            .filter(|name| !is_found(name) && inlined.contains(**name))
            .collect();
        let missed: Vec<_> = listed
            .iter()
            .filter(|name| !is_found(name) && !inlined.contains(**name))
            .collect();
        let beside = found.iter().map(String::as_str);
        let beside = beside.filter(|name| own.contains(*name) && !listed.contains(name));
        let judged_as = |mark: char| -> Vec<&str> {
            let is = |name: &&str| judged.contains(format!("{mark}{name}").as_str());
            beside.clone().filter(is).collect()
        };
        let [wrong, texts, right] = ['!', '~', '+'].map(judged_as);
        let rest = beside.clone().filter(|name| {
            let is = |list: &Vec<&str>| list.contains(name);
            ![&wrong, &texts, &right].into_iter().any(is)
        });
        let rest: Vec<&str> = rest.collect();
        let listed = listed.len() - everywhere.len();
        all += listed;
        all_found += listed - missed.len();
        let name = pair[0].file_stem().unwrap_or_default().to_string_lossy();
        let counts = [
            listed,
            listed - missed.len(),
            missed.len(),
            wrong.len(),
            right.len(),
            texts.len(),
            rest.len(),
        ];
        let mut row = vec![name.to_string()];
        row.extend(counts.map(|count| count.to_string()));
        table.row(row);
        // Writing to a string does not fail.
        let _ = writeln!(
            remarks,
            "{name}: missed: {missed:?}; false: {wrong:?}; not judged: {rest:?}; sites wherever they are inlined: {everywhere:?}",
        );
    }
    table.print();
    println!("\n{remarks}");
    println!(
        "all: {all_found} of {all} ({:.1} %)",
        100.0 * all_found as f64 / all.max(1) as f64
    );
    Ok(())
}

/// The functions that a file defines by its symbols, inner or exported; allocators by their known names left out.
fn functions_of(file: &Path) -> Result<BTreeSet<String>> {
    let mut functions = BTreeSet::new();
    for which in [&["--defined-only"][..], &["--defined-only", "-D"]] {
        // A stripped file has no inner symbols, which nm says by failing.
        let text = shell::output(Command::new("nm").args(which).arg(file)).unwrap_or_default();
        let names = text.lines().filter_map(|line| line.split(' ').nth(2));
        functions.extend(names.map(|name| name.split('@').next().unwrap_or(name).to_owned()));
    }
    Ok(functions)
}
