//! *Which instructions of one file allocate, and what?*
//!
//! ```text
//!   roots (model) ─┐
//!                  ├─▶ calls ──▶ flow (one function at a time) ──▶ observations ──▶ verdict ──▶ Sites
//!   wrappers ◀─────┴──── fixed point ◀──────┘        source text ──▶ clues ──┘
//! ```
//!
//! A *root* is an allocation function by name; a *wrapper* hands out what it allocates on behalf of
//! its callers; a *site* is a call of either, or an instruction that *carves* a block out of what there is: room on
//! the stack (`on_stack`), the next bytes of a pool (`pools`). A *clue* is something seen that points at a type; the
//! clues of a site are weighed into a type, a role and a verdict. Invariants: a type is never
//! guessed, no clue means no type; every clue is kept as evidence, also those that lost; functions
//! are told apart by address, so that two of one name do not mix.

mod alike;
mod allocators;
mod arenas;
mod base;
pub(crate) mod behind;
mod beneath;
mod blocks;
mod calls;
mod changing;
mod clues;
mod collection;
mod counted;
mod counting;
mod cpp;
mod cursors;
mod declare;
mod dropped;
mod effects;
mod filled;
mod flow;
pub(crate) mod guards;
mod handing;
mod identity;
mod join;
mod members;
mod memory;
mod model;
mod moved;
mod observe;
mod on_stack;
mod outcome;
mod parameters;
mod places;
mod pointers;
mod pools;
mod request;
mod rust;
mod same;
mod source;
mod spelling;
mod stand_in;
mod state;
mod step;
mod summary;
mod system_calls;
mod terms;
#[cfg(test)]
mod tests;
mod typing;
mod unnamed;
mod value;
mod verdict;
mod weak;
mod wrappers;

pub(crate) use declare::{declare_named, declare_text};
pub use model::Size;
pub use request::{Near, Request};
pub use summary::Summary;

use crate::config::Declared;
use crate::elf::Elf;
use crate::facts::Facts;
use calls::{Key, Program};
use flow::Interpreter;
use model::Makes;
use outcome::{Met, Observation, Outcome, Seen};
use pointee_model::evidence::{Role, Verdict, Witness};
use pointee_model::image::{GuardRecord, SystemCallRecord, TypeIndex, site_flags};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use typing::Types;
use value::Value;
use verdict::{Clue, Decision, decide};

/// What may be configured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether source files are looked for and read.
    pub sources: bool,
    /// Folders in which the paths that debug info states are looked for too.
    pub source_roots: Vec<PathBuf>,
    /// Allocation functions that the configuration names, the last of several for one name holding.
    pub declared: Vec<Declared>,
    /// What functions of other files hand out, by their summaries; what is declared holds before.
    pub learned: Vec<Summary>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sources: true,
            source_roots: Vec::new(),
            declared: Vec::new(),
            learned: Vec::new(),
        }
    }
}

/// The allocation sites of one file.
#[derive(Debug, Default)]
pub struct Sites {
    /// In order of return address.
    pub sites: Vec<Site>,
    /// In order of entry.
    pub wrappers: Vec<Wrapper>,
    /// System calls that may change what is mapped.
    pub system_calls: Vec<SystemCallRecord>,
    /// In order of address.
    pub cursor_writes: Vec<CursorWrite>,
    /// Of copies of pools' functions.
    pub guards: Vec<GuardRecord>,
    /// What exported functions hand out, in order of name.
    pub exports: Vec<Summary>,
    /// [`Options::learned`].
    pub imports: Vec<Summary>,
    /// What was not looked at, and why.
    pub diagnostics: Vec<String>,
    /// Whether any source file was read.
    pub has_sources: bool,
}

