//! *Which file will run, and how can the runtime come into it?*
//!
//! The search is `execvp`'s. The runtime is preloaded, or mapped into a statically linked program. A program is run without it where
//! that would do nothing or do harm: other C libraries, set-user-id programs, and those built
//! with a sanitizer, which insists on being loaded first. A script is as its interpreter is.

use object::elf::{DT_NEEDED, EM_X86_64, FileHeader64, PT_INTERP};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, ReadCache, ReadRef};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A program that was found.
#[derive(Debug)]
pub(crate) struct Program {
    /// What to execute.
    pub(crate) path: PathBuf,
    /// How the runtime comes into it.
    pub(crate) way: Way,
}

impl Program {
    /// The file whose code runs, if the runtime comes into it.
    pub(crate) fn seen_file(&self) -> Option<&Path> {
        match &self.way {
            Way::Preloaded => Some(&self.path),
            Way::Mapped(file) => Some(file),
            Way::Unseen(_) => None,
        }
    }
}

/// How the runtime comes into a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// The dynamic linker loads it.
    Preloaded,
    /// The command maps it into this statically linked program, before that begins.
    Mapped(PathBuf),
    /// Not at all, for this reason.
    Unseen(String),
}

/// Why there is nothing to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotRunnable {
    NotFound,
    NotExecutable,
}

/// Finds `name` as `execvp` does.
fn find(name: &OsStr) -> Result<Program, NotRunnable> {
    let path = search(name)?;
    let way = way_into(&path, 0).unwrap_or_else(Way::Unseen);
    Ok(Program { path, way })
}

/// As [`find`]; ends this process where there is nothing to run.
pub(crate) fn find_or_end(name: &OsStr) -> Program {
    find(name).unwrap_or_else(|why| end_not_runnable(name, why))
}

/// Ends this process as a shell does that cannot run `name`.
pub(crate) fn end_not_runnable(name: &OsStr, why: NotRunnable) -> ! {
    let (text, status) = match why {
        NotRunnable::NotFound => ("No such file or directory", 127),
        NotRunnable::NotExecutable => ("Permission denied", 126),
    };
    eprintln!("pointee: {}: {text}", name.display());
    std::process::exit(status)
}

fn search(name: &OsStr) -> Result<PathBuf, NotRunnable> {
    if name.as_bytes().contains(&b'/') {
        return runnable(Path::new(name)).map(|()| PathBuf::from(name));
    }
    // What glibc searches when PATH is not set (confstr _CS_PATH).
    let folders = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let mut failure = NotRunnable::NotFound;
    for folder in folders.as_bytes().split(|byte| *byte == b':') {
        let folder = if folder.is_empty() { b"." } else { folder };
        let path = Path::new(OsStr::from_bytes(folder)).join(name);
        match runnable(&path) {
            Ok(()) if !name.is_empty() => return Ok(path),
            Err(NotRunnable::NotExecutable) => failure = NotRunnable::NotExecutable,
            _ => {}
        }
    }
    Err(failure)
}

fn runnable(path: &Path) -> Result<(), NotRunnable> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            NotRunnable::NotExecutable
        } else {
            NotRunnable::NotFound
        }
    })?;
    let may = nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok();
    if metadata.is_file() && may {
        Ok(())
    } else {
        Err(NotRunnable::NotExecutable)
    }
}

/// `Err` with the reason when the runtime is to stay out.
fn way_into(path: &Path, depth: u32) -> Result<Way, String> {
    let Ok(mut file) = File::open(path) else {
        return Err("the program's file cannot be read".to_owned());
    };
    refuse_set_id(&file)?;
    let mut head = [0; 256];
    let read = file.read(&mut head).unwrap_or(0);
    match &head[..read] {
        [0x7f, b'E', b'L', b'F', ..] => way_into_elf(path, file),
        // The kernel follows interpreters of interpreters four deep.
        [b'#', b'!', line @ ..] if depth < 5 => match interpreter(line) {
            Some(interpreter) => way_into(&interpreter, depth + 1),
            None => Err("the script names no interpreter".to_owned()),
        },
        // Not a format the kernel knows: `execvp` gives it to the shell.
        _ => way_into(Path::new("/bin/sh"), depth + 1),
    }
}

fn refuse_set_id(file: &File) -> Result<(), String> {
    let Ok(metadata) = file.metadata() else {
        return Ok(());
    };
    let mode = metadata.permissions().mode();
    let user = mode & libc::S_ISUID != 0 && metadata.uid() != nix::unistd::geteuid().as_raw();
    let group = mode & libc::S_ISGID != 0 && metadata.gid() != nix::unistd::getegid().as_raw();
    if user || group {
        return Err(
            "the program changes its user or group (set-id): nothing may be put into it".to_owned(),
        );
    }
    Ok(())
}

