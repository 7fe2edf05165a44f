//! *What does one question of the C API cost?* — warm, for each kind of pointer, with Pointee and without.

use super::{Bench, Result};
use crate::shell;
use std::process::Command;

pub(super) fn measure(bench: &Bench) -> Result<()> {
    let program = bench.folder.join("queries");
    let include = bench.sources.join("../../include");
    let include = format!("-I{}", include.display());
    bench.compile("queries.c", &program, &[&include])?;
    println!("## A question of the C API, warm, nanoseconds\n");
    let plain = shell::output(&mut Command::new(&program))?;
    // The second run has the images of libraries too.
    let watched = || {
        let mut command = Command::new(&bench.tools.pointee);
        command.args(["run", "--report", "/dev/null", "--"]);
        shell::output(command.arg(&program))
    };
    watched()?;
    println!("With Pointee:\n\n```text\n{}\n```\n", watched()?.trim_end());
    println!("Without:\n\n```text\n{}\n```\n", plain.trim_end());
    Ok(())
}
