//! *What did the command tell us, and how does the program not see it?*
//!
//! The stack of a fresh process holds `argc, argv…, 0, envp…, 0, auxv…, (0, 0)`. Our two variables are
//! cut out of `envp`; the sixteen bytes this leaves before the auxiliary vector become an entry
//! `AT_IGNORE`, so that whoever walks from `envp` to the vector arrives, and nothing that points at
//! either is left dangling. The strings themselves are blanked, and cut off `/proc/self/environ`.
//!
//! See [`pointee_index::handoff`] for the variables.

#![allow(unsafe_code)] // Edits the stack's environment block in place.

use crate::environ_end;
use core::ffi::{CStr, c_char};
use pointee_index::handoff::{SEPARATOR, VARIABLE, key};

/// Longest hand-off we take.
const MAX: usize = 4096;

/// What the command told us. Strings are NUL-terminated copies.
pub(crate) struct HandOff {
    text: [u8; MAX],
    len: usize,
}

/// A path taken out of a hand-off, NUL-terminated.
pub(crate) struct PathBuffer {
    bytes: [u8; 1024],
}

impl PathBuffer {
    pub(crate) const fn empty() -> Self {
        Self { bytes: [0; 1024] }
    }

    /// `parts` one after the other; empty if they do not fit.
    pub(crate) fn of(parts: &[&[u8]]) -> Self {
        let mut path = Self::empty();
        let mut at = 0;
        for part in parts {
            let Some(to) = path.bytes[..1023].get_mut(at..at + part.len()) else {
                return Self::empty();
            };
            to.copy_from_slice(part);
            at += part.len();
        }
        path
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }

    /// For C: the last byte is never written.
    pub(crate) const fn as_ptr(&self) -> *const c_char {
        self.bytes.as_ptr().cast()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes[0] == 0
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.as_c_str().to_bytes()
    }
}

impl HandOff {
    pub(crate) const fn none() -> Self {
        Self {
            text: [0; MAX],
            len: 0,
        }
    }

    /// The hand-off in `text`, `key=value` fields apart by [`SEPARATOR`]; none if it is too long.
    pub(crate) fn from_bytes(text: &[u8]) -> Self {
        let mut handoff = Self::none();
        if let Some(to) = handoff.text.get_mut(..text.len()) {
            to.copy_from_slice(text);
            handoff.len = text.len();
        }
        handoff
    }

    /// For a process that nobody started for recording: where the user's cache is.
    fn of_user(cache: Option<&[u8]>, home: Option<&[u8]>) -> Self {
        let is_absolute = |path: &&[u8]| path.starts_with(b"/");
        let (folder, rest) = match (cache.filter(is_absolute), home.filter(is_absolute)) {
            (Some(cache), _) => (cache, &b"/pointee/images"[..]),
            (None, Some(home)) => (home, &b"/.cache/pointee/images"[..]),
            (None, None) => return Self::none(),
        };
        let text = PathBuffer::of(&[key::CACHE.as_bytes(), b"=", folder, rest]);
        Self::from_bytes(text.as_bytes())
    }

    pub(crate) fn text(&self) -> &[u8] {
        &self.text[..self.len]
    }

    /// The value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<&[u8]> {
        self.text()
            .split(|byte| *byte == SEPARATOR)
            .find_map(|field| field.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuffer {
        self.field(name)
            .map_or(PathBuffer::empty(), |value| PathBuffer::of(&[value]))
    }

    pub(crate) fn number(&self, name: &str) -> Option<u32> {
        let digits = self.field(name)?;
        core::str::from_utf8(digits).ok()?.parse().ok()
    }
}

/// Reads the hand-off from the environment and takes every trace of it out.
///
/// # Safety
/// `envp` is the NULL-terminated environment on the stack, and the auxiliary vector follows it. No other thread runs.
pub(crate) unsafe fn take(envp: *mut *mut u8) -> HandOff {
    // SAFETY: the caller promises a NULL-terminated array of C strings.
    let entry = |at: usize| unsafe {
        let string = *envp.add(at);
        (!string.is_null()).then(|| CStr::from_ptr(string.cast()).to_bytes())
    };
    let value_of = |at: usize, variable: &str| -> Option<&[u8]> {
        let value = entry(at)?.strip_prefix(variable.as_bytes())?;
        value.strip_prefix(b"=")
    };
    let mut count = 0;
    while entry(count).is_some() {
        count += 1;
    }
    // The two that were added are the last two; whoever passes on an older hand-off gave it other places.
    let last_two = count.checked_sub(2);
    let given = last_two.and_then(|last| Some((last, value_of(last + 1, VARIABLE)?)));
    let Some((last, given)) = given else {
        let variable = |name: &str| (0..count).find_map(|at| value_of(at, name));
        return HandOff::of_user(variable("XDG_CACHE_HOME"), variable("HOME"));
    };
    let handoff = HandOff::from_bytes(given);
    let runtime = handoff.path(key::RUNTIME);
    let is_preload =
        value_of(last, "LD_PRELOAD").is_some_and(|value| value.starts_with(runtime.as_bytes()));
    if runtime.is_empty() || !is_preload {
        return handoff;
    }
    // SAFETY: both are in the array; strings of the stack are writable; nobody walks the array meanwhile.
    unsafe {
        let strings = [*envp.add(last), *envp.add(last + 1)];
        for (at, string) in strings.into_iter().enumerate() {
            let len = entry(last + at).map_or(0, <[u8]>::len);
            string.write_bytes(0, len);
        }
        const AT_IGNORE: usize = 1;
        *envp.add(last) = core::ptr::null_mut();
        *envp.add(last + 1) = core::ptr::without_provenance_mut(AT_IGNORE);
        *envp.add(last + 2) = core::ptr::null_mut();
        environ_end::cut_at(strings[0] as u64);
    }
    handoff
}
