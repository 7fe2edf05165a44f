//! *What does a unit say about types?* Type entries, their members, enumerators and dimensions.

use super::{Context, Owner, Walk, small};
use crate::dwarf::die::{Die, integer};
use crate::dwarf::raw::{RawEnumerator, RawMember, RawType, TypeRef};
use crate::dwarf::units::DieRef;
use gimli::{DwTag, constants as c};
use pointee_model::image::{TypeKind, member_flags, type_flags};

impl<'n, 'a: 'n> Walk<'_, 'n, 'a> {
    pub(super) fn r#type(
        &mut self,
        die: &Die<'a>,
        kind: TypeKind,
        context: Context<'n>,
    ) -> Context<'n> {
        let index = self.facts.types.len() as u32;
        let origin = match (&die.signature, &die.origin) {
            (Some(value), _) | (None, Some(value)) => self.units.resolve(self.number, *value),
            (None, None) => DieRef::NONE,
        };
        let own_name = self.string(&die.name);
        let mut flags = 0;
        let tagged = matches!(
            kind,
            TypeKind::Struct | TypeKind::Class | TypeKind::Union | TypeKind::Enum
        );
        // What completes a declaration stands outside of its scope, and may repeat the bare name.
        let declared = self.local_type(origin).map(|declared| declared.name);
        let name = if let Some(declared) = declared.filter(|name| tagged && !name.is_empty()) {
            declared
        } else if !own_name.is_empty() {
            if matches!(kind, TypeKind::Base) {
                own_name
            } else {
                self.qualify(context.scope, own_name)
            }
        } else if !tagged {
            ""
        } else if origin.is_none() {
            flags |= type_flags::ANONYMOUS;
            self.anonymous(kind, die)
        } else {
            ""
        };
        // An entry with a signature is a stub for the type unit of that signature.
        if die.declaration || die.signature.is_some() {
            flags |= type_flags::DECLARATION;
        }
        if die.containing_type && tagged {
            flags |= type_flags::POLYMORPHIC;
        }
        self.facts.types.push(RawType {
            offset: die.offset,
            kind,
            name,
            size: die.byte_size,
            count: None,
            target: self.type_ref(&die.r#type),
            origin,
            encoding: die.encoding.unwrap_or(0),
            flags,
            decl_file: small(die.decl_file),
            members: 0..0,
            enumerators: 0..0,
            arguments: 0..0,
        });
        Context {
            scope: if tagged { name } else { context.scope },
            owner: Owner::Type(index),
            function: None,
            inline: None,
            block: None,
            depth: 0,
            discriminant: None,
            is_declared: false,
        }
    }

    fn local_type(&self, at: DieRef) -> Option<&RawType<'n>> {
        if at.is_none() || at.unit() != self.number {
            return None;
        }
        // The walk goes up in offsets, so the table is sorted while it grows.
        let found = self
            .facts
            .types
            .binary_search_by_key(&at.offset(), |entry| entry.offset)
            .ok()?;
        self.facts.types.get(found)
    }

    pub(super) fn member(&mut self, die: &Die<'a>, context: Context<'n>) {
        let (owner, in_variant_part) = match context.owner {
            Owner::Type(owner) => (owner, false),
            Owner::VariantPart(owner) => (owner, true),
            _ => return,
        };
        // Up to DWARF 4 a static member is a member that is only declared here.
        if die.declaration || (die.external && die.member_location.is_none()) {
            self.variable(die, context);
            return;
        }
        let mut flags = 0;
        if die.tag() == c::DW_TAG_inheritance {
            flags |= member_flags::BASE_CLASS;
            if die.is_virtual {
                flags |= member_flags::VIRTUAL_BASE;
            }
        }
        if die.artificial {
            flags |= member_flags::ARTIFICIAL;
        }
        if in_variant_part {
            flags |= match context.discriminant {
                Some(_) => member_flags::HAS_DISCRIMINANT,
                None if die.artificial => member_flags::IS_DISCRIMINANT,
                None => 0,
            };
        }
        let name = self.string(&die.name);
        if name.starts_with("_vptr")
            && let Some(entry) = self.facts.types.get_mut(owner as usize)
        {
            entry.flags |= type_flags::POLYMORPHIC;
        }
        let byte_offset = match &die.member_location {
            Some(value) => self.evaluator.member_offset(value),
            None => Some(0),
        };
        let bit_size = die
            .bit_size
            .and_then(|bits| u16::try_from(bits).ok())
            .unwrap_or(0);
        let offset = if bit_size == 0 {
            byte_offset.unwrap_or(u64::MAX)
        } else {
            bit_position(die, byte_offset.unwrap_or(0))
        };
        self.facts.members.push(RawMember {
            owner,
            name,
            r#type: self.type_ref(&die.r#type),
            offset,
            bit_size,
            flags,
            discriminant: context.discriminant.unwrap_or(0),
        });
    }

    pub(super) fn enumerator(&mut self, die: &Die<'a>, context: Context<'n>) {
        let Owner::Type(owner) = context.owner else {
            return;
        };
        self.facts.enumerators.push(RawEnumerator {
            owner,
            name: self.string(&die.name),
            value: die.const_value.as_ref().and_then(integer).unwrap_or(0),
        });
    }

    pub(super) fn dimension(&mut self, die: &Die<'a>, context: Context<'n>) {
        let Owner::Type(owner) = context.owner else {
            return;
        };
        let lowest = die.lower_bound.unwrap_or_else(|| {
            gimli::DwLang(self.facts.language)
                .default_lower_bound()
                .unwrap_or(0) as i64
        });
        let count = match (&die.count, &die.upper_bound) {
            (Some(count), _) => integer(count).and_then(|count| u64::try_from(count).ok()),
            (None, Some(upper)) => integer(upper)
                .and_then(|upper| upper.checked_sub(lowest)?.checked_add(1))
                .and_then(|count| u64::try_from(count).ok()),
            (None, None) => None,
        };
        self.dimensions.push((owner, count));
    }

    fn anonymous(&self, kind: TypeKind, die: &Die<'a>) -> &'n str {
        let word = match kind {
            TypeKind::Struct => "struct",
            TypeKind::Class => "class",
            TypeKind::Union => "union",
            _ => "enum",
        };
        let file = die
            .decl_file
            .and_then(|file| self.base_name_of(file))
            .unwrap_or("?");
        let line = die.decl_line.unwrap_or(0);
        bumpalo::format!(in self.arena, "(anonymous {} at {}:{})", word, file, line).into_bump_str()
    }

    fn base_name_of(&self, file: u64) -> Option<&'n str> {
        let entry = self.units.units.get(self.number)?;
        let owner = self.units.units.get(entry.line_unit)?;
        let dwarf = self.units.spaces.get(owner.space)?;
        let header = owner.unit.line_program.as_ref()?.header();
        let path = header.file(file)?.path_name();
        let bytes: &'a [u8] = dwarf.attr_string(&owner.unit, path).ok()?.slice();
        let path = std::str::from_utf8(bytes).ok()?;
        path.rsplit('/').next()
    }

    /// `T a[2][3]` is one entry with two subranges: an array of 2 of a made-up array of 3 of T.
    pub(super) fn make_dimensions(&mut self) {
        let written = self.facts.types.len();
        self.dimensions.sort_by_key(|(owner, _)| *owner);
        for group in self.dimensions.chunk_by(|one, other| one.0 == other.0) {
            let Some((owner, outermost)) = group.first() else {
                continue;
            };
            let Some(array) = self.facts.types.get_mut(*owner as usize) else {
                continue;
            };
            array.count = *outermost;
            if group.len() > 1 {
                // The size stated is that of the whole; dimensions have sizes of their own.
                let mut target = array.target;
                for (_, count) in group.iter().skip(1).rev() {
                    self.made.push(RawType {
                        offset: array.offset,
                        kind: TypeKind::Array,
                        name: "",
                        size: None,
                        count: *count,
                        target,
                        origin: DieRef::NONE,
                        encoding: 0,
                        flags: 0,
                        decl_file: 0,
                        members: 0..0,
                        enumerators: 0..0,
                        arguments: 0..0,
                    });
                    target = TypeRef::Made((written + self.made.len() - 1) as u32);
                }
                array.target = target;
            }
        }
    }
}

