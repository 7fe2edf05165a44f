//! *Which types are the same type?*
//!
//! Two hashes are defined over the types of all units; both follow the structure of types and never
//! the order in which a compiler happened to write it:
//!
//! ```text
//!   P(t)  what t is when seen through a pointer
//!           struct, class, union, enum, variant:  tag and qualified name, nothing else
//!           anything else:                        kind, name, encoding, size, count, P(target), P(parameters)
//!   B(t)  what t is when it is part of something by value
//!           struct, class, union, enum, variant:  kind, name, size, members (name, offset, bits, B(type)), enumerators
//!           typedef, const …, array:              kind, name, count, B(target)
//!           pointer, reference, function:         P(t)
//!
//!   identity(t) = B(t) for tagged types, P(t) for all others
//! ```
//!
//! Types can only be recursive through pointers, and P stops at names, so both are well-founded;
//! what is cyclic all the same is damaged, and is cut where the cycle closes. Because P stops at names,
//! the identity of a type is the same in a file that only declares what it points to and in one
//! that defines it; that is what lets types of several files be compared.
//!
//! The price: `struct entry *` has one P although two source files may each have their own
//! `struct entry`. Inside one file they are told apart by *refinement*: a name with several
//! definitions is *ambiguous*, and P of an ambiguous type also takes its B of the round before.
//! Rounds go on until no more classes split (as in the minimization of automata). So types of one
//! file are the same iff nothing reachable from them differs, and types of several files may share an
//! identity while things of equal names behind pointers differ.

use pointee_model::image::TypeKind;
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_128;

/// No type.
pub(super) const NONE: u32 = u32::MAX;

/// Inheritance chains of tuples nest some hundreds deep; a thousand levels fit a thread's stack.
const MAX_DEPTH: u32 = 1000;

/// A type with all references resolved to indices into [`Graph::nodes`].
pub(super) struct Node<'n> {
    pub(super) kind: TypeKind,
    pub(super) name: &'n str,
    pub(super) size: Option<u64>,
    pub(super) count: Option<u64>,
    pub(super) encoding: u8,
    pub(super) flags: u16,
    pub(super) target: u32,
    pub(super) edges: Range<u32>,
    pub(super) enumerators: Range<u32>,
}

/// A member or parameter.
pub(super) struct Edge<'n> {
    pub(super) name: &'n str,
    pub(super) r#type: u32,
    pub(super) offset: u64,
    pub(super) bit_size: u16,
    pub(super) flags: u32,
    pub(super) discriminant: u64,
}

/// All types of all units.
#[derive(Default)]
pub(super) struct Graph<'n> {
    pub(super) nodes: Vec<Node<'n>>,
    pub(super) edges: Vec<Edge<'n>>,
    pub(super) enumerators: Vec<(&'n str, i64)>,
    /// The nodes in pieces of whole units, in order.
    pub(super) parts: Vec<Range<u32>>,
}

/// Whether types of this kind are known by their names behind pointers.
pub(super) fn is_tagged(kind: TypeKind) -> bool {
    matches!(
        kind,
        TypeKind::Struct | TypeKind::Class | TypeKind::Union | TypeKind::Enum | TypeKind::Variant
    )
}

/// The identity of a base type, as of any debug info that states it.
pub(crate) fn of_base(name: &str, size: u64, encoding: u8) -> [u8; 16] {
    let node = Node {
        kind: TypeKind::Base,
        name,
        size: Some(size),
        count: None,
        encoding,
        flags: 0,
        target: NONE,
        edges: 0..0,
        enumerators: 0..0,
    };
    let graph = Graph {
        nodes: vec![node],
        parts: std::iter::once(0..1).collect(),
        ..Graph::default()
    };
    Round::run(&graph, &[]).identity(0).to_le_bytes()
}

/// What is known of a node in one round.
#[derive(Clone, Default)]
struct Hashes {
    by_value: u128,
    by_pointer: u128,
    /// Whether one of them is being computed, to find cycles.
    busy: bool,
}

/// One round of hashing.
pub(super) struct Round<'g, 'n> {
    graph: &'g Graph<'n>,
    /// By node.
    hashes: Vec<Hashes>,
}

const UNSET: u128 = 0;

impl<'g, 'n> Round<'g, 'n> {
    /// Hashes the whole graph; `refined` are B of the round before, by node, for ambiguous ones, and 0 for all others.
    pub(super) fn run(graph: &'g Graph<'n>, refined: &[u128]) -> Self {
        let mut hashes = vec![Hashes::default(); graph.nodes.len()];
        let mut rest = &mut hashes[..];
        let mut parts = Vec::with_capacity(graph.parts.len());
        for part in &graph.parts {
            let (own, others) = rest.split_at_mut(part.len().min(rest.len()));
            rest = others;
            parts.push(Part {
                graph,
                refined,
                first: part.start,
                own,
                elsewhere: HashMap::new(),
                scratch: Vec::new(),
            });
        }
        parts.into_par_iter().for_each(Part::run);
        Self { graph, hashes }
    }

    /// `identity` of the node (see the top of the file).
    pub(super) fn identity(&self, node: u32) -> u128 {
        let at = node as usize;
        let tagged = self
            .graph
            .nodes
            .get(at)
            .is_some_and(|node| is_tagged(node.kind));
        match self.hashes.get(at) {
            Some(hashes) if tagged => hashes.by_value,
            Some(hashes) => hashes.by_pointer,
            None => UNSET,
        }
    }

    /// P of the node.
    pub(super) fn seen_through_pointer(&self, node: u32) -> u128 {
        let hashes = self.hashes.get(node as usize);
        hashes.map_or(UNSET, |hashes| hashes.by_pointer)
    }
}

