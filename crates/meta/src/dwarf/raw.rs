//! *What did one unit say, before units are joined?*
//!
//! The tables that a walk over one unit fills. Names are borrowed from the file or from the unit's
//! arena; references to other entries are still [`DieRef`]s, for they may point into units that
//! another thread is walking.
//!
//! ```text
//!   types      in order of DIE offset up to `written_types`, then those the walk made up itself
//!              (inner dimensions of arrays)
//!   members, enumerators, arguments   grouped by the type or function that owns them
//!   functions, variables              in order of DIE offset
//! ```

use super::units::DieRef;
use crate::facts::{FrameBase, Place};
use pointee_model::image::TypeKind;
use std::ops::Range;

/// A reference to a type: an entry, a type made up by the walk, or void.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TypeRef {
    Void,
    Die(DieRef),
    /// Index into the same unit's `types`.
    Made(u32),
}

/// A type entry.
pub(super) struct RawType<'n> {
    pub(super) offset: u32,
    pub(super) kind: TypeKind,
    pub(super) name: &'n str,
    pub(super) size: Option<u64>,
    pub(super) count: Option<u64>,
    pub(super) target: TypeRef,
    /// The declaration this completes, or the type unit this stands for.
    pub(super) origin: DieRef,
    pub(super) encoding: u8,
    pub(super) flags: u16,
    /// As the unit counts files; 0 if not stated.
    pub(super) decl_file: u32,
    pub(super) members: Range<u32>,
    pub(super) enumerators: Range<u32>,
    pub(super) arguments: Range<u32>,
}

/// A member, base class, parameter of a function type, or arm of a variant.
pub(super) struct RawMember<'n> {
    pub(super) owner: u32,
    pub(super) name: &'n str,
    pub(super) r#type: TypeRef,
    /// In bytes; for bit-fields the position of the first bit, in bits.
    pub(super) offset: u64,
    pub(super) bit_size: u16,
    pub(super) flags: u32,
    pub(super) discriminant: u64,
}

/// An enumerator of the enum `owner`.
pub(super) struct RawEnumerator<'n> {
    pub(super) owner: u32,
    pub(super) name: &'n str,
    pub(super) value: i64,
}

/// A `DW_TAG_subprogram`: declaration, abstract instance or concrete one.
pub(super) struct RawFunction<'n> {
    pub(super) offset: u32,
    /// What a declaration stands in; empty where `name` says it. Few declarations are asked for their name.
    pub(super) scope: &'n str,
    pub(super) name: &'n str,
    pub(super) linkage_name: &'n str,
    pub(super) result: TypeRef,
    pub(super) origin: DieRef,
    pub(super) decl_file: u32,
    pub(super) decl_line: u32,
    pub(super) arguments: Range<u32>,
    /// Of a concrete one: most are not.
    pub(super) code: Option<Box<RawCode>>,
}

/// The code of a function.
pub(super) struct RawCode {
    /// Not empty.
    pub(super) ranges: Vec<(u64, u64)>,
    pub(super) frame_base: FrameBase,
    pub(super) inlines: Vec<RawInline>,
    /// Pieces of each `DW_TAG_lexical_block`.
    pub(super) blocks: Vec<Vec<(u64, u64)>>,
}

/// A `DW_TAG_inlined_subroutine` of one concrete function.
pub(super) struct RawInline {
    pub(super) origin: DieRef,
    pub(super) entry: Option<u64>,
    pub(super) ranges: Vec<(u64, u64)>,
    pub(super) call_file: u32,
    pub(super) call_line: u32,
    pub(super) depth: u32,
    pub(super) parent: Option<u32>,
}

/// A variable, parameter or static member.
pub(super) struct RawVariable<'n> {
    pub(super) offset: u32,
    pub(super) name: &'n str,
    pub(super) r#type: TypeRef,
    pub(super) origin: DieRef,
    /// The function it lies in: index into `functions`.
    pub(super) function: Option<u32>,
    pub(super) inline: Option<u32>,
    pub(super) block: Option<u32>,
    pub(super) parameter: Option<u16>,
    pub(super) line: u32,
    pub(super) places: Range<u32>,
}

