//! *Which types of a file are one type?*
//!
//! Records of one name whose members lie at the same places, base types under the names of their typedefs, and pointers and arrays that differ in typedefs and qualifiers only.

use super::typing::{Types, is_alias};
use crate::facts::Type;
use pointee_model::image::{TypeIndex, TypeKind, type_flags};
use std::collections::HashMap;

impl<'f> Types<'f> {
    /// Chains of pointers are followed to their end: `char *const *` and `char **` are one type.
    pub(super) fn find_same(&self) -> Vec<TypeIndex> {
        type Chain<'f> = Vec<(TypeKind, Option<u64>, &'f str)>;
        let mut first: HashMap<(Chain<'_>, Option<TypeIndex>), TypeIndex> = HashMap::new();
        let records = &self.same;
        let mut same = records.clone();
        // By shape: what stands for it, and whether that is written without typedefs and qualifiers.
        let mut plainest: HashMap<TypeIndex, (TypeIndex, bool)> = HashMap::new();
        for (at, own) in (0..).zip(&mut same) {
            let mut shape = Vec::new();
            let mut target = Some(at);
            let mut bare = true;
            while let Some(entry) = target.and_then(|at| self.get(self.bare(at)))
                && matches!(
                    entry.kind,
                    TypeKind::Pointer | TypeKind::Reference | TypeKind::Array
                )
                && shape.len() < 16
            {
                shape.push((entry.kind, entry.count, sigil(&entry.name)));
                target = entry.target;
                bare &=
                    target.is_none_or(|at| self.get(at).is_some_and(|entry| !is_alias(entry.kind)));
            }
            let plain = !self.get(at).is_some_and(|entry| is_alias(entry.kind));
            if !shape.is_empty() && plain {
                let end = target
                    .map(|at| self.bare(at))
                    .map(|at| records.get(at as usize).copied().unwrap_or(at));
                let void = end.is_none_or(|end| {
                    self.get(end)
                        .is_none_or(|entry| entry.kind == TypeKind::Void || is_alias(entry.kind))
                });
                *own = *first.entry((shape, end.filter(|_| !void))).or_insert(at);
                let known = plainest.entry(*own).or_insert((at, bare));
                if bare && !known.1 {
                    *known = (at, true);
                }
            }
        }
        for own in &mut same {
            if let Some((plain, _)) = plainest.get(own) {
                *own = *plain;
            }
        }
        same
    }

    /// What a base type is that goes by the name of a typedef: gcc's link-time optimisation writes one for the other.
    fn written_as(&self, entry: &Type) -> Option<TypeIndex> {
        /// Types of C++ that C has typedefs of the name for (ISO C++20, [basic.fundamental]).
        const OWN: [&str; 5] = ["bool", "wchar_t", "char8_t", "char16_t", "char32_t"];
        if entry.kind != TypeKind::Base || OWN.contains(&entry.name.as_str()) {
            return None;
        }
        let named = self.named(&entry.name).iter().copied();
        let mut meant = named
            .filter(|at| {
                self.get(*at)
                    .is_some_and(|named| named.kind == TypeKind::Typedef)
            })
            .map(|at| self.bare(at));
        meant.find(|at| {
            self.get(*at).is_some_and(|base| {
                base.kind == TypeKind::Base
                    && base.name != entry.name
                    && (base.size, base.encoding) == (entry.size, entry.encoding)
            })
        })
    }

    /// For records, the first of that name with the same members at the same places: a unit that only
    /// declares what a member points to has another type of the same record.
    pub(super) fn find_same_records(&self) -> Vec<TypeIndex> {
        /// Name, kind, size; names and offsets of the members.
        type Layout<'n> = (&'n str, TypeKind, Option<u64>, Vec<(&'n str, u64)>);
        let mut first: HashMap<Layout<'_>, TypeIndex> = HashMap::new();
        (0..)
            .zip(self.types)
            .map(|(at, entry)| {
                if let Some(named) = self.written_as(entry) {
                    return named;
                }
                let whole = matches!(
                    entry.kind,
                    TypeKind::Struct | TypeKind::Class | TypeKind::Union
                );
                if !whole
                    || entry.name.is_empty()
                    || entry.flags & type_flags::DECLARATION != 0
                    || self.named(&entry.name).len() < 2
                {
                    return at;
                }
                let members = entry.members.iter();
                let members = members.map(|member| (member.name.as_str(), member.offset));
                let key = (
                    entry.name.as_str(),
                    entry.kind,
                    entry.size,
                    members.collect(),
                );
                *first.entry(key).or_insert(at)
            })
            .collect()
    }
}

/// What tells Rust's kinds of pointers apart, `&` from `*mut`; elsewhere pointers have no names.
fn sigil(name: &str) -> &str {
    let known = ["&mut ", "&", "*mut ", "*const "];
    known
        .into_iter()
        .find(|sigil| name.starts_with(sigil))
        .unwrap_or("")
}
