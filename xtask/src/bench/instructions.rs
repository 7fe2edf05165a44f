//! *How many instructions does recording take?* — counted by callgrind: the same on every run and machine.
//!
//! The difference of two lengths of one program is taken, so that start and end of the process drop out. No image tells the
//! runtime here where a walk may end: each goes as far as unwind information leads, up to the start of `main`'s thread.

use super::table::Table;
use super::{Bench, Context, Result, shell};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SHORT: u64 = 20_000;
const LONG: u64 = 120_000;

/// A program and what is preloaded into it.
struct Variant<'a> {
    title: &'static str,
    program: &'a Path,
    preload: Option<&'a Path>,
}

pub(super) fn measure(bench: &Bench) -> Result<()> {
    println!("## Instructions a pair of malloc and free (callgrind)\n");
    if shell::find_program("valgrind").is_none() {
        println!("valgrind is not installed.\n");
        return Ok(());
    }
    let plain = bench.folder.join("pairs");
    bench.compile("pairs.c", &plain, &[])?;
    let hooked = link_with_runtime(bench)?;
    let variants = [
        Variant {
            title: "plain",
            program: &plain,
            preload: None,
        },
        Variant {
            title: "forwarder",
            program: &plain,
            preload: Some(&bench.tools.forwarder),
        },
        Variant {
            title: "runtime",
            program: &hooked,
            preload: None,
        },
    ];
    let titles = variants.iter().map(|variant| variant.title);
    let mut table = Table::new(["malloc called"].into_iter().chain(titles));
    for (title, depth) in [("directly", "0"), ("behind two wrappers", "2")] {
        let mut cells = vec![title.to_owned()];
        for variant in &variants {
            let short = count(variant, depth, SHORT)?;
            let long = count(variant, depth, LONG)?;
            let pairs = (LONG - SHORT) as f64;
            cells.push(format!("{:.0}", (long as f64 - short as f64) / pairs));
        }
        table.row(cells);
    }
    table.print();
    Ok(())
}

/// The program with the runtime as a library of its own: what the command tells the runtime would otherwise reach
/// valgrind's launcher first, which is a program like any other.
fn link_with_runtime(bench: &Bench) -> Result<PathBuf> {
    let library = bench.folder.join("libpointee.so");
    fs::copy(&bench.tools.runtime, &library)?;
    let program = bench.folder.join("pairs-hooked");
    let library = library.to_string_lossy();
    let find = format!("-Wl,-rpath,{}", bench.folder.display());
    let flags = ["-Wl,--build-id", "-Wl,--no-as-needed", &library, &find];
    bench.compile("pairs.c", &program, &flags)?;
    Ok(program)
}

/// Instructions that callgrind collects in a run of `pairs`.
fn count(variant: &Variant<'_>, depth: &str, pairs: u64) -> Result<u64> {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(variant.program)
        .args([depth, &pairs.to_string()]);
    if let Some(library) = variant.preload {
        command.env("LD_PRELOAD", library);
    }
    let output = command.output().context("valgrind does not start")?;
    let text = String::from_utf8_lossy(&output.stderr);
    collected(&text).with_context(|| format!("{}: no count in\n{text}", shell::shown(&command)))
}

/// The figure in callgrind's line `==123== Collected : 456`.
fn collected(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.split_once("Collected : "))?;
    line.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::collected;

    #[test]
    fn the_count_is_found() {
        let rows = [
            (
                "==7== Events    : Ir\n==7== Collected : 3072514\n",
                Some(3_072_514),
            ),
            ("==7== Collected : \n", None),
            ("", None),
        ];
        for (text, expect) in rows {
            assert_eq!(collected(text), expect, "{text}");
        }
    }
}
