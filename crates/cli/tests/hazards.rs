//! *Does a program that lives dangerously live as without us?* — one small program a hazard, plain and watched.
//!
//! Each must have the same output and the same end both ways. Where it is seen, its counts are
//! checked; where it cannot be seen, its report has to say so.

mod harness;

use harness::{pointee, report_with};
use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// Debian packages of what is run here.
pub const PACKAGES: &[&str] = &[
    "gcc",
    "g++",
    "musl-tools",
    "golang-go",
    "util-linux",
    "libjemalloc2",
    "libmimalloc2.0",
    "libgoogle-perftools4",
];

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hazards")
}

/// A folder and programs built in it.
struct Workshop {
    folder: TempDir,
}

impl Workshop {
    fn new() -> Self {
        Self {
            folder: TempDir::new().expect("a folder"),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn compile(&self, compiler: &str, source: &str, flags: &[&str]) -> String {
        let made = self
            .path()
            .join(Path::new(source).file_stem().expect("a name"));
        let status = Command::new(compiler)
            .args(["-g", "-O2", "-fno-builtin", "-w", "-pthread", "-o"])
            .arg(&made)
            .arg(sources().join(source))
            .args(flags)
            .status()
            .expect("the compiler runs");
        assert!(status.success(), "{source} compiles");
        made.to_str().expect("a name").to_owned()
    }

    fn file(&self, name: &str) -> String {
        self.path().join(name).to_str().expect("a name").to_owned()
    }

    fn c(&self, source: &str) -> String {
        self.compile("gcc", source, &[])
    }
}

fn have(program: &str) -> bool {
    let there = ["/usr/bin", "/bin", "/usr/sbin", "/usr/local/bin"]
        .iter()
        .any(|place| Path::new(place).join(program).exists());
    if !there {
        eprintln!("SKIPPED: there is no {program}");
    }
    there
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// How a run ended, and what it wrote.
fn told(output: &Output) -> (String, String, Option<i32>, Option<i32>) {
    (
        text(&output.stdout),
        text(&output.stderr),
        output.status.code(),
        output.status.signal(),
    )
}

/// Runs `command` plain and watched, which must not differ, and returns the reports.
fn same(command: &[&str]) -> Vec<Value> {
    same_with(&[], command)
}

fn same_with(options: &[&str], command: &[&str]) -> Vec<Value> {
    let plain = Command::new(command[0])
        .args(&command[1..])
        .output()
        .expect("runs");
    let (reports, watched) = report_with(options, command);
    assert_eq!(told(&watched), told(&plain), "{command:?}");
    reports
}

fn number(value: &Value, field: &str) -> u64 {
    value[field]
        .as_u64()
        .unwrap_or_else(|| panic!("no {field} in {value}"))
}

fn totals(report: &Value) -> [u64; 4] {
    let totals = &report["totals"];
    ["allocations", "frees", "live", "inherited"].map(|field| number(totals, field))
}

fn unseen(report: &Value) -> Vec<&str> {
    let list = report["unseen"].as_array().expect("a list");
    list.iter().filter_map(Value::as_str).collect()
}

/// Nothing lost: what is alive is what was inherited and allocated, less what was freed.
fn assert_consistent(report: &Value) {
    let [allocations, frees, live, inherited] = totals(report);
    assert_eq!(live, inherited + allocations - frees, "{report:#}");
    for table in ["types", "sites"] {
        for field in ["allocations", "frees", "live", "inherited"] {
            let rows = report[table].as_array().expect("a table");
            let sum: u64 = rows.iter().map(|row| number(row, field)).sum();
            assert_eq!(sum, number(&report["totals"], field), "{field} of {table}");
        }
    }
}

/// The site in `function`.
fn site<'a>(report: &'a Value, function: &str) -> &'a Value {
    let sites = report["sites"].as_array().expect("sites");
    sites
        .iter()
        .find(|site| site["function"] == function)
        .unwrap_or_else(|| panic!("no site in {function}: {sites:#?}"))
}

#[test]
fn a_thousand_forks_under_eight_threads() {
    let workshop = Workshop::new();
    let reports = same(&[&workshop.c("fork_many.c"), "1000"]);
    assert_eq!(reports.len(), 1001);
    for (at, report) in reports.iter().enumerate() {
        assert_eq!(unseen(report), [""; 0]);
        assert_consistent(report);
        let [allocations, frees, live, inherited] = totals(report);
        if at == 0 {
            assert_eq!(report["exit"]["code"], 0);
            assert_eq!(number(site(report, "main"), "allocations"), 1000);
            assert!(number(site(report, "churn"), "allocations") > 1000);
            continue;
        }
        assert_eq!(report["exit"]["code"], 7, "{report:#}");
        assert_eq!((allocations, frees, live), (1, 1, inherited), "{report:#}");
        // Eight threads hold 64 blocks each at most, and one under way; the stacks' and the program's own are a few.
        assert!(inherited <= 8 * 65 + 20, "{inherited} inherited");
        let main = site(report, "main");
        assert!(number(main, "inherited") <= 1);
    }
}

#[test]
fn ends_of_all_kinds() {
    let workshop = Workshop::new();
    let killed = workshop.compile("gcc", "killed.c", &["-no-pie"]);
    for (argument, signal) in [("9", 9), ("6", 6), ("11", 11), ("15", 15), ("0", 0)] {
        // Addresses differ from run to run, so the first line is for others to read.
        let command = format!("exec setarch -R {killed} {argument}");
        let reports = same(&["sh", "-c", &command]);
        let report = reports.last().expect("a report");
        assert_consistent(report);
        let rows = report["types"].as_array().expect("types");
        let record = rows.iter().find(|row| row["type"] == "struct record");
        let record = record.unwrap_or_else(|| panic!("no struct record: {rows:#?}"));
        assert_eq!(
            (number(record, "allocations"), number(record, "live")),
            (1000, 1000)
        );
        assert_eq!(number(record, "live_bytes"), 64_000);
        if signal == 0 {
            assert_eq!(report["exit"]["code"], 3);
        } else {
            assert_eq!(report["exit"]["signal"], signal);
        }
    }
}

#[test]
fn descriptors_environment_signals_jumps() {
    let workshop = Workshop::new();
    let rows = [
        ("close_all.c", 99_999..200_000),
        ("environment.c", 0..100),
        ("vfork_child.c", 0..100),
        ("jumps.cc", 1000..1_000_000),
    ];
    for (source, expect) in rows {
        let compiler = if source.ends_with("cc") { "g++" } else { "gcc" };
        let reports = same(&[&workshop.compile(compiler, source, &[])]);
        assert_eq!(unseen(&reports[0]), [""; 0], "{source}");
        assert_consistent(&reports[0]);
        assert!(
            expect.contains(&totals(&reports[0])[0]),
            "{source}: {:?}",
            totals(&reports[0])
        );
    }
}

/// Runs a program whose last line on standard error is its own count.
fn counted(program: &str) -> (Vec<u64>, Value) {
    let (mut reports, output) = report_with(&[], &[program]);
    assert_eq!(output.status.code(), Some(0), "{program}");
    let said = text(&output.stderr);
    let counts = said
        .split_whitespace()
        .map(|word| word.parse().expect("a number"));
    let counts = counts.collect();
    assert_consistent(&reports[0]);
    assert_eq!(unseen(&reports[0]), [""; 0], "{program}");
    (counts, reports.remove(0))
}

#[test]
fn signals_that_allocate() {
    let workshop = Workshop::new();
    let (counts, report) = counted(&workshop.c("signals_allocate.c"));
    assert_eq!(totals(&report)[..2], [counts[0], counts[0]]);
    // A handler that runs in the middle of the allocator itself cannot be told from the allocator's own calls; where
    // that is allowed at all, such calls are left out as pairs, and nothing else is lost.
    let (counts, report) = counted(&workshop.c("signals_interrupt.c"));
    let [allocations, frees, live, _] = totals(&report);
    assert_eq!((allocations, live), (frees, 0));
    assert!(
        allocations <= counts[0] && counts[0] - allocations < counts[0] / 100,
        "{allocations} of {counts:?}"
    );
}

#[test]
fn an_allocator_in_the_executable() {
    let workshop = Workshop::new();
    let (counts, report) = counted(&workshop.c("own_malloc.c"));
    assert_eq!(totals(&report)[..2], counts[..]);
    let allocator = site(&report, "main")["allocator"].as_str().expect("a name");
    assert_eq!(allocator, "malloc of own_malloc");
}

#[test]
fn preloaded_allocators() {
    let workshop = Workshop::new();
    let program = workshop.c("counting_threads.c");
    for library in ["libjemalloc.so.2", "libtcmalloc.so.4", "libmimalloc.so.2"] {
        let path = format!("/usr/lib/x86_64-linux-gnu/{library}");
        if !Path::new(&path).exists() {
            eprintln!("SKIPPED: there is no {path}");
            continue;
        }
        let preload = format!("LD_PRELOAD={path}");
        let reports = same(&["env", &preload, "sh", "-c", "echo $LD_PRELOAD"]);
        assert!(
            reports.iter().all(|report| unseen(report).is_empty()),
            "{reports:#?}"
        );
        let reports = same(&["env", &preload, &program, "1"]);
        let report = reports.last().expect("a report");
        assert_consistent(report);
        assert_eq!(
            site(report, "counted_malloc")["allocator"],
            format!("malloc of {library}")
        );
    }
}

#[test]
fn sandboxes() {
    let workshop = Workshop::new();
    let reports = same(&[&workshop.c("strict_seccomp.c")]);
    assert_consistent(&reports[0]);
    let filter = workshop.c("seccomp_filter.c");
    let reports = same(&[&filter]);
    assert_consistent(&reports[0]);
    assert_eq!(number(site(&reports[0], "work"), "allocations"), 10_000);
}

#[test]
fn fork_in_a_sandbox() {
    let workshop = Workshop::new();
    // The child cannot be given an index of its own there, and its parent's report says so.
    let filter = workshop.c("seccomp_filter.c");
    let reports = same(&[&filter, "fork"]);
    assert_consistent(&reports[0]);
    assert_eq!(unseen(&reports[0]).len(), 1, "{reports:#?}");
}

#[test]
fn limits() {
    let workshop = Workshop::new();
    let exhaust = workshop.c("exhaust.c");
    let large_file = workshop.c("large_file.c");
    let rows = [
        format!("ulimit -v 3000000; exec {exhaust}"),
        format!("ulimit -v 600000; exec {exhaust}"),
        format!("ulimit -v 60000; exec {exhaust}"),
        format!("ulimit -f 64; exec {large_file}"),
        format!("ulimit -f 0; exec {large_file}"),
        format!("ulimit -n 10; exec {large_file}"),
        format!("ulimit -n 3; exec {large_file} 2>&-"),
        format!("ulimit -s 200; exec {large_file}"),
        format!("ulimit -l 0; exec {large_file}"),
        format!("ulimit -d 20000; exec {exhaust}"),
    ];
    for row in &rows {
        let reports = same(&["sh", "-c", row]);
        // Not a child that outlives its parent, which has a report of its own.
        let ended = |report: &&Value| report["state"] != "running";
        let last = reports.iter().rfind(ended).expect("a report");
        // Seen, and right; or not seen, and said so.
        if unseen(last).is_empty() {
            assert!(totals(last)[0] > 0, "{row}: {last:#}");
            assert_consistent(last);
        }
        eprintln!("{row}: {:?} {:?}", totals(last), unseen(last));
    }
}

#[test]
fn core_files_are_as_long_as_without() {
    let workshop = Workshop::new();
    same(&[&workshop.c("core_size.c")]);
}

#[test]
fn no_cache_and_no_room() {
    for cache in ["/proc/nonexistent", "/dev/null", "/dev/full", ""] {
        let plain = Command::new("jq")
            .args(["-n", "[range(9)]"])
            .output()
            .expect("runs");
        let folder = TempDir::new().expect("a folder");
        let report = folder.path().join("report");
        let watched = pointee()
            .args(["run", "--report"])
            .arg(&report)
            .args(["--snapshot", "/dev/full", "--", "jq", "-n", "[range(9)]"])
            .env("XDG_CACHE_HOME", cache)
            .env("HOME", "/proc/nonexistent")
            .stdin(Stdio::null())
            .output()
            .expect("runs");
        assert_eq!(text(&watched.stdout), text(&plain.stdout));
        assert_eq!(watched.status.code(), Some(0), "{cache:?}");
        let said = text(&watched.stderr);
        assert!(
            said.starts_with("pointee:") && said.contains("No space left"),
            "{said}"
        );
        assert!(text(&std::fs::read(&report).expect("a report")).contains("allocations"));
    }
}

#[test]
fn libraries_that_come_and_go() {
    let workshop = Workshop::new();
    let plugin = workshop.compile("gcc", "plugin.c", &["-shared", "-fPIC"]);
    let program = workshop.c("dlopen_loop.c");
    let reports = same(&[&program, &plugin]);
    assert_eq!(unseen(&reports[0]), [""; 0]);
    assert_consistent(&reports[0]);
    // The plugin's function hands out memory for its caller: one site, however often it was loaded.
    let sites = reports[0]["sites"].as_array().expect("sites");
    let through: Vec<&Value> = sites
        .iter()
        .filter(|site| site.to_string().contains("plugin_allocate"))
        .collect();
    let [site] = through.as_slice() else {
        panic!("{sites:#?}")
    };
    assert_eq!(
        (number(site, "allocations"), number(site, "frees")),
        (200, 200)
    );
    assert!(site["line"].is_u64(), "{site}");
}

/// Kilobytes of what a run with this argument touched of its index.
fn touched(program: &str, argument: &str) -> u64 {
    let folder = TempDir::new().expect("a folder");
    let snapshot = folder.path().join("snapshot");
    let (reports, _) = report_with(
        &[
            "--no-follow",
            "--snapshot",
            snapshot.to_str().expect("a name"),
        ],
        &[program, argument],
    );
    assert_consistent(&reports[0]);
    let threads: u64 = argument.parse().expect("a number");
    assert_eq!(number(site(&reports[0], "one"), "allocations"), threads);
    std::fs::metadata(&snapshot).expect("a snapshot").len() >> 10
}

#[test]
fn a_hundred_thousand_short_threads() {
    let workshop = Workshop::new();
    let program = workshop.c("short_threads.c");
    let (few, many) = (touched(&program, "1000"), touched(&program, "100000"));
    // A snapshot holds every page of the index that was touched.
    assert!(
        many <= few + few / 10 + 64,
        "{few} KiB after 1,000 threads, {many} KiB after 100,000"
    );
}

/// So many threads at once, in waves; every call is counted.
fn check_threads(threads: &str) {
    let workshop = Workshop::new();
    let (reports, output) = report_with(&[], &[&workshop.c("many_threads.c"), threads]);
    let said = text(&output.stdout);
    let counts: Vec<u64> = said
        .split_whitespace()
        .map(|word| word.parse().expect("a number"))
        .collect();
    let sites = reports[0]["sites"].as_array().expect("sites");
    let own = || sites.iter().filter(|site| site["function"] == "work");
    let found =
        ["allocations", "frees"].map(|field| own().map(|site| number(site, field)).sum::<u64>());
    assert_eq!(
        found[..],
        counts,
        "{threads} threads: {:?}",
        unseen(&reports[0])
    );
}

#[test]
fn waves_of_threads() {
    check_threads("100");
    check_threads("200");
}

#[test]
fn six_hundred_threads_at_once() {
    check_threads("600");
}

/// Beyond the slots, threads share one: next to nothing may be lost there, and it is said.
#[test]
fn two_thousand_threads_at_once() {
    let workshop = Workshop::new();
    let program = workshop.c("many_threads.c");
    let (reports, output) = report_with(&[], &[&program, "2000", "2000"]);
    let said = text(&output.stdout);
    let counted: Vec<u64> = said
        .split_whitespace()
        .map(|word| word.parse().expect("a number"))
        .collect();
    for (field, counted) in ["allocations", "frees"].into_iter().zip(counted) {
        let sites = reports[0]["sites"].as_array().expect("sites");
        let own = sites.iter().filter(|site| site["function"] == "work");
        let found: u64 = own.map(|site| number(site, field)).sum();
        assert_eq!(found, counted, "{field}");
    }
    assert_eq!(unseen(&reports[0]), Vec::<&str>::new());
}

#[test]
fn set_user_id() {
    let workshop = Workshop::new();
    let program = workshop.c("identity.c");
    let is_root = text(&Command::new("id").arg("-u").output().expect("runs").stdout).trim() == "0";
    if !is_root || !have("setpriv") {
        eprintln!("SKIPPED: only root can make a program that is root's");
        return;
    }
    let script = format!(
        "chmod 755 {} && chmod 4755 {program}",
        workshop.path().display()
    );
    let status = Command::new("sh")
        .args(["-c", &script])
        .status()
        .expect("runs");
    assert!(status.success());
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--no-new-privs",
    ];
    let with_rights: Vec<&str> = nobody[..4].iter().copied().chain([&*program]).collect();
    let output = Command::new(with_rights[0])
        .args(&with_rights[1..])
        .output()
        .expect("runs");
    if !text(&output.stdout).contains("secure 1") {
        eprintln!("SKIPPED: set-user-ID programs get no rights here");
        return;
    }
    let reports = same(&with_rights);
    let last = reports.last().expect("a report");
    assert!(
        !unseen(last).is_empty() && last["exit"]["code"] == 0,
        "{reports:#?}"
    );
    // Its children are free again, and nothing of ours reaches them.
    let script = format!("{program}; echo ${{LD_PRELOAD-unset}} ${{POINTEE_HANDOFF-unset}}");
    let command: Vec<&str> = nobody[..4]
        .iter()
        .copied()
        .chain(["sh", "-c", &script])
        .collect();
    same(&command);
    // As the first program.
    let reports = same(&[&program]);
    assert!(
        !unseen(&reports[0]).is_empty() || totals(&reports[0])[0] > 0,
        "{reports:#?}"
    );
}

