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
    let parsed = said(file, options)?;
    let outside = parsed.iter().filter(|row| row["wrapper"] == false);
    Ok(outside.map(site).collect())
}

/// The functions whose allocations are their callers', or calls of which are sites.
pub(super) fn wrappers(file: &Path, options: &Options) -> Result<BTreeSet<String>> {
    let parsed = said(file, options)?;
    let names = parsed.iter().flat_map(|row| {
        let within = (row["wrapper"] == true).then(|| &row["function"]);
        within.into_iter().chain([&row["callee"]])
    });
    Ok(names.filter_map(Value::as_str).map(str::to_owned).collect())
}

fn said(file: &Path, options: &Options) -> Result<Vec<Value>> {
    let pointee = match &options.pointee {
        Some(pointee) => pointee.clone(),
        None => Workspace::open()?.build_pointee()?,
    };
    let mut command = Command::new(pointee);
    command.arg("sites").arg(file).args(["--format", "json"]);
    if !options.sources {
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
