//! *What points at the type of one site?*
//!
//! Observations of the code, what the library's model, the compiler, names and the source say, each as a clue of one form.

use super::Context;
use super::calls::Body;
use super::model::Makes;
use super::moved;
use super::outcome::{Doubt, Met, Observation, Outcome, Seen};
use super::request::Request;
use super::rust::{self, Stored};
use super::source::Call;
use super::typing::Pointee;
use super::verdict::Clue;
use super::{cpp, value};
use crate::facts::Function;
use pointee_model::evidence::{Role, Witness};
use pointee_model::image::TypeIndex;

impl Context<'_, '_> {
    /// What a store into an allocation of type `holder` tells.
    pub(super) fn clue_in(
        &self,
        holder: TypeIndex,
        role: Role,
        offset: i64,
        seen: &Observation,
    ) -> Option<Clue> {
        // Somewhere in an array of pointers is one of its elements.
        let offset = match self.types.pointee(holder) {
            Some(_) if offset == value::ANYWHERE => 0,
            _ => offset,
        };
        let size = self
            .types
            .size(holder)
            .and_then(|size| i64::try_from(size).ok());
        let offset = match size {
            Some(size) if size > 0 && role == Role::Element => offset.rem_euclid(size),
            _ => offset,
        };
        let pointees = self.types.pointees_at(holder, offset);
        (!pointees.is_empty()).then(|| Clue {
            witness: seen.witness,
            doubt: seen.doubt,
            types: defined(&pointees),
            role: None,
            what: self.types.path(holder, offset),
            address: seen.address,
            open: pointees.contains(&Pointee::Void),
        })
    }

