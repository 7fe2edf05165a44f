//! *Are a declared pool's blocks allocations of their own?* — counted once each, typed, gone when they are given back or their chunk is, and what
//! an address in them lies in.

mod harness;

use harness::{Running, pointee};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

const POOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pools");

fn build() -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("a folder");
    let program = folder.path().join("program");
    let status = Command::new("gcc")
        .args(["-g", "-O1", "-w", "-o"])
        .arg(&program)
        .arg(Path::new(POOLS).join("pools.c"))
        .status();
    assert!(status.expect("gcc runs").success());
    (folder, program)
}

fn configured() -> Command {
    let mut command = pointee();
    command
        .arg("--config")
        .arg(Path::new(POOLS).join("pointee.toml"));
    command
}

fn run(program: &Path, folder: &Path, wrong: bool) -> Value {
    let file = folder.join("report.json");
    let mut command = configured();
    if wrong {
        command.env("WRONG", "1");
    }
    let status = command
        .args(["run", "--format", "json", "--report"])
        .arg(&file)
        .arg("--")
        .arg(program)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    assert!(wrong || status.expect("runs").success());
    let text = std::fs::read(&file).expect("a report");
    let reports: Value = serde_json::from_slice(&text).expect("JSON");
    reports[0].clone()
}

#[test]
fn each_block_is_counted_once_and_goes_with_its_chunk() {
    let (folder, program) = build();
    let report = run(&program, folder.path(), false);
    let count = |allocator: &str, r#type: &str, field: &str| -> u64 {
        let sites = report["sites"].as_array().expect("a list");
        let those = sites
            .iter()
            .filter(|site| site["allocator"] == allocator && site["type"] == r#type);
        those
            .map(|site| site[field].as_u64().expect("a number"))
            .sum()
    };
    let rows = [
        ("pool_alloc of program", "struct leaf", 700, 200),
        ("slot_alloc of program", "struct slot", 100, 25),
        ("malloc of libc.so.6", "struct chunk", 6, 2),
    ];
    for (allocator, r#type, allocations, live) in rows {
        let found = (
            count(allocator, r#type, "allocations"),
            count(allocator, r#type, "live"),
        );
        assert_eq!(found, (allocations, live), "{allocator} {type}: {report:#}");
    }
    assert_eq!(report["wrong_frees"], Value::Array(Vec::new()));
}

#[test]
fn an_address_is_told_with_the_block_and_the_chunk_around_it() {
    let (_folder, program) = build();
    let config = Path::new(POOLS).join("pointee.toml");
    let running = Running::start_configured(&config, &program);
    let addresses: Vec<&str> = running.line.split_whitespace().collect();
    let output = configured()
        .args(["what", "--format", "json", &running.pid.to_string()])
        .args(&addresses)
        .output()
        .expect("runs");
    let answers: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    running.finish();
    let rows = [
        ("struct leaf", "struct leaf.name[0]", 4016),
        ("struct leaf[]", "struct leaf[1].name[0]", 4016),
        ("struct slot", "struct slot.next", 1024),
    ];
    for ((r#type, field, around), answer) in
        rows.into_iter().zip(answers.as_array().expect("a list"))
    {
        assert_eq!(answer["kind"], "pool", "{answer:#}");
        assert_eq!(answer["type"], r#type, "{answer:#}");
        assert_eq!(answer["field"], field, "{answer:#}");
        assert_eq!(answer["chain"][0]["kind"], "block", "{answer:#}");
        assert_eq!(answer["chain"][0]["size"], around, "{answer:#}");
    }
}

#[test]
fn a_block_of_a_pool_that_is_freed_otherwise_is_reported() {
    let (folder, program) = build();
    let report = run(&program, folder.path(), true);
    let row = &report["wrong_frees"][0];
    assert_eq!(row["allocated_by"], "slot_alloc of program", "{report:#}");
    assert_eq!(row["freed_by"], "free of libc.so.6", "{report:#}");
    assert_eq!(row["to_be_freed_by"], "slot_free of program", "{report:#}");
    assert_eq!(row["freed_at"][0]["function"], "main", "{report:#}");
}

/// A library with the names of a pool that ships inside, without symbols but its exported ones, and a program that uses it.
fn build_shipped(folder: &Path) -> PathBuf {
    let (library, program) = (folder.join("libshipped.so"), folder.join("shipped"));
    let gcc = |arguments: &[&str], source: &str, out: &Path| {
        let mut command = Command::new("gcc");
        command.args(["-w", "-O1"]).args(arguments);
        command
            .arg("-o")
            .arg(out)
            .arg(Path::new(POOLS).join(source));
        if out == program {
            command.arg(&library);
        }
        assert!(command.status().expect("gcc runs").success(), "{source}");
    };
    gcc(&["-shared", "-fPIC", "-s"], "apr.c", &library);
    gcc(&["-g", "-Wl,-rpath,$ORIGIN"], "shipped.c", &program);
    program
}

#[test]
fn what_ships_inside_is_known_at_the_first_run() {
    let folder = TempDir::new().expect("a folder");
    let program = build_shipped(folder.path());
    let report = run(&program, folder.path(), false);
    let pools = &report["totals"]["pools"];
    let count = |field: &str| pools[field].as_u64().expect("a number");
    // Of three pools one is cleared and used again, cut in another way, and one goes.
    // Of those with a header, 19 of 21 are kept; one grows; one of no bytes is none.
    let allocations = 1000 + 70 + 30 + 5 + 21 + 1;
    let live_bytes = 70 * 40 + 5 * 24 + 19 * 24;
    let found = [count("allocations"), count("live"), count("live_bytes")];
    assert_eq!(found, [allocations, 70 + 5 + 19, live_bytes], "{report:#}");
    // Chunks are the totals, what was cut out of them is not.
    assert_eq!(report["totals"]["live"], 4 + 1 + 19, "{report:#}");
    let sites = report["sites"].as_array().expect("a list");
    let row = sites.iter().find(|row| row["type"] == "struct node");
    let row = row.expect("a row of the type");
    assert_eq!(row["allocator"], "apr_palloc of libshipped.so", "{row:#}");
}

#[test]
fn an_ignored_pool_is_none() {
    let folder = TempDir::new().expect("a folder");
    let program = build_shipped(folder.path());
    let ignored = ["apr_*", "_talloc*"].map(|name| format!("[[ignore]]\nname = \"{name}\"\n"));
    let report = run_with(&ignored.concat(), &program, folder.path());
    assert_eq!(report["totals"]["pools"]["allocations"], 0);
}

/// The report of a run with this configuration.
fn run_with(config: &str, program: &Path, folder: &Path) -> Value {
    let path = folder.join("pointee.toml");
    std::fs::write(&path, config).expect("writes");
    let file = folder.join("report.json");
    let status = pointee()
        .arg("--config")
        .arg(&path)
        .args(["run", "--format", "json", "--report"])
        .arg(&file)
        .arg("--")
        .arg(program)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    assert!(status.expect("runs").success());
    let text = std::fs::read(&file).expect("a report");
    let reports: Value = serde_json::from_slice(&text).expect("JSON");
    reports[0].clone()
}

fn build_inlined(folder: &Path, level: &str) -> PathBuf {
    let program = folder.join("inlined");
    let status = Command::new("gcc")
        .args(["-g", "-w", level, "-o"])
        .arg(&program)
        .arg(Path::new(POOLS).join("inlined.c"))
        .status();
    assert!(status.expect("gcc runs").success());
    program
}

#[test]
fn a_cursor_that_is_ignored_is_none() {
    let folder = TempDir::new().expect("a folder");
    let program = build_inlined(folder.path(), "-O2");
    let ignored = ["obstack.object_base", "pool.next", "bump"];
    let ignored = ignored.map(|name| format!("[[ignore]]\nname = \"{name}\"\n"));
    let report = run_with(&ignored.concat(), &program, folder.path());
    assert_eq!(report["totals"]["pools"]["allocations"], 0, "{report:#}");
}

#[test]
fn pools_that_nobody_declares_are_seen() {
    for level in ["-O1", "-O2"] {
        let folder = TempDir::new().expect("a folder");
        let program = build_inlined(folder.path(), level);
        let report = run(&program, folder.path(), false);
        let sites = report["sites"].as_array().expect("a list");
        let count = |allocator: &str, field: &str| -> u64 {
            let those = sites.iter().filter(|site| site["allocator"] == allocator);
            those
                .map(|site| site[field].as_u64().expect("a number"))
                .sum()
        };
        let rows = [
            ("obstack.object_base of inlined", 2153, 1101),
            ("bump of inlined", 300, 300),
            ("pool.next of inlined", 200, 200),
        ];
        for (allocator, allocations, live) in rows {
            let found = (count(allocator, "allocations"), count(allocator, "live"));
            assert_eq!(
                found,
                (allocations, live),
                "{level} {allocator}: {report:#}"
            );
        }
        // The reader's are none, nor is anything else.
        let pools = &report["totals"]["pools"];
        assert_eq!(
            pools["allocations"],
            2153 + 300 + 200,
            "{level}: {report:#}"
        );
        let typed = |r#type: &str, allocator: &str| {
            let is = |site: &&Value| site["type"] == r#type && site["allocator"] == allocator;
            sites.iter().any(|site| is(&site))
        };
        assert!(
            typed("struct slot", "bump of inlined"),
            "{level}: {report:#}"
        );
        assert!(
            typed("struct leaf", "pool.next of inlined"),
            "{level}: {report:#}"
        );
    }
}

/// Each pool of the program says itself how many blocks it gave, and how many are left.
#[test]
fn pools_that_count_are_seen_in_their_users() {
    let folder = TempDir::new().expect("a folder");
    // Without optimisation only the macro is in its users.
    let rows = [
        ("gcc", "-O0", 3..4),
        ("gcc", "-O1", 0..4),
        ("gcc", "-O2", 0..4),
        ("gcc", "-O3", 0..4),
        ("clang", "-O0", 3..4),
        ("clang", "-O2", 0..4),
    ];
    let pools = [
        ("chunk.used of counting", "struct node"),
        ("pool.used of counting", "struct leaf"),
        ("words of counting", "struct slot"),
        ("store.used of counting", "struct word"),
    ];
    for (compiler, level, inlined) in rows {
        let program = folder.path().join("counting");
        let mut command = Command::new(compiler);
        command.args(["-g", "-w", level, "-o"]).arg(&program);
        let status = command.arg(Path::new(POOLS).join("counting.c")).status();
        assert!(status.expect("it compiles").success());
        let file = folder.path().join("report.json");
        let mut command = pointee();
        command.args(["run", "--format", "json", "--report"]);
        command.arg(&file).arg("--").arg(&program);
        let output = command.stdin(Stdio::null()).output().expect("runs");
        let said = String::from_utf8(output.stdout).expect("text");
        let said: Vec<u64> = said.split(' ').filter_map(|it| it.parse().ok()).collect();
        let text = std::fs::read(&file).expect("a report");
        let reports: Value = serde_json::from_slice(&text).expect("JSON");
        let sites = reports[0]["sites"].as_array().expect("a list");
        for (at, (allocator, r#type)) in pools.iter().enumerate() {
            let sum = |field: &str| -> u64 {
                let those = sites
                    .iter()
                    .filter(|site| site["allocator"] == *allocator && site["type"] == *r#type);
                those
                    .map(|site| site[field].as_u64().expect("a number"))
                    .sum()
            };
            if inlined.contains(&at) {
                let found = [sum("allocations"), sum("live")];
                let what = format!("{compiler} {level} {allocator}");
                assert_eq!(found[..], said[2 * at..][..2], "{what}: {sites:#?}");
            }
        }
        // The text's and the stack's parts are no blocks.
        let all: u64 = (0..4)
            .filter(|at| inlined.contains(at))
            .map(|at| said[2 * at])
            .sum();
        let recorded = &reports[0]["totals"]["pools"]["allocations"];
        if inlined.start == 0 {
            assert_eq!(*recorded, all, "{compiler} {level}");
        }
    }
}

/// What lies in a variable is told with the block that was taken of it.
#[test]
fn a_block_of_a_variable_is_told() {
    let folder = TempDir::new().expect("a folder");
    let program = folder.path().join("counting");
    let mut command = Command::new("gcc");
    command.args(["-g", "-w", "-O2", "-o"]).arg(&program);
    let status = command.arg(Path::new(POOLS).join("counting.c")).status();
    assert!(status.expect("gcc runs").success());
    let running = Running::start(&[], &program);
    let addresses: Vec<&str> = running.line.split_whitespace().skip(8).collect();
    let output = pointee()
        .args(["what", "--format", "json", &running.pid.to_string()])
        .args(&addresses)
        .output()
        .expect("runs");
    let answers: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    running.finish();
    let types = ["struct node", "struct leaf", "struct slot", "struct word"];
    for (r#type, answer) in types.into_iter().zip(answers.as_array().expect("a list")) {
        assert_eq!(answer["kind"], "pool", "{answer:#}");
        assert_eq!(answer["type"], r#type, "{answer:#}");
    }
}

/// With a profile, so that gcc puts copies of what pointers lead to behind comparisons with it; without symbols.
fn build_promoted(folder: &Path, options: &[&str]) -> PathBuf {
    let program = folder.join("promoted");
    let build = |arguments: &[&str]| {
        let status = Command::new("gcc")
            .current_dir(folder)
            .args(["-O2", "-w", "-rdynamic"])
            .args(options)
            .args(arguments)
            .args(["-o", "promoted"])
            .arg(Path::new(POOLS).join("promoted.c"))
            .status();
        assert!(status.expect("gcc runs").success());
    };
    build(&["-fprofile-generate"]);
    let mut trained = Command::new(&program);
    trained.current_dir(folder).stdout(Stdio::null());
    assert!(trained.status().expect("it runs").success());
    build(&["-fprofile-use", "-s"]);
    program
}

#[test]
fn what_copies_behind_promoted_calls_do_is_seen() {
    const CONFIG: &str = "
[[pool]]
signature = \"inner_alloc(pZ)p\"
behind = \"pool_malloc\"
free = \"inner_free\"

[[pool]]
signature = \"inner_free(pP)\"
behind = \"pool_free\"
";
    for options in [["-no-pie", "-fno-pie"], ["-pie", "-fpie"]] {
        let folder = TempDir::new().expect("a folder");
        let program = build_promoted(folder.path(), &options);
        let report = run_with(CONFIG, &program, folder.path());
        let pools = &report["totals"]["pools"];
        let found = (&pools["allocations"], &pools["live"]);
        assert_eq!(
            found,
            (&1000.into(), &700.into()),
            "{options:?}: {report:#}"
        );
    }
}
