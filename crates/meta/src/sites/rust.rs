//! *What do the library calls around a Rust allocation say of it?*
//!
//! Every allocation of Rust's library ends in `__rust_alloc`, most often through `Global::allocate`,
//! `RawVecInner` and the like, which know no type: they are *erased*. The first frame outward that
//! is generic over what it stores (`Box<T>`, `RawVec<T>`, `Vec<T>`) tells it: by its type arguments
//! where debug info has them, else by its name. A raw `*mut u8` is Rust's `void *`.
//!
//! A function of the collections that was not inlined is a wrapper: who grows a vector is the code
//! that pushes to it. What the frames around that call say comes first: linkers and compilers fold
//! functions of different types into one where their code is the same. Where they say nothing, the
//! function hands its callers the one type it stores.

use super::calls::Body;
use super::declare::declared;
use super::typing::Types;
use crate::facts::{Facts, Function, Inline};
use pointee_model::evidence::Role;
use pointee_model::image::TypeIndex;
use std::collections::BTreeSet;

/// What an owner of memory keeps there of its first type argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holds {
    One,
    Many,
    /// One object of this generic type of it.
    Inside(&'static str),
    /// Many pairs of it and the second type argument.
    Pairs,
}

/// Generic owners of memory, as names of their methods start.
const OWNERS: [(&str, Holds); 13] = [
    ("alloc::boxed::Box<", Holds::One),
    ("alloc::boxed::Box::<", Holds::One),
    ("alloc::raw_vec::RawVec<", Holds::Many),
    ("alloc::vec::Vec<", Holds::Many),
    ("alloc::vec::Vec::<", Holds::Many),
    ("alloc::collections::vec_deque::VecDeque<", Holds::Many),
    // Control bytes follow the objects.
    ("hashbrown::raw::RawTable<", Holds::Many),
    // Before its version 0.14.
    ("hashbrown::raw::inner::RawTable<", Holds::Many),
    ("std::collections::hash::map::HashMap<", Holds::Pairs),
    ("hashbrown::map::HashMap<", Holds::Pairs),
    ("alloc::sync::Arc<", Holds::Inside("alloc::sync::ArcInner")),
    (
        "alloc::sync::Arc::<",
        Holds::Inside("alloc::sync::ArcInner"),
    ),
    ("alloc::rc::Rc<", Holds::Inside("alloc::rc::RcInner")),
];
/// Crates whose frames are passed on the way outward.
const LIBRARY: [&str; 5] = ["alloc::", "core::", "std::", "hashbrown::", "__rustc::"];
/// The trait of global allocators, as names of their methods have it. Optimisation across crates inlines even these.
const ALLOCATOR: &str = " as core::alloc::global::GlobalAlloc>::";
/// Crates of collections and smart pointers.
const COLLECTIONS: [&str; 2] = ["alloc::", "hashbrown::"];
/// What knows no type at all: its callers do.
const ERASED: [&str; 6] = [
    "alloc::raw_vec::RawVecInner",
    "alloc::raw_vec::finish_grow",
    "alloc::alloc::",
    "alloc::boxed::box_new_uninit",
    "hashbrown::raw::RawTableInner",
    "hashbrown::raw::inner::RawTableInner",
];
/// Text is kept as bytes, whatever the type arguments of its methods.
const STRING: &str = "alloc::string::String";
/// Functions of crates that Rust's library comes with, built without debug info, and what the vectors that they fill hold.
const BARE: [(&str, &str); 2] = [
    ("addr2line::line::path_push", "u8"),
    (
        "gimli::read::abbrev::Attributes>::push",
        "gimli::read::abbrev::AttributeSpecification",
    ),
];
/// `DW_LANG_Rust`.
const RUST: u16 = 0x1c;

/// What the frames around an allocation say of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stored<'f> {
    /// The frames of the library end in code of a program, and none is generic; or all are erased
    /// (`through`), and the answer lies outside.
    Erased { through: bool },
    /// The innermost generic frame stores a type that debug info does not describe.
    Undescribed,
    /// The innermost generic frame, called `what`, stores this. `through`: no code of a program
    /// lies between it and the function's caller.
    Type {
        index: TypeIndex,
        role: Role,
        what: &'f str,
        through: bool,
    },
}

/// Whether a linker name is that of Rust's allocator.
pub(super) fn is_allocator(name: &str) -> bool {
    ["__rust_", "__rdl_", "box_new_uninit"]
        .iter()
        .any(|part| name.contains(part))
}

/// Whether a function is written in Rust.
pub(super) fn is_rust(function: &Function) -> bool {
    function.language == RUST
}

/// Whether a function belongs to the collections of Rust's library.
pub(super) fn is_collection(body: &Body<'_>) -> bool {
    let rust = match body.function {
        Some(function) => is_rust(function),
        None => body.linkage_name.starts_with("_R") || body.linkage_name.contains("17h"),
    };
    rust && COLLECTIONS
        .iter()
        .any(|part| path(body.name).starts_with(part))
}

/// Whether a function of the library is type-erased: what it allocates is for its caller to say.
pub(super) fn is_erased(body: &Body<'_>) -> bool {
    ERASED.iter().any(|part| path(body.name).starts_with(part))
}

