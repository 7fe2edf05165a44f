//! Prints how the points of files would be placed: `place entry|call|jump|syscall|instruction FILE…`.

use pointee_meta::elf::Elf;
use pointee_probe::{At, Plan, Wanted};
use std::collections::BTreeMap;

fn main() {
    let mut words = std::env::args().skip(1);
    let at = match words.next().as_deref() {
        Some("entry") => At::Entry,
        Some("call") => At::Call,
        Some("jump") => At::Jump,
        Some("syscall") => At::Syscall,
        _ => At::Instruction,
    };
    for file in words {
        let begun = std::time::Instant::now();
        let elf = Elf::open(&file).expect("an ELF file");
        let wanted = Wanted::all(at);
        let plan = Plan::new(&elf, &wanted).expect("a plan");
        let refused = plan.points.iter().filter(|point| point.placed.is_err());
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for point in refused {
            if let Err(why) = point.placed {
                *reasons.entry(why.reason()).or_default() += 1;
                if std::env::var_os("VERBOSE").is_some() {
                    println!(
                        "  {}+{:#x}: {}",
                        plan.functions[point.function as usize].label(),
                        point.offset,
                        why.reason()
                    );
                }
            }
        }
        println!(
            "{file}: {} functions, {} points, {:?}, refused {reasons:?}, excluded {:?}, {} KiB, {:?}",
            plan.functions.len(),
            plan.points.len(),
            plan.tactics(),
            plan.excluded,
            plan.placement.len() >> 10,
            begun.elapsed()
        );
    }
}
