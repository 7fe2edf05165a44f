//! *How long does it take to know a file?* — its metadata image, made with nothing in the cache.

use super::measure::{Usage, median, usage};
use super::table::{Table, figure};
use crate::workspace::Workspace;
use crate::{jq, shell};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Times each file is taken.
const ROUNDS: usize = 3;
const MIB: f64 = 1_048_576.0;

/// Measures `files`; without any, programs of this workspace: jq, and Pointee itself with full debug info, of which a
/// part (its parser of debug info) lies between.
pub(crate) fn run(files: &[&str]) -> Result<()> {
    let workspace = Workspace::open()?;
    let pointee = workspace.build_pointee()?;
    let files = match files {
        [] => own(&workspace)?,
        given => given.iter().map(PathBuf::from).collect(),
    };
    let folder = workspace.folder("bench")?.join("images");
    println!("# Images, made with nothing in the cache\n");
    let mut table = Table::new([
        "file",
        "debug info MiB",
        "elapsed s",
        "CPU s",
        "CPU s ÷ 10 MiB",
        "resident MiB",
        "image MiB",
        "types",
        "sites",
        "÷ gdb index: CPU",
        "resident",
        "÷ pahole: CPU",
        "resident",
    ]);
    for file in &files {
        table.row(row(&pointee, &folder, file)?);
    }
    table.print();
    Ok(())
}

fn own(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let mut build = workspace.cargo();
    build.args(["build", "--package", "pointee", "--package", "xtask"]);
    shell::step("building Pointee with full debug info", &mut build)?;
    let debug = workspace.target()?.join("debug");
    Ok(vec![
        jq::build(workspace)?,
        debug.join("xtask"),
        debug.join("pointee"),
    ])
}

fn row(pointee: &Path, cache: &Path, file: &Path) -> Result<Vec<String>> {
    let command = || {
        let mut command = Command::new(pointee);
        command.args(["meta", "--format", "json"]).arg(file);
        command.env("XDG_CACHE_HOME", cache);
        command
    };
    let mut runs: Vec<Usage> = Vec::new();
    shell::timed(&format!("measuring {}", file.display()), || {
        for _ in 0..ROUNDS {
            if cache.exists() {
                std::fs::remove_dir_all(cache)?;
            }
            runs.push(usage(&mut command())?);
        }
        Ok(())
    })?;
    // Once more, from the cache: what is in it.
    let told: Value = serde_json::from_str(&shell::output(&mut command())?)?;
    let told = &told[0];
    let number = |field: &str| told[field].as_f64().unwrap_or(f64::NAN);
    let of = |value: fn(&Usage) -> f64| median(runs.iter().map(value));
    let (debug_file, debug_info) = debug_info(file, told["build_id"].as_str())?;
    let mut ratios = Vec::new();
    for mut other in [gdb_index(&debug_file, cache)?, pahole(&debug_file)] {
        let usage = usage(&mut other).ok();
        for value in [|usage: &Usage| usage.cpu, |usage: &Usage| usage.resident] {
            let theirs = usage.as_ref().map(value).filter(|theirs| *theirs > 0.0);
            let ratio = of(value).zip(theirs).map(|(own, theirs)| own / theirs);
            ratios.push(figure(ratio, 2));
        }
    }
    let cpu = of(|usage| usage.cpu);
    let mut cells = vec![
        file.file_name()
            .context("a file has a name")?
            .to_string_lossy()
            .into_owned(),
        figure(Some(debug_info / MIB), 1),
        figure(of(|usage| usage.elapsed), 2),
        figure(cpu, 2),
        figure(cpu.map(|cpu| cpu / debug_info * MIB * 10.0), 2),
        figure(of(|usage| usage.resident), 0),
        figure(Some(number("bytes") / MIB), 1),
        format!("{}", number("types")),
        format!("{}", number("sites")),
    ];
    cells.extend(ratios);
    Ok(cells)
}

/// gdb's own index of a file's names and types, written beside the images.
fn gdb_index(file: &Path, folder: &Path) -> Result<Command> {
    std::fs::create_dir_all(folder)?;
    let mut command = Command::new("gdb");
    command.args(["-nx", "-q", "-batch", "-iex", "set debuginfod enabled off"]);
    command.args(["-iex", "set index-cache enabled off"]);
    command
        .arg("-ex")
        .arg(format!("save gdb-index {}", folder.display()));
    command.arg(file);
    Ok(command)
}

/// What reads all types and no code.
fn pahole(file: &Path) -> Command {
    let mut command = Command::new("pahole");
    command.arg(file);
    command
}

/// The file with debug info, the file itself or the one installed for it, and bytes of the `.debug_` sections of both, unpacked.
fn debug_info(file: &Path, build_id: Option<&str>) -> Result<(PathBuf, f64)> {
    let installed = build_id.filter(|id| id.len() > 2).map(|id| {
        let (folder, name) = id.split_at(2);
        PathBuf::from(format!("/usr/lib/debug/.build-id/{folder}/{name}.debug"))
    });
    let mut all = 0;
    let found = installed.clone().filter(|debug| debug.exists());
    let found = found.unwrap_or_else(|| file.to_owned());
    for file in installed.iter().map(PathBuf::as_path).chain([file]) {
        if !file.exists() {
            continue;
        }
        let text = shell::output(Command::new("readelf").arg("-tW").arg(file))?;
        all += of_debug_sections(&text);
    }
    Ok((found, all as f64))
}

/// The bytes of all `.debug_` sections that `readelf -tW` tells of.
fn of_debug_sections(text: &str) -> u64 {
    let mut sizes = Vec::new();
    let mut is_debug = false;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let hex = |at: usize| {
            let word = words.get(at)?.trim_end_matches(',');
            u64::from_str_radix(word, 16).ok()
        };
        match words.as_slice() {
            // [Nr] Name
            [.., name] if line.trim_start().starts_with('[') && !line.contains("]:") => {
                is_debug = name.starts_with(".debug_");
            }
            _ if !is_debug => {}
            // ZLIB, size as unpacked, alignment
            ["ZLIB," | "ZSTD,", ..] => {
                sizes.pop();
                sizes.extend(hex(1));
            }
            // Type Address Offset Size …
            [kind, _, _, _, ..] if !kind.starts_with('[') => sizes.extend(hex(3)),
            _ => {}
        }
    }
    sizes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_as_unpacked() {
        let text = "\
  [29] .bss
       NOBITS          0000000000012340 012340 000a20 00   0   0 32
       [0000000000000003]: WRITE, ALLOC
  [30] .debug_aranges
       PROGBITS        0000000000000000 000400 000010 00   0   0  8
       [0000000000000000]:\x20
  [31] .debug_info
       PROGBITS        0000000000000000 007728 4ff67c0 00   0   0  8
       [0000000000000800]: COMPRESSED
       ZLIB, 0000000000000100, 1
";
        assert_eq!(of_debug_sections(text), 0x110);
    }
}