    pub(super) fn clues(&self, at: u32, met: &Met, outcome: &Outcome) -> Vec<Clue> {
        let mut clues: Vec<Clue> = outcome
            .observations
            .iter()
            .filter(|seen| seen.call == met.call)
            .filter_map(|seen| {
                let (types, role) = match &seen.seen {
                    Seen::Void => (Vec::new(), None),
                    Seen::Types(types) => (types.clone(), None),
                    Seen::Elements(element) => (vec![*element], Some(Role::Element)),
                    Seen::Into { .. } => return None,
                };
                Some(Clue {
                    witness: seen.witness,
                    doubt: seen.doubt,
                    types,
                    role,
                    what: seen.what.clone(),
                    address: seen.address,
                    open: seen.open,
                })
            })
            .collect();
        let stated = &self.facts.allocations;
        if let Ok(at) = stated.binary_search_by_key(&met.next, |(after, _)| *after) {
            clues.push(Clue {
                witness: Witness::Compiler,
                doubt: Doubt::None,
                types: vec![self.types.strip(stated[at].1)],
                role: None,
                what: String::new(),
                address: met.call,
                open: false,
            });
        }
        let name = met.name(self.program);
        if let Some(allocator) = self.found.allocators.get(met.callee) {
            let made = match allocator.makes {
                Makes::Whatever => None,
                Makes::Characters => allocator.base.or_else(|| self.types.text()),
                Makes::Object(tag) | Makes::Array(tag) => self.types.record(tag),
            };
            if let Some(made) = made {
                clues.push(Clue {
                    witness: Witness::Model,
                    doubt: Doubt::None,
                    types: vec![made],
                    role: None,
                    what: name.to_owned(),
                    address: met.call,
                    open: false,
                });
            }
            if let Some(base) = allocator.base
                && allocator.offset_of(&met.arguments) == 0
            {
                clues.push(Clue {
                    witness: Witness::Result,
                    doubt: Doubt::None,
                    types: vec![base],
                    role: None,
                    what: name.to_owned(),
                    address: met.call,
                    open: false,
                });
            }
        }
        let body = &self.program.bodies[at as usize];
        if cpp::makes_text(body.linkage_name)
            && let Some(text) = self.types.text()
        {
            clues.push(Clue {
                witness: Witness::Model,
                doubt: Doubt::None,
                types: vec![text],
                role: None,
                what: body.linkage_name.to_owned(),
                address: met.call,
                open: false,
            });
        }
        if body.function.is_none()
            && let Some((stored, role)) = rust::stored_by_name(body, self.types)
        {
            clues.push(Clue {
                witness: Witness::TemplateArgument,
                doubt: Doubt::None,
                types: vec![stored],
                role: Some(role),
                what: body.name.to_owned(),
                address: met.call,
                open: false,
            });
        }
        if let Some(function) = body.function {
            let erased = self
                .found
                .allocators
                .get(met.callee)
                .is_some_and(|allocator| {
                    !allocator.returns_it
                        && allocator.out.is_none()
                        && allocator.makes == Makes::Whatever
                });
            let made = if name.starts_with("_Zn") {
                cpp::allocated(function, self.types, met.call).map(|(made, many, what)| {
                    (made, if many { Some(Role::Element) } else { None }, what)
                })
            } else if rust::is_allocator(name) || erased || rust::is_rust(function) {
                // A raw pointer to bytes is Rust's `void *`; a collection of bytes is one.
                let pointed =
                    |clue: &&mut Clue| clue.role.is_none() && clue.witness != Witness::Model;
                for clue in clues.iter_mut().filter(pointed) {
                    clue.types.retain(|at| !self.types.is_byte(*at));
                }
                self.stored(body, function, met)
                    .map(|(made, role, what)| (made, Some(role), what))
            } else {
                None
            };
            clues.extend(made.map(|(made, role, what)| Clue {
                witness: Witness::TemplateArgument,
                doubt: Doubt::None,
                types: vec![made],
                role,
                what,
                address: met.call,
                open: false,
            }));
            let request = Request::of(met, false);
            // The arms of a union are no answer.
            let untyped = clues.iter().all(|clue| clue.types.len() != 1);
            // A call through a pointer is written with the pointer's name, or with that of a macro for it.
            let names = met.pointer.iter().map(String::as_str).chain([name]);
            let sized = self
                .found
                .allocators
                .get(met.callee)
                .map_or(0, |it| it.size.arguments());
            let mut said = names.map(|name| {
                let call = Call {
                    address: met.call,
                    name,
                    request,
                    sized,
                };
                self.sources.clues(self.types, function, &call, untyped)
            });
            clues.extend(said.find(|said| !said.is_empty()).into_iter().flatten());
        }
        // What hands out elements of an array has no header.
        if self
            .found
            .allocators
            .get(met.callee)
            .is_some_and(|it| it.element)
        {
            clues.retain(|clue| {
                clue.witness != Witness::SizeofInSource || clue.role != Some(Role::Header)
            });
        }
        let file = body.function.and_then(|function| function.file);
        for known in clues.iter_mut().flat_map(|clue| &mut clue.types) {
            *known = self.types.in_file(*known, file);
        }
        clues
    }

    /// What a function of Rust's library stores that allocates at a call: what its type says, or
    /// what the frames around the call say.
    fn stored(
        &self,
        body: &Body<'_>,
        function: &Function,
        met: &Met,
    ) -> Option<(TypeIndex, Role, String)> {
        let is_erased = |at: u64| rust::is_erased_at(function, at);
        let moved_from =
            || moved::straight_before(self.program, self.facts, body, met.call, is_erased);
        let stored = match rust::stored(function, self.types, met.call) {
            erased @ Stored::Erased { .. } => {
                moved_from().map_or(erased, |before| rust::stored(function, self.types, before))
            }
            stored => stored,
        };
        if let Stored::Type {
            index, role, what, ..
        } = stored
        {
            return Some((index, role, what.to_owned()));
        }
        let (index, role) = self.found.allocators.get(met.callee)?.stores?;
        let what = self.program.body(met.callee)?.name;
        Some((index, role, what.to_owned()))
    }
}

fn defined(pointees: &[Pointee]) -> Vec<TypeIndex> {
    pointees
        .iter()
        .filter_map(|pointee| match pointee {
            Pointee::Type(index) => Some(*index),
            Pointee::Void => None,
        })
        .collect()
}
