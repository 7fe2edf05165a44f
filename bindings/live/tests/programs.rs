//! *Do hooks hold in real, running programs?* Small programs in C and C++, one a hazard, built by both compilers and linked with
//! the library. Each checks itself, prints what it saw, and ends with 0 when all was well.
#![allow(missing_docs)]

mod programs_built;

use pointee_meta::elf::Elf;
use pointee_probe::inlined_instances;
use programs_built::build;

/// Unwinders other than the compiler's.
pub const PACKAGES: &[&str] = &["libunwind8", "libunwind-14", "llvm"];
use std::path::Path;
use std::process::Command;

/// Runs a program that checks itself, and gives what it printed.
fn check(program: &Path, arguments: &[&str]) -> String {
    let ran = Command::new(program)
        .args(arguments)
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&ran.stderr);
    assert!(
        ran.status.success(),
        "{}: {}\n{said}{complaint}",
        program.display(),
        ran.status
    );
    print!("{said}");
    said
}

/// How often, as the environment says: ten thousand times is for an idle machine.
fn times(usual: u32) -> String {
    std::env::var("POINTEE_HOOK_TIMES").unwrap_or_else(|_| usual.to_string())
}

#[test]
fn one_thread_in_the_pad() {
    let races = build("races.c", "gcc", &[]);
    check(&races, &["1", &times(300)]);
    check(&races, &["1", &times(300), "stop"]);
}

#[test]
fn eight_threads_in_the_pad() {
    let races = build("races.c", "gcc", &["-O1"]);
    check(&races, &["8", &times(300)]);
    check(&races, &["8", &times(50), "stop"]);
}

#[test]
fn sixty_four_threads_in_the_pad() {
    let races = build("races.c", "clang", &[]);
    check(&races, &["64", &times(100)]);
    check(&races, &["64", &times(10), "stop"]);
}

/// Ways to hook that `unwind` knows.
const KINDS: [&str; 8] = [
    "replace", "wrap", "site", "callers", "probe", "general", "count", "call",
];

#[test]
fn unwinding_goes_through() {
    for compiler in ["g++", "clang++"] {
        let program = build("unwind.cc", compiler, &[]);
        for kind in KINDS {
            check(&program, &[kind]);
            check(&program, &[kind, "threads"]);
        }
    }
}

#[test]
fn other_unwinders_go_through() {
    // Each stands before libgcc's: the first with `backtrace()`, the second with exceptions.
    let rows = [
        ("libunwind.so.8", "-l:libunwind.so.8"),
        ("", "/usr/lib/llvm-14/lib/libunwind.so.1"),
    ];
    for (name, library) in rows {
        let program = build("unwind.cc", "g++", &["-Wl,--no-as-needed", library]);
        for kind in KINDS {
            let said = check(&program, &[kind, "uncancelled"]);
            assert!(said.lines().next().is_some_and(|line| line.contains(name)));
        }
    }
}

#[test]
fn observers_see_any_signature() {
    for compiler in ["gcc", "clang"] {
        check(&build("signatures.c", compiler, &[]), &[]);
    }
}

/// gdb on `unwind`, with `arguments` for gdb and the kind of hook.
fn debug(arguments: &[&str], kind: &str) -> String {
    debug_with(arguments, kind, "DUMPS=")
}

/// The same with a variable in gdb's environment.
fn debug_with(arguments: &[&str], kind: &str, variable: &str) -> String {
    let program = build("unwind.cc", "g++", &["-fno-inline-functions"]);
    let (name, value) = variable.split_once('=').expect("a variable");
    let ran = Command::new("gdb")
        .env(name, value)
        .args(["-nx", "-batch"])
        .args(arguments)
        .arg("--args")
        .arg(program)
        .args([kind, "stop"])
        .output()
        .expect("gdb");
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

#[test]
fn a_debugger_sees_the_callers() {
    let replaced = ["innermost", "hooked", "replacement", "outer", "main"];
    let rows: [(&str, &[&str]); 5] = [
        ("replace", &replaced),
        ("site", &replaced),
        ("callers", &replaced),
        ("count", &["innermost", "hooked", "outer", "main"]),
        (
            "wrap",
            &["innermost", "hooked", "returned@hook", "outer", "main"],
        ),
    ];
    for (kind, expected) in rows {
        let commands = ["break innermost", "ignore 1 2", "run", "bt"].map(|c| ["-ex", c]);
        let said = debug(&commands.concat(), kind);
        let frames: Vec<&str> = said
            .lines()
            .filter(|line| line.starts_with('#'))
            .filter_map(|line| line.split(" (").next()?.split(' ').next_back())
            .collect();
        assert_eq!(frames, expected, "{kind}: {said}");
    }
}

#[test]
fn a_debugger_sees_the_callers_from_every_instruction() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/steps.py");
    for kind in ["replace", "wrap", "callers", "probe", "call"] {
        let said = debug(&["-x", &script.to_string_lossy()], kind);
        let last = said
            .lines()
            .rfind(|line| line.starts_with("steps "))
            .unwrap_or_default();
        assert!(
            last.ends_with(" lost 0") && !last.starts_with("steps 0"),
            "{kind}: {said}"
        );
    }
}

