//! *Is what the table of capabilities claims shown by a test?* — each test named there must exist.

use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;

/// Looks up all `path/to/file.rs::name` of `docs/capabilities.md`; that they pass is for the tests to tell.
pub(crate) fn check(workspace: &Workspace) -> Result<String> {
    let table = fs::read_to_string(workspace.root().join("docs/capabilities.md"))
        .context("docs/capabilities.md")?;
    let mut missing = Vec::new();
    let mut found = 0;
    for (file, name) in tests_named(&table) {
        if exists(&workspace.root().join(file), name) {
            found += 1;
        } else {
            missing.push(format!("{file}::{name}"));
        }
    }
    if !missing.is_empty() {
        bail!(
            "docs/capabilities.md names tests that are not there:\n{}",
            missing.join("\n")
        );
    }
    Ok(format!("{found} tests shown"))
}

/// File and function of each test in back quotes.
fn tests_named(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|quoted| quoted.split_once("::"))
        .filter(|(file, _)| file.ends_with(".rs"))
}

fn exists(file: &Path, name: &str) -> bool {
    let head = format!("fn {name}(");
    fs::read_to_string(file).is_ok_and(|source| source.contains(&head))
}

#[cfg(test)]
mod tests {
    use super::tests_named;

    #[test]
    fn names_are_found() {
        let text = "| `malloc` | `crates/a/tests/b.rs::c` | `std::fs` and `x.rs::y`";
        let found: Vec<_> = tests_named(text).collect();
        assert_eq!(found, [("crates/a/tests/b.rs", "c"), ("x.rs", "y")]);
    }
}
