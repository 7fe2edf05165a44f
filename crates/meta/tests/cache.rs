//! *Is the second answer the first one, and does new debug info change it?*

mod common;

use common::{compile_c, run};
use pointee_meta::cache::{Options, Origin, Places, embed, image_for};
use pointee_meta::debug_files::Search;
use pointee_meta::elf::Elf;
use pointee_meta::link_map::Learned;
use pointee_model::image::header_flags::HAS_DWARF;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

fn options(at: &Path) -> Options {
    Options {
        search: Search {
            roots: vec![at.join("debug")],
            ..Search::default()
        },
        places: Places {
            system: vec![at.join("system")],
            user: Some(at.join("cache/images")),
        },
        ..Options::default()
    }
}

fn images(at: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(at.join("cache/images"))
        .map(|entries| {
            let paths = entries.flatten().map(|entry| entry.path());
            // Beside each image lies a link by which programs that ask find it.
            paths.filter(|path| !path.is_symlink()).collect()
        })
        .unwrap_or_default()
}

#[test]
fn an_image_is_made_once() {
    let directory = tempfile::tempdir().expect("temporary folder");
    let at = directory.path();
    let program = compile_c(at, &["-g"]);
    let options = options(at);
    let first = image_for(&program, &options, &|_| {}).expect("image");
    let stored = images(at);
    assert_eq!(stored.len(), 1);
    assert_eq!(*first.origin(), Origin::Made(Some(stored[0].clone())));
    let second = image_for(&program, &options, &|_| panic!("made again")).expect("image");
    assert_eq!(*second.origin(), Origin::Cached(stored[0].clone()));
    assert_eq!(first.bytes(), second.bytes());
    assert!(!second.image().types.is_empty());

    // A packager's image under the short name serves when the exact one is not there.
    let name = stored[0]
        .file_name()
        .and_then(|name| name.to_str())
        .expect("name");
    let short = format!("{}.image", name.rsplit_once('-').expect("provenance").0);
    std::fs::create_dir(at.join("system")).expect("folder");
    std::fs::rename(&stored[0], at.join("system").join(&short)).expect("move");
    let third = image_for(&program, &options, &|_| panic!("made again")).expect("image");
    assert_eq!(
        *third.origin(),
        Origin::Cached(at.join("system").join(short))
    );
}

#[test]
fn damaged_cache_entries_are_made_anew() {
    let directory = tempfile::tempdir().expect("temporary folder");
    let at = directory.path();
    let program = compile_c(at, &["-g"]);
    let options = options(at);
    let first = image_for(&program, &options, &|_| {}).expect("image");
    let stored = images(at)[0].clone();
    for damage in [&b""[..], b"PTEEIMG\0", &first.bytes()[..200]] {
        std::fs::write(&stored, damage).expect("write");
        let again = image_for(&program, &options, &|_| {}).expect("image");
        assert_eq!(again.bytes(), first.bytes());
        assert!(matches!(again.origin(), Origin::Made(Some(_))));
    }
    assert_eq!(images(at).len(), 1, "no temporary file remains");
}

#[test]
fn installing_debug_info_changes_the_answer() {
    let directory = tempfile::tempdir().expect("temporary folder");
    let at = directory.path();
    let program = compile_c(at, &["-g"]);
    run(
        "objcopy",
        &["--only-keep-debug", "program", "program.full"],
        at,
    );
    run("strip", &["program"], at);
    let options = options(at);
    let bare = image_for(&program, &options, &|_| {}).expect("image");
    assert_eq!(bare.image().header().flags & HAS_DWARF, 0);
    let id: String = bare
        .image()
        .build_id()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let folder = at.join("debug/.build-id").join(&id[..2]);
    std::fs::create_dir_all(&folder).expect("folder");
    std::fs::rename(
        at.join("program.full"),
        folder.join(format!("{}.debug", &id[2..])),
    )
    .expect("move");
    let full = image_for(&program, &options, &|_| {}).expect("image");
    assert_eq!(full.image().header().flags & HAS_DWARF, HAS_DWARF);
    assert_eq!(images(at).len(), 2);
}

