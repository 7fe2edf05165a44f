//! *Are statically linked programs recorded, and do they run as without us?* — of glibc and musl, position-independent or not.

mod harness;

use harness::{pointee, report};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

/// Debian packages of what is run here.
pub const PACKAGES: &[&str] = &["gcc", "binutils", "musl-tools"];

/// How static programs are linked.
const LINKED: [&[&str]; 3] = [
    &["gcc", "-static"],
    &["gcc", "-static-pie", "-fPIE"],
    &["musl-gcc", "-static"],
];

struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        Self(TempDir::new().expect("a folder"))
    }

    fn build(&self, compiler: &[&str], source: &str) -> String {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/static_programs");
        let made = self.0.path().join(source.trim_end_matches(".c"));
        let status = Command::new(compiler[0])
            .args(&compiler[1..])
            .args(["-g", "-O1", "-fno-builtin", "-pthread", "-o"])
            .arg(&made)
            .arg(sources.join(source))
            .status();
        assert!(status.expect("the compiler runs").success(), "{compiler:?}");
        made.to_str().expect("a name").to_owned()
    }
}

fn told(output: &Output) -> (String, String, Option<i32>) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    (out, err, output.status.code())
}

/// Runs `command` plain and watched, which must not differ.
fn same(command: &[&str]) -> Vec<Value> {
    let plain = Command::new(command[0]).args(&command[1..]).output();
    let (reports, watched) = report(command);
    assert_eq!(told(&watched), told(&plain.expect("runs")), "{command:?}");
    reports
}

/// Allocations and live blocks of a type.
fn of_type(report: &Value, name: &str) -> [Option<u64>; 2] {
    let types = report["types"].as_array().expect("a list");
    let found = types.iter().find(|row| row["type"] == name);
    ["allocations", "live"].map(|field| found.and_then(|row| row[field].as_u64()))
}

fn unseen(report: &Value) -> String {
    report["unseen"].to_string()
}

#[test]
fn threads_and_children_are_counted_exactly() {
    let workshop = Workshop::new();
    for compiler in LINKED {
        let program = workshop.build(compiler, "family.c");
        let reports = same(&[&program]);
        let [first, rest @ ..] = reports.as_slice() else {
            panic!("no report: {compiler:?}")
        };
        assert_eq!(unseen(first), "[]", "{compiler:?}");
        assert_eq!(
            of_type(first, "struct node"),
            [Some(20_000), Some(0)],
            "{first:#}"
        );
        let programs: Vec<&str> = rest
            .iter()
            .map(|report| report["program"].as_str().expect("a name"))
            .collect();
        let shells = programs.iter().filter(|path| !path.ends_with("family"));
        assert_eq!(shells.count(), 2, "{compiler:?}: {programs:?}");
        let child = rest.iter().find(|report| report["generation"] == 0);
        let child = child.expect("the forked child's report");
        assert_eq!(of_type(child, "struct node")[1], Some(9), "{child:#}");
        assert_eq!(of_type(child, "struct node[]")[1], Some(1), "{child:#}");
    }
}

/// Programs that descendants become: executed in a child, in place of a recorded process, by `vfork`, and in vain.
#[test]
fn descendants_are_recorded_too() {
    let workshop = Workshop::new();
    for compiler in LINKED {
        let program = workshop.build(compiler, "begins.c");
        let text = format!("\"{program}\" one two; echo $?; exec \"{program}\" one two");
        let reports = same(&["sh", "-c", &text]);
        let of_it = |report: &&Value| report["program"] == program.as_str();
        let found: Vec<&Value> = reports.iter().filter(of_it).collect();
        assert_eq!(found.len(), 2, "{compiler:?}: {reports:#?}");
        for report in found {
            assert_eq!(unseen(report), "[]", "{compiler:?}");
            assert_eq!(report["generation"], 1, "{compiler:?}");
            assert!(
                report["totals"]["allocations"].as_u64() > Some(0),
                "{report:#}"
            );
        }
        // Python's `subprocess` forks by `vfork`, and tries one path after the other.
        let folder = workshop.0.path().to_str().expect("a name");
        let script = format!(
            "import os, subprocess as s; os.environ['PATH'] = '/nowhere:{folder}'; \
             print(s.run(['begins', 'one']).returncode)"
        );
        let reports = same(&["python3", "-c", &script]);
        assert_eq!(reports.iter().filter(of_it).count(), 1, "{reports:#?}");
    }
}

