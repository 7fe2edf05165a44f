//! *Which type of a file does a text name?* — as C, C++ and Rust write types: `struct T`, `T`, `ns::T<U>`, `unsigned long`,
//! `const T *`, `void **`, `T[8]`.
//!
//! Qualifiers count for nothing, nor does the order of words like `long unsigned int`. A tag must be that of
//! the type where it is given.

use crate::facts::{Facts, Type};
use pointee_model::image::{TypeIndex, TypeKind};

/// Pointers to pointers and arrays of arrays that are followed.
const DEPTH: u32 = 8;

/// The type that `text` names, if the file has it.
pub(super) fn find(facts: &Facts, text: &str) -> Option<TypeIndex> {
    find_within(facts, text, DEPTH)
}

fn find_within(facts: &Facts, text: &str, depth: u32) -> Option<TypeIndex> {
    let depth = depth.checked_sub(1)?;
    let text = without_qualifiers(text);
    let text = text.trim();
    let whole = || named(facts, text);
    if let Some(target) = text.strip_suffix('*') {
        let target = match target.trim() {
            "void" => None,
            target => Some(find_within(facts, target, depth)?),
        };
        return whole().or_else(|| {
            position(facts, |entry| {
                entry.kind == TypeKind::Pointer && bare(facts, entry.target) == bare(facts, target)
            })
        });
    }
    if let Some((element, count)) = text
        .strip_suffix(']')
        .and_then(|rest| rest.rsplit_once('['))
    {
        let element = find_within(facts, element, depth)?;
        let count: u64 = count.trim().parse().ok()?;
        return whole().or_else(|| {
            position(facts, |entry| {
                entry.kind == TypeKind::Array
                    && entry.count == Some(count)
                    && bare(facts, entry.target) == bare(facts, Some(element))
            })
        });
    }
    whole()
}

fn named(facts: &Facts, text: &str) -> Option<TypeIndex> {
    let (tag, name) = match text.split_once(' ') {
        Some((tag @ ("struct" | "union" | "enum" | "class"), name)) => (tag, name.trim()),
        _ => ("", text),
    };
    let number = number_words(name);
    let is_it = |entry: &Type| match (tag, entry.kind) {
        ("struct" | "class", kind) => matches!(kind, TypeKind::Struct | TypeKind::Class),
        ("union", kind) => kind == TypeKind::Union,
        ("enum", kind) => kind == TypeKind::Enum,
        (_, TypeKind::Base) if number.is_some() => number_words(&entry.name) == number,
        // Pointers have names in Rust only, where they are spelled out.
        _ => true,
    };
    let is_named = |entry: &Type| {
        let same = entry.name == name || (number.is_some() && entry.kind == TypeKind::Base);
        same && !entry.name.is_empty() && is_it(entry)
    };
    // A declaration is worth less than what it declares.
    position(facts, |entry| is_named(entry) && entry.size.is_some())
        .or_else(|| position(facts, is_named))
}

fn position(facts: &Facts, test: impl Fn(&Type) -> bool) -> Option<TypeIndex> {
    let found = facts.types.iter().position(test)?;
    TypeIndex::try_from(found).ok()
}

/// What is left of a type without qualifiers; `None` for `void`.
fn bare(facts: &Facts, mut at: Option<TypeIndex>) -> Option<TypeIndex> {
    for _ in 0..DEPTH {
        let entry = facts.types.get(at? as usize)?;
        match entry.kind {
            TypeKind::Const | TypeKind::Volatile | TypeKind::Restrict | TypeKind::Atomic => {
                at = entry.target;
            }
            TypeKind::Void => return None,
            _ => break,
        }
    }
    at
}

/// Rust's `*const T` keeps its word.
fn without_qualifiers(text: &str) -> String {
    if text.contains("*const ") {
        return text.to_owned();
    }
    let words = text.replace('*', " * ");
    let kept = words
        .split_whitespace()
        .filter(|word| !matches!(*word, "const" | "volatile" | "restrict" | "_Atomic"));
    let spaced = kept.collect::<Vec<_>>().join(" ");
    // Rust's, and pointers within template arguments, are written without blanks.
    if text.starts_with('*') || text.contains('<') {
        text.trim().to_owned()
    } else {
        spaced.replace("* *", "**").replace("* *", "**")
    }
}

/// The words of C's name of a number type in one order, `int` left out where another word says as much.
fn number_words(name: &str) -> Option<Vec<&str>> {
    const WORDS: [&str; 10] = [
        "signed", "unsigned", "short", "long", "int", "char", "float", "double", "bool", "_Bool",
    ];
    let mut words: Vec<&str> = name.split_whitespace().collect();
    if words.is_empty() || words.iter().any(|word| !WORDS.contains(word)) {
        return None;
    }
    if !words.contains(&"char") {
        words.retain(|word| *word != "signed");
    }
    words.retain(|word| *word != "int");
    words.sort_unstable();
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Facts;

    fn entry(kind: TypeKind, name: &str, size: Option<u64>, target: Option<TypeIndex>) -> Type {
        Type {
            kind,
            name: name.to_owned(),
            size,
            target,
            count: None,
            members: Vec::new(),
            enumerators: Vec::new(),
            encoding: 0,
            flags: 0,
            arguments: Vec::new(),
            identity: [0; 16],
            file: None,
        }
    }

    #[test]
    fn texts() {
        let mut row_of_four = entry(TypeKind::Array, "", Some(64), Some(1));
        row_of_four.count = Some(4);
        let facts = Facts {
            types: vec![
                entry(TypeKind::Struct, "row", None, None),
                entry(TypeKind::Struct, "row", Some(16), None),
                entry(TypeKind::Base, "long unsigned int", Some(8), None),
                entry(TypeKind::Base, "char", Some(1), None),
                entry(TypeKind::Const, "", None, Some(3)),
                entry(TypeKind::Pointer, "", Some(8), Some(4)),
                entry(TypeKind::Pointer, "", Some(8), Some(5)),
                entry(TypeKind::Pointer, "", Some(8), None),
                row_of_four,
                entry(TypeKind::Class, "ns::list<int, char *>", Some(24), None),
                entry(TypeKind::Typedef, "row_t", None, Some(1)),
                entry(TypeKind::Base, "int", Some(4), None),
                entry(TypeKind::Pointer, "&row", Some(8), Some(1)),
            ],
            ..Facts::default()
        };
        for (text, expect) in [
            ("struct row", Some(1)),
            ("row", Some(1)),
            ("union row", None),
            ("unsigned long", Some(2)),
            ("unsigned long int", Some(2)),
            ("int", Some(11)),
            ("signed", Some(11)),
            ("char", Some(3)),
            ("char *", Some(5)),
            ("const char*", Some(5)),
            ("char **", Some(6)),
            ("char *const *", Some(6)),
            ("void *", Some(7)),
            ("struct row[4]", Some(8)),
            ("struct row [ 4 ]", Some(8)),
            ("ns::list<int, char *>", Some(9)),
            ("row_t", Some(10)),
            ("&row", Some(12)),
            ("row[5]", None),
            ("nothing", None),
            ("", None),
            ("*", None),
            ("]", None),
        ] {
            assert_eq!(find(&facts, text), expect, "{text}");
        }
    }
}
