//! *How long does fork hold its caller up?* — the child gets a copy of the index; a private one is the kernel's to copy.

use super::measure::{interleaved, median};
use super::table::{Table, figure};
use super::variant::Variant;
use super::{Bench, Context, Result};
use crate::shell;

/// Bytes held in blocks of 100, and forks a run: a median of them is printed.
const HEAPS: [(&str, &str, &str); 3] = [
    ("1 MiB", "1048576", "41"),
    ("0.1 GiB", "107374182", "9"),
    ("1 GiB", "1073741824", "5"),
];

pub(super) fn measure(bench: &Bench) -> Result<()> {
    let program = bench.folder.join("fork");
    bench.compile("fork.c", &program, &[])?;
    let variants = [Variant::Plain, Variant::Preloaded, Variant::Run];
    println!("## Pause of fork, milliseconds\n");
    let titles = variants.iter().map(|variant| variant.title());
    let mut table = Table::new(["heap in blocks of 100 bytes"].into_iter().chain(titles));
    for (name, bytes, forks) in HEAPS {
        let words = [program.clone().into(), bytes.into(), forks.into()];
        let results = shell::timed(&format!("measuring fork at {name}"), || {
            Ok(interleaved(bench.rounds, &variants, |variant| {
                let text = shell::output(&mut bench.tools.command(variant, &words))?;
                let number = text.trim().parse::<f64>();
                number.with_context(|| format!("no figure in {text}"))
            }))
        })?;
        let cells = results
            .iter()
            .map(|runs| figure(median(runs.iter().flatten().copied()), 2));
        table.row([name.to_owned()].into_iter().chain(cells));
    }
    table.print();
    Ok(())
}
