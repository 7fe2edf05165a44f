//! *What does Pointee show?* — the heap of a real program, by type.
//!
//! jq reads some thousand records and sums them up; the report says which of jq's own types its heap was made
//! of when it was biggest. jq is built without anything of ours: an ordinary compiler, its ordinary flags.

use crate::workspace::Workspace;
use crate::{jq, shell};
use anyhow::{Result, bail};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Records in the input, some 4 MB of JSON.
const RECORDS: u32 = 20_000;

const FILTER: &str = "group_by(.host) | map({host: .[0].host, requests: length, bytes: (map(.bytes) | add)}) \
     | sort_by(-.requests)[:3]";

pub(crate) fn run() -> Result<()> {
    eprintln!("Pointee: what is the heap of an unmodified program made of?\n");
    let workspace = Workspace::open()?;
    let pointee = workspace.build_pointee()?;
    let program = jq::build(&workspace)?;
    let folder = workspace.folder("demo")?;
    let input = folder.join("requests.json");
    let report = folder.join("report.txt");
    write_input(&input, RECORDS)?;

    let mut command = Command::new(&pointee);
    command
        .args(["run", "--limit", "12", "--report"])
        .arg(&report)
        .arg("--")
        .arg(&program)
        .args(["--compact-output", FILTER])
        .arg(&input);
    eprintln!("\n$ {}\n", as_typed(&command, &folder));
    let status = command.stdin(Stdio::null()).status()?;
    if !status.success() {
        bail!("{}: {status}", shell::shown(&command));
    }
    print!("\n{}", fs::read_to_string(&report)?);
    eprintln!(
        "\nThe same for any program:  {} run -- PROGRAM ARGUMENTS…",
        pointee.display()
    );
    Ok(())
}

/// Writes `records` made-up lines of a web server's log, the same each time.
pub(crate) fn write_input(to: &Path, records: u32) -> Result<()> {
    let mut to = BufWriter::new(File::create(to)?);
    write!(to, "[")?;
    let mut random = 1_u32;
    for number in 0..records {
        // Numerical Recipes' linear congruential generator: enough to spread values.
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let comma = if number == 0 { "" } else { "," };
        write!(
            to,
            "{comma}\n{{\"id\":{number},\"host\":\"node-{}.example\",\"path\":\"/item/{}/{number}\",\
             \"status\":{},\"bytes\":{},\"tags\":[\"t{}\",\"t{}\"],\"agent\":{{\"name\":\"client {}\",\"mobile\":{}}}}}",
            random >> 25,
            random >> 20 & 0xff,
            [200, 200, 200, 404, 500][random as usize % 5],
            random >> 12,
            random >> 28,
            random >> 24 & 15,
            random >> 16 & 31,
            random >> 30 == 0,
        )?;
    }
    writeln!(to, "\n]")?;
    to.flush()?;
    Ok(())
}

/// The command with paths relative to the folder that holds all, quoted where a shell wants it.
fn as_typed(command: &Command, folder: &Path) -> String {
    let folder = format!("{}/", folder.display());
    let words = command.get_args().map(|word| {
        let word = word.to_string_lossy().replace(&folder, "");
        if word.contains([' ', '|', '(']) {
            format!("'{word}'")
        } else {
            word
        }
    });
    format!("pointee {}", words.collect::<Vec<_>>().join(" "))
}
