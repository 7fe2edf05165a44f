//! *Does the report say what the program did?*

mod harness;

use harness::{compile, report, report_with};
use serde_json::Value;
use std::process::{Command, Output};

const TYPED: &str = r#"
#include <stdlib.h>
#include <string.h>
struct node { struct node *next; int key; char text[20]; };
struct node *head;
struct node *new_node(int key) {
    struct node *node = malloc(sizeof *node);
    node->key = key;
    node->next = head;
    return head = node;
}
int *numbers;
int main(void) {
    for (int i = 0; i < 1000; i++) new_node(i);
    for (int i = 0; i < 400; i++) { struct node *n = head; head = n->next; free(n); }
    numbers = calloc(50, sizeof *numbers);
    numbers = realloc(numbers, 100 * sizeof *numbers);
    return 0;
}
"#;

const HOLDS_MANY: &str = r#"
#include <stdlib.h>
int main(void) {
    void **held = calloc(100000, sizeof *held);
    for (int i = 0; i < 100000; i++) held[i] = malloc(100);
    return held[99999] == 0;
}
"#;

#[test]
fn what_the_record_itself_takes_is_itemised() {
    let (_folder, program) = compile(HOLDS_MANY, &[]);
    let (reports, _) = report_with(&["--cost"], &[program.to_str().expect("a name")]);
    let part = |name: &str| {
        let value = &reports[0]["recording"][name];
        value
            .as_u64()
            .unwrap_or_else(|| panic!("no {name} in {}", reports[0]))
    };
    // A block of 100 bytes takes 112 of the heap; the pointers to them are one block of 800 KB.
    let touched = 100_000 * 112 + 800_000;
    assert!(part("blocks") >= 100_000 * 8, "two words a block");
    assert!(part("blocks") <= touched / 4 + (64 << 10));
    for name in [
        "directory",
        "paths",
        "counters",
        "descriptions",
        "trampolines",
        "runtime",
        "page_tables",
    ] {
        assert!((1..8 << 20).contains(&part(name)), "{name}: {}", part(name));
    }
}

#[test]
fn what_a_record_adds_to_a_process_is_itemised() {
    /// What a kernel reads ahead of files differs from run to run.
    const SLACK: u64 = 512 << 10;
    let command = [
        "env",
        "PYTHONMALLOC=malloc",
        "/usr/bin/python3",
        "-c",
        "x = [{str(i): [i]} for i in range(100000)]\nprint(open('/proc/self/statm').read().split()[1])",
    ];
    let pages = |output: &Output| -> u64 {
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse().expect("resident pages")
    };
    let plain = Command::new(command[0]).args(&command[1..]).output();
    let plain = pages(&plain.expect("runs")) * 4096;
    // Once for the images, which the next run maps.
    report(&command);
    let (reports, watched) = report_with(&["--cost"], &command);
    let watched = pages(&watched) * 4096;
    let items = reports.last().expect("a report")["recording"].as_object();
    let items = items.expect("items");
    let sum = |leave_out: &[&str]| -> u64 {
        let wanted = items
            .iter()
            .filter(|(name, _)| !leave_out.contains(&name.as_str()));
        wanted.filter_map(|(_, bytes)| bytes.as_u64()).sum()
    };
    let added = watched.saturating_sub(plain);
    // Page tables are the kernel's, and no process's resident memory.
    assert!(added <= sum(&["page_tables"]) + SLACK, "{added}: {items:?}");
    let written = sum(&["page_tables", "images", "runtime", "copies"]);
    assert!(added + SLACK >= written, "{added}: {items:?}");
    assert!(written <= plain / 4 + (4 << 20), "{plain}: {items:?}");
}