#[test]
fn what_stands_in_for_a_build_id_tells_builds_apart() {
    let identity = |flags: &[&str], strip: bool| {
        let directory = tempfile::tempdir().expect("temporary folder");
        let program = compile_c(directory.path(), flags);
        if strip {
            run("strip", &["program"], directory.path());
        }
        Elf::open(&program).expect("ELF").identity().to_vec()
    };
    let plain = identity(&["-Wl,--build-id=none"], false);
    let rows: [(&[&str], bool, bool); 4] = [
        (&["-Wl,--build-id=none"], true, true),
        (&["-Wl,--build-id=none", "-g"], false, true),
        (&["-Wl,--build-id=none", "-O1"], false, false),
        (&["-Wl,--build-id=sha1"], false, false),
    ];
    for (flags, strip, is_same) in rows {
        assert_eq!(
            identity(flags, strip) == plain,
            is_same,
            "{flags:?} {strip}"
        );
    }
}

#[test]
fn no_cache_folder_is_no_error() {
    let directory = tempfile::tempdir().expect("temporary folder");
    let at = directory.path();
    let program = compile_c(at, &["-g", "-Wl,--build-id=none"]);
    let mut options = options(at);
    // A file where the folder should be refuses even root.
    std::fs::write(at.join("cache"), b"").expect("write");
    let made = image_for(&program, &options, &|_| {}).expect("image");
    assert_eq!(*made.origin(), Origin::Made(None));
    let elf = Elf::open(&program).expect("ELF");
    assert!(elf.build_id().is_empty());
    assert_eq!(made.image().build_id(), elf.identity());
    options.places.user = None;
    image_for(&program, &options, &|_| {}).expect("image");
}

#[test]
fn a_file_can_carry_its_image() {
    let directory = tempfile::tempdir().expect("temporary folder");
    let at = directory.path();
    let mut options = options(at);
    options.places.user = None;
    for flags in [&["-g"][..], &["-g", "-static"], &["-g", "-no-pie", "-s"]] {
        let program = compile_c(at, flags);
        let out = at.join("carrier");
        let _ = std::fs::remove_file(&out);
        let elf = Elf::open(&program).expect("ELF");
        embed(&elf, &Learned::default(), &out, &options).expect("embed");
        assert_eq!(
            run("./carrier", &[], at),
            run("./program", &[], at),
            "{flags:?}"
        );
        let mode = |path: &Path| std::fs::metadata(path).expect("stat").permissions().mode();
        assert_eq!(mode(&out), mode(&program));
        let carried = image_for(&out, &options, &|_| panic!("made again")).expect("image");
        assert_eq!(*carried.origin(), Origin::Embedded, "{flags:?}");
        let made = image_for(&program, &options, &|_| {}).expect("image");
        assert_eq!(carried.bytes(), made.bytes(), "{flags:?}");
        let carrier = Elf::open(&out).expect("ELF");
        assert!(embed(&carrier, &Learned::default(), &at.join("twice"), &options).is_err());
        // The tools of the system accept the file, and take the image out again.
        run("readelf", &["--wide", "--all", "carrier"], at);
        run(
            "objcopy",
            &["--remove-section=.pointee", "carrier", "freed"],
            at,
        );
        assert_eq!(
            run("./freed", &[], at),
            run("./program", &[], at),
            "{flags:?}"
        );
        let freed = image_for(&at.join("freed"), &options, &|_| {}).expect("image");
        assert!(matches!(freed.origin(), Origin::Made(_)));
        run("strip", &["carrier"], at);
        assert_eq!(
            run("./carrier", &[], at),
            run("./program", &[], at),
            "{flags:?}"
        );
    }
}
