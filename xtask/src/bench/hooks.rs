//! *What does a hook cost each call, a probe each execution of an instruction, and its coming and going the threads of a program?* — of
//! `pointee-live`, beside a preload library that forwards and the processor's own way to save its state; and how long threads stand still while a function that all of them run is hooked and unhooked.

use super::measure::{interleaved, median, ratio};
use super::table::{self, Table, figure};
use crate::shell;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Pairs of malloc and free a run.
const PAIRS: &str = "10000000";
/// Executions of the instruction with a probe.
const EXECUTIONS: &str = "8000000";
/// Threads that run through the hooked function.
const THREADS: [&str; 3] = ["1", "8", "64"];
/// A hook's coming and going takes as long as it takes 64 busy threads to come to run, on a machine with other work too; this long is a hang.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is preloaded, and the variable HOOK.
const VARIANTS: [(&str, Option<&str>, &str); 5] = [
    ("plain", None, ""),
    ("preloaded forwarder", Some("forward.so"), ""),
    ("replaced at entry", Some("hooks.so"), "replace"),
    ("imports redirected", Some("hooks.so"), "imports"),
    ("wrapped, any signature", Some("hooks.so"), "wrap"),
];
const FORWARDER: usize = 1;

/// `--rounds N` runs of each variant, `--times N` comings and goings of a hook, in `--runs N` processes; `--stops N` of those
/// for which all threads have to stand still.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let (mut rounds, mut times, mut stops, mut runs) = (9, 10_000, 1000, 10);
    for pair in words.chunks(2) {
        match pair {
            ["--rounds", number] => rounds = number.parse().context("--rounds wants a number")?,
            ["--times", number] => times = number.parse().context("--times wants a number")?,
            ["--stops", number] => stops = number.parse().context("--stops wants a number")?,
            ["--runs", number] => runs = number.parse().context("--runs wants a number")?,
            _ => bail!("unknown option {}", pair.join(" ")),
        }
    }
    let workspace = Workspace::open()?;
    let folder = workspace.folder("bench")?.join("hooks");
    std::fs::create_dir_all(&folder)?;
    build(&workspace, &folder)?;
    costs(&folder, rounds)?;
    probes(&folder)?;
    let program = folder.join("races");
    races(&program, "one byte changed", &[], times, runs)?;
    races(&program, "five bytes changed", &["stop"], stops, runs)
}

/// What probes at one instruction of a loop add to it.
fn probes(folder: &Path) -> Result<()> {
    println!("## Probes at one instruction\n");
    let text = shell::output(Command::new(folder.join("probes")).arg(EXECUTIONS))?;
    let rows: Vec<(&str, f64)> = text
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter_map(|(name, figure)| Some((name, figure.parse().ok()?)))
        .collect();
    let (_, pair) = rows.last().context("no figures")?;
    let mut table = Table::new(["at the instruction", "ns", "× xsavec and xrstor"]);
    for (name, ns) in &rows {
        let cells = [figure(Some(*ns), 2), table::ratio(Some(ns / pair))];
        table.row([(*name).to_owned()].into_iter().chain(cells));
    }
    table.print();
    Ok(())
}

