//! *What do the inlined library calls around a Rust allocation say of it?*
//!
//! Every allocation of Rust's library ends in `__rust_alloc`, most often inlined through
//! `Global::allocate`, `RawVecInner` and the like, which know no type. The first frame outward that
//! is generic over what it stores (`Box<T>`, `RawVec<T>`, `Vec<T>`) tells it: by its type arguments
//! where debug info has them, else by its name. A raw `*mut u8` is Rust's `void *`.

use super::typing::Types;
use crate::facts::Function;
use pointee_model::image::TypeIndex;

/// Generic owners of memory and what they are called in names.
const OWNERS: [&str; 6] = [
    "alloc::boxed::Box<",
    "alloc::raw_vec::RawVec<",
    "alloc::vec::Vec<",
    "alloc::collections::vec_deque::VecDeque<",
    "alloc::boxed::Box::<",
    "alloc::vec::Vec::<",
];
/// Crates whose frames are passed on the way outward.
const LIBRARY: [&str; 3] = ["alloc::", "core::", "std::"];

/// Whether a linker name is that of Rust's allocator.
pub(super) fn is_allocator(name: &str) -> bool {
    ["__rust_", "__rdl_", "box_new_uninit"]
        .iter()
        .any(|part| name.contains(part))
}

/// The type that the library call around `at` stores, with the name of that call.
pub(super) fn allocated(
    function: &Function,
    types: &Types<'_>,
    at: u64,
) -> Option<(TypeIndex, String)> {
    let mut around: Vec<_> = function
        .inlines
        .iter()
        .filter(|inline| {
            inline
                .ranges
                .iter()
                .any(|(start, end)| (*start..*end).contains(&at))
        })
        .collect();
    around.sort_by_key(|inline| std::cmp::Reverse(inline.depth));
    let own = (function.name.as_str(), &function.arguments);
    for (name, arguments) in around
        .iter()
        .map(|inline| (inline.name.as_str(), &inline.arguments))
        .chain(std::iter::once(own))
    {
        if let Some(written) = owned(name) {
            let argument = arguments.first().map(|at| types.strip(*at));
            let found = argument.or_else(|| {
                let named = types.named(written).first()?;
                Some(types.strip(*named))
            });
            // A placeholder without arguments says nothing; the frame outside may.
            if let Some(found) = found {
                return Some((found, name.to_owned()));
            }
        }
        let path = name.trim_start_matches(['<', '&', '[']);
        let primitive = !path
            .split(['>', ' ', ':'])
            .next()
            .unwrap_or("")
            .contains("::");
        if !LIBRARY.iter().any(|part| path.starts_with(part)) && !primitive {
            return None;
        }
    }
    None
}

/// The first type argument of the owner that a name is a method of.
fn owned(name: &str) -> Option<&str> {
    let path = name.trim_start_matches('<');
    let owner = OWNERS.iter().find(|owner| path.starts_with(**owner))?;
    let arguments = path.get(owner.len()..)?;
    let mut depth = 0_u32;
    let end = arguments.char_indices().find_map(|(at, letter)| {
        match letter {
            '<' | '(' | '[' => depth += 1,
            '>' | ',' | ')' | ']' if depth == 0 => return Some(at),
            '>' | ')' | ']' => depth -= 1,
            _ => {}
        }
        None
    })?;
    arguments.get(..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners() {
        let rows = [
            ("<alloc::raw_vec::RawVec<u8>>::with_capacity_in", Some("u8")),
            ("alloc::boxed::Box<T,A>::new_in", Some("T")),
            (
                "<alloc::vec::Vec<(u32, a::B<c>), A>>::push",
                Some("(u32, a::B<c>)"),
            ),
            ("<alloc::raw_vec::RawVecInner>::try_allocate_in", None),
            ("alloc::alloc::alloc", None),
            ("alloc::vec::Vec<", None),
        ];
        for (name, expect) in rows {
            assert_eq!(owned(name), expect, "{name}");
        }
    }
}
