//! *Where do metadata images come from?* — from the cache, made when they are not there.
//!
//! The only file of the command that knows how images are made. Only modules that occur in paths get one, and those whose
//! functions they call: a file is analysed by what is learned of these, so they come first (`pointee_meta::link_map`).
//! A file that is no longer the one that was loaded (replaced, deleted) is told by its build ID; the image
//! of the one that was loaded may still be in the cache.

use crate::configuration;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use pointee_inspect::images::{AlignedBytes, ImageBytes, Images};
use pointee_inspect::process::{ModuleInfo, ProcessData};
use pointee_meta::cache::{self, LoadedImage, Options, Places};
use pointee_meta::elf::Elf;
use pointee_meta::link_map::{Learned, LinkMap};
use pointee_meta::{debug_files, needed};
use pointee_model::image::{FORMAT, Image};
use rayon::prelude::*;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// Images by module, each made once however many processes ask for it.
#[derive(Default)]
pub(crate) struct ImageSource {
    /// By what is loaded together.
    programs: HashMap<Vec<Key>, Together>,
    /// By module, and by what was learned for it.
    known: HashMap<(Key, Learned), ImageBytes>,
    options: Options,
    kept: Vec<File>,
}

/// Path and build ID.
type Key = (String, Vec<u8>);

/// What a process has loaded.
struct Together {
    map: LinkMap,
    /// Places in the map; none for files that are gone.
    places: HashMap<Key, usize>,
    images: HashMap<Key, Option<ImageBytes>>,
}

struct Owned(LoadedImage);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl ImageSource {
    /// Nothing loaded yet.
    pub(crate) fn new() -> Self {
        Self {
            options: configuration::options(),
            ..Self::default()
        }
    }

    /// Files that were open while the processes ran: looked at where a path leads to another file by now.
    pub(crate) fn keep<'f>(&mut self, files: impl Iterator<Item = &'f File>) {
        self.kept
            .extend(files.filter_map(|file| file.try_clone().ok()));
    }

    /// The images of the modules that occur in the paths of `process`.
    pub(crate) fn for_process(&mut self, process: &ProcessData) -> Images {
        self.for_paths_and(process, BTreeSet::new())
    }

    /// The images of the modules of `process` that occur in its paths, and of those numbered `also`.
    pub(crate) fn for_paths_and(&mut self, process: &ProcessData, also: BTreeSet<u32>) -> Images {
        let frames = process.paths.iter().flat_map(|path| &path.frames);
        let hooked = process.hooks.iter().map(|hook| hook.module);
        let in_paths = frames.map(|frame| frame.module).chain(hooked);
        self.for_modules(process, in_paths.chain(also).collect())
    }

    fn for_modules(&mut self, process: &ProcessData, wanted: BTreeSet<u32>) -> Images {
        let modules: Vec<(u32, &ModuleInfo)> = wanted
            .iter()
            .filter_map(|number| Some((*number, process.modules.get(*number as usize)?)))
            .collect();
        let loaded: Vec<Key> = process.modules.iter().map(key).collect();
        let (kept, options) = (&self.kept, &self.options);
        let together = self
            .programs
            .entry(loaded)
            .or_insert_with_key(|loaded| Together::of(loaded, kept, options));
        let wanted = modules.iter().map(|(_, module)| key(module)).collect();
        together.load(wanted, &mut self.known, options);
        let mut by_module = vec![None; process.modules.len()];
        for (number, module) in modules {
            by_module[number as usize] = together.images.get(&key(module)).cloned().flatten();
        }
        Images::new(by_module)
    }

    /// Paths of the objects whose images were asked for and are there, and of those on which it depends what these say.
    pub(crate) fn objects(&self) -> BTreeSet<&str> {
        self.programs.values().flat_map(Together::objects).collect()
    }
}

