//! *What does it cost real programs?* — CPU time and memory of programs that allocate much.
//!
//! Before anything is measured each program runs once under `pointee run`, with pools and without: that fills the image cache, and the
//! report says how much the program allocates.

use super::measure::{Usage, geometric_mean, interleaved, median, ratio, usage};
use super::table::{self, Table, figure};
use super::variant::Variant;
use super::workloads::{Workload, workloads};
use super::{Bench, Result, shell};
use anyhow::bail;
use serde_json::Value;
use std::fs;
use std::process::Command;

/// What the report of `pointee run` says of a program.
struct Recorded {
    allocations: f64,
    peak: f64,
}

pub(super) fn measure(bench: &Bench) -> Result<()> {
    let variants = bench.tools.variants();
    let mut time = Table::new(head("plain s, allocations", &variants));
    let mut memory = Table::new(head("plain MiB, heap at its peak", &variants));
    let mut ratios = vec![Vec::new(); variants.len()];
    let mut broken = Vec::new();
    for program in workloads(bench)? {
        let recorded = record(bench, &program)?;
        let title = format!("measuring {}", program.name);
        let results = shell::timed(&title, || {
            Ok(interleaved(bench.rounds, &variants, |variant| {
                usage(&mut bench.tools.command(variant, &program.words))
            }))
        })?;
        let plain = |value: fn(&Usage) -> f64| median(results[0].iter().flatten().map(value));
        let of_plain =
            |runs: &[Option<Usage>], value: fn(&Usage) -> f64| ratio(runs, &results[0], value);
        let mut time_row = vec![
            program.name.to_owned(),
            format!(
                "{}, {:.2} M",
                figure(plain(|usage| usage.cpu), 2),
                recorded.allocations / 1e6
            ),
        ];
        let mut memory_row = vec![
            program.name.to_owned(),
            format!(
                "{}, {:.1}",
                figure(plain(|usage| usage.resident), 1),
                recorded.peak / f64::from(1 << 20)
            ),
        ];
        for (number, runs) in results.iter().enumerate().skip(1) {
            let cpu = of_plain(runs, |usage| usage.cpu);
            time_row.push(table::ratio(cpu));
            memory_row.push(table::ratio(of_plain(runs, |usage| usage.resident)));
            match cpu {
                Some(cpu) => ratios[number].push(cpu),
                None if variants[number] != Variant::Heaptrack => broken.push(program.name),
                None => {}
            }
        }
        time.row(time_row);
        memory.row(memory_row);
    }
    let means = ratios
        .iter()
        .skip(1)
        .map(|ratios| table::ratio(geometric_mean(ratios)));
    time.row(
        ["geometric mean".to_owned(), String::new()]
            .into_iter()
            .chain(means),
    );
    println!("\n## Programs: CPU time, ratio to plain\n");
    time.print();
    println!("## Programs: largest resident set, ratio to plain\n");
    memory.print();
    if !broken.is_empty() {
        bail!("these failed: {}", broken.join(", "));
    }
    Ok(())
}

fn head<'a>(plain: &'a str, variants: &[Variant]) -> impl Iterator<Item = &'a str> {
    let titles: Vec<&str> = variants.iter().skip(1).map(|v| v.title()).collect();
    ["program", plain].into_iter().chain(titles)
}

/// Runs the program once under `pointee run`, and once without pools.
fn record(bench: &Bench, program: &Workload) -> Result<Recorded> {
    usage(
        &mut bench
            .tools
            .command(Variant::RunWithoutPools, &program.words),
    )?;
    let report = bench.folder.join("report.json");
    let mut command = Command::new(&bench.tools.pointee);
    command
        .args(["run", "--format", "json", "--report"])
        .arg(&report)
        .arg("--")
        .args(&program.words);
    shell::output(&mut command)?;
    let report: Value = serde_json::from_slice(&fs::read(&report)?)?;
    let of_each = |name: &str| -> Vec<f64> {
        let processes = report.as_array().into_iter().flatten();
        processes
            .filter_map(|process| process["totals"][name].as_f64())
            .collect()
    };
    let recorded = Recorded {
        allocations: of_each("allocations").iter().sum(),
        peak: of_each("peak_bytes").into_iter().fold(0.0, f64::max),
    };
    if recorded.allocations == 0.0 {
        bail!("{}: no allocation was recorded", program.name);
    }
    Ok(recorded)
}
