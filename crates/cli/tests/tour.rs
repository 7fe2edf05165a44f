//! *Is each kind of pointer told right?* — a program with one of each says what must be answered; it is asked of the running
//! process and of snapshots, in C and C++, optimized or not, dynamic or static, under `run` and preloaded only.

mod harness;

use harness::{eventually, pointee};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A row that the program printed.
#[derive(Clone)]
struct Row {
    address: String,
    kind: String,
    name: String,
    r#type: String,
    field: String,
}

fn build(compiler: &[&str], folder: &Path) -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tour/tour.c");
    let program = folder.join("tour");
    let status = Command::new(compiler[0])
        .args(&compiler[1..])
        .args(["-g", "-pthread", "-o"])
        .arg(&program)
        .arg(source)
        .status();
    assert!(status.expect("the compiler runs").success(), "{compiler:?}");
    program
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    Run,
    Preloaded,
    /// Not recorded; all but its blocks is known.
    Plain,
}

/// Starts the program and reads its rows; the process it became is given by number.
fn start(program: &Path, how: How) -> (Child, u32, Vec<Row>) {
    let mut command = match how {
        How::Run => {
            let mut command = pointee();
            command
                .args(["run", "--report", "/dev/null", "--"])
                .arg(program);
            command
        }
        How::Preloaded => {
            let path = pointee().arg("runtime-path").output().expect("runs").stdout;
            let mut command = Command::new(program);
            command.env("LD_PRELOAD", String::from_utf8_lossy(&path).trim());
            command
        }
        How::Plain => Command::new(program),
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut rows = Vec::new();
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        let line = line.expect("text");
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["end"] => break,
            [address, kind, name, r#type, field] => rows.push(Row {
                address: (*address).to_owned(),
                kind: (*kind).to_owned(),
                name: (*name).to_owned(),
                r#type: (*r#type).to_owned(),
                field: (*field).to_owned(),
            }),
            _ => {}
        }
    }
    let pid = match how {
        How::Run => {
            let children = format!("/proc/{0}/task/{0}/children", child.id());
            let text = std::fs::read_to_string(children).expect("children");
            text.trim().parse().expect("one child")
        }
        How::Preloaded | How::Plain => child.id(),
    };
    assert!(eventually(|| waits(pid)), "every thread waits");
    (child, pid, rows)
}

/// Whether every thread is in a system call: of one that runs, frames are not known.
fn waits(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("tasks");
    let mut calls =
        tasks.map(|task| std::fs::read_to_string(task.expect("a task").path().join("syscall")));
    calls.all(|call| call.is_ok_and(|call| !call.starts_with("running")))
}

/// Rows that may need the registers of a thread: nobody puts them on the stack while it waits.
fn needs_registers(row: &Row) -> bool {
    row.kind == "alloca" || row.name == "numbers"
}

