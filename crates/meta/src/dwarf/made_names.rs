//! *Which qualified name is this?* — one text for each, however many units make it.
//!
//! Units repeat what headers declare: the names made from scopes would take more memory than the debug info. What is asked for is told by where
//! its parts lie, which costs less than their text: a scope is a name of this table, and most names are pieces of one string section that the
//! linker has merged. A short name may lie in the entry itself, so it tells for itself.

use bumpalo::Bump;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

/// So many threads rarely wait for one another.
const SHARDS: usize = 64;

/// Names of all units, with the arenas of the units that asked first.
pub(super) struct MadeNames<'n> {
    shards: [Mutex<HashMap<Parts, &'n str>>; SHARDS],
    hasher: RandomState,
}

/// Where a scope lies and how long it is, and the same of a name, or a short name's text.
type Parts = (usize, usize, Text);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Text {
    Short([u8; 8]),
    At(usize, usize),
}

impl Text {
    fn of(name: &str) -> Self {
        let mut short = [0xff; 8]; // no byte of a text
        match short.get_mut(..name.len()) {
            Some(own) => {
                own.copy_from_slice(name.as_bytes());
                Self::Short(short)
            }
            None => Self::At(name.as_ptr().addr(), name.len()),
        }
    }
}

impl<'n> MadeNames<'n> {
    pub(super) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
        }
    }

    /// `scope::name`, made in `arena` if it is not there. Both texts live as long as the names.
    pub(super) fn qualified(&self, scope: &'n str, name: &'n str, arena: &'n Bump) -> &'n str {
        let parts = (scope.as_ptr().addr(), scope.len(), Text::of(name));
        let shard = self.hasher.hash_one(parts) as usize % SHARDS;
        let mut shard = self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        shard.entry(parts).or_insert_with(|| {
            let mut made =
                bumpalo::collections::String::with_capacity_in(scope.len() + 2 + name.len(), arena);
            made.push_str(scope);
            made.push_str("::");
            made.push_str(name);
            made.into_bump_str()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_for_each() {
        let arena = Bump::new();
        let names = MadeNames::new();
        let scope = names.qualified("std", "__detail", &arena);
        let rows = [
            (scope, "a"),
            (scope, ""),
            (scope, "eight by"),
            (scope, "more than eight"),
            ("", "a"),
            ("other", "more than eight"),
        ];
        for (scope, name) in rows {
            let made = names.qualified(scope, name, &arena);
            assert_eq!(made, format!("{scope}::{name}"));
            // A short name may lie anywhere.
            let again = if name.len() <= 8 {
                arena.alloc_str(name)
            } else {
                name
            };
            assert!(std::ptr::eq(made, names.qualified(scope, again, &arena)));
        }
    }
}
