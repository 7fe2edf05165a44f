//! *Is a block of just one object an array of one?*
//!
//! Where the compiler knows that a count is 1, the machine code of `list->items = new(n * sizeof(T))` is that of
//! one object. If it made code of the same call for other counts too, or other code keeps arrays in the same field, this is one
//! of them; for the latter only unless the source text says that one is meant. What a template argument tells (`Box<T>`, `Vec<T>`)
//! says itself whether it is one: the line of such a call is the library's, and everybody's.

use super::Site;
use super::calls::Key;
use super::typing::{Pointee, Types};
use crate::facts::Facts;
use pointee_model::evidence::{Role, Witness};
use pointee_model::image::TypeIndex;
use std::collections::HashSet;

/// Makes single objects arrays where the same call, or what their field holds elsewhere, is an array of a size not known.
pub(super) fn settle(facts: &Facts, types: &Types<'_>, sites: &mut [(Key, Site)]) {
    let written = |callee: Key, site: &Site| -> Option<Written> {
        let (file, line) = line_of(facts, types, site.call)?;
        Some((file, line, callee, site.r#type?))
    };
    let is_array = |site: &Site| site.role == Role::Element && site.request.total.is_none();
    let arrays = || sites.iter().filter(|(_, site)| is_array(site));
    let fields: HashSet<(String, TypeIndex)> = arrays().flat_map(|(_, site)| kept(site)).collect();
    let calls: HashSet<_> = arrays()
        .filter_map(|(key, site)| written(*key, site))
        .collect();
    if fields.is_empty() && calls.is_empty() {
        return;
    }
    for (key, site) in sites {
        let stated = |seen: &super::Evidence| seen.witness == Witness::SizeofInSource;
        let is_single = site.role == Role::Whole && site.request.total.is_some();
        let generic = |seen: &super::Evidence| seen.witness == Witness::TemplateArgument;
        if is_single
            && (!site.evidence.iter().any(generic)
                && written(*key, site).is_some_and(|call| calls.contains(&call))
                || (!site.evidence.iter().any(stated)
                    && kept(site).any(|field| fields.contains(&field))))
        {
            site.role = Role::Element;
        }
    }
}

/// Where a call is written, what it calls, and of which type that makes something.
type Written = (u32, u32, Key, TypeIndex);

/// File and line of a call; of one in a function that hands out memory and was inlined, those of the call of that.
fn line_of(facts: &Facts, types: &Types<'_>, address: u64) -> Option<(u32, u32)> {
    let holds = |ranges: &[(u64, u64)]| {
        ranges
            .iter()
            .any(|(start, end)| (*start..*end).contains(&address))
    };
    let after = facts.lines.partition_point(|row| row.address <= address);
    let row = &facts.lines[after.checked_sub(1)?];
    let mut place = (row.file?, row.line);
    let after = facts
        .functions
        .partition_point(|function| function.entry <= address);
    let function = facts.functions.get(after.checked_sub(1)?)?;
    let mut around: Vec<_> = function
        .inlines
        .iter()
        .filter(|inline| holds(&inline.ranges))
        .collect();
    around.sort_by_key(|inline| std::cmp::Reverse(inline.depth));
    for inline in around {
        if inline.result.and_then(|result| types.pointee(result)) != Some(Pointee::Void) {
            break;
        }
        place = (inline.call_file?, inline.call_line);
    }
    Some(place)
}

/// The fields and globals that keep a site's block, with its type.
fn kept(site: &Site) -> impl Iterator<Item = (String, TypeIndex)> {
    site.evidence.iter().filter_map(|seen| {
        let keeps = matches!(seen.witness, Witness::Field | Witness::Global);
        (keeps && !seen.what.is_empty() && seen.r#type == site.r#type)
            .then(|| Some((seen.what.clone(), seen.r#type?)))?
    })
}
