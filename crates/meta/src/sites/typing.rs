//! *Which types may lie at an offset, and which types are the same?*
//!
//! Types are compared *stripped*: typedefs and qualifiers removed, a declaration replaced by the
//! definition of that name. `void` has no index here: a pointer's target is a [`Pointee`].

use crate::facts::{Facts, Member, Type};
use pointee_model::image::{TypeIndex, TypeKind, member_flags, type_flags};
use std::collections::HashMap;

/// How deep nested types are followed; cyclic input ends here.
pub(super) const DEPTH: u32 = 24;

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
    pub(super) types: &'f [Type],
    /// For pointers and arrays, the first type that differs in qualifiers and typedefs only.
    pub(super) same: Vec<TypeIndex>,
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

    /// A name that the file has a type of.
    pub(super) fn name(&self, name: &str) -> Option<&'f str> {
        self.named.get_key_value(name).map(|(known, _)| *known)
    }

    /// All records that go by the name of one: files of the program may each have their own.
    pub(super) fn namesakes(&self, index: TypeIndex) -> &[TypeIndex] {
        match self.meant(index) {
            [] => self
                .get(index)
                .and_then(|entry| self.definitions.get(entry.name.as_str()))
                .filter(|all| all.contains(&index))
                .map_or(&[], Vec::as_slice),
            meant => meant,
        }
    }

    /// A declaration that several definitions have the name of means that of the file it is used in, if there is one.
    pub(super) fn in_file(&self, index: TypeIndex, file: Option<u32>) -> TypeIndex {
        let meant = self.meant(index);
        if meant.len() < 2 || file.is_none() {
            return index;
        }
        let is_own = |at: &&TypeIndex| self.get(**at).is_some_and(|entry| entry.file == file);
        let mut own = meant.iter().filter(is_own);
        match (own.next(), own.next()) {
            (Some(only), None) => *only,
            _ => index,
        }
    }

    pub(super) fn bare(&self, mut index: TypeIndex) -> TypeIndex {
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
        self.starts_within(self.strip(whole), self.strip(part), 8, true)
    }

    /// The same; `arrays` says whether an array starts with its first element.
    fn starts_within(&self, whole: TypeIndex, part: TypeIndex, depth: u32, arrays: bool) -> bool {
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
                && self.starts_within(self.strip(member.r#type), part, depth, arrays)
        });
        let first_of = |target| self.starts_within(self.strip(target), part, depth, arrays);
        let element = arrays && outer.kind == TypeKind::Array && outer.target.is_some_and(first_of);
        first
            || element
            || self.leaves_open(outer, part)
            || (matches!(inner.kind, TypeKind::Struct)
                && inner.members.len() >= 2
                && inner.members.len() < outer.members.len()
                && inner.members.iter().zip(&outer.members).all(|(a, b)| {
                    a.offset == b.offset
                        && a.bit_offset == b.bit_offset
                        && self.strip(a.r#type) == self.strip(b.r#type)
                }))
    }

    /// Whether `index` is a number that tells the kind and bytes for whatever that kind has, as `struct sockaddr` is.
    pub(super) fn is_open(&self, index: TypeIndex) -> bool {
        self.get(index)
            .is_some_and(|entry| entry.members.len() == 2 && self.tells_kind(entry).is_some())
    }

    /// How many numbers a record has, of which some tell its kind, before the bytes that it leaves to the kinds. What is behind
    /// these is there for its alignment; bytes of no stated number are an array of their own.
    fn tells_kind(&self, entry: &Type) -> Option<usize> {
        let is_bytes = |at: TypeIndex| {
            let element = self
                .element(at)
                .filter(|element| self.is_character(*element));
            element.is_some() && self.size(at) > Some(1)
        };
        let open = entry
            .members
            .iter()
            .position(|member| is_bytes(member.r#type))?;
        let numbers = entry.members.get(..open).unwrap_or(&[]);
        let behind = entry.members.get(open + 1..).unwrap_or(&[]);
        let is_kind = entry.kind == TypeKind::Struct
            && !numbers.is_empty()
            && numbers
                .iter()
                .all(|member| member.bit_size == 0 && self.is_integer(self.strip(member.r#type)))
            && behind
                .iter()
                .all(|member| self.size(member.r#type) == Some(0));
        is_kind.then_some(open)
    }

    /// Whether `outer` is of a kind that `inner` may tell: with all of its numbers, by name if they are several.
    fn leaves_open(&self, outer: &Type, inner: TypeIndex) -> bool {
        let Some(inner_type) = self.get(inner).filter(|_| outer.kind == TypeKind::Struct) else {
            return false;
        };
        let Some(numbers) = self.tells_kind(inner_type) else {
            return false;
        };
        let alike = |(own, its): (&Member, &Member)| {
            (own.offset, own.bit_size) == (its.offset, its.bit_size)
                && self.strip(own.r#type) == self.strip(its.r#type)
                && (numbers == 1 || own.name == its.name)
        };
        outer.members.len() > numbers
            && outer
                .members
                .iter()
                .zip(&inner_type.members[..numbers])
                .all(alike)
            && (numbers > 1 || outer.size >= self.size(inner))
    }

    /// Whether `index` is a record of nothing but a pointer to the next one.
    pub(super) fn is_link(&self, index: TypeIndex) -> bool {
        let record = self.strip(index);
        let only = self.get(record).map(|entry| &entry.members[..]);
        matches!(only, Some([next]) if self.pointee(next.r#type) == Some(Pointee::Type(record)))
            && self.is_structure(record)
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

    /// Whether any other record starts with one `index`; what starts with several is no kind of it.
    pub(super) fn is_base(&self, index: TypeIndex) -> bool {
        let base = self.strip(index);
        (0..).zip(self.types).any(|(at, entry)| {
            let record = matches!(entry.kind, TypeKind::Struct | TypeKind::Class);
            let at = self.strip(at);
            record && at != base && self.starts_within(at, base, 8, false)
        })
    }

    /// Whether a record of so many bytes, at least without an array at its end, starts with `index`: as its first member only, if
    /// that is wanted.
    pub(super) fn has_derived(&self, index: TypeIndex, bytes: u64, as_member: bool) -> bool {
        let base = self.strip(index);
        (0..).zip(self.types).any(|(at, entry)| {
            matches!(entry.kind, TypeKind::Struct | TypeKind::Class)
                && entry.size.is_some_and(|size| {
                    size == bytes || self.flexible(at).is_some_and(|(end, _)| end == bytes)
                })
                && self.strip(at) != base
                && self.starts_with(at, base)
                && !self.writes_out(entry, base)
                && (!as_member
                    || entry.members.first().is_some_and(|first| {
                        first.offset == 0
                            && self.is_structure(first.r#type)
                            && self.starts_with(first.r#type, base)
                    }))
        })
    }

    /// Whether `outer` is no more than a `head` with elements of the array that this ends with.
    fn writes_out(&self, outer: &Type, head: TypeIndex) -> bool {
        let (Some((_, element)), [first, rest @ ..]) = (self.flexible(head), &outer.members[..])
        else {
            return false;
        };
        let is_element =
            |of: TypeIndex| self.strip(of) == element || self.element(of) == Some(element);
        self.strip(first.r#type) == head
            && !rest.is_empty()
            && rest.iter().all(|member| is_element(member.r#type))
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

    /// What C and C++ count with, `size_t` by its own name.
    pub(super) fn count(&self) -> Option<TypeIndex> {
        let names = ["long unsigned int", "unsigned long"];
        let named = names.iter().flat_map(|name| self.named(name));
        let is_word = |at: &TypeIndex| self.is_integer(*at) && self.size(*at) == Some(8);
        named.copied().find(is_word)
    }

    /// The type of an identity, if the file has it.
    pub(super) fn identified(&self, identity: [u8; 16]) -> Option<TypeIndex> {
        let at = self.types.iter().position(|it| it.identity == identity)?;
        Some(self.strip(u32::try_from(at).ok()?))
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

pub(super) fn is_alias(kind: TypeKind) -> bool {
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
