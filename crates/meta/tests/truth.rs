//! *Are the types right?* Scored against what a reader of the sources says: `truth/*.tsv`.
//!
//! The C sources come from published crates that carry them, at the versions pinned by
//! `truth/sources/Cargo.lock`; they are compiled with `gcc -g -O2`. Of each row the score is
//! *right* (type and role), *wrong* (another type or role is claimed), or *unanswered* (nothing is,
//! or the verdict says conflict, or the role is left open). A test prints all that is not right.

mod common;

use common::run;
use pointee_meta::debug_files::DebugFiles;
use pointee_meta::dwarf::read_facts;
use pointee_meta::elf::Elf;
use pointee_meta::facts::{Facts, Type};
use pointee_meta::sites::{Options, Site, Sites, infer, spelled};
use pointee_model::evidence::{Role, Verdict};
use pointee_model::image::{TypeIndex, TypeKind, site_flags};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One line of a truth file.
struct Row<'t> {
    file: &'t str,
    within: &'t str,
    line: &'t str,
    role: &'t str,
    r#type: &'t str,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Score {
    Right,
    Unanswered,
    Wrong,
}

fn rows(text: &str) -> Vec<Row<'_>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| match line.split('\t').collect::<Vec<_>>()[..] {
            [file, within, line, role, r#type, _proof] => Row {
                file,
                within,
                line,
                role,
                r#type,
            },
            _ => panic!("six columns: {line}"),
        })
        .collect()
}

/// The folder of a package's sources, fetched if need be; `None` without a network.
fn package(name: &str) -> Option<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/truth/sources/Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--locked",
            "--format-version",
            "1",
            "--manifest-path",
        ])
        .arg(&manifest)
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Package folders are called `name-version`, in every path of the answer.
    let at = text.find(&format!("/{name}-"))?;
    let start = text[..at].rfind('"')? + 1;
    let end = at + 1 + text[at + 1..].find('/')?;
    Some(PathBuf::from(&text[start..end]))
}

/// Compiles `sources` with `-g -O2` into a library that may lack what other libraries have.
fn compile(folder: &Path, directory: &Path, flags: &[&str], sources: &[&str]) -> Elf {
    let program = directory.join("program.so");
    let output = program.to_string_lossy();
    let mut arguments = vec![
        "-g",
        "-O2",
        "-w",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        "-o",
    ];
    arguments.push(&output);
    arguments.extend_from_slice(flags);
    arguments.extend_from_slice(sources);
    run("gcc", &arguments, folder);
    Elf::open(&program).expect("the compiler writes ELF")
}

/// The line that a row is about.
fn line_of(row: &Row<'_>, folder: &Path) -> u32 {
    let text = String::from_utf8_lossy(
        &std::fs::read(folder.join(row.file)).expect("a source file that a row names"),
    )
    .into_owned();
    let from = match row.within {
        "-" => 0,
        within => text
            .find(within)
            .unwrap_or_else(|| panic!("{}: no {within}", row.file)),
    };
    let at = text[from..]
        .find(row.line)
        .unwrap_or_else(|| panic!("{}: no {} after {}", row.file, row.line, row.within));
    text[..from + at].lines().count() as u32 + u32::from(text[..from + at].ends_with('\n'))
}

/// Whether the code of a site was written, inlined or not, at a line of a file.
fn is_at(facts: &Facts, site: &Site, file: &str, line: u32) -> bool {
    let named = |index: Option<u32>| {
        index
            .and_then(|index| facts.files.get(index as usize))
            .is_some_and(|path| Path::new(path).file_name() == Some(file.as_ref()))
    };
    let after = facts.lines.partition_point(|row| row.address <= site.call);
    let own = after
        .checked_sub(1)
        .is_some_and(|at| facts.lines[at].line == line && named(facts.lines[at].file));
    let inlines = facts
        .functions
        .iter()
        .flat_map(|function| &function.inlines);
    own || inlines
        .filter(|inline| inline.call_line == line && named(inline.call_file))
        .any(|inline| {
            inline
                .ranges
                .iter()
                .any(|(start, end)| (*start..*end).contains(&site.call))
        })
}

/// A type without typedefs and qualifiers.
fn bare(facts: &Facts, mut index: TypeIndex) -> Option<(TypeIndex, &Type)> {
    for _ in 0..64 {
        let entry = facts.types.get(index as usize)?;
        match (entry.kind, entry.target) {
            (
                TypeKind::Typedef | TypeKind::Const | TypeKind::Volatile | TypeKind::Restrict,
                Some(target),
            ) => index = target,
            _ => return Some((index, entry)),
        }
    }
    None
}

/// Whether a type is the one of a name such as `struct node *` or of a typedef.
fn is_type(facts: &Facts, index: TypeIndex, name: &str) -> bool {
    let Some((index, entry)) = bare(facts, index) else {
        return false;
    };
    if let Some(target) = name.strip_suffix('*') {
        return entry.kind == TypeKind::Pointer
            && entry
                .target
                .is_some_and(|at| is_type(facts, at, target.trim_end()));
    }
    let plain = name.strip_prefix("struct ").unwrap_or(name);
    (0..)
        .zip(&facts.types)
        .filter(|(_, known)| known.name == plain)
        .any(|(at, _)| {
            bare(facts, at)
                .is_some_and(|(at, known)| at == index || known.identity == entry.identity)
        })
}

