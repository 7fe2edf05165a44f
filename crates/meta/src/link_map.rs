//! *In which files do the names lie that a file takes from others, and what is learned of them there?*
//!
//! Files that are loaded together, in the order of the dynamic linker: the executable and what it needs, breadth first; then a
//! file that was opened later, and what that needs. The first that defines a name is bound (System V gABI, chapter 5, *Shared Object
//! Dependencies*). A file's *suppliers* are those that it may be bound to whose images have to be there before its own: all
//! before it in either order, but those that need it in turn, so that what is learned does not depend on which is looked at
//! first, and but the libraries that analysis knows by name ([`is_modelled_library`]).

use crate::elf::Elf;
use crate::sites::Summary;
use object::elf::PT_INTERP;
use pointee_model::entries::is_modelled_library;
use pointee_model::image::Image;
use std::collections::{BTreeSet, HashMap, HashSet};
use xxhash_rust::xxh3::xxh3_64;

/// What is learned of the files that one file is bound to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Learned {
    /// Of the names that the file takes, in order.
    pub(crate) summaries: Vec<Summary>,
    /// Whether nothing more could be learned: all files are there that it may be bound to, and their images.
    pub is_complete: bool,
}

impl Learned {
    /// What was learned, as a number that is the same wherever the files lie; 0 for nothing.
    pub(crate) fn digest(&self) -> u64 {
        if self.summaries.is_empty() {
            return 0;
        }
        let anywhere = |summary: &Summary| Summary {
            library: String::new(),
            ..summary.clone()
        };
        let said: Vec<Summary> = self.summaries.iter().map(anywhere).collect();
        xxh3_64(format!("{said:?}").as_bytes())
    }

    /// Whether an `image` was made by no less than this.
    pub(crate) fn is_in(&self, image: &Image<'_>) -> bool {
        let known = Summary::imported(image);
        let known: HashMap<&str, &Summary> = known.iter().map(|it| (&*it.name, it)).collect();
        let is_known = |summary: &Summary| {
            known.get(&*summary.name).is_some_and(|other| {
                let library = other.library.clone();
                **other
                    == Summary {
                        library,
                        ..summary.clone()
                    }
            })
        };
        self.summaries.iter().all(is_known)
    }
}

/// One file.
#[derive(Debug)]
struct Object {
    elf: Elf,
    /// The files that it needs, as far as they are here.
    needed: Vec<usize>,
    /// Whether all of these are here.
    is_whole: bool,
    is_modelled: bool,
    /// What it exports, once its image is there.
    exports: Option<Vec<Summary>>,
}

/// Files that are loaded together.
#[derive(Debug)]
pub struct LinkMap {
    objects: Vec<Object>,
    /// The executable and what it needs, in the order of the dynamic linker; empty without an executable.
    started: Vec<usize>,
    /// By file: those that it reaches, itself among them.
    reached: Vec<BTreeSet<usize>>,
}

impl LinkMap {
    /// The first executable among the `files` is what was started.
    #[must_use]
    pub fn new(files: Vec<Elf>) -> Self {
        let mut by_name: HashMap<String, usize> = HashMap::new();
        for (at, elf) in files.iter().enumerate() {
            for name in [elf.soname(), file_name(elf)].into_iter().flatten() {
                by_name.entry(name.to_owned()).or_insert(at);
            }
        }
        let objects: Vec<Object> = files
            .into_iter()
            .map(|elf| Object::new(elf, &by_name))
            .collect();
        let executable = objects.iter().position(|object| is_executable(&object.elf));
        let started = executable.map_or_else(Vec::new, |at| breadth_first(&objects, at));
        let reached = |at: usize| {
            let own = breadth_first(&objects, at);
            let opened_later = !started.contains(&at);
            let before = started.iter().copied().filter(|_| opened_later);
            own.into_iter().chain(before).collect()
        };
        let reached = (0..objects.len()).map(reached).collect();
        Self {
            objects,
            started,
            reached,
        }
    }

    /// The files whose images are needed for those of the `wanted` files (by their place among what was given), these among them.
    /// A file's suppliers are in earlier levels.
    #[must_use]
    pub fn levels(&self, wanted: impl IntoIterator<Item = usize>) -> Vec<Vec<usize>> {
        let mut due: BTreeSet<usize> = BTreeSet::new();
        for at in wanted {
            due.insert(at);
            due.extend(self.suppliers(at));
        }
        // Whoever supplies a file reaches less than that does.
        let mut due: Vec<usize> = due.into_iter().collect();
        due.sort_by_key(|at| self.reached[*at].len());
        let mut level_of: HashMap<usize, usize> = HashMap::new();
        let mut levels: Vec<Vec<usize>> = Vec::new();
        for at in due {
            let before = self.suppliers(at).filter_map(|it| level_of.get(&it));
            let level = before.max().map_or(0, |level| level + 1);
            level_of.insert(at, level);
            levels.resize_with(levels.len().max(level + 1), Vec::new);
            levels[level].push(at);
        }
        levels
    }

