//! What Pointee reads from an ELF file: `dump FILE [TYPE…]` prints counts, times and types.

use pointee_meta::debug_files::{DebugFiles, Search};
use pointee_meta::dwarf::read_facts;
use pointee_meta::elf::Elf;
use pointee_meta::facts::{Facts, Type};
use pointee_meta::sites;
use pointee_meta::writer::{self, Provenance};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: dump FILE [TYPE…]")?;
    let start = Instant::now();
    let elf = Elf::open(&path)?;
    let opened = start.elapsed();
    let debug = DebugFiles::find(&elf, &Search::default());
    let found = start.elapsed();
    let facts = read_facts(&elf, &debug);
    let read = start.elapsed();
    let provenance = Provenance {
        build_id: elf.build_id().to_vec(),
        ..Provenance::default()
    };
    let sites = sites::infer(&elf, &facts, &sites::Options::default());
    let inferred = start.elapsed();
    let image = writer::write(
        &facts,
        &sites,
        &pointee_meta::config::Config::default(),
        &provenance,
    );
    let written = start.elapsed();
    println!("{path}");
    println!(
        "  opened {opened:?}, debug files {:?}, facts {:?}, sites {:?}, image {:?}",
        found - opened,
        read - found,
        inferred - read,
        written - inferred
    );
    print_counts(&facts);
    println!(
        "  sites {}, wrappers {}, image bytes {}",
        sites.sites.len(),
        sites.wrappers.len(),
        image.len()
    );
    for diagnostic in facts.diagnostics.iter().take(10) {
        println!("  ! {diagnostic}");
    }
    for name in arguments {
        for entry in facts.types.iter().filter(|entry| entry.name == name) {
            print_type(&facts, entry);
        }
    }
    Ok(())
}

fn print_counts(facts: &Facts) {
    let sum = |count: fn(&pointee_meta::facts::Function) -> usize| -> usize {
        facts.functions.iter().map(count).sum()
    };
    println!(
        "  types {}, functions {} ({} from symbols), inlines {}, variables {}, places {}",
        facts.types.len(),
        facts.functions.len(),
        sum(|function| usize::from(!function.has_dwarf)),
        sum(|function| function.inlines.len()),
        sum(|function| function.variables.len()),
        sum(|function| function
            .variables
            .iter()
            .map(|variable| variable.places.len())
            .sum()),
    );
    println!(
        "  globals {}, lines {}, files {}, diagnostics {}",
        facts.globals.len(),
        facts.lines.len(),
        facts.files.len(),
        facts.diagnostics.len()
    );
}

fn print_type(facts: &Facts, entry: &Type) {
    println!("{:?} {} size {:?}", entry.kind, entry.name, entry.size);
    for member in &entry.members {
        let of = facts.types.get(member.r#type as usize);
        println!(
            "  {:4} {:24} {:?} {} bits {}:{}",
            member.offset,
            member.name,
            of.map(|of| of.kind),
            of.map_or("", |of| of.name.as_str()),
            member.bit_offset,
            member.bit_size
        );
    }
}
