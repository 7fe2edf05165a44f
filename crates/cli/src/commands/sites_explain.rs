//! `pointee sites --explain`: *why is this site of that type?* — the analysis of one site, step by step.

use super::learned;
use crate::images;
use crate::output::print;
use anyhow::{Result, bail};
use pointee_meta::cache::{self, Options};
use pointee_meta::elf::{self, Elf};
use pointee_meta::facts::Facts;
use pointee_meta::sites::{Near, Request, Site, Sites, spelled};
use pointee_model::evidence::{Role, Verdict};
use pointee_model::image::{TypeIndex, site_flags};
use std::fmt::Write;
use std::path::Path;

/// Analyses `file` anew and explains the sites that `which` names: the address of a call, as listed, or
/// `FILE:LINE`.
pub(crate) fn explain(file: &Path, which: &str, options: &Options) -> Result<()> {
    let (map, learned) = images::alone(file, options)?;
    let elf = map.file(0);
    let (facts, found) = cache::analyse(elf, &learned, options);
    let address = which.strip_prefix("0x").unwrap_or(which);
    let address = u64::from_str_radix(address, 16).ok();
    let place = which
        .rsplit_once(':')
        .and_then(|(file, line)| Some((file, line.parse::<u32>().ok()?)));
    let chosen = found.sites.iter().filter(|site| {
        let at = position(&facts, site.call);
        address.is_some_and(|address| [site.call, site.return_address].contains(&address))
            || place.is_some_and(|(file, line)| {
                at.is_some_and(|at| at.1 == line && at.0.ends_with(file))
            })
    });
    let mut out = String::new();
    for site in chosen {
        describe(&mut out, elf, &facts, &found, site);
    }
    if out.is_empty() {
        bail!(
            "no site at {which}: an address that `pointee sites` lists, or FILE:LINE, is expected"
        );
    }
    print(&out)
}

// Writing to a string does not fail.
fn describe(out: &mut String, elf: &Elf, facts: &Facts, found: &Sites, site: &Site) {
    let function = facts.functions.iter().find(|function| {
        function
            .ranges
            .iter()
            .any(|(start, end)| (*start..*end).contains(&site.call))
    });
    let name = function.map_or("?", |function| function.name.as_str());
    let _ = writeln!(out, "{:#x}  {name} calls {}", site.call, site.callee);
    step(out, elf, facts, site.call);
    let mut imports = found.imports.iter();
    if let Some(summary) = imports.find(|summary| summary.name == site.callee) {
        let _ = writeln!(out, "  because {}", learned::in_words(summary));
    }
    let _ = writeln!(out, "  asked for: {}", asked(site.request));
    if site.flags & site_flags::WRAPPER != 0 {
        let _ = writeln!(
            out,
            "  the function hands it to its callers: their calls are the sites"
        );
    }
    if site.evidence.is_empty() {
        let _ = writeln!(out, "  seen: nothing that points at a type");
    }
    for seen in &site.evidence {
        let r#type = seen
            .r#type
            .map_or("void".to_owned(), |at| spelled(facts, at));
        let role = match seen.role {
            Role::Unknown => String::new(),
            role => format!(", {} if of that size", role.word()),
        };
        let _ = writeln!(
            out,
            "  seen: {} {} → {type}{role}",
            seen.witness.word(),
            seen.what
        );
        if seen.address == 0 {
            let _ = writeln!(out, "      in the source text of the call");
        } else {
            step(out, elf, facts, seen.address);
        }
    }
    for (r#type, why) in &site.dropped {
        let _ = writeln!(out, "  not {}: {why}", spelled(facts, *r#type));
    }
    let _ = writeln!(out, "  so: {}\n", conclusion(facts, site));
}

/// The instruction at an address and the source line it belongs to.
fn step(out: &mut String, elf: &Elf, facts: &Facts, address: u64) {
    let instruction = elf::instruction_at(elf, address).unwrap_or_else(|| "?".to_owned());
    let _ = writeln!(out, "      {address:#x}  {instruction}");
    if let Some((file, line)) = position(facts, address) {
        let text = std::fs::read(file).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let text = text
            .lines()
            .nth((line as usize).saturating_sub(1))
            .unwrap_or("");
        let _ = writeln!(out, "      {file}:{line}  {}", text.trim());
    }
}

fn position(facts: &Facts, address: u64) -> Option<(&str, u32)> {
    let after = facts.lines.partition_point(|row| row.address <= address);
    let row = facts.lines.get(after.checked_sub(1)?)?;
    Some((facts.files.get(row.file? as usize)?, row.line))
}

fn asked(request: Request) -> String {
    let Request {
        total,
        unit,
        head,
        near,
        grows,
        ..
    } = request;
    let told = size_in_words(total, unit, head);
    let made_of = || {
        let Near { total, unit, head } = near?;
        let number = size_in_words(total, unit, head)?;
        Some(format!("a size made of {number}, it is not told how"))
    };
    let untold = || "a size that is not told from the code".to_owned();
    let size = told.or_else(made_of).unwrap_or_else(untold);
    if grows {
        format!("{size}, in place of an older block")
    } else {
        size
    }
}

fn size_in_words(total: Option<u64>, unit: Option<u64>, head: u64) -> Option<String> {
    Some(match (total, unit, head) {
        (Some(total), ..) => format!("{total} bytes"),
        (None, Some(unit), 0) => format!("a multiple of {unit} bytes"),
        (None, Some(unit), head) => format!("{head} bytes and a multiple of {unit}"),
        (None, None, 0) => return None,
        (None, None, head) => format!("{head} bytes and more"),
    })
}

fn conclusion(facts: &Facts, site: &Site) -> String {
    let name = |at: TypeIndex| spelled(facts, at);
    let r#type = site
        .r#type
        .map_or("no type".to_owned(), |at| match (site.role, site.tail) {
            (Role::Header, Some(tail)) => {
                format!("{} and an array of {} behind it", name(at), name(tail))
            }
            (Role::Header, None) => format!("{} and more behind it", name(at)),
            (Role::Element | Role::Characters | Role::Bytes, _) => {
                format!("an array of {}", name(at))
            }
            (Role::Whole, _) => format!("one {}", name(at)),
            (Role::Base, _) => format!("{} or what is derived from it", name(at)),
            (Role::Unknown, _) => format!("{}, alone or with more", name(at)),
        });
    let why = match site.verdict {
        Verdict::Unknown => "nothing tells",
        Verdict::Single => "one kind of witness",
        Verdict::Agreed => "independent witnesses agree",
        Verdict::Conflicting => "the witnesses do not agree; the nearest is shown",
        Verdict::Opaque => "everything it goes to is a void *",
    };
    format!("{type} ({}: {why})", site.verdict.word())
}
