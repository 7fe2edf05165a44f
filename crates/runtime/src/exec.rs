//! *How does the next program come to be recorded?*
//!
//! The environment given to `execve`, `fexecve`, `execveat` or their system calls by way of `syscall` gets the two variables of [`pointee_index::handoff`] again, in
//! arrays on the stack: after `vfork` this is the parent's memory, and nothing may be left behind in
//! it ([`crate::spare_stack`] has room where the program's stack may not). A program that would see them, or not run as it does without us, gets its environment as it is: other C
//! libraries, sanitized ones, set-user-id ones; and static ones, of which the command is told ([`crate::following`]).

#![allow(unsafe_code)] // Reads the arguments of execve.

use crate::environment::PathBuffer;
use crate::hooks::is_filtered;
use crate::region::{generation, is_disabled, region};
use crate::{following, spare_stack, sys, threads};
use core::ffi::CStr;
use core::sync::atomic::Ordering::Relaxed;
use pointee_index::handoff::{SEPARATOR, VARIABLE, key};
use pointee_index::layout::exit_kind;

/// What names the program that is to run.
#[derive(Clone, Copy)]
pub(crate) enum Named {
    /// A path, as a C string; 0 for none.
    Path(usize),
    /// An open file.
    Descriptor(usize),
    /// A path from an open directory; the open file itself where it is empty.
    At(usize, usize),
}

impl Named {
    /// The path to look at the program by; empty if there is none.
    ///
    /// # Safety
    /// Paths are 0 or C strings.
    unsafe fn path(self) -> PathBuffer {
        const AT_FDCWD: u32 = -100i32 as u32;
        let text = |path: usize| match path {
            0 => &[][..],
            // SAFETY: the caller's promise.
            _ => unsafe { CStr::from_ptr(path as *const i8) }.to_bytes(),
        };
        let below = |fd: usize, rest: &[&[u8]; 2]| {
            let mut number = Text::<16>::new();
            number.push_number(fd as u32);
            let number = &number.bytes[..number.len];
            PathBuffer::of(&[b"/proc/self/fd/", number, rest[0], rest[1]])
        };
        match self {
            Self::Path(path) => PathBuffer::of(&[text(path)]),
            Self::Descriptor(fd) => below(fd, &[b"", b""]),
            Self::At(fd, path) => match text(path) {
                b"" => below(fd, &[b"", b""]),
                path if path[0] == b'/' || fd as u32 == AT_FDCWD => PathBuffer::of(&[path]),
                path => below(fd, &[b"/", path]),
            },
        }
    }
}

/// More variables than this are passed on as they are: there is no room for a copy.
const VARIABLES: usize = 1024;

/// A small buffer of text.
struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
    fits: bool,
}

impl<const N: usize> Text<N> {
    const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
            fits: true,
        }
    }

    fn push(&mut self, part: &[u8]) {
        // The last byte stays NUL.
        match self.bytes[..N - 1].get_mut(self.len..self.len + part.len()) {
            Some(to) => {
                to.copy_from_slice(part);
                self.len += part.len();
            }
            None => self.fits = false,
        }
    }

    fn push_number(&mut self, number: u32) {
        let mut digits = [0; 10];
        let mut at = digits.len();
        let mut rest = number;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.push(&digits[at..]);
    }
}

/// Calls `original` with the environment to use; comes back only if that failed.
///
/// # Safety
/// The arguments are those of an `execve`, or one of its kind.
pub(crate) unsafe fn exec(
    program: Named,
    environment: usize,
    original: impl FnOnce(usize) -> usize,
) -> usize {
    if is_disabled() || is_filtered() {
        return original(environment);
    }
    let exec = |has_room: bool| {
        if has_room {
            // SAFETY: as promised.
            unsafe { noted(program, environment, original) }
        } else {
            // The next program stays unseen.
            original(environment)
        }
    };
    if threads::is_static() {
        spare_stack::run(exec)
    } else {
        exec(true)
    }
}

