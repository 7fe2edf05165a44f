//! *Which build of a file is this, and where is its metadata image?*
//!
//! A build ID is found among an object's notes; where there is none, a digest of its headers and code stands in for it
//! (`model/src/identity.rs`). Its image lies in the session's folder, where it is up to date, or in the user's cache, where it
//! is the one that was made last.

#![allow(unsafe_code)] // Reads notes of loaded objects, and maps files.

use crate::environment::PathBuffer;
use crate::modules::{PT_NOTE, Segment};
use crate::region::region;
use crate::sys;
use core::sync::atomic::Ordering::Relaxed;
use pointee_index::handoff::key;
use pointee_index::layout::PAGE;
use pointee_model::identity;
use pointee_model::image::{FORMAT, Image};

/// The first 20 bytes of a build ID, or what stands in for it; nothing in an object without code.
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

    /// That of an object with `count` program headers at `headers`, loaded with this bias, whose code nobody has patched yet.
    ///
    /// # Safety
    /// The headers, and the segments that they tell of, are mapped.
    pub(crate) unsafe fn of_loaded(bias: u64, headers: u64, count: u64) -> Self {
        // SAFETY: the caller's promise, for all that is made here.
        let bytes = |at: u64, len: u64| unsafe {
            core::slice::from_raw_parts(at as *const u8, len as usize)
        };
        // SAFETY: as above.
        let segment = |at: u64| unsafe { *(headers as *const Segment).add(at as usize) };
        let mut code: &[u8] = &[];
        for segment in (0..count).map(segment) {
            let from = bias.wrapping_add(segment.address);
            if segment.kind == PT_NOTE
                // SAFETY: notes are in a loaded segment.
                && let Some((at, len)) = unsafe { build_id_note(from, from + segment.len) }
            {
                return Self::of(bytes(at, len as u64));
            }
            if code.is_empty() && identity::is_code(segment.kind, segment.flags) {
                code = bytes(from, segment.file_len);
            }
        }
        match code {
            [] => Self::of(&[]),
            code => {
                let headers = bytes(headers, count * size_of::<Segment>() as u64);
                Self::of(&identity::stand_in(headers, code))
            }
        }
    }

    /// As it is, or what stands in for it.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// In hexadecimal digits.
    pub(crate) fn hex(&self) -> PathBuffer {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = [0; 40];
        for (at, byte) in self.as_bytes().iter().enumerate() {
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
unsafe fn build_id_note(mut at: u64, end: u64) -> Option<(u64, usize)> {
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