fn score(facts: &Facts, site: &Site, row: &Row<'_>) -> Score {
    let answered = matches!(site.verdict, Verdict::Single | Verdict::Agreed);
    if row.role == "Opaque" {
        // A type is no answer here, unless the role says that it is not the whole story.
        return match answered && site.r#type.is_some() && site.role != Role::Unknown {
            true => Score::Wrong,
            false => Score::Right,
        };
    }
    match site.r#type.filter(|_| answered) {
        None => Score::Unanswered,
        Some(index) if !is_type(facts, index, row.r#type) => Score::Wrong,
        Some(_) if site.role == Role::Unknown => Score::Unanswered,
        // Text and bytes of one type are told apart by use, which no declaration states.
        Some(_) if matches!(site.role, Role::Characters | Role::Bytes) => {
            match matches!(row.role, "Characters" | "Bytes") {
                true => Score::Right,
                false => Score::Wrong,
            }
        }
        // One object of a flexible struct, at its smallest, is whole and a header.
        Some(_) if site.role == Role::Whole && row.role == "Header" && site.tail.is_some() => {
            Score::Right
        }
        Some(_) if format!("{:?}", site.role) == row.role => Score::Right,
        // A constant count of one: whole and an array of one.
        Some(_) if site.role == Role::Whole => Score::Unanswered,
        Some(_) => Score::Wrong,
    }
}

/// Scores all rows of `text`; every answer must be right, and `floor` of a hundred be answered.
fn check(name: &str, text: &str, elf: &Elf, folder: &Path, sources: bool, floor: usize) {
    let facts = read_facts(elf, &DebugFiles::inside(elf));
    let options = Options {
        sources,
        source_roots: vec![folder.to_owned()],
        ..Options::default()
    };
    let found: Sites = infer(elf, &facts, &options);
    let rows = rows(text);
    let mut scores: Vec<Score> = Vec::new();
    for row in &rows {
        let line = line_of(row, folder);
        let here: Vec<&Site> = found
            .sites
            .iter()
            .filter(|site| site.flags & site_flags::WRAPPER == 0)
            .filter(|site| is_at(&facts, site, row.file, line))
            .collect();
        let worst = here.iter().map(|site| score(&facts, site, row)).max();
        let worst = worst.unwrap_or(Score::Unanswered);
        if worst != Score::Right {
            let said: BTreeSet<String> = here
                .iter()
                .map(|site| {
                    let r#type = site.r#type.map_or("-".to_owned(), |at| spelled(&facts, at));
                    format!("{:?} {type} ({})", site.role, site.verdict.word())
                })
                .collect();
            println!(
                "{name}: {worst:?}: {}:{line}: {} — expected {} {}, said {said:?}",
                row.file, row.line, row.role, row.r#type
            );
        }
        scores.push(worst);
    }
    let count = |wanted: Score| scores.iter().filter(|score| **score == wanted).count();
    let (right, wrong) = (count(Score::Right), count(Score::Wrong));
    println!(
        "{name}, sources {sources}: {} rows, {} answered, {right} right, {wrong} wrong",
        rows.len(),
        right + wrong
    );
    assert_eq!(wrong, 0, "{name}, sources {sources}");
    assert!(
        (right + wrong) * 100 >= rows.len() * floor,
        "{name}, sources {sources}: less than {floor} % answered"
    );
}

/// Fetches and compiles a program and scores it, without and with its sources.
fn check_program(
    name: &str,
    text: &str,
    (from, inside): (&str, &str),
    flags: &[&str],
    skipped: &[&str],
    floors: [usize; 2],
) {
    let Some(folder) = package(from).map(|folder| folder.join(inside)) else {
        println!("{name}: the sources cannot be had");
        return;
    };
    let mut sources: Vec<String> = std::fs::read_dir(&folder)
        .expect("a source folder")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|file| file.ends_with(".c") && !skipped.contains(&file.as_str()))
        .collect();
    sources.sort();
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    let directory = tempfile::tempdir().expect("temporary folder");
    let elf = compile(&folder, directory.path(), flags, &sources);
    check(name, text, &elf, &folder, false, floors[0]);
    check(name, text, &elf, &folder, true, floors[1]);
}

#[test]
fn lua() {
    check_program(
        "lua",
        include_str!("truth/lua.tsv"),
        ("lua-src", "lua-5.4.7"),
        &["-DLUA_USE_LINUX"],
        &["luac.c"],
        [97, 99],
    );
}

#[test]
fn jq() {
    check_program(
        "jq",
        include_str!("truth/jq.tsv"),
        ("jq-src", "modules/jq/src"),
        &[
            "-std=gnu99",
            "-D_GNU_SOURCE",
            "-DIEEE_8087",
            "-DHAVE_PTHREAD_KEY_CREATE",
            "-DHAVE_PTHREAD_ONCE",
            "-DHAVE_ATEXIT",
            "-DHAVE_MEMMEM",
            "-DHAVE_ISATTY",
            "-I.",
        ],
        // These want files that the build generates.
        &["builtin.c", "main.c", "inject_errors.c", "jq_test.c"],
        [90, 90],
    );
}

#[test]
fn sqlite() {
    check_program(
        "sqlite",
        include_str!("truth/sqlite3.tsv"),
        ("libsqlite3-sys", "sqlite3"),
        &[],
        &["wasm32-wasi-vfs.c"],
        [90, 90],
    );
}
