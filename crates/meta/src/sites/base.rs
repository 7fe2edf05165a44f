//! *Is what a function returns a base, or all that its callers get?*
//!
//! `Node *new_node(size_t size)` hands out what starts with a `Node`, and which kind of node only the
//! caller knows. `Pool *create_pool(size_t size)` looks the same and hands out one pool and the memory
//! behind it. They are told apart by the program: of the former some caller sees another type, or
//! some type starts with the base.

use super::Site;
use super::calls::Key;
use super::typing::Types;
use super::wrappers::Allocators;
use pointee_model::evidence::Role;
use pointee_model::image::TypeIndex;
use std::collections::{HashMap, HashSet};

/// Gives the sites whose type is no more than a base their role, where nothing is derived from it.
pub(super) fn settle(types: &Types<'_>, allocators: &Allocators<'_>, sites: &mut [(Key, Site)]) {
    let mut bases: HashMap<Key, TypeIndex> = HashMap::new();
    for (callee, site) in &*sites {
        if site.role == Role::Base
            && let Some(base) = site.r#type
        {
            bases.insert(*callee, base);
        }
    }
    if bases.is_empty() {
        return;
    }
    let others: HashSet<Key> = sites
        .iter()
        .filter(|(callee, site)| {
            let base = bases.get(callee);
            base.is_some() && site.r#type.is_some() && site.r#type != base.copied()
        })
        .map(|(callee, _)| *callee)
        .collect();
    let mut derived: HashMap<TypeIndex, bool> = HashMap::new();
    bases.retain(|callee, base| {
        let known = allocators.get(*callee).and_then(|known| known.base);
        !others.contains(callee)
            && known == Some(*base)
            && !*derived.entry(*base).or_insert_with(|| types.is_base(*base))
    });
    for (callee, site) in sites {
        if site.role == Role::Base && bases.contains_key(callee) {
            site.role = Role::Header;
        }
    }
}
