//! *Which images can the runtime be given before the program starts?*
//!
//! The runtime walks the stack only until it meets a call that its module's image knows for a site, so it
//! records faster when it has the images. Only images that are still what would be made now may be given: a
//! walk that was cut short by an outdated one could not be continued later. Which objects a program loads is only known
//! when it has run; so what was seen is noted, and next time those objects' images are checked and linked into
//! the session's folder, by build ID. The first time, those are looked at that the dynamic linker would load with it:
//!
//! ```text
//!   CACHE/programs/<hash of the path>      one object's path a line, as of the last run
//!   SESSION/images/<build ID>.img          links to images that are up to date
//!   SESSION/images/<build ID>.cursors      what tells of the blocks that its code carves out without a call (pointee-patch, placement)
//!   SESSION/images/declared                functions that the configuration names, for objects without an image
//! ```

use crate::{configuration, images};
use pointee_index::handoff::DECLARED;
use pointee_meta::cache::{self, LoadedImage, Options};
use pointee_meta::config::{self, Rule};
use pointee_meta::debug_files::DebugFiles;
use pointee_meta::elf::Elf;
use pointee_meta::link_map::{Learned, LinkMap};
use pointee_model::entries::Declared;
use pointee_model::image::Image;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Objects of one program that are noted at most.
const OBJECTS: usize = 512;

fn note_of(program: &Path) -> Option<PathBuf> {
    let mut hasher = DefaultHasher::new();
    program.hash(&mut hasher);
    let images = Options::default().places.user?;
    Some(
        images
            .with_file_name("programs")
            .join(format!("{:016x}", hasher.finish())),
    )
}

/// A program and the objects that it loads: those of its last run, else those that its dynamic linker lists.
#[derive(Debug)]
pub(crate) struct Acquaintance {
    /// The program comes first.
    linked: LinkMap,
}

impl Acquaintance {
    /// Makes the images that have to be there before `program` starts. That may take long; no thread is left when it is done.
    pub(crate) fn make(program: &Path) -> Self {
        let note = note_of(program).and_then(|path| std::fs::read_to_string(path).ok());
        let objects = note.or_else(|| linked_with(program)).unwrap_or_default();
        let mut paths = vec![program];
        let objects = objects.lines().take(OBJECTS).map(Path::new);
        paths.extend(objects.filter(|object| *object != program));
        let files = paths.iter().filter_map(|path| Elf::open(path).ok());
        let options = configuration::options();
        let mut linked = images::link(files.collect(), &options);
        let says_something = !configuration::config().is_empty();
        let has_to_be_there = |at: &usize| {
            let elf = linked.file(*at);
            let path = elf.path().unwrap_or(Path::new(""));
            let may_hide = path == program
                || says_something
                || config::built_in().names_hidden_functions_of(path);
            may_hide && locates(elf, &options)
        };
        let wanted: Vec<usize> = linked.places().filter(has_to_be_there).collect();
        if !images::are_there(&mut linked, &wanted, &options) {
            images::make_all(&mut linked, &wanted, &options);
        }
        Self { linked }
    }

    /// Fills a folder of the session with links to the images that are up to date.
    pub(crate) fn introduce(mut self, session: &Path) -> PathBuf {
        let folder = session.join("images");
        if std::fs::create_dir(&folder).is_err() {
            return folder;
        }
        // Where it cannot be written, pools stay unseen at the first run.
        let _ = std::fs::write(folder.join(DECLARED), declared());
        let options = configuration::options();
        let linked = &mut self.linked;
        for level in linked.levels(linked.places()) {
            let introduce = |at: &usize| {
                let learned = linked.learned(*at);
                introduce_one(linked.file(*at), &learned, &folder, &options)
            };
            let images: Vec<Option<LoadedImage>> = if options.search.servers.urls.is_empty() {
                // Threads would take longer to begin than this takes.
                level.iter().map(introduce).collect()
            } else {
                level.par_iter().map(introduce).collect()
            };
            for (at, image) in level.iter().zip(images) {
                if let Some(image) = image {
                    linked.tell(*at, &image.image());
                }
            }
        }
        folder
    }
}

/// The objects that are loaded with `program`, a line each, as its dynamic linker says without running it (ld.so(8), `--list`).
fn linked_with(program: &Path) -> Option<String> {
    let elf = Elf::open(program).ok()?;
    let linker = elf.stored_bytes(elf.section(".interp")?);
    let linker = linker.strip_suffix(b"\0")?;
    let output = Command::new(OsStr::from_bytes(linker))
        .arg("--list")
        .arg(program)
        .env_remove("LD_PRELOAD")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    // "	libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)"
    let listed = String::from_utf8(output.stdout).ok()?;
    let path = |line: &str| {
        let (path, _) = line.split_once(" => ")?.1.rsplit_once(" (")?;
        path.starts_with('/').then(|| format!("{path}\n"))
    };
    Some(listed.lines().filter_map(path).collect())
}