/// The nodes of some units, which are hashed beside those of others. What lies elsewhere is hashed again: little, because units
/// describe what they use and names end the way through pointers.
struct Part<'p, 'n> {
    graph: &'p Graph<'n>,
    refined: &'p [u128],
    /// Number of the first node.
    first: u32,
    own: &'p mut [Hashes],
    elsewhere: HashMap<u32, Hashes>,
    scratch: Vec<u8>,
}

impl Part<'_, '_> {
    fn run(mut self) {
        for node in (self.first..).take(self.own.len()) {
            self.value(node, 0);
            self.pointer(node, 0);
        }
    }

    fn hashes(&mut self, at: u32) -> &mut Hashes {
        let index = at.wrapping_sub(self.first) as usize;
        if index < self.own.len() {
            &mut self.own[index]
        } else {
            self.elsewhere.entry(at).or_default()
        }
    }

    fn value(&mut self, at: u32, depth: u32) -> u128 {
        let graph = self.graph;
        let Some(node) = graph.nodes.get(at as usize) else {
            return 1; // void
        };
        let known = self.hashes(at).by_value;
        if known != UNSET {
            return known;
        }
        let by_value = match node.kind {
            TypeKind::Typedef
            | TypeKind::Const
            | TypeKind::Volatile
            | TypeKind::Restrict
            | TypeKind::Atomic
            | TypeKind::Array => true,
            kind => is_tagged(kind),
        };
        if !by_value {
            let hash = self.pointer(at, depth);
            self.hashes(at).by_value = hash;
            return hash;
        }
        if depth >= MAX_DEPTH || self.hashes(at).busy {
            return name_only(node);
        }
        self.hashes(at).busy = true;
        let target = self.value(node.target, depth + 1);
        let edges = graph
            .edges
            .get(node.edges.start as usize..node.edges.end as usize)
            .unwrap_or(&[]);
        for edge in edges {
            self.value(edge.r#type, depth + 1);
        }
        self.hashes(at).busy = false;
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        head(&mut bytes, node);
        bytes.extend_from_slice(&target.to_le_bytes());
        for edge in edges {
            let hash = self.value(edge.r#type, depth + 1);
            text(&mut bytes, edge.name);
            bytes.extend_from_slice(&edge.offset.to_le_bytes());
            bytes.extend_from_slice(&edge.discriminant.to_le_bytes());
            bytes.extend_from_slice(&edge.bit_size.to_le_bytes());
            bytes.extend_from_slice(&edge.flags.to_le_bytes());
            bytes.extend_from_slice(&hash.to_le_bytes());
        }
        for (name, number) in graph
            .enumerators
            .get(node.enumerators.start as usize..node.enumerators.end as usize)
            .unwrap_or(&[])
        {
            text(&mut bytes, name);
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let hash = digest(&bytes);
        self.scratch = bytes;
        self.hashes(at).by_value = hash;
        hash
    }

    fn pointer(&mut self, at: u32, depth: u32) -> u128 {
        let graph = self.graph;
        let Some(node) = graph.nodes.get(at as usize) else {
            return 1;
        };
        let known = self.hashes(at).by_pointer;
        if known != UNSET {
            return known;
        }
        if is_tagged(node.kind) {
            let refined = self.refined.get(at as usize).copied().unwrap_or(UNSET);
            let hash = if refined == UNSET {
                name_only(node)
            } else {
                digest(&[name_only(node).to_le_bytes(), refined.to_le_bytes()].concat())
            };
            self.hashes(at).by_pointer = hash;
            return hash;
        }
        if depth >= MAX_DEPTH || self.hashes(at).busy {
            return name_only(node);
        }
        self.hashes(at).busy = true;
        let target = self.pointer(node.target, depth + 1);
        let edges = graph
            .edges
            .get(node.edges.start as usize..node.edges.end as usize)
            .unwrap_or(&[]);
        for edge in edges {
            self.pointer(edge.r#type, depth + 1);
        }
        self.hashes(at).busy = false;
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        head(&mut bytes, node);
        bytes.extend_from_slice(&target.to_le_bytes());
        for edge in edges {
            let hash = self.pointer(edge.r#type, depth + 1);
            bytes.extend_from_slice(&hash.to_le_bytes());
        }
        let hash = digest(&bytes);
        self.scratch = bytes;
        self.hashes(at).by_pointer = hash;
        hash
    }
}

/// `struct` and `class` are one tag: a type may be declared with one and defined with the other.
/// A Rust enum is written as a structure, so it is that, too.
fn tag(kind: TypeKind) -> u8 {
    match kind {
        TypeKind::Class | TypeKind::Variant => TypeKind::Struct as u8,
        other => other as u8,
    }
}

fn name_only(node: &Node<'_>) -> u128 {
    let mut bytes = Vec::with_capacity(node.name.len() + 1);
    bytes.push(tag(node.kind));
    bytes.extend_from_slice(node.name.as_bytes());
    digest(&bytes)
}

fn head(bytes: &mut Vec<u8>, node: &Node<'_>) {
    bytes.push(tag(node.kind));
    bytes.push(node.encoding);
    bytes.extend_from_slice(&node.flags.to_le_bytes());
    bytes.extend_from_slice(&node.size.unwrap_or(u64::MAX).to_le_bytes());
    bytes.extend_from_slice(&node.count.unwrap_or(u64::MAX).to_le_bytes());
    text(bytes, node.name);
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

/// 0 and 1 are taken (not computed yet, and void).
fn digest(bytes: &[u8]) -> u128 {
    xxh3_128(bytes).max(2)
}
