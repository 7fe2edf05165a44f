//! *Is there an image of this file already, and where does a new one go?*
//!
//! ```text
//!   embedded     section .pointee of the file itself                 same build ID and format
//!   system       DIR/ID-FORMAT-PROVENANCE.image, DIR/ID-FORMAT.image   read-only; the short name is a packager's word
//!   user         DIR/ID-FORMAT-PROVENANCE.image                      written here, by renaming
//!   else         made, and kept in memory when it cannot be written
//! ```
//!
//! *ID* is the build ID, or what stands in for it where there is none ([`Elf::identity`]). *Provenance* hashes what an image
//! is made from (which debug files were found, the configuration, how long the file is: stripped, it is the same build), so that installing debug info
//! changes the answer at the next question; and what was learned of the files that it is bound to ([`Learned`]). Who cannot know all of
//! these takes the image that was made by the most, as long as that is no less than what is known.
//! A cached file that is not what its name says is made anew.

use crate::config::{self, Config, Kind};
use crate::debug_files::{DebugFiles, Search};
use crate::dwarf::read_facts;
use crate::elf::{Elf, ElfError, FileBytes};
use crate::facts::Facts;
use crate::link_map::Learned;
use crate::sites::{self, Sites, Summary, guards};
use crate::writer::{self, Provenance};
use pointee_model::image::{FORMAT, Image, ImageError};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use xxhash_rust::xxh3::Xxh3;
use zerocopy::IntoBytes;

/// Name of the section that holds an embedded image.
pub const SECTION: &str = ".pointee";

/// Where images are looked for and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Read-only, in order of preference.
    pub system: Vec<PathBuf>,
    /// Read and written; `None`: nothing is kept.
    pub user: Option<PathBuf>,
}

impl Default for Places {
    /// `/var/lib/pointee/images`, and `pointee/images` in the user's cache folder.
    fn default() -> Self {
        let absolute = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let cache =
            absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
        Self {
            system: vec![PathBuf::from("/var/lib/pointee/images")],
            user: cache.map(|cache| cache.join("pointee/images")),
        }
    }
}

/// What an image is made with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where debug files are searched.
    pub search: Search,
    /// Where images are kept.
    pub places: Places,
    /// What the analysis of allocation sites may use.
    pub sites: sites::Options,
    /// What people say about allocators.
    pub config: Config,
}

/// What is being done, for those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading debug info.
    DebugInfo,
    /// Looking for allocation sites.
    Sites,
    /// Laying out and storing the image.
    Writing,
}

/// Where an image came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The file's own section.
    Embedded,
    /// A cached image.
    Cached(PathBuf),
    /// Made just now; `Some` where it was stored.
    Made(Option<PathBuf>),
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file is no ELF file that can be read.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// What was made is not an image (it may be larger than the format can say).
    #[error("image just made: {0}")]
    Image(ImageError),
    /// A file could not be written.
    #[error("{path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file cannot take one more section.
    #[error("cannot embed: {0}")]
    Embed(&'static str),
}

/// An image, checked, with the bytes that it lies in.
#[derive(Debug)]
pub struct LoadedImage {
    bytes: ImageBytes,
    origin: Origin,
    diagnostics: Vec<String>,
}

#[derive(Debug)]
enum ImageBytes {
    Mapped(FileBytes),
    /// As they were made, where they happen to be aligned.
    Made(Vec<u8>),
    /// In words, because records are 8-byte aligned.
    Words {
        words: Vec<u64>,
        len: usize,
    },
}

impl LoadedImage {
    fn new(
        bytes: ImageBytes,
        origin: Origin,
        diagnostics: Vec<String>,
    ) -> Result<Self, ImageError> {
        let loaded = Self {
            bytes,
            origin,
            diagnostics,
        };
        Image::parse(loaded.bytes())?;
        Ok(loaded)
    }

    fn from_made(
        bytes: Vec<u8>,
        origin: Origin,
        diagnostics: Vec<String>,
    ) -> Result<Self, ImageError> {
        if bytes.as_ptr().addr().is_multiple_of(align_of::<u64>()) {
            return Self::new(ImageBytes::Made(bytes), origin, diagnostics);
        }
        Self::from_slice(&bytes, origin, diagnostics)
    }

    fn from_slice(
        bytes: &[u8],
        origin: Origin,
        diagnostics: Vec<String>,
    ) -> Result<Self, ImageError> {
        let mut words = vec![0_u64; bytes.len().div_ceil(8)];
        if let Some(start) = words.as_mut_bytes().get_mut(..bytes.len()) {
            start.copy_from_slice(bytes);
        }
        let len = bytes.len();
        Self::new(ImageBytes::Words { words, len }, origin, diagnostics)
    }

