//! *Where are the files that a file needs?*
//!
//! ```text
//!   a name with a slash          that path
//!   DT_RPATH, without RUNPATH    of the file that needs it, and of the first file
//!   LD_LIBRARY_PATH
//!   DT_RUNPATH                   of the file that needs it
//!   /etc/ld.so.cache             as ldconfig(8) left it
//!   the usual folders
//! ```
//!
//! As ld.so(8) looks for them, without running it: it maps what it is given, and that may be anybody's. Libraries that analysis knows by
//! name ([`is_modelled_library`]) are passed over.

use crate::elf::Elf;
use object::elf::{DT_RPATH, DT_RUNPATH};
use pointee_model::entries::is_modelled_library;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Files of one program at most.
const MOST: usize = 1024;

/// Opens the files that `elf` needs, and those that they need, in the order in which the dynamic linker would load them. Those that are
/// nowhere are left out.
#[must_use]
pub fn find(elf: &Elf) -> Vec<Elf> {
    let given = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let given: Vec<PathBuf> = std::env::split_paths(&given).collect();
    let cache = std::fs::read("/etc/ld.so.cache").unwrap_or_default();
    let mut known: HashSet<String> = HashSet::new();
    let mut found: Vec<Elf> = Vec::new();
    let mut next = None;
    loop {
        let whose = match next {
            None => elf,
            Some(at) => match found.get(at) {
                Some(elf) => elf,
                None => return found,
            },
        };
        let mut new = Vec::new();
        for name in whose.needed() {
            let last = name.rsplit('/').next().unwrap_or(name);
            if !is_modelled_library(last) && known.insert(name.to_owned()) {
                let places = places(name, whose, elf, &given, &cache);
                new.extend(places.into_iter().find_map(|path| open(&path, elf)));
            }
        }
        found.extend(new.into_iter().take(MOST.saturating_sub(found.len())));
        next = Some(next.map_or(0, |at| at + 1));
    }
}

/// Where `name`, which `whose` needs, may lie, the best place first.
fn places(name: &str, whose: &Elf, first: &Elf, given: &[PathBuf], cache: &[u8]) -> Vec<PathBuf> {
    if name.contains('/') {
        return vec![PathBuf::from(name)];
    }
    let mut folders: Vec<PathBuf> = Vec::new();
    let behind = folders_of(whose, whose.run_paths(DT_RUNPATH));
    if behind.is_empty() {
        folders.extend(folders_of(whose, whose.run_paths(DT_RPATH)));
        folders.extend(folders_of(first, first.run_paths(DT_RPATH)));
    }
    folders.extend(given.iter().cloned());
    folders.extend(behind);
    let usual = USUAL.iter().map(|folder| Path::new(folder).join(name));
    let named = folders.iter().map(|folder| folder.join(name));
    named.chain(in_cache(cache, name)).chain(usual).collect()
}

const USUAL: [&str; 6] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

/// The folders of a run path; `$ORIGIN` is where the file lies that states it.
fn folders_of<'p>(whose: &Elf, paths: impl Iterator<Item = &'p str>) -> Vec<PathBuf> {
    let origin = whose
        .path()
        .and_then(|path| std::fs::canonicalize(path).ok());
    let origin = origin
        .as_deref()
        .and_then(Path::parent)
        .and_then(Path::to_str);
    let folders = paths.flat_map(|path| path.split(':'));
    let folders = folders
        .filter(|folder| !folder.is_empty())
        .filter_map(|folder| {
            let folder = match origin {
                Some(origin) => folder
                    .replace("${ORIGIN}", origin)
                    .replace("$ORIGIN", origin),
                None => folder.to_owned(),
            };
            (!folder.contains('$')).then(|| PathBuf::from(folder))
        });
    folders.collect()
}

/// Opens a library that code like that of `first` can use.
fn open(path: &Path, first: &Elf) -> Option<Elf> {
    let is_file = std::fs::metadata(path).is_ok_and(|it| it.is_file());
    let elf = is_file.then(|| Elf::open(path).ok()).flatten()?;
    (elf.machine() == first.machine()).then_some(elf)
}

/// Where `ld.so.cache` says that a library for x86-64 lies (glibc, `sysdeps/generic/dl-cache.h`: a header of 48 bytes, entries of 24, strings that
/// both count from the header's start).
fn in_cache(cache: &[u8], name: &str) -> Option<PathBuf> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    /// `FLAG_X8664_LIB64 | FLAG_ELF_LIBC6`.
    const X86_64: u32 = 0x0303;
    // Older ones have a table of an older form in front.
    let start = cache.windows(MAGIC.len()).position(|at| at == MAGIC)?;
    let cache = &cache[start..];
    let word = |at: usize| Some(u32::from_le_bytes(cache.get(at..at + 4)?.try_into().ok()?));
    let text = |at: u32| {
        let rest = cache.get(at as usize..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&rest[..end]).ok()
    };
    let count = (word(20)? as usize).min(cache.len() / 24);
    let path = |at: usize| {
        let entry = 48 + at * 24;
        let is_it = word(entry)? == X86_64 && text(word(entry + 4)?)? == name;
        // Those of processors that are better than any are in folders of their own.
        let is_plain = word(entry + 16)? == 0 && word(entry + 20)? == 0;
        (is_it && is_plain)
            .then(|| text(word(entry + 8)?))
            .flatten()
    };
    (0..count).find_map(path).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache with these entries: flags, name, path.
    fn cache(entries: &[(u32, &str, &str)]) -> Vec<u8> {
        let mut strings = Vec::new();
        let mut table = Vec::new();
        let first = 48 + 24 * entries.len();
        for (flags, name, path) in entries {
            let mut put = |text: &str| {
                let at = u32::try_from(first + strings.len()).expect("short");
                strings.extend_from_slice(text.as_bytes());
                strings.push(0);
                at.to_le_bytes()
            };
            let (name, path) = (put(name), put(path));
            for word in [flags.to_le_bytes(), name, path, [0; 4], [0; 4], [0; 4]] {
                table.extend_from_slice(&word);
            }
        }
        let count = u32::try_from(entries.len()).expect("few").to_le_bytes();
        let mut cache = b"glibc-ld.so.cache1.1".to_vec();
        cache.extend_from_slice(&count);
        cache.resize(48, 0);
        [cache, table, strings].concat()
    }

    #[test]
    fn caches() {
        let entries = [
            (3, "libone.so.1", "/lib32/libone.so.1"),
            (0x303, "libone.so.1", "/lib/libone.so.1"),
            (0x303, "libtwo.so", "/opt/libtwo.so"),
        ];
        let whole = cache(&entries);
        let older = [b"ld.so-1.7.0 and more ".to_vec(), whole.clone()].concat();
        let rows: [(&[u8], &str, Option<&str>); 6] = [
            (&whole, "libone.so.1", Some("/lib/libone.so.1")),
            (&whole, "libtwo.so", Some("/opt/libtwo.so")),
            (&older, "libtwo.so", Some("/opt/libtwo.so")),
            (&whole, "libone.so", None),
            (&whole[..60], "libone.so.1", None),
            (b"", "libone.so.1", None),
        ];
        for (cache, name, expect) in rows {
            assert_eq!(in_cache(cache, name), expect.map(PathBuf::from), "{name}");
        }
    }
}
