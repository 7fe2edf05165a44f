//! *Is there anything to record in a statically linked program?*
//!
//! Its allocation functions have to be known by name: from its own symbols, from a debug file (then its image, which was
//! made for that, has them), or because the configuration says so. A program that asks about itself (`pointee.h`) is served in any case.

use crate::configuration;
use pointee_meta::cache;
use pointee_meta::elf::Elf;
use pointee_meta::link_map::Learned;
use pointee_model::entries::{FAMILIES, FAMILY};
use std::path::Path;

/// Sanitizers' own start functions.
const SANITIZERS: [&str; 5] = [
    "__asan_init",
    "__tsan_init",
    "__hwasan_init",
    "__msan_init",
    "__lsan_init",
];

/// Why the runtime has no business in the statically linked `program`; `None` if it has.
pub(crate) fn why_unseen(program: &Path) -> Option<String> {
    let elf = match Elf::open(program) {
        Ok(elf) => elf,
        Err(error) => return Some(format!("statically linked: {error}")),
    };
    let mut families = [[false; FAMILY]; FAMILIES.len()];
    let mut allocates = false;
    let mut is_stripped = true;
    for symbol in elf
        .symbols()
        .filter(|symbol| symbol.is_function() && symbol.is_defined())
    {
        is_stripped = false;
        if SANITIZERS.contains(&symbol.name) {
            return Some("built with a sanitizer, which has a malloc of its own".to_owned());
        }
        for (seen, family) in families.iter_mut().zip(&FAMILIES) {
            for (seen, (name, _)) in seen.iter_mut().zip(family) {
                *seen |= symbol.name == *name;
            }
            allocates |= symbol.name == family[0].0 && !symbol.is_local();
        }
    }
    let is_named = allocates || families.iter().any(|seen| seen[0] && seen[1]);
    if is_named || elf.section(".note.pointee").is_some() || has_entries(&elf) {
        return None;
    }
    let why = if is_stripped {
        "it has no symbols"
    } else {
        "none has a known name"
    };
    Some(format!(
        "statically linked, and its allocation functions are not known: {why}"
    ))
}

/// Whether its image, if there is one already, knows allocation functions.
fn has_entries(elf: &Elf) -> bool {
    cache::existing(elf, &Learned::default(), &configuration::options())
        .is_some_and(|image| !image.image().entries.is_empty())
}
