//! *What does one unit say?* One pass over its entries, filling [`UnitFacts`].
//!
//! The walk keeps a stack with one [`Context`] per level: what the children of the entry above
//! belong to. It recurses nowhere, so nesting costs heap, not stack; deeper than [`MAX_DEPTH`] is
//! not read.

mod code;
mod types;

use super::die::{Die, Value, integer};
use super::made_names::MadeNames;
use super::places::Evaluator;
use super::raw::{ArgumentOwner, RawType, TypeRef, UnitFacts};
use super::units::{DieRef, Units};
use bumpalo::Bump;
use gimli::constants as c;
use pointee_model::image::TypeKind;
use types::kind_of;

/// Real debug info nests some thirty levels; a thousand is hostile.
const MAX_DEPTH: usize = 1000;

/// What the children of an entry belong to.
#[derive(Clone, Copy)]
struct Context<'n> {
    /// Qualified name of the enclosing namespaces, types and functions; empty outside of all.
    scope: &'n str,
    owner: Owner,
    function: Option<u32>,
    inline: Option<u32>,
    /// The innermost block of statements of the function or inlined call, if it has pieces.
    block: Option<u32>,
    depth: u32,
    discriminant: Option<u64>,
    /// In a function that is only declared.
    is_declared: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Unit,
    Type(u32),
    /// The variant part of a type.
    VariantPart(u32),
    /// A function, a block in it, or a call inlined into it.
    Code,
}

/// Walks unit number `number`; names that are not in the file as such are made in `arena`.
pub(super) fn walk<'n, 'a: 'n>(
    units: &Units<'a>,
    number: usize,
    evaluator: Evaluator<'_, 'a>,
    is_code: &dyn Fn(u64) -> bool,
    (names, arena): (&MadeNames<'n>, &'n Bump),
) -> UnitFacts<'n> {
    let mut walk = Walk {
        units,
        number,
        evaluator,
        is_code,
        names,
        arena,
        facts: UnitFacts::default(),
        made: Vec::new(),
        dimensions: Vec::new(),
        parameters: Vec::new(),
    };
    if let Err(error) = walk.run() {
        let start = evaluator.unit.header.offset().0;
        walk.facts
            .diagnostics
            .push(format!("unit at {start:#x}: {error}"));
    }
    walk.finish()
}

struct Walk<'w, 'n, 'a> {
    units: &'w Units<'a>,
    number: usize,
    evaluator: Evaluator<'w, 'a>,
    is_code: &'w dyn Fn(u64) -> bool,
    names: &'w MadeNames<'n>,
    arena: &'n Bump,
    facts: UnitFacts<'n>,
    /// Inner dimensions of arrays, to be appended to the types.
    made: Vec<RawType<'n>>,
    /// Lengths of the array being read: its type and what its subranges said.
    dimensions: Vec<(u32, Option<u64>)>,
    /// Parameters counted so far, by function or (function, inline).
    parameters: Vec<(u32, Option<u32>, u16)>,
}

