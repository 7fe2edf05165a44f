//! *Does what a pointee.toml says hold?* — for a program with an allocator, a wrapper and a site that analysis cannot see.

mod harness;

use harness::{compile, pointee};
use serde_json::Value;
use std::path::Path;

const PROGRAM: &str = r#"
#include <stdlib.h>
#include <sys/mman.h>
struct node { int k; struct node *next; };
struct row { double x[2]; };
struct table { long n; struct row rows[1]; } global;
static char *at, *end;
void *arena_alloc(size_t n) {
    if (!at) {
        at = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        end = at + (1 << 20);
    }
    n = (n + 15) & ~15ul;
    if (end - at < (long)n) return 0;
    void *p = at;
    at += n;
    return p;
}
static int freed;
void arena_free(void *p) { if (p) freed++; if (freed > 1000) abort(); }
void *volatile sink;
void *make(size_t n) { void *p = malloc(n); sink = p; return sink; }
struct node *list;
int main(void) {
    for (int i = 0; i < 100; i++) {
        struct node *n = arena_alloc(sizeof *n);
        n->next = list;
        list = n;
    }
    struct node *rest = list->next;
    arena_free(list);
    list = rest;
    make(8 + 5 * 16);
    return global.n;
}
"#;

const CONFIG: &str = r#"
[[allocator]]
signature = "arena_alloc(Z)p"
free = "arena_free"

[[free]]
signature = "arena_free(P)"

[[site]]
function = "make"
type = "struct table + struct row[]"
"#;

fn report(program: &Path, config: Option<&Path>, folder: &Path) -> Value {
    let file = folder.join("report.json");
    let mut command = pointee();
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    let status = command
        .args(["run", "--format", "json", "--report"])
        .arg(&file)
        .arg("--")
        .arg(program)
        .status();
    assert!(status.expect("runs").success());
    let text = std::fs::read(&file).expect("a report");
    let reports: Value = serde_json::from_slice(&text).expect("JSON");
    reports[0].clone()
}

fn row<'r>(report: &'r Value, r#type: &str) -> Option<&'r Value> {
    let rows = report["types"].as_array()?;
    rows.iter().find(|row| row["type"] == r#type)
}

#[test]
fn declared_allocators_and_corrected_sites() {
    let (folder, program) = compile(PROGRAM, &[]);
    let config = folder.path().join("pointee.toml");
    std::fs::write(&config, CONFIG).expect("writes");
    // Without, with, without: each time the image is the one that belongs to the configuration.
    for with in [false, true, false] {
        let report = report(&program, with.then_some(config.as_path()), folder.path());
        let nodes = row(&report, "struct node").map(|row| (&row["allocations"], &row["frees"]));
        let table = row(&report, "struct table + struct row[]").map(|row| &row["live"]);
        if with {
            assert_eq!(nodes, Some((&100.into(), &1.into())), "{report:#}");
            assert_eq!(table, Some(&1.into()), "{report:#}");
        } else {
            assert_eq!((nodes, table), (None, None), "{report:#}");
        }
    }
}

#[test]
fn a_file_is_explained_with_its_rules() {
    let (folder, program) = compile(PROGRAM, &[]);
    let config = folder.path().join("pointee.toml");
    std::fs::write(
        &config,
        format!("{CONFIG}\n[[ignore]]\nname = \"arena_alloc\"\n"),
    )
    .expect("writes");
    let output = pointee()
        .env("LIBALLOCS_ALLOC_FNS", "make(Z)p")
        .arg("--config")
        .arg(&config)
        .args(["explain", "--format", "json"])
        .arg(&program)
        .output()
        .expect("runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rules = report["rules"].as_array().expect("a list");
    let rule = |says: &str| {
        let found = rules.iter().find(|rule| rule["says"] == says);
        found.unwrap_or_else(|| panic!("{says}: {report:#}"))
    };
    let place = rule("allocator arena_alloc")["where"]
        .as_str()
        .expect("a place");
    assert!(place.ends_with("pointee.toml:2"), "{place}");
    assert_eq!(
        rule("allocator arena_alloc")["outdone_for"][0],
        "arena_alloc"
    );
    assert_eq!(rule("ignore arena_alloc")["holds_for"][0], "arena_alloc");
    assert_eq!(rule("wrapper make")["where"], "LIBALLOCS_ALLOC_FNS");
}

#[test]
fn a_mistake_is_told_with_its_place() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let config = folder.path().join("wrong.toml");
    std::fs::write(&config, "\n[[allocator]]\nsignatur = \"f(Z)p\"\n").expect("writes");
    let output = pointee()
        .arg("--config")
        .arg(&config)
        .args(["explain", "/bin/true"])
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(125));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("wrong.toml:3:1: "), "{text}");
    assert!(text.contains("`signature`"), "{text}");
}