    /// All places.
    #[must_use]
    pub fn places(&self) -> std::ops::Range<usize> {
        0..self.objects.len()
    }

    /// The file at a place.
    #[must_use]
    pub fn file(&self, at: usize) -> &Elf {
        &self.objects[at].elf
    }

    /// Notes what the image of the file at a place says that it exports.
    pub fn tell(&mut self, at: usize, image: &Image<'_>) {
        self.objects[at].exports = Some(Summary::exported(image));
    }

    /// What is known, of those that were told, of the functions that the file at a place takes from others.
    #[must_use]
    pub fn learned(&self, at: usize) -> Learned {
        let own = breadth_first(&self.objects, at);
        let mut order: Vec<usize> = self.started.iter().copied().chain(own).collect();
        order.retain(|other| *other != at);
        let suppliers: BTreeSet<usize> = self.suppliers(at).collect();
        let objects = &self.objects;
        let exports = |at: &usize| objects[*at].exports.iter().flatten();
        let offered: HashSet<&str> = suppliers
            .iter()
            .flat_map(|at| exports(at).map(|summary| &*summary.name))
            .collect();
        let names = objects[at].elf.imported_names();
        let names: BTreeSet<&str> = names.filter(|name| offered.contains(name)).collect();
        let learned = names.into_iter().filter_map(|name| {
            let mut order = order.iter();
            let bound = order.find(|at| objects[**at].elf.exports(name))?;
            // One that needs this file in turn says nothing of it.
            let summary = exports(suppliers.get(bound)?).find(|it| it.name == name)?;
            let library = file_name(&objects[*bound].elf).unwrap_or_default();
            Some(Summary {
                library: library.to_owned(),
                ..summary.clone()
            })
        });
        let is_whole = |at: &usize| objects[*at].is_whole;
        let is_told = |at: &usize| objects[*at].exports.is_some();
        Learned {
            summaries: learned.collect(),
            is_complete: objects[at].is_modelled
                || !self.started.is_empty()
                    && order.iter().chain([&at]).all(is_whole)
                    && suppliers.iter().all(is_told),
        }
    }

    /// The files whose images have to be there before that of the file at a place.
    fn suppliers(&self, at: usize) -> impl Iterator<Item = usize> {
        let reached = self.reached[at].iter().copied();
        let is_modelled = self.objects[at].is_modelled;
        reached.filter(move |other| !is_modelled && !self.reached[*other].contains(&at))
    }
}

impl Object {
    fn new(elf: Elf, by_name: &HashMap<String, usize>) -> Self {
        // One that was linked by its path, and has no name of its own, is needed by that path.
        let names = elf.needed().into_iter().map(last_part);
        let needed: Vec<Option<usize>> = names
            .filter(|name| !is_modelled_library(name))
            .map(|name| by_name.get(name).copied())
            .collect();
        Self {
            is_whole: needed.iter().all(Option::is_some),
            needed: needed.into_iter().flatten().collect(),
            is_modelled: elf
                .soname()
                .or(file_name(&elf))
                .is_some_and(is_modelled_library),
            exports: None,
            elf,
        }
    }
}

/// The file at a place and what it needs, in the order in which names are looked up.
fn breadth_first(objects: &[Object], from: usize) -> Vec<usize> {
    let mut order = vec![from];
    let mut known = BTreeSet::from([from]);
    let mut next = 0;
    while let Some(at) = order.get(next) {
        let needed = objects[*at].needed.iter().copied();
        let new: Vec<usize> = needed.filter(|needed| known.insert(*needed)).collect();
        order.extend(new);
        next += 1;
    }
    order
}

/// Whether a file is a program. Some libraries can be started too, but go by a name.
fn is_executable(elf: &Elf) -> bool {
    let mut segments = elf.segments().iter();
    elf.soname().is_none() && segments.any(|segment| segment.kind == PT_INTERP)
}

fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn file_name(elf: &Elf) -> Option<&str> {
    elf.path()?.file_name()?.to_str()
}
