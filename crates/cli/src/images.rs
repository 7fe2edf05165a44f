//! *Where do metadata images come from?* — from the cache, made when they are not there.
//!
//! The only file of the command that knows how images are made. Only modules that occur in paths get one.
//! A file that is no longer the one that was loaded (replaced, deleted) is told by its build ID; the image
//! of the one that was loaded may still be in the cache.

use crate::configuration;
use indicatif::{ProgressBar, ProgressStyle};
use pointee_inspect::images::{AlignedBytes, ImageBytes, Images};
use pointee_inspect::process::{ModuleInfo, ProcessData};
use pointee_meta::cache::{self, LoadedImage, Options, Places};
use pointee_meta::elf::Elf;
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
    known: HashMap<Key, Option<ImageBytes>>,
    options: Options,
    kept: Vec<File>,
}

/// Path and build ID.
type Key = (String, Vec<u8>);

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
        self.load(modules.iter().map(|(_, module)| *module));
        let mut by_module = vec![None; process.modules.len()];
        for (number, module) in modules {
            by_module[number as usize] = self.known.get(&key(module)).cloned().flatten();
        }
        Images::new(by_module)
    }

    /// Paths of the objects whose images were asked for and are there.
    pub(crate) fn objects(&self) -> BTreeSet<&str> {
        let there = self.known.iter().filter(|(_, image)| image.is_some());
        there.map(|((path, _), _)| path.as_str()).collect()
    }

    /// Loads those that are not known, and makes those that are not there, on all cores.
    fn load<'m>(&mut self, modules: impl Iterator<Item = &'m ModuleInfo>) {
        let missing: BTreeSet<Key> = modules
            .map(key)
            .filter(|key| !self.known.contains_key(key))
            .collect();
        // Whether there is debug info for one must be asked of servers: that takes time, too.
        let is_asked = !self.options.search.servers.urls.is_empty();
        let mut to_make = Vec::new();
        for key in missing {
            let Some(elf) = file_of(&key, &self.kept) else {
                let image = cached_by_id(&key.1, &self.options.places);
                self.known.insert(key, image);
                continue;
            };
            let existing = (!is_asked).then(|| cache::existing(&elf, &self.options));
            match existing.flatten() {
                Some(image) => _ = self.known.insert(key, Some(shared(image))),
                None => to_make.push((key, elf)),
            }
        }
        // Threads that find nothing to do take more time than what is there already.
        if to_make.is_empty() {
            return;
        }
        let progress = Progress::start(to_make.len() as u64);
        let options = &self.options;
        let made: Vec<_> = to_make
            .into_par_iter()
            .map(|(key, elf)| {
                let image = make(&key, &elf, options, &progress);
                (key, image)
            })
            .collect();
        self.known.extend(made);
    }
}

fn key(module: &ModuleInfo) -> Key {
    (module.path.clone(), module.build_id.clone())
}

/// Makes the images of these files on all cores, by threads that have ended when it is done. One that cannot be made is left out.
pub(crate) fn make_all(files: &[(&Path, Elf)], options: &Options) {
    let progress = Progress::start(files.len() as u64);
    let make = |(path, elf): &(&Path, Elf)| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let _ = cache::image_of(elf, options, &|stage| progress.at(&name, stage));
        progress.one_more();
    };
    let on_all_cores = |pool: &rayon::ThreadPool| pool.install(|| files.par_iter().for_each(make));
    // Without threads, say where there may be no more, this one does it.
    if rayon::ThreadPoolBuilder::new()
        .build_scoped(rayon::ThreadBuilder::run, on_all_cores)
        .is_err()
    {
        files.iter().for_each(make);
    }
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
    options: &Options,
    progress: &Progress,
) -> Option<ImageBytes> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let made = cache::image_of(elf, options, &|stage| progress.at(name, stage));
    progress.one_more();
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

/// The image of a file that is gone, if it was made while the file was there.
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
        .find(|bytes| Image::parse(bytes.as_ref()).is_ok_and(|image| image.build_id() == build_id))
        .map(|bytes| std::sync::Arc::new(bytes) as ImageBytes)
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
