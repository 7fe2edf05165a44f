//! `pointee explain FILE`: *which functions of this file allocate for their callers, and who says so?*

use super::learned;
use crate::configuration;
use crate::images;
use crate::output::{Format, Listing, json, print};
use anyhow::Result;
use pointee_inspect::text::{Style, short};
use pointee_meta::cache;
use pointee_meta::config::{Config, Kind, Rule, built_in};
use pointee_meta::facts::{Facts, Function};
use pointee_meta::sites::{Sites, Size, Summary, Wrapper};
use pointee_model::entries::role_of;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io::Read;
use std::path::Path;

/// Whether the file at `path` is an ELF file.
pub(super) fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == *b"\x7fELF"
}

#[derive(Debug, Serialize)]
struct Report {
    file: String,
    /// One for each rule of the configuration that concerns the file, in order of layers.
    rules: Vec<RuleRow>,
    functions: Vec<FunctionRow>,
}

#[derive(Debug, Serialize)]
struct RuleRow {
    says: String,
    r#where: String,
    /// Functions that it holds for.
    holds_for: Vec<String>,
    /// Functions of which a higher rule says something else.
    outdone_for: Vec<String>,
}

#[derive(Debug, Serialize)]
struct FunctionRow {
    function: String,
    file: Option<String>,
    line: Option<u32>,
    /// `allocator`, `wrapper`, `pool`, `free`; `maker`: puts the block into what it returns; `inlined`: the cursor of a pool.
    kind: &'static str,
    /// Compact: `(zZ)p`; `null` where analysis cannot tell.
    signature: Option<String>,
    /// `built-in`, `found`, `learned` of another file, or where the rule stands.
    by: String,
    why: String,
}

pub(super) fn run(path: &Path, listing: &Listing) -> Result<()> {
    let options = configuration::options();
    let (map, learned) = images::alone(path, &options)?;
    let elf = map.file(0);
    let config = options.config.selected_for(elf);
    let (facts, sites) = cache::analyse(elf, &learned, &options);
    let file = path.display().to_string();
    let report = Report {
        rules: rules(&config, &facts, &file),
        functions: functions(&config, &facts, &sites, &file),
        file,
    };
    print(&match listing.format {
        Format::Json => json(&report)?,
        Format::Text => render(&report, listing.style_of_stdout()),
    })
}

fn rules(config: &Config, facts: &Facts, file: &str) -> Vec<RuleRow> {
    let row = |rule: &Rule| {
        let (mut holds_for, mut outdone_for) = (Vec::new(), Vec::new());
        for function in &facts.functions {
            let name = &function.linkage_name;
            if rule.is_about(name, file) {
                let holds = config.rules_for(name, file).first() == Some(&rule);
                let list = if holds {
                    &mut holds_for
                } else {
                    &mut outdone_for
                };
                list.push(name.clone());
            }
        }
        RuleRow {
            says: format!("{} {}", rule.kind.word(), rule.name),
            r#where: rule.origin.to_string(),
            holds_for,
            outdone_for,
        }
    };
    config.rules.iter().map(row).collect()
}

