//! *Is a block of just one object an array of one?*
//!
//! Where the compiler knows that a count is 1, the machine code of `list->items = new(n * sizeof(T))` is that of
//! one object. If other code keeps arrays in the same field, this is one of them, unless the source text
//! says that one is meant.

use super::Site;
use super::calls::Key;
use pointee_model::evidence::{Role, Witness};
use pointee_model::image::TypeIndex;
use std::collections::HashSet;

/// Makes single objects arrays where their field, elsewhere, holds arrays of a size not known.
pub(super) fn settle(sites: &mut [(Key, Site)]) {
    let arrays: HashSet<(String, TypeIndex)> = sites
        .iter()
        .filter(|(_, site)| site.role == Role::Element && site.request.total.is_none())
        .flat_map(|(_, site)| kept(site))
        .collect();
    if arrays.is_empty() {
        return;
    }
    for (_, site) in sites {
        let written = |seen: &super::Evidence| seen.witness == Witness::SizeofInSource;
        if site.role == Role::Whole
            && !site.evidence.iter().any(written)
            && kept(site).any(|field| arrays.contains(&field))
        {
            site.role = Role::Element;
        }
    }
}

/// The fields and globals that keep a site's block, with its type.
fn kept(site: &Site) -> impl Iterator<Item = (String, TypeIndex)> {
    site.evidence.iter().filter_map(|seen| {
        let keeps = matches!(seen.witness, Witness::Field | Witness::Global);
        (keeps && !seen.what.is_empty() && seen.r#type == site.r#type)
            .then(|| Some((seen.what.clone(), seen.r#type?)))?
    })
}
