//! *What did the command tell us, and how does the program not see it?*
//!
//! The stack of a fresh process holds `argc, argv…, 0, envp…, 0, auxv…, (0, 0)`. Our two variables are
//! cut out of `envp`; the sixteen bytes this leaves before the auxiliary vector become an entry
//! `AT_IGNORE`, so that whoever walks from `envp` to the vector arrives, and nothing that points at
//! either is left dangling. The strings themselves are blanked, for `/proc/self/environ`.
//!
//! See [`pointee_index::handoff`] for the variables.

#![allow(unsafe_code)] // Edits the stack's environment block in place.

use core::ffi::CStr;
use pointee_index::handoff::{PAD, SEPARATOR, VARIABLE, key};

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

/// The value of `variable` if `entry` sets it.
fn value_of<'a>(entry: &'a [u8], variable: &str) -> Option<&'a [u8]> {
    entry.strip_prefix(variable.as_bytes())?.strip_prefix(b"=")
}

/// Reads the hand-off from the environment and takes every trace of it out.
///
/// # Safety
/// `envp` is the NULL-terminated environment on the stack, and the auxiliary vector follows it. No other thread runs.
pub(crate) unsafe fn take(envp: *mut *mut u8) -> HandOff {
    let mut handoff = HandOff::none();
    // SAFETY: the caller promises a NULL-terminated array of C strings.
    let entry = |at: usize| unsafe {
        let string = *envp.add(at);
        (!string.is_null()).then(|| CStr::from_ptr(string.cast()).to_bytes())
    };
    let mut at = 0;
    while let Some(text) = entry(at) {
        if let Some(value) = value_of(text, VARIABLE) {
            handoff = HandOff::from_bytes(value);
        }
        at += 1;
    }
    if handoff.text().is_empty() {
        return handoff;
    }
    let (mut from, mut to) = (0, 0);
    while let Some(text) = entry(from) {
        let preload = value_of(text, "LD_PRELOAD");
        let before = handoff.field(key::PRELOAD);
        let ours = value_of(text, VARIABLE).is_some() || value_of(text, PAD).is_some();
        // SAFETY: `to <= from`, both inside the array; strings of the stack are writable.
        unsafe {
            if ours || (preload.is_some() && before.is_none()) {
                (*envp.add(from)).write_bytes(0, text.len());
            } else {
                if let (Some(now), Some(before)) = (preload, before) {
                    // `<runtime>:<before>` becomes `<before>`: the string gets shorter in place.
                    let string = (*envp.add(from)).add("LD_PRELOAD=".len());
                    let keep = before.len().min(now.len());
                    core::ptr::copy(before.as_ptr(), string, keep);
                    string.add(keep).write_bytes(0, now.len() - keep);
                }
                *envp.add(to) = *envp.add(from);
                to += 1;
            }
        }
        from += 1;
    }
    let gap = from - to;
    // SAFETY: the array had `from` entries and a NULL.
    unsafe {
        for at in to..from {
            *envp.add(at) = core::ptr::null_mut();
        }
        if gap == 2 {
            const AT_IGNORE: usize = 1;
            *envp.add(to + 1) = core::ptr::without_provenance_mut(AT_IGNORE);
            *envp.add(to + 2) = core::ptr::null_mut();
        }
    }
    handoff
}