/// What cannot be executed after all, and what has no names.
#[test]
fn descendants_that_cannot_be_recorded_run_and_say_so() {
    let workshop = Workshop::new();
    let program = workshop.build(&["gcc", "-static"], "begins.c");
    let stripped = workshop.build(&["gcc", "-static", "-s"], "lists.c");
    // The kernel refuses a program that is open for writing.
    let text = format!("exec 3>>\"{program}\"; \"{program}\" one; echo $?; \"{stripped}\"");
    let reports = same(&["sh", "-c", &text]);
    let of = |path: &str| {
        let mut rows = reports.iter();
        rows.find(|report| report["program"] == path)
    };
    assert!(of(&program).is_none(), "{reports:#?}");
    let report = of(&stripped).expect("a report of the stripped program");
    assert!(unseen(report).contains("has no symbols"), "{report:#}");
}

#[test]
fn a_program_begins_as_without() {
    let workshop = Workshop::new();
    for compiler in LINKED {
        let program = workshop.build(compiler, "begins.c");
        let reports = same(&[&program, "one", ""]);
        assert_eq!(unseen(&reports[0]), "[]", "{compiler:?}");
        // Ignored signals are inherited, those by which a tracer stops a program too.
        let ignoring = |before: &[&str]| {
            let script = "trap '' TRAP SEGV STOP CHLD INT; exec \"$@\"";
            let mut command = Command::new("sh");
            let output = command
                .args(["-c", script, "sh"])
                .args(before)
                .arg(&program);
            told(&output.output().expect("runs"))
        };
        let command = pointee().get_program().to_str().expect("a name").to_owned();
        let watched = ignoring(&[&command, "run", "--report", "/dev/null", "--"]);
        assert_eq!(watched, ignoring(&[]), "{compiler:?}");
    }
}

#[test]
fn real_programs_do_not_notice() {
    for command in [
        &[
            "/bin/busybox",
            "sh",
            "-c",
            "for i in 1 2 3; do echo $i | busybox sed s/2/x/; done; exit 4",
        ][..],
        &[
            "/bin/bash-static",
            "-c",
            "a=(); for i in {1..300}; do a+=($i); done; echo ${#a[@]}; exit 5",
        ],
    ] {
        if Path::new(command[0]).exists() {
            // Debian strips both.
            assert!(
                unseen(&same(command)[0]).contains("has no symbols"),
                "{command:?}"
            );
        }
    }
}

#[test]
fn what_cannot_be_recorded_runs_and_says_so() {
    let workshop = Workshop::new();
    let stripped = workshop.build(&["gcc", "-static", "-s"], "begins.c");
    assert!(unseen(&same(&[&stripped])[0]).contains("has no symbols"));

    let program = workshop.build(&["gcc", "-static"], "begins.c");
    let without = workshop.build(&["gcc"], "without_ptrace.c");
    let command = pointee().get_program().to_str().expect("a name").to_owned();
    let file = workshop.0.path().join("report");
    let file = file.to_str().expect("a name");
    let run = ["run", "--format", "json", "--report", file, "--", &program];
    let watched = Command::new(&without).arg(command).args(run).output();
    let plain = Command::new(&without).arg(&program).output();
    assert_eq!(told(&watched.expect("runs")), told(&plain.expect("runs")));
    let reports: Value =
        serde_json::from_slice(&std::fs::read(file).expect("a report")).expect("JSON");
    assert!(
        unseen(&reports[0]).contains("may not be traced"),
        "{reports:#}"
    );
}