#[test]
fn the_unseen() {
    let workshop = Workshop::new();
    let rows: [(&str, &str, &str, &[&str]); 3] = [
        ("stripped", "g++", "jumps.cc", &["-static", "-s"]),
        ("sanitized", "gcc", "close_all.c", &["-fsanitize=address"]),
        ("musl", "musl-gcc", "close_all.c", &[]),
    ];
    for (name, compiler, source, flags) in rows {
        if !have(compiler) {
            continue;
        }
        let program = workshop.file(name);
        let flags: Vec<&str> = flags.iter().copied().chain(["-o", &program]).collect();
        workshop.compile(compiler, source, &flags);
        let reports = same(&[&program]);
        assert!(!unseen(&reports[0]).is_empty(), "{program}: {reports:#?}");
        let reports = same(&[
            "sh",
            "-c",
            &format!("{program}; {program} | cat; exec {program}"),
        ]);
        let last = reports.last().expect("a report");
        assert!(!unseen(last).is_empty(), "{program}: {last:#}");
    }
}

#[test]
fn go() {
    if !have("go") {
        return;
    }
    let workshop = Workshop::new();
    let pure = "package main\nimport \"fmt\"\nfunc main() { m := map[int]string{}; for i := 0; i < 1000; i++ { m[i] = fmt.Sprint(i) }; fmt.Println(len(m)) }\n";
    let mixed = "package main\n// #include <stdlib.h>\nimport \"C\"\nimport \"fmt\"\nfunc main() { for i := 0; i < 1000; i++ { C.free(C.malloc(10)) }; fmt.Println(\"done\") }\n";
    for (name, source, cgo) in [("pure", pure, "0"), ("mixed", mixed, "1")] {
        let file = workshop.path().join(format!("{name}.go"));
        std::fs::write(&file, source).expect("writes");
        let program = workshop.file(name);
        let status = Command::new("go")
            .args(["build", "-o", &program])
            .arg(&file)
            .env("CGO_ENABLED", cgo)
            .env("GOFLAGS", "-mod=mod")
            .env("GOCACHE", workshop.path().join("cache"))
            .env("HOME", workshop.path())
            .status()
            .expect("go runs");
        assert!(status.success(), "{name} builds");
        let reports = same(&[&program]);
        if cgo == "0" {
            assert!(!unseen(&reports[0]).is_empty(), "{reports:#?}");
        } else {
            assert!(totals(&reports[0])[0] >= 1000, "{reports:#?}");
        }
    }
}

