//! `pointee observe`: *which functions of a program without symbols allocate?* — found by what they do, printed as configuration.

use crate::behaviour::{self, Found, Role};
use crate::launch::{self, Inheritance, Start};
use crate::outside::{self, Observed};
use crate::program::{self, Way};
use crate::supervise::{self, End, Signals};
use anyhow::{Context, Result, bail};
use nix::sys::wait::{WaitStatus, waitpid};
use pointee_inspect::text::grouped;
use pointee_meta::elf::Elf;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Run a program and find, by what its functions do, those that allocate; for programs without symbols
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pointee observe --output pointee.toml -- ./stripped big.json
  pointee --config pointee.toml run -- ./stripped big.json

The output is configuration: look it over, then give it to `run`. The program runs slowly, for twenty seconds
at most, then at its own speed. What it does meanwhile has to allocate and to free: only what happens is seen.")]
pub(crate) struct Arguments {
    /// Where the configuration goes [default: standard error].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
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
    let observed = outside::observe(held, &starts, elf.entry())?;
    let found = behaviour::judge(&observed.calls);
    let text = configuration(file, &elf, &starts, &found, observed.calls.len());
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
fn configuration(file: &Path, elf: &Elf, starts: &[u64], found: &[Found], calls: usize) -> String {
    let mut text = format!(
        "# {}: what its functions did in {} calls. To be looked over before it is used.\n",
        file.display(),
        grouped(calls as u64)
    );
    if found.is_empty() {
        text.push_str("# None was found that hands out memory.\n");
    }
    if !found.is_empty() && elf.build_id().is_empty() {
        text.push_str("# The file has no build ID: a digest of its code stands in for it.\n");
    }
    let name_of = |at: usize| {
        let role = found[at].role;
        match found[..at]
            .iter()
            .filter(|other| other.role == role)
            .count()
        {
            0 => role.word().to_owned(),
            before => format!("{}_{}", role.word(), before + 1),
        }
    };
    let frees = found.iter().any(|found| found.role == Role::Free);
    for (at, function) in found.iter().enumerate() {
        let (table, why) = why(function);
        let _ = write!(
            text,
            "\n[[{table}]]  # {why}\nname = \"{}\"\naddress = {:#x}\nbuild_id = \"{}\"\nrole = \"{}\"\n",
            name_of(at),
            starts[function.function],
            build_of(elf),
            function.role.word(),
        );
        if frees && function.role != Role::Free {
            text.push_str("free = \"free\"\n");
        }
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
