//! *Where is the index of a running process?*
//!
//! Found from outside, and read without anything running in the process:
//!
//! ```text
//!   /proc/PID/maps ─ memfd:pointee ─▶ the file itself, through map_files or a descriptor that its supervisor holds;
//!                  │                  the tables through the process's memory, if they are private to it
//!                  │                  ▶ else all through the process's memory
//!                  └ libpointee*.so ─▶ symbol pointee_index {magic, base, length} ─▶ the process's memory
//! ```

use crate::memory::{DividedRegion, ProcessMemory, ProcessRegion, Region, RegionFile};
use crate::process::ProcessData;
use object::{Object, ObjectSymbol};
use pointee_index::Index;
use pointee_index::layout::MAGIC;
use pointee_model::addr::RunAddr;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Name of the region's file in `/proc/PID/maps`.
const REGION_FILE: &str = "/memfd:pointee (deleted)";

/// Why a process's index is not found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// There is no such process.
    #[error("there is no process {0}")]
    NoProcess(u32),
    /// It may not be read.
    #[error("process {pid} may not be read")]
    NotPermitted {
        /// Which.
        pid: u32,
        /// The system's reason.
        source: io::Error,
    },
    /// It has none.
    #[error("process {0} is not recorded: start it with `pointee run`")]
    NotRecorded(u32),
    /// It has one that cannot be read.
    #[error("index of process {pid}")]
    Open {
        /// Which.
        pid: u32,
        /// What is wrong with it.
        source: pointee_index::read::OpenError,
    },
}

/// One line of `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// First byte.
    pub start: RunAddr,
    /// One past the last.
    pub end: RunAddr,
    /// `rwxp`.
    pub permissions: String,
    /// Offset in the file.
    pub offset: u64,
    /// Number of the file; 0 for none.
    pub inode: u64,
    /// Path, `[heap]` or empty.
    pub path: String,
}

/// The mappings of a process.
///
/// # Errors
/// When there is no such process, or it may not be looked at.
pub fn mappings(pid: u32) -> io::Result<Vec<Mapping>> {
    let text = fs::read(format!("/proc/{pid}/maps"))?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().filter_map(mapping).collect())
}

fn mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?.to_owned();
    let offset = fields.next()?;
    fields.next()?;
    let inode = fields.next()?;
    let path = fields.next().unwrap_or("").trim_start();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    Some(Mapping {
        start: RunAddr(hex(start)?),
        end: RunAddr(hex(end)?),
        permissions,
        offset: hex(offset)?,
        inode: inode.parse().ok()?,
        path: path.to_owned(),
    })
}

/// Finds and opens the index of `pid`.
///
/// # Errors
/// [`FindError`].
pub fn open(pid: u32) -> Result<Index<Region>, FindError> {
    let mappings = mappings(pid).map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound {
            FindError::NoProcess(pid)
        } else {
            FindError::NotPermitted { pid, source }
        }
    })?;
    let regions = [
        shared_region(pid, &mappings),
        private_region(pid, &mappings),
    ];
    let mut failure = FindError::NotRecorded(pid);
    for region in regions {
        match region {
            Ok(None) => {}
            Err(source) => failure = FindError::NotPermitted { pid, source },
            Ok(Some(region)) => match Index::open(region) {
                Ok(index) => return Ok(index),
                Err(source) => failure = FindError::Open { pid, source },
            },
        }
    }
    Err(failure)
}

fn shared_region(pid: u32, mappings: &[Mapping]) -> io::Result<Option<Region>> {
    let first = mappings
        .iter()
        .find(|mapping| mapping.path == REGION_FILE && mapping.offset == 0);
    let Some(first) = first else { return Ok(None) };
    let in_process = || {
        let memory = ProcessMemory::open(pid)?;
        let len = mapped_from(first.start, mappings);
        Ok::<_, io::Error>(ProcessRegion::new(memory, first.start, len))
    };
    let Some(file) = region_file(pid, first) else {
        return Ok(Some(Region::Process(in_process()?)));
    };
    let file = RegionFile::new(file)?;
    Ok(Some(match private_tables(&file) {
        None => Region::File(file),
        Some(tables) => Region::Divided(DividedRegion::new(file, in_process()?, tables)),
    }))
}

/// Where the tables begin, if they are not in the file, which is as long as if they were.
fn private_tables(file: &RegionFile) -> Option<u64> {
    let index = Index::open(file).ok()?;
    index.has_private_tables().then(|| index.layout().tables)
}

