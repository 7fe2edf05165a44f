//! Traps are seen by nobody: programs that use `SIGTRAP` themselves do as they do without, and every call is counted.
//!
//! Each program in `traps/` has a function where only a trap fits, calls it, and says how often.

mod harness;

use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

fn compile(name: &str) -> (TempDir, PathBuf) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/traps/{name}.c"));
    let folder = TempDir::new().expect("a folder");
    let program = folder.path().join("program");
    let status = Command::new("gcc")
        .args(["-g", "-O1", "-pthread", "-rdynamic", "-w", "-o"])
        .arg(&program)
        .arg(source)
        .status()
        .expect("gcc runs");
    assert!(status.success(), "{name} compiles");
    (folder, program)
}

/// The program's row of the report, and its output.
fn probe(options: &[&str], command: &[&str]) -> (Value, Output) {
    let (report, output) = harness::json_report("probe", options, command);
    let modules = report["modules"].as_array().expect("modules");
    let named = |module: &&Value| module["module"] == command[0];
    let row = modules.iter().find(named).expect("the program");
    (row.clone(), output)
}

/// How often `trapped` was entered.
fn entered(row: &Value) -> u64 {
    let hits = row["hits"].as_array().expect("hits");
    let entry = |hit: &&Value| hit["function"] == "trapped" && hit["offset"] == 0;
    hits.iter()
        .find(entry)
        .map_or(0, |hit| hit["count"].as_u64().expect("a number"))
}

/// Output and end are the same with traps, and calls were counted.
fn check(name: &str, word: &str) {
    let (_folder, program) = compile(name);
    let program = program.to_str().expect("UTF-8");
    let plain = Command::new(program).arg(word).output().expect("runs");
    let said = String::from_utf8_lossy(&plain.stdout).into_owned();
    assert!(
        !said.contains("line "),
        "{name} {word}, without probes: {said}"
    );
    let calls = said
        .lines()
        .find_map(|line| line.strip_prefix("calls "))
        .and_then(|calls| calls.parse().ok());
    for at in ["entry", "instruction"] {
        let (row, probed) = probe(&["--at", at], &[program, word]);
        assert_eq!(
            String::from_utf8_lossy(&probed.stdout),
            said,
            "{name} {word} {at}: {probed:?}"
        );
        assert_eq!(probed.status, plain.status, "{name} {word} {at}");
        assert!(row["tactics"]["trap"].as_u64() >= Some(1), "{name}: {row}");
        assert_eq!(row["refused"], Value::Array(Vec::new()), "{name}");
        assert_eq!(Some(entered(&row)), calls, "{name} {word} {at}");
    }
}

#[test]
fn the_programs_own_handler_is_as_it_was_set() {
    check("own_handler", "");
}

#[test]
fn flags_and_masks_of_handlers_hold() {
    check("flags_of_handlers", "");
}

#[test]
fn a_blocked_signal_waits_and_traps_do_not() {
    check("blocked", "");
}

#[test]
fn threads_that_wait_are_unwound_and_cancelled() {
    check("cancelled", "");
}

#[test]
fn a_program_ends_by_the_signal_as_it_did() {
    for way in [
        "raise",
        "kill",
        "int3",
        "blocked",
        "given up",
        "unblocked",
        "thread",
    ] {
        check("ends", way);
    }
}

#[test]
fn forked_and_executed_processes_inherit_what_they_did() {
    let (_folder, program) = compile("inherited");
    let program = program.to_str().expect("UTF-8");
    let plain = Command::new(program).output().expect("runs");
    let said = String::from_utf8_lossy(&plain.stdout).into_owned();
    assert!(!said.contains("line "), "without probes: {said}");
    let (row, probed) = probe(&[], &[program]);
    assert_eq!(String::from_utf8_lossy(&probed.stdout), said, "{probed:?}");
    assert_eq!(entered(&row), 302);
}

#[test]
fn without_traps_what_needs_one_is_refused() {
    let (_folder, program) = compile("own_handler");
    let program = program.to_str().expect("UTF-8");
    let (row, probed) = probe(&["--no-traps"], &[program]);
    assert_eq!(probed.stdout, b"calls 540\n");
    assert_eq!(row["tactics"]["trap"], Value::Null);
    let refused = row["refused"].as_array().expect("rows");
    assert!(
        refused.iter().any(|row| row["function"] == "trapped"
            && row["why"].as_str().is_some_and(|why| why.contains("room"))),
        "{refused:?}"
    );
}

/// gdb, told to hand the signal on, stops at its own breakpoints, and there alone; also at one on a trap.
#[test]
fn breakpoints_of_a_debugger_are_hit() {
    for (place, times) in [("stop_here", 3), ("trapped", 33)] {
        let (folder, program) = compile("debugged");
        let mut supervisor = Command::new(env!("CARGO_BIN_EXE_pointee"))
            .args(["probe", "--module", "program", "--function", "trapped"])
            .arg("--report")
            .arg(folder.path().join("report"))
            .arg("--")
            .arg(&program)
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut out = BufReader::new(supervisor.stdout.take().expect("a pipe"));
        let mut said = String::new();
        out.read_line(&mut said).expect("a line");
        let children = format!("/proc/{0}/task/{0}/children", supervisor.id());
        let pid = std::fs::read_to_string(children).expect("children");
        let mut gdb = Command::new("gdb");
        gdb.args(["-q", "-batch", "-nx", "-p", pid.trim()])
            .args(["-ex", "handle SIGTRAP nostop noprint pass"])
            .args([
                "-ex",
                &format!("break *{place}"),
                "-ex",
                "set var attached=1",
            ])
            .args(["-ex", "continue", "-ex", "bt"]);
        for _ in 0..times {
            gdb.args(["-ex", "continue"]);
        }
        let shown = gdb.output().expect("gdb runs");
        out.read_to_string(&mut said).expect("the rest");
        let end = supervisor.wait().expect("ends");
        let text = String::from_utf8_lossy(&shown.stdout);
        assert_eq!(
            text.matches("Breakpoint 1, ").count(),
            times,
            "{place}: {text}"
        );
        assert!(text.contains(" main ("), "{place}: {text}");
        assert!(!text.contains("received signal"), "{place}: {text}");
        assert_eq!(said, "ready\ncalls 33\n", "{place}: {text}");
        assert!(end.success(), "{place}: {end} {text}");
    }
}
