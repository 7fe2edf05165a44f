//! *Are types found however a program was compiled?* — the same sources by several compilers and options.

use super::{Options, sites};
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

/// Compiles the C files, with the options after them, in each way, and prints the share of sites with an answer
/// (opaque ones left out), and how many there are.
pub(super) fn run(options: &Options) -> Result<()> {
    if options.files.is_empty() {
        bail!("truth builds wants C files, and options for the compiler after `--`");
    }
    let folder = Workspace::open()?.folder("truth")?;
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
                    Ok(_) => share(&program, options).context("sites")?,
                    Err(_) => "does not build".to_owned(),
                });
            }
            println!("| {compiler} | {variant} | {} |", cells.join(" | "));
        }
    }
    Ok(())
}

fn share(program: &std::path::Path, options: &Options) -> Result<String> {
    let found = sites::of(program, options)?;
    let answered = found.iter().filter(|site| site.is_answered()).count();
    let opaque = found.iter().filter(|site| site.verdict == "opaque").count();
    let typed = found.len() - opaque;
    Ok(format!(
        "{:.1} % of {typed}",
        100.0 * answered as f64 / typed.max(1) as f64
    ))
}
