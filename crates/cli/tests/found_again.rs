//! *Are program, debug info and allocator found where they are hard to find?*
//!
//! The executable deleted or run from a memfd, the allocator private and stripped, the library in a namespace of its own; and the
//! answer the same whether images were there before the run or not.

mod harness;

use harness::{compile, pointee, report};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

const LIST: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
struct record { struct record *next; long key[4]; };
struct record *list;
int main(int argc, char **argv) {
    if (argc > 1) unlink(argv[0]);
    for (int i = 0; i < 100; i++) {
        struct record *record = malloc(sizeof *record);
        record->next = list;
        list = record;
    }
    return 0;
}
"#;

const FROM_MEMORY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
extern char **environ;
int main(int argc, char **argv) {
    char bytes[65536], path[64];
    int memory = memfd_create("program", MFD_CLOEXEC), file = open(argv[1], O_RDONLY);
    for (ssize_t len; (len = read(file, bytes, sizeof bytes)) > 0;)
        if (write(memory, bytes, len) != len) return 1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", memory);
    execve(path, argv + 1, environ);
    return 1;
}
"#;

/// An allocator of its own, with names that nobody exports.
const PRIVATE: &str = r#"
#include <stddef.h>
static char pool[1 << 16];
static size_t used;
struct thing { long a, b; };
__attribute__((visibility("hidden"), noinline)) void *dlmalloc(size_t size) {
    void *block = pool + used;
    used += (size + 15) & ~(size_t)15;
    return used > sizeof pool ? NULL : block;
}
__attribute__((visibility("hidden"), noinline)) void dlfree(void *block) {
    if (block) *(volatile long *)block = 0x5555555555555555;
}
int main(void) {
    for (int i = 0; i < 100; i++) {
        struct thing *thing = dlmalloc(sizeof *thing);
        thing->a = i;
        if (i % 4 == 0) dlfree(thing);
    }
    return 0;
}
"#;

const OTHER_NAMESPACE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
int main(int argc, char **argv) {
    void *library = dlmopen(LM_ID_NEWLM, argv[1], RTLD_NOW);
    if (!library) return 1;
    void *(*allocate)(void) = (void *(*)(void))dlsym(library, "plugin_allocate");
    for (int i = 0; i < 100; i++) allocate();
    return 0;
}
"#;

fn name(path: &Path) -> &str {
    path.to_str().expect("a name")
}

fn blocks_of(report: &Value, kind: &str) -> Option<u64> {
    let types = report["types"].as_array().expect("types");
    types.iter().find(|row| row["type"] == kind)?["live"].as_u64()
}

#[test]
fn a_program_that_deletes_its_own_file() {
    let (_folder, program) = compile(LIST, &[]);
    let (reports, _) = report(&[name(&program), "delete"]);
    assert!(!program.exists());
    assert_eq!(
        blocks_of(&reports[0], "struct record"),
        Some(100),
        "{reports:#?}"
    );
}

#[test]
fn a_program_in_a_memfd() {
    let (_folder, program) = compile(LIST, &[]);
    let (_other, starter) = compile(FROM_MEMORY, &[]);
    let (reports, _) = report(&[name(&starter), name(&program)]);
    let [before, after] = reports.as_slice() else {
        panic!("{reports:#?}")
    };
    assert_eq!(
        (&before["generation"], &after["generation"]),
        (&0.into(), &1.into())
    );
    assert_eq!(blocks_of(after, "struct record"), Some(100), "{after:#}");
}

