//! *Is everything as it should be?* — all checks, one after the other; a failed one does not stop the rest.

use crate::workspace::Workspace;
use crate::{capabilities, licences, packages, shell};
use anyhow::{Result, bail};
use std::process::Command;
use std::time::Instant;

/// The runtime builds only with `panic = "abort"`, as a library of no test harness: it is checked apart.
const RUNTIME: &str = "pointee-runtime";

/// Seconds each fuzz target gets.
const FUZZ_SECONDS: &str = "10";

/// Gives a remark on success; an error's text is all there is to say of a failure.
type Check = fn(&Workspace) -> Result<String>;

pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    let workspace = Workspace::open()?;
    let checks: [(&str, Check); 10] = [
        ("what the tests need", packages::install),
        ("format", format),
        ("lints", lints),
        ("lints of the runtime", lints_of_the_runtime),
        ("documentation", documentation),
        ("tests", tests),
        ("the runtime needs nothing", the_runtime_needs_nothing),
        ("licences", licences::check),
        ("capabilities", capabilities::check),
        ("fuzz targets", fuzz_targets),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        let begin = Instant::now();
        let done = check(&workspace);
        let seconds = begin.elapsed().as_secs_f64();
        match done {
            Ok(note) => println!("ok      {seconds:6.1} s  {name:26} {note}"),
            Err(error) => {
                println!("FAILED  {seconds:6.1} s  {name}\n\n{error:#}\n");
                failed.push(name);
            }
        }
    }
    let seconds = start.elapsed().as_secs();
    let (minutes, seconds) = (seconds / 60, seconds % 60);
    if failed.is_empty() {
        println!("\nAll is well, after {minutes} min {seconds} s.");
        return Ok(());
    }
    bail!(
        "failed after {minutes} min {seconds} s: {}",
        failed.join(", ")
    )
}

fn format(workspace: &Workspace) -> Result<String> {
    component("rustfmt", "cargo-fmt")?;
    quiet(workspace.cargo().args(["fmt", "--all", "--check"]))
}

fn lints(workspace: &Workspace) -> Result<String> {
    component("clippy", "cargo-clippy")?;
    quiet(
        workspace
            .cargo()
            .args(["clippy", "--workspace", "--exclude", RUNTIME])
            .args(["--all-targets", "--", "--deny", "warnings"]),
    )
}

fn lints_of_the_runtime(workspace: &Workspace) -> Result<String> {
    quiet(
        workspace
            .cargo()
            .args(["clippy", "--package", RUNTIME, "--release"])
            .args(["--", "--deny", "warnings"]),
    )
}

/// The runtime's library and the command's program share a name, and so would share a page.
fn documentation(workspace: &Workspace) -> Result<String> {
    let document = |packages: &[&str]| {
        quiet(
            workspace
                .cargo()
                .args(["doc", "--no-deps", "--document-private-items"])
                .args(packages)
                .env("RUSTDOCFLAGS", "--deny warnings"),
        )
    };
    document(&["--workspace", "--exclude", RUNTIME])?;
    let folder = workspace.target()?.join("runtime-documentation");
    let folder = folder.to_string_lossy();
    document(&["--package", RUNTIME, "--release", "--target-dir", &folder])
}

fn tests(workspace: &Workspace) -> Result<String> {
    let mut command = workspace.cargo();
    command.args([
        "test",
        "--workspace",
        "--exclude",
        RUNTIME,
        "--no-fail-fast",
    ]);
    let log = workspace.target()?.join("tests.log");
    let (status, output) = shell::said_to_file(&mut command, &log)?;
    if !status.success() {
        bail!(
            "{}: {status}\n{}",
            shell::shown(&command),
            failures(&output)
        );
    }
    let (passed, ignored) = counts(&output);
    if passed == 0 {
        bail!("no test ran");
    }
    Ok(match ignored {
        0 => format!("{passed} passed"),
        _ => format!("{passed} passed, {ignored} ignored"),
    })
}

