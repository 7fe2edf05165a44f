//! *Do the questions about a running process and about a snapshot get right answers?*

mod harness;

use harness::{Running, compile, pointee};
use serde_json::Value;
use std::ffi::OsStr;

const HOLDS: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct inner { short a; unsigned b : 3, c : 5; };
struct item { int id; double weight; const char *name; struct item *next; struct inner parts[3]; };
struct item *item;
struct item *many;
int main(void) {
    item = malloc(sizeof *item);
    *item = (struct item){ .id = 42, .weight = 1.5, .name = strdup("forty-two"), .next = item };
    item->parts[1].a = -7;
    item->parts[1].b = 5;
    item->parts[1].c = 17;
    many = calloc(4, sizeof *many);
    many[3].id = 33;
    printf("%p %p\n", (void *)item, (void *)many);
    fflush(stdout);
    return getchar() == 'x';
}
"#;

fn json(arguments: &[&OsStr]) -> Value {
    let output = pointee()
        .args(arguments)
        .args(["--format", "json"])
        .output()
        .expect("runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn check_addresses(subject: &OsStr, item: u64, many: u64, with_values: bool) {
    let rows = [
        (item, 48, 0, "struct item.id", Some("42")),
        (item + 8, 48, 8, "struct item.weight", Some("1.5")),
        (item + 16, 48, 16, "struct item.name", Some("\"forty-two\"")),
        (item + 36, 48, 36, "struct item.parts[1].a", Some("-7")),
        (item + 42, 48, 42, "struct item.parts[2].", None),
        (many + 3 * 48, 192, 144, "struct item[3].id", Some("33")),
    ];
    for (address, size, offset, field, value) in rows {
        let text = format!("{address:#x}");
        let answer = json(&["what".as_ref(), subject, text.as_ref()]);
        let answer = &answer[0];
        assert_eq!(answer["kind"], "heap", "{answer:#}");
        assert_eq!(answer["size"], size, "{answer:#}");
        assert_eq!(answer["offset"], offset, "{answer:#}");
        let found = answer["field"].as_str().unwrap_or("");
        assert!(found.starts_with(field), "{field}: {answer:#}");
        assert_eq!(answer["site"]["function"], "main", "{answer:#}");
        if let Some(value) = value.filter(|_| with_values) {
            let found = answer["value"].as_str().unwrap_or("");
            assert!(found.contains(value), "{value}: {answer:#}");
        }
        if !with_values {
            assert_eq!(answer["value"], Value::Null);
        }
    }
}

#[test]
fn process_and_snapshots_give_the_same_answers() {
    let (folder, program) = compile(HOLDS, &[]);
    let at_end = folder.path().join("end.pointee");
    let with_memory = folder.path().join("memory.pointee");
    let running = Running::start(&["--snapshot".as_ref(), at_end.as_ref()], &program);
    let addresses: Vec<u64> = running
        .line
        .split_whitespace()
        .map(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("an address"))
        .collect();
    let [item, many] = addresses.as_slice() else {
        panic!("{}", running.line)
    };
    let pid = running.pid.to_string();

    check_addresses(pid.as_ref(), *item, *many, true);
    let live = json(&["histo".as_ref(), pid.as_ref()]);
    assert_eq!(live["state"], "running");
    let saved = pointee()
        .args(["snapshot", "--memory", &pid])
        .arg(&with_memory)
        .status();
    assert!(saved.expect("runs").success());
    let whole = pointee()
        .args(["what", &pid, &format!("{item:#x}")])
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&whole.stdout);
    assert!(text.contains("{a = -7, b = 5, c = 17}"), "{text}");

    let explained = json(&["explain".as_ref(), pid.as_ref()]);
    let differences = explained["differences"].as_array().expect("a list");
    assert!(differences.len() >= 4, "{explained:#}");
    assert!(
        differences
            .iter()
            .all(|difference| !difference["hook"].is_null()),
        "{explained:#}"
    );
    assert_eq!(explained["bindings"], Value::Array(Vec::new()));
    assert!(explained["compared_bytes"].as_u64() > Some(1 << 20));

    assert!(running.finish().success());
    std::fs::remove_file(&program).expect("removes");
    check_addresses(with_memory.as_ref(), *item, *many, true);
    check_addresses(at_end.as_ref(), *item, *many, false);
    let same = json(&["histo".as_ref(), with_memory.as_ref()]);
    assert_eq!(same["types"], live["types"]);
    for by in ["type", "site", "allocator", "function", "module"] {
        let output = pointee()
            .args(["histo", "--by", by])
            .arg(&at_end)
            .output()
            .expect("runs");
        assert!(output.status.success(), "{by}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("alive"),
            "{by}"
        );
    }
}

