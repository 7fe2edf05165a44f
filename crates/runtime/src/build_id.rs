//! *Which build of a file is this, and where is its metadata image?*
//!
//! A build ID is found among an object's notes. Its image lies in the session's folder, where it is up to date, or in the user's cache, where it
//! is the one that was made last.

#![allow(unsafe_code)] // Reads notes of loaded objects, and maps files.

use crate::environment::PathBuffer;
use crate::region::region;
use crate::sys;
use core::sync::atomic::Ordering::Relaxed;
use pointee_index::handoff::key;
use pointee_index::layout::PAGE;
use pointee_model::image::{FORMAT, Image};

/// The first 20 bytes of a build ID.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct BuildId {
    bytes: [u8; 20],
    len: usize,
}

impl BuildId {
    pub(crate) fn of(id: &[u8]) -> Self {
        let mut bytes = [0; 20];
        let len = id.len().min(20);
        bytes[..len].copy_from_slice(&id[..len]);
        Self { bytes, len }
    }

    /// In hexadecimal digits.
    pub(crate) fn hex(&self) -> PathBuffer {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = [0; 40];
        for (at, byte) in self.bytes[..self.len].iter().enumerate() {
            hex[2 * at] = DIGITS[usize::from(byte >> 4)];
            hex[2 * at + 1] = DIGITS[usize::from(byte & 15)];
        }
        PathBuffer::of(&[&hex[..2 * self.len]])
    }

    /// The image that the session has for it, if it named a folder: up to date.
    pub(crate) fn session_image(&self) -> Option<Image<'static>> {
        let folder = region().handoff.path(key::IMAGES);
        map_image(&[folder.as_bytes(), b"/", self.hex().as_bytes(), b".img"])
    }

    /// The image that was made last, from the user's cache: not known to be up to date.
    pub(crate) fn cached_image(&self) -> Option<Image<'static>> {
        const { assert!(FORMAT < 100, "two digits of the name") };
        let digits = [b'0' + (FORMAT / 10) as u8, b'0' + (FORMAT % 10) as u8];
        let format = &digits[usize::from(FORMAT < 10)..];
        let folder = region().handoff.path(key::CACHE);
        let id = self.hex();
        map_image(&[
            folder.as_bytes(),
            b"/",
            id.as_bytes(),
            b"-",
            format,
            b".image",
        ])
    }
}

/// Place and length of the build ID among the notes in `[at, end)`.
///
/// # Safety
/// The range is mapped.
pub(crate) unsafe fn build_id_note(mut at: u64, end: u64) -> Option<(u64, usize)> {
    const NT_GNU_BUILD_ID: u32 = 3;
    while at + 16 <= end {
        // SAFETY: twelve bytes of header and four of name are below `end`.
        let (header, name) = unsafe { (*(at as *const [u32; 3]), *((at + 12) as *const [u8; 4])) };
        let [name_len, len, kind] = header;
        let text = at + 12 + u64::from(name_len).next_multiple_of(4);
        if kind == NT_GNU_BUILD_ID && name_len == 4 && name == *b"GNU\0" {
            let fits = text + u64::from(len) <= end && len <= 20;
            return fits.then_some((text, len as usize));
        }
        at = text + u64::from(len).next_multiple_of(4);
    }
    None
}

/// Maps an image; `parts` are its path: folder, a slash, the build ID, the rest.
fn map_image(parts: &[&[u8]]) -> Option<Image<'static>> {
    let is_named = parts.first()?.starts_with(b"/") && !parts.get(2)?.is_empty();
    if !is_named {
        return None;
    }
    let path = PathBuffer::of(parts);
    let (at, len) = sys::map_file(path.as_c_str(), 1)?;
    let pages = len.div_ceil(PAGE as usize) as u32;
    region().header().image_pages.fetch_add(pages, Relaxed);
    // SAFETY: mapped for good; images are replaced by renaming, never rewritten.
    Image::parse(unsafe { core::slice::from_raw_parts(at, len) }).ok()
}
