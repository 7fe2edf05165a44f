//! *How does the configuration change what analysis found in a file?*

use super::{Config, Correction, Kind, Rule, Signature, type_text};
use crate::elf::Elf;
use crate::facts::{Facts, Function};
use crate::sites::{Evidence, Site, Sites, Size, Wrapper, behind};
use pointee_model::evidence::{Role, Verdict, Witness};
use pointee_model::image::site_flags;

/// Gives functions that the configuration knows by address, or by what is exported, the names that it calls them by.
pub(crate) fn name_functions(config: &Config, elf: &Elf, facts: &mut Facts) {
    for rule in &config.rules {
        let place = match rule.address {
            Some(address) => Some((address, None)),
            None => place_behind(rule, elf, facts).map(|(start, end)| (start, Some((start, end)))),
        };
        let Some((address, range)) = place else {
            continue;
        };
        let known = facts.functions.iter_mut().find(|it| it.entry == address);
        match known {
            Some(function) => {
                function.name.clone_from(&rule.name);
                function.linkage_name.clone_from(&rule.name);
            }
            None => facts.functions.push(Function {
                name: rule.name.clone(),
                linkage_name: rule.name.clone(),
                entry: address,
                ranges: range.into_iter().collect(),
                ..Function::default()
            }),
        }
    }
}

/// Where the function lies that a rule means by an exported one, if none goes by its name.
fn place_behind(rule: &Rule, elf: &Elf, facts: &Facts) -> Option<(u64, u64)> {
    let named = |name: &str| facts.functions.iter().find(|it| it.linkage_name == name);
    let exported = rule.behind.as_deref().and_then(named)?;
    if named(&rule.name).is_some() {
        return None;
    }
    let (start, end) = *exported.ranges.first()?;
    behind::find(elf, start, end)
}

/// Marks declared wrappers, forgets ignored ones, also among what is exported, and ignored cursors, corrects types. `module` is the file's path.
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
    let is_ignored = |cursor: &str| {
        let rules = &config.rules_for(cursor, module);
        rules.first().is_some_and(|rule| rule.kind == Kind::Ignore)
    };
    sites
        .cursor_writes
        .retain(|write| !is_ignored(&write.cursor));
    sites.exports.retain(|summary| {
        let rules = config.rules_for(&summary.name, module);
        let said = rules.first().map(|rule| rule.kind);
        !matches!(said, Some(Kind::Ignore | Kind::Free))
    });
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
            is_pool: rule.kind == Kind::Pool,
            entry: function.entry,
            name: function.name.clone(),
            size: signature.map_or(Size::Unknown, Signature::amount),
            old: None,
            offset: 0,
            member: None,
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
    let find = |text: &str| type_text::find(facts, text.strip_suffix("[]").unwrap_or(text));
    let mut missed = |text: &str| {
        let origin = &correction.origin;
        let said = format!("{origin}: no type `{text}` in this file");
        sites.diagnostics.push(said);
    };
    let Some(found) = find(first) else {
        missed(first);
        return;
    };
    let tail = match tail {
        // What follows is no array of one type.
        None | Some("…" | "...") => tail.map(|_| None),
        Some(text) => {
            let found = find(text);
            if found.is_none() {
                missed(text);
            }
            Some(found)
        }
    };
    let role = match tail {
        Some(_) => Role::Header,
        None if first.ends_with("[]") => Role::Element,
        None => Role::Whole,
    };
    for site in &mut sites.sites {
        if is_at(correction, site, facts) {
            site.r#type = Some(found);
            site.tail = tail.flatten();
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
