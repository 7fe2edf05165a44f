//! *Does a program that asks about itself get right answers?* — in C and C++, optimized or not, linked in every way, under `run`,
//! preloaded only, and without Pointee; and the same answers as `what` gives from outside.

mod harness;

use harness::pointee;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

const INCLUDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../include");
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/asking");

fn build(compiler: &[&str], source: &str, out: &Path) {
    let status = Command::new(compiler[0])
        .args(&compiler[1..])
        .args([
            "-g", "-pthread", "-Wall", "-Wextra", "-Werror", "-I", INCLUDE, "-o",
        ])
        .arg(out)
        .arg(Path::new(SOURCES).join(source))
        .status();
    assert!(status.expect("the compiler runs").success(), "{compiler:?}");
}

/// The lines a program prints, when it is let go on; its last one is `end` and the number of wrong answers.
fn lines(command: &mut Command, meanwhile: impl FnOnce(u32, &[String])) -> Vec<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = Vec::new();
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        lines.push(line.expect("text"));
        if lines.last().is_some_and(|line| line.starts_with("end ")) {
            break;
        }
    }
    meanwhile(child.id(), &lines);
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(b"\n")
        .expect("writes");
    child.wait().expect("ends");
    lines
}

fn all_right(lines: &[String], context: &str) {
    assert_eq!(
        lines.last().map(String::as_str),
        Some("end 0"),
        "{context}: {lines:#?}"
    );
}

fn under_run(program: &Path, library: &Path) -> Command {
    let mut command = pointee();
    command
        .args(["run", "--report", "/dev/null", "--"])
        .arg(program)
        .arg("with")
        .arg(library);
    command
}

/// Types without qualifiers and typedefs' names, which the types of a process do not have.
fn plain(text: &str) -> String {
    text.replace("const ", "").replace("volatile ", "")
}

/// Asks `what` for the rows that the program printed, by process id.
fn agrees_with_what(pid: u32, lines: &[String]) {
    let rows: Vec<Vec<&str>> = lines
        .iter()
        .map(|line| line.split('|').collect())
        .filter(|row: &Vec<&str>| row.len() == 3)
        .collect();
    assert!(rows.len() >= 6, "{lines:#?}");
    // The last row's frame is gone by now.
    for row in &rows[..rows.len() - 1] {
        let output = pointee()
            .args(["what", &pid.to_string(), row[0], "--format", "json"])
            .output()
            .expect("runs");
        let answers: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let text = |field: &str| plain(answers[0][field].as_str().unwrap_or("(no type)"));
        assert_eq!(
            [text("type"), text("field_type")],
            [row[1], row[2]],
            "{answers:#}"
        );
    }
}

fn preloaded(program: &Path, library: &Path) -> Command {
    let path = pointee().arg("runtime-path").output().expect("runs").stdout;
    let mut command = Command::new(program);
    command
        .arg("with")
        .arg(library)
        .env("LD_PRELOAD", String::from_utf8_lossy(&path).trim());
    command
}

fn check(compiler: &[&str]) {
    let folder = TempDir::new().expect("a folder");
    let [program, library] = ["asking", "library.so"].map(|name| folder.path().join(name));
    build(compiler, "asking.c", &program);
    build(&["gcc", "-shared", "-fPIC"], "library.c", &library);
    let context = format!("{compiler:?}");
    let without = lines(
        Command::new(&program).arg("without").arg(&library),
        |_, _| (),
    );
    all_right(&without, &context);
    // The images of libraries are there from the second run on, or when they were made beforehand.
    let made = pointee()
        .arg("meta")
        .args([&program, &library, &libc()])
        .output();
    assert!(made.expect("runs").status.success());
    lines(&mut under_run(&program, &library), |_, _| ());
    all_right(
        &lines(&mut under_run(&program, &library), |_, _| ()),
        &context,
    );
    // A process that another became was not introduced: its images are found where the user keeps them.
    let mut become_it = pointee();
    become_it
        .args(["run", "--report", "/dev/null", "--", "/usr/bin/env"])
        .args([&program, Path::new("with"), &library]);
    all_right(&lines(&mut become_it, |_, _| ()), &context);
    let preloaded = lines(&mut preloaded(&program, &library), agrees_with_what);
    all_right(&preloaded, &context);
}

fn libc() -> PathBuf {
    PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6")
}

#[test]
fn in_c() {
    check(&["gcc", "-O0"]);
    check(&["gcc", "-O2"]);
}

#[test]
fn in_cpp() {
    check(&["g++", "-x", "c++", "-O0"]);
    check(&["g++", "-x", "c++", "-O2"]);
}

#[test]
fn position_dependent() {
    check(&["gcc", "-O2", "-no-pie", "-fno-pie"]);
}

#[test]
fn optimized_at_link_time() {
    check(&["gcc", "-O2", "-flto"]);
}

#[test]
fn linked_statically() {
    let folder = TempDir::new().expect("a folder");
    let program = folder.path().join("asking");
    let builds: [&[&str]; 4] = [
        &["gcc", "-O0", "-static"],
        &["gcc", "-O2", "-static"],
        &["gcc", "-O2", "-static-pie", "-fPIE"],
        &["g++", "-x", "c++", "-O2", "-static"],
    ];
    for compiler in builds {
        let compiler: Vec<&str> = compiler.iter().copied().chain(["-DSTATIC"]).collect();
        build(&compiler, "asking.c", &program);
        let context = format!("{compiler:?}");
        let without = lines(Command::new(&program).arg("without"), |_, _| ());
        all_right(&without, &context);
        // Its image is made before it starts: the first run answers.
        let mut command = pointee();
        command.args(["run", "--report", "/dev/null", "--"]);
        let with = lines(command.arg(&program).arg("with"), |_, _| ());
        all_right(&with, &context);
    }
}

#[test]
fn from_threads_and_signal_handlers() {
    let folder = TempDir::new().expect("a folder");
    let program = folder.path().join("handlers");
    build(&["gcc", "-O1"], "handlers.c", &program);
    let mut command = pointee();
    command
        .args(["run", "--report", "/dev/null", "--"])
        .arg(&program);
    all_right(&lines(&mut command, |_, _| ()), "handlers");
}

#[test]
fn written_to_liballocs() {
    let folder = TempDir::new().expect("a folder");
    let program = folder.path().join("liballocs");
    for compiler in [&["gcc", "-O0"][..], &["gcc", "-O2"], &["g++", "-x", "c++"]] {
        build(compiler, "liballocs.c", &program);
        let run = |command: &mut Command| {
            let output = command.output().expect("runs");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        assert_eq!(
            run(&mut Command::new(&program)),
            "object of unknown storage\n"
        );
        let mut command = pointee();
        command
            .args(["run", "--report", "/dev/null", "--"])
            .arg(&program);
        assert_eq!(run(&mut command), "no error\nend 0\n", "{compiler:?}");
    }
}

#[test]
fn the_package_description_is_of_this_version() {
    let text = include_str!("../../../pointee.pc");
    let version = text.lines().find_map(|line| line.strip_prefix("Version: "));
    assert_eq!(version, Some(env!("CARGO_PKG_VERSION")));
}