/// One allocation site.
#[derive(Debug, Clone)]
pub struct Site {
    /// The call instruction, or the one that carves the block.
    pub call: u64,
    /// The instruction after it.
    pub return_address: u64,
    /// What is called, by its linker name; `alloca`, `variable-length array`, or the cursor that is moved.
    pub callee: String,
    /// The type, in `role`.
    pub r#type: Option<TypeIndex>,
    /// For [`Role::Header`], the element of the array behind it.
    pub tail: Option<TypeIndex>,
    /// What part the type plays in the allocation.
    pub role: Role,
    /// How the evidence agrees.
    pub verdict: Verdict,
    /// Bits of [`site_flags`].
    pub flags: u16,
    /// All that was seen, nearest first.
    pub evidence: Vec<Evidence>,
    /// What is asked for, as far as the code tells.
    pub request: Request,
    /// The types that were seen and are not the answer, with the reason.
    pub dropped: Vec<(TypeIndex, &'static str)>,
}

/// One thing that was seen of a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// What kind of observation.
    pub witness: Witness,
    /// The part the type would play.
    pub role: Role,
    /// The type; `None` for `void`.
    pub r#type: Option<TypeIndex>,
    /// The variable, field, function or source text.
    pub what: String,
    /// The instruction that shows it; 0 for source text.
    pub address: u64,
}

/// A function that allocates on behalf of its callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapper {
    /// Its first byte.
    pub entry: u64,
    /// Its name.
    pub name: String,
    /// How many bytes a call asks for.
    pub size: Size,
    /// The argument that is the old block, if it reallocates.
    pub old: Option<u8>,
    /// Where in the block its result points.
    pub offset: i64,
    /// Where in what it returns the block is put, if that is not the block.
    pub member: Option<i64>,
    /// What its result points to, if not to `void`.
    pub result: Option<TypeIndex>,
    /// Whether it cuts its blocks out of larger ones.
    pub is_pool: bool,
}

/// An instruction that moves the cursor of a pool, wherever the pool's code was inlined: forward, and a block is carved out; back, and what
/// lies between is taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorWrite {
    /// The instruction.
    pub address: u64,
    /// The one after it.
    pub next: u64,
    /// The member or variable that it writes.
    pub cursor: String,
    /// How many bytes into its memory operand the cursor lies.
    pub within: u8,
    /// Whether blocks are carved downwards.
    pub down: bool,
    /// Of a number, what it counts.
    pub count: Option<CountWrite>,
}

/// What a number counts that is the cursor of a pool, and what one write of it does. The block begins where the bytes begin that are
/// counted, plus `scale` times what the number was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountWrite {
    /// Where these bytes begin: a link-time address if `fixed`, else a distance from the number.
    pub base: i64,
    /// See `base`.
    pub fixed: bool,
    /// A pointer lies there which points to them.
    pub held: bool,
    /// How many there are, if they are a variable.
    pub room: u64,
    /// Bytes of what is counted.
    pub scale: u8,
    /// The number has four bytes, not eight.
    pub narrow: bool,
    /// How much it grows by, if that is known: then what it was does not count.
    pub step: Option<u32>,
    /// It was rounded up to a multiple of `1 << rounded` first.
    pub rounded: u8,
    /// It is only set, so that nothing is carved out: what lies behind is taken back.
    pub only_back: bool,
}

/// Finds the allocation sites of `elf` and types them.
#[must_use]
pub fn infer(elf: &Elf, facts: &Facts, options: &Options) -> Sites {
    let types = Types::new(facts);
    let learned: HashSet<&str> = options.learned.iter().map(|it| &*it.name).collect();
    let allocates = |name: &str| model::row(name).is_some() || learned.contains(name);
    let program = Program::new(elf, facts, allocates);
    let found = wrappers::fixpoint(&program, &types, facts, options);
    let sources = source::Sources::new(facts, options);
    let context = Context {
        facts,
        program: &program,
        types: &types,
        found: &found,
        sources: &sources,
    };
    let mut keyed: Vec<(Key, Site)> = found
        .outcomes
        .par_iter()
        .flat_map_iter(|(at, outcome)| context.function(*at, outcome))
        .collect();
    base::settle(&types, &found.allocators, &mut keyed);
    alike::settle(facts, &types, &mut keyed);
    let mut sites: Vec<Site> = keyed.into_iter().map(|(_, site)| site).collect();
    sites.extend(stand_in::find(&program, &found, &sites));
    sites.sort_by_key(|site| (site.return_address, site.call));
    sites.dedup_by_key(|site| (site.return_address, site.call));
    let writes = found
        .outcomes
        .iter()
        .flat_map(|(_, outcome)| &outcome.cursor_writes);
    let mut cursor_writes: Vec<CursorWrite> = writes.cloned().collect();
    cursor_writes.sort_by_key(|write| write.address);
    cursor_writes.dedup_by_key(|write| write.address);
    let diagnostics = found
        .outcomes
        .iter()
        .filter(|(_, outcome)| outcome.incomplete)
        .map(|(at, _)| {
            format!(
                "{}: too long, not looked at",
                program.bodies[*at as usize].name
            )
        })
        .collect();
    Sites {
        sites,
        has_sources: sources.any_read(),
        wrappers: found.wrappers,
        system_calls: system_calls::find(elf),
        cursor_writes,
        guards: Vec::new(),
        exports: summary::of_exports(&program, &types, &found.allocators),
        imports: options.learned.clone(),
        diagnostics,
    }
}

