//! *Where does the runtime lie as a file?*
//!
//! The command carries `libpointee.so` inside. The dynamic linker needs a path, so it is written once to the
//! user's cache directory, under a name that holds a hash of its contents: an old command
//! and a new one each find their own. Where the cache cannot be written, it goes to a folder that
//! lives as long as the session.

use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The runtime, built by this crate's build script.
static RUNTIME: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libpointee.so"));

/// The runtime's path in the user's cache directory; written there if need be.
pub(crate) fn in_cache() -> Result<PathBuf> {
    let folder = cache_folder().context("neither XDG_CACHE_HOME nor HOME is set")?;
    in_folder(&folder)
}

/// The runtime's path: in the cache, or else in `fallback`.
pub(crate) fn anywhere(fallback: &Path) -> Result<PathBuf> {
    let cached = in_cache();
    cached.or_else(|error| {
        in_folder(fallback).with_context(|| format!("and the cache cannot be used: {error:#}"))
    })
}

/// `$XDG_CACHE_HOME/pointee`, by default `~/.cache/pointee`.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map(|folder| folder.join("pointee"))
}

fn in_folder(folder: &Path) -> Result<PathBuf> {
    if RUNTIME.is_empty() {
        bail!("this command was built without the runtime");
    }
    let path = folder.join(concat!("libpointee-", env!("RUNTIME_HASH"), ".so"));
    // LD_PRELOAD is split at colons and white space (ld.so(8)).
    if path.to_string_lossy().contains([':', ' ', '\t', '\n']) {
        bail!(
            "{} has a character that LD_PRELOAD cannot hold",
            folder.display()
        );
    }
    if fs::File::open(&path).is_ok_and(holds_runtime) {
        return Ok(path);
    }
    write(folder, &path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Whether that is all a file holds. Read in parts: pages of memory for the whole would cost more than the comparison.
fn holds_runtime(mut file: fs::File) -> bool {
    let mut part = [0; 1 << 15];
    let mut expected = RUNTIME;
    loop {
        match file.read(&mut part) {
            Ok(0) => return expected.is_empty(),
            Ok(len) => match expected.strip_prefix(&part[..len]) {
                Some(rest) => expected = rest,
                None => return false,
            },
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// Written beside and renamed: whoever looks sees all of it or nothing.
fn write(folder: &Path, path: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(&beside)
        .and_then(|mut file| {
            file.write_all(RUNTIME)?;
            file.set_permissions(fs::Permissions::from_mode(0o755))
        });
    written
        .and_then(|()| fs::rename(&beside, path))
        .inspect_err(|_| {
            let _ = fs::remove_file(&beside);
        })
}
