//! *What do the tests need of the system?* — compilers, other people's tools to disagree with, and real programs
//! to look at.
//!
//! A test file that runs more than [`COMMON`] says so itself, in a constant `PACKAGES` of Debian packages; all of
//! these are collected.

use crate::shell;
use crate::workspace::Workspace;
use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian packages that tests take for granted.
const COMMON: &[&str] = &[
    "binutils",
    "bzip2",
    "dwz",
    "g++",
    "gcc",
    "gdb",
    "git",
    "jq",
    "libc6-dev",
    "libsqlite3-0",
    "perl",
    "python3",
    "sqlite3",
    "valgrind",
];

/// Installs what is missing where that can be done; tells what it did, or what is missing.
pub(crate) fn install(workspace: &Workspace) -> Result<String> {
    let needed = needed(workspace.root())?;
    if shell::find_program("dpkg-query").is_none() {
        return Ok(format!(
            "not a Debian system: cannot tell whether {} are there",
            words(&needed)
        ));
    }
    let missing = missing(&needed);
    if missing.is_empty() {
        return Ok(format!("{} packages are there", needed.len()));
    }
    if !is_root()? || shell::find_program("apt-get").is_none() {
        bail!("missing; as root: apt-get install {}", words(&missing));
    }
    apt_get(&["update"], &BTreeSet::new())?;
    let install = ["install", "--yes", "--no-install-recommends"];
    if apt_get(&install, &missing).is_err() {
        // One that this release does not have must not keep the others away.
        for package in &missing {
            let _ = apt_get(&install, &BTreeSet::from([package.clone()]));
        }
    }
    let left = self::missing(&needed);
    if !left.is_empty() {
        bail!("could not be installed: {}", words(&left));
    }
    Ok(format!("installed {}", words(&missing)))
}

/// What all tests of the workspace need.
fn needed(root: &Path) -> Result<BTreeSet<String>> {
    let mut packages: BTreeSet<String> = COMMON.iter().map(ToString::to_string).collect();
    for folder in ["crates", "bindings"] {
        for file in test_files(&root.join(folder))? {
            packages.extend(declared(&fs::read_to_string(file)?).map(str::to_owned));
        }
    }
    Ok(packages)
}

/// `*/tests/*.rs` in a folder of crates.
fn test_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for member in fs::read_dir(folder)? {
        let Ok(tests) = fs::read_dir(member?.path().join("tests")) else {
            continue;
        };
        for file in tests {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    Ok(files)
}

/// The strings of `const PACKAGES: &[&str] = &[…];` in a source text.
fn declared(source: &str) -> impl Iterator<Item = &str> {
    let list = source
        .split_once("const PACKAGES: &[&str] = &[")
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or("", |(list, _)| list);
    list.split('"').skip(1).step_by(2)
}

/// Those of `packages` that dpkg does not have.
fn missing(packages: &BTreeSet<String>) -> BTreeSet<String> {
    // It fails when it does not know one of them, and still tells of the others.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status} ${Package}\n"])
        .args(packages)
        .output();
    let text = output.map_or(String::new(), |output| {
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    let installed: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .collect();
    packages
        .iter()
        .filter(|package| !installed.contains(package.as_str()))
        .cloned()
        .collect()
}

fn words(words: &BTreeSet<String>) -> String {
    words.iter().cloned().collect::<Vec<_>>().join(" ")
}

fn apt_get(arguments: &[&str], packages: &BTreeSet<String>) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .arg("--quiet")
        .args(arguments)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    shell::output(&mut command).map(drop)
}

/// Whether this process may install packages.
fn is_root() -> Result<bool> {
    let owner = fs::metadata("/proc/self")?.uid();
    Ok(owner == 0)
}

#[cfg(test)]
mod tests {
    use super::declared;

    #[test]
    fn declarations_are_read() {
        let rows: [(&str, &[&str]); 3] = [
            (
                "pub const PACKAGES: &[&str] = &[\n    \"gcc\",\n    \"lua5.4\", \"jq\",\n];\nconst A: u8 = 1;",
                &["gcc", "lua5.4", "jq"],
            ),
            ("const PACKAGES: &[&str] = &[];", &[]),
            ("fn main() {}", &[]),
        ];
        for (source, expect) in rows {
            assert_eq!(declared(source).collect::<Vec<_>>(), expect, "{source}");
        }
    }
}