fn functions(config: &Config, facts: &Facts, sites: &Sites, file: &str) -> Vec<FunctionRow> {
    let mut rows = Vec::new();
    for function in &facts.functions {
        let name = &function.linkage_name;
        let place = |kind, signature, by, why| FunctionRow {
            function: function.name.clone(),
            file: function
                .file
                .and_then(|file| facts.files.get(file as usize))
                .cloned(),
            line: (function.line != 0).then_some(function.line),
            kind,
            signature,
            by,
            why,
        };
        // Whoever says what frees what says nothing of what it is.
        let rules = config.rules_for(name, file).into_iter();
        let mut rules = rules.chain(built_in().rules_for(name, file));
        if let Some(rule) = rules.find(|rule| rule.kind != Kind::Pair) {
            if rule.kind != Kind::Ignore {
                let why = match rule.hooked_as() {
                    Some(_) => "declared; its calls are recorded",
                    None => "declared; the calls of it are the sites",
                };
                let by = rule.origin.to_string();
                rows.push(place(rule.kind.word(), None, by, why.to_owned()));
            }
        } else if let Some((_, role)) = role_of(name) {
            use pointee_model::entries::Role;
            let kind = if role == Role::Free {
                "free"
            } else {
                "allocator"
            };
            let why = "an allocator's name; recorded if the file has the whole family".to_owned();
            rows.push(place(kind, None, "built-in".to_owned(), why));
        } else if let Some(wrapper) = wrapper_of(sites, function) {
            let (kind, why) = match (wrapper.is_pool, wrapper.member) {
                (true, _) => ("pool", why_pool(wrapper)),
                (false, None) => ("wrapper", why(sites, function, wrapper)),
                (false, Some(_)) => ("maker", why(sites, function, wrapper)),
            };
            let signature = signature(wrapper.size, wrapper.old, wrapper.is_pool)
                .filter(|_| wrapper.member.is_none());
            rows.push(place(kind, signature, "found".to_owned(), why));
        }
    }
    rows.extend(inlined_pools(sites));
    rows.extend(of_other_files(config, sites, file));
    rows
}

/// The functions of other files that hand out memory, by these files' images, and of which nobody says anything else.
fn of_other_files(config: &Config, sites: &Sites, file: &str) -> Vec<FunctionRow> {
    let is_said = |summary: &&Summary| {
        let rules = config.rules_for(&summary.name, file).into_iter();
        let mut rules = rules.chain(built_in().rules_for(&summary.name, file));
        rules.any(|rule| rule.kind != Kind::Pair)
    };
    let row = |summary: &Summary| FunctionRow {
        function: summary.name.clone(),
        file: None,
        line: None,
        kind: if summary.is_pool() { "pool" } else { "wrapper" },
        signature: signature(summary.size, summary.old, summary.is_pool()),
        by: "learned".to_owned(),
        why: learned::in_words(summary),
    };
    let unsaid = sites.imports.iter().filter(|it| !is_said(it));
    unsaid.map(row).collect()
}

/// The pools whose code stands in functions that are none of theirs: one row a cursor.
fn inlined_pools(sites: &Sites) -> Vec<FunctionRow> {
    let mut writes: BTreeMap<&str, usize> = BTreeMap::new();
    for write in &sites.cursor_writes {
        *writes.entry(&write.cursor).or_default() += 1;
    }
    let row = |(cursor, count): (&str, usize)| FunctionRow {
        function: cursor.to_owned(),
        file: None,
        line: None,
        kind: "inlined",
        signature: None,
        by: "found".to_owned(),
        why: format!(
            "{count} instructions move this cursor of a pool; what they carve out is recorded"
        ),
    };
    writes.into_iter().map(row).collect()
}

fn wrapper_of<'s>(sites: &'s Sites, function: &Function) -> Option<&'s Wrapper> {
    let at = sites
        .wrappers
        .binary_search_by_key(&function.entry, |wrapper| wrapper.entry)
        .ok()?;
    sites.wrappers.get(at)
}

/// What its hook takes for the size.
fn why_pool(wrapper: &Wrapper) -> String {
    let is_seen = match wrapper.size {
        Size::Argument { index, add: 0, .. } => format!("argument {index} is the size"),
        Size::Product(count, size) => format!("the size is argument {count} times argument {size}"),
        _ => "the size is computed in a way that no hook sees: not recorded".to_owned(),
    };
    format!("hands out what a cursor points to, and moves it; {is_seen}")
}

