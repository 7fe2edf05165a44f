//! *Where is the debug info of a file?*
//!
//! ```text
//!   the file itself                     .debug_info
//!   else, by build ID                   ROOT/.build-id/xx/yyyy.debug
//!   else, by .gnu_debuglink (CRC)       DIR/name, DIR/.debug/name, ROOT/DIR/name
//!   else, where servers are configured  debuginfod, by build ID
//!   shared by several (dwz)             .gnu_debugaltlink, .debug_sup: path, else build ID under ROOT
//!   split by the compiler               FILE.dwp, else COMP_DIR/name.dwo, DIR/name.dwo
//!   symbols only                        .gnu_debugdata (xz) inside the file
//! ```
//!
//! A candidate counts only when what ties it to the file (build ID or checksum) agrees. Nothing is fetched
//! unless servers are configured.

use crate::debuginfod::Servers;
use crate::elf::{Elf, unpack_xz};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Unpacked mini debug info is a symbol table; the largest known (chromium) has some 20 MB.
const MAX_SYMBOLS_ONLY: usize = 256 << 20;

/// Where separate debug files are searched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// Debug roots, in order of preference.
    pub roots: Vec<PathBuf>,
    /// Servers that are asked last.
    pub servers: Servers,
}

impl Default for Search {
    /// `/usr/lib/debug`, and the servers that the environment names.
    fn default() -> Self {
        Self {
            roots: vec![PathBuf::from("/usr/lib/debug")],
            servers: Servers::from_environment(),
        }
    }
}

/// The files that hold the debug info of one ELF file.
#[derive(Debug, Default)]
pub struct DebugFiles {
    /// A separate debug file; `None` when the file holds its own debug info or there is none.
    pub debug: Option<Elf>,
    /// The dwz file that several debug files share.
    pub alternate: Option<Elf>,
    /// Unpacked `.gnu_debugdata`: a symbol table and nothing else.
    pub symbols_only: Option<Elf>,
    /// A `.dwp` file.
    pub package: Option<Elf>,
    /// Where `.dwo` files are looked for besides their compilation directory; `None`: nowhere.
    pub split_base: Option<PathBuf>,
}

impl DebugFiles {
    /// Finds everything that belongs to `elf`.
    #[must_use]
    pub fn find(elf: &Elf, search: &Search) -> Self {
        let debug = if has_debug_info(elf) {
            None
        } else {
            by_build_id(elf.build_id(), &search.roots)
                .or_else(|| by_link(elf, &search.roots))
                .or_else(|| by_server(elf.build_id(), &search.servers))
        };
        let holder = debug.as_ref().unwrap_or(elf);
        let alternate = alternate(holder, &search.roots);
        let package = package_of(elf).or_else(|| debug.as_ref().and_then(package_of));
        Self {
            debug,
            alternate,
            symbols_only: symbols_only(elf),
            package,
            split_base: elf.path().and_then(Path::parent).map(Path::to_owned),
        }
    }

    /// What the file holds in itself; opens no other file.
    #[must_use]
    pub fn inside(elf: &Elf) -> Self {
        Self {
            symbols_only: symbols_only(elf),
            ..Self::default()
        }
    }

    /// Whether nothing was found beside the file itself.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.debug.is_none() && self.symbols_only.is_none()
    }

    /// A hash of which debug files were found, so that installing one changes it. Build IDs and
    /// lengths are looked at, not contents.
    #[must_use]
    pub fn identity(&self) -> u128 {
        let mut hash = Xxh3::new();
        let files = [
            &self.debug,
            &self.alternate,
            &self.symbols_only,
            &self.package,
        ];
        for (number, file) in (0_u8..).zip(files) {
            if let Some(file) = file {
                hash.update(&[number]);
                hash.update(file.build_id());
                hash.update(&file.bytes().len().to_le_bytes());
            }
        }
        hash.digest128()
    }

    /// Opens the `.dwo` file that a skeleton unit names.
    pub(crate) fn open_split(&self, comp_dir: &[u8], name: &[u8]) -> Option<Elf> {
        let base = self.split_base.as_ref()?;
        let name = Path::new(OsStr::from_bytes(name));
        let file_name = name.file_name()?;
        [
            Path::new(OsStr::from_bytes(comp_dir)).join(name),
            base.join(name),
            base.join(file_name),
        ]
        .iter()
        .find_map(|path| Elf::open(path).ok())
    }
}