#[test]
fn a_preloaded_runtime_is_found_without_the_command() {
    use std::io::{BufRead, BufReader};
    let (_folder, program) = compile(HOLDS, &[]);
    let path = pointee().arg("runtime-path").output().expect("runs").stdout;
    let path = String::from_utf8(path).expect("a path");
    let mut child = std::process::Command::new(&program)
        .env("LD_PRELOAD", path.trim())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe"))
        .read_line(&mut line)
        .expect("a line");
    let pid = child.id().to_string();
    let live = json(&["histo".as_ref(), pid.as_ref()]);
    assert!(live["totals"]["live"].as_u64() >= Some(3), "{live:#}");
    drop(child.stdin.take());
    assert!(child.wait().expect("ends").success());
}

#[test]
fn a_snapshot_is_taken_after_some_seconds() {
    let (folder, program) = compile(HOLDS, &[]);
    let file = folder.path().join("later.pointee");
    let options: [&OsStr; 5] = [
        "--snapshot".as_ref(),
        file.as_ref(),
        "--snapshot-at".as_ref(),
        "1".as_ref(),
        "--memory".as_ref(),
    ];
    let running = Running::start(&options, &program);
    assert!(harness::eventually(|| file.exists()));
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(running.finish().success());
    let report = json(&["histo".as_ref(), file.as_ref()]);
    assert_eq!(report["state"], "running");
    assert!(report["totals"]["live"].as_u64() >= Some(3));
}

const FREES_ALL: &str = r#"
#include <stdio.h>
#include <stdlib.h>
struct item { struct item *next; long number; char rest[84]; };
int main(void) {
    struct item *all = NULL;
    for (int i = 0; i < 5000; i++) {
        struct item *item = malloc(sizeof *item);
        item->next = all;
        all = item;
    }
    printf("%p\n", (void *)all);
    while (all) {
        struct item *next = all->next;
        free(all);
        all = next;
    }
}
"#;

#[test]
fn a_snapshot_of_the_peak_tells_of_the_peak() {
    let (folder, program) = compile(FREES_ALL, &[]);
    let file = folder.path().join("peak.pointee");
    let output = pointee()
        .args(["run", "--report", "/dev/null", "--snapshot-at", "peak"])
        .arg("--snapshot")
        .arg(&file)
        .arg("--")
        .arg(&program)
        .output()
        .expect("runs");
    assert!(output.status.success());
    let text = |arguments: &[&OsStr]| {
        let output = pointee().args(arguments).output().expect("runs");
        String::from_utf8(output.stdout).expect("text")
    };
    let report = json(&["histo".as_ref(), file.as_ref()]);
    let rows = report["types"].as_array().expect("types");
    let item = rows.iter().find(|row| row["type"] == "struct item");
    let item = item.expect("struct item");
    // The peak is written down within 1 % of it.
    assert!(item["live_at_peak"].as_u64() >= Some(4950), "{item:#}");
    assert_eq!(item["live"], 0);
    let told = text(&["histo".as_ref(), file.as_ref()]);
    assert!(told.contains("Types of the heap at its highest"), "{told}");
    let address = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let told = text(&["what".as_ref(), file.as_ref(), address.as_ref()]);
    assert!(told.contains("alive at the highest point"), "{told}");
    assert!(told.contains("104 bytes, alive"), "{told}");
    assert!(told.contains("struct item.next"), "{told}");
}