fn row<'a>(report: &'a Value, table: &str, name: &str) -> &'a Value {
    let rows = report[table].as_array().expect("a table");
    let found = rows.iter().find(|row| row["type"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {rows:#?}"))
}

fn check(row: &Value, expect: &[(&str, u64)]) {
    for (field, value) in expect {
        assert_eq!(row[field].as_u64(), Some(*value), "{field} of {row:#}");
    }
}

#[test]
fn counts_types_and_sites_are_exact() {
    let (_folder, program) = compile(TYPED, &[]);
    let (reports, output) = report(&[program.to_str().expect("a name")]);
    assert_eq!(output.status.code(), Some(0));
    let [report] = reports.as_slice() else {
        panic!("{} reports", reports.len())
    };
    assert_eq!(report["schema"], 1);
    assert_eq!(report["exit"]["code"], 0);
    assert_eq!(report["generation"], 0);
    assert_eq!(report["unseen"], Value::Array(Vec::new()));
    // A reallocation counts as one free and one allocation.
    check(
        &report["totals"],
        &[
            ("allocations", 1002),
            ("frees", 401),
            ("bytes_allocated", 32_600),
            ("live", 601),
            ("live_bytes", 19_600),
            ("peak_bytes", 32_000),
            ("inherited", 0),
        ],
    );
    check(
        row(report, "types", "struct node"),
        &[
            ("allocations", 1000),
            ("frees", 400),
            ("bytes_allocated", 32_000),
            ("live", 600),
            ("live_bytes", 19_200),
        ],
    );
    check(
        row(report, "types", "int[]"),
        &[
            ("allocations", 2),
            ("frees", 1),
            ("live", 1),
            ("live_bytes", 400),
        ],
    );
    let site = row(report, "sites", "struct node");
    assert_eq!(site["function"], "new_node");
    assert_eq!(site["line"], 7);
    assert!(
        site["file"]
            .as_str()
            .is_some_and(|file| file.ends_with("program.c"))
    );
    assert!(!site["evidence"].as_array().expect("evidence").is_empty());
    assert!(
        site["allocator"]
            .as_str()
            .is_some_and(|name| name.contains("libc.so.6"))
    );
}

#[test]
fn every_field_of_the_schema_is_there() {
    let (reports, _) = report(&["jq", "-n", "1"]);
    let report = &reports[0];
    let has = |value: &Value, names: &[&str]| {
        for name in names {
            assert!(value.get(name).is_some(), "no {name} in {value:#}");
        }
    };
    const COUNTS: [&str; 7] = [
        "allocations",
        "frees",
        "bytes_allocated",
        "live",
        "live_bytes",
        "inherited",
        "inherited_bytes",
    ];
    has(
        report,
        &[
            "schema",
            "program",
            "pid",
            "parent",
            "generation",
            "exit",
            "unseen",
            "totals",
            "types",
            "sites",
        ],
    );
    has(&report["totals"], &COUNTS);
    has(&report["totals"], &["peak_bytes"]);
    has(&report["types"][0], &COUNTS);
    has(&report["types"][0], &["type"]);
    has(&report["sites"][0], &COUNTS);
    has(
        &report["sites"][0],
        &[
            "id",
            "module",
            "offset",
            "function",
            "file",
            "line",
            "type",
            "evidence",
            "wrappers",
            "allocator",
        ],
    );
    let sum = |table: &str, field: &str| -> u64 {
        let rows = report[table].as_array().expect("a table");
        rows.iter().filter_map(|row| row[field].as_u64()).sum()
    };
    for field in COUNTS {
        for table in ["types", "sites"] {
            assert_eq!(
                Some(sum(table, field)),
                report["totals"][field].as_u64(),
                "{field} of {table}"
            );
        }
    }
}

#[test]
fn ends_are_told() {
    let rows: &[(&[&str], &str, i64)] = &[
        (&["sh", "-c", "exit 5"], "code", 5),
        (&["sh", "-c", "kill -9 $$"], "signal", 9),
        (&["perl", "-e", "require POSIX; POSIX::_exit(4)"], "code", 4),
    ];
    for (command, kind, value) in rows {
        let (reports, _) = report(command);
        assert_eq!(
            reports[0]["exit"][kind].as_i64(),
            Some(*value),
            "{command:?}"
        );
        assert!(
            reports[0]["totals"]["allocations"].as_u64() > Some(0),
            "{command:?}"
        );
    }
}

#[test]
fn descendants_have_reports_of_their_own() {
    let command = [
        "bash",
        "-c",
        "sqlite3 :memory: 'select 1' >/dev/null; jq -n 1 >/dev/null; exit 0",
    ];
    let programs = |reports: &[Value]| -> Vec<String> {
        let name = |report: &Value| report["program"].as_str().unwrap_or("?").to_owned();
        let names = reports.iter().map(name);
        names
            .map(|path| path.rsplit('/').next().unwrap_or("?").to_owned())
            .collect()
    };
    let (followed, _) = report(&command);
    let names = programs(&followed);
    assert_eq!(names[0], "bash");
    for name in ["sqlite3", "jq"] {
        assert!(
            names.iter().any(|found| found == name),
            "{name} in {names:?}"
        );
    }
    let (alone, _) = report_with(&["--no-follow"], &command);
    assert_eq!(programs(&alone), ["bash"]);
}

#[test]
fn exec_makes_another_generation() {
    let (reports, _) = report(&["bash", "-c", "exec jq -n 1"]);
    assert_eq!(reports.len(), 2, "{reports:#?}");
    assert_eq!(reports[0]["pid"], reports[1]["pid"]);
    assert_eq!(
        (&reports[0]["generation"], &reports[0]["exit"]),
        (&Value::from(0), &Value::Null)
    );
    assert_eq!(reports[1]["generation"], 1);
    assert_eq!(reports[1]["exit"]["code"], 0);
}

#[test]
fn what_cannot_be_seen_is_said() {
    let (_folder, program) = compile("int main(void) { return 6; }", &["-static", "-s"]);
    let path = program.to_str().expect("a name");
    let (reports, output) = report(&[path]);
    assert_eq!(output.status.code(), Some(6));
    assert!(
        reports[0]["unseen"][0]
            .as_str()
            .is_some_and(|text| text.contains("static"))
    );
    assert_eq!(reports[0]["exit"]["code"], 6);
    let (reports, _) = report(&["sh", "-c", &format!("exec {path}")]);
    let last = reports.last().expect("a report");
    assert_eq!(last["exit"]["code"], 6);
    assert!(!last["unseen"].as_array().expect("a list").is_empty());
}
