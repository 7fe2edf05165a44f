//! *Which types are named that debug info does not describe?*
//!
//! Functions of libc hand out a `FILE` or text in programs of any language, with debug info or without. Debug info of Rust
//! programs has no types for what its library stores, only names. Such types are declared: a name, and no members.

use super::model::{self, Makes};
use super::{cpp, rust};
use crate::dwarf::of_base;
use crate::elf::Elf;
use crate::facts::{Facts, Type};
use pointee_model::image::{TypeKind, type_flags};
use std::collections::HashSet;
use xxhash_rust::xxh3::xxh3_128;

/// `DW_ATE_signed_char`.
const SIGNED_CHARACTER: u8 = 6;

/// Declares them.
pub(crate) fn declare_named(elf: &Elf, facts: &mut Facts) {
    rust::declare(facts);
    of_the_model(elf, facts);
}

/// What the functions that the file takes from others are known to hand out.
fn of_the_model(elf: &Elf, facts: &mut Facts) {
    let imported = elf.symbols().filter(|symbol| !symbol.is_defined());
    let made: HashSet<Option<&str>> = imported
        .filter_map(|symbol| match model::row(symbol.name)?.makes {
            Makes::Whatever => None,
            Makes::Characters => Some(None),
            Makes::Object(tag) | Makes::Array(tag) => Some(Some(tag)),
        })
        .collect();
    let mut tags: Vec<&str> = made.iter().copied().flatten().collect();
    tags.retain(|tag| !facts.types.iter().any(|known| known.name == *tag));
    tags.sort_unstable();
    facts.types.extend(tags.into_iter().map(declared));
    if made.contains(&None) || elf.symbols().any(|it| cpp::makes_text(it.name)) {
        declare_text(facts);
    }
}

/// The type of text, if there is none.
pub(crate) fn declare_text(facts: &mut Facts) {
    let is_character = |known: &Type| {
        known.kind == TypeKind::Base
            && known.size == Some(1)
            && matches!(&*known.name, "char" | "i8")
    };
    if !facts.types.iter().any(is_character) {
        // Rust's `char` is another thing.
        let has_rust = facts.functions.iter().any(rust::is_rust);
        let name = if has_rust { "i8" } else { "char" };
        facts.types.push(Type {
            kind: TypeKind::Base,
            size: Some(1),
            encoding: SIGNED_CHARACTER,
            flags: 0,
            identity: of_base(name, 1, SIGNED_CHARACTER),
            ..declared(name)
        });
    }
}

/// A struct of which nothing but the name is known.
pub(super) fn declared(name: &str) -> Type {
    let identity = xxh3_128(format!("declared by name: {name}").as_bytes());
    Type {
        kind: TypeKind::Struct,
        size: None,
        name: name.to_owned(),
        target: None,
        count: None,
        members: Vec::new(),
        enumerators: Vec::new(),
        encoding: 0,
        flags: type_flags::DECLARATION,
        arguments: Vec::new(),
        identity: identity.to_le_bytes(),
        file: None,
    }
}