/// Whether the innermost inlined call around `at` is to a function that is type-erased.
pub(super) fn is_erased_at(function: &Function, at: u64) -> bool {
    let around = around(function, at);
    let innermost = around.first().map(|inline| path(&inline.name));
    innermost.is_some_and(|name| ERASED.iter().any(|part| name.starts_with(part)))
}

/// The inlined calls around `at`, the innermost first.
fn around(function: &Function, at: u64) -> Vec<&Inline> {
    let holds = |ranges: &[(u64, u64)]| {
        ranges
            .iter()
            .any(|(start, end)| (*start..*end).contains(&at))
    };
    let inlines = function.inlines.iter();
    let mut around: Vec<_> = inlines.filter(|inline| holds(&inline.ranges)).collect();
    around.sort_by_key(|inline| std::cmp::Reverse(inline.depth));
    around
}

/// What the library calls around `at` say.
pub(super) fn stored<'f>(function: &'f Function, types: &Types<'_>, at: u64) -> Stored<'f> {
    let around = around(function, at);
    let own = (function.name.as_str(), &function.arguments);
    let frames: Vec<(&str, &Vec<TypeIndex>)> = around
        .iter()
        .map(|inline| (inline.name.as_str(), &inline.arguments))
        .chain(std::iter::once(own))
        .collect();
    let through = frames.iter().all(|(name, _)| is_library(name));
    for (name, arguments) in frames {
        if let Some(owned) = owned(name) {
            let (written, holds) = if arguments.is_empty() {
                by_name_only(owned)
            } else {
                owned
            };
            let argument = arguments
                .first()
                .filter(|_| !path(name).starts_with(STRING))
                .map(|at| types.strip(*at));
            let second = arguments.get(1).copied();
            if let Some(index) = kept(types, written, argument, second, holds) {
                // `Box<[T; 3]>`, as `vec![a, b, c]` makes one, is three objects of T.
                let (index, role) = match (holds, types.element(index)) {
                    (Holds::One, Some(element)) => (element, Role::Element),
                    _ => (index, holds.role()),
                };
                return Stored::Type {
                    index,
                    role,
                    what: name,
                    through,
                };
            }
            // A placeholder without arguments says nothing, and of the memory of counted pointers and
            // maps declared types do; the frame outside may.
            if !is_placeholder(written) && matches!(holds, Holds::One | Holds::Many) {
                return Stored::Undescribed;
            }
        }
        if !is_library(name) {
            break;
        }
    }
    Stored::Erased { through }
}

/// What a method of a generic owner stores, where there is no debug info but its name.
pub(super) fn stored_by_name(body: &Body<'_>, types: &Types<'_>) -> Option<(TypeIndex, Role)> {
    let is_known = is_collection(body) || bare(body.name).is_some();
    let (written, holds) = owned(body.name).filter(|_| is_known).map(by_name_only)?;
    let index = kept(types, written, None, None, holds)?;
    Some((index, holds.role()))
}

impl Holds {
    fn role(self) -> Role {
        match self {
            Self::Many | Self::Pairs => Role::Element,
            Self::One | Self::Inside(_) => Role::Whole,
        }
    }
}

/// The type that an owner keeps, by its type argument in debug info, or by that in its name.
fn kept(
    types: &Types<'_>,
    written: &str,
    argument: Option<TypeIndex>,
    second: Option<TypeIndex>,
    holds: Holds,
) -> Option<TypeIndex> {
    let named = |name: &str| {
        let defaulted = || {
            Some(format!(
                "{}, alloc::alloc::Global>",
                name.strip_suffix('>')?
            ))
        };
        let known = types.named(name).first().copied();
        known
            .or_else(|| types.named(&defaulted()?).first().copied())
            .map(|at| types.strip(at))
    };
    match holds {
        Holds::Inside(generic) => {
            let name = argument.and_then(|at| Some(types.get(at)?.name.as_str()));
            named(&match (name, slice_of(written)) {
                (Some(element), Some(_)) => inside(generic, &format!("[{element}]")),
                (name, _) => inside(generic, name.unwrap_or(written)),
            })
        }
        Holds::Pairs => {
            let (key, value) = (types.get(argument?)?, types.get(second?)?);
            named(&format!("({}, {})", key.name, value.name))
        }
        Holds::One | Holds::Many => argument.or_else(|| named(written)),
    }
}

fn inside(generic: &str, argument: &str) -> String {
    format!("{generic}<{argument}>")
}