#[test]
fn a_debugger_has_true_lines_for_every_instruction() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/lines.py");
    let rows: [(&str, &[&str]); 6] = [
        ("replace", &["jump=", "displaced="]),
        ("wrap", &["push=1", "jump=", "displaced=", "return=1"]),
        ("callers", &["push=1", "jump=", "displaced="]),
        ("site", &["jump=1"]),
        ("probe", &["save=1", "call=1", "restore=1", "displaced="]),
        ("count", &["count=1", "displaced="]),
    ];
    for (kind, expected) in rows {
        let dumps = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("lines-{kind}"));
        let _ = std::fs::remove_dir_all(&dumps);
        std::fs::create_dir_all(&dumps).expect("a folder");
        let environment = format!("DUMPS={}", dumps.display());
        let said = debug_with(&["-x", &script.to_string_lossy()], kind, &environment);
        let last = said.lines().rfind(|line| line.starts_with("files "));
        let last = last.unwrap_or_default();
        assert!(last.contains(" wrong 0 "), "{kind}: {said}");
        for words in expected {
            assert!(last.contains(words), "{kind}, {words}: {said}");
        }
        let files = std::fs::read_dir(&dumps).expect("the folder");
        let files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
        assert!(!files.is_empty(), "{kind}: {said}");
        for file in files {
            readers_do_not_complain(&file);
        }
    }
}

/// Other readers of ELF and DWARF find nothing wrong with `file`, and rows in it.
fn readers_do_not_complain(file: &Path) {
    let rows: [(&str, &[&str], &str); 3] = [
        ("readelf", &["-W", "-S", "-s", "--debug-dump=frames"], "FDE"),
        (
            "readelf",
            &["--debug-dump=info", "--debug-dump=decodedline"],
            "@hook",
        ),
        ("llvm-dwarfdump", &["--verify"], "No errors."),
    ];
    for (program, arguments, expected) in rows {
        let ran = Command::new(program)
            .args(arguments)
            .arg(file)
            .output()
            .expect(program);
        let said = String::from_utf8_lossy(&ran.stdout);
        let complaint = String::from_utf8_lossy(&ran.stderr);
        assert!(
            ran.status.success() && complaint.is_empty() && said.contains(expected),
            "{program} {}: {complaint}{said}",
            file.display()
        );
    }
}

#[test]
fn perf_has_names_when_it_wants_them() {
    check(&build("perf_map.c", "gcc", &[]), &[]);
}

#[test]
fn listings_come_and_go_with_their_hooks() {
    check(&build("listings.c", "gcc", &[]), &[]);
}

#[test]
fn coming_and_going_leaks_nothing() {
    check(&build("loop.c", "gcc", &[]), &[&times(10)]);
}

#[test]
fn inlined_bodies_are_seen_at_their_stores() {
    for compiler in ["gcc", "clang"] {
        check(&build("stores.c", compiler, &[]), &[]);
    }
}

#[test]
fn inlined_functions_are_seen_with_their_parameters() {
    for compiler in ["gcc", "clang"] {
        let program = build("inlined.c", compiler, &["-Wl,--build-id"]);
        let elf = Elf::open(&program).expect("an ELF file");
        let (table, count) = inlined_instances(&elf, &|name| name == "take").expect("a table");
        let file = program.with_extension("table");
        std::fs::write(&file, table).expect("a writable folder");
        check(&program, &[&file.to_string_lossy(), &count.to_string()]);
        assert_eq!(count, places_in_gdb(&program, "take"), "{compiler}");
    }
}

/// At how many places gdb breaks in a function.
fn places_in_gdb(program: &Path, function: &str) -> usize {
    let ran = Command::new("gdb")
        .args(["-nx", "-batch", "-ex"])
        .arg(format!("break {function}"))
        .args(["-ex", "info breakpoints"])
        .arg(program)
        .output()
        .expect("gdb");
    let said = String::from_utf8_lossy(&ran.stdout);
    let places = said.lines().filter(|line| line.contains(" in "));
    places.count()
}

#[test]
fn system_calls_are_seen_and_changed_in_place() {
    check(&build("syscalls.c", "gcc", &[]), &[]);
}

#[test]
fn system_calls_go_on() {
    check(&build("calls.c", "gcc", &[]), &[]);
}

#[test]
fn refusals_have_a_reason_and_do_no_harm() {
    check(&build("refusals.c", "gcc", &[]), &[]);
}

#[test]
fn slots_of_every_kind() {
    let library = build("imported.c", "gcc", &["-shared", "-fPIC", "-fno-builtin"]);
    let library = library.to_string_lossy();
    let rows: [&[&str]; 3] = [&["-Wl,-z,lazy"], &["-Wl,-z,now,-z,relro"], &["-fno-plt"]];
    for options in rows {
        let options = [options, &["-fno-builtin"]].concat();
        check(&build("slots.c", "gcc", &options), &[&library]);
    }
}

#[test]
fn calls_are_redirected_one_by_one() {
    check(&build("sites.c", "gcc", &[]), &[&times(30)]);
}

#[test]
fn calls_are_led_away_when_they_first_come() {
    for compiler in ["gcc", "clang"] {
        check(&build("callers.c", compiler, &[]), &[&times(60)]);
    }
}

#[test]
fn probes_change_nothing_stack_and_go() {
    for compiler in ["gcc", "clang"] {
        check(&build("probes.c", compiler, &["-lm"]), &[&times(10)]);
    }
}
