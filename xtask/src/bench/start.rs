//! *What does it cost to start?* — a program that does nothing.

use super::measure::{Usage, interleaved, median, usage};
use super::table::{Table, figure};
use super::variant::Variant;
use super::{Bench, Result};

/// Runs of each variant: a start is short and jitters.
const STARTS_A_ROUND: usize = 15;

pub(super) fn measure(bench: &Bench) -> Result<()> {
    let words = ["/bin/true".into()];
    let variants = [
        Variant::Plain,
        Variant::Forwarder,
        Variant::Preloaded,
        Variant::Run,
    ];
    // Once before: images go to the cache.
    usage(&mut bench.tools.command(Variant::Run, &words))?;
    let rounds = bench.rounds * STARTS_A_ROUND;
    let results = interleaved(rounds, &variants, |variant| {
        usage(&mut bench.tools.command(variant, &words))
    });
    println!("## Start of `/bin/true`, milliseconds\n");
    let mut table = Table::new(["variant", "elapsed", "over plain", "CPU", "over plain"]);
    let milliseconds = |runs: &[Option<Usage>], value: fn(&Usage) -> f64| {
        median(runs.iter().flatten().map(|usage| value(usage) * 1e3))
    };
    let over = |value: Option<f64>, plain: Option<f64>| Some(value? - plain?);
    let plain = [
        milliseconds(&results[0], |usage| usage.elapsed),
        milliseconds(&results[0], |usage| usage.cpu),
    ];
    for (variant, runs) in variants.iter().zip(&results) {
        let elapsed = milliseconds(runs, |usage| usage.elapsed);
        let cpu = milliseconds(runs, |usage| usage.cpu);
        table.row([
            variant.title().to_owned(),
            figure(elapsed, 2),
            figure(over(elapsed, plain[0]), 2),
            figure(cpu, 2),
            figure(over(cpu, plain[1]), 2),
        ]);
    }
    table.print();
    Ok(())
}