/// Whose memory it hands out, and what of its arguments is the size.
fn why(sites: &Sites, function: &Function, wrapper: &Wrapper) -> String {
    let holds = |address: u64| {
        let mut ranges = function.ranges.iter();
        ranges.any(|(start, end)| (*start..*end).contains(&address))
    };
    let inner: BTreeSet<&str> = sites
        .sites
        .iter()
        .filter(|site| holds(site.call))
        .map(|site| site.callee.as_str())
        .collect();
    let inner: Vec<&str> = inner.into_iter().take(4).collect();
    let size = match wrapper.size {
        Size::Unknown => "; no argument is the size, and nothing in it tells a type".to_owned(),
        Size::Argument {
            index,
            scale: 1,
            add: 0,
        } => format!("; argument {index} is the size"),
        Size::Argument { index, scale, add } => {
            format!("; the size is {scale} times argument {index}, and {add}")
        }
        Size::Product(count, size) => {
            format!("; the size is argument {count} times argument {size}")
        }
        Size::Derived(mask) => {
            let arguments: Vec<String> = (0..8)
                .filter(|bit| mask >> bit & 1 != 0)
                .map(|bit: u8| bit.to_string())
                .collect();
            format!(
                "; the size is computed from argument {}",
                arguments.join(" and ")
            )
        }
    };
    let old = wrapper.old.map_or_else(String::new, |old| {
        format!("; argument {old} is the old block")
    });
    let before = match wrapper.offset {
        0 => String::new(),
        offset => format!("; what it returns lies {offset} bytes into the block"),
    };
    let inner = match inner.as_slice() {
        [] => "an allocator".to_owned(),
        some => some.join(", "),
    };
    match wrapper.member {
        None => format!("returns what {inner} gives{size}{old}{before}"),
        Some(member) => {
            format!("puts what {inner} gives {member} bytes into what it returns{size}")
        }
    }
}

/// The compact form, where all that it says is known.
fn signature(size: Size, old: Option<u8>, is_pool: bool) -> Option<String> {
    let letters = match (size, old) {
        (Size::Argument { index: 0, .. }, None) => "Z".to_owned(),
        (Size::Argument { index: 1, .. }, Some(0)) => "pZ".to_owned(),
        (Size::Argument { index: 1, .. }, None) if is_pool => "pZ".to_owned(),
        (Size::Argument { index: 2, .. }, None) if is_pool => "ppZ".to_owned(),
        (Size::Product(0, 1), None) => "zZ".to_owned(),
        _ => return None,
    };
    Some(format!("({letters})p"))
}

fn render(report: &Report, style: Style) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(out, "{}", style.bold(&report.file));
    for rule in &report.rules {
        let _ = writeln!(out, "  {}  {}", rule.says, style.faint(&rule.r#where));
        let holds = match rule.holds_for.as_slice() {
            [] => "no function here".to_owned(),
            names => names.join(", "),
        };
        let _ = writeln!(out, "      holds for {holds}");
        if !rule.outdone_for.is_empty() {
            let names = rule.outdone_for.join(", ");
            let _ = writeln!(out, "      outdone by a higher rule for {names}");
        }
    }
    for row in report.functions.iter().take(style.rows) {
        let place = match (&row.file, row.line) {
            (Some(file), Some(line)) => format!("{}:{line}", short(file, 1)),
            _ => String::new(),
        };
        let _ = writeln!(
            out,
            "  {:<9} {}{}  {}",
            row.kind,
            style.kind(&row.function),
            row.signature.as_deref().unwrap_or(""),
            style.faint(&place),
        );
        let _ = writeln!(out, "      {}: {}", row.by, row.why);
    }
    if let Some(left @ 1..) = report.functions.len().checked_sub(style.rows) {
        let _ = writeln!(out, "  {left} more: --all");
    }
    let found: Vec<&FunctionRow> = report
        .functions
        .iter()
        .filter(|row| row.by == "found" && !["inlined", "maker"].contains(&row.kind))
        .collect();
    if !found.is_empty() {
        let _ = writeln!(out, "\n{}", style.bold("What was found, as configuration"));
    }
    for row in found.iter().take(style.rows) {
        match (&row.signature, row.kind) {
            // A pool's signature names it.
            (Some(signature), "pool") => {
                let _ = writeln!(out, "[[pool]]\nsignature = \"{}{signature}\"", row.function);
                continue;
            }
            (None, "pool") => continue,
            _ => {}
        }
        let _ = writeln!(out, "[[wrapper]]\nname = {:?}", row.function);
        if let Some(signature) = &row.signature {
            let _ = writeln!(out, "signature = {signature:?}");
        }
    }
    out
}
