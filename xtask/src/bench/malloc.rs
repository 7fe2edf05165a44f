//! *What does a pair of malloc and free cost?* — a microbenchmark, in nanoseconds of CPU time.

use super::measure::{interleaved, median, ratio};
use super::table::{self, Table, figure};
use super::variant::Variant;
use super::{Bench, Context, Result};
use crate::shell;
use std::ffi::OsString;

const SHAPES: [&str; 3] = ["steady", "growing", "shrinking"];

pub(super) fn measure(bench: &Bench) -> Result<()> {
    let program = bench.folder.join("malloc");
    bench.compile("malloc.c", &program, &[])?;
    println!("## A pair of malloc and free, microbenchmark\n");
    let variants = bench.tools.variants();
    let titles = variants.iter().skip(1).map(|variant| variant.title());
    let mut table = Table::new(
        ["heap, malloc called, threads", "plain ns"]
            .into_iter()
            .chain(titles)
            .chain(["pointee run ÷ forwarder"]),
    );
    for shape in SHAPES {
        for (called, depth) in [("directly", "0"), ("behind two wrappers", "2")] {
            for threads in ["1", "2"] {
                let program = program.as_os_str().to_owned();
                let words = [program, shape.into(), depth.into(), threads.into()];
                let name = format!("{shape}, {called}, {threads}");
                table.row(row(bench, &variants, name, &words)?);
            }
        }
    }
    table.print();
    Ok(())
}

/// The cells of one kind of heap.
fn row(
    bench: &Bench,
    variants: &[Variant],
    name: String,
    words: &[OsString],
) -> Result<Vec<String>> {
    // Once before: what `pointee run` learns of the program serves the next run.
    nanoseconds(bench, Variant::Run, words)?;
    let results = shell::timed(&format!("measuring {name}"), || {
        Ok(interleaved(bench.rounds, variants, |variant| {
            nanoseconds(bench, variant, words)
        }))
    })?;
    let of = |variant: Variant| {
        let at = variants.iter().position(|other| *other == variant)?;
        results.get(at)
    };
    let against_forwarder = of(Variant::Run)
        .zip(of(Variant::Forwarder))
        .and_then(|(run, forwarder)| ratio(run, forwarder, |value| *value));
    let plain = median(results[0].iter().flatten().copied());
    let mut cells = vec![name, figure(plain, 1)];
    for runs in &results[1..] {
        cells.push(table::ratio(ratio(runs, &results[0], |value| *value)));
    }
    cells.push(table::ratio(against_forwarder));
    Ok(cells)
}

/// What the program prints: its last line is a number, heaptrack talks before and after.
fn nanoseconds(bench: &Bench, variant: Variant, words: &[OsString]) -> Result<f64> {
    let text = shell::output(&mut bench.tools.command(variant, words))?;
    let number = text.lines().find_map(|line| line.trim().parse().ok());
    number.with_context(|| format!("no figure in {text}"))
}
