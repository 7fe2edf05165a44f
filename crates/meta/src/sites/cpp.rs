//! *What do C++ names and inlined library calls say of an allocation?*
//!
//! The standard containers allocate through `allocate` of some allocator; its result is `T *`, and
//! the innermost such call around the site tells `T`. An object made by `new` meets its constructor.

use super::typing::{Pointee, Types};
use crate::facts::Function;
use pointee_model::image::TypeIndex;

/// The function of `std::function` that puts what it calls on the heap: a copy of its type argument.
const CREATE: &str = "_M_create";
/// Functions that own what they make: an object of their type argument, or an array of its elements.
const MAKES_UNIQUE: [&str; 2] = ["make_unique", "make_unique_for_overwrite"];
/// Functions of libstdc++ that allocate nothing but characters, by linker name.
const MAKES_TEXT: [&str; 1] =
    ["_ZNSt13basic_filebufIcSt11char_traitsIcEE27_M_allocate_internal_bufferEv"];
/// Functions of allocators whose result is the memory asked for.
const ALLOCATE: [&str; 4] = [
    "allocate",
    "allocate_at_least",
    "_M_allocate",
    "_S_allocate",
];

/// Functions of vectors, deques and hash tables that ask for arrays; `_M_allocate_node` of hash tables
/// asks for one.
const ARRAYS: [&str; 5] = [
    "_M_allocate",
    "_M_allocate_map",
    "_M_allocate_buckets",
    "_M_allocate_and_copy",
    "_M_realloc_insert",
];

/// The type that the inlined allocator call around `at`, or the function itself, hands out; whether an
/// array of it is asked for, were it of one; and the name of that call.
pub(super) fn allocated(
    function: &Function,
    types: &Types<'_>,
    at: u64,
) -> Option<(TypeIndex, bool, String)> {
    let around = |ranges: &[(u64, u64)]| {
        ranges
            .iter()
            .any(|(start, end)| (*start..*end).contains(&at))
    };
    let mut inlines: Vec<_> = function
        .inlines
        .iter()
        .filter(|inline| around(&inline.ranges))
        .collect();
    inlines.sort_by_key(|inline| std::cmp::Reverse(inline.depth));
    let arrays = |name: &str| ARRAYS.contains(&last_component(name));
    let many = arrays(&function.name) || inlines.iter().any(|inline| arrays(&inline.name));
    let own = (function.name.as_str(), function.result, &function.arguments);
    let innermost = match inlines.first() {
        Some(inline) => (inline.name.as_str(), &inline.arguments),
        None => (own.0, own.2),
    };
    if MAKES_UNIQUE.contains(&last_component(innermost.0))
        && let Some(made) = innermost.1.first().map(|at| types.strip(*at))
    {
        let element = types.open_element(made);
        let name = innermost.0.to_owned();
        return Some((element.unwrap_or(made), element.is_some(), name));
    }
    inlines
        .iter()
        .map(|inline| (inline.name.as_str(), inline.result, &inline.arguments))
        .chain(std::iter::once(own))
        .map(|(name, result, arguments)| (name, last_component(name), result, arguments))
        .filter(|(_, last, ..)| ALLOCATE.contains(last) || *last == CREATE)
        .find_map(|(name, last, result, arguments)| {
            if last == CREATE {
                let argument = types.strip(*arguments.first()?);
                let target = match types.pointee(argument) {
                    Some(Pointee::Type(referred)) => referred,
                    _ => argument,
                };
                return Some((target, false, name.to_owned()));
            }
            let result = match types.pointee(result?) {
                Some(Pointee::Type(target)) => Some(target),
                _ => None,
            };
            let target = result.or_else(|| arguments.first().map(|at| types.strip(*at)))?;
            Some((target, many, name.to_owned()))
        })
}

/// Whether all that a function of libstdc++ allocates is characters.
pub(super) fn makes_text(linkage_name: &str) -> bool {
    MAKES_TEXT.contains(&linkage_name)
}

/// Whether a qualified name is that of a constructor: `ns::Class<T>::Class(int)`.
pub(super) fn is_constructor(name: &str) -> bool {
    let parts = components(name);
    match parts[..] {
        [.., class, function] => class == function,
        _ => false,
    }
}

/// The last component of a qualified name, without template arguments and parameters.
pub(super) fn last_component(name: &str) -> &str {
    components(name).last().copied().unwrap_or("")
}

/// The components of a qualified name, each without its template arguments; parameters are cut off.
fn components(name: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start, mut end) = (0_u32, 0, None);
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'<' => {
                if depth == 0 {
                    end = end.or(Some(at));
                }
                depth += 1;
            }
            b'>' => depth = depth.saturating_sub(1),
            b'(' if depth == 0 && at > start => {
                end = end.or(Some(at));
                break;
            }
            b':' if depth == 0 && bytes.get(at + 1) == Some(&b':') => {
                parts.push(name.get(start..end.unwrap_or(at)).unwrap_or(""));
                at += 1;
                start = at + 1;
                end = None;
            }
            _ => {}
        }
        at += 1;
    }
    parts.push(name.get(start..end.unwrap_or(bytes.len())).unwrap_or(""));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constructors() {
        let rows = [
            ("Node::Node", true),
            ("ns::Node::Node(int, char const*)", true),
            ("std::vector<a::b>::vector(std::vector<a::b> const&)", true),
            ("Node::~Node()", false),
            ("Node::make(Node)", false),
            ("main", false),
            ("", false),
        ];
        for (name, expect) in rows {
            assert_eq!(is_constructor(name), expect, "{name}");
        }
    }

    #[test]
    fn last_components() {
        let rows = [
            (
                "__gnu_cxx::new_allocator<std::pair<int, x::y>>::allocate",
                "allocate",
            ),
            ("std::allocator<T>::allocate(unsigned long)", "allocate"),
            ("free_standing", "free_standing"),
        ];
        for (name, expect) in rows {
            assert_eq!(last_component(name), expect, "{name}");
        }
    }
}