/// The first bit of a bit-field, counted from the start of the enclosing type.
fn bit_position(die: &Die<'_>, byte_offset: u64) -> u64 {
    if let Some(position) = die.data_bit_offset {
        return position;
    }
    let start = byte_offset.saturating_mul(8);
    match (die.old_bit_offset, die.byte_size, die.bit_size) {
        // DWARF 2 counts from the most significant bit of a storage unit of `byte_size`.
        (Some(from_top), Some(bytes), Some(bits)) => start
            .saturating_add(bytes.saturating_mul(8))
            .saturating_sub(bits)
            .saturating_add_signed(from_top.saturating_neg()),
        _ => start,
    }
}

pub(super) fn kind_of(tag: DwTag) -> Option<TypeKind> {
    Some(match tag {
        c::DW_TAG_base_type => TypeKind::Base,
        c::DW_TAG_unspecified_type => TypeKind::Void,
        c::DW_TAG_pointer_type => TypeKind::Pointer,
        c::DW_TAG_reference_type => TypeKind::Reference,
        c::DW_TAG_rvalue_reference_type => TypeKind::RvalueReference,
        c::DW_TAG_ptr_to_member_type => TypeKind::MemberPointer,
        c::DW_TAG_structure_type => TypeKind::Struct,
        c::DW_TAG_class_type | c::DW_TAG_interface_type => TypeKind::Class,
        c::DW_TAG_union_type => TypeKind::Union,
        c::DW_TAG_enumeration_type => TypeKind::Enum,
        c::DW_TAG_array_type => TypeKind::Array,
        c::DW_TAG_subroutine_type => TypeKind::Function,
        c::DW_TAG_typedef | c::DW_TAG_template_alias => TypeKind::Typedef,
        c::DW_TAG_const_type => TypeKind::Const,
        c::DW_TAG_volatile_type => TypeKind::Volatile,
        c::DW_TAG_restrict_type => TypeKind::Restrict,
        c::DW_TAG_atomic_type => TypeKind::Atomic,
        _ => return None,
    })
}
