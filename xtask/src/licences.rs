//! *May everything we build on be passed on under our licence?* — the licence each dependency declares.

use crate::workspace::Workspace;
use anyhow::{Result, bail};

/// Licences that ask for no more than to be named. MPL, CDDL, GPL and kin are not among them.
const ACCEPTED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Looks at every package that cargo would fetch.
pub(crate) fn check(workspace: &Workspace) -> Result<String> {
    let mut looked_at = 0;
    let mut refused = Vec::new();
    for (package, licence) in workspace.licences_of_dependencies() {
        looked_at += 1;
        if !is_accepted(licence) {
            refused.push(format!("{package}: {licence}"));
        }
    }
    if !refused.is_empty() {
        bail!("not accepted:\n{}", refused.join("\n"));
    }
    Ok(format!("{looked_at} dependencies"))
}

/// Whether a licence expression (SPDX, or the older form with `/`) leaves an accepted choice.
///
/// Parentheses are taken as they occur in practice: around a whole operand of `AND`.
fn is_accepted(expression: &str) -> bool {
    let choice = |text: &str| {
        text.split(" OR ")
            .flat_map(|choice| choice.split('/'))
            .any(|licence| ACCEPTED.contains(&licence.trim()))
    };
    expression
        .split(" AND ")
        .all(|operand| choice(operand.trim().trim_matches(['(', ')'])))
}

#[cfg(test)]
mod tests {
    use super::is_accepted;

    #[test]
    fn expressions() {
        let rows = [
            ("MIT", true),
            ("MIT OR GPL-3.0-only", true),
            ("MIT/Apache-2.0", true),
            ("Apache-2.0 / MIT", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("Apache-2.0 WITH LLVM-exception OR GPL-2.0-only", true),
            ("MIT AND CDDL-1.0", false),
            ("MPL-2.0", false),
            ("", false),
        ];
        for (expression, expect) in rows {
            assert_eq!(is_accepted(expression), expect, "{expression}");
        }
    }
}