/// The file behind a mapping: the file tells its holes, a process's memory only with effort.
fn region_file(pid: u32, mapping: &Mapping) -> Option<File> {
    let range = format!("{:x}-{:x}", mapping.start.0, mapping.end.0);
    // Needs a capability; whoever has none finds the descriptor of the supervisor, mostly the parent.
    File::open(format!("/proc/{pid}/map_files/{range}"))
        .ok()
        .or_else(|| {
            ancestors(pid)
                .chain(all_processes())
                .find_map(|holder| held(holder, mapping.inode))
        })
}

fn ancestors(pid: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(parent(pid), |pid| parent(*pid)).take(64)
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, also parentheses.
    let rest = &stat[stat.rfind(')')? + 1..];
    let parent = rest.split_whitespace().nth(1)?.parse().ok()?;
    (parent != 0).then_some(parent)
}

fn all_processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The region's file among the descriptors of process `holder`.
fn held(holder: u32, inode: u64) -> Option<File> {
    for entry in fs::read_dir(format!("/proc/{holder}/fd")).ok()? {
        let path = entry.ok()?.path();
        let is_region = fs::read_link(&path).is_ok_and(|target| target.as_os_str() == REGION_FILE);
        if is_region && fs::metadata(&path).is_ok_and(|metadata| metadata.ino() == inode) {
            return File::open(&path).ok();
        }
    }
    None
}

fn private_region(pid: u32, mappings: &[Mapping]) -> io::Result<Option<Region>> {
    let is_runtime = |mapping: &&Mapping| {
        let name = mapping.path.rsplit('/').next().unwrap_or("");
        mapping.offset == 0 && name.starts_with("libpointee") && name.contains(".so")
    };
    let Some(runtime) = mappings.iter().find(is_runtime) else {
        return Ok(None);
    };
    let path = PathBuf::from(format!("/proc/{pid}/root{}", runtime.path));
    let Some(symbol) = fs::read(path).ok().and_then(|bytes| beacon(&bytes)) else {
        return Ok(None);
    };
    let memory = ProcessMemory::open(pid)?;
    let mut bytes = [0; 24];
    // The library is linked at 0, so its first mapping lies at its load bias.
    if !memory.read_at(runtime.start.plus(symbol), &mut bytes) {
        return Ok(None);
    }
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let (magic, base, len) = (word(0), word(8), word(16));
    if magic != MAGIC || len >> 47 != 0 {
        return Ok(None);
    }
    let base = RunAddr(base);
    Ok(Some(Region::Process(ProcessRegion::new(
        memory,
        base,
        len.min(mapped_from(base, mappings)),
    ))))
}

/// Bytes that are mapped from `base` on without a gap: what a process says of its region's length is not believed.
fn mapped_from(base: RunAddr, mappings: &[Mapping]) -> u64 {
    let mut end = base;
    for mapping in mappings {
        if mapping.start <= end && end < mapping.end {
            end = mapping.end;
        }
    }
    end.offset_from(base).unwrap_or(0)
}

/// Link-time address of the exported symbol that says where the region lies.
fn beacon(bytes: &[u8]) -> Option<u64> {
    let file = object::File::parse(bytes).ok()?;
    file.dynamic_symbols()
        .find(|symbol| symbol.name() == Ok("pointee_index"))
        .map(|symbol| symbol.address())
}

/// Says so if the index found in process `pid` is another process's: a child that is not recorded
/// still has its parent's mapped.
#[must_use]
pub fn is_of_another(pid: u32, data: &ProcessData) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .and_then(|ids| ids.split_whitespace().next_back()?.parse::<u32>().ok());
    own.is_some_and(|own| own != data.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lines_are_read() {
        let line = "7f00-7fff r-xp 00001000 08:01 42                         /a b (deleted)";
        let expect = Mapping {
            start: RunAddr(0x7f00),
            end: RunAddr(0x7fff),
            permissions: "r-xp".to_owned(),
            offset: 0x1000,
            inode: 42,
            path: "/a b (deleted)".to_owned(),
        };
        assert_eq!(mapping(line), Some(expect));
        let anonymous = mapping("10-20 rw-p 00000000 00:00 0");
        assert_eq!(anonymous.map(|mapping| mapping.path), Some(String::new()));
        for damaged in ["", "10 rw-p 0 00:00 0", "10-zz rw-p 0 00:00 0", "10-20"] {
            assert_eq!(mapping(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn the_parent_is_found_whatever_the_name() {
        assert_eq!(
            parent(std::process::id()),
            Some(std::os::unix::process::parent_id())
        );
    }
}