    /// The bytes of the image.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            ImageBytes::Mapped(bytes) => bytes,
            ImageBytes::Made(bytes) => bytes,
            ImageBytes::Words { words, len } => words.as_bytes().get(..*len).unwrap_or(&[]),
        }
    }

    /// The view of it.
    #[must_use]
    pub fn image(&self) -> Image<'_> {
        // Checked when loaded; but a mapped file is only as constant as its owner lets it be.
        Image::parse(self.bytes()).unwrap_or_else(|_| Image::empty())
    }

    /// Where it came from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// What was wrong or not understood; empty for images that were not made just now.
    #[must_use]
    pub fn diagnostics(&self) -> &[String] {
        &self.diagnostics
    }
}

/// The image of the file at `path`: embedded, cached, or made and cached. Nothing is known of the files that it is bound to.
///
/// # Errors
/// [`CacheError`] when the file cannot be read as ELF. A cache that cannot be read or written is no
/// error.
pub fn image_for(
    path: &Path,
    options: &Options,
    progress: &dyn Fn(Stage),
) -> Result<LoadedImage, CacheError> {
    image_of(&Elf::open(path)?, &Learned::default(), options, progress)
}

/// The image of a file that is open already, or that came over as bytes ([`Elf::from_bytes`]), given what was `learned` of those that it is
/// bound to.
///
/// # Errors
/// As [`image_for`].
pub fn image_of(
    elf: &Elf,
    learned: &Learned,
    options: &Options,
    progress: &dyn Fn(Stage),
) -> Result<LoadedImage, CacheError> {
    if let Some(found) = embedded_for(elf, options) {
        return Ok(found);
    }
    let debug = DebugFiles::find(elf, &options.search);
    let provenance = provenance_of(elf, &debug, learned, options);
    if let Some(found) = stored(elf, learned, options, &provenance) {
        return Ok(found);
    }
    let made = make(elf, &debug, learned, options, &provenance, progress);
    let Made {
        bytes,
        diagnostics,
        facts,
        sites,
    } = made;
    let user = options.places.user.as_ref();
    let write = || {
        user.map(|directory| directory.join(file_name(elf, &provenance)))
            .filter(|path| store(path, &bytes).is_ok())
    };
    // To give back hundreds of thousands of names takes about as long as to write the file.
    let (stored, ()) = rayon::join(write, || drop((facts, sites)));
    let image = LoadedImage::from_made(bytes, Origin::Made(stored), diagnostics)
        .map_err(CacheError::Image)?;
    if let Origin::Made(Some(path)) = image.origin() {
        let link = path.with_file_name(short_name(elf));
        let knows_more = |other: &LoadedImage| {
            is_made_alike(&other.image(), &provenance)
                && other.image().imports.len() > image.image().imports.len()
        };
        let before = fs::read_link(&link).ok();
        let before = before.and_then(|before| load(&before, &provenance, Wanted::Any));
        if !before.as_ref().is_some_and(knows_more) {
            point_to(path, &link);
        }
    }
    Ok(image)
}

/// The image of a file, embedded or cached; `None` where it has to be made.
#[must_use]
pub fn existing(elf: &Elf, learned: &Learned, options: &Options) -> Option<LoadedImage> {
    embedded_for(elf, options).or_else(|| {
        let debug = DebugFiles::find(elf, &options.search);
        let provenance = provenance_of(elf, &debug, learned, options);
        stored(elf, learned, options, &provenance)
    })
}

/// The file's own image, unless there is a configuration, of which it knows nothing.
fn embedded_for(elf: &Elf, options: &Options) -> Option<LoadedImage> {
    let config = options.config.selected_for(elf);
    config.is_empty().then(|| embedded(elf)).flatten()
}

/// The image in the system's or the user's directory.
fn stored(
    elf: &Elf,
    learned: &Learned,
    options: &Options,
    provenance: &Provenance,
) -> Option<LoadedImage> {
    let config = options.config.selected_for(elf);
    let name = file_name(elf, provenance);
    let systems = options.places.system.iter().flat_map(|directory| {
        let of_packager = match config.is_empty() {
            true => Wanted::Any,
            false => Wanted::Exactly,
        };
        [
            (directory.join(&name), Wanted::Exactly),
            (directory.join(short_name(elf)), of_packager),
        ]
    });
    let user = options.places.user.iter();
    let exact = user.clone().map(|directory| directory.join(&name));
    let newest = user.filter_map(|directory| fs::read_link(directory.join(short_name(elf))).ok());
    let newest = newest.filter(|_| !learned.is_complete);
    systems
        .chain(newest.map(|path| (path, Wanted::NoLess(learned))))
        .chain(exact.map(|path| (path, Wanted::Exactly)))
        .find_map(|(path, wanted)| load(&path, provenance, wanted))
}

