//! *What does Pointee say of a file's sites?* — the output of `pointee sites --format json`.

use super::Options;
use crate::shell;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use serde_json::Value;
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
    let rows = parsed.as_array().context("`sites` prints an array")?;
    let outside = rows.iter().filter(|row| row["wrapper"] == false);
    Ok(outside.map(site).collect())
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
