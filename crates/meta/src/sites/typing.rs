//! *Which types may lie at an offset, and which types are the same?*
//!
//! Types are compared *stripped*: typedefs and qualifiers removed, a declaration replaced by the
//! definition of that name. `void` has no index here: a pointer's target is a [`Pointee`].

use crate::facts::{Facts, Type};
use pointee_model::image::{TypeIndex, TypeKind, member_flags, type_flags};
use std::collections::HashMap;

/// How deep nested types are followed; cyclic input ends here.
const DEPTH: u32 = 24;

/// What a pointer points to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pointee {
    /// `void`.
    Void,
    /// A type, stripped.
    Type(TypeIndex),
}

/// The types of one file.
pub(super) struct Types<'f> {
    types: &'f [Type],
    /// For pointers and arrays, the first type that differs in qualifiers and typedefs only.
    same: Vec<TypeIndex>,
    /// By name; several where files of the program each have their own.
    definitions: HashMap<&'f str, Vec<TypeIndex>>,
    named: HashMap<&'f str, Vec<TypeIndex>>,
    /// By what they point to, stripped, `None` for `void`: the first such pointer type.
    pointers: HashMap<Option<TypeIndex>, TypeIndex>,
}

impl<'f> Types<'f> {
    pub(super) fn new(facts: &'f Facts) -> Self {
        let mut definitions: HashMap<&str, Vec<TypeIndex>> = HashMap::new();
        let mut named: HashMap<&str, Vec<TypeIndex>> = HashMap::new();
        for (index, entry) in (0..).zip(&facts.types) {
            if entry.name.is_empty() {
                continue;
            }
            named.entry(&entry.name).or_default().push(index);
            if is_record(entry.kind) && entry.flags & type_flags::DECLARATION == 0 {
                definitions.entry(&entry.name).or_default().push(index);
            }
        }
        let mut types = Self {
            types: &facts.types,
            same: Vec::new(),
            definitions,
            named,
            pointers: HashMap::new(),
        };
        types.same = types.find_same_records();
        for known in types.definitions.values_mut() {
            let mut unique: Vec<TypeIndex> = Vec::new();
            for at in known.iter() {
                let first = types.same.get(*at as usize).copied().unwrap_or(*at);
                if !unique.contains(&first) {
                    unique.push(first);
                }
            }
            *known = unique;
        }
        types.same = types.find_same();
        for (at, entry) in (0..).zip(&facts.types) {
            if entry.kind == TypeKind::Pointer {
                let target = match types.pointee(at) {
                    Some(Pointee::Type(target)) => Some(target),
                    _ => None,
                };
                let pointer = types.strip(at);
                types.pointers.entry(target).or_insert(pointer);
            }
        }
        types
    }

