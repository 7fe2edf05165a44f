//! *How does a report read in a terminal?*
//!
//! ```text
//!   what is unseen            first, if anything
//!   program, end, totals      three lines
//!   frees by the wrong function, if there were any
//!   table by type             at the peak when nearly all was freed, else what is alive
//!   table by site
//! ```
//!
//! Written for 100–120 columns: numbers to the left, names to the right where they may run on.

use crate::report::{Counts, Exit, GroupRow, PlaceRow, ProcessReport, SiteRow, State};
use crate::wrong_frees::WrongFreeRow;
use std::fmt::Write;

/// How to write.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// With ANSI colours.
    pub colour: bool,
    /// Tell of the highest point, whatever is alive.
    pub at_peak: bool,
    /// Rows of a table; `usize::MAX` for all.
    pub rows: usize,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Headings.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// What is less important.
    #[must_use]
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// Types.
    #[must_use]
    pub fn kind(self, text: &str) -> String {
        self.paint("36", text)
    }

    /// What the reader must not miss.
    #[must_use]
    pub fn warn(self, text: &str) -> String {
        self.paint("33", text)
    }
}

/// Which moment a table tells of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    Now,
    Peak,
}

impl Moment {
    fn of(report: &ProcessReport, style: Style) -> Self {
        if style.at_peak || report.is_told_by_peak() {
            Self::Peak
        } else {
            Self::Now
        }
    }

    /// In words.
    fn when(self, report: &ProcessReport) -> String {
        match (self, report.state) {
            (Self::Peak, _) => {
                let totals = &report.totals;
                let seen = share(totals.counts.live_bytes_at_peak, totals.peak_bytes);
                format!("at its highest (seen at {seen} of it)")
            }
            (Self::Now, State::Running) => "now".to_owned(),
            (Self::Now, State::Ended) => "at the end".to_owned(),
            (Self::Now, State::Exec) => "at exec".to_owned(),
        }
    }

    fn amount(self, counts: &Counts) -> (u64, u64) {
        match self {
            Self::Now => (counts.live, counts.live_bytes),
            Self::Peak => (counts.live_at_peak, counts.live_bytes_at_peak),
        }
    }
}

