//! *Are types found however a program was compiled?* — the same sources by several compilers and options.

use super::Options;
use super::sites::{self, Site};
use crate::shell;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::process::Command;

const COMPILERS: [&str; 2] = ["gcc", "clang"];
const LEVELS: [&str; 5] = ["-O0", "-O1", "-O2", "-O3", "-Os"];
const VARIANTS: [(&str, &[&str]); 3] = [
    ("DWARF 5", &["-gdwarf-5"]),
    ("DWARF 4", &["-gdwarf-4"]),
    ("LTO", &["-gdwarf-5", "-flto"]),
];

/// Points below the best way from which on the sites without an answer are listed.
const BELOW: f64 = 2.0;
/// Sites listed of one way.
const LISTED: usize = 12;

/// What was found in the program as one way of compiling makes it.
struct Way {
    name: String,
    share: f64,
    /// The places without an answer, and how they are judged.
    open: Vec<String>,
}

/// Compiles the C files, with the options after them, in each way, and prints the share of sites with an answer
/// (opaque ones left out), and how many there are; then, for what is far below the best, the sites without one.
pub(super) fn run(options: &Options) -> Result<()> {
    if options.files.is_empty() {
        bail!("truth builds wants C files, and options for the compiler after `--`");
    }
    let folder = Workspace::open()?.folder("truth")?;
    let mut ways: Vec<Way> = Vec::new();
    println!("| compiler | debug info | {} |", LEVELS.join(" | "));
    println!("| --- | --- |{}", " ---: |".repeat(LEVELS.len()));
    for compiler in COMPILERS {
        for (variant, flags) in VARIANTS {
            let mut cells = Vec::new();
            for level in LEVELS {
                let program =
                    folder.join(format!("{compiler}{level}-{}", variant.replace(' ', "")));
                let mut command = Command::new(compiler);
                command
                    .arg(level)
                    .args(flags)
                    .arg("-w")
                    .arg("-o")
                    .arg(&program);
                if variant == "LTO" && compiler == "clang" {
                    command.arg("-fuse-ld=lld");
                }
                command.args(&options.files).args(&options.rest);
                cells.push(match shell::output(&mut command) {
                    Ok(_) => {
                        let found = sites::of(&program, options).context("sites")?;
                        let name = format!("{compiler} {level}, {variant}");
                        let (way, cell) = judge(name, &found);
                        ways.push(way);
                        cell
                    }
                    Err(why) => {
                        eprintln!("{why:#}");
                        "does not build".to_owned()
                    }
                });
            }
            println!("| {compiler} | {variant} | {} |", cells.join(" | "));
        }
    }
    let best = ways.iter().map(|way| way.share).fold(0.0, f64::max);
    for way in ways.iter().filter(|way| way.share < best - BELOW) {
        println!(
            "\n{}: {:.1} points below the best; without an answer:",
            way.name,
            best - way.share
        );
        for place in way.open.iter().take(LISTED) {
            println!("  {place}");
        }
        if way.open.len() > LISTED {
            println!("  and {} more", way.open.len() - LISTED);
        }
    }
    Ok(())
}

fn judge(name: String, found: &[Site]) -> (Way, String) {
    let typed: Vec<&Site> = found
        .iter()
        .filter(|site| site.verdict != "opaque")
        .collect();
    let answered = typed.iter().filter(|site| site.is_answered()).count();
    let share = 100.0 * answered as f64 / typed.len().max(1) as f64;
    let open = typed.iter().filter(|site| !site.is_answered()).map(|site| {
        let file = site.file.rsplit('/').next().unwrap_or_default();
        let said = if site.r#type.is_empty() {
            "no type"
        } else {
            &site.r#type
        };
        format!(
            "{file}:{} {} {}: {said} ({}, {})",
            site.line, site.function, site.callee, site.role, site.verdict
        )
    });
    let open = open.collect();
    let cell = format!("{share:.1} % of {}", typed.len());
    (Way { name, share, open }, cell)
}
