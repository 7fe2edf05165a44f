//! *Do a file's calls of functions that other files export have types?* — a program, a library, one between them, and a plug-in.

mod common;

use common::run;
use pointee_meta::cache::{self, LoadedImage, Options, Origin, Places};
use pointee_meta::config;
use pointee_meta::debug_files::{Search, has_any};
use pointee_meta::elf::Elf;
use pointee_meta::link_map::{Learned, LinkMap};
use pointee_meta::needed;
use pointee_model::addr::LinkAddr;
use pointee_model::evidence::Role;
use pointee_model::image::{Image, SiteRecord, TypeKind, site_flags};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn sources(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/linked");
    folder.join(name)
}

/// Compiles one of the sources as `output`.
fn gcc(at: &Path, output: &str, source: &str, flags: &[&str]) -> PathBuf {
    let source = sources(source);
    let mut arguments = vec!["-g", "-O2", "-Wl,--build-id", "-o", output];
    arguments.push(source.to_str().expect("a name"));
    arguments.extend_from_slice(flags);
    run("gcc", &arguments, at);
    at.join(output)
}

const SHARED: [&str; 2] = ["-shared", "-fPIC"];

/// The libraries, the program and the plug-in.
fn build(at: &Path) {
    let map = format!("-Wl,--version-script={}", sources("inner.map").display());
    let inner = [&SHARED[..], &["-Wl,-soname,libinner.so.1", &map]].concat();
    gcc(at, "libinner.so.1", "inner.c", &inner);
    let needs_inner = ["libinner.so.1", "-Wl,-rpath,$ORIGIN"];
    gcc(
        at,
        "libouter.so",
        "outer.c",
        &[&SHARED[..], &needs_inner].concat(),
    );
    gcc(at, "libhidden.so", "hidden.c", &SHARED);
    // By its path, since it has no name of its own.
    let hidden = at.join("libhidden.so");
    let hidden = hidden.to_str().expect("a name");
    let needs_all = ["-Wl,--no-as-needed", "libouter.so", hidden];
    let flags = [&["-rdynamic"][..], &needs_all, &needs_inner].concat();
    gcc(at, "program", "program.c", &flags);
    gcc(at, "plugin.so", "plugin.c", &SHARED);
}

fn options(at: &Path) -> Options {
    Options {
        places: Places {
            system: Vec::new(),
            user: Some(at.join("cache/images")),
        },
        ..Options::default()
    }
}

/// The files, loaded together.
fn together(at: &Path, names: &[&str]) -> LinkMap {
    let open = |name: &&str| Elf::open(at.join(name)).expect("ELF");
    let search = Search::default();
    LinkMap::new(names.iter().map(open).collect(), |elf| {
        has_any(elf, &search)
    })
}

/// The image of the file at the place, after those of its suppliers.
fn image(map: &mut LinkMap, wanted: usize, options: &Options) -> (Learned, LoadedImage) {
    let mut last = None;
    for at in map.levels([wanted]).into_iter().flatten() {
        let learned = map.learned(at);
        let image = cache::image_of(map.file(at), &learned, options, &|_| {}).expect("image");
        map.tell(at, &image.image());
        if at == wanted {
            last = Some((learned, image));
        }
    }
    last.expect("it is among them")
}

/// `library: name` of all that an image was made by.
fn learned(image: &Image<'_>) -> Vec<String> {
    let records = image.imports.iter();
    let named =
        records.map(|it| format!("{}: {}", image.string(it.library), image.string(it.name)));
    named.collect()
}

