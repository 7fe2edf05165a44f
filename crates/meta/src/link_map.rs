//! *In which files do the names lie that a file takes from others, and what is learned of them there?*
//!
//! Files that are loaded together, in the order of the dynamic linker: the executable and what it needs, breadth first; then a
//! file that was opened later, and what that needs. The first that defines a name is bound (System V gABI, chapter 5, *Shared Object
//! Dependencies*). A file's *suppliers* are those that its names are bound to; their images have to be there before its own. Those
//! that need it in turn are none, so that what is learned does not depend on which is looked at first; nor are the libraries that
//! analysis knows by name ([`is_modelled_library`]). A file without debug info has no types to gain, and no suppliers.

use crate::elf::Elf;
use crate::sites::Summary;
use object::elf::PT_INTERP;
use pointee_model::entries::is_modelled_library;
use pointee_model::image::Image;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
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
        let said: Vec<Summary> = self.summaries.iter().map(Summary::anywhere).collect();
        xxh3_64(format!("{said:?}").as_bytes())
    }

    /// Whether an `image` was made by no less than this.
    pub(crate) fn is_in(&self, image: &Image<'_>) -> bool {
        let known: HashSet<Summary> = Summary::imported(image)
            .iter()
            .map(Summary::anywhere)
            .collect();
        let mut summaries = self.summaries.iter();
        summaries.all(|summary| known.contains(&summary.anywhere()))
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
    /// Whether it has types to gain.
    learns: bool,
    /// What it exports, once its image is there.
    exports: Option<Vec<Summary>>,
}

/// Files that are loaded together.
#[derive(Debug)]
pub struct LinkMap {
    objects: Vec<Object>,
    /// The executable and what it needs, in the order of the dynamic linker; empty without an executable.
    started: Vec<usize>,
    /// By file: its suppliers, and the names that are bound to each.
    suppliers: Vec<BTreeMap<usize, BTreeSet<String>>>,
}

impl LinkMap {
    /// The first executable among the `files` is what was started.
    #[must_use]
    pub fn new(files: Vec<Elf>, has_debug_info: impl Fn(&Elf) -> bool) -> Self {
        let mut by_name: HashMap<String, usize> = HashMap::new();
        for (at, elf) in files.iter().enumerate() {
            for name in [elf.soname(), file_name(elf)].into_iter().flatten() {
                by_name.entry(name.to_owned()).or_insert(at);
            }
        }
        let object = |elf: Elf| Object::new(has_debug_info(&elf), elf, &by_name);
        let objects: Vec<Object> = files.into_iter().map(object).collect();
        let executable = objects.iter().position(|object| is_executable(&object.elf));
        let started = executable.map_or_else(Vec::new, |at| breadth_first(&objects, at));
        let mut map = Self {
            objects,
            started,
            suppliers: Vec::new(),
        };
        map.suppliers = map.places().map(|at| map.bound(at)).collect();
        map
    }

    /// The files whose images are needed for those of the `wanted` files (by their place among what was given), these among them.
    /// A file's suppliers are in earlier levels.
    #[must_use]
    pub fn levels(&self, wanted: impl IntoIterator<Item = usize>) -> Vec<Vec<usize>> {
        let mut due: Vec<usize> = wanted.into_iter().collect();
        let mut levels: Vec<Vec<usize>> = Vec::new();
        let mut level_of: HashMap<usize, usize> = HashMap::new();
        // Depth first: none comes back to itself, since suppliers do not need whom they supply.
        while let Some(at) = due.pop() {
            if level_of.contains_key(&at) {
                continue;
            }
            let suppliers = || self.suppliers[at].keys();
            let missing: Vec<usize> = suppliers()
                .filter(|supplier| !level_of.contains_key(supplier))
                .copied()
                .collect();
            if !missing.is_empty() {
                due.push(at);
                due.extend(missing);
                continue;
            }
            let level = suppliers().map(|supplier| level_of[supplier] + 1);
            let level = level.max().unwrap_or(0);
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
        let exports = |at: &usize| self.objects[*at].exports.as_ref();
        let suppliers = &self.suppliers[at];
        let learned = suppliers.iter().flat_map(|(supplier, names)| {
            let known = exports(supplier).into_iter().flatten();
            let library = file_name(&self.objects[*supplier].elf).unwrap_or_default();
            let bound = known.filter(|summary| names.contains(&summary.name));
            bound.map(|summary| Summary {
                library: library.to_owned(),
                ..summary.clone()
            })
        });
        let mut summaries: Vec<Summary> = learned.collect();
        summaries.sort_by(|a, b| a.name.cmp(&b.name));
        let is_whole = |at: &usize| self.objects[*at].is_whole;
        Learned {
            summaries,
            is_complete: !self.objects[at].learns
                || !self.started.is_empty()
                    && self.scope(at).iter().all(is_whole)
                    && suppliers.keys().all(|at| exports(at).is_some()),
        }
    }

    /// The files on which it depends what is learned for the file at a place.
    #[must_use]
    pub fn scope(&self, at: usize) -> Vec<usize> {
        match self.objects[at].learns {
            true => self.order(at),
            false => vec![at],
        }
    }

    /// Where names are looked up that the file at a place takes from others, itself among them.
    fn order(&self, at: usize) -> Vec<usize> {
        let own = breadth_first(&self.objects, at);
        let started = self.started.iter().copied();
        let later = own.into_iter().filter(|own| !self.started.contains(own));
        started.chain(later).collect()
    }

    /// The suppliers of the file at a place, and the names that are bound to each.
    fn bound(&self, at: usize) -> BTreeMap<usize, BTreeSet<String>> {
        let mut bound: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        if !self.objects[at].learns {
            return bound;
        }
        let mut order = self.order(at);
        order.retain(|other| *other != at);
        for name in self.objects[at].elf.imported_names() {
            let mut order = order.iter();
            if let Some(definer) = order.find(|it| self.objects[**it].elf.exports(name)) {
                bound.entry(*definer).or_default().insert(name.to_owned());
            }
        }
        let reached = self.reached(at);
        bound.retain(|definer, _| {
            reached.contains(definer) && !self.reached(*definer).contains(&at)
        });
        bound
    }

    /// What the file at a place says that it needs, itself among it; if it was opened later, all that was started too.
    fn reached(&self, at: usize) -> BTreeSet<usize> {
        let own = breadth_first(&self.objects, at).into_iter();
        let started = self.started.iter().copied();
        let is_later = !self.started.contains(&at);
        own.chain(started.filter(|_| is_later)).collect()
    }
}

impl Object {
    fn new(has_debug_info: bool, elf: Elf, by_name: &HashMap<String, usize>) -> Self {
        // One that was linked by its path, and has no name of its own, is needed by that path.
        let names = elf.needed().into_iter().map(last_part);
        let needed: Vec<Option<usize>> = names
            .filter(|name| !is_modelled_library(name))
            .map(|name| by_name.get(name).copied())
            .collect();
        let own = elf.soname().or(file_name(&elf));
        Self {
            is_whole: needed.iter().all(Option::is_some),
            needed: needed.into_iter().flatten().collect(),
            learns: has_debug_info && !own.is_some_and(is_modelled_library),
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
