//! *How many answers are there, and how many are right?*

use super::Options;
use super::rows::{self, Row};
use super::sites::{self, Site};
use anyhow::{Result, bail};
use std::collections::BTreeMap;

/// Of one row, over all sites at its place: the worst.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Score {
    Right,
    /// Truly opaque, and said so (or nothing said).
    Opaque,
    Unanswered,
    Wrong,
}

#[derive(Default)]
struct Counts {
    right: usize,
    opaque: usize,
    unanswered: usize,
    wrong: usize,
    missing: usize,
}

/// Prints the score of each pair of rows and file, and of all.
pub(super) fn run(options: &Options) -> Result<()> {
    if options.files.is_empty() || !options.files.len().is_multiple_of(2) {
        bail!("truth score wants pairs of rows and a file");
    }
    let mut all = Counts::default();
    for pair in options.files.chunks(2) {
        let found = sites::of(&pair[1], options)?;
        let mut counts = Counts::default();
        for row in rows::read(&pair[0])? {
            let score = score(&row, &found);
            match score {
                None => counts.missing += 1,
                Some(Score::Right) => counts.right += 1,
                Some(Score::Opaque) => counts.opaque += 1,
                Some(Score::Unanswered) => counts.unanswered += 1,
                Some(Score::Wrong) => counts.wrong += 1,
            }
        }
        println!("{}: {}", pair[0].display(), counts.words());
        all.right += counts.right;
        all.opaque += counts.opaque;
        all.unanswered += counts.unanswered;
        all.wrong += counts.wrong;
        all.missing += counts.missing;
    }
    println!("all: {}", all.words());
    Ok(())
}

/// The score of a row, each miss printed; `None` if no site is at its place.
fn score(row: &Row, found: &[Site]) -> Option<Score> {
    let mut here: Vec<&Site> = found.iter().filter(|site| is_at(site, row)).collect();
    // The instances of a template share a place.
    let own = |site: &&Site| site.function == row.own_function();
    if here.iter().any(own) {
        here.retain(own);
    }
    let one = |site: &Site| match (site.is_answered(), row.admits("opaque")) {
        (true, _) if row.admits(&site.r#type) => Score::Right,
        (false, true) => Score::Opaque,
        (true, _) => Score::Wrong,
        (false, false) => Score::Unanswered,
    };
    let place = format!("{}:{} {} {}", row.file, row.line, row.function, row.callee);
    let Some(worst) = here.iter().map(|site| one(site)).max() else {
        println!("  no site: {place}");
        return None;
    };
    if worst >= Score::Unanswered {
        let word = if worst == Score::Wrong {
            "WRONG"
        } else {
            "unanswered"
        };
        println!("  {word}: {place}: {}", row.r#type);
        for site in here.iter().filter(|site| one(site) == worst).take(2) {
            println!("      said {}", said(site));
        }
    }
    Some(worst)
}

/// A site's answer and what it rests on.
pub(super) fn said(site: &Site) -> String {
    let (kind, role, verdict) = (&site.r#type, &site.role, &site.verdict);
    format!("{kind} ({role}, {verdict}): {}", site.evidence.join("; "))
}

/// Whether a site is at a row's place, and inlined into the caller that the row may name.
fn is_at(site: &Site, row: &Row) -> bool {
    let called_from = |caller: &str| site.around.iter().any(|(name, ..)| name == caller);
    site.callee == row.callee
        && site.line == row.line
        && site.file.ends_with(&row.file)
        && row.caller().is_none_or(called_from)
}

impl Counts {
    fn words(&self) -> String {
        let answered = self.right + self.wrong;
        let typed = answered + self.unanswered;
        format!(
            "{} rows; {} opaque; of {typed} others answered {answered} ({:.2} %), right {}, wrong {} ({:.2} % of answered, at most {:.2} % with 95 % confidence); {} without a site",
            typed + self.opaque + self.missing,
            self.opaque,
            percent(answered, typed),
            self.right,
            self.wrong,
            percent(self.wrong, answered),
            100.0 * upper_bound(self.wrong, answered),
            self.missing,
        )
    }
}

fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// The largest rate under which so few misses in `n` are no rarer than 1 in 20 (Clopper and Pearson,
/// one-sided), by bisection.
fn upper_bound(misses: usize, n: usize) -> f64 {
    if n == 0 || misses >= n {
        return 1.0;
    }
    let at_most = |rate: f64| {
        let mut term = (1.0 - rate).powf(n as f64);
        let mut sum = term;
        for k in 0..misses {
            term *= (n - k) as f64 / (k + 1) as f64 * rate / (1.0 - rate);
            sum += term;
        }
        sum
    };
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if at_most(middle) > 0.05 {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// Prints how many sites have an answer, and lists the others by their verdict.
pub(super) fn coverage(options: &Options) -> Result<()> {
    for file in &options.files {
        let found = sites::of(file, options)?;
        let answered = found.iter().filter(|site| site.is_answered()).count();
        let mut causes: BTreeMap<String, Vec<&Site>> = BTreeMap::new();
        for site in found.iter().filter(|site| !site.is_answered()) {
            let cause = match &*site.verdict {
                "single" | "agreed" => format!("role {}", site.role),
                verdict => verdict.to_owned(),
            };
            causes.entry(cause).or_default().push(site);
        }
        let opaque = causes.get("opaque").map_or(0, Vec::len);
        println!(
            "{}: {} sites, {answered} answered, {opaque} opaque: {:.2} %, {:.2} % without the opaque",
            file.display(),
            found.len(),
            percent(answered + opaque, found.len()),
            percent(answered, found.len() - opaque),
        );
        for (cause, sites) in causes {
            println!("  {cause}: {}", sites.len());
            for site in sites {
                println!(
                    "    {}:{} {} {} {}: {}",
                    site.file,
                    site.line,
                    site.function,
                    site.callee,
                    site.r#type,
                    site.evidence.join("; ")
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::upper_bound;

    #[test]
    fn bounds() {
        // The rule of three, and a row of a published table.
        for (misses, n, expect) in [
            (0, 300, 0.0099),
            (0, 600, 0.0050),
            (1, 100, 0.0466),
            (5, 5, 1.0),
        ] {
            let bound = upper_bound(misses, n);
            assert!((bound - expect).abs() < 2e-4, "{misses} of {n}: {bound}");
        }
    }
}
