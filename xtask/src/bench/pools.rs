//! *What does a block cost that a pool cuts out?* — a bump pool's, which is as fast as memory gets, beside plain.

use super::measure::{interleaved, median};
use super::table::{Table, figure};
use super::variant::Variant;
use super::{Bench, Context, Result};
use crate::shell;

/// Pools of a thousand blocks each.
const POOLS: &str = "20000";

pub(super) fn measure(bench: &Bench) -> Result<()> {
    let program = bench.folder.join("pool");
    bench.compile("pool.c", &program, &[])?;
    let variants = [Variant::Plain, Variant::PlainAgain, Variant::Run];
    let words = [program.into(), POOLS.into()];
    let results = interleaved(bench.rounds, &variants, |variant| -> Result<f64> {
        let text = shell::output(&mut bench.tools.command(variant, &words))?;
        let figure = text.trim().parse();
        figure.with_context(|| format!("no figure in {text}"))
    });
    println!("## A block cut out by a pool, nanoseconds\n");
    let mut table = Table::new(["under", "a block", "over plain"]);
    let nanoseconds: Vec<_> = results
        .iter()
        .map(|runs| median(runs.iter().flatten().copied()))
        .collect();
    for (variant, value) in variants.iter().zip(&nanoseconds) {
        let over = value
            .zip(nanoseconds[0])
            .map(|(value, plain)| value - plain);
        let title = variant.title().to_owned();
        table.row([title, figure(*value, 1), figure(over, 1)]);
    }
    table.print();
    Ok(())
}