/// What is allocated in which line of the source, as the comments there say it.
fn found(image: &Image<'_>) -> Vec<(u32, String)> {
    let described = |site: &SiteRecord| {
        let line = image.line_at(LinkAddr(site.call)).map_or(0, |row| row.line);
        let is_many = matches!(Role::from_byte(site.role), Role::Element | Role::Characters);
        let kind = image.type_at(site.r#type);
        let text = match kind.map(|kind| (TypeKind::from_byte(kind.kind), image.string(kind.name)))
        {
            Some((TypeKind::Struct, name)) => format!("struct {name}"),
            Some((_, name)) => name.to_owned(),
            None => "?".to_owned(),
        };
        let many = if is_many { "[]" } else { "" };
        (line, format!("{}: {text}{many}", image.string(site.callee)))
    };
    let of_callers = |site: &&SiteRecord| site.flags & site_flags::WRAPPER == 0;
    let mut found: Vec<_> = image
        .sites
        .iter()
        .filter(of_callers)
        .map(described)
        .collect();
    found.sort();
    found
}

const ALL: [&str; 5] = [
    "program",
    "libouter.so",
    "libhidden.so",
    "libinner.so.1",
    "plugin.so",
];

#[test]
fn what_is_learned_and_found() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    build(at);
    let options = options(at);
    let program = [
        "libinner.so.1: cache_get",
        "libinner.so.1: inner_alias",
        "libinner.so.1: inner_copy",
        "libinner.so.1: inner_get",
        "libinner.so.1: inner_grow",
        "libinner.so.1: inner_through",
        "libouter.so: outer_get",
        "libouter.so: outer_through",
    ];
    let outer = ["libinner.so.1: inner_get", "libinner.so.1: inner_through"];
    // The program hides the library's function of that name.
    let plugin = ["program: host_get", "libinner.so.1: inner_get"];
    let mut map = together(at, &ALL);
    for (which, expect) in [(0, &program[..]), (1, &outer), (4, &plugin)] {
        let (known, image) = image(&mut map, which, &options);
        assert!(known.is_complete, "{}", ALL[which]);
        assert_eq!(learned(&image.image()), expect, "{}", ALL[which]);
    }
    let (_, program) = image(&mut map, 0, &options);
    let source = std::fs::read_to_string(sources("program.c")).expect("the source");
    let said = (1..).zip(source.lines()).filter_map(|(line, text)| {
        let (_, said) = text.split_once("//= ")?;
        (said != "-").then(|| (line, said.to_owned()))
    });
    let in_main = found(&program.image());
    // That of `host_get` is its callers'.
    assert_eq!(in_main, said.collect::<Vec<_>>());
    let (_, plugin) = image(&mut map, 4, &options);
    let tasks: Vec<String> = found(&plugin.image()).into_iter().map(|it| it.1).collect();
    assert_eq!(tasks, ["host_get: struct task", "inner_get: struct task"]);
}

#[test]
fn who_has_no_types_learns_nothing() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    build(at);
    run("strip", &["program"], at);
    let (known, image) = image(&mut together(at, &ALL), 0, &options(at));
    assert!(known.is_complete);
    assert!(learned(&image.image()).is_empty());
}

#[test]
fn files_are_found_as_the_dynamic_linker_does() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    build(at);
    let program = Elf::open(at.join("program")).expect("ELF");
    let names = |elf: &Elf| elf.path()?.file_name()?.to_str().map(str::to_owned);
    let found: Vec<String> = needed::find(&program).iter().filter_map(names).collect();
    assert_eq!(found, ["libouter.so", "libhidden.so", "libinner.so.1"]);
    assert!(program.needed()[1].starts_with('/'));
    std::fs::remove_file(at.join("libouter.so")).expect("removed");
    let found: Vec<String> = needed::find(&program).iter().filter_map(names).collect();
    assert_eq!(found, ["libhidden.so", "libinner.so.1"]);
}

#[test]
fn names_by_either_hash_table() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    for style in ["gnu", "sysv", "both"] {
        let flag = format!("-Wl,--hash-style={style}");
        let output = format!("lib{style}.so");
        let path = gcc(at, &output, "hidden.c", &[&SHARED[..], &[&flag]].concat());
        let elf = Elf::open(path).expect("ELF");
        let rows = [
            ("hidden", true),
            ("malloc", false),
            ("hidde", false),
            ("", false),
        ];
        for (name, expect) in rows {
            assert_eq!(elf.exports(name), expect, "{style} {name}");
        }
        let imported: BTreeSet<&str> = elf.imported_names().collect();
        assert!(imported.contains("malloc"), "{style}: {imported:?}");
        assert!(!imported.contains("hidden"), "{style}");
        assert_eq!(elf.needed(), ["libc.so.6"], "{style}");
    }
}

