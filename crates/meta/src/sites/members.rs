//! *What lies at an offset in an object of a type?*
//!
//! Scalars, one for each arm of a union; the record that an offset falls in; the array that a record ends with.

use super::typing::{DEPTH, Pointee, Types};
use pointee_model::image::{TypeIndex, TypeKind};

/// A union that a struct ends with.
#[derive(Clone, Copy)]
pub(super) struct OpenUnion {
    /// Where it begins.
    pub(super) offset: u64,
    /// Where its smallest arm ends.
    pub(super) smallest: u64,
    /// The element of an arm that is an array.
    pub(super) element: Option<TypeIndex>,
}

impl Types<'_> {
    /// The stripped types of all scalars that start at `offset` in `index`, one for each union arm.
    pub(super) fn leaves(&self, index: TypeIndex, offset: u64) -> Vec<TypeIndex> {
        let mut leaves = Vec::new();
        self.collect_leaves(index, offset, DEPTH, &mut leaves);
        leaves
    }

    fn collect_leaves(&self, index: TypeIndex, offset: u64, depth: u32, out: &mut Vec<TypeIndex>) {
        let index = self.strip(index);
        let (Some(entry), Some(depth)) = (self.get(index), depth.checked_sub(1)) else {
            return;
        };
        match entry.kind {
            TypeKind::Struct | TypeKind::Class | TypeKind::Union | TypeKind::Variant => {
                for member in &entry.members {
                    let covers = member.bit_size == 0
                        && member.offset <= offset
                        && self
                            .size(member.r#type)
                            .is_none_or(|size| offset - member.offset < size.max(1));
                    // A flexible array member has no size and reaches to the end.
                    if covers && out.len() < 64 {
                        self.collect_leaves(member.r#type, offset - member.offset, depth, out);
                    }
                }
            }
            TypeKind::Array => {
                if let Some(element) = entry.target
                    && let Some(size) = self.size(element).filter(|size| *size > 0)
                {
                    self.collect_leaves(element, offset % size, depth, out);
                }
            }
            _ if offset == 0 && !out.contains(&index) => out.push(index),
            _ => {}
        }
    }

    /// The record within record `index`, however deep, that has the member at `offset`, and the offset in it.
    pub(super) fn innermost(&self, index: TypeIndex, offset: i64) -> (TypeIndex, i64) {
        let (mut index, mut offset) = (self.strip(index), offset);
        for _ in 0..DEPTH {
            let members = self.get(index).map_or(&[][..], |entry| &entry.members);
            let inner = members.iter().find_map(|member| {
                let at = offset.checked_sub(i64::try_from(member.offset).ok()?)?;
                let inner = self.strip(member.r#type);
                let kind = self.get(inner)?.kind;
                let lies_in = u64::try_from(at).is_ok_and(|at| Some(at) < self.size(inner));
                (lies_in && matches!(kind, TypeKind::Struct | TypeKind::Class))
                    .then_some((inner, at))
            });
            let Some(inner) = inner else {
                break;
            };
            (index, offset) = inner;
        }
        (index, offset)
    }

    /// Where the pointers at `offset` in `index` point, one for each union arm; empty if none is
    /// there. An offset past the end yields nothing: the object is of some derived type.
    pub(super) fn pointees_at(&self, index: TypeIndex, offset: i64) -> Vec<Pointee> {
        let Ok(offset) = u64::try_from(offset) else {
            return Vec::new();
        };
        if self.size(index).is_some_and(|size| offset >= size) && self.flexible(index).is_none() {
            return Vec::new();
        }
        let mut pointees = Vec::new();
        for leaf in self.leaves(index, offset) {
            if let Some(pointee) = self.pointee(leaf)
                && !pointees.contains(&pointee)
            {
                pointees.push(pointee);
            }
        }
        pointees
    }

    /// The flexible array member at the end of a struct: its offset and element type.
    pub(super) fn flexible(&self, index: TypeIndex) -> Option<(u64, TypeIndex)> {
        // `[1]` is the old way to write it.
        let open = |count| matches!(count, None | Some(0 | 1 | u64::MAX));
        self.array_at_end(index, open)
            .or_else(|| self.slice_at_end(index))
            .or_else(|| self.flexible_arm(index))
    }

    /// The same, where nothing but what follows an object can be in it: an array of such objects has none of its elements.
    pub(super) fn open_end(&self, index: TypeIndex) -> Option<u64> {
        let open = |count| matches!(count, None | Some(0 | u64::MAX));
        self.array_at_end(index, open).map(|(offset, _)| offset)
    }

    /// The flexible array member that an arm of a union ends with.
    fn flexible_arm(&self, index: TypeIndex) -> Option<(u64, TypeIndex)> {
        let entry = self.get(self.strip(index))?;
        let arms = (entry.kind == TypeKind::Union).then_some(&entry.members)?;
        let open = |count| matches!(count, None | Some(0 | u64::MAX));
        let mut found = arms
            .iter()
            .filter_map(|arm| self.array_at_end(arm.r#type, open));
        found.next()
    }

    /// The slice that a Rust struct of no fixed size ends with: its member lies behind the end.
    fn slice_at_end(&self, index: TypeIndex) -> Option<(u64, TypeIndex)> {
        let entry = self.get(self.strip(index))?;
        let last = entry.members.last()?;
        let behind = entry.kind == TypeKind::Struct && Some(last.offset) >= entry.size;
        let element = self.strip(last.r#type);
        (behind && last.bit_size == 0 && self.size(element)? > 0).then_some((last.offset, element))
    }

    /// The union that a struct ends with. Who needs one of its arms only may allocate no more than that.
    pub(super) fn union_at_end(&self, index: TypeIndex) -> Option<OpenUnion> {
        let entry = self.get(self.strip(index))?;
        let last = entry.members.last()?;
        let union = self.get(self.strip(last.r#type))?;
        let is_end = matches!(entry.kind, TypeKind::Struct | TypeKind::Class)
            && union.kind == TypeKind::Union
            && entry.members.len() > 1;
        if !is_end {
            return None;
        }
        let arms = || union.members.iter().map(|arm| self.strip(arm.r#type));
        let smallest = arms().filter_map(|arm| self.size(arm)).min()?;
        Some(OpenUnion {
            offset: last.offset,
            smallest: last.offset.checked_add(smallest)?,
            element: arms().find_map(|arm| self.element(arm)),
        })
    }

    /// The array member at the end of a struct, of whatever length: its offset and element type.
    pub(super) fn last_array(&self, index: TypeIndex) -> Option<(u64, TypeIndex)> {
        self.array_at_end(index, |_| true)
    }

    fn array_at_end(
        &self,
        index: TypeIndex,
        length: impl Fn(Option<u64>) -> bool,
    ) -> Option<(u64, TypeIndex)> {
        let entry = self.get(self.strip(index))?;
        if !matches!(entry.kind, TypeKind::Struct | TypeKind::Class) {
            return None;
        }
        let last = entry.members.last()?;
        let array = self.get(self.strip(last.r#type))?;
        // A lone array is not a header.
        (array.kind == TypeKind::Array && length(array.count) && entry.members.len() > 1)
            .then(|| Some((last.offset, self.strip(array.target?))))
            .flatten()
    }

    /// The member at `offset` of an object, as a path: `request.headers.first`.
    pub(super) fn path(&self, index: TypeIndex, offset: i64) -> String {
        let mut index = self.strip(index);
        let mut path = self
            .get(index)
            .map_or_else(String::new, |entry| entry.name.clone());
        let Ok(mut offset) = u64::try_from(offset) else {
            return path;
        };
        for _ in 0..DEPTH {
            let Some(entry) = self.get(index) else {
                break;
            };
            let inner = match entry.kind {
                TypeKind::Array => entry.target.zip(entry.target.and_then(|at| self.size(at))),
                _ => None,
            };
            if let Some((element, size)) = inner.filter(|(_, size)| *size > 0) {
                path.push_str("[]");
                offset %= size;
                index = self.strip(element);
                continue;
            }
            let covering = entry.members.iter().find(|member| {
                member.offset <= offset
                    && self
                        .size(member.r#type)
                        .is_none_or(|size| offset - member.offset < size)
            });
            let Some(member) = covering else {
                break;
            };
            if !member.name.is_empty() {
                path.push('.');
                path.push_str(&member.name);
            }
            offset -= member.offset;
            index = self.strip(member.r#type);
        }
        path
    }
}