/// Address and name of each function in the symbols of `program`.
fn address_of(program: &str, function: &str) -> String {
    let output = Command::new("nm").arg(program).output().expect("nm runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text
        .lines()
        .find(|line| line.ends_with(&format!(" {function}")));
    let digits = line
        .and_then(|line| line.split(' ').next())
        .expect("a symbol");
    format!(
        "{:#x}",
        u64::from_str_radix(digits, 16).expect("an address")
    )
}

#[test]
fn allocators_without_names_are_found_by_what_they_do() {
    // musl's calloc calls its malloc, which is enough.
    let rows: [(&[&str], &[&str]); 2] = [
        (
            &["gcc", "-static"],
            &["malloc", "calloc", "realloc", "free"],
        ),
        (
            &["musl-gcc", "-static", "-Wl,--build-id=none"],
            &["malloc", "realloc", "free"],
        ),
    ];
    for (compiler, expect) in rows {
        let workshop = Workshop::new();
        let named = workshop.build(compiler, "lists.c");
        let stripped = format!("{named}-stripped");
        let status = Command::new("strip")
            .args(["-o", &stripped, &named])
            .status();
        assert!(status.expect("strip runs").success());
        let found = workshop.0.path().join("found.toml");
        let output = pointee()
            .args(["observe", "--output"])
            .arg(&found)
            .args(["--", &stripped])
            .output()
            .expect("runs");
        let plain = Command::new(&stripped).output().expect("runs");
        assert_eq!(told(&output), told(&plain));
        let text = std::fs::read_to_string(&found).expect("the configuration");
        let tables: Vec<&str> = text.split("\n[[").skip(1).collect();
        for name in expect {
            let is_it = |table: &&&str| table.contains(&format!("name = \"{name}\"\n"));
            let table = tables.iter().find(is_it);
            let address = format!("address = {}\n", address_of(&named, name));
            assert!(
                table.is_some_and(|table| table.contains(&address)),
                "{name} {address}: {text}"
            );
        }
        assert_eq!(tables.len(), expect.len(), "{text}");

        // With that configuration it is recorded, as it is with its symbols; also when another program starts it.
        let script = format!("\"{stripped}\"; exit $?");
        let runs: [(&[&str], Option<&Path>); 3] = [
            (&[&named], None),
            (&[&stripped], Some(&found)),
            (&["sh", "-c", &script], Some(&found)),
        ];
        let totals = runs.map(|(command, config)| totals_of_lists(&workshop, command, config));
        assert!(totals[0][0] >= Some(500), "{totals:?}");
        assert_eq!(totals[1], totals[0], "{compiler:?}");
        assert_eq!(totals[2], totals[0], "{compiler:?}");
    }
}

/// What the report of `lists` counts, run by `command`.
fn totals_of_lists(
    workshop: &Workshop,
    command: &[&str],
    config: Option<&Path>,
) -> [Option<u64>; 4] {
    let file = workshop.0.path().join("report");
    let mut run = pointee();
    if let Some(config) = config {
        run.arg("--config").arg(config);
    }
    let status = run
        .args(["run", "--format", "json", "--report"])
        .arg(&file)
        .arg("--")
        .args(command)
        .status();
    assert!(status.expect("runs").success());
    let report = std::fs::read(&file).expect("a report");
    let reports: Vec<Value> = serde_json::from_slice(&report).expect("JSON");
    let is_it = |report: &&Value| {
        let program = report["program"].as_str();
        program.is_some_and(|program| program.contains("lists"))
    };
    let totals = &reports.iter().find(is_it).expect("its report")["totals"];
    ["allocations", "bytes_allocated", "frees", "live"].map(|field| totals[field].as_u64())
}

/// One that is watched for a part of its time goes on as it would have.
#[test]
fn a_program_that_is_no_longer_observed_goes_on() {
    let workshop = Workshop::new();
    let program = workshop.build(&["gcc", "-static"], "many_lists.c");
    let output = pointee()
        .args(["observe", "--seconds", "1", "--", &program])
        .output()
        .expect("runs");
    let plain = Command::new(&program).output().expect("runs");
    assert_eq!(output.stdout, plain.stdout);
    assert_eq!(output.status, plain.status);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("at its own speed"), "{said}");
    assert!(
        said.contains("what it did after these is not known"),
        "{said}"
    );
    assert!(said.contains("role = \"malloc\""), "{said}");
}
