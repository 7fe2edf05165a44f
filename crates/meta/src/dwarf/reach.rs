//! *Which types does this file use?*
//!
//! A file that dwz shares between several has the types of all of them: a small tool would carry
//! those of every other. Used are the types of the file's own units, those that its functions and variables
//! have by way of their origins, all template arguments, and everything these refer to.

use super::functions::MAX_CHAIN;
use super::identity::{Graph, NONE};
use super::raw::{TypeRef, UnitFacts};
use super::types::global;
use super::units::DieRef;

/// By node: whether it is used.
pub(super) fn used(
    units: &[UnitFacts<'_>],
    bases: &[u32],
    graph: &Graph<'_>,
    stands_for: &[u32],
    shared: &[bool],
) -> Vec<bool> {
    let mut search = Search {
        units,
        bases,
        stands_for,
        found: vec![false; graph.nodes.len()],
        stack: Vec::new(),
    };
    for (number, unit) in units.iter().enumerate() {
        for (_, argument) in &unit.arguments {
            search.visit(number, *argument);
        }
        if shared.get(number).copied().unwrap_or(false) {
            continue;
        }
        for index in 0..unit.types.len() as u32 {
            search.visit(number, TypeRef::Made(index));
        }
        for function in &unit.functions {
            search.visit(number, function.result);
            search.visit_functions(function.origin);
            for inline in function.code.iter().flat_map(|code| &code.inlines) {
                search.visit_functions(inline.origin);
            }
        }
        for (_, allocated) in &unit.allocations {
            search.visit(number, *allocated);
        }
        for variable in &unit.variables {
            search.visit(number, variable.r#type);
            search.visit_variables(variable.origin);
        }
    }
    while let Some(at) = search.stack.pop() {
        let Some(node) = graph.nodes.get(at as usize) else {
            continue;
        };
        search.add(node.target);
        let edges = node.edges.start as usize..node.edges.end as usize;
        for edge in graph.edges.get(edges).unwrap_or(&[]) {
            search.add(edge.r#type);
        }
    }
    search.found
}

struct Search<'s, 'n> {
    units: &'s [UnitFacts<'n>],
    bases: &'s [u32],
    stands_for: &'s [u32],
    found: Vec<bool>,
    stack: Vec<u32>,
}

impl Search<'_, '_> {
    fn add(&mut self, at: u32) {
        let real = self.stands_for.get(at as usize).copied().unwrap_or(NONE);
        if let Some(found) = self.found.get_mut(real as usize)
            && !*found
        {
            *found = true;
            self.stack.push(real);
        }
    }

    fn visit(&mut self, unit: usize, reference: TypeRef) {
        let at = global(self.bases, self.units, unit, reference);
        self.add(at);
    }

    fn visit_functions(&mut self, mut at: DieRef) {
        for _ in 0..MAX_CHAIN {
            let unit = self.units.get(at.unit()).filter(|_| !at.is_none());
            let Some(origin) = unit.and_then(|unit| unit.function_at(at.offset())) else {
                break;
            };
            self.visit(at.unit(), origin.result);
            at = origin.origin;
        }
    }

    fn visit_variables(&mut self, mut at: DieRef) {
        for _ in 0..MAX_CHAIN {
            let unit = self.units.get(at.unit()).filter(|_| !at.is_none());
            let Some(origin) = unit.and_then(|unit| unit.variable_at(at.offset())) else {
                break;
            };
            self.visit(at.unit(), origin.r#type);
            at = origin.origin;
        }
    }
}
