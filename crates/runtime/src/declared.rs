//! *Which functions did somebody say something of, that this object has under that name?*
//!
//! The command leaves a file beside the images: what the configuration declares of functions by their whole name, also what ships
//! inside. So they are hooked in objects of which there is no image yet, at the first run of a program and in whatever it loads. Of an object
//! with an image, the image tells.
//!
//! ```text
//!   <Declared::to_word in hexadecimal digits> <pattern of the module's file name> <name>     one line a function
//! ```

#![allow(unsafe_code)] // Maps the file.

use crate::environment::PathBuffer;
use crate::locate::Function;
use crate::modules::Module;
use crate::region::region;
use crate::sys;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicPtr, AtomicUsize};
use pointee_index::handoff::{DECLARED, key};
use pointee_model::entries::{Declared, matches};

static TEXT: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static LEN: AtomicUsize = AtomicUsize::new(0);

/// Maps the file, if there is one. At start.
pub(crate) fn set_up() {
    let folder = region().handoff.path(key::IMAGES);
    if folder.is_empty() {
        return;
    }
    let path = PathBuffer::of(&[folder.as_bytes(), b"/", DECLARED.as_bytes()]);
    if let Some((at, len)) = sys::map_file(path.as_c_str(), 1) {
        LEN.store(len, Relaxed);
        TEXT.store(at.cast_mut(), Relaxed);
    }
}

/// What is declared for one object, and not found yet.
pub(crate) struct Names {
    all: [(&'static str, u32); ROOM],
    len: usize,
    /// Bit n: a name begins in a way that hashes to n.
    beginnings: u64,
}

/// Names that are looked for in one object at most.
const ROOM: usize = 256;

/// The bit of a name that begins with `text`.
fn beginning(text: &[u8]) -> u64 {
    let [a, b, c] = [0, 1, 3].map(|at| u64::from(text.get(at).copied().unwrap_or(0)));
    1 << ((a ^ b << 2 ^ c << 1) & 63)
}

impl Names {
    /// What is declared for `module`.
    pub(crate) fn of(module: &Module) -> Self {
        let mut names = Self {
            all: [("", 0); ROOM],
            len: 0,
            beginnings: 0,
        };
        let text = TEXT.load(Relaxed);
        if text.is_null() || module.image.is_some() {
            return names;
        }
        // SAFETY: mapped for good, at this length; the file is written once, before the program starts.
        let text = unsafe { core::slice::from_raw_parts(text.cast_const(), LEN.load(Relaxed)) };
        let Ok(file) = core::str::from_utf8(module.file_name()) else {
            return names;
        };
        for line in text.split(|byte| *byte == b'\n') {
            let line = core::str::from_utf8(line).unwrap_or("");
            let mut words = line.split(' ');
            if let (Some(word), Some(pattern), Some(name)) =
                (words.next(), words.next(), words.next())
                && let Ok(word) = u32::from_str_radix(word, 16)
                && matches(pattern, file)
                && let Some(place) = names.all.get_mut(names.len)
            {
                *place = (name, word);
                names.len += 1;
                names.beginnings |= beginning(name.as_bytes());
            }
        }
        names
    }

    /// Whether any was not found.
    pub(crate) fn are_left(&self) -> bool {
        self.len != 0
    }

    /// Calls `found` with those for which `place` tells address and length.
    pub(crate) fn take_each(
        &mut self,
        mut place: impl FnMut(&str) -> Option<(u64, u64)>,
        found: &mut impl FnMut(Function),
    ) {
        for at in (0..self.len).rev() {
            let (name, _) = self.all[at];
            if let Some(place) = place(name) {
                self.take_at(at, place, found);
            }
        }
    }

    /// Calls `found` if the name that `text` begins with, up to a NUL, is one of those.
    #[inline]
    pub(crate) fn take(
        &mut self,
        text: &[u8],
        place: (u64, u64),
        found: &mut impl FnMut(Function),
    ) {
        if self.beginnings & beginning(text) == 0 {
            return;
        }
        let is = |(name, _): &(&str, u32)| {
            text.get(name.len()) == Some(&0) && text.starts_with(name.as_bytes())
        };
        if let Some(at) = self.all[..self.len].iter().position(is) {
            self.take_at(at, place, found);
        }
    }

    fn take_at(&mut self, at: usize, place: (u64, u64), found: &mut impl FnMut(Function)) {
        let (name, word) = self.all[at];
        self.len -= 1;
        self.all.swap(at, self.len);
        let says = Declared::from_word(word);
        found(Function {
            name,
            role: says.role,
            address: place.0,
            len: place.1,
            declared: Some(says),
        });
    }
}
