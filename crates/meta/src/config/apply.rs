//! *How does the configuration change what analysis found in a file?*

use super::{Config, Correction, Kind, Rule, Signature};
use crate::facts::{Facts, Function};
use crate::sites::{Evidence, Site, Sites, Size, Wrapper};
use pointee_model::evidence::{Role, Verdict, Witness};
use pointee_model::image::{TypeIndex, TypeKind, site_flags};

/// Marks declared wrappers, forgets ignored ones, corrects types. `module` is the file's path.
pub(crate) fn apply(config: &Config, module: &str, facts: &Facts, sites: &mut Sites) {
    if config.is_empty() {
        return;
    }
    for function in &facts.functions {
        if let Some(rule) = config.rules_for(&function.linkage_name, module).first() {
            mark(rule, function, sites);
        }
    }
    sites.wrappers.sort_by_key(|wrapper| wrapper.entry);
    for correction in &config.corrections {
        correct(correction, facts, sites);
    }
}

fn mark(rule: &Rule, function: &Function, sites: &mut Sites) {
    if rule.takes_back() {
        return;
    }
    let is_wrapper = match rule.kind {
        // Its chunks are its own; what it hands out is recorded for itself.
        Kind::Pool if rule.hooked_as().is_some() => false,
        // What a recorded allocator calls is not recorded, but a walk from elsewhere may come through it.
        Kind::Wrapper | Kind::Allocator | Kind::Pool => true,
        Kind::Ignore => false,
        Kind::Free | Kind::Pair => return,
    };
    let holds = |address: u64| {
        let mut ranges = function.ranges.iter();
        ranges.any(|(start, end)| (*start..*end).contains(&address))
    };
    for site in sites.sites.iter_mut().filter(|site| holds(site.call)) {
        if is_wrapper {
            site.flags |= site_flags::WRAPPER;
        } else {
            site.flags &= !site_flags::WRAPPER;
        }
    }
    let signature = rule.signature.as_ref();
    let known = sites
        .wrappers
        .iter()
        .position(|wrapper| wrapper.entry == function.entry);
    match (known, is_wrapper) {
        (None, true) => sites.wrappers.push(Wrapper {
            entry: function.entry,
            name: function.name.clone(),
            size: signature.map_or(Size::Unknown, Signature::amount),
            old: None,
            offset: 0,
            result: function.result,
        }),
        (Some(at), false) => {
            sites.wrappers.remove(at);
        }
        _ => {}
    }
}

fn correct(correction: &Correction, facts: &Facts, sites: &mut Sites) {
    let (first, tail) = match correction.r#type.split_once('+') {
        Some((first, tail)) => (first.trim(), Some(tail.trim())),
        None => (correction.r#type.trim(), None),
    };
    let find = |text: &str| find_type(facts, text.trim_end_matches("[]").trim());
    let Some(found) = find(first) else {
        sites.diagnostics.push(format!(
            "{}: no type `{first}` in this file",
            correction.origin
        ));
        return;
    };
    let role = match tail {
        Some(_) => Role::Header,
        None if first.ends_with("[]") => Role::Element,
        None => Role::Whole,
    };
    for site in &mut sites.sites {
        if is_at(correction, site, facts) {
            site.r#type = Some(found);
            site.tail = tail.and_then(find);
            site.role = role;
            site.verdict = Verdict::Single;
            site.flags &= !site_flags::WRAPPER;
            let evidence = Evidence {
                witness: Witness::Configuration,
                role,
                r#type: Some(found),
                what: correction.origin.to_string(),
                address: site.call,
            };
            site.evidence.insert(0, evidence);
        }
    }
}

fn is_at(correction: &Correction, site: &Site, facts: &Facts) -> bool {
    let in_function = correction.function.as_ref().is_none_or(|name| {
        facts.functions.iter().any(|function| {
            let named = function.name == *name || function.linkage_name == *name;
            let mut ranges = function.ranges.iter();
            named && ranges.any(|(start, end)| (*start..*end).contains(&site.call))
        })
    });
    if !in_function || (correction.line.is_none() && correction.file.is_none()) {
        return in_function;
    }
    let after = facts.lines.partition_point(|row| row.address <= site.call);
    let row = after.checked_sub(1).and_then(|at| facts.lines.get(at));
    let file = row
        .and_then(|row| facts.files.get(row.file? as usize))
        .map_or("", String::as_str);
    let line = row.map_or(0, |row| row.line);
    correction.line.is_none_or(|wanted| wanted == line)
        && correction
            .file
            .as_ref()
            .is_none_or(|wanted| file == wanted || file.ends_with(&format!("/{wanted}")))
}

/// The type that C writes as `text`: `struct T`, `T`, `T *`.
fn find_type(facts: &Facts, text: &str) -> Option<TypeIndex> {
    if let Some(target) = text.strip_suffix('*') {
        let target = find_type(facts, target.trim())?;
        let found = facts
            .types
            .iter()
            .position(|entry| entry.kind == TypeKind::Pointer && entry.target == Some(target))?;
        return TypeIndex::try_from(found).ok();
    }
    let (tag, name) = match text.split_once(' ') {
        Some((tag @ ("struct" | "union" | "enum" | "class"), name)) => (tag, name.trim()),
        _ => ("", text),
    };
    let is_it = |kind: TypeKind| match tag {
        "struct" | "class" => matches!(kind, TypeKind::Struct | TypeKind::Class),
        "union" => kind == TypeKind::Union,
        "enum" => kind == TypeKind::Enum,
        _ => !matches!(kind, TypeKind::Pointer | TypeKind::Array),
    };
    let named = |(_, entry): &(usize, &crate::facts::Type)| entry.name == name && is_it(entry.kind);
    let mut candidates = facts.types.iter().enumerate().filter(named);
    // A declaration is worth less than what it declares.
    let first = candidates.clone().next();
    let defined = candidates.find(|(_, entry)| entry.size.is_some());
    let (found, _) = defined.or(first)?;
    TypeIndex::try_from(found).ok()
}
