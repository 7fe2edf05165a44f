//! *Which allocation wrappers are found, of those that a reader found?*
//!
//! A list has a line for each: the function's linker name, a tab, and the text that proves it. A wrapper is found if
//! calls of it are sites, or if what it allocates is said to be its callers'. One that the compiler has put into all its
//! callers has no calls; it is counted apart, found if the calls it makes are sites there.

use super::Options;
use super::sites;
use anyhow::{Result, bail};
use std::collections::BTreeSet;

/// Prints the recall of each pair of list and file, what was missed, and what is found beside the list.
pub(super) fn run(options: &Options) -> Result<()> {
    if options.files.is_empty() || !options.files.len().is_multiple_of(2) {
        bail!("truth wrappers wants pairs of a list and a file");
    }
    let (mut all, mut all_found) = (0, 0);
    for pair in options.files.chunks(2) {
        let text = std::fs::read_to_string(&pair[0])?;
        let listed: BTreeSet<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .filter_map(|line| line.split('\t').next())
            .collect();
        let (found, inlined) = sites::wrappers(&pair[1], options)?;
        let everywhere: Vec<_> = listed
            .iter()
            .filter(|name| !found.contains(**name) && inlined.contains(**name))
            .collect();
        let missed: Vec<_> = listed
            .iter()
            .filter(|name| !found.contains(**name) && !inlined.contains(**name))
            .collect();
        let beside: Vec<_> = found
            .iter()
            .filter(|name| !listed.contains(name.as_str()))
            .collect();
        let listed = listed.len() - everywhere.len();
        all += listed;
        all_found += listed - missed.len();
        println!(
            "{}: {} of {listed} found; missed: {missed:?}; sites wherever they are inlined: {everywhere:?}",
            pair[0].display(),
            listed - missed.len(),
        );
        println!("  found beside the list: {beside:?}");
    }
    println!(
        "all: {all_found} of {all} ({:.1} %)",
        100.0 * all_found as f64 / all.max(1) as f64
    );
    Ok(())
}
