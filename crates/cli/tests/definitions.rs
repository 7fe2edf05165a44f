//! *Is each call counted once, by the allocator whose code it reached?* — a second definition of malloc in a process, in an executable or a
//! shared object, that wins the contention for the global name or loses it, called from inside and outside.

mod harness;

use harness::report;
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// What `inside` and `outside` call a hundred times each.
const CALLS: u64 = 100;

fn gcc(output: &Path, sources: &[&str], flags: &[&OsStr]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/definitions");
    let status = Command::new("gcc")
        .args(["-g", "-O1", "-fno-builtin", "-w", "-o"])
        .arg(output)
        .args(sources.iter().map(|source| folder.join(source)))
        .args(flags)
        .status();
    assert!(status.expect("gcc runs").success(), "{output:?} {flags:?}");
}

/// The program's arguments, and the name of the file with the definition.
fn build(folder: &TempDir, place: &str, linkage: &str, wins: bool) -> (Vec<PathBuf>, &'static str) {
    let path = |name: &str| folder.path().join(name);
    let (program, own, other) = (path("program"), path("libown.so"), path("libother.so"));
    let visibility = match linkage {
        "protected" => "-DVISIBILITY=__attribute__((visibility(\"protected\")))",
        _ => "-DVISIBILITY=",
    };
    let mut flags: Vec<&OsStr> = vec![visibility.as_ref()];
    if linkage == "symbolic" {
        flags.push("-Wl,-Bsymbolic".as_ref());
    }
    if place == "shared object" {
        flags.extend(["-shared".as_ref(), OsStr::new("-fPIC")]);
        gcc(&own, &["own.c"], &flags);
        if wins {
            let flags = [own.as_os_str(), OsStr::new("-Wl,-rpath,$ORIGIN")];
            gcc(&program, &["main.c", "outside.c"], &flags);
            (vec![program], "libown.so")
        } else {
            // Loaded later, for itself: libc's comes first.
            gcc(&program, &["main.c", "outside.c"], &["-DLOADED".as_ref()]);
            (vec![program, own], "libown.so")
        }
    } else {
        let shared = ["-shared".as_ref(), OsStr::new("-fPIC")];
        gcc(&other, &["outside.c"], &shared);
        let hidden = path("hidden.map");
        std::fs::write(&hidden, "{ local: malloc; free; calloc; realloc; };").expect("writes");
        let mut script = OsStr::new("-Wl,--version-script=").to_owned();
        script.push(&hidden);
        flags.extend([other.as_os_str(), OsStr::new("-Wl,-rpath,$ORIGIN")]);
        if !wins {
            // An executable comes first by its place; it loses where it does not export the name.
            flags.push(&script);
        }
        gcc(&program, &["main.c", "own.c"], &flags);
        (vec![program], "program")
    }
}

fn check(place: &str, linkage: &str, wins: bool) {
    let row = format!(
        "{place}, {linkage}, {}",
        if wins { "wins" } else { "loses" }
    );
    let folder = TempDir::new().expect("a folder");
    let (command, own) = build(&folder, place, linkage, wins);
    let command: Vec<_> = command
        .iter()
        .map(|part| part.to_str().expect("a name"))
        .collect();
    let (reports, output) = report(&command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let own_calls: Vec<u64> = text
        .split_whitespace()
        .map(|word| word.parse().expect("a number"))
        .collect();
    assert_eq!(own_calls.len(), 2, "{row}: {text}");
    // What the rows are about: a definition that wins is called from everywhere, one that loses by its own object at most.
    assert_eq!(own_calls[1], if wins { CALLS } else { 0 }, "{row}");
    for (function, own_calls) in ["inside", "outside"].into_iter().zip(own_calls) {
        let sites = reports[0]["sites"].as_array().expect("a list");
        let counts: Vec<(&str, u64)> = sites
            .iter()
            .filter(|site| site["function"] == function)
            .map(|site| {
                let allocator = site["allocator"].as_str().expect("a name");
                (allocator, site["allocations"].as_u64().expect("a number"))
            })
            .collect();
        let by_own = format!("malloc of {own}");
        let expect = match own_calls {
            CALLS => (by_own.as_str(), CALLS),
            _ => ("malloc of libc.so.6", CALLS),
        };
        assert_eq!(counts, [expect], "{row}: {function}");
    }
    assert_eq!(reports[0]["wrong_frees"], Value::Array(Vec::new()), "{row}");
}

#[test]
fn each_call_is_counted_once_by_the_right_allocator() {
    for place in ["shared object", "executable"] {
        for linkage in ["default", "protected", "symbolic"] {
            for wins in [true, false] {
                check(place, linkage, wins);
            }
        }
    }
}