fn answers(subject: &str, options: &[&str], rows: &[Row]) -> Vec<Value> {
    let output = pointee()
        .args(["what", subject, "--format", "json"])
        .args(options)
        .args(rows.iter().map(|row| &row.address))
        .output()
        .expect("runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Types without what C and C++ write differently.
fn plain(answer: &Value) -> String {
    let text = answer.as_str().unwrap_or("");
    text.replace("struct ", "")
        .replace("const ", "")
        .replace(" *", "*")
        .replace(' ', "_")
}

fn check(rows: &[Row], answers: &[Value], blocks_are_known: bool, context: &str) {
    assert_eq!(rows.len(), answers.len());
    for (row, answer) in rows.iter().zip(answers) {
        let mut kind = row.kind.as_str();
        let mut types = [&row.r#type, &row.field];
        if !blocks_are_known && (kind == "heap" || kind == "slack") {
            // By the allocator's header only: the rest of the chunk is the block, and has no type.
            kind = "heap";
            types = [&row.name; 2];
        }
        if kind == "idle" {
            kind = if blocks_are_known {
                "signal-stack"
            } else {
                "static"
            };
        }
        let asked = |text: &str| text != "-";
        let found = answer["kind"].as_str().unwrap_or("-");
        assert_eq!(found, kind, "{context}: {answer:#}");
        if asked(&row.name) {
            assert_eq!(answer["name"], row.name.as_str(), "{context}: {answer:#}");
        }
        if asked(types[0]) {
            assert_eq!(&plain(&answer["type"]), types[0], "{context}: {answer:#}");
        }
        if asked(types[1]) {
            assert_eq!(
                &plain(&answer["field_type"]),
                types[1],
                "{context}: {answer:#}"
            );
        }
        let chain = answer["chain"].as_array().expect("a list");
        let last = chain.last().map(|link| &link["kind"]);
        assert_eq!(last.is_some(), asked(kind), "{context}: {answer:#}");
        assert!(
            last.is_none_or(|kind| kind == "mapping"),
            "{context}: {answer:#}"
        );
    }
}

#[test]
fn every_kind_of_pointer() {
    let folder = TempDir::new().expect("a folder");
    let builds: [(&[&str], &[How]); 10] = [
        (&["gcc", "-O0"], &[How::Run, How::Preloaded]),
        (&["gcc", "-O2"], &[How::Run, How::Preloaded]),
        (&["g++", "-x", "c++", "-O0"], &[How::Run, How::Preloaded]),
        (&["g++", "-x", "c++", "-O2"], &[How::Run, How::Preloaded]),
        (&["gcc", "-O0", "-static"], &[How::Run, How::Plain]),
        (&["gcc", "-O2", "-static"], &[How::Run]),
        (&["gcc", "-O2", "-static-pie", "-fPIE"], &[How::Run]),
        (&["g++", "-x", "c++", "-O0", "-static"], &[How::Run]),
        (&["g++", "-x", "c++", "-O2", "-static"], &[How::Run]),
        (&["gcc", "-O2", "-no-pie"], &[How::Run, How::Plain]),
    ];
    for (compiler, hows) in builds {
        let program = build(compiler, folder.path());
        for how in hows {
            let context = compiler.join(" ");
            let (mut child, pid, rows) = start(&program, *how);
            let known = *how != How::Plain;
            let pid = pid.to_string();
            let (stopped, running): (Vec<Row>, Vec<Row>) =
                rows.iter().cloned().partition(needs_registers);
            assert_eq!(stopped.len(), 2, "{context}");
            assert!(running.len() > 25, "{context}: {} rows", running.len());
            check(&running, &answers(&pid, &[], &running), known, &context);
            check(
                &stopped,
                &answers(&pid, &["--stop"], &stopped),
                known,
                &context,
            );
            if *how == How::Run {
                saved(&pid, &rows, folder.path(), &context);
            }
            drop(child.stdin.take());
            assert!(child.wait().expect("ends").success());
        }
    }
}

/// The same from snapshots, of which one has no memory: it does not know chunks and literals.
fn saved(pid: &str, rows: &[Row], folder: &Path, context: &str) {
    for options in [&["--memory"][..], &[]] {
        let file = folder.join("snapshot");
        let status = pointee()
            .arg("snapshot")
            .args(options)
            .arg(pid)
            .arg(&file)
            .status();
        assert!(status.expect("runs").success());
        let answers = answers(file.to_str().expect("a name"), &[], rows);
        // What is on the stack behind a slot, too.
        let needs_memory = ["free", "header", "slack", "literal"];
        let has_memory = !options.is_empty();
        let is_known = |row: &Row| {
            if needs_registers(row) {
                return has_memory && context.contains("-O0");
            }
            has_memory || !needs_memory.contains(&row.kind.as_str())
        };
        let (rows, answers): (Vec<_>, Vec<_>) = rows
            .iter()
            .zip(answers)
            .filter(|(row, _)| is_known(row))
            .map(|(row, answer)| (row.clone(), answer))
            .unzip();
        check(
            &rows,
            &answers,
            true,
            &format!("{context}, saved {options:?}"),
        );
    }
}

#[test]
fn every_byte_falls_under_one_leaf() {
    let folder = TempDir::new().expect("a folder");
    let program = build(&["gcc", "-O1"], folder.path());
    let (mut child, pid, _) = start(&program, How::Run);
    let output = pointee()
        .args(["maps", "--format", "json", &pid.to_string()])
        .output()
        .expect("runs");
    let census: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let sum = |rows: &Value| -> u64 {
        let rows = rows.as_array().expect("a list");
        rows.iter().filter_map(|row| row["bytes"].as_u64()).sum()
    };
    assert_eq!(census["mapped_bytes"].as_u64(), Some(sum(&census["kinds"])));
    for mapping in census["mappings"].as_array().expect("a list") {
        assert_eq!(
            mapping["bytes"].as_u64(),
            Some(sum(&mapping["kinds"])),
            "{mapping:#}"
        );
    }
    let shares = &census["shares"];
    let known = |part: &str, whole: &str, percent: f64| {
        let (part, whole) = (shares[part].as_f64(), shares[whole].as_f64());
        let (part, whole) = (part.expect("a number"), whole.expect("a number"));
        assert!(whole > 0.0 && part * 100.0 <= whole * percent, "{shares:#}");
    };
    known(
        "writable_static_bytes_by_section_only",
        "writable_static_bytes",
        1.0,
    );
    known("arena_bytes_by_mapping_only", "arena_bytes", 0.1);
    known("frames_without_function", "frames", 1.0);
    drop(child.stdin.take());
    assert!(child.wait().expect("ends").success());
}