#[test]
fn a_private_allocator_in_the_symbol_table_or_only_in_a_debug_file() {
    let (folder, program) = compile(PRIVATE, &[]);
    let totals = |program: &Path| {
        let (reports, _) = report(&[name(program)]);
        let totals = &reports[0]["totals"];
        (totals["allocations"].as_u64(), totals["frees"].as_u64())
    };
    assert_eq!(totals(&program), (Some(100), Some(25)));
    let tool = |name: &str, arguments: &[&str]| {
        let status = Command::new(name)
            .args(arguments)
            .current_dir(folder.path())
            .status();
        assert!(status.expect("binutils").success());
    };
    tool(
        "objcopy",
        &["--only-keep-debug", "program", "program.debug"],
    );
    tool("strip", &["-o", "stripped", "program"]);
    tool(
        "objcopy",
        &["--add-gnu-debuglink=program.debug", "stripped"],
    );
    assert_eq!(
        totals(&folder.path().join("stripped")),
        (Some(100), Some(25))
    );
}

#[test]
fn a_library_in_a_namespace_of_its_own_with_a_libc_of_its_own() {
    let plugin = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hazards/plugin.c");
    let folder = tempfile::TempDir::new().expect("a folder");
    let library = folder.path().join("plugin.so");
    let status = Command::new("gcc")
        .args(["-g", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(plugin)
        .status();
    assert!(status.expect("gcc runs").success());
    let (_other, program) = compile(OTHER_NAMESPACE, &["-ldl"]);
    let (reports, output) = report(&[name(&program), name(&library)]);
    assert_eq!(output.status.code(), Some(0));
    let sites = reports[0]["sites"].as_array().expect("sites");
    let through: u64 = sites
        .iter()
        .filter(|site| site.to_string().contains("plugin_allocate"))
        .filter_map(|site| site["allocations"].as_u64())
        .sum();
    assert_eq!(through, 100, "{sites:#?}");
}

#[test]
fn a_cold_and_a_warm_cache_give_one_report() {
    let (_folder, program) = compile(LIST, &[]);
    let (cold, warm) = cold_and_warm(&[&program.to_string_lossy()]);
    assert_eq!(cold, warm);
    assert_eq!(blocks_of(&cold[0], "struct record"), Some(100));
}

/// Without debug info, what an image says of a file's calls also tells how far a walk goes.
#[test]
fn a_cold_and_a_warm_cache_give_one_report_of_stripped_programs() {
    let (cold, warm) = cold_and_warm(&["gdb", "-nx", "-batch", "-ex", "print 6 * 7"]);
    assert_eq!(cold[0]["totals"], warm[0]["totals"]);
    let [cold, warm] = [&cold, &warm].map(|reports| reports[0]["sites"].as_array().expect("sites"));
    let missing = |rows: &[Value], among: &[Value]| {
        let rows = rows.iter().filter(|row| !among.contains(row));
        rows.map(Value::to_string).collect::<Vec<_>>()
    };
    assert_eq!(missing(cold, warm), missing(warm, cold));
}

/// The reports of the first two runs of `command`, without what differs from run to run.
fn cold_and_warm(command: &[&str]) -> (Value, Value) {
    let folder = TempDir::new().expect("a folder");
    let report = || {
        let file = folder.path().join("report");
        let output = pointee()
            .env("XDG_CACHE_HOME", folder.path().join("cache"))
            .env("PYTHONHASHSEED", "0")
            .args(["run", "--format", "json", "--report"])
            .arg(&file)
            .arg("--")
            .args(command)
            .output()
            .expect("runs");
        assert!(output.status.success(), "{output:?}");
        let text = std::fs::read(&file).expect("a report");
        let mut reports: Value = serde_json::from_slice(&text).expect("JSON");
        forget_what_varies(&mut reports);
        reports
    };
    (report(), report())
}

/// Process numbers, and the peak: which of two near moments was the highest depends on addresses, by hash tables. And so the order.
fn forget_what_varies(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let varies = |name: &str| ["pid", "parent"].contains(&name) || name.contains("peak");
            fields.retain(|name, _| !varies(name));
            fields.values_mut().for_each(forget_what_varies);
        }
        Value::Array(values) => {
            values.iter_mut().for_each(forget_what_varies);
            values.sort_by_key(Value::to_string);
        }
        _ => {}
    }
}