impl Together {
    fn of(modules: &[Key], kept: &[File], options: &Options) -> Self {
        let mut places = HashMap::new();
        let mut files = Vec::new();
        for key in modules {
            if !places.contains_key(key)
                && let Some(elf) = file_of(key, kept)
            {
                places.insert(key.clone(), files.len());
                files.push(elf);
            }
        }
        Self {
            map: link(files, options),
            places,
            images: HashMap::new(),
        }
    }

    fn objects(&self) -> BTreeSet<&str> {
        let path_of: HashMap<usize, &str> = self
            .places
            .iter()
            .map(|((path, _), at)| (*at, path.as_str()))
            .collect();
        let there = self.images.iter().filter(|(_, image)| image.is_some());
        let places = there.clone().filter_map(|(key, _)| self.places.get(key));
        let scope = places.flat_map(|at| self.map.scope(*at));
        let paths = scope.filter_map(|at| path_of.get(&at).copied());
        paths
            .chain(there.map(|((path, _), _)| path.as_str()))
            .collect()
    }

    /// Loads those that are not there yet, and makes those that are nowhere, on all cores.
    fn load(
        &mut self,
        wanted: BTreeSet<Key>,
        known: &mut HashMap<(Key, Learned), ImageBytes>,
        options: &Options,
    ) {
        let missing = wanted.into_iter();
        let missing = missing.filter(|key| !self.images.contains_key(key));
        let (there, gone): (Vec<Key>, Vec<Key>) =
            missing.partition(|key| self.places.contains_key(key));
        for key in gone {
            let image = cached_by_id(&key.1, &options.places);
            self.images.insert(key, image);
        }
        if there.is_empty() {
            return;
        }
        let by_place: HashMap<usize, &Key> =
            self.places.iter().map(|(key, at)| (*at, key)).collect();
        let places: Vec<usize> = there.iter().map(|key| self.places[key]).collect();
        // Whether there is debug info for one must be asked of servers: that takes time, too.
        let is_asked = !options.search.servers.urls.is_empty();
        let find = |at: usize, elf: &Elf, learned: &Learned| {
            let known = known.get(&(by_place[&at].clone(), learned.clone()));
            let existing = || cache::existing(elf, learned, options).filter(|_| !is_asked);
            known.cloned().or_else(|| existing().map(shared))
        };
        let make = |at: usize, elf: &Elf, learned: &Learned, progress: &Progress| {
            make(by_place[&at], elf, learned, options, progress)
        };
        let loaded = in_order(&mut self.map, &places, find, make);
        for (at, learned, image) in loaded {
            let key = by_place[&at].clone();
            if let Some(image) = &image {
                known.insert((key.clone(), learned), image.clone());
            }
            self.images.insert(key, image);
        }
    }
}

fn key(module: &ModuleInfo) -> Key {
    (module.path.clone(), module.build_id.clone())
}

/// Files that are loaded together.
pub(crate) fn link(files: Vec<Elf>, options: &Options) -> LinkMap {
    LinkMap::new(files, |elf| debug_files::has_any(elf, &options.search))
}

/// The images of those of the files that are `wanted`, and of those whose functions they call, these first; each with what was learned for
/// it. Files of one level are made on all cores.
fn in_order(
    map: &mut LinkMap,
    wanted: &[usize],
    find: impl Fn(usize, &Elf, &Learned) -> Option<ImageBytes>,
    make: impl Fn(usize, &Elf, &Learned, &Progress) -> Option<ImageBytes> + Sync,
) -> Vec<(usize, Learned, Option<ImageBytes>)> {
    let levels = map.levels(wanted.iter().copied());
    let mut left: usize = levels.iter().map(Vec::len).sum();
    let mut progress = None;
    let mut all = Vec::new();
    for level in levels {
        let mut to_make = Vec::new();
        let mut done = Vec::new();
        for at in level {
            let learned = map.learned(at);
            match find(at, map.file(at), &learned) {
                Some(image) => done.push((at, learned, Some(image))),
                None => to_make.push((at, learned)),
            }
        }
        left -= done.len();
        // Threads that find nothing to do take more time than what is there already.
        if !to_make.is_empty() {
            let progress = progress.get_or_insert_with(|| Progress::start(left as u64));
            let made = to_make.into_par_iter().map(|(at, learned)| {
                let image = make(at, map.file(at), &learned, progress);
                progress.one_more();
                (at, learned, image)
            });
            done.extend(made.collect::<Vec<_>>());
        }
        for (at, _, image) in &done {
            if let Some(image) = image
                && let Ok(image) = Image::parse((**image).as_ref())
            {
                map.tell(*at, &image);
            }
        }
        all.extend(done);
    }
    all
}

