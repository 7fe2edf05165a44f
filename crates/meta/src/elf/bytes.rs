//! *Where do the bytes of a file come from, and who keeps them alive?*
//!
//! A file is mapped, not read: of a debug file of a gigabyte only some sections are looked at.
//! Bytes that were unpacked from inside another file, or that came over some other way, are owned.
#![allow(unsafe_code)] // Mapping a file is unsafe by nature; see the one block below.

use memmap2::Mmap;
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

/// The whole contents of one file.
#[derive(Debug)]
pub enum FileBytes {
    /// Mapped read-only.
    Mapped(Mmap),
    /// In memory.
    Owned(Vec<u8>),
}

impl FileBytes {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// Those of opening and mapping; an empty file gives empty bytes.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            // A device or a pipe has no length to map, and reading one may never end.
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        if metadata.len() == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the map is private and read-only. What cannot be proved is that nobody shortens
        // the file meanwhile, which would end this process with SIGBUS; package managers replace
        // files by renaming, and every ELF tool that maps its input (ld.so first) relies on that.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self::Mapped(map))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}