/// The cached image of a file and where it lies, if it is the one that would be made now.
#[must_use]
pub fn cached(elf: &Elf, learned: &Learned, options: &Options) -> Option<(PathBuf, LoadedImage)> {
    let debug = DebugFiles::find(elf, &options.search);
    let provenance = provenance_of(elf, &debug, learned, options);
    let name = file_name(elf, &provenance);
    let folders = options.places.system.iter().chain(&options.places.user);
    folders.map(|folder| folder.join(&name)).find_map(|path| {
        let image = load(&path, &provenance, Wanted::Exactly)?;
        Some((path, image))
    })
}

/// What analysis finds in a file, with the configuration applied; nothing is cached.
#[must_use]
pub fn analyse(elf: &Elf, learned: &Learned, options: &Options) -> (Facts, Sites) {
    let debug = DebugFiles::find(elf, &options.search);
    let mut facts = read_facts(elf, &debug);
    let config = config_for(elf, options);
    let sites = find_sites(elf, &mut facts, &config, learned, options);
    (facts, sites)
}

/// What is said of a file: what ships inside, and what the user says.
fn config_for(elf: &Elf, options: &Options) -> Config {
    let mut config = config::built_in().selected_for(elf);
    config.add(options.config.selected_for(elf));
    config
}

fn find_sites(
    elf: &Elf,
    facts: &mut Facts,
    config: &Config,
    learned: &Learned,
    options: &Options,
) -> Sites {
    config::name_functions(config, elf, facts);
    if learned.summaries.iter().any(Summary::is_text) {
        sites::declare_text(facts);
    }
    // Whatever is said of a function in a configuration holds before what is learned.
    let is_said = |summary: &&Summary| {
        let mut rules = config.rules.iter();
        rules.any(|rule| rule.kind != Kind::Pair && rule.names(&summary.name))
    };
    let unsaid = learned.summaries.iter().filter(|it| !is_said(it));
    let with_declared = sites::Options {
        declared: config.declared(),
        learned: unsaid.cloned().collect(),
        ..options.sites.clone()
    };
    let mut sites = sites::infer(elf, facts, &with_declared);
    sites.imports.clone_from(&learned.summaries);
    let path = elf
        .path()
        .map_or_else(String::new, |path| path.to_string_lossy().into_owned());
    // Who asks for it in a file without debug info finds its type here.
    if sites.exports.iter().any(Summary::is_text) {
        sites::declare_text(facts);
    }
    config::apply(config, &path, facts, &mut sites);
    sites.guards = guards::find(elf, &config.pools_of(facts));
    sites
}

/// An image, and what it was made from.
struct Made {
    bytes: Vec<u8>,
    diagnostics: Vec<String>,
    facts: Facts,
    sites: Sites,
}

/// Makes an image, whatever is cached.
fn make(
    elf: &Elf,
    debug: &DebugFiles,
    learned: &Learned,
    options: &Options,
    provenance: &Provenance,
    progress: &dyn Fn(Stage),
) -> Made {
    progress(Stage::DebugInfo);
    let mut facts = read_facts(elf, debug);
    progress(Stage::Sites);
    let config = config_for(elf, options);
    let mut sites = find_sites(elf, &mut facts, &config, learned, options);
    progress(Stage::Writing);
    let bytes = writer::write(&facts, &sites, &config, provenance);
    let mut diagnostics = std::mem::take(&mut facts.diagnostics);
    diagnostics.append(&mut sites.diagnostics);
    Made {
        bytes,
        diagnostics,
        facts,
        sites,
    }
}

fn provenance_of(
    elf: &Elf,
    debug: &DebugFiles,
    learned: &Learned,
    options: &Options,
) -> Provenance {
    let mut hash = Xxh3::new();
    hash.update(&FORMAT.to_le_bytes());
    hash.update(&debug.identity().to_le_bytes());
    hash.update(&elf.bytes().len().to_le_bytes());
    hash.update(format!("{:?}", options.sites).as_bytes());
    // All of what ships inside: to select from it would take longer than all else that is asked before a program starts.
    hash.update(config::built_in_meaning().as_bytes());
    let config = options.config.selected_for(elf);
    if !config.is_empty() {
        hash.update(config.meaning().as_bytes());
    }
    Provenance {
        build_id: elf.identity().to_vec(),
        inputs: hash.digest(),
        learned: learned.digest(),
    }
}