/// The whole report of one process.
#[must_use]
pub fn render(report: &ProcessReport, style: Style) -> String {
    let mut out = String::new();
    heading(&mut out, report, style);
    let moment = Moment::of(report, style);
    let when = moment.when(report);
    if report.totals.counts.allocations == 0 && report.totals.counts.inherited == 0 {
        return out;
    }
    let rows: Vec<_> = report
        .types
        .iter()
        .map(|row| (row.counts, row.r#type.clone()))
        .collect();
    let title = format!("Types of the heap {when}");
    group_table(&mut out, &title, "type", &rows, moment, style);
    site_table(
        &mut out,
        &format!("Where it was allocated, {when}"),
        &report.sites,
        moment,
        style,
    );
    recording(&mut out, report, style);
    out
}

/// What the record itself took, by what for.
fn recording(out: &mut String, report: &ProcessReport, style: Style) {
    let Some(footprint) = &report.recording else {
        return;
    };
    let parts = footprint.parts();
    let all = parts.iter().map(|(_, size)| size).sum();
    let named = parts
        .iter()
        .filter(|(_, size)| *size != 0)
        .map(|(name, size)| format!("{name} {}", bytes(*size)));
    let text = format!(
        "Recording it took {}: {}",
        bytes(all),
        named.collect::<Vec<_>>().join(", ")
    );
    let _ = writeln!(out, "\n{}", style.faint(&text));
}

/// A histogram over something other than types and sites.
#[must_use]
pub fn render_groups(
    report: &ProcessReport,
    title: &str,
    column: &str,
    groups: &[GroupRow],
    style: Style,
) -> String {
    let mut out = String::new();
    heading(&mut out, report, style);
    let moment = Moment::of(report, style);
    let rows: Vec<_> = groups
        .iter()
        .map(|row| (row.counts, row.name.clone()))
        .collect();
    let title = format!("{title}, {}", moment.when(report));
    group_table(&mut out, &title, column, &rows, moment, style);
    out
}

/// The table by site alone.
#[must_use]
pub fn render_sites(report: &ProcessReport, style: Style) -> String {
    let mut out = String::new();
    heading(&mut out, report, style);
    let moment = Moment::of(report, style);
    let title = format!("Allocation sites, {}", moment.when(report));
    site_table(&mut out, &title, &report.sites, moment, style);
    out
}

fn heading(out: &mut String, report: &ProcessReport, style: Style) {
    if !report.unseen.is_empty() {
        let unseen = format!("not seen: {}", report.unseen.join("; "));
        let _ = writeln!(out, "{}", style.warn(&unseen));
    }
    let end = match (report.state, report.exit) {
        (State::Running, _) => "still running".to_owned(),
        (State::Exec, _) => "became another program".to_owned(),
        (State::Ended, Some(Exit::Code(code))) => format!("ended with status {code}"),
        (State::Ended, Some(Exit::Signal(signal))) => format!("ended by signal {signal}"),
        (State::Ended, None) => "ended, not known how".to_owned(),
    };
    let generation = match report.generation {
        0 => String::new(),
        n => format!(", exec {n}"),
    };
    let _ = writeln!(
        out,
        "{}  {}",
        style.bold(&report.program),
        style.faint(&format!("process {}{generation}, {end}", report.pid)),
    );
    let totals = &report.totals;
    let counts = &totals.counts;
    let _ = writeln!(
        out,
        "  {} allocations, {} frees, {} allocated in all; {} at the highest, {} in {} blocks alive",
        grouped(counts.allocations),
        grouped(counts.frees),
        bytes(counts.bytes_allocated),
        bytes(totals.peak_bytes),
        bytes(counts.live_bytes),
        grouped(counts.live),
    );
    if counts.inherited != 0 {
        let _ = writeln!(
            out,
            "  {} in {} blocks were inherited at fork",
            bytes(counts.inherited_bytes),
            grouped(counts.inherited),
        );
    }
    let pools = &totals.pools;
    if pools.allocations != 0 || pools.live != 0 {
        let _ = writeln!(
            out,
            "  pools cut {} blocks out, {} in all, and took {} back; {} in {} of them alive",
            grouped(pools.allocations),
            bytes(pools.bytes_allocated),
            grouped(pools.frees),
            bytes(pools.live_bytes),
            grouped(pools.live),
        );
    }
    wrong_frees(out, &report.wrong_frees, style);
}

/// Both places of every wrong free.
fn wrong_frees(out: &mut String, rows: &[WrongFreeRow], style: Style) {
    if rows.is_empty() {
        return;
    }
    let blocks = rows
        .iter()
        .fold(0u64, |sum, row| sum.saturating_add(row.blocks));
    let title = format!("Freed by the wrong function: {} blocks", grouped(blocks));
    let _ = writeln!(out, "\n{}", style.warn(&title));
    for row in rows.iter().take(style.rows) {
        let what = row.r#type.as_deref().unwrap_or("(type not known)");
        let _ = writeln!(
            out,
            "{:>12} × {}  {} bytes at {}",
            grouped(row.blocks),
            style.kind(what),
            grouped(row.first_bytes),
            row.first,
        );
        let _ = writeln!(
            out,
            "{:>14} {} in {}",
            "from",
            row.allocated_by,
            in_words(&row.allocated_at)
        );
        let places: Vec<_> = row.freed_at.iter().map(in_words).collect();
        let _ = writeln!(
            out,
            "{:>14} {} in {}; {} has to",
            "freed by",
            row.freed_by,
            places.join(" ← "),
            row.to_be_freed_by,
        );
    }
    more(out, rows.len(), style);
}

/// `function file.c:12`.
fn in_words(place: &PlaceRow) -> String {
    let function = place.function.as_deref().unwrap_or("(not known)");
    match (&place.file, place.line) {
        (Some(file), Some(line)) => format!("{function} {}:{line}", short(file, 2)),
        _ => function.to_owned(),
    }
}

fn group_table(
    out: &mut String,
    title: &str,
    column: &str,
    rows: &[(Counts, Option<String>)],
    moment: Moment,
    style: Style,
) {
    let mut rows: Vec<_> = rows.iter().collect();
    rows.sort_by_key(|(counts, _)| {
        std::cmp::Reverse((moment.amount(counts).1, counts.bytes_allocated))
    });
    let all: u64 = rows.iter().fold(0, |sum, (counts, _)| {
        sum.saturating_add(moment.amount(counts).1)
    });
    let _ = writeln!(out, "\n{}", style.bold(title));
    let head = format!(
        "{:>12} {:>7} {:>13}  {:>13} {:>12}   {column}",
        "alive", "share", "blocks", "allocations", "in all"
    );
    let _ = writeln!(out, "{}", style.faint(&head));
    for (counts, name) in rows.iter().take(style.rows) {
        let (blocks, size) = moment.amount(counts);
        let name = match name {
            Some(name) => style.kind(name),
            None => style.faint("(not known)"),
        };
        let _ = writeln!(
            out,
            "{:>12} {:>7} {:>13}  {:>13} {:>12}   {name}",
            bytes(size),
            share(size, all),
            grouped(blocks),
            grouped(counts.allocations),
            bytes(counts.bytes_allocated),
        );
    }
    more(out, rows.len(), style);
}

fn site_table(out: &mut String, title: &str, sites: &[SiteRow], moment: Moment, style: Style) {
    let mut sites: Vec<_> = sites.iter().collect();
    sites.sort_by_key(|site| {
        std::cmp::Reverse((moment.amount(&site.counts).1, site.counts.bytes_allocated))
    });
    let _ = writeln!(out, "\n{}", style.bold(title));
    let head = format!(
        "{:>12} {:>13} {:>13}   site",
        "alive", "blocks", "allocations"
    );
    let _ = writeln!(out, "{}", style.faint(&head));
    for site in sites.iter().take(style.rows) {
        let (blocks, size) = moment.amount(&site.counts);
        let r#type = match &site.r#type {
            Some(name) => style.kind(name),
            None if site.verdict == "opaque" => style.faint("(opaque bytes)"),
            None => style.faint("(type not known)"),
        };
        let mut notes = site.evidence.join(", ");
        if !site.wrappers.is_empty() {
            let via = format!("through {}", site.wrappers.join(" ← "));
            notes = if notes.is_empty() {
                via
            } else {
                format!("{notes}; {via}")
            };
        }
        let _ = writeln!(
            out,
            "{:>12} {:>13} {:>13}   {}  {}{}",
            bytes(size),
            grouped(blocks),
            grouped(site.counts.allocations),
            place(site),
            r#type,
            if notes.is_empty() {
                String::new()
            } else {
                style.faint(&format!("  {notes}"))
            },
        );
    }
    more(out, sites.len(), style);
}

/// `function file.c:12`, or what is known in its place.
fn place(site: &SiteRow) -> String {
    let mut text = match (&site.function, &site.module) {
        (Some(function), _) => function.clone(),
        (None, Some(module)) => format!("{}+{}", short(module, 1), site.offset),
        (None, None) => "(outside all files)".to_owned(),
    };
    match (&site.file, site.line) {
        (Some(file), Some(line)) => {
            let _ = write!(text, " {}:{line}", short(file, 2));
        }
        _ if site.function.is_some() => {
            if let Some(module) = &site.module {
                let _ = write!(text, " in {}+{}", short(module, 1), site.offset);
            }
        }
        _ => {}
    }
    text
}

/// The last `parts` components of a path.
#[must_use]
pub fn short(path: &str, parts: usize) -> &str {
    match path.rmatch_indices('/').nth(parts - 1) {
        Some((at, _)) => &path[at + 1..],
        None => path,
    }
}

fn more(out: &mut String, rows: usize, style: Style) {
    if rows > style.rows {
        let text = format!("{:>12} {} more (--all shows them)", "…", rows - style.rows);
        let _ = writeln!(out, "{}", style.faint(&text));
    }
}

/// `12.3 %`.
#[must_use]
pub fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "–".to_owned();
    }
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}

/// `12,345`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at != 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1.2 MiB`; below 10 KiB exactly.
#[must_use]
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 10 << 10 {
        return format!("{} B", grouped(number));
    }
    let mut value = number as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let rows = [
            (0, "0", "0 B"),
            (999, "999", "999 B"),
            (1000, "1,000", "1,000 B"),
            (10_240, "10,240", "10.0 KiB"),
            (1_048_576, "1,048,576", "1.0 MiB"),
            (u64::MAX, "18,446,744,073,709,551,615", "16.0 EiB"),
        ];
        for (number, with_commas, with_unit) in rows {
            assert_eq!(grouped(number), with_commas);
            assert_eq!(bytes(number), with_unit, "{number}");
        }
    }

    #[test]
    fn paths_are_cut_from_the_left() {
        let rows = [
            ("/a/b/c.c", 2, "b/c.c"),
            ("/a/b/c.c", 1, "c.c"),
            ("c.c", 2, "c.c"),
            ("/c.c", 1, "c.c"),
        ];
        for (path, parts, expect) in rows {
            assert_eq!(short(path, parts), expect);
        }
    }
}