#[test]
fn files_are_described_without_running_them() {
    let (folder, program) = compile(HOLDS, &[]);
    let sites = json(&["sites".as_ref(), program.as_ref()]);
    let rows = sites.as_array().expect("a list");
    let item = rows
        .iter()
        .find(|row| row["type"] == "struct item")
        .expect("a typed site");
    for field in [
        "module", "offset", "function", "file", "line", "callee", "type", "role", "verdict",
        "evidence", "wrapper", "inlined",
    ] {
        assert!(item.get(field).is_some(), "{field}");
    }
    assert_eq!(item["callee"], "malloc");
    let carrying = folder.path().join("carrying");
    let embedded = pointee()
        .arg("meta")
        .arg(&program)
        .arg("--embed")
        .arg(&carrying)
        .status();
    assert!(embedded.expect("runs").success());
    let meta = json(&["meta".as_ref(), carrying.as_ref()]);
    assert_eq!(meta[0]["origin"], "embedded");
    assert_eq!(
        json(&["sites".as_ref(), carrying.as_ref()])
            .as_array()
            .map(Vec::len),
        Some(rows.len())
    );
}

#[test]
fn a_site_is_explained() {
    let (_folder, program) = compile(HOLDS, &[]);
    let sites = json(&["sites".as_ref(), program.as_ref()]);
    let item = sites
        .as_array()
        .and_then(|rows| rows.iter().find(|row| row["type"] == "struct item"))
        .expect("a typed site");
    let explain = |site: &str| {
        let output = pointee()
            .args(["sites", "--explain", site])
            .arg(&program)
            .output()
            .expect("runs");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let (found, text) = explain(item["offset"].as_str().expect("an address"));
    assert!(found);
    for part in [
        "calls malloc",
        "asked for: ",
        "seen: ",
        "call",
        "so: one struct item",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    let line = format!(
        "{}:{}",
        item["file"].as_str().expect("a file"),
        item["line"]
    );
    assert_eq!(explain(&line), (true, text));
    assert!(!explain("0xdead").0);
}

#[test]
fn every_subcommand_has_help_with_examples() {
    for subcommand in [
        "run",
        "histo",
        "what",
        "maps",
        "snapshot",
        "sites",
        "explain",
        "meta",
        "runtime-path",
    ] {
        let output = pointee()
            .args([subcommand, "--help"])
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("Examples:"), "{subcommand}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 105),
            "{subcommand} is too wide"
        );
    }
}

/// Parent and child change what they shared: each says which block it freed, which it kept, and which it made.
const FORKS: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/prctl.h>
#include <signal.h>
int main(void) {
    char *first = malloc(100), *second = malloc(200);
    int done[2];
    if (pipe(done))
        return 1;
    pid_t child = fork();
    free(child ? second : first);
    char *own = malloc(3000);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (write(done[1], &own, sizeof own) < 0)
            return 1;
        for (;;)
            pause();
    }
    char *childs;
    if (read(done[0], &childs, sizeof childs) < 0)
        return 1;
    printf("%d %p %p %p %p\n", child, (void *)first, (void *)second, (void *)own, (void *)childs);
    fflush(stdout);
    int ended = getchar() == 'x';
    kill(child, SIGKILL);
    return ended;
}
"#;

#[test]
fn parent_and_child_each_answer_for_their_own_blocks() {
    let (folder, program) = compile(FORKS, &[]);
    let snapshot = folder.path().join("end.pointee");
    // With a snapshot wanted the blocks lie in a file, else in the process's memory.
    let ways: [&[&OsStr]; 2] = [&[], &["--snapshot".as_ref(), snapshot.as_ref()]];
    for options in ways {
        let running = Running::start(options, &program);
        let mut words = running.line.split_whitespace();
        let child = words.next().expect("a process").to_owned();
        let addresses: Vec<&str> = words.collect();
        let [first, second, own, childs] = addresses.as_slice() else {
            panic!("{}", running.line)
        };
        let parent = running.pid.to_string();
        let rows = [
            (&parent, first, Some(100)),
            (&parent, second, None),
            (&parent, own, Some(3000)),
            (&child, first, None),
            (&child, second, Some(200)),
            (&child, childs, Some(3000)),
        ];
        for (process, address, size) in rows {
            let answer = json(&["what".as_ref(), process.as_ref(), address.as_ref()]);
            let answer = &answer[0];
            let found = (answer["kind"] == "heap").then(|| &answer["size"]);
            assert_eq!(found.and_then(Value::as_u64), size, "{answer:#}");
        }
        assert!(running.finish().success());
    }
}
