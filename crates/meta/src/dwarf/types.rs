//! *What are the unique types of a file?*
//!
//! Joins the types of all units: references are resolved, declarations are replaced by the one
//! definition of their name, equal types become one (see [`identity`](super::identity)).

use super::identity::{Edge, Graph, NONE, Node, Round, is_tagged};
use super::raw::{TypeRef, UnitFacts};
use super::reach;
use super::units::DieRef;
use crate::facts::{Member, Type};
use pointee_model::image::{TypeIndex, TypeKind, type_flags};
use rayon::prelude::*;
use std::collections::HashMap;

/// Ambiguous names separate in as many rounds as there are pointers between the difference and the
/// type that sees it; measured programs need three.
const MAX_ROUNDS: usize = 8;

/// Types that are worth a task of their own; the same on every machine, so that what a damaged file says is, too.
const PART: usize = 8192;

/// The unique types, and which of them each unit's types are.
pub(super) struct UniqueTypes {
    pub(super) types: Vec<Type>,
    /// By unit: first global number of its types.
    bases: Vec<u32>,
    /// By global number.
    unique: Vec<TypeIndex>,
}

impl UniqueTypes {
    /// The unique type that `reference`, made in `unit`, means; `None` for void.
    pub(super) fn resolve(
        &self,
        units: &[UnitFacts<'_>],
        unit: usize,
        reference: TypeRef,
    ) -> Option<TypeIndex> {
        let raw = global(&self.bases, units, unit, reference);
        self.unique_of(raw)
    }

    /// The unique type that type `index` of a unit is.
    pub(super) fn of_unit(&self, unit: usize, index: u32) -> Option<TypeIndex> {
        self.unique_of(self.bases.get(unit)?.checked_add(index)?)
    }

    fn unique_of(&self, raw: u32) -> Option<TypeIndex> {
        let found = self.unique.get(raw as usize).copied();
        found.filter(|index| *index != NONE)
    }
}

/// The global number of the type that `reference`, made in `unit`, means.
pub(super) fn global(
    bases: &[u32],
    units: &[UnitFacts<'_>],
    unit: usize,
    reference: TypeRef,
) -> u32 {
    let found = match reference {
        TypeRef::Void => None,
        TypeRef::Made(index) => bases.get(unit).map(|base| base + index),
        TypeRef::Die(at) => at_entry(bases, units, at),
    };
    found.unwrap_or(NONE)
}

fn at_entry(bases: &[u32], units: &[UnitFacts<'_>], at: DieRef) -> Option<u32> {
    if at.is_none() {
        return None;
    }
    let index = units.get(at.unit())?.type_at(at.offset())?;
    Some(bases.get(at.unit())? + index)
}

/// Joins the types of all units; of units that are `shared` with other files (dwz) only what this file
/// uses is kept.
pub(super) fn unify(units: &[UnitFacts<'_>], shared: &[bool]) -> UniqueTypes {
    let mut bases = Vec::with_capacity(units.len());
    let mut total = 0_u32;
    for unit in units {
        bases.push(total);
        total = total.saturating_add(unit.types.len() as u32);
    }
    let mut graph = build_graph(&bases, units);
    // A type unit's stub, and then a declaration, stand for something else.
    let mut stands_for = follow_origins(&bases, units, &mut graph);
    redirect(&mut graph, &stands_for);
    let first = Round::run(&graph, &[]);
    let names = Names::collect(&graph, &first, &stands_for);
    names.resolve_declarations(&graph, &first, &mut stands_for);
    let identities: Vec<u128> = (0..total).map(|node| first.identity(node)).collect();
    drop(first);
    redirect(&mut graph, &stands_for);
    let keys = refine(&graph, &names);
    let used = reach::used(units, &bases, &graph, &stands_for, shared);
    collapse(
        units,
        &bases,
        &graph,
        &stands_for,
        &used,
        &keys,
        &identities,
    )
}

fn build_graph<'n>(bases: &[u32], units: &[UnitFacts<'n>]) -> Graph<'n> {
    let mut graph = Graph::default();
    for (number, unit) in units.iter().enumerate() {
        let first_node = graph.nodes.len() as u32;
        let first_edge = graph.edges.len() as u32;
        let first_enumerator = graph.enumerators.len() as u32;
        graph.edges.extend(unit.members.iter().map(|member| Edge {
            name: member.name,
            r#type: global(bases, units, number, member.r#type),
            offset: member.offset,
            bit_size: member.bit_size,
            flags: member.flags,
            discriminant: member.discriminant,
        }));
        graph.enumerators.extend(
            unit.enumerators
                .iter()
                .map(|enumerator| (enumerator.name, enumerator.value)),
        );
        graph.nodes.extend(unit.types.iter().map(|entry| Node {
            kind: entry.kind,
            name: entry.name,
            size: entry.size,
            count: entry.count,
            encoding: entry.encoding,
            flags: entry.flags,
            target: global(bases, units, number, entry.target),
            edges: first_edge + entry.members.start..first_edge + entry.members.end,
            enumerators: first_enumerator + entry.enumerators.start
                ..first_enumerator + entry.enumerators.end,
        }));
        let end = graph.nodes.len() as u32;
        match graph.parts.last_mut() {
            Some(part) if part.len() < PART => part.end = end,
            _ => graph.parts.push(first_node..end),
        }
    }
    graph
}

/// Stubs of type units and declarations completed elsewhere: by node, the node it stands for.
fn follow_origins(bases: &[u32], units: &[UnitFacts<'_>], graph: &mut Graph<'_>) -> Vec<u32> {
    let mut stands_for: Vec<u32> = (0..graph.nodes.len() as u32).collect();
    for (unit, base) in units.iter().zip(bases) {
        for (at, entry) in (*base..).zip(&unit.types) {
            let Some(origin) = at_entry(bases, units, entry.origin).filter(|other| *other != at)
            else {
                continue;
            };
            if entry.flags & type_flags::DECLARATION != 0 {
                stands_for[at as usize] = origin;
            } else {
                stands_for[origin as usize] = at;
                let name = graph.nodes[origin as usize].name;
                if graph.nodes[at as usize].name.len() < name.len() {
                    graph.nodes[at as usize].name = name;
                }
            }
        }
    }
    for at in 0..stands_for.len() {
        stands_for[at] = last_of(&stands_for, at as u32);
    }
    stands_for
}

/// Follows a chain of stand-ins, cut where it is too long to be honest.
fn last_of(stands_for: &[u32], mut at: u32) -> u32 {
    for _ in 0..8 {
        match stands_for.get(at as usize) {
            Some(next) if *next != at => at = *next,
            _ => break,
        }
    }
    at
}

fn redirect(graph: &mut Graph<'_>, stands_for: &[u32]) {
    let follow = |at: u32| stands_for.get(at as usize).copied().unwrap_or(NONE);
    for node in &mut graph.nodes {
        node.target = follow(node.target);
    }
    for edge in &mut graph.edges {
        edge.r#type = follow(edge.r#type);
    }
}

/// The definitions of one tag and name.
#[derive(Clone, Copy)]
struct Definitions {
    first: u32,
    identity: u128,
    ambiguous: bool,
}

/// By P of the first round: what is defined under that tag and name.
struct Names(HashMap<u128, Definitions>);

impl Names {
    fn collect(graph: &Graph<'_>, round: &Round<'_, '_>, stands_for: &[u32]) -> Self {
        let mut names = HashMap::<u128, Definitions>::new();
        for (at, node) in (0_u32..).zip(&graph.nodes) {
            let is_definition = is_tagged(node.kind)
                && node.flags & type_flags::DECLARATION == 0
                && stands_for.get(at as usize) == Some(&at);
            if !is_definition {
                continue;
            }
            let identity = round.identity(at);
            names
                .entry(round.seen_through_pointer(at))
                .and_modify(|known| known.ambiguous |= known.identity != identity)
                .or_insert(Definitions {
                    first: at,
                    identity,
                    ambiguous: false,
                });
        }
        Self(names)
    }

    /// A declaration stands for the definition of its name when there is exactly one.
    fn resolve_declarations(
        &self,
        graph: &Graph<'_>,
        round: &Round<'_, '_>,
        stands_for: &mut [u32],
    ) {
        for (at, node) in (0_u32..).zip(&graph.nodes) {
            if !is_tagged(node.kind) || node.flags & type_flags::DECLARATION == 0 {
                continue;
            }
            if let Some(known) = self.0.get(&round.seen_through_pointer(at))
                && !known.ambiguous
                && !node.name.is_empty()
                && let Some(entry) = stands_for.get_mut(at as usize)
                && *entry == at
            {
                *entry = known.first;
            }
        }
        // A stub may stand for a declaration that has now found its definition.
        for at in 0..stands_for.len() {
            stands_for[at] = last_of(stands_for, at as u32);
        }
    }

    fn is_ambiguous(&self, seen_through_pointer: u128) -> bool {
        self.0
            .get(&seen_through_pointer)
            .is_some_and(|known| known.ambiguous)
    }
}

/// By node: equal for equal types of this file.
fn refine(graph: &Graph<'_>, names: &Names) -> Vec<u128> {
    let total = graph.nodes.len() as u32;
    let round = Round::run(graph, &[]);
    let keys_of = |round: &Round<'_, '_>| -> Vec<u128> {
        let nodes = (0..total).into_par_iter();
        nodes.map(|node| round.identity(node)).collect()
    };
    let mut keys = keys_of(&round);
    let ambiguous: Vec<bool> = (0..total)
        .into_par_iter()
        .map(|node| names.is_ambiguous(round.seen_through_pointer(node)))
        .collect();
    drop(round);
    if !ambiguous.contains(&true) {
        return keys;
    }
    let mut classes = count_distinct(&keys);
    for _ in 0..MAX_ROUNDS {
        let refined: Vec<u128> = keys
            .iter()
            .zip(&ambiguous)
            .map(|(key, ambiguous)| if *ambiguous { *key } else { 0 })
            .collect();
        let next = keys_of(&Round::run(graph, &refined));
        let count = count_distinct(&next);
        keys = next;
        if count == classes {
            break;
        }
        classes = count;
    }
    keys
}

fn count_distinct(keys: &[u128]) -> usize {
    let mut sorted = keys.to_vec();
    sorted.par_sort_unstable();
    sorted.dedup();
    sorted.len()
}

fn collapse(
    units: &[UnitFacts<'_>],
    bases: &[u32],
    graph: &Graph<'_>,
    stands_for: &[u32],
    used: &[bool],
    keys: &[u128],
    identities: &[u128],
) -> UniqueTypes {
    let mut index_of = HashMap::<u128, TypeIndex>::with_capacity(keys.len() / 8);
    let mut chosen: Vec<u32> = Vec::new();
    let mut unique = vec![NONE; keys.len()];
    for at in 0..keys.len() {
        let real = stands_for[at];
        if !used[real as usize] {
            continue;
        }
        let index = *index_of.entry(keys[real as usize]).or_insert_with(|| {
            chosen.push(real);
            (chosen.len() - 1) as TypeIndex
        });
        unique[at] = index;
    }
    let mut result = UniqueTypes {
        types: Vec::with_capacity(chosen.len()),
        bases: bases.to_vec(),
        unique,
    };
    let unique_of = |at: u32| result.unique_of(at);
    let mut types = Vec::with_capacity(chosen.len());
    for at in &chosen {
        let node = &graph.nodes[*at as usize];
        let edges = graph
            .edges
            .get(node.edges.start as usize..node.edges.end as usize)
            .unwrap_or(&[]);
        let enumerators = graph
            .enumerators
            .get(node.enumerators.start as usize..node.enumerators.end as usize)
            .unwrap_or(&[]);
        types.push(Type {
            kind: node.kind,
            name: node.name.to_owned(),
            size: node.size,
            target: unique_of(node.target),
            count: node.count,
            members: edges
                .iter()
                .map(|edge| Member {
                    name: edge.name.to_owned(),
                    r#type: unique_of(edge.r#type).unwrap_or(NONE),
                    offset: edge.offset,
                    bit_offset: 0,
                    bit_size: edge.bit_size,
                    flags: edge.flags,
                    discriminant: edge.discriminant,
                })
                .collect(),
            enumerators: enumerators
                .iter()
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect(),
            encoding: node.encoding,
            flags: node.flags,
            arguments: Vec::new(),
            file: None,
            identity: identities
                .get(*at as usize)
                .copied()
                .unwrap_or(0)
                .to_le_bytes(),
        });
    }
    result.types = types;
    for (index, at) in chosen.iter().enumerate() {
        let arguments = arguments_of(units, bases, *at, &result);
        result.types[index].arguments = arguments;
    }
    fill_sizes(&mut result.types);
    place_bit_fields(&mut result.types);
    inherit_polymorphism(&mut result.types);
    result
}

fn arguments_of(
    units: &[UnitFacts<'_>],
    bases: &[u32],
    at: u32,
    types: &UniqueTypes,
) -> Vec<TypeIndex> {
    let number = bases.partition_point(|base| *base <= at).saturating_sub(1);
    // Units without types share their base with the next one; the last of them owns the type.
    let (Some(unit), Some(base)) = (units.get(number), bases.get(number)) else {
        return Vec::new();
    };
    let Some(entry) = unit.types.get((at - base) as usize) else {
        return Vec::new();
    };
    let range = entry.arguments.start as usize..entry.arguments.end as usize;
    unit.arguments
        .get(range)
        .unwrap_or(&[])
        .iter()
        .map(|(_, argument)| types.resolve(units, number, *argument).unwrap_or(NONE))
        .collect()
}

/// Typedefs, qualifiers and arrays are as large as what they are made of.
fn fill_sizes(types: &mut [Type]) {
    for at in 0..types.len() {
        let mut count = 1_u64;
        let mut next = Some(at as TypeIndex);
        // A chain longer than this is a cycle.
        for _ in 0..64 {
            let Some(current) = next.and_then(|next| types.get(next as usize)) else {
                break;
            };
            if let Some(size) = current.size {
                types[at].size = size.checked_mul(count);
                break;
            }
            match current.kind {
                TypeKind::Array => match current.count.and_then(|n| count.checked_mul(n)) {
                    Some(product) => count = product,
                    None => break,
                },
                TypeKind::Typedef
                | TypeKind::Const
                | TypeKind::Volatile
                | TypeKind::Restrict
                | TypeKind::Atomic => {}
                TypeKind::Pointer | TypeKind::Reference | TypeKind::RvalueReference => {
                    types[at].size = count.checked_mul(8);
                    break;
                }
                _ => break,
            }
            next = current.target;
        }
    }
}

/// Turns the bit position of each bit-field into its storage unit and a bit offset in that.
fn place_bit_fields(types: &mut [Type]) {
    let sizes: Vec<Option<u64>> = types.iter().map(|entry| entry.size).collect();
    for member in types.iter_mut().flat_map(|entry| &mut entry.members) {
        if member.bit_size == 0 {
            continue;
        }
        let position = member.offset;
        let unit = sizes
            .get(member.r#type as usize)
            .copied()
            .flatten()
            .filter(|size| (1..=16).contains(size))
            .unwrap_or(1);
        let aligned = position / 8 / unit * unit;
        let within = position - aligned * 8;
        // In packed structures a field may straddle its natural unit: start at its first byte.
        let fits = within + u64::from(member.bit_size) <= unit * 8;
        member.offset = if fits { aligned } else { position / 8 };
        member.bit_offset = if fits { within } else { position % 8 } as u16;
    }
}

/// What derives from a polymorphic class is one itself.
fn inherit_polymorphism(types: &mut [Type]) {
    use pointee_model::image::member_flags::BASE_CLASS;
    // Each pass reaches one level further down; real hierarchies are shallow.
    for _ in 0..32 {
        let polymorphic: Vec<bool> = types
            .iter()
            .map(|entry| entry.flags & type_flags::POLYMORPHIC != 0)
            .collect();
        let mut changed = false;
        for entry in types.iter_mut() {
            let inherits = entry.flags & type_flags::POLYMORPHIC == 0
                && entry.members.iter().any(|member| {
                    member.flags & BASE_CLASS != 0
                        && polymorphic
                            .get(member.r#type as usize)
                            .copied()
                            .unwrap_or(false)
                });
            if inherits {
                entry.flags |= type_flags::POLYMORPHIC;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
}