/// Whether the images of the files that are `wanted`, and of those whose functions they call, are all there.
pub(crate) fn are_there(map: &mut LinkMap, wanted: &[usize], options: &Options) -> bool {
    let places = map.levels(wanted.iter().copied());
    places.into_iter().flatten().all(|at| {
        let image = cache::existing(map.file(at), &map.learned(at), options);
        if let Some(image) = &image {
            map.tell(at, &image.image());
        }
        image.is_some()
    })
}

/// Makes them on all cores, by threads that have ended when it is done. One that cannot be made is left out.
pub(crate) fn make_all(map: &mut LinkMap, wanted: &[usize], options: &Options) {
    let mut make_all = || {
        let find = |_: usize, elf: &Elf, learned: &Learned| {
            cache::existing(elf, learned, options).map(shared)
        };
        let make = |_: usize, elf: &Elf, learned: &Learned, progress: &Progress| {
            let name = elf.path().and_then(Path::file_name).unwrap_or_default();
            let name = name.to_string_lossy();
            let image = cache::image_of(elf, learned, options, &|stage| progress.at(&name, stage));
            image.ok().map(shared)
        };
        in_order(map, wanted, find, make);
    };
    let on_all_cores = |pool: &rayon::ThreadPool| pool.install(&mut make_all);
    // Without threads, say where there may be no more, this one does it.
    if rayon::ThreadPoolBuilder::new()
        .build_scoped(rayon::ThreadBuilder::run, on_all_cores)
        .is_err()
    {
        make_all();
    }
}

/// A file by itself, and what is learned of those that the dynamic linker would load with it. Who loads a library, nobody knows: it may be
/// bound to more.
pub(crate) fn alone(path: &Path, options: &Options) -> Result<(LinkMap, Learned)> {
    let elf = Elf::open(path).with_context(|| path.display().to_string())?;
    let others = needed::find(&elf);
    let mut map = link(std::iter::once(elf).chain(others).collect(), options);
    let levels = map.levels([0]);
    let suppliers: Vec<usize> = levels.into_iter().flatten().filter(|at| *at != 0).collect();
    // What functions hand out does not depend on whether sources are read.
    let options = Options {
        sites: configuration::options().sites,
        ..options.clone()
    };
    if !are_there(&mut map, &suppliers, &options) {
        make_all(&mut map, &suppliers, &options);
    }
    let learned = map.learned(0);
    Ok((map, learned))
}

/// The image of a file by itself, as [`alone`].
pub(crate) fn of_file(path: &Path, options: &Options) -> Result<LoadedImage> {
    let (map, learned) = alone(path, options)?;
    cache::image_of(map.file(0), &learned, options, &|_| {})
        .with_context(|| path.display().to_string())
}

/// The file itself, by its path or as it was kept open.
fn file_of((path, build_id): &Key, kept: &[File]) -> Option<Elf> {
    // What is seen of a process from outside has no stand-in for a build ID: its code may have been patched since.
    let is_it = |elf: &Elf| match build_id.as_slice() {
        [] => elf.build_id().is_empty(),
        id => cut(elf.identity()) == id,
    };
    // Only regular files: the path is what a process says it is.
    let is_file = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
    let elf = is_file.then(|| Elf::open(Path::new(path)).ok()).flatten();
    let open = |file: &File| {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Elf::open(Path::new(&path)).ok().filter(is_it)
    };
    elf.filter(is_it).or_else(|| kept.iter().find_map(open))
}

