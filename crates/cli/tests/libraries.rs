//! *Have the blocks types that a file asks for by another file's function?* — a program, two libraries of which one calls the other, and a plug-in.

mod harness;

use harness::pointee;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const PROGRAM: &str = r#"
#include <dlfcn.h>
#include <stdlib.h>
void *inner_get(size_t);
char *inner_copy(const char *);
void *outer_get(size_t, size_t);
void outer_note(long);
struct item { struct item *next; long key; int more[4]; };
struct item *items, *many;
char *text;
__attribute__((noinline)) void *host_get(size_t size) {
    void *block = malloc(size);
    if (!block) abort();
    return block;
}
void *hidden(size_t size) { static char room[64]; return room; }
int main(int count, char **arguments) {
    for (int i = 0; i < 100; i++) {
        struct item *one = inner_get(sizeof *one);
        one->next = items; items = one;
    }
    for (int i = 0; i < 50; i++) {
        many = outer_get(3, sizeof(struct item));
        text = inner_copy("text");
        outer_note(i);
    }
    void *plugin = dlopen(arguments[1], RTLD_NOW);
    if (!plugin) return 1;
    void (*start)(void) = (void (*)(void))dlsym(plugin, "start");
    for (int i = 0; i < 25; i++) start();
    return 0;
}
"#;

/// The program and the plug-in, built of the sources of the analysis's own tests.
fn build(at: &Path) -> [PathBuf; 2] {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../meta/tests/linked");
    std::fs::write(at.join("program.c"), PROGRAM).expect("writes");
    let gcc = |output: &str, source: PathBuf, flags: &[&str]| {
        let mut gcc = Command::new("gcc");
        gcc.args(["-g", "-O2", "-o", output])
            .arg(source)
            .args(flags);
        let status = gcc.current_dir(at).status();
        assert!(status.expect("gcc runs").success(), "{output}");
    };
    let map = format!(
        "-Wl,--version-script={}",
        sources.join("inner.map").display()
    );
    let shared = ["-shared", "-fPIC", "-Wl,-rpath,$ORIGIN"];
    gcc(
        "libinner.so",
        sources.join("inner.c"),
        &[&shared[..], &[&map]].concat(),
    );
    let with_inner = [&shared[..], &["libinner.so"]].concat();
    gcc("libouter.so", sources.join("outer.c"), &with_inner);
    gcc("plugin.so", sources.join("plugin.c"), &shared);
    let flags = [
        "-rdynamic",
        "-Wl,-rpath,$ORIGIN",
        "libouter.so",
        "libinner.so",
    ];
    gcc("program", at.join("program.c"), &flags);
    ["program", "plugin.so"].map(|name| at.join(name))
}

/// The command, with a cache of the test's own.
fn with_cache(at: &Path) -> Command {
    let mut command = pointee();
    command.env("XDG_CACHE_HOME", at.join("cache"));
    command
}

fn json(command: &mut Command) -> Value {
    let output = command.output().expect("runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn blocks_have_their_callers_types() {
    let folder = TempDir::new().expect("a folder");
    let at = folder.path();
    let [program, plugin] = build(at);
    // The first run knows nothing of any file; the second hooks with the images that the first one made.
    for run in ["cold", "warm"] {
        let file = at.join("report");
        let mut command = with_cache(at);
        command
            .args(["run", "--format", "json", "--report"])
            .arg(&file);
        let status = command.arg("--").args([&program, &plugin]).status();
        assert!(status.expect("runs").success(), "{run}");
        let report = std::fs::read(&file).expect("a report");
        let report: Value = serde_json::from_slice(&report).expect("JSON");
        let sites = report[0]["sites"].as_array().expect("sites");
        for (r#type, function, blocks) in [
            ("struct item", "main", 100),
            ("struct item[]", "main", 50),
            ("char[]", "main", 50),
            ("struct note", "outer_note", 50),
            ("struct task", "start", 50),
        ] {
            let is_it = |row: &&Value| row["type"] == r#type && row["function"] == function;
            let counts = sites.iter().filter(is_it);
            let counted = counts.filter_map(|row| row["allocations"].as_u64());
            assert_eq!(counted.sum::<u64>(), blocks, "{run} {type}: {sites:#?}");
        }
    }
}

/// A program without debug info and symbols is looked at by itself; what a library's function hands out is known of the library.
#[test]
fn text_of_a_library_is_text_in_stripped_programs() {
    let folder = TempDir::new().expect("a folder");
    let at = folder.path();
    let [program, plugin] = build(at);
    let files = [program.clone(), at.join("libinner.so")];
    let strip = Command::new("strip").args(files).status();
    assert!(strip.expect("strip runs").success());
    for run in ["cold", "warm"] {
        let file = at.join("report");
        let mut command = with_cache(at);
        command
            .args(["run", "--format", "json", "--report"])
            .arg(&file);
        let status = command.arg("--").args([&program, &plugin]).status();
        assert!(status.expect("runs").success(), "{run}");
        let report = std::fs::read(&file).expect("a report");
        let report: Value = serde_json::from_slice(&report).expect("JSON");
        let sites = report[0]["sites"].as_array().expect("sites");
        let is_its = |row: &&Value| row["module"] == program.to_str().expect("plain");
        let texts = sites.iter().filter(is_its);
        let texts = texts.filter(|row| row["type"] == "char[]");
        let counted: Vec<_> = texts.map(|row| &row["allocations"]).collect();
        assert_eq!(counted, [50], "{run}: {sites:#?}");
    }
}

#[test]
fn it_is_said_of_whom_a_function_is_known() {
    let folder = TempDir::new().expect("a folder");
    let at = folder.path();
    let [program, plugin] = build(at);
    let run = |arguments: &[&str], file: &Path| {
        let mut command = with_cache(at);
        let output = command
            .args(&arguments[..1])
            .arg(file)
            .args(&arguments[1..])
            .output();
        let output = output.expect("runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let explained = run(&["explain", "--all"], &program);
    for expect in [
        "learned: libinner.so exports inner_get as an allocation function (size: argument 0)",
        "learned: libinner.so exports inner_copy as a function that hands out text (copied: argument 0)",
        "learned: libouter.so exports outer_get as an allocation function (size: argument 0 times argument 1)",
    ] {
        assert!(explained.contains(expect), "{expect}: {explained}");
    }
    let sites = json(
        with_cache(at)
            .args(["sites", "--format", "json"])
            .arg(&program),
    );
    let sites = sites.as_array().expect("a list");
    let site = sites
        .iter()
        .find(|site| site["callee"] == "outer_get")
        .expect("a site");
    let offset = site["offset"].as_str().expect("an address");
    let why = run(&["sites", "--explain", offset], &program);
    let expect = "because libouter.so exports outer_get as an allocation function";
    assert!(why.contains(expect), "{why}");

    // By itself a plug-in is known by what is linked with it: nothing.
    let known = |file: &Path| json(with_cache(at).args(["meta", "--format", "json"]).arg(file));
    assert_eq!(known(&plugin)[0]["imports"], 0);
    assert_eq!(known(&program)[0]["imports"], 3);
}
