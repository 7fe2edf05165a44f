//! *Do the test suites of Perl and Python pass with a counter at every function?* — `cargo xtask bench suites`: each part of a suite runs by
//! itself and under `pointee probe --at entry`, and must say the same both times.
//!
//! The interpreter that runs a test is probed, with all that it loads; what that starts by `exec` is not.

use super::table::Table;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A part that takes longer hangs.
const PATIENCE: &str = "900";
/// The folders of Perl's `t` that test the interpreter.
const PERL: [&str; 9] = ["base", "cmd", "comp", "io", "re", "op", "uni", "mro", "lib"];
/// Python's modules that take minutes, want a network or a display, or test what other processes see of them.
const LONG: [&str; 24] = [
    "asyncio",
    "bigmem",
    "concurrent_futures",
    "ctypes",
    "curses",
    "dbm",
    "distutils",
    "ensurepip",
    "ftplib",
    "gdb",
    "idle",
    "largefile",
    "lib2to3",
    "multiprocessing",
    "peg_generator",
    "smtpnet",
    "socket",
    "sqlite",
    "ssl",
    "tk",
    "tools",
    "ttk",
    "turtle",
    "venv",
];

/// What one run of a part said of each test.
type Said = BTreeMap<String, String>;

/// `--perl FOLDER`: a built source tree, of which `perl` is taken; `--python FILE`: an interpreter that has the module `test`.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let (mut perl, mut python, mut pointee) = (None, None, None);
    for pair in words.chunks(2) {
        match pair {
            ["--perl", folder] => {
                perl = Some(fs::canonicalize(folder).context(folder.to_string())?)
            }
            ["--python", file] => python = Some(PathBuf::from(file)),
            ["--pointee", file] => pointee = Some(PathBuf::from(file)),
            _ => bail!("unknown option {}", pair.join(" ")),
        }
    }
    let workspace = Workspace::open()?;
    let pointee = match pointee {
        Some(pointee) => fs::canonicalize(pointee)?,
        None => workspace.build_pointee()?,
    };
    let mut table = Table::new([
        "suite",
        "parts",
        "pass both times",
        "fail both times",
        "differ",
    ]);
    let mut differences = Vec::new();
    let mut compare = |suite: &str, plain: &Said, probed: &Said| {
        let names: BTreeSet<&String> = plain.keys().chain(probed.keys()).collect();
        let same = |name: &&&String| plain.get(**name) == probed.get(**name);
        let passed = |name: &&&String| plain.get(**name).is_some_and(|said| said.starts_with("ok"));
        let alike: Vec<_> = names.iter().filter(same).collect();
        let pass = alike.iter().filter(|name| passed(name)).count();
        let differ = names.len() - alike.len();
        table.row([
            suite.to_owned(),
            names.len().to_string(),
            pass.to_string(),
            (alike.len() - pass).to_string(),
            differ.to_string(),
        ]);
        for name in names.iter().filter(|name| !same(name)) {
            let (plain, probed) = (plain.get(*name), probed.get(*name));
            differences.push(format!("{suite} {name}: {plain:?}, probed {probed:?}"));
        }
    };
    if let Some(perl) = perl {
        for folder in PERL {
            let plain = perl_says(&perl, folder, None)?;
            compare(
                &format!("perl t/{folder}"),
                &plain,
                &perl_says(&perl, folder, Some(&pointee))?,
            );
        }
    }
    if let Some(python) = python {
        let modules = modules(&python)?;
        let folder = workspace.folder("bench")?.join("suites");
        let each = |pointee: Option<&Path>| -> Result<Said> {
            let said = modules.iter().map(|module| {
                Ok((
                    module.clone(),
                    python_says(&python, module, &folder, pointee)?,
                ))
            });
            said.collect()
        };
        compare("python", &each(None)?, &each(Some(&pointee))?);
    }
    table.print();
    if differences.is_empty() {
        return Ok(());
    }
    bail!("{}", differences.join("\n"))
}

/// `command`, under the limit and perhaps under `pointee`.
fn command(pointee: Option<&Path>, words: &[&Path]) -> Command {
    let mut command = Command::new("timeout");
    command.arg(PATIENCE).stdin(Stdio::null());
    if let Some(pointee) = pointee {
        command.arg(pointee);
        command.args(["probe", "--at", "entry", "--report", "/dev/null", "--"]);
    }
    command.args(words);
    command
}

/// What Perl's own driver says of each file in a folder of `t`. Tests run `./perl`: a script, which runs the interpreter.
fn perl_says(tree: &Path, folder: &str, pointee: Option<&Path>) -> Result<Said> {
    let (t, real) = (tree.join("t"), tree.join("perl.real"));
    if !real.exists() {
        fs::rename(tree.join("perl"), &real).context("the built perl")?;
    }
    let words = command(pointee, &[&real]);
    let words: Vec<_> = words
        .get_args()
        .skip(1)
        .map(|word| word.to_string_lossy())
        .collect();
    let script = tree.join("perl");
    fs::write(
        &script,
        format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" ")),
    )?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    for name in [t.join("perl"), t.join("driver")] {
        let _ = fs::remove_file(&name);
    }
    symlink(&script, t.join("perl"))?;
    // The driver itself is not what is tested.
    symlink(&real, t.join("driver"))?;
    let mut files: Vec<String> = fs::read_dir(t.join(folder))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".t"))
        .map(|name| format!("{folder}/{name}"))
        .collect();
    files.sort();
    let output = Command::new("./driver")
        .arg("TEST")
        .args(files)
        .current_dir(&t)
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // `t/op/inc ... ok`
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("t/")?.split_once(' '));
    Ok(lines
        .map(|(name, said)| {
            let said = said.trim_start_matches(['.', ' ']).to_owned();
            (name.to_owned(), said)
        })
        .collect())
}

fn modules(python: &Path) -> Result<Vec<String>> {
    let list =
        "import test, pkgutil; print(*[m.name for m in pkgutil.iter_modules(test.__path__)])";
    let output = Command::new(python).args(["-c", list]).output()?;
    let text = String::from_utf8(output.stdout).context("names of modules")?;
    let is_long = |name: &str| LONG.iter().any(|long| name.contains(long));
    Ok(text
        .split_whitespace()
        .filter(|name| name.starts_with("test_") && !is_long(name))
        .map(str::to_owned)
        .collect())
}

/// Whether a module's tests pass, or how the run ended.
fn python_says(
    python: &Path,
    module: &str,
    folder: &Path,
    pointee: Option<&Path>,
) -> Result<String> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let output = command(pointee, &[python])
        .args(["-m", "test", module])
        .current_dir(folder)
        .output()?;
    Ok(if output.status.success() {
        "ok".to_owned()
    } else {
        output.status.to_string()
    })
}