struct Context<'a, 'f> {
    facts: &'f Facts,
    program: &'a Program<'f>,
    types: &'a Types<'f>,
    found: &'a wrappers::Found<'f>,
    sources: &'a source::Sources<'f>,
}

impl Context<'_, '_> {
    /// The sites of one function, each with what it calls.
    fn function(&self, at: u32, outcome: &Outcome) -> Vec<(Key, Site)> {
        let (decided, untyped) = self.weigh(at, outcome);
        let hints: HashMap<u64, TypeIndex> = decided
            .iter()
            .filter(|(_, site)| matches!(site.verdict, Verdict::Single | Verdict::Agreed))
            .filter_map(|(call, site)| Some((*call, site.r#type?)))
            .collect();
        if !untyped || hints.is_empty() {
            return self.sites(at, outcome, decided);
        }
        let body = &self.program.bodies[at as usize];
        let again = Interpreter::new(self.program, self.types, &self.found.allocators, body)
            .with_hints(hints)
            .run();
        let (decided, _) = self.weigh(at, &again);
        self.sites(at, &again, decided)
    }

    /// Decides all sites of a function; says whether any is left without a type. Blocks stored into
    /// other blocks need the others' types first.
    fn weigh(&self, at: u32, outcome: &Outcome) -> (HashMap<u64, Decision>, bool) {
        let mut clues: HashMap<u64, Vec<Clue>> = HashMap::new();
        for met in &outcome.met {
            clues.insert(met.call, self.clues(at, met, outcome));
        }
        let mut decided = self.decide_all(outcome, &clues);
        let mut nested: Vec<(&Observation, u64, i64)> = outcome
            .observations
            .iter()
            .filter_map(|seen| match seen.seen {
                Seen::Into { call, offset } => Some((seen, call, offset)),
                _ => None,
            })
            .collect();
        // Each round tells the types one level deeper.
        loop {
            let before = nested.len();
            nested.retain(|(seen, holder, offset)| {
                let holder = decided.get(holder);
                let Some((holder, role)) = holder.and_then(|site| Some((site.r#type?, site.role)))
                else {
                    return true;
                };
                if let Some(list) = clues.get_mut(&seen.call) {
                    list.extend(self.clue_in(holder, role, *offset, seen));
                }
                false
            });
            if nested.len() == before {
                break;
            }
            decided = self.decide_all(outcome, &clues);
        }
        let untyped = decided.values().any(|site| site.r#type.is_none());
        (decided, untyped)
    }

    fn sites(
        &self,
        at: u32,
        outcome: &Outcome,
        mut decided: HashMap<u64, Decision>,
    ) -> Vec<(Key, Site)> {
        let body = &self.program.bodies[at as usize];
        let is_dropped = |met: &Met, decision: &Decision| {
            decision.verdict == Verdict::Unknown
                && decision.evidence.is_empty()
                && matches!(met.callee, Key::Local(_))
                && self
                    .found
                    .allocators
                    .get(met.callee)
                    .is_some_and(|it| it.returns_it && !it.kept)
                && dropped::is_dropped(self.program.elf, body, met)
        };
        outcome
            .met
            .iter()
            .filter(|met| !self.is_release(met) && !self.is_given_room(met))
            .filter_map(|met| {
                let mut decision = decided.remove(&met.call)?;
                if is_dropped(met, &decision) {
                    decision.verdict = Verdict::Opaque;
                }
                Some((met.callee, self.site(met, decision)))
            })
            .collect()
    }

    /// A reallocation to nothing frees, and so does a wrapper that is asked for nothing.
    fn is_release(&self, met: &Met) -> bool {
        let allocator = self.found.allocators.get(met.callee);
        let reallocates = allocator.is_some_and(|allocator| allocator.old.is_some());
        let sized = allocator.map_or(0, |allocator| allocator.size.arguments());
        let mut sizes = (0..)
            .zip(met.arguments)
            .filter(|(at, _)| sized >> at & 1 == 1);
        let is_nothing = sized != 0 && sizes.all(|(_, argument)| argument == Value::Constant(0));
        (met.size == Value::Constant(0) && matches!(met.callee, Key::Local(_)))
            || (reallocates && (met.size == Value::Constant(0) || is_nothing))
    }

    /// `getcwd(buffer, n)` and the like allocate only where they are given nothing to write to.
    fn is_given_room(&self, met: &Met) -> bool {
        model::room(self.program.name(met.callee))
            .is_some_and(|index| met.arguments[usize::from(index) % 6] != Value::Constant(0))
    }

    fn decide_all(
        &self,
        outcome: &Outcome,
        clues: &HashMap<u64, Vec<Clue>>,
    ) -> HashMap<u64, Decision> {
        let decide_one = |met: &Met| {
            let grows = self
                .found
                .allocators
                .get(met.callee)
                .is_some_and(|a| a.old.is_some());
            let clues = clues.get(&met.call).map_or(&[][..], Vec::as_slice);
            let request = Request::of(met, grows);
            (met.call, decide(self.types, met.call, clues, request))
        };
        outcome.met.iter().map(decide_one).collect()
    }

    fn site(&self, met: &Met, decision: Decision) -> Site {
        let mut flags = 0;
        let allocator = self.found.allocators.get(met.callee);
        for (set, flag) in [
            (self.found.inner.contains(&met.call), site_flags::WRAPPER),
            (met.callee == Key::Carved, site_flags::NO_CALL),
            (met.tail, site_flags::TAIL),
            (met.indirect, site_flags::INDIRECT),
            (
                allocator.is_some_and(|allocator| allocator.old.is_some()),
                site_flags::REALLOC,
            ),
        ] {
            if set {
                flags |= flag;
            }
        }
        let role = match allocator.map(|allocator| allocator.makes) {
            Some(Makes::Object(_)) if decision.r#type.is_some() => Role::Whole,
            Some(Makes::Array(_)) if decision.r#type.is_some() => Role::Element,
            // `operator new[]` makes arrays.
            _ if decision.role == Role::Unknown
                && decision.r#type.is_some()
                && met.name(self.program).starts_with("_Zna") =>
            {
                Role::Element
            }
            _ if allocator.is_some_and(|allocator| allocator.element)
                && decision.r#type.is_some()
                && !matches!(decision.role, Role::Characters | Role::Bytes) =>
            {
                Role::Element
            }
            _ => decision.role,
        };
        let is_counted = met.front > 0 && decision.r#type.is_some();
        let (r#type, tail, role) = match is_counted {
            // Without a type for the number nothing is said of where the array lies.
            true => match self.types.count() {
                None => (None, None, Role::Unknown),
                count => (count, decision.r#type, Role::Header),
            },
            false => (decision.r#type, decision.tail, role),
        };
        // A wrapper that returns a base type says no more than that.
        let only_base = allocator.is_some_and(|allocator| {
            allocator.makes == Makes::Whatever
                && allocator.base.is_some()
                && allocator.base == decision.r#type
                && decision.role != Role::Characters
                && decision.role != Role::Bytes
                && decision.role != Role::Whole
        });
        if is_counted && r#type.is_some() {
            flags |= site_flags::array_at(met.front.unsigned_abs());
        }
        Site {
            call: met.call,
            return_address: met.next,
            callee: met.name(self.program).to_owned(),
            r#type,
            tail,
            role: if only_base { Role::Base } else { role },
            verdict: match r#type {
                None if is_counted => Verdict::Unknown,
                _ => decision.verdict,
            },
            flags,
            evidence: decision.evidence,
            request: Request::of(met, flags & site_flags::REALLOC != 0),
            dropped: decision.dropped,
        }
    }
}

/// The name of a type as the language writes it, for reports.
#[must_use]
pub fn spelled(facts: &Facts, r#type: TypeIndex) -> String {
    spelling::spelled(&facts.types, r#type)
}
