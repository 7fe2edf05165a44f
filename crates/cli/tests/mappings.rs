//! *Does the index say of each page what the kernel says, as long as calls are seen, and how much was not seen where they were not?*

mod harness;

use harness::pointee;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Its pages, those that seen calls left as they are, and the bytes that `mapper` mapped.
fn ask(pid: u32, mapper: &str) -> (u64, u64, u64) {
    let output = pointee()
        .args(["maps", "--format", "json", &pid.to_string()])
        .output()
        .expect("runs");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let number = |value: &Value| value.as_u64().expect("a number");
    let rows = answer["mapped_by"].as_array().expect("a list");
    let bytes = rows
        .iter()
        .filter(|row| row["mapper"]["function"] == mapper)
        .map(|row| number(&row["bytes"]))
        .sum();
    let pages = &answer["pages"];
    (number(&pages["pages"]), number(&pages["as_seen"]), bytes)
}

#[test]
fn the_index_agrees_with_the_kernel_when_all_stand_still() {
    let folder = TempDir::new().expect("a folder");
    let program = folder.path().join("storm");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mappings/storm.c");
    let status = Command::new("gcc")
        .args(["-g", "-O1", "-pthread", "-o"])
        .args([&program, &source])
        .status();
    assert!(status.expect("gcc runs").success());
    let under_run = |rounds: &str| {
        let mut command = pointee();
        command
            .args(["run", "--report", "/dev/null", "--"])
            .arg(&program)
            .arg(rounds);
        command
    };
    // The images of what is loaded, which tell of system call instructions, are there from the second run on.
    let first = under_run("1").stdin(Stdio::null()).output();
    assert!(first.expect("runs").status.success());
    let mut child = under_run("5000")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut next = || lines.next().expect("a line").expect("text");
    let mut input = child.stdin.take().expect("a pipe");

    let pid = next().parse().expect("a process id");
    let (pages, as_seen, mapped) = ask(pid, "map");
    assert!(pages > 50_000, "{pages}");
    assert_eq!(pages, as_seen, "pages that the index has otherwise");
    assert!(mapped > 50_000 * 4096, "{mapped}");

    input.write_all(b"\n").expect("writes");
    let unseen: u64 = next().parse().expect("a number");
    let (now, as_seen, _) = ask(pid, "map");
    // The page of the code that was made is seen, what it mapped is not.
    assert_eq!((now - pages, now - as_seen), (unseen + 1, unseen));

    input.write_all(b"\n").expect("writes");
    assert!(child.wait().expect("ends").success());
}
