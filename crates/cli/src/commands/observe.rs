//! `pointee observe`: *which functions of a program without symbols allocate?* — found by what they do, printed as configuration.

use crate::behaviour::{self, Found, Role, Shown};
use crate::launch::{self, Inheritance, Start};
use crate::outside::{self, Observed};
use crate::program::{self, Way};
use crate::supervise::{self, End, Signals};
use anyhow::{Context, Result, bail};
use nix::sys::wait::{WaitStatus, waitpid};
use pointee_inspect::text::grouped;
use pointee_meta::elf::Elf;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Run a program and find, by what its functions do, those that allocate; for programs without symbols
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pointee observe --output pointee.toml -- ./stripped big.json
  pointee --config pointee.toml run -- ./stripped big.json

The output is configuration: look it over, then give it to `run`. While the program is watched it runs slowly, some ten
thousand calls a second; then it goes on at its own speed. Only what happens meanwhile is seen: it has to allocate and to free.")]
pub(crate) struct Arguments {
    /// Where the configuration goes [default: standard error].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How long the program is watched, at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// The program and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PROGRAM"
    )]
    command: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let name = &arguments.command[0];
    let program = program::find_or_end(name);
    let file = match &program.way {
        Way::Mapped(file) => file,
        Way::Preloaded => &program.path,
        Way::Unseen(reason) => bail!("{}: it cannot be watched: {reason}", name.display()),
    };
    let elf = Elf::open(file).with_context(|| file.display().to_string())?;
    let starts = pointee_probe::function_starts(&elf);
    let environment: Vec<OsString> = std::env::vars_os()
        .map(|(name, value)| launch::assignment(name, value))
        .collect();
    let start = Start {
        path: &program.path,
        arguments: &arguments.command,
        environment: &environment,
        mapped: None,
    };
    let signals = Signals::take()?;
    let inheritance = Inheritance::of(&signals)?;
    let held = launch::start_held(&start, &inheritance)?;
    drop(signals);
    let observed = outside::observe(
        held,
        &starts,
        elf.entry(),
        Duration::from_secs(arguments.seconds),
    )?;
    if observed.is_part {
        eprintln!(
            "pointee: {} calls were watched; from now on the program runs at its own speed (`--seconds` watches longer)",
            grouped(observed.calls.len() as u64)
        );
    }
    let shown = behaviour::judge(&observed.calls);
    let text = configuration(file, &elf, &starts, &shown, &observed);
    let written = match &arguments.output {
        Some(path) => std::fs::write(path, text).with_context(|| path.display().to_string()),
        None => {
            eprint!("{text}");
            Ok(())
        }
    };
    let end = end_of(&observed)?;
    written?;
    supervise::end_as(end)
}

/// How the program ended; waits for that.
fn end_of(observed: &Observed) -> Result<End> {
    let status = match observed.ended {
        Some(status) => WaitStatus::from_raw(observed.pid, status),
        None => waitpid(observed.pid, None),
    };
    Ok(match status.context("waiting for the program")? {
        WaitStatus::Signaled(_, signal, _) => End::Signal(signal as i32),
        WaitStatus::Exited(_, status) => End::Status(status),
        _ => End::Status(0),
    })
}

/// What was found, as a `pointee.toml`.
fn configuration(
    file: &Path,
    elf: &Elf,
    starts: &[u64],
    shown: &Shown,
    observed: &Observed,
) -> String {
    let mut text = format!(
        "# {}: what its functions did in {} calls{}. To be looked over before it is used.\n",
        file.display(),
        grouped(observed.calls.len() as u64),
        if observed.is_part {
            "; what it did after these is not known"
        } else {
            ""
        },
    );
    let is_nothing = shown.families.is_empty() && shown.rest.is_empty();
    if is_nothing {
        text.push_str("# None was found that hands out memory.\n");
    } else if elf.build_id().is_empty() {
        text.push_str("# The file has no build ID: a digest of its code stands in for it.\n");
    }
    if shown.from_unknown > 0 {
        let _ = writeln!(
            text,
            "# {} blocks were taken back that none of these functions gave.",
            grouped(shown.from_unknown as u64)
        );
    }
    let mut names = Names::default();
    for family in &shown.families {
        let free = names.next(Role::Free);
        for found in family {
            let name = match found.role {
                Role::Free => free.clone(),
                role => names.next(role),
            };
            let free = (found.role != Role::Free).then_some(free.as_str());
            text.push_str(&table(found, &name, free, starts, elf));
        }
    }
    for found in &shown.rest {
        let table = table(found, &names.next(found.role), None, starts, elf);
        if shown.families.is_empty() {
            text.push_str(&table);
            continue;
        }
        text.push_str("\n# Nobody was seen to take back what this one gives: perhaps a pool of which all goes at once, or the heap's own arrangements.\n");
        for line in table.trim_start().lines() {
            let _ = writeln!(text, "# {line}");
        }
    }
    text
}

/// Names for functions, by what they do: the first of a role is called like that, the others have numbers.
#[derive(Default)]
struct Names(BTreeMap<Role, usize>);

impl Names {
    fn next(&mut self, role: Role) -> String {
        let number = self.0.entry(role).or_default();
        *number += 1;
        match number {
            1 => role.word().to_owned(),
            number => format!("{}_{number}", role.word()),
        }
    }
}

/// One function as a table of the file.
fn table(found: &Found, name: &str, free: Option<&str>, starts: &[u64], elf: &Elf) -> String {
    let (table, why) = why(found);
    let mut text = format!(
        "\n[[{table}]]  # {why}\nname = \"{name}\"\naddress = {:#x}\nbuild_id = \"{}\"\nrole = \"{}\"\n",
        starts[found.function],
        build_of(elf),
        found.role.word(),
    );
    if let Some(free) = free {
        let _ = writeln!(text, "free = \"{free}\"");
    }
    text
}

/// The table it belongs in, and what was seen of it.
fn why(found: &Found) -> (&'static str, String) {
    let (blocks, again) = (grouped(found.blocks as u64), grouped(found.again as u64));
    if found.role == Role::Free {
        let why = format!("took {blocks} blocks, of which {again} were given again");
        return ("free", why);
    }
    let (least, most) = (grouped(found.sizes.0), grouped(found.sizes.1));
    let why = format!(
        "gave {blocks} blocks of {least} to {most} bytes, {again} of them where one had been before"
    );
    ("allocator", why)
}

/// The build of a file, in hexadecimal digits.
fn build_of(elf: &Elf) -> String {
    let bytes = elf.identity().iter();
    bytes.map(|byte| format!("{byte:02x}")).collect()
}
