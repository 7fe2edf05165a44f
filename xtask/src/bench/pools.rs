//! *What does a block cost that a pool cuts out, and that goes with others?* — a bump pool's, which is as fast as memory gets, by a
//! function that is hooked, an obstack's, by code that is inlined, and that of a pool whose cursor is a number, inlined too; beside plain.

use super::measure::{interleaved, median};
use super::table::{Table, figure};
use super::variant::Variant;
use super::{Bench, Context, Result};
use crate::shell;

/// Rounds of a thousand blocks each.
const ROUNDS: &str = "20000";
/// What is measured, and its source.
const POOLS: [(&str, &str); 3] = [
    ("bump pool", "pool.c"),
    ("obstack", "obstack.c"),
    ("counting pool", "count.c"),
];

pub(super) fn measure(bench: &Bench) -> Result<()> {
    println!("## A block cut out by a pool and taken back with others, nanoseconds\n");
    let mut table = Table::new(["pool", "under", "a block", "over plain"]);
    let variants = [Variant::Plain, Variant::PlainAgain, Variant::Run];
    for (name, source) in POOLS {
        let program = bench.folder.join(name.replace(' ', "-"));
        bench.compile(source, &program, &[])?;
        let words = [program.into(), ROUNDS.into()];
        let results = interleaved(bench.rounds, &variants, |variant| -> Result<f64> {
            let text = shell::output(&mut bench.tools.command(variant, &words))?;
            let figure = text.trim().parse();
            figure.with_context(|| format!("no figure in {text}"))
        });
        let nanoseconds: Vec<_> = results
            .iter()
            .map(|runs| median(runs.iter().flatten().copied()))
            .collect();
        for (variant, value) in variants.iter().zip(&nanoseconds) {
            let over = value
                .zip(nanoseconds[0])
                .map(|(value, plain)| value - plain);
            let title = variant.title().to_owned();
            table.row([name.to_owned(), title, figure(*value, 1), figure(over, 1)]);
        }
    }
    table.print();
    Ok(())
}