/// Calls `original` with the environment to use, while it is noted that the process goes on as another program.
///
/// # Safety
/// As for [`exec`].
unsafe fn noted(
    program: Named,
    environment: usize,
    original: impl FnOnce(usize) -> usize,
) -> usize {
    let header = region().header();
    let own = sys::getpid() as u32 == header.pid.load(Relaxed);
    let before = header.exit.load(Relaxed);
    if own {
        header.exit.store(exit_kind::EXEC, Relaxed);
    }
    // SAFETY: as promised.
    let result = unsafe { exec_with(program, environment, own, original) };
    if own {
        header.exit.store(before, Relaxed);
    }
    result
}

/// # Safety
/// As for [`exec`].
unsafe fn exec_with(
    program: Named,
    environment: usize,
    own: bool,
    original: impl FnOnce(usize) -> usize,
) -> usize {
    let handoff = &region().handoff;
    let runtime = handoff.path(key::RUNTIME);
    if runtime.is_empty() || handoff.field(key::FOLLOW) == Some(b"0") {
        return original(environment);
    }
    // SAFETY: execve's path is a C string, its environment NULL or an array of them.
    let path = unsafe { program.path() };
    if path.is_empty() {
        return original(environment);
    }
    let mut variables = [0usize; VARIABLES + 3];
    let mut count = 0;
    let mut preload: Option<&[u8]> = None;
    if environment != 0 {
        loop {
            // SAFETY: up to the terminating NULL.
            let entry = unsafe { *(environment as *const usize).add(count) };
            if entry == 0 {
                break;
            }
            if count == VARIABLES {
                return original(environment);
            }
            // SAFETY: a C string.
            let text = unsafe { CStr::from_ptr(entry as *const i8) }.to_bytes();
            if text.starts_with(VARIABLE.as_bytes()) {
                // Somebody starts a session of its own.
                return original(environment);
            }
            if let Some(value) = text.strip_prefix(b"LD_PRELOAD=") {
                preload = Some(value);
            }
            variables[count] = entry;
            count += 1;
        }
    }
    let generation = if own { generation() + 1 } else { 1 };
    let next = if sys::readable(runtime.as_c_str()) {
        kind_of(path)
    } else {
        Next::Unseen
    };
    match next {
        Next::Preloadable => {}
        Next::Static => {
            let followed = following::ask(generation);
            let result = original(environment);
            if let Some(followed) = followed {
                followed.failed();
            }
            return result;
        }
        Next::Unseen => return original(environment),
    }
    let mut library = Text::<2048>::new();
    library.push(b"LD_PRELOAD=");
    library.push(runtime.as_bytes());
    if let Some(before) = preload {
        library.push(b":");
        library.push(before);
    }
    let mut handed = Text::<4096>::new();
    handed.push(VARIABLE.as_bytes());
    handed.push(b"=");
    for name in [
        key::SOCKET,
        key::NEXT,
        key::IMAGES,
        key::CACHE,
        key::RUNTIME,
        key::PEAK,
        key::BLOCKS,
    ] {
        if let Some(value) = handoff.field(name) {
            handed.push(name.as_bytes());
            handed.push(b"=");
            handed.push(value);
            handed.push(&[SEPARATOR]);
        }
    }
    handed.push(key::GENERATION.as_bytes());
    handed.push(b"=");
    handed.push_number(generation);
    variables[count] = library.bytes.as_ptr() as usize;
    variables[count + 1] = handed.bytes.as_ptr() as usize;
    variables[count + 2] = 0;
    if !library.fits || !handed.fits {
        return original(environment);
    }
    original(variables.as_ptr() as usize)
}

/// What a program is like that is about to be executed.
enum Next {
    /// glibc's dynamic linker will load it with a preloaded library, unharmed.
    Preloadable,
    /// No dynamic linker will be loaded with it.
    Static,
    /// It has to be left alone.
    Unseen,
}

/// Of the program at `path`. A script is as its interpreter is.
fn kind_of(mut path: PathBuffer) -> Next {
    // The kernel follows interpreters of interpreters four deep.
    for _ in 0..5 {
        let Ok(fd) = usize::try_from(sys::open(path.as_c_str(), false)) else {
            return Next::Unseen;
        };
        let mut head = [0; 256];
        let read = usize::try_from(sys::pread(fd, &mut head, 0)).unwrap_or(0);
        let verdict = match head[..read.min(256)] {
            [0x7f, b'E', b'L', b'F', ..] => Some(if sys::is_set_id(fd) {
                Next::Unseen
            } else {
                kind_of_elf(fd, &head)
            }),
            [b'#', b'!', ref line @ ..] => {
                path = interpreter(line);
                path.is_empty().then_some(Next::Unseen)
            }
            _ => Some(Next::Unseen),
        };
        sys::close(fd);
        if let Some(verdict) = verdict {
            return verdict;
        }
    }
    Next::Unseen
}