/// Names of the programs reported, with the execs before them.
fn programs(reports: &[Value]) -> Vec<(String, u64)> {
    let of = |report: &Value| {
        let path = report["program"].as_str().expect("a name");
        (
            path.rsplit('/').next().expect("a name").to_owned(),
            number(report, "generation"),
        )
    };
    reports.iter().map(of).collect()
}

/// Python that calls libc by hand: `words` makes what execs take.
const BY_HAND: &str = "import ctypes as c, os
libc = c.CDLL(None, use_errno=True)
words = lambda *all: (c.c_char_p * (len(all) + 1))(*all)
jq = '/usr/bin/jq'
argv, empty = words(b'jq', b'-n', b'env'), words()
";

#[test]
fn programs_started_by_descriptor() {
    let rows = [
        "os.execve(os.open(jq, os.O_RDONLY), ['jq', '-n', 'env'], {})",
        "os.execve(os.open(jq, os.O_PATH), ['jq', '-n', 'env'], {})",
        "f = os.memfd_create('copy'); os.write(f, open(jq, 'rb').read()); os.execve(f, ['jq', '-n', 'env'], {})",
        "libc.execveat(os.open('/usr/bin', os.O_RDONLY), b'jq', argv, empty, 0)",
        "libc.execveat(-100, b'/usr/bin/jq', argv, empty, 0)",
        "libc.execveat(os.open(jq, os.O_RDONLY), b'', argv, empty, 0x1000)",
        "libc.syscall(59, b'/usr/bin/jq', argv, empty)",
        "libc.syscall(322, os.open('/usr/bin', os.O_RDONLY), b'jq', argv, empty, 0)",
    ];
    for how in rows {
        let reports = same(&["/usr/bin/python3", "-c", &(BY_HAND.to_owned() + how)]);
        let last = programs(&reports);
        let (name, generation) = last.last().expect("a report");
        assert!(
            ["jq", "memfd:copy (deleted)"].contains(&name.as_str()) && *generation == 1,
            "{how}: {last:?}"
        );
        let [allocations, ..] = totals(&reports[1]);
        assert!(allocations > 10, "{how}: {reports:#?}");
    }
    // What fails is as it was, and the program goes on being recorded.
    let fails = "import errno
assert libc.execveat(-100, b'/no/such/file', argv, empty, 0) == -1 and c.get_errno() == errno.ENOENT
assert libc.syscall(59, b'/no/such/file', argv, empty) == -1 and c.get_errno() == errno.ENOENT
assert libc.fexecve(999, argv, empty) == -1 and c.get_errno() == errno.EBADF
assert libc.syscall(39) == os.getpid()";
    let reports = same(&["/usr/bin/python3", "-c", &(BY_HAND.to_owned() + fails)]);
    assert_eq!(reports.len(), 1, "{reports:#?}");
    assert_eq!(reports[0]["exit"]["code"], 0, "{reports:#?}");
    // One that is linked statically is followed too.
    let workshop = Workshop::new();
    let program = workshop.file("static");
    workshop.compile("gcc", "close_all.c", &["-static", "-o", &program]);
    let fd = format!("os.execve(os.open('{program}', os.O_RDONLY), ['x'], {{}})");
    let reports = same(&["/usr/bin/python3", "-c", &(BY_HAND.to_owned() + &fd)]);
    let last = reports.last().expect("a report");
    assert_eq!(number(last, "generation"), 1, "{last:#?}");
    assert!(unseen(last).is_empty(), "{last:#?}");
    assert!(totals(last)[0] > 0, "{last:#?}");
}

#[test]
fn chains_of_programs() {
    let reports = same(&["sh", "-c", "exec bash -c 'exec jq -n 1'"]);
    let expect = [("dash", 0), ("bash", 1), ("jq", 2)]
        .map(|(name, generation)| (name.to_owned(), generation));
    assert_eq!(programs(&reports), expect);
    // An empty environment does not lose the trail.
    let reports = same(&["env", "-i", "/usr/bin/jq", "-n", "env"]);
    assert_eq!(programs(&reports).last(), Some(&("jq".to_owned(), 1)));
    let reports = same(&[
        "python3",
        "-c",
        "import os, subprocess as s\ns.run(['/usr/bin/jq', '-n', '1'], env={})\np = os.posix_spawn('/usr/bin/jq', ['jq', '-n', '2'], {})\nos.waitpid(p, 0)",
    ]);
    let jqs = programs(&reports)
        .iter()
        .filter(|(name, _)| name == "jq")
        .count();
    assert_eq!(jqs, 2, "{:?}", programs(&reports));
}
