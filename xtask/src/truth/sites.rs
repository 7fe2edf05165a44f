//! *What does Pointee say of a file's sites?* — the output of `pointee sites --format json`.

use super::Options;
use crate::shell;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// One allocation site that is not part of a wrapper.
pub(super) struct Site {
    pub(super) function: String,
    pub(super) file: String,
    pub(super) line: u64,
    pub(super) callee: String,
    /// As printed; empty if there is none.
    pub(super) r#type: String,
    pub(super) role: String,
    pub(super) verdict: String,
    pub(super) evidence: Vec<String>,
    /// Functions and call places around it, innermost first.
    pub(super) around: Vec<(String, String, u64)>,
}

impl Site {
    /// Whether one type in one role is claimed.
    pub(super) fn is_answered(&self) -> bool {
        !self.r#type.is_empty()
            && matches!(&*self.verdict, "single" | "agreed")
            && !matches!(&*self.role, "base" | "unknown")
    }

    /// What identifies its place.
    pub(super) fn place(&self) -> (&str, u64, &str) {
        (&self.file, self.line, &self.callee)
    }
}

/// The sites of a file, those in wrappers left out.
pub(super) fn of(file: &Path, options: &Options) -> Result<Vec<Site>> {
    with_sources(file, options, options.sources)
}

/// The same, whether sources are to be read being said.
pub(super) fn with_sources(file: &Path, options: &Options, sources: bool) -> Result<Vec<Site>> {
    let parsed = said(file, options, sources)?;
    let outside = parsed.iter().filter(|row| row["wrapper"] == false);
    Ok(outside.map(site).collect())
}

/// The functions whose allocations are their callers', or calls of which are sites; and those that are nowhere but inlined
/// into functions in which what they allocate has a type.
pub(super) fn wrappers(
    file: &Path,
    options: &Options,
) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let parsed = said(file, options, options.sources)?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let (mut found, mut inlined) = (BTreeSet::new(), BTreeSet::new());
    for row in &parsed {
        let around: Vec<&Value> = row["inlined"].as_array().into_iter().flatten().collect();
        let concrete = around
            .last()
            .map_or(&row["function"], |place| &place["function"]);
        found.extend(text(&row["callee"]));
        if row["wrapper"] == true {
            found.extend(text(concrete));
        } else if !row["type"].is_null() && !around.is_empty() {
            let outer = around.iter().rev().skip(1).map(|place| &place["function"]);
            inlined.extend(outer.chain([&row["function"]]).filter_map(text));
        }
    }
    Ok((found, inlined))
}

/// The functions that `explain` lists as wrappers or pools, called in the file or not.
pub(super) fn explained(file: &Path, options: &Options) -> Result<BTreeSet<String>> {
    let mut command = ask("explain", file, options)?;
    command.arg("--all");
    let parsed: Value = serde_json::from_str(&shell::output(&mut command)?)?;
    let rows = parsed["functions"].as_array().into_iter().flatten();
    let names = rows.filter_map(|row| row["function"].as_str());
    Ok(names.map(str::to_owned).collect())
}

fn ask(what: &str, file: &Path, options: &Options) -> Result<Command> {
    let pointee = match &options.pointee {
        Some(pointee) => pointee.clone(),
        None => Workspace::open()?.build_pointee()?,
    };
    let mut command = Command::new(pointee);
    command.arg(what).arg(file).args(["--format", "json"]);
    Ok(command)
}

fn said(file: &Path, options: &Options, sources: bool) -> Result<Vec<Value>> {
    let mut command = ask("sites", file, options)?;
    if !sources {
        command.arg("--no-sources");
    }
    let parsed: Value = serde_json::from_str(&shell::output(&mut command)?)?;
    parsed
        .as_array()
        .cloned()
        .context("`sites` prints an array")
}

fn site(row: &Value) -> Site {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    Site {
        function: text(&row["function"]),
        file: text(&row["file"]),
        line: row["line"].as_u64().unwrap_or(0),
        callee: text(&row["callee"]),
        r#type: text(&row["type"]),
        role: text(&row["role"]),
        verdict: text(&row["verdict"]),
        evidence: list(&row["evidence"]).iter().map(text).collect(),
        around: list(&row["inlined"])
            .iter()
            .map(|place| {
                (
                    text(&place["function"]),
                    text(&place["file"]),
                    place["line"].as_u64().unwrap_or(0),
                )
            })
            .collect(),
    }
}