    /// Chains of pointers are followed to their end: `char *const *` and `char **` are one type.
    fn find_same(&self) -> Vec<TypeIndex> {
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

    /// For records, the first of that name with the same members at the same places: a unit that only
    /// declares what a member points to has another type of the same record.
    fn find_same_records(&self) -> Vec<TypeIndex> {
        /// Name, kind, size; names and offsets of the members.
        type Layout<'n> = (&'n str, TypeKind, Option<u64>, Vec<(&'n str, u64)>);
        let mut first: HashMap<Layout<'_>, TypeIndex> = HashMap::new();
        (0..)
            .zip(self.types)
            .map(|(at, entry)| {
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

    pub(super) fn get(&self, index: TypeIndex) -> Option<&'f Type> {
        self.types.get(index as usize)
    }

    /// Without typedefs and qualifiers, and defined if the file has a definition. Pointers and
    /// arrays that differ in the qualifiers of what they point to are one.
    pub(super) fn strip(&self, index: TypeIndex) -> TypeIndex {
        let bare = self.bare(index);
        self.same.get(bare as usize).copied().unwrap_or(bare)
    }

    /// The definitions that a declaration may mean.
    pub(super) fn meant(&self, index: TypeIndex) -> &[TypeIndex] {
        self.get(index)
            .filter(|entry| entry.flags & type_flags::DECLARATION != 0)
            .and_then(|entry| self.definitions.get(entry.name.as_str()))
            .map_or(&[], Vec::as_slice)
    }

    fn bare(&self, mut index: TypeIndex) -> TypeIndex {
        for _ in 0..DEPTH * 2 {
            let Some(entry) = self.get(index) else {
                break;
            };
            match (entry.kind, entry.target) {
                (kind, Some(target)) if is_alias(kind) => index = target,
                _ if is_record(entry.kind) && entry.flags & type_flags::DECLARATION != 0 => {
                    return match self.meant(index) {
                        [only] => *only,
                        _ => index,
                    };
                }
                _ => break,
            }
        }
        index
    }

    /// Size in bytes of a type, through arrays.
    pub(super) fn size(&self, index: TypeIndex) -> Option<u64> {
        self.size_within(index, DEPTH)
    }

    fn size_within(&self, index: TypeIndex, depth: u32) -> Option<u64> {
        let entry = self.get(self.strip(index))?;
        match entry.kind {
            TypeKind::Array => entry.size.or_else(|| {
                let element = self.size_within(entry.target?, depth.checked_sub(1)?)?;
                element.checked_mul(entry.count?)
            }),
            TypeKind::Pointer | TypeKind::Reference | TypeKind::RvalueReference => {
                entry.size.or(Some(8))
            }
            _ => entry.size,
        }
    }

    /// The target of a pointer or reference; `None` for other types.
    pub(super) fn pointee(&self, index: TypeIndex) -> Option<Pointee> {
        let entry = self.get(self.strip(index))?;
        if !matches!(
            entry.kind,
            TypeKind::Pointer | TypeKind::Reference | TypeKind::RvalueReference
        ) {
            return None;
        }
        let Some(target) = entry.target else {
            return Some(Pointee::Void);
        };
        let target = self.strip(target);
        match self.get(target).map(|entry| (entry.kind, entry.target)) {
            None
            | Some((TypeKind::Void | TypeKind::Unknown, _))
            // A qualifier of nothing: `const void`.
            | Some((TypeKind::Typedef | TypeKind::Const | TypeKind::Volatile, None)) => {
                Some(Pointee::Void)
            }
            _ => Some(Pointee::Type(target)),
        }
    }

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

    /// Whether `index` is a character or byte.
    pub(super) fn is_character(&self, index: TypeIndex) -> bool {
        self.get(index).is_some_and(|entry| {
            entry.kind == TypeKind::Base && entry.size == Some(1) && entry.encoding != 2
        })
    }

    /// Whether `index` is an integer of whatever size.
    pub(super) fn is_integer(&self, index: TypeIndex) -> bool {
        /// `DW_ATE_float` and its complex and imaginary forms.
        const FLOATS: [u8; 3] = [3, 4, 9];
        self.get(index)
            .is_some_and(|entry| entry.kind == TypeKind::Base && !FLOATS.contains(&entry.encoding))
    }

    /// Whether `index` is a number of one byte, as `u8`.
    pub(super) fn is_byte(&self, index: TypeIndex) -> bool {
        self.is_character(index) && !self.is_text(index)
    }

    /// Whether `index` is plain `char`, as in text.
    pub(super) fn is_text(&self, index: TypeIndex) -> bool {
        self.get(index).is_some_and(|entry| entry.name == "char") && self.is_character(index)
    }

    /// Whether an object of type `whole` starts with everything `part` has: as its base class, its
    /// first member, or member by member (a common header repeated in each struct).
    pub(super) fn starts_with(&self, whole: TypeIndex, part: TypeIndex) -> bool {
        self.starts_within(self.strip(whole), self.strip(part), 8)
    }

    fn starts_within(&self, whole: TypeIndex, part: TypeIndex, depth: u32) -> bool {
        if whole == part {
            return true;
        }
        let (Some(outer), Some(inner), Some(depth)) =
            (self.get(whole), self.get(part), depth.checked_sub(1))
        else {
            return false;
        };
        let first = outer.members.iter().any(|member| {
            member.offset == 0
                && member.flags & member_flags::VIRTUAL_BASE == 0
                && member.bit_size == 0
                && self.starts_within(self.strip(member.r#type), part, depth)
        });
        let element = outer.kind == TypeKind::Array
            && outer
                .target
                .is_some_and(|target| self.starts_within(self.strip(target), part, depth));
        first
            || element
            || self.leaves_open(outer, inner)
            || (matches!(inner.kind, TypeKind::Struct)
                && inner.members.len() >= 2
                && inner.members.len() < outer.members.len()
                && inner.members.iter().zip(&outer.members).all(|(a, b)| {
                    a.offset == b.offset
                        && a.bit_offset == b.bit_offset
                        && self.strip(a.r#type) == self.strip(b.r#type)
                }))
    }

    /// Whether `inner` is a number that tells the kind and bytes for whatever that kind has, as `struct
    /// sockaddr` is, and `outer` of such a kind.
    fn leaves_open(&self, outer: &Type, inner: &Type) -> bool {
        let ([kind, open], Some(first)) = (&inner.members[..], outer.members.first()) else {
            return false;
        };
        let bytes = self.element(open.r#type);
        inner.kind == TypeKind::Struct
            && outer.kind == TypeKind::Struct
            && self.is_integer(self.strip(kind.r#type))
            && bytes.is_some_and(|element| self.is_character(element))
            && (kind.offset, self.strip(kind.r#type)) == (first.offset, self.strip(first.r#type))
            && outer.members.len() >= 2
            && outer.size >= inner.size
    }

    /// Whether `index` has members.
    pub(super) fn is_structure(&self, index: TypeIndex) -> bool {
        self.get(self.strip(index)).is_some_and(|entry| {
            matches!(
                entry.kind,
                TypeKind::Struct | TypeKind::Class | TypeKind::Union | TypeKind::Variant
            )
        })
    }

    /// Whether any other record starts with `index`.
    pub(super) fn is_base(&self, index: TypeIndex) -> bool {
        let base = self.strip(index);
        (0..).zip(self.types).any(|(at, entry)| {
            let record = matches!(entry.kind, TypeKind::Struct | TypeKind::Class);
            record && self.strip(at) != base && self.starts_with(at, base)
        })
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

    /// The types of a name, in order of index.
    pub(super) fn named(&self, name: &str) -> &[TypeIndex] {
        self.named.get(name).map_or(&[], Vec::as_slice)
    }

    /// The element of an array type of known length.
    pub(super) fn element(&self, index: TypeIndex) -> Option<TypeIndex> {
        let entry = self.get(self.strip(index))?;
        (entry.kind == TypeKind::Array && entry.count.is_some())
            .then_some(entry.target)
            .flatten()
            .map(|at| self.strip(at))
    }

    /// The element of an array type whose length is not stated.
    pub(super) fn open_element(&self, index: TypeIndex) -> Option<TypeIndex> {
        let entry = self.get(self.strip(index))?;
        (entry.kind == TypeKind::Array && entry.count.is_none())
            .then_some(entry.target)
            .flatten()
            .map(|at| self.strip(at))
    }

    /// Whether `index` is a pointer to what may not be written through it.
    pub(super) fn points_to_const(&self, index: TypeIndex) -> bool {
        let mut next = Some(index);
        let mut is_target = false;
        for _ in 0..DEPTH {
            let Some(entry) = next.and_then(|at| self.get(at)) else {
                return false;
            };
            match entry.kind {
                TypeKind::Const if is_target => return true,
                TypeKind::Pointer if is_target => return false,
                TypeKind::Pointer => is_target = true,
                kind if is_alias(kind) => {}
                _ => return false,
            }
            next = entry.target;
        }
        false
    }

    /// The pointer type to `target`, if the file has one.
    pub(super) fn pointer_to(&self, target: TypeIndex) -> Option<TypeIndex> {
        self.pointers.get(&Some(self.strip(target))).copied()
    }

    /// The type `void *`, if the file has it.
    pub(super) fn void_pointer(&self) -> Option<TypeIndex> {
        self.pointers.get(&None).copied()
    }

    /// Plain `char`; what other languages call the same, if the file has none.
    pub(super) fn text(&self) -> Option<TypeIndex> {
        let named = |name: &str| self.named(name).iter().copied();
        named("char")
            .find(|at| self.is_text(*at))
            .or_else(|| named("i8").find(|at| self.is_character(*at)))
    }

    /// The struct or class of a tag, defined if possible.
    pub(super) fn record(&self, tag: &str) -> Option<TypeIndex> {
        self.named(tag)
            .iter()
            .copied()
            .find(|at| self.get(*at).is_some_and(|entry| is_record(entry.kind)))
            .map(|at| self.strip(at))
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

fn is_alias(kind: TypeKind) -> bool {
    matches!(
        kind,
        TypeKind::Typedef
            | TypeKind::Const
            | TypeKind::Volatile
            | TypeKind::Restrict
            | TypeKind::Atomic
    )
}

fn is_record(kind: TypeKind) -> bool {
    matches!(
        kind,
        TypeKind::Struct | TypeKind::Class | TypeKind::Union | TypeKind::Variant | TypeKind::Enum
    )
}