/// The functions that are declared by their whole names, a line each, as the runtime reads them.
fn declared() -> String {
    let mut config = config::built_in().clone();
    config.add(configuration::config().clone());
    let line = |(declared, module, name): (Declared, &str, &str)| {
        format!("{:x} {module} {name}\n", declared.to_word())
    };
    config.hooked_by_name().into_iter().map(line).collect()
}

/// Links the image of `program`, which a followed process is about to execute, into the session's `folder`, if the configuration declares functions of it; then it
/// is made where it is not there yet.
pub(crate) fn introduce_declared(program: &Path, folder: &Path) {
    if configuration::config().is_empty() {
        return;
    }
    let options = configuration::options();
    let Ok(elf) = Elf::open(program) else {
        return;
    };
    if !declares_functions(&elf, &options) {
        return;
    }
    // It has its libraries inside.
    let mut alone = images::link(vec![elf], &options);
    if !images::are_there(&mut alone, &[0], &options) {
        images::make_all(&mut alone, &[0], &options);
    }
    introduce_one(alone.file(0), &alone.learned(0), folder, &options);
}

/// Links the image of one object, if it is up to date, into the session's `folder`; gives back an image that there is.
fn introduce_one(
    elf: &Elf,
    learned: &Learned,
    folder: &Path,
    options: &Options,
) -> Option<LoadedImage> {
    let Some((path, image)) = cache::cached(elf, learned, options) else {
        return cache::existing(elf, learned, options);
    };
    // What was made by less than there is to be learned may be out of date.
    if !learned.is_complete {
        return Some(image);
    }
    let hex: String = elf
        .identity()
        .iter()
        .take(20)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    // Without it blocks that inlined code carves out stay unseen.
    if let Some(placement) = cursors_placement(elf, &path, &image.image()) {
        let _ = std::fs::write(folder.join(format!("{hex}.cursors")), placement);
    }
    // A missing link only makes a walk longer.
    let _ = std::os::unix::fs::symlink(path, folder.join(hex + ".img"));
    Some(image)
}

/// The placement that tells of the cursors that the `image` at `path` knows: as kept beside it, behind the image's provenance, or made now.
fn cursors_placement(elf: &Elf, path: &Path, image: &Image<'_>) -> Option<Vec<u8>> {
    if image.cursors.is_empty() {
        return None;
    }
    let provenance = image.header().provenance;
    let kept_at = path.with_extension("cursors");
    let kept = std::fs::read(&kept_at).ok();
    let kept = kept.as_deref();
    if let Some(kept) = kept.and_then(|kept| kept.strip_prefix(&provenance[..])) {
        return Some(kept.to_vec());
    }
    let placement = pointee_probe::tell_of_cursors(elf, image.cursors)?;
    if let Some(cache) = kept_at.parent()
        && let Ok(mut file) = tempfile::NamedTempFile::new_in(cache)
        && file.write_all(&provenance).is_ok()
        && file.write_all(&placement).is_ok()
    {
        // A cache that cannot be written only makes the next start longer.
        let _ = file.persist(kept_at);
    }
    Some(placement)
}

/// Whether `elf`'s image has to be there before it is loaded. Some allocators the runtime does not find by itself: those that only a debug file
/// names, those that the configuration declares, and pools that analysis finds where there is debug info; the image names them to it.
/// A program that asks about itself (`pointee.h`) is answered from it.
fn locates(elf: &Elf, options: &Options) -> bool {
    declares_functions(elf, options)
        || elf.section(".debug_info").is_some()
        || elf.section(".note.pointee").is_some()
        || (elf.section(".symtab").is_none() && config::built_in().names_behind_exports_of(elf))
        || (elf.section(".symtab").is_none() && !DebugFiles::find(elf, &options.search).is_empty())
}

/// Whether the configuration names functions of `elf` that are to be hooked.
fn declares_functions(elf: &Elf, options: &Options) -> bool {
    let declares = |rule: &Rule| rule.hooked_as().is_some();
    options.config.selected_for(elf).rules.iter().any(declares)
}

/// Notes what `program` and its descendants loaded. A cache that cannot be written is no error: the next run's
/// walks are longer.
pub(crate) fn note(program: &Path, objects: &BTreeSet<&str>) {
    let Some(path) = note_of(program) else { return };
    let mut text = String::new();
    for object in objects
        .iter()
        .filter(|object| !object.contains('\n'))
        .take(OBJECTS)
    {
        text.push_str(object);
        text.push('\n');
    }
    if std::fs::read_to_string(&path).is_ok_and(|before| before == text) {
        return;
    }
    let Some(folder) = path.parent() else { return };
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| tempfile::NamedTempFile::new_in(folder))
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            Ok(file)
        });
    if let Ok(file) = written {
        let _ = file.persist(path);
    }
}