/// Whether there is DWARF of a file, in it or beside it.
#[must_use]
pub fn has_any(elf: &Elf, search: &Search) -> bool {
    has_debug_info(elf) || DebugFiles::find(elf, search).debug.is_some()
}

/// Whether DWARF is in the file itself.
fn has_debug_info(elf: &Elf) -> bool {
    [".debug_info", ".zdebug_info"].iter().any(|name| {
        elf.section(name)
            .is_some_and(|section| !section.file.is_empty())
    })
}

fn by_build_id(id: &[u8], roots: &[PathBuf]) -> Option<Elf> {
    let (first, rest) = id.split_first()?;
    if rest.is_empty() {
        return None;
    }
    let relative = format!(".build-id/{}/{}.debug", hex(&[*first]), hex(rest));
    roots.iter().find_map(|root| {
        let found = Elf::open(root.join(&relative)).ok()?;
        (found.build_id() == id).then_some(found)
    })
}

fn by_server(id: &[u8], servers: &Servers) -> Option<Elf> {
    let found = Elf::open(servers.debug_file(&hex(id))?).ok()?;
    (found.build_id() == id).then_some(found)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn by_link(elf: &Elf, roots: &[PathBuf]) -> Option<Elf> {
    let link = elf.section_bytes(".gnu_debuglink").ok()??;
    let end = link.iter().position(|byte| *byte == 0)?;
    let name = link.get(..end)?;
    // A link names a file, not a path: it must not lead out of the folders searched.
    if name.is_empty() || name.contains(&b'/') || name == b".." {
        return None;
    }
    let crc_at = (end + 1).next_multiple_of(4);
    let crc = u32::from_le_bytes(link.get(crc_at..crc_at + 4)?.try_into().ok()?);
    let path = elf.path()?.canonicalize().ok()?;
    let directory = path.parent()?;
    let name = OsStr::from_bytes(name);
    let below_roots = roots.iter().map(|root| {
        root.join(directory.strip_prefix("/").unwrap_or(directory))
            .join(name)
    });
    [directory.join(name), directory.join(".debug").join(name)]
        .into_iter()
        .chain(below_roots)
        .filter(|candidate| *candidate != path)
        .find_map(|candidate| {
            let found = Elf::open(candidate).ok()?;
            let mut found_crc = flate2::Crc::new();
            found_crc.update(found.bytes());
            (found_crc.sum() == crc).then_some(found)
        })
}

fn alternate(elf: &Elf, roots: &[PathBuf]) -> Option<Elf> {
    let (path, id) = gnu_alternate(elf).or_else(|| standard_alternate(elf))?;
    if id.is_empty() {
        return None;
    }
    let path = Path::new(OsStr::from_bytes(&path)).to_owned();
    let named = elf
        .path()
        .and_then(Path::parent)
        .and_then(|directory| Elf::open(directory.join(&path)).ok())
        .filter(|found| found.build_id() == id);
    named.or_else(|| by_build_id(&id, roots))
}

/// `.gnu_debugaltlink`: path, NUL, build ID.
fn gnu_alternate(elf: &Elf) -> Option<(Vec<u8>, Vec<u8>)> {
    let link = elf.section_bytes(".gnu_debugaltlink").ok()??;
    let end = link.iter().position(|byte| *byte == 0)?;
    Some((link.get(..end)?.to_vec(), link.get(end + 1..)?.to_vec()))
}

/// `.debug_sup` (DWARF 5, 7.3.6): version, whether this *is* the supplement, path, NUL, length and bytes of an ID.
fn standard_alternate(elf: &Elf) -> Option<(Vec<u8>, Vec<u8>)> {
    let link = elf.section_bytes(".debug_sup").ok()??;
    let (head, rest) = link.split_first_chunk::<3>()?;
    if *head != [5, 0, 0] {
        return None;
    }
    let end = rest.iter().position(|byte| *byte == 0)?;
    let (len, id) = rest.get(end + 1..)?.split_first()?;
    // Lengths of 128 and more would take a second byte; no checksum is that long.
    let id = id.get(..usize::from(*len))?;
    Some((rest.get(..end)?.to_vec(), id.to_vec()))
}

fn symbols_only(elf: &Elf) -> Option<Elf> {
    let packed = elf.section_bytes(".gnu_debugdata").ok()??;
    Elf::from_bytes(unpack_xz(&packed, MAX_SYMBOLS_ONLY)?).ok()
}

fn package_of(elf: &Elf) -> Option<Elf> {
    let mut path = elf.path()?.as_os_str().to_owned();
    path.push(".dwp");
    Elf::open(PathBuf::from(path)).ok()
}
