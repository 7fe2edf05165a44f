//! *Is every size and offset what the compiler itself says?* One program, in every encoding of debug
//! info that the system's tools can write; the program prints its own `sizeof` and `offsetof`.

mod common;

use common::{compile_c, run};
use pointee_meta::debug_files::{DebugFiles, Search};
use pointee_meta::dwarf::read_facts;
use pointee_meta::elf::Elf;
use pointee_meta::facts::{Facts, Type};
use pointee_model::image::TypeKind;
use std::path::Path;

/// How a compiled program's debug info is changed afterwards.
#[derive(Clone, Copy, Debug)]
enum Then {
    Nothing,
    /// Moved to `program.debug`, found through `.gnu_debuglink`.
    Separate,
    /// Moved to `ROOT/.build-id`.
    ByBuildId,
    /// Compressed by dwz, shared parts in a file of their own.
    Dwz,
    /// Sections packed with Zstandard, which gcc 12 does not do itself.
    Zstandard,
    /// `.dwo` files packed into `program.dwp`.
    Package,
}

fn facts_of(flags: &[&str], then: Then) -> (String, Facts) {
    let directory = tempfile::tempdir().expect("temporary folder");
    let at = directory.path();
    let program = compile_c(at, flags);
    let printed = run("./program", &[], at);
    match then {
        Then::Nothing => {}
        Then::Separate => separate(at, "program.debug"),
        Then::ByBuildId => {
            let id = Elf::open(&program).expect("ELF").build_id().to_vec();
            let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
            let folder = at.join(".build-id").join(&hex[..2]);
            std::fs::create_dir_all(&folder).expect("folder");
            separate(at, "moved");
            std::fs::rename(
                at.join("moved"),
                folder.join(format!("{}.debug", &hex[2..])),
            )
            .expect("move");
        }
        Then::Dwz => {
            std::fs::copy(&program, at.join("copy")).expect("copy");
            run("dwz", &["-m", "shared.debug", "-r", "program", "copy"], at);
        }
        Then::Zstandard => {
            run(
                "objcopy",
                &["--compress-debug-sections=zstd", "program"],
                at,
            );
        }
        Then::Package => {
            run("dwp", &["-e", "program", "-o", "program.dwp"], at);
            for entry in std::fs::read_dir(at).expect("list").flatten() {
                if entry.path().extension().is_some_and(|end| end == "dwo") {
                    std::fs::remove_file(entry.path()).expect("remove");
                }
            }
        }
    }
    let elf = Elf::open(&program).expect("ELF");
    let search = Search {
        roots: vec![at.to_owned()],
        ..Search::default()
    };
    let debug = DebugFiles::find(&elf, &search);
    if matches!(then, Then::Dwz) {
        assert!(debug.alternate.is_some(), "dwz made no shared file");
    }
    if matches!(then, Then::Package) {
        assert!(debug.package.is_some());
    }
    (printed, read_facts(&elf, &debug))
}

fn separate(at: &Path, name: &str) {
    run("objcopy", &["--only-keep-debug", "program", name], at);
    run("strip", &["program"], at);
    run(
        "objcopy",
        &[&format!("--add-gnu-debuglink={name}"), "program"],
        at,
    );
}

/// The structure of that name; of two the larger, for `flags` exists twice.
fn structure<'f>(facts: &'f Facts, name: &str) -> &'f Type {
    facts
        .types
        .iter()
        .filter(|entry| entry.name == name && entry.kind == TypeKind::Struct)
        .max_by_key(|entry| entry.size)
        .unwrap_or_else(|| panic!("no struct {name}; {:?}", facts.diagnostics))
}

fn check(flags: &[&str], then: Then) {
    eprintln!("{flags:?} {then:?}"); // shown when the row fails
    let (printed, facts) = facts_of(flags, then);
    assert!(
        facts.diagnostics.is_empty(),
        "{flags:?}: {:?}",
        facts.diagnostics
    );
    let mut checked = 0;
    for line in printed.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().expect("number");
        let entry = structure(&facts, words[1]);
        let member = |name: &str| {
            entry
                .members
                .iter()
                .find(|member| member.name == name)
                .unwrap_or_else(|| panic!("{flags:?}: no member {name} in {}", entry.name))
        };
        match words[0] {
            "size" => assert_eq!(entry.size, Some(number(2)), "{flags:?}: {line}"),
            "member" => assert_eq!(member(words[2]).offset, number(3), "{flags:?}: {line}"),
            "bits" => {
                let found = member(words[2]);
                let first = found.offset * 8 + u64::from(found.bit_offset);
                assert_eq!(
                    (first, u64::from(found.bit_size)),
                    (number(3), number(4)),
                    "{flags:?}: {line}"
                );
            }
            other => panic!("unknown line {other}"),
        }
        checked += 1;
    }
    assert!(checked >= 35, "only {checked} lines");
    check_rest(flags, &facts);
}