impl<'n, 'a: 'n> Walk<'_, 'n, 'a> {
    fn run(&mut self) -> gimli::Result<()> {
        let unit = self.evaluator.unit;
        let mut entries = unit.entries_raw(None)?;
        let mut die = Die::default();
        let mut stack: Vec<Context<'n>> = vec![Context {
            scope: "",
            owner: Owner::Unit,
            function: None,
            inline: None,
            block: None,
            depth: 0,
            discriminant: None,
            is_declared: false,
        }];
        let mut skipped_levels = 0_usize;
        while !entries.is_empty() {
            if !die.read(&mut entries)? {
                if skipped_levels > 0 {
                    skipped_levels -= 1;
                } else if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let Some(context) = stack.last().copied() else {
                break;
            };
            if skipped_levels > 0 || stack.len() >= MAX_DEPTH {
                skipped_levels += usize::from(die.has_children);
                continue;
            }
            let below = self.entry(&die, context);
            if die.has_children {
                stack.push(below);
            }
        }
        Ok(())
    }

    fn entry(&mut self, die: &Die<'a>, context: Context<'n>) -> Context<'n> {
        match die.tag() {
            c::DW_TAG_compile_unit
            | c::DW_TAG_partial_unit
            | c::DW_TAG_type_unit
            | c::DW_TAG_skeleton_unit => {
                self.facts.language = die.language.unwrap_or(0);
                context
            }
            c::DW_TAG_namespace | c::DW_TAG_module => {
                let name = self.string(&die.name);
                let name = if name.is_empty() {
                    "(anonymous namespace)"
                } else {
                    name
                };
                Context {
                    scope: self.qualify(context.scope, name),
                    ..context
                }
            }
            c::DW_TAG_subprogram => self.function(die, context),
            c::DW_TAG_inlined_subroutine => self.inline(die, context),
            c::DW_TAG_call_site | c::DW_TAG_GNU_call_site => {
                self.allocation(die);
                context
            }
            c::DW_TAG_lexical_block => self.block(die, context),
            c::DW_TAG_variable | c::DW_TAG_formal_parameter | c::DW_TAG_constant => {
                self.variable(die, context);
                context
            }
            c::DW_TAG_member | c::DW_TAG_inheritance => {
                self.member(die, context);
                context
            }
            c::DW_TAG_variant_part => match context.owner {
                Owner::Type(owner) => {
                    if let Some(entry) = self.facts.types.get_mut(owner as usize) {
                        entry.kind = TypeKind::Variant;
                    }
                    Context {
                        owner: Owner::VariantPart(owner),
                        ..context
                    }
                }
                _ => context,
            },
            c::DW_TAG_variant => Context {
                discriminant: die
                    .discriminant
                    .as_ref()
                    .and_then(integer)
                    .map(|value| value as u64),
                ..context
            },
            c::DW_TAG_enumerator => {
                self.enumerator(die, context);
                context
            }
            c::DW_TAG_subrange_type if matches!(context.owner, Owner::Type(_)) => {
                self.dimension(die, context);
                context
            }
            c::DW_TAG_template_type_parameter => {
                let argument = self.type_ref(&die.r#type);
                let owner = match (context.owner, context.function) {
                    (Owner::Type(index), _) => Some(ArgumentOwner::Type(index)),
                    (Owner::Code, Some(function)) if context.inline.is_none() => {
                        Some(ArgumentOwner::Function(function))
                    }
                    _ => None,
                };
                if let Some(owner) = owner {
                    self.facts.arguments.push((owner, argument));
                }
                context
            }
            tag => match kind_of(tag) {
                Some(kind) => self.r#type(die, kind, self.inside(context)),
                None => context,
            },
        }
    }

    fn type_ref(&self, value: &Option<Value<'a>>) -> TypeRef {
        match value {
            None => TypeRef::Void,
            Some(value) => match self.units.resolve(self.number, *value) {
                DieRef::NONE => TypeRef::Void,
                at => TypeRef::Die(at),
            },
        }
    }

    fn string(&self, value: &Option<Value<'a>>) -> &'n str {
        let Some(value) = value else {
            return "";
        };
        let Evaluator { dwarf, unit, .. } = self.evaluator;
        let Ok(bytes) = dwarf.attr_string(unit, *value) else {
            return "";
        };
        let bytes: &'a [u8] = bytes.slice();
        std::str::from_utf8(bytes)
            .unwrap_or_else(|_| self.arena.alloc_str(&String::from_utf8_lossy(bytes)))
    }

    fn qualify(&self, scope: &'n str, name: &'n str) -> &'n str {
        // Scopes repeat in every name below them: a hostile file could make that quadratic.
        const MAX_SCOPE: usize = 16 << 10;
        if scope.is_empty() || name.is_empty() || scope.len() > MAX_SCOPE {
            return name;
        }
        self.names.qualified(scope, name, self.arena)
    }

    fn finish(mut self) -> UnitFacts<'n> {
        self.make_dimensions();
        self.facts.written_types = self.facts.types.len();
        self.facts.types.append(&mut self.made);
        self.facts.group();
        self.facts.shrink();
        self.facts
    }
}

fn small(value: Option<u64>) -> u32 {
    value
        .and_then(|value| u32::try_from(value).ok())
        .unwrap_or(0)
}