/// A variable with a fixed address: index into `variables` and where it lies.
pub(super) struct RawGlobal<'n> {
    pub(super) variable: u32,
    /// Qualified by the function it is static in, or by its namespace.
    pub(super) scope: &'n str,
    pub(super) address: u64,
    pub(super) thread_local: bool,
}

/// Who owns a template argument.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ArgumentOwner {
    Type(u32),
    Function(u32),
}

/// Everything one unit said.
#[derive(Default)]
pub(super) struct UnitFacts<'n> {
    pub(super) language: u16,
    pub(super) types: Vec<RawType<'n>>,
    pub(super) written_types: usize,
    pub(super) members: Vec<RawMember<'n>>,
    pub(super) enumerators: Vec<RawEnumerator<'n>>,
    pub(super) arguments: Vec<(ArgumentOwner, TypeRef)>,
    pub(super) functions: Vec<RawFunction<'n>>,
    pub(super) variables: Vec<RawVariable<'n>>,
    pub(super) places: Vec<(u64, u64, Place)>,
    pub(super) globals: Vec<RawGlobal<'n>>,
    /// What calls allocate, by the address that they return to.
    pub(super) allocations: Vec<(u64, TypeRef)>,
    pub(super) diagnostics: Vec<String>,
}

impl<'n> UnitFacts<'n> {
    /// The type whose entry is at `offset`.
    pub(super) fn type_at(&self, offset: u32) -> Option<u32> {
        let written = self.types.get(..self.written_types)?;
        let at = written
            .binary_search_by_key(&offset, |entry| entry.offset)
            .ok()?;
        u32::try_from(at).ok()
    }

    /// The function whose entry is at `offset`.
    pub(super) fn function_at(&self, offset: u32) -> Option<&RawFunction<'n>> {
        let at = self
            .functions
            .binary_search_by_key(&offset, |entry| entry.offset)
            .ok()?;
        self.functions.get(at)
    }

    /// The variable whose entry is at `offset`.
    pub(super) fn variable_at(&self, offset: u32) -> Option<&RawVariable<'n>> {
        let at = self
            .variables
            .binary_search_by_key(&offset, |entry| entry.offset)
            .ok()?;
        self.variables.get(at)
    }

    /// Gives back what the tables, while they grew, took too much of.
    pub(super) fn shrink(&mut self) {
        self.types.shrink_to_fit();
        self.members.shrink_to_fit();
        self.enumerators.shrink_to_fit();
        self.arguments.shrink_to_fit();
        self.functions.shrink_to_fit();
        self.variables.shrink_to_fit();
        self.places.shrink_to_fit();
    }

    /// Gives each type and function its contiguous members, enumerators and arguments.
    pub(super) fn group(&mut self) {
        self.members.sort_by_key(|member| member.owner);
        self.enumerators.sort_by_key(|enumerator| enumerator.owner);
        self.arguments.sort_by_key(|(owner, _)| *owner);
        for (at, member) in (0_u32..).zip(&self.members) {
            if let Some(owner) = self.types.get_mut(member.owner as usize) {
                extend(&mut owner.members, at);
            }
        }
        for (at, enumerator) in (0_u32..).zip(&self.enumerators) {
            if let Some(owner) = self.types.get_mut(enumerator.owner as usize) {
                extend(&mut owner.enumerators, at);
            }
        }
        for (at, (owner, _)) in (0_u32..).zip(&self.arguments) {
            let range = match owner {
                ArgumentOwner::Type(index) => self
                    .types
                    .get_mut(*index as usize)
                    .map(|owner| &mut owner.arguments),
                ArgumentOwner::Function(index) => self
                    .functions
                    .get_mut(*index as usize)
                    .map(|owner| &mut owner.arguments),
            };
            if let Some(range) = range {
                extend(range, at);
            }
        }
    }
}

fn extend(range: &mut Range<u32>, at: u32) {
    if range.start == range.end {
        *range = at..at + 1;
    } else {
        range.end = at + 1;
    }
}
