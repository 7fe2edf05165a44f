//! *Which sites are to be judged?* — drawn at random, shown with their source and without our answer.

use super::sites::Site;
use super::{Options, rows, sites};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Lines shown before and after a call.
const AROUND: u64 = 6;

pub(super) fn run(options: &Options) -> Result<()> {
    let [file] = &options.files[..] else {
        anyhow::bail!("truth draw wants one file");
    };
    let known = match &options.rows {
        Some(path) => rows::read(path)?,
        None => Vec::new(),
    };
    let found = sites::of(file, options)?;
    let mut places: BTreeMap<(&str, u64, &str), &Site> = BTreeMap::new();
    for site in found.iter().filter(|site| !site.file.is_empty()) {
        places.entry(site.place()).or_insert(site);
    }
    let mut left: Vec<&Site> = places
        .into_values()
        .filter(|site| {
            !known.iter().any(|row| {
                site.file.ends_with(&row.file) && site.line == row.line && site.callee == row.callee
            })
        })
        .collect();
    let mut random = Random(options.seed);
    for _ in 0..options.count.min(left.len()) {
        let at = random.below(left.len());
        show(left.swap_remove(at));
    }
    Ok(())
}

/// The row to be filled in, and the source around the call and around the calls it was inlined into.
fn show(site: &Site) {
    println!(
        "{}\t{}\t{}\t{}\t?\t?",
        site.file, site.line, site.function, site.callee
    );
    print_source(&site.file, site.line);
    for (function, file, line) in site.around.iter().take(3) {
        println!("  in {function} {file}:{line}");
    }
    println!();
}

fn print_source(file: &str, line: u64) {
    let Ok(text) = std::fs::read(Path::new(file)).context("source") else {
        return;
    };
    let text = String::from_utf8_lossy(&text);
    let first = line.saturating_sub(AROUND).max(1);
    let shown = (1..).zip(text.lines()).skip(first as usize - 1);
    for (number, text) in shown.take_while(|(number, _)| *number <= line + AROUND) {
        let mark = if number == line { '>' } else { ' ' };
        println!("  {mark}{number:6} {text}");
    }
}

/// splitmix64: the same sites for the same seed, on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) % end.max(1) as u64) as usize
    }
}