fn file_name(elf: &Elf, provenance: &Provenance) -> String {
    format!(
        "{}-{FORMAT}-{}.image",
        hex(elf.identity()),
        hex(&provenance.bytes())
    )
}

fn short_name(elf: &Elf) -> String {
    format!("{}-{FORMAT}.image", hex(elf.identity()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What an image has to be made from.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    /// From what it would be made from now.
    Exactly,
    /// From that and no less than was learned, of files that are not all known.
    NoLess(&'a Learned),
    /// From whatever there is of its file.
    Any,
}

/// Loads a cached image if it is of the file that its name says, and made from what is wanted.
fn load(path: &Path, provenance: &Provenance, wanted: Wanted<'_>) -> Option<LoadedImage> {
    let bytes = FileBytes::open(path).ok()?;
    let found = match bytes {
        FileBytes::Mapped(_) => LoadedImage::new(
            ImageBytes::Mapped(bytes),
            Origin::Cached(path.to_owned()),
            Vec::new(),
        )
        .ok()?,
        FileBytes::Owned(_) => return None, // an empty file
    };
    let image = found.image();
    let is_wanted = match wanted {
        Wanted::Exactly => image.header().provenance == provenance.bytes(),
        Wanted::NoLess(learned) => is_made_alike(&image, provenance) && learned.is_in(&image),
        Wanted::Any => true,
    };
    let matches = is_of(&image, &provenance.build_id) && is_wanted;
    matches.then_some(found)
}

/// Whether all that an image was made from is that, but for what was learned of other files.
fn is_made_alike(image: &Image<'_>, provenance: &Provenance) -> bool {
    image
        .header()
        .provenance
        .starts_with(&provenance.inputs.to_le_bytes())
}

/// Images keep the first 20 bytes of a build ID.
fn is_of(image: &Image<'_>, build_id: &[u8]) -> bool {
    image.build_id() == build_id.get(..build_id.len().min(20)).unwrap_or(&[])
}

fn embedded(elf: &Elf) -> Option<LoadedImage> {
    let section = elf.section(SECTION)?;
    let found =
        LoadedImage::from_slice(elf.stored_bytes(section), Origin::Embedded, Vec::new()).ok()?;
    is_of(&found.image(), elf.identity()).then_some(found)
}

/// Writes a file so that readers see all of it or nothing.
fn store(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    write_whole(path, bytes, 0o600)
}

/// Makes `link` lead to the image just made: the runtime finds it there when nobody has told it which is up to date.
fn point_to(image: &Path, link: &Path) {
    let temporary = image.with_extension("link");
    // Without the link, a program that was only preloaded does not know its types.
    let _ = std::os::unix::fs::symlink(image, &temporary)
        .and_then(|()| fs::rename(&temporary, link))
        .inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        });
}

fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.{number}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // Best effort: a full disk should not also keep the remains.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Writes a copy of the file that carries its own image to `out`.
///
/// The image goes into a section that is not loaded, behind everything else in the file, so that the
/// program runs as before and `strip` can remove it.
///
/// # Errors
/// [`CacheError`], also when the file already carries an image.
pub fn embed(
    elf: &Elf,
    learned: &Learned,
    out: &Path,
    options: &Options,
) -> Result<(), CacheError> {
    if elf.section(SECTION).is_some() {
        return Err(CacheError::Embed("it has an image already"));
    }
    let debug = DebugFiles::find(elf, &options.search);
    let provenance = provenance_of(elf, &debug, learned, options);
    let image = make(elf, &debug, learned, options, &provenance, &|_| {}).bytes;
    let bytes = crate::elf::with_section(elf, SECTION, &image).ok_or(CacheError::Embed(
        "its section headers are damaged or absent",
    ))?;
    let mode = elf.path().and_then(|path| fs::metadata(path).ok());
    let mode = mode.map_or(0o755, |metadata| {
        std::os::unix::fs::PermissionsExt::mode(&metadata.permissions())
    });
    write_whole(out, &bytes, mode & 0o7777).map_err(|source| CacheError::Write {
        path: out.to_owned(),
        source,
    })
}