fn interpreter(line: &[u8]) -> Option<PathBuf> {
    let line = line.split(|byte| *byte == b'\n').next()?;
    let word = line
        .split(|byte| byte.is_ascii_whitespace() || *byte == 0)
        .find(|word| !word.is_empty())?;
    Some(PathBuf::from(OsString::from_vec(word.to_vec())))
}

fn way_into_elf(path: &Path, file: File) -> Result<Way, String> {
    let not_understood = |_| "the program's ELF headers are not understood".to_owned();
    let mut class = [0; 5];
    if file.read_exact_at(&mut class, 0).is_ok() && class[4] != 2 {
        return Err("a 32-bit program".to_owned());
    }
    let cache = ReadCache::new(file);
    let data: &ReadCache<File> = &cache;
    let header = FileHeader64::<Endianness>::parse(data).map_err(not_understood)?;
    let endian = header.endian().map_err(not_understood)?;
    if header.e_machine(endian) != EM_X86_64 {
        return Err("a program for another machine".to_owned());
    }
    let segments = header
        .program_headers(endian, data)
        .map_err(not_understood)?;
    let Some(interpreter) = segments
        .iter()
        .find(|segment| segment.p_type(endian) == PT_INTERP)
    else {
        return Ok(Way::Mapped(path.to_owned()));
    };
    let linker = interpreter.data(endian, data).unwrap_or(&[]);
    let linker = linker.strip_suffix(b"\0").unwrap_or(linker);
    if !linker.ends_with(b"/ld-linux-x86-64.so.2") {
        return Err(format!(
            "not a program of glibc (its dynamic linker is {})",
            String::from_utf8_lossy(linker)
        ));
    }
    if let Some(sanitizer) = needed_sanitizer(segments, endian, data) {
        return Err(format!(
            "built with a sanitizer ({sanitizer}), which has a malloc of its own"
        ));
    }
    Ok(Way::Preloaded)
}

fn needed_sanitizer<'a, R: ReadRef<'a>>(
    segments: &[object::elf::ProgramHeader64<Endianness>],
    endian: Endianness,
    data: R,
) -> Option<String> {
    const NAMES: [&[u8]; 4] = [b"libasan.", b"libtsan.", b"libhwasan.", b"liblsan."];
    let dynamic = segments
        .iter()
        .find_map(|segment| segment.dynamic(endian, data).ok().flatten())?;
    let value = |tag| {
        dynamic
            .iter()
            .find(|entry| entry.d_tag(endian) == tag)
            .map(|entry| entry.d_val(endian))
    };
    let address = value(object::elf::DT_STRTAB)?;
    let len = value(object::elf::DT_STRSZ)?;
    let strings = segments.iter().find_map(|segment| {
        segment
            .data_range(endian, data, address, len)
            .ok()
            .flatten()
    })?;
    let needed = dynamic
        .iter()
        .filter(|entry| entry.d_tag(endian) == DT_NEEDED);
    needed
        .filter_map(|entry| strings.get(usize::try_from(entry.d_val(endian)).ok()?..))
        .map(|name| name.split(|byte| *byte == 0).next().unwrap_or(&[]))
        .find(|name| NAMES.iter().any(|sanitizer| name.starts_with(sanitizer)))
        .map(|name| String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_execvp_finds_them() {
        let rows: [(&str, Result<(), NotRunnable>); 5] = [
            ("true", Ok(())),
            ("/bin/true", Ok(())),
            ("no-such-program-anywhere", Err(NotRunnable::NotFound)),
            ("/no/such/program", Err(NotRunnable::NotFound)),
            ("/", Err(NotRunnable::NotExecutable)),
        ];
        for (name, expect) in rows {
            let found = find(OsStr::new(name)).map(|_| ());
            assert_eq!(found, expect, "{name}");
        }
    }

    #[test]
    fn interpreters_are_read_from_the_first_line() {
        let rows: [(&[u8], Option<&str>); 4] = [
            (b"/bin/sh\n", Some("/bin/sh")),
            (b"  /usr/bin/env perl -w\nrest", Some("/usr/bin/env")),
            (b"\n/bin/sh", None),
            (b"", None),
        ];
        for (line, expect) in rows {
            assert_eq!(interpreter(line).as_deref(), expect.map(Path::new));
        }
    }
}