fn make(
    (path, build_id): &Key,
    elf: &Elf,
    learned: &Learned,
    options: &Options,
    progress: &Progress,
) -> Option<ImageBytes> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let made = cache::image_of(elf, learned, options, &|stage| progress.at(name, stage));
    made.map(shared)
        .ok()
        .or_else(|| cached_by_id(build_id, &options.places))
}

fn shared(image: LoadedImage) -> ImageBytes {
    std::sync::Arc::new(Owned(image))
}

/// An index keeps the first 20 bytes of a build ID.
fn cut(build_id: &[u8]) -> &[u8] {
    &build_id[..build_id.len().min(20)]
}

/// The image of a file that is gone, if it was made while the file was there; of several the one by which most was learned.
fn cached_by_id(build_id: &[u8], places: &Places) -> Option<ImageBytes> {
    if build_id.is_empty() {
        return None;
    }
    let hex: String = build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let prefix = format!("{hex}-{FORMAT}");
    let folders = places.system.iter().chain(&places.user);
    let entries = folders
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten();
    entries
        .filter_map(Result::ok)
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(&prefix) && name.ends_with(".image")
        })
        .filter_map(|entry| std::fs::read(entry.path()).ok())
        .map(|bytes| AlignedBytes::copy_of(&bytes))
        .filter_map(|bytes| {
            let image = Image::parse(bytes.as_ref()).ok()?;
            let learned = image.imports.len();
            (image.build_id() == build_id).then_some((learned, bytes))
        })
        .max_by_key(|(learned, _)| *learned)
        .map(|(_, bytes)| std::sync::Arc::new(bytes) as ImageBytes)
}

/// A progress bar that appears when it takes longer than a second, and only on a terminal.
struct Progress {
    said: Option<mpsc::Sender<Said>>,
    drawn: Option<std::thread::JoinHandle<()>>,
}

enum Said {
    At(String),
    OneMore,
}

/// Shorter waits need no explanation.
const PATIENCE: Duration = Duration::from_secs(1);

impl Progress {
    fn start(files: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self {
                said: None,
                drawn: None,
            };
        }
        let (said, heard) = mpsc::channel();
        let drawn = std::thread::spawn(move || draw(files, &heard));
        Self {
            said: Some(said),
            drawn: Some(drawn),
        }
    }

    fn at(&self, name: &str, stage: cache::Stage) {
        let doing = match stage {
            cache::Stage::DebugInfo => "reading debug info of",
            cache::Stage::Sites => "finding allocation sites of",
            cache::Stage::Writing => "storing the image of",
        };
        self.say(Said::At(format!("{doing} {name}")));
    }

    fn one_more(&self) {
        self.say(Said::OneMore);
    }

    fn say(&self, said: Said) {
        if let Some(to) = &self.said {
            // Nobody listens any more only when the thread has ended.
            let _ = to.send(said);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.said = None;
        if let Some(drawn) = self.drawn.take() {
            let _ = drawn.join();
        }
    }
}

fn draw(files: u64, heard: &mpsc::Receiver<Said>) {
    let started = std::time::Instant::now();
    let mut bar: Option<ProgressBar> = None;
    let (mut done, mut doing) = (0, String::new());
    loop {
        let wait = match bar {
            None => PATIENCE.saturating_sub(started.elapsed()),
            Some(_) => Duration::from_millis(120),
        };
        match heard.recv_timeout(wait) {
            Ok(Said::At(text)) => doing = text,
            Ok(Said::OneMore) => done += 1,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        if started.elapsed() >= PATIENCE {
            let bar = bar.get_or_insert_with(|| new_bar(files));
            bar.set_position(done);
            bar.set_message(doing.clone());
            bar.tick();
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

fn new_bar(files: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} [{pos}/{len}] {wide_msg} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(files).with_style(style)
}