/// Declares the types that functions of Rust's library store and that only their names state: its own
/// debug info has no types.
pub(super) fn declare(facts: &mut Facts) {
    // A crate of the library may have no debug info at all.
    let rust = |function: &&Function| {
        is_rust(function) || (!function.has_dwarf && function.linkage_name.starts_with("_R"))
    };
    let functions = facts.functions.iter().filter(rust);
    let names = functions.flat_map(|function| {
        let inlines = function
            .inlines
            .iter()
            .map(|inline| (&inline.name, &inline.arguments));
        std::iter::once((&function.name, &function.arguments)).chain(inlines)
    });
    let mut missing: BTreeSet<String> = BTreeSet::new();
    for (name, arguments) in names {
        let Some(owned) = owned(name).filter(|_| arguments.is_empty()) else {
            continue;
        };
        let (written, holds) = by_name_only(owned);
        let unsized_type = written.starts_with(['[', ' ']) || written.starts_with("dyn ");
        if is_placeholder(written) || unsized_type || written == "str" {
            continue;
        }
        missing.insert(match holds {
            Holds::Inside(generic) => inside(generic, written),
            Holds::Pairs => continue,
            Holds::One | Holds::Many => written.to_owned(),
        });
    }
    for known in &facts.types {
        missing.remove(&known.name);
        if let Some(plain) = known.name.strip_suffix(", alloc::alloc::Global>") {
            missing.remove(&format!("{plain}>"));
        }
    }
    facts
        .types
        .extend(missing.iter().map(|name| declared(name)));
}

/// A qualified name from its first identifier on: `<&[core::…` → `core::…`.
fn path(name: &str) -> &str {
    name.trim_start_matches(['<', '&', '['])
}

/// Whether a name is that of library code: of a crate of the library, or a method of a primitive or
/// of a type parameter (`<[T]>::to_vec`, `<T as alloc::string::ToString>::to_string`).
fn is_library(name: &str) -> bool {
    let path = path(name);
    let primitive = path
        .find(['>', ' ', ']', ',', ':'])
        .is_some_and(|end| !path[end..].starts_with("::"));
    LIBRARY.iter().any(|part| path.starts_with(part))
        || (primitive && name.starts_with(['<', '[']))
        || name.contains(ALLOCATOR)
}

/// Whether a type argument is the name of a type parameter, as `T` or `T,A`.
fn is_placeholder(written: &str) -> bool {
    written.len() <= 2 && written.starts_with(|c: char| c.is_ascii_uppercase())
}

/// The first type argument of the owner that a name is a method of, and what it keeps of it.
fn owned(name: &str) -> Option<(&str, Holds)> {
    let path = name.trim_start_matches('<');
    if let Some(rest) = path.strip_prefix(STRING)
        && rest.starts_with([':', '>', ' '])
    {
        return Some(("u8", Holds::Many));
    }
    if let Some(element) = bare(path) {
        return Some((element, Holds::Many));
    }
    let (owner, holds) = OWNERS.iter().find(|(owner, _)| path.starts_with(owner))?;
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
    let written = arguments.get(..end)?;
    let element = match (*holds, written) {
        (Holds::Inside(_), _) => None,
        (_, "str") => Some("u8"),
        _ => slice_of(written),
    };
    Some(element.map_or((written, *holds), |element| (element, Holds::Many)))
}

/// Of an array that has only a name the elements are known: `[T; 4]`.
fn by_name_only((written, holds): (&str, Holds)) -> (&str, Holds) {
    let inner = written
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    match (holds, inner.and_then(|inner| inner.rsplit_once("; "))) {
        (Holds::One | Holds::Many, Some((element, _))) => (element, Holds::Many),
        _ => (written, holds),
    }
}

/// What the vector that a function fills holds, where only its name is known.
fn bare(name: &str) -> Option<&'static str> {
    let known = BARE.iter().find(|(known, _)| path(name) == *known)?;
    Some(known.1)
}

/// The element of a slice type as written: `[T]`, not `[T; 4]`.
fn slice_of(written: &str) -> Option<&str> {
    let element = written.strip_prefix('[')?.strip_suffix(']')?;
    (!element.contains(';')).then_some(element)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library() {
        let rows = [
            ("alloc::vec::Vec<T,A>::push", true),
            ("<alloc::vec::Vec<u8> as core::clone::Clone>::clone", true),
            ("<[T]>::to_vec", true),
            ("<str>::to_owned", true),
            ("<T as alloc::string::ToString>::to_string", true),
            ("hashbrown::raw::RawTable<T,A>::reserve_rehash", true),
            ("rg::main", false),
            ("<rg::Flag as core::fmt::Debug>::fmt", false),
            ("rg::parse::{closure#0}", false),
            ("main", false),
            ("__rustc::__rdl_alloc", true),
            (
                "<jemalloc::Jemalloc as core::alloc::global::GlobalAlloc>::alloc",
                true,
            ),
        ];
        for (name, expect) in rows {
            assert_eq!(is_library(name), expect, "{name}");
        }
    }

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
            (
                "<alloc::boxed::Box<str> as core::clone::Clone>::clone",
                Some("u8"),
            ),
            (
                "<alloc::boxed::Box<[a::B]>>::new_uninit_slice",
                Some("a::B"),
            ),
            ("<alloc::boxed::Box<[u8; 4]>>::new", Some("[u8; 4]")),
            (
                "<alloc::string::String as core::clone::Clone>::clone",
                Some("u8"),
            ),
            ("alloc::string::String::push_str", Some("u8")),
            ("alloc::vec::Vec<", None),
            ("addr2line::line::path_push", Some("u8")),
        ];
        for (name, expect) in rows {
            assert_eq!(owned(name).map(|found| found.0), expect, "{name}");
        }
    }
}
