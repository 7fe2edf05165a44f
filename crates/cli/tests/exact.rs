//! *Are the counts right to the last digit?* — held against valgrind, and against a program that counts its own calls.

mod harness;

use harness::{compile, pointee, report};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Debian packages of what is run here.
pub const PACKAGES: &[&str] = &[
    "valgrind",
    "gcc",
    "sed",
    "coreutils",
    "diffutils",
    "file",
    "binutils",
    "bzip2",
    "jq",
    "sqlite3",
    "lua5.4",
    "perl",
    "python3",
    "ninja-build",
    "ripgrep",
    "libjemalloc-dev",
    "libjemalloc2",
    "libmimalloc2.0",
    "libgoogle-perftools4",
];

/// Sums over a run, as valgrind counts them.
#[derive(Debug, PartialEq, Eq)]
struct Totals {
    allocations: u64,
    frees: u64,
    bytes: u64,
    live: u64,
    live_bytes: u64,
}

fn have(program: &str) -> bool {
    let there = ["/usr/bin", "/bin"]
        .iter()
        .any(|place| Path::new(place).join(program).exists());
    if !there {
        eprintln!("SKIPPED: there is no {program}");
    }
    there
}

/// Numbers of the line of `text` that contains `words`.
fn numbers(text: &str, words: &str) -> Vec<u64> {
    let line = text
        .lines()
        .find(|line| line.contains(words))
        .unwrap_or_else(|| panic!("no {words:?} in {text}"));
    let line = line.rsplit("==").next().unwrap_or(line).replace(',', "");
    line.split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// Runs `command` in `folder` with `environment` alone, without input and output.
fn run_quietly(command: &mut Command, folder: &Path, environment: &[(String, String)]) {
    command
        .current_dir(folder)
        .env_clear()
        .envs(environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("runs");
}

/// The program under valgrind. `environment` is all it gets.
fn by_valgrind(folder: &Path, environment: &[(String, String)], command: &[&str]) -> Totals {
    let log = folder.join("valgrind.log");
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--run-libc-freeres=no", "--run-cxx-freeres=no"])
        .arg(format!("--log-file={}", log.display()))
        .args(command);
    run_quietly(&mut valgrind, folder, environment);
    let text = std::fs::read_to_string(&log).expect("valgrind's log");
    let [allocations, frees, bytes] = numbers(&text, "total heap usage")[..] else {
        panic!("{text}")
    };
    let [live_bytes, live] = numbers(&text, "in use at exit")[..2] else {
        panic!("{text}")
    };
    Totals {
        allocations,
        frees,
        bytes,
        live,
        live_bytes,
    }
}

fn by_pointee(folder: &Path, environment: &[(String, String)], command: &[&str]) -> Totals {
    let report = folder.join("report.json");
    let mut run = pointee();
    run.args(["run", "--no-follow", "--format", "json", "--report"])
        .arg(&report)
        .arg("--")
        .args(command);
    run_quietly(&mut run, folder, environment);
    let reports: Value =
        serde_json::from_slice(&std::fs::read(&report).expect("a report")).expect("JSON");
    let totals = &reports[0]["totals"];
    let number = |field: &str| {
        totals[field]
            .as_u64()
            .unwrap_or_else(|| panic!("no {field} in {totals}"))
    };
    Totals {
        allocations: number("allocations"),
        frees: number("frees"),
        bytes: number("bytes_allocated"),
        live: number("live"),
        live_bytes: number("live_bytes"),
    }
}

/// What a program sees in its environment under valgrind that is not there without. Names that mean something to the
/// dynamic linker are changed in one letter: what counts is how long they are.
fn added_by_valgrind(folder: &Path, environment: &[(String, String)]) -> Vec<(String, String)> {
    let output = Command::new("valgrind")
        .args(["-q", "/usr/bin/env", "-0"])
        .current_dir(folder)
        .env_clear()
        .envs(environment.iter().cloned())
        .output()
        .expect("valgrind runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let seen = text.split('\0').filter_map(|entry| entry.split_once('='));
    seen.filter(|(name, value)| {
        !environment
            .iter()
            .any(|known| (&*known.0, &*known.1) == (*name, *value))
    })
    .map(|(name, value)| (name.replacen("LD_", "XD_", 1), value.to_owned()))
    .collect()
}

fn inputs(folder: &Path) {
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).expect("writes");
    let shuffled = |n: u64| n * 7919 % 20_011;
    write("numbers", (0..20_000).map(|n| format!("{n}\n")).collect());
    write(
        "shuffled",
        (0..20_000).map(|n| format!("{}\n", shuffled(n))).collect(),
    );
    write(
        "text",
        (0..2000)
            .map(|n| format!("a line {n} of {}\n", shuffled(n)))
            .collect(),
    );
    let items: Vec<String> = (0..3000)
        .map(|n| format!("{{\"a\": {n}, \"b\": \"{n}\"}}"))
        .collect();
    write("data.json", format!("[{}]", items.join(",")));
    let edges: String = (0..500)
        .map(|n| format!("build out{n}: copy text\n"))
        .collect();
    write(
        "build.ninja",
        format!("rule copy\n  command = cp $in $out\n{edges}"),
    );
}

const SQL: &str = "create table t(a,b); with recursive c(x) as (select 1 union all select x+1 from c where x<20000) \
                   insert into t select x, x*2 from c; select count(*), sum(b) from t;";

#[test]
fn totals_are_valgrinds() {
    if !have("valgrind") {
        return;
    }
    let folder = TempDir::new().expect("a folder");
    inputs(folder.path());
    let rows: &[&[&str]] = &[
        &["sed", "-e", "s/a/b/g", "text"],
        &["sort", "-n", "shuffled"],
        &["diff", "numbers", "shuffled"],
        &["file", "text"],
        &["objdump", "-d", "/bin/true"],
        &["bzip2", "-k", "-c", "text"],
        &["jq", ".[] | .a + 1", "data.json"],
        &["sqlite3", ":memory:", SQL],
        &[
            "lua5.4",
            "-e",
            "local t = {} for i = 1, 20000 do t[i] = {x = i, s = 'v' .. i} end print(#t)",
        ],
        &[
            "perl",
            "-e",
            "my %h; $h{$_} = \"v$_\" for 1..20000; print scalar keys %h",
        ],
        &[
            "/usr/bin/python3",
            "-I",
            "-c",
            "d = {i: str(i) for i in range(20000)}; print(len(d))",
        ],
        // C++ and Rust.
        &["ninja", "-n"],
        &[
            "c++filt",
            "_ZNSt6vectorIiSaIiEE9push_backEOi",
            "_ZNKSt8functionIFvRKSsEEclES1_",
        ],
        &["rg", "-j1", "--no-config", "line 1.*7", "text"],
    ];
    // Perl and Python copy their environment; so that both runs see the same, what valgrind adds is given to the other
    // run too.
    let plain: Vec<(String, String)> = [
        ("PATH", "/usr/bin:/bin"),
        ("LC_ALL", "C.UTF-8"),
        ("PERL_HASH_SEED", "0"),
        ("PYTHONHASHSEED", "0"),
        ("HOME", "/"),
    ]
    .iter()
    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
    .collect();
    let added = added_by_valgrind(folder.path(), &plain);
    eprintln!("valgrind adds {added:?}");
    let mut with = plain.clone();
    with.extend(added);
    let mut wrong = Vec::new();
    for command in rows {
        if !have(command[0].trim_start_matches("/usr/bin/")) {
            continue;
        }
        let theirs = by_valgrind(folder.path(), &plain, command);
        let ours = by_pointee(folder.path(), &with, command);
        eprintln!("{}: {ours:?}", command[0]);
        if ours != theirs {
            wrong.push(format!(
                "{command:?}\n  valgrind {theirs:?}\n  pointee  {ours:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const COUNTING: &str = include_str!("hazards/counting_threads.c");
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// Sums over the sites in the program's own functions.
fn own_sites(report: &Value, program: &str) -> [u64; 3] {
    const OWN: [&str; 4] = ["work", "counted_malloc", "counted_realloc", "counted_free"];
    let sites = report["sites"].as_array().expect("sites");
    let own = sites.iter().filter(|site| {
        site["module"].as_str() == Some(program)
            && site["function"]
                .as_str()
                .is_some_and(|name| OWN.contains(&name))
    });
    own.fold([0; 3], |[a, f, b], site| {
        let number = |field: &str| site[field].as_u64().expect("a number");
        [
            a + number("allocations"),
            f + number("frees"),
            b + number("bytes_allocated"),
        ]
    })
}

#[test]
fn threads_are_counted_exactly() {
    let archive = format!("{LIBRARIES}/libjemalloc.a");
    let (_plain_folder, plain) = compile(COUNTING, &["-pthread", "-fno-builtin"]);
    let mut rows = vec![(plain.clone(), None)];
    let linked = Path::new(&archive).exists().then(|| {
        compile(
            COUNTING,
            &[
                "-pthread",
                "-fno-builtin",
                &archive,
                "-lm",
                "-lstdc++",
                "-ldl",
            ],
        )
    });
    match &linked {
        Some((_, program)) => rows.push((program.clone(), None)),
        None => eprintln!("SKIPPED: there is no {archive}"),
    }
    for library in ["libjemalloc.so.2", "libmimalloc.so.2", "libtcmalloc.so.4"] {
        let path = format!("{LIBRARIES}/{library}");
        if Path::new(&path).exists() {
            rows.push((plain.clone(), Some(path)));
        } else {
            eprintln!("SKIPPED: there is no {path}");
        }
    }
    for (program, preload) in &rows {
        let program = program.to_str().expect("a name");
        for threads in ["1", "2", "4", "8"] {
            let preload = preload.as_ref().map(|path| format!("LD_PRELOAD={path}"));
            let mut command: Vec<&str> = Vec::new();
            if let Some(preload) = &preload {
                command.extend(["env", preload]);
            }
            command.extend([program, threads]);
            let (reports, output) = report(&command);
            let what = format!("{command:?}");
            assert_eq!(output.status.code(), Some(0), "{what}");
            let counted = String::from_utf8_lossy(&output.stdout).into_owned();
            let counted: Vec<u64> = counted
                .split_whitespace()
                .map(|word| word.parse().expect("a number"))
                .collect();
            let last = reports.last().expect("a report");
            assert_eq!(last["unseen"], Value::Array(Vec::new()), "{what}");
            assert_eq!(own_sites(last, program)[..], counted, "{what}: sites");
            let totals = &last["totals"];
            let number = |field: &str| totals[field].as_u64().expect("a number");
            // libc and the allocator add a few of their own: stacks of threads, the buffer of standard output.
            assert!(
                (counted[0]..counted[0] + 100).contains(&number("allocations")),
                "{what}: {totals}"
            );
            assert!(number("peak_bytes") >= number("live_bytes"), "{what}");
        }
    }
}