/// The interpreter that a script's first line names.
fn interpreter(line: &[u8]) -> PathBuffer {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = line
        .iter()
        .position(|byte| !is_blank(byte))
        .unwrap_or(line.len());
    let word = &line[start..];
    let end = word
        .iter()
        .position(|byte| is_blank(byte) || matches!(byte, b'\n' | 0))
        .unwrap_or(0);
    PathBuffer::of(&[&word[..end]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn kind_of_elf(fd: usize, head: &[u8; 256]) -> Next {
    const SEGMENT: usize = 56;
    const SEGMENTS: usize = 32;
    const PT_LOAD: u32 = 1;
    const PT_DYNAMIC: u32 = 2;
    const PT_INTERP: u32 = 3;
    const ELFCLASS64: u8 = 2;
    const EM_X86_64: u32 = 62;
    if head[4] != ELFCLASS64 || u32_at(head, 18) & 0xffff != EM_X86_64 {
        return Next::Unseen;
    }
    let count = (u32_at(head, 56) & 0xffff) as usize;
    let mut table = [0; SEGMENT * SEGMENTS];
    if count > SEGMENTS || sys::pread(fd, &mut table, u64_at(head, 32) as usize) <= 0 {
        return Next::Unseen;
    }
    let segments = || table.chunks_exact(SEGMENT).take(count);
    let of_kind = |kind| segments().find(move |segment| u32_at(segment, 0) == kind);
    let Some(interpreter) = of_kind(PT_INTERP) else {
        return Next::Static;
    };
    let mut name = [0; 64];
    sys::pread(fd, &mut name, u64_at(interpreter, 8) as usize);
    let len = (u64_at(interpreter, 32) as usize)
        .min(name.len())
        .saturating_sub(1);
    if !name[..len].ends_with(b"/ld-linux-x86-64.so.2") {
        return Next::Unseen;
    }
    let Some(dynamic) = of_kind(PT_DYNAMIC) else {
        return Next::Unseen;
    };
    let file_offset = |address: u64| {
        segments().find_map(|segment| {
            let into = address.checked_sub(u64_at(segment, 16))?;
            let loaded = u32_at(segment, 0) == PT_LOAD && into < u64_at(segment, 32);
            loaded.then(|| into + u64_at(segment, 8))
        })
    };
    if needs_sanitizer(fd, u64_at(dynamic, 8), u64_at(dynamic, 32), file_offset) {
        Next::Unseen
    } else {
        Next::Preloadable
    }
}

/// Whether a needed library is a sanitizer's runtime, which insists on being loaded first.
fn needs_sanitizer(
    fd: usize,
    offset: u64,
    len: u64,
    file_offset: impl Fn(u64) -> Option<u64>,
) -> bool {
    const DT_NEEDED: u64 = 1;
    const DT_STRTAB: u64 = 5;
    let mut entries = [0; 16 * 64];
    let len = (len as usize).min(entries.len());
    sys::pread(fd, &mut entries[..len], offset as usize);
    let tagged = |tag| {
        entries
            .chunks_exact(16)
            .filter(move |entry| u64_at(entry, 0) == tag)
    };
    let strings = tagged(DT_STRTAB)
        .next()
        .and_then(|entry| file_offset(u64_at(entry, 8)));
    let Some(strings) = strings else { return false };
    tagged(DT_NEEDED).any(|entry| {
        let mut name = [0; 16];
        sys::pread(
            fd,
            &mut name,
            strings.wrapping_add(u64_at(entry, 8)) as usize,
        );
        [&b"libasan."[..], b"libtsan.", b"libhwasan.", b"liblsan."]
            .iter()
            .any(|sanitizer| name.starts_with(sanitizer))
    })
}