/// What a reader wants of failed tests: their names first, then what each said. Where no test failed, as when one
/// does not compile, the end of the output.
fn failures(output: &str) -> String {
    const LAST_LINES: usize = 100;
    let mut names = Vec::new();
    let mut said = Vec::new();
    let mut is_in_failures = false;
    for line in output.lines() {
        match line {
            "failures:" => is_in_failures = true,
            _ if line.starts_with("test result: ") => is_in_failures = false,
            _ if !is_in_failures => {}
            _ => {
                if let Some(test) = line.strip_prefix("---- ") {
                    names.push(test.strip_suffix(" stdout ----").unwrap_or(test));
                }
                said.push(line);
            }
        }
    }
    if names.is_empty() {
        let lines: Vec<&str> = output.lines().collect();
        return lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
    }
    format!("{}\n\n{}", names.join("\n"), said.join("\n"))
}

/// Tests passed and ignored, by the harness's lines `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn counts(output: &str) -> (u32, u32) {
    let results = output
        .lines()
        .filter_map(|line| line.strip_prefix("test result: "));
    let number_before = |line: &str, word: &str| -> u32 {
        let mut parts = line.split(['.', ';']);
        let part = parts.find_map(|part| part.trim().strip_suffix(word));
        part.and_then(|number| number.trim().parse().ok())
            .unwrap_or(0)
    };
    results.fold((0, 0), |(passed, ignored), line| {
        (
            passed + number_before(line, "passed"),
            ignored + number_before(line, "ignored"),
        )
    })
}

/// It must load into any process: no library it wants, no symbol it does not have itself.
fn the_runtime_needs_nothing(workspace: &Workspace) -> Result<String> {
    let mut build = workspace.cargo();
    build.args(["build", "--release", "--package", RUNTIME]);
    shell::output(&mut build)?;
    let library = workspace.target()?.join("release/libpointee.so");
    let undefined = shell::output(
        Command::new("nm")
            .args(["--dynamic", "--undefined-only"])
            .arg(&library),
    )?;
    if !undefined.trim().is_empty() {
        bail!("{} has undefined symbols:\n{undefined}", library.display());
    }
    let dynamic = shell::output(
        Command::new("readelf")
            .args(["--dynamic", "--wide"])
            .arg(&library),
    )?;
    if let Some(needed) = dynamic.lines().find(|line| line.contains("(NEEDED)")) {
        bail!("{} wants another library: {needed}", library.display());
    }
    if !dynamic.contains("INITFIRST") {
        bail!(
            "{} would not start before other libraries",
            library.display()
        );
    }
    Ok("no undefined symbol, no library".to_owned())
}

/// Each target of `fuzz/` for a short while, on inputs made of real files.
fn fuzz_targets(workspace: &Workspace) -> Result<String> {
    let script = workspace.root().join("fuzz/run.sh");
    let output = shell::output(Command::new("bash").arg(script).arg(FUZZ_SECONDS))?;
    let ran = output.lines().filter(|line| line.starts_with("ok"));
    Ok(format!("{} for {FUZZ_SECONDS} seconds each", ran.count()))
}

fn quiet(command: &mut Command) -> Result<String> {
    shell::output(command).map(|_| String::new())
}

/// Adds a component of the toolchain if it is not there and rustup is.
fn component(name: &str, program: &str) -> Result<()> {
    if shell::find_program(program).is_some_and(|_| {
        Command::new(program)
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success())
    }) {
        return Ok(());
    }
    shell::output(Command::new("rustup").args(["component", "add", name])).map(drop)
}

#[cfg(test)]
mod tests {
    use super::{counts, failures};

    #[test]
    fn results_are_counted() {
        let output = "\
running 2 tests
test a ... ok
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

test result: ok. 11 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.10s
";
        assert_eq!(counts(output), (13, 3));
        assert_eq!(counts(""), (0, 0));
    }

    #[test]
    fn failed_tests_are_named_first() {
        let output = "\
   Compiling a lot
running 2 tests
test a ... ok
test b::c ... FAILED

failures:

---- b::c stdout ----
thread 'b::c' panicked at x.rs:1:1

failures:
    b::c

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
error: 1 target failed
";
        let failures = failures(output);
        assert!(failures.starts_with("b::c\n"), "{failures}");
        assert!(failures.contains("panicked at x.rs"), "{failures}");
        assert!(!failures.contains("Compiling"), "{failures}");
        assert!(super::failures("error: expected `;`").contains("expected"));
    }
}