/// How long threads stood still and changes took, over all runs; a run that saw a wrong result, a call of a removed hook, changed text or
/// growing memory ends with an error, and so does this. One that takes longer than [`PATIENCE`] a change hangs.
fn races(program: &Path, way: &str, words: &[&str], times: u64, runs: u32) -> Result<()> {
    println!("## {way}: hooked and unhooked {times} times, in each of {runs} runs\n");
    // By what is measured and the upper limit, one count for each number of threads.
    let mut counts: BTreeMap<(String, u64), [u64; THREADS.len()]> = BTreeMap::new();
    for (column, threads) in THREADS.iter().enumerate() {
        for run in 1..=runs {
            let title = format!("{threads} threads, run {run}");
            shell::timed(&title, || {
                let limit = format!("{}", 60 + times * PATIENCE.as_millis() as u64 / 1000);
                let mut command = Command::new("timeout");
                command.args(["--signal=ABRT", &limit]).arg(program);
                command.args([*threads, &times.to_string()]).args(words);
                let text = shell::output(&mut command)?;
                for (what, limit, count) in text.lines().filter_map(histogram_line) {
                    counts.entry((what.to_owned(), limit)).or_default()[column] += count;
                }
                Ok(())
            })?;
        }
    }
    for (what, title) in [
        ("pause", "threads stood still, below µs"),
        ("change", "the change took, below µs"),
    ] {
        let mut table = Table::new([title].into_iter().chain(THREADS));
        for ((_, limit), row) in counts.iter().filter(|((of, _), _)| of == what) {
            table.row([limit].into_iter().chain(row).map(u64::to_string));
        }
        table.print();
    }
    println!("No crash, no hang, no wrong result, no call of a removed hook.\n");
    Ok(())
}

/// `WHAT LIMIT us  COUNT`.
fn histogram_line(line: &str) -> Option<(&str, u64, u64)> {
    let (what, rest) = line.split_once(' ')?;
    let (limit, count) = rest.split_once(" us  ")?;
    Some((what, limit.trim().parse().ok()?, count.parse().ok()?))
}

fn build(workspace: &Workspace, folder: &Path) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "--package", "pointee-live-c"]);
    shell::step("building the library", &mut cargo)?;
    let libraries = workspace.target()?.join("release");
    let bindings = workspace.root().join("bindings/live");
    let include = format!("-I{}", bindings.join("include").display());
    let linked = [
        "-O2",
        "-pthread",
        &include,
        &format!("-L{}", libraries.display()),
        "-lpointee_hooks",
        &format!("-Wl,--disable-new-dtags,-rpath,{}", libraries.display()),
    ];
    let shared = [&["-shared", "-fPIC"], &linked[..]].concat();
    let sources = |path: &str| -> [PathBuf; 1] { [workspace.root().join(path)] };
    shell::gcc(
        &sources("benches/hooks/cost.c"),
        &folder.join("cost"),
        &["-O2"],
    )?;
    shell::gcc(
        &sources("benches/hooks/hooks.c"),
        &folder.join("hooks.so"),
        &shared,
    )?;
    let forwarder = sources("benches/overhead/forward.c");
    shell::gcc(
        &forwarder,
        &folder.join("forward.so"),
        &["-O2", "-shared", "-fPIC"],
    )?;
    let probes = sources("benches/hooks/probes.c");
    shell::gcc(&probes, &folder.join("probes"), &linked)?;
    let races = sources("bindings/live/tests/programs/races.c");
    shell::gcc(&races, &folder.join("races"), &linked)
}

fn costs(folder: &Path, rounds: usize) -> Result<()> {
    let numbers: Vec<usize> = (0..VARIANTS.len()).collect();
    let results = interleaved(rounds, &numbers, |number| {
        let (_, library, hook) = VARIANTS[number];
        let mut command = Command::new(folder.join("cost"));
        command.arg(PAIRS).env("HOOK", hook);
        if let Some(library) = library {
            command.env("LD_PRELOAD", folder.join(library));
        }
        let text = shell::output(&mut command)?;
        text.trim()
            .parse::<f64>()
            .with_context(|| format!("no figure in {text}"))
    });
    println!("## malloc(64) and free\n");
    let mut table = Table::new(["hook on both", "ns a pair", "× forwarder"]);
    for ((name, ..), runs) in VARIANTS.iter().zip(&results) {
        let cells = [
            figure(median(runs.iter().flatten().copied()), 1),
            table::ratio(ratio(runs, &results[FORWARDER], |pair| *pair)),
        ];
        table.row([(*name).to_owned()].into_iter().chain(cells));
    }
    table.print();
    Ok(())
}
