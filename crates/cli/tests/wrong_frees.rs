//! *Is a block that is freed by the wrong function reported, with both places, and no other?*

mod harness;

use harness::{report, report_with};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn build(compiler: &str, source: &str, flags: &[&str]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("a folder");
    let program = folder.path().join("program");
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/wrong_frees")
        .join(source);
    let status = Command::new(compiler)
        .args(["-g", "-w", "-o"])
        .args([&program, &source])
        .args(flags)
        .status();
    assert!(status.expect("the compiler runs").success());
    (folder, program)
}

fn wrong(reports: &[Value]) -> Vec<&Value> {
    let rows = reports
        .iter()
        .map(|report| report["wrong_frees"].as_array());
    rows.flatten().flatten().collect()
}

/// Runs `program` in a way that makes one kind of wrong free three times, or none (`expect` empty): who asked, in
/// which function, who freed, in which, who had to.
fn check(program: &Path, which: &str, blocks: u64, expect: Option<[&str; 5]>) {
    let (reports, _) = report(&[program.to_str().expect("a name"), which]);
    assert_eq!(reports[0]["unseen"].as_array().map(Vec::len), Some(0));
    let found: Vec<_> = wrong(&reports)
        .iter()
        .map(|row| {
            assert_eq!(row["blocks"], blocks, "{which}: {row:#}");
            [
                &row["allocated_by"],
                &row["allocated_at"]["function"],
                &row["freed_by"],
                &row["freed_at"][0]["function"],
                &row["to_be_freed_by"],
            ]
            .map(|text| text.as_str().unwrap_or_default().to_owned())
        })
        .collect();
    let expect: Vec<_> = expect.into_iter().collect();
    assert_eq!(found, expect, "{which}");
}

#[test]
fn each_wrong_pair_is_reported_with_both_places() {
    const MALLOC: &str = "malloc of libc.so.6";
    const FREE: &str = "free of libc.so.6";
    const DELETE: &str = "operator delete";
    const DELETE_ARRAY: &str = "operator delete[]";
    let rows: [(&str, Option<[&str; 5]>); 9] = [
        ("right", None),
        (
            "malloc-delete",
            Some([MALLOC, "main", DELETE, "by_delete", FREE]),
        ),
        (
            "malloc-sized-delete",
            Some([MALLOC, "main", DELETE, "by_sized_delete", FREE]),
        ),
        (
            "malloc-delete[]",
            Some([MALLOC, "main", DELETE_ARRAY, "by_delete_array", FREE]),
        ),
        (
            "new-free",
            Some(["operator new", "made_by_new", FREE, "by_free", DELETE]),
        ),
        (
            "new[]-free",
            Some([
                "operator new[]",
                "made_by_new_array",
                FREE,
                "by_free",
                DELETE_ARRAY,
            ]),
        ),
        (
            "new[]-delete",
            Some([
                "operator new[]",
                "made_by_new_array",
                DELETE,
                "by_delete_int",
                DELETE_ARRAY,
            ]),
        ),
        (
            "new-delete[]",
            Some([
                "operator new",
                "made_by_new",
                DELETE_ARRAY,
                "by_delete_array",
                DELETE,
            ]),
        ),
        (
            "new-realloc",
            Some([
                "operator new",
                "made_by_new",
                "realloc of libc.so.6",
                "by_realloc",
                DELETE,
            ]),
        ),
    ];
    for flags in [&["-O0"], &["-O2"]] {
        let (_folder, program) = build("g++", "wrong.cc", flags);
        for (which, expect) in rows {
            check(&program, which, 3, expect);
        }
    }
}

#[test]
fn the_wrong_malloc_is_reported_even_if_it_ends_the_process() {
    let (_folder, program) = build("gcc", "two_mallocs.c", &["-O1", "-rdynamic"]);
    check(&program, "right", 0, None);
    let own = [
        "malloc of libc.so.6",
        "make",
        "je_free of program",
        "drop",
        "free of libc.so.6",
    ];
    check(&program, "malloc-je_free", 3, Some(own));
    let libc = [
        "je_malloc of program",
        "make",
        "free of libc.so.6",
        "drop",
        "je_free of program",
    ];
    check(&program, "je_malloc-free", 1, Some(libc));
}

#[test]
fn operators_made_of_malloc_and_free_are_right() {
    for flags in [
        &["-O0"][..],
        &["-O2"],
        &["-O2", "-flto"],
        &["-O0", "-DONLY_NEW"],
        &["-O2", "-DONLY_NEW"],
        &["-O2", "-static-libstdc++", "-static-libgcc"],
        &["-O1", "-Wl,-z,now"],
    ] {
        let (_folder, program) = build("g++", "own_operators.cc", flags);
        let (reports, _) = report(&[program.to_str().expect("a name")]);
        assert_eq!(wrong(&reports), Vec::<&Value>::new(), "{flags:?}");
    }
}

#[test]
fn a_malloc_that_passes_on_is_right() {
    let (_folder, front) = build("gcc", "passing_on.c", &["-O1", "-shared", "-fPIC"]);
    let front = front.to_str().expect("a name");
    // What calloc hands out comes from libc, and is freed by the one in front.
    let program = "import ctypes, json; print(json.dumps([1] * 10))";
    let preload = format!("LD_PRELOAD={front}");
    let (reports, output) = report(&["env", &preload, "python3", "-c", program]);
    assert!(output.status.success());
    assert_eq!(wrong(&reports), Vec::<&Value>::new());
}

#[test]
fn real_programs_free_as_they_have_to() {
    let (folder, program) = build("g++", "own_operators.cc", &["-O2"]);
    let input = folder.path().join("input.json");
    std::fs::write(&input, "[1, {\"a\": [2, 3]}]").expect("writes");
    let input = input.to_str().expect("a name");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wrong_frees/wrong.cc");
    let source = source.to_str().expect("a name");
    let object = folder.path().join("object.o");
    let object = object.to_str().expect("a name");
    let repository = env!("CARGO_MANIFEST_DIR");
    let rows: [&[&str]; 9] = [
        &["jq", ".", input],
        &[
            "sqlite3",
            ":memory:",
            "create table t(a); insert into t values(1); select * from t;",
        ],
        &["perl", "-e", "my %h; $h{$_} = [$_] for 1..1000;"],
        &["python3", "-c", "import json, re, decimal"],
        &["git", "-C", repository, "--version"],
        &["gcc", "-c", "-O1", "-w", source, "-o", object],
        &[
            "gdb",
            "-batch",
            "-ex",
            "info functions main",
            program.to_str().expect("a name"),
        ],
        &["cmake", "--version"],
        &["cargo", "--version"],
    ];
    for command in rows {
        let (reports, output) = report_with(&["--follow-forks"], command);
        assert!(output.status.success(), "{command:?}");
        assert_eq!(wrong(&reports), Vec::<&Value>::new(), "{command:?}");
    }
}
