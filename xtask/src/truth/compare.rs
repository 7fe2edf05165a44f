//! *Where do two looks at one program disagree?* — two builds of it, or one with its sources and without.
//!
//! Where two answers differ, one of them is wrong: a cheap way to wrong answers, without reading all. Calls are
//! matched by file and line. A call that one build has inlined counts at the line of every call around it too, so that a
//! line may have several answers; only lines on which the two have none in common are printed.

use super::rows::plain;
use super::sites::{self, Site};
use super::{Options, score};
use anyhow::{Result, bail};
use std::collections::{BTreeMap, BTreeSet};

/// What is said of the calls on one line.
#[derive(Default)]
struct Line<'s> {
    answers: BTreeSet<String>,
    sites: Vec<&'s Site>,
}

type Lines<'s> = BTreeMap<(&'s str, u64), Line<'s>>;

pub(super) fn run(options: &Options) -> Result<()> {
    let (first, second) = match &options.files[..] {
        [both] => (
            sites::with_sources(both, options, true)?,
            sites::with_sources(both, options, false)?,
        ),
        [a, b] => (sites::of(a, options)?, sites::of(b, options)?),
        _ => bail!("truth compare wants two builds of a program, or one file"),
    };
    let (first, second) = (lines(&first), lines(&second));
    let (mut common, mut differ, mut open) = (0_usize, 0_usize, 0_usize);
    for (place, one) in &first {
        let Some(other) = second.get(place) else {
            continue;
        };
        common += 1;
        if one.answers.is_empty() != other.answers.is_empty() {
            open += 1;
        } else if !one.answers.is_empty() && one.answers.is_disjoint(&other.answers) {
            differ += 1;
            println!("{}:{}", place.0, place.1);
            for site in [one, other].into_iter().filter_map(answered) {
                println!(
                    "    {} {}: {}",
                    site.function,
                    site.callee,
                    score::said(site)
                );
            }
        }
    }
    println!(
        "{common} lines in both, {differ} with answers that differ, {open} with an answer in one only"
    );
    Ok(())
}

fn lines(found: &[Site]) -> Lines<'_> {
    let mut lines = Lines::new();
    for site in found {
        let around = site.around.iter().map(|(_, file, line)| (&**file, *line));
        let places: BTreeSet<_> = around.chain([(&*site.file, site.line)]).collect();
        for (file, line) in places.into_iter().filter(|(file, _)| !file.is_empty()) {
            let name = file.rsplit('/').next().unwrap_or(file);
            let here = lines.entry((name, line)).or_default();
            here.sites.push(site);
            if site.is_answered() {
                here.answers.insert(plain(&site.r#type));
            }
        }
    }
    lines
}

/// The first of a line's calls that has an answer.
fn answered<'s>(line: &Line<'s>) -> Option<&'s Site> {
    line.sites.iter().copied().find(|site| site.is_answered())
}