/// What the program does not print: names, kinds, functions, inlined calls, variables.
fn check_rest(flags: &[&str], facts: &Facts) {
    let type_at = |index: u32| &facts.types[index as usize];
    let count = |name: &str| {
        facts
            .types
            .iter()
            .filter(|entry| entry.name == name && entry.kind == TypeKind::Struct)
            .count()
    };
    assert_eq!(count("plain"), 1, "{flags:?}: one type in two units");
    assert_eq!(count("flags"), 2, "{flags:?}: two types of one name");

    // Each unit's pointer leads to its own `flags`.
    let holder = structure(facts, "holder");
    let pointee = type_at(type_at(holder.members[0].r#type).target.expect("pointee"));
    assert_eq!(
        (pointee.name.as_str(), pointee.size),
        ("flags", Some(1)),
        "{flags:?}"
    );

    let nested = structure(facts, "nested");
    let point = type_at(nested.members[1].r#type);
    assert_eq!(point.name, "(anonymous struct at layout.c:10)", "{flags:?}");

    let cells = type_at(structure(facts, "matrix").members[0].r#type);
    let inner = type_at(cells.target.expect("inner dimension"));
    assert_eq!((cells.count, inner.count), (Some(2), Some(3)), "{flags:?}");
    assert_eq!((cells.size, inner.size), (Some(96), Some(48)), "{flags:?}");

    let colour = type_at(structure(facts, "painted").members[0].r#type);
    let values: Vec<i64> = colour.enumerators.iter().map(|(_, value)| *value).collect();
    assert_eq!(values, [0, 5, -2], "{flags:?}");

    let function = |name: &str| {
        facts
            .functions
            .iter()
            .find(|function| function.name == name)
            .unwrap_or_else(|| panic!("{flags:?}: no function {name}"))
    };
    let outer = function("inlines_twice");
    let inlined: Vec<(&str, u32)> = outer
        .inlines
        .iter()
        .map(|inline| (inline.name.as_str(), inline.call_line))
        .collect();
    assert_eq!(inlined, [("twice", 45), ("twice", 45)], "{flags:?}");
    assert_eq!((outer.line, outer.has_dwarf), (45, true), "{flags:?}");
    let file = outer.file.map(|file| facts.files[file as usize].as_str());
    assert!(
        file.is_some_and(|file| file.ends_with("fixtures/layout.c")),
        "{flags:?}: {file:?}"
    );
    let parameters: Vec<(&str, Option<u16>, Option<u32>)> = outer
        .variables
        .iter()
        .map(|variable| (variable.name.as_str(), variable.parameter, variable.inline))
        .collect();
    assert_eq!(
        parameters,
        [
            ("number", Some(0), None),
            ("number", Some(0), Some(0)),
            ("number", Some(0), Some(1)),
        ],
        "{flags:?}"
    );
    assert!(
        outer
            .variables
            .iter()
            .all(|variable| !variable.places.is_empty()),
        "{flags:?}"
    );

    let row = facts.lines.iter().find(|row| row.address == outer.entry);
    assert_eq!(row.map(|row| row.line), Some(45), "{flags:?}");

    let global = |name: &str| facts.globals.iter().find(|global| global.name == name);
    assert_eq!(
        global("a_matrix").map(|found| found.size),
        Some(152),
        "{flags:?}"
    );
    assert!(
        global("per_thread").is_some_and(|found| found.thread_local),
        "{flags:?}"
    );
    let calls = facts
        .globals
        .iter()
        .any(|global| global.name.ends_with("make::calls"));
    assert!(calls, "{flags:?}: static variable of a function");
}

#[test]
fn layouts_agree_with_the_compiler() {
    let rows: &[(&[&str], Then)] = &[
        (&["-g", "-O0"], Then::Nothing),
        (&["-g", "-O2"], Then::Nothing),
        (&["-gdwarf-4", "-O0"], Then::Nothing),
        (&["-gdwarf-4", "-O2"], Then::Nothing),
        (&["-gdwarf-4", "-fdebug-types-section"], Then::Nothing),
        (&["-gdwarf-5", "-fdebug-types-section"], Then::Nothing),
        (&["-gdwarf-5", "-gz=zlib"], Then::Nothing),
        (&["-gdwarf-4", "-gz=zlib-gnu"], Then::Nothing),
        (&["-gdwarf-5"], Then::Zstandard),
        (&["-gdwarf-5", "-gsplit-dwarf"], Then::Nothing),
        (&["-gdwarf-4", "-gsplit-dwarf"], Then::Nothing),
        (&["-gdwarf-5", "-gsplit-dwarf", "-O2"], Then::Nothing),
        (
            &["-gdwarf-4", "-gsplit-dwarf", "-fdebug-types-section"],
            Then::Nothing,
        ),
        (&["-gdwarf-4", "-gsplit-dwarf"], Then::Package),
        (&["-gdwarf-5", "-flto", "-O2"], Then::Nothing),
        (&["-g", "-static"], Then::Nothing),
        (&["-g", "-no-pie"], Then::Nothing),
        (&["-g", "-O2"], Then::Separate),
        (&["-g", "-O2"], Then::ByBuildId),
        (&["-gdwarf-4", "-O2"], Then::Dwz),
        (&["-gdwarf-5", "-O2"], Then::Dwz),
    ];
    for (flags, then) in rows {
        check(flags, *then);
    }
}

#[test]
fn identities_do_not_depend_on_the_encoding() {
    let identity = |flags: &[&str], name: &str| {
        let (_, facts) = facts_of(flags, Then::Nothing);
        structure(&facts, name).identity
    };
    for name in ["plain", "nested", "list", "matrix"] {
        let one = identity(&["-gdwarf-5", "-O0"], name);
        assert_eq!(one, identity(&["-gdwarf-4", "-O2"], name), "{name}");
        assert_ne!(one, [0; 16]);
    }
}
