//! Runs the built command, and small C programs under it.

#![allow(dead_code, unreachable_pub, missing_docs)] // Each test file uses its own part.

pub mod process;

use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The built command.
pub fn pointee() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pointee"))
}

/// Runs `command`, with and without `pointee run` before it.
pub fn with_and_without(command: &[&str]) -> (Output, Output) {
    let plain = Command::new(command[0])
        .args(&command[1..])
        .output()
        .expect("runs");
    let folder = TempDir::new().expect("a folder");
    let watched = pointee()
        .args(["run", "--report"])
        .arg(folder.path().join("report"))
        .arg("--")
        .args(command)
        .output()
        .expect("runs");
    (plain, watched)
}

/// The JSON report of `command`, with its own output.
pub fn report(command: &[&str]) -> (Vec<Value>, Output) {
    report_with(&[], command)
}

/// The same with options of `run`.
pub fn report_with(options: &[&str], command: &[&str]) -> (Vec<Value>, Output) {
    let (report, output) = json_report("run", options, command);
    let Value::Array(reports) = report else {
        panic!("the report is no array");
    };
    (reports, output)
}

/// The JSON report of `subcommand` on `command`, with the command's own output.
pub fn json_report(subcommand: &str, options: &[&str], command: &[&str]) -> (Value, Output) {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("report.json");
    let output = pointee()
        .args([subcommand, "--format", "json", "--report"])
        .arg(&file)
        .args(options)
        .arg("--")
        .args(command)
        .output()
        .expect("runs");
    let text =
        std::fs::read(&file).unwrap_or_else(|_| panic!("a report of {command:?}: {output:?}"));
    (serde_json::from_slice(&text).expect("JSON"), output)
}

/// Compiles a C program with debug info; the folder goes when it is dropped.
pub fn compile(source: &str, flags: &[&str]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("program.c");
    let program = folder.path().join("program");
    std::fs::write(&file, source).expect("writes");
    let status = Command::new("gcc")
        .args([
            "-g",
            "-O1",
            "-fno-inline",
            "-Wno-deprecated-declarations",
            "-o",
        ])
        .arg(&program)
        .arg(&file)
        .args(flags)
        .status()
        .expect("gcc runs");
    assert!(status.success(), "the program compiles");
    (folder, program)
}

/// Starts `program` under `run`, waits for its first line, and gives that and its process id.
pub struct Running {
    pub supervisor: Child,
    pub pid: u32,
    pub line: String,
}

impl Running {
    pub fn start(options: &[&OsStr], program: &Path) -> Self {
        Self::start_by(pointee(), options, program)
    }

    /// The same with a configuration.
    pub fn start_configured(config: &Path, program: &Path) -> Self {
        let mut command = pointee();
        command.arg("--config").arg(config);
        Self::start_by(command, &[], program)
    }

    fn start_by(mut pointee: Command, options: &[&OsStr], program: &Path) -> Self {
        use std::io::{BufRead, BufReader};
        let mut supervisor = pointee
            .args(["run", "--report", "/dev/null"])
            .args(options)
            .arg("--")
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        let out = supervisor.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("a line");
        let children = format!("/proc/{0}/task/{0}/children", supervisor.id());
        let pid = std::fs::read_to_string(children).expect("children");
        let pid = pid.trim().parse().expect("one child");
        Self {
            supervisor,
            pid,
            line,
        }
    }

    pub fn finish(mut self) -> std::process::ExitStatus {
        drop(self.supervisor.stdin.take());
        self.supervisor.wait().expect("ends")
    }
}

/// Waits until `holds`; false after a minute.
pub fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}
