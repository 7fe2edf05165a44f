//! *What does a call, met on the way out of an allocator, tell of the block?*
//!
//! Recording decides by it how far a walk goes, and reading where on the path the allocation site is: by the same rules, or the
//! site would depend on whether the image was there already when the program ran.

use crate::addr::LinkAddr;
use crate::evidence::Verdict;
use crate::image::{Image, NO_TYPE, SiteRecord, site_flags};
use crate::source::is_library_source;

/// What a call tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Made for its function's caller: the search goes on.
    InWrapper,
    /// Made by the language's own code, which does not say for whom: the search goes on.
    InLibrary,
    /// The site. The search ends.
    Site,
    /// Allocates, and what for is not known: the site, if none further in was taken for it. The search ends.
    Untyped,
    /// Not among the allocating calls of code without debug info: perhaps the site.
    Unnoted,
    /// There is no image, or it does not tell: perhaps the site.
    Unknown,
}

impl Call {
    /// How many calls further out are looked at, at most, given what the next call further in tells; `None` for no limit.
    ///
    /// Beyond a call of code without debug info that is not known to allocate it is one: its function may be a wrapper that was not
    /// recognised, and what lies further out says nothing about the block. Nor does anything beyond the call into the language's own
    /// code by code that is not.
    #[must_use]
    pub fn frames_beyond(self, below: impl FnOnce() -> Option<Self>) -> Option<u32> {
        match self {
            Self::Site | Self::Untyped => Some(0),
            Self::Unknown if below() == Some(Self::InLibrary) => Some(0),
            Self::Unnoted => Some(1),
            Self::InWrapper | Self::InLibrary | Self::Unknown => None,
        }
    }
}

/// What the call tells that returns to `return_address` in the file of `image`, and its record. `is_library`: whether the file as
/// a whole belongs to the language.
#[must_use]
pub fn classify<'a>(
    image: Option<&Image<'a>>,
    is_library: bool,
    return_address: LinkAddr,
) -> (Call, Option<&'a SiteRecord>) {
    let record = image.and_then(|image| image.site_returning_to(return_address));
    let is_in_library = || image.is_some_and(|image| is_generic(image, return_address));
    let call = match record {
        Some(record) if record.flags & site_flags::WRAPPER != 0 => Call::InWrapper,
        // A stream's buffer is its user's, whatever it is made of.
        _ if is_library => Call::InLibrary,
        Some(record) if record.r#type != NO_TYPE => Call::Site,
        _ if is_in_library() => Call::InLibrary,
        Some(record) if Verdict::from_byte(record.verdict) != Verdict::Unknown => Call::Site,
        Some(_) => Call::Untyped,
        None if image.is_some_and(|image| image.lines.is_empty()) => Call::Unnoted,
        None => Call::Unknown,
    };
    (call, record)
}

/// Whether the code before `return_address` is the language's, compiled into the program: Rust's `Vec`, templates of libstdc++.
fn is_generic(image: &Image<'_>, return_address: LinkAddr) -> bool {
    // The return address may already belong to the next line: look at the call.
    let call = LinkAddr(return_address.0.wrapping_sub(1));
    let is_library = |file| is_library_source(image.file_name(file));
    let mut inlines = image.inlines_at(call).take(64);
    image.line_at(call).is_some_and(|row| is_library(row.file))
        && inlines.all(|inline| is_library(inline.call_file))
}

#[cfg(test)]
mod tests {
    use super::Call::{self, InLibrary, InWrapper, Site, Unknown, Unnoted, Untyped};

    fn check(call: Call, below: Option<Call>, expect: Option<u32>) {
        assert_eq!(
            call.frames_beyond(|| below),
            expect,
            "{call:?} above {below:?}"
        );
    }

    #[test]
    fn how_far_a_search_goes() {
        check(Site, None, Some(0));
        check(Untyped, Some(InWrapper), Some(0));
        // malloc ◀─ strdup of a library without debug info ◀─ its caller ◀─ …
        check(Unnoted, None, Some(1));
        // __rust_alloc ◀─ RawVec::grow ◀─ the program's function, with line numbers only ◀─ …
        check(InLibrary, None, None);
        check(Unknown, Some(InLibrary), Some(0));
        // malloc ◀─ a function that calls it in a way not seen ◀─ …
        check(Unknown, None, None);
        check(Unknown, Some(Unknown), None);
        check(InWrapper, Some(InLibrary), None);
    }
}
