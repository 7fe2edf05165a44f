//! What Pointee infers of a file's allocations: `sites [--no-sources] [--source-root DIR] FILE`
//! prints a row for each site and a summary.

use pointee_meta::debug_files::{DebugFiles, Search};
use pointee_meta::dwarf::read_facts;
use pointee_meta::elf::Elf;
use pointee_meta::facts::{Facts, Function};
use pointee_meta::sites::{self, Options, Site};
use pointee_model::image::site_flags;
use std::collections::BTreeMap;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut options = Options::default();
    let mut path = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--no-sources" => options.sources = false,
            "--source-root" => options
                .source_roots
                .extend(arguments.next().map(Into::into)),
            _ => path = Some(argument),
        }
    }
    let path = path.ok_or("usage: sites [--no-sources] [--source-root DIR] FILE")?;
    let elf = Elf::open(&path)?;
    let facts = read_facts(&elf, &DebugFiles::find(&elf, &Search::default()));
    let start = Instant::now();
    let found = sites::infer(&elf, &facts, &options);
    let took = start.elapsed();

    let mut verdicts: BTreeMap<&str, usize> = BTreeMap::new();
    let jumps = |site: &&Site| site.flags & site_flags::STAND_IN == 0;
    for site in found.sites.iter().filter(jumps) {
        print_site(&facts, site);
        let group = if site.flags & site_flags::WRAPPER != 0 {
            "in a wrapper"
        } else {
            site.verdict.word()
        };
        *verdicts.entry(group).or_default() += 1;
    }
    for wrapper in &found.wrappers {
        println!(
            "wrapper {:x} {} {:?} old {:?} offset {}",
            wrapper.entry, wrapper.name, wrapper.size, wrapper.old, wrapper.offset
        );
    }
    for diagnostic in &found.diagnostics {
        println!("! {diagnostic}");
    }
    println!(
        "{path}: {} sites in {took:?}: {verdicts:?}",
        found.sites.len()
    );
    Ok(())
}

fn print_site(facts: &Facts, site: &Site) {
    let function = facts
        .functions
        .iter()
        .find(|function| holds(function, site.call))
        .map_or("?", |function| function.name.as_str());
    let after = facts.lines.partition_point(|row| row.address <= site.call);
    let position = after
        .checked_sub(1)
        .and_then(|at| facts.lines.get(at))
        .and_then(|row| {
            Some(format!(
                "{}:{}",
                facts.files.get(row.file? as usize)?,
                row.line
            ))
        })
        .unwrap_or_default();
    let name = |index| sites::spelled(facts, index);
    println!(
        "{:x} {function} {} {} => {}{} {:?} {}{}",
        site.call,
        position.rsplit('/').next().unwrap_or(""),
        site.callee,
        site.r#type.map_or_else(|| "-".to_owned(), name),
        site.tail
            .map_or_else(String::new, |tail| format!(" + {}[]", name(tail))),
        site.role,
        site.verdict.word(),
        if site.flags & site_flags::WRAPPER != 0 {
            " wrapper"
        } else {
            ""
        },
    );
    for seen in &site.evidence {
        println!(
            "      {:9} {} {:?} {} @{:x}",
            seen.witness.word(),
            seen.r#type.map_or_else(|| "void".to_owned(), name),
            seen.role,
            seen.what,
            seen.address
        );
    }
}

fn holds(function: &Function, address: u64) -> bool {
    function
        .ranges
        .iter()
        .any(|(start, end)| (*start..*end).contains(&address))
}
