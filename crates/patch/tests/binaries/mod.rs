//! *Which real code do the tests read?* The programs and libraries of the system that are there,
//! with their executable sections and the entries of their functions.
#![allow(dead_code, unreachable_pub, missing_docs)] // each test uses its own part

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

const LIBRARIES: &[&str] = &[
    "libc.so.6",
    "ld-linux-x86-64.so.2",
    "libstdc++.so.6",
    "libcrypto.so.3",
    "libsqlite3.so.0",
    "libm.so.6",
    "libpython3.11.so.1.0",
    "libgmp.so.10",
];

const PROGRAMS: &[&str] = &[
    "perl",
    "python3.11",
    "bash",
    "git",
    "sqlite3",
    "gdb",
    "gzip",
];

/// The names looked for and, of those that are there, the paths.
pub fn paths() -> Vec<PathBuf> {
    let folders = [
        "/lib/x86_64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu",
        "/lib64",
        "/usr/lib64",
    ];
    let libraries = LIBRARIES.iter().filter_map(|name| {
        folders
            .iter()
            .map(|f| Path::new(f).join(name))
            .find(|p| p.exists())
    });
    let programs = PROGRAMS
        .iter()
        .map(|name| Path::new("/usr/bin").join(name))
        .filter(|p| p.exists());
    let paths: Vec<_> = libraries.chain(programs).collect();
    assert!(
        paths.iter().any(|p| p.ends_with("libc.so.6")),
        "no libc.so.6 to read"
    );
    paths
}

/// A stretch of code and what is known of it.
pub struct Text {
    pub name: String,
    pub at: u64,
    pub bytes: Vec<u8>,
}

pub struct Binary {
    pub path: PathBuf,
    pub texts: Vec<Text>,
    /// Entries of functions and, where the symbol or FDE tells, their lengths.
    pub functions: Vec<(u64, u64)>,
    /// Addresses of named functions.
    pub symbols: BTreeMap<String, u64>,
}

pub fn read(path: &Path) -> Binary {
    let data = std::fs::read(path).expect("a readable file");
    let file = object::File::parse(&*data).expect("an ELF file");
    let texts = file
        .sections()
        .filter(|s| s.kind() == SectionKind::Text)
        .filter_map(|s| {
            Some(Text {
                name: s.name().ok()?.to_owned(),
                at: s.address(),
                bytes: s.data().ok()?.to_vec(),
            })
        })
        .collect();
    let mut functions: BTreeSet<(u64, u64)> = file
        .symbols()
        .chain(file.dynamic_symbols())
        .filter(|s| s.kind() == SymbolKind::Text && s.is_definition() && s.size() > 0)
        .map(|s| (s.address(), s.size()))
        .collect();
    if let Some(section) = file.section_by_name(".eh_frame") {
        functions.extend(fdes(section.data().unwrap_or_default(), section.address()));
    }
    let symbols = file
        .symbols()
        .chain(file.dynamic_symbols())
        .filter(|s| s.kind() == SymbolKind::Text && s.is_definition())
        .filter_map(|s| Some((s.name().ok()?.to_owned(), s.address())))
        .collect();
    Binary {
        path: path.to_owned(),
        texts,
        functions: functions.into_iter().collect(),
        symbols,
    }
}

/// The ranges of all FDEs with pc-relative 4-byte pointers, which is all that linkers write.
fn fdes(data: &[u8], at: u64) -> Vec<(u64, u64)> {
    let word = |o: usize| {
        data.get(o..o + 4)
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
    };
    let mut found = Vec::new();
    let mut offset = 0;
    while let (Some(len), Some(id)) = (word(offset), word(offset + 4)) {
        if len == 0 || len == u32::MAX {
            break;
        }
        if id != 0
            && let (Some(start), Some(size)) = (word(offset + 8), word(offset + 12))
        {
            let start = (at + offset as u64 + 8).wrapping_add(i64::from(start as i32) as u64);
            found.push((start, u64::from(size)));
        }
        offset += 4 + len as usize;
    }
    found
}
