//! *How many instructions does recording take?* — counted by callgrind: the same on every run and machine.
//!
//! The difference of two lengths of one program is taken, so that start and end of the process drop out.

use super::table::Table;
use super::{Bench, Context, Result, shell};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SHORT: u64 = 20_000;
const LONG: u64 = 120_000;

/// A program and what it finds in its environment.
struct Variant<'a> {
    title: &'static str,
    program: &'a Path,
    environment: Option<(&'static str, OsString)>,
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
    let mut handoff = OsString::from("images=");
    handoff.push(images(bench, &hooked)?);
    let variants = [
        Variant {
            title: "plain",
            program: &plain,
            environment: None,
        },
        Variant {
            title: "forwarder",
            program: &plain,
            environment: Some(("LD_PRELOAD", bench.tools.forwarder.clone().into())),
        },
        Variant {
            title: "runtime, no image",
            program: &hooked,
            environment: None,
        },
        Variant {
            title: "runtime, image known",
            program: &hooked,
            environment: Some(("POINTEE_HANDOFF", handoff)),
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

/// A folder with the program's metadata image under the name by which the runtime looks for it.
fn images(bench: &Bench, program: &Path) -> Result<PathBuf> {
    let mut command = Command::new(&bench.tools.pointee);
    command.args(["meta", "--format", "json"]).arg(program);
    let known: Value = serde_json::from_str(&shell::output(&mut command)?)?;
    let text = |key: &str| {
        let value = known[0][key].as_str();
        value.with_context(|| format!("pointee meta names no {key} of {}", program.display()))
    };
    let folder = bench.folder.join("images");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let name = format!("{}.img", text("build_id")?);
    fs::copy(text("image")?, folder.join(name))?;
    Ok(folder)
}

/// Instructions that callgrind collects in a run of `pairs`.
fn count(variant: &Variant<'_>, depth: &str, pairs: u64) -> Result<u64> {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(variant.program)
        .args([depth, &pairs.to_string()]);
    if let Some((name, value)) = &variant.environment {
        command.env(name, value);
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