#[test]
fn those_that_need_each_other_learn_nothing_of_each_other() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    let write = |name: &str, text: &str| std::fs::write(at.join(name), text).expect("writes");
    write(
        "one.c",
        "void *two(long); void *one(long n) { return two(n); }",
    );
    write(
        "two.c",
        "void *malloc(unsigned long), *one(long); void *two(long n) { return n ? malloc(n) : one(n); }",
    );
    let compile = |output: &str, source: &str, other: &str| {
        let own = [
            "-O1",
            "-g",
            "-w",
            "-shared",
            "-fPIC",
            "-Wl,--no-as-needed",
            "-o",
        ];
        run(
            "gcc",
            &[
                &own[..],
                &[output, source],
                other
                    .split(' ')
                    .filter(|it| !it.is_empty())
                    .collect::<Vec<_>>()
                    .as_slice(),
            ]
            .concat(),
            at,
        );
    };
    compile("libone.so", "one.c", "");
    compile("libtwo.so", "two.c", "libone.so");
    compile("libone.so", "one.c", "libtwo.so");
    let options = options(at);
    for order in [["libone.so", "libtwo.so"], ["libtwo.so", "libone.so"]] {
        let mut map = together(at, &order);
        for which in [0, 1] {
            let (_, image) = image(&mut map, which, &options);
            assert_eq!(learned(&image.image()), [""; 0], "{order:?}");
        }
    }
}

/// Where an image lies, and whether it was made just now.
fn place(image: &LoadedImage) -> (bool, PathBuf) {
    match image.origin() {
        Origin::Made(Some(path)) => (true, path.clone()),
        Origin::Cached(path) => (false, path.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn more_knowledge_makes_anew_and_less_does_not() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    build(at);
    // Another program: it does not export what plug-ins call.
    let flags = ["-Wl,--no-as-needed", "libouter.so", "libinner.so.1"];
    gcc(at, "little", "program.c", &flags);
    let options = options(at);
    let mut alone = together(at, &["plugin.so"]);
    let mut all = together(at, &ALL);
    let mut little = together(at, &["little", "libouter.so", "libinner.so.1", "plugin.so"]);
    let link = |path: &Path| {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name");
        let (short, _) = name.rsplit_once('-').expect("what it was made from");
        let link = path.with_file_name(format!("{short}.image"));
        std::fs::read_link(link).expect("a link")
    };

    let (known, first) = image(&mut alone, 0, &options);
    let (is_made, by_nothing) = place(&first);
    assert!(is_made && !known.is_complete && learned(&first.image()).is_empty());
    assert_eq!(link(&by_nothing), by_nothing);

    let (_, more) = image(&mut all, 4, &options);
    let (is_made, by_two) = place(&more);
    assert!(is_made && learned(&more.image()).len() == 2);
    assert_eq!(link(&by_two), by_two);

    // Who does not know what it is loaded with takes what there is.
    let (_, again) = image(&mut alone, 0, &options);
    assert_eq!(place(&again), (false, by_two.clone()));

    // Here it is known that there is less; but it may be asked for where nobody knows.
    let (known, less) = image(&mut little, 3, &options);
    let (is_made, by_one) = place(&less);
    assert!(is_made && known.is_complete);
    assert_eq!(learned(&less.image()), ["libinner.so.1: inner_get"]);
    assert_eq!(link(&by_one), by_two);

    // From here on nothing is made, whichever program asks.
    let mut made = Vec::new();
    for _ in 0..2 {
        made.push(place(&image(&mut all, 4, &options).1));
        made.push(place(&image(&mut little, 3, &options).1));
    }
    let (two, one) = ((false, by_two), (false, by_one));
    assert_eq!(made, [two.clone(), one.clone(), two, one]);
    // A library between is the same for both.
    let outer = [
        image(&mut all, 1, &options),
        image(&mut little, 1, &options),
    ];
    assert_eq!(place(&outer[0].1), place(&outer[1].1));
}

#[test]
fn what_is_configured_holds_before() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    build(at);
    let rows = [
        ("", ["host_get", "inner_get"].as_slice()),
        ("[[ignore]]\nname = \"inner_get\"\n", &["host_get"]),
        (
            "[[ignore]]\nname = \"inner_get\"\nmodule = \"plugin.so\"\n",
            &["host_get"],
        ),
        (
            "[[ignore]]\nname = \"host_get\"\nmodule = \"program\"\n",
            &["inner_get"],
        ),
        (
            "[[wrapper]]\nname = \"hidden\"\nsignature = \"(Z)p\"\n",
            &["hidden", "host_get", "inner_get"],
        ),
    ];
    for (text, expect) in rows {
        let mut options = options(at);
        options.config = config::parse(text, Path::new("pointee.toml")).expect("sound");
        let (_, plugin) = image(&mut together(at, &ALL), 4, &options);
        let plugin = plugin.image();
        let mut callees: Vec<&str> = plugin
            .sites
            .iter()
            .map(|site| plugin.string(site.callee))
            .collect();
        callees.sort_unstable();
        assert_eq!(callees, expect, "{text}");
    }
}
