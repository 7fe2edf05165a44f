//! *What is on the end of this pointer?* — the command.
//!
//! ```text
//!   commands/run ── program, launch ──▶ the program, with the runtime preloaded
//!        │  ▲                              │ announces its index
//!        │  └──────── session ◀────────────┘
//!        └ supervise (signals, end) ─▶ processes ─▶ report, snapshot
//!   commands/{histo, what, maps, explain, snapshot} ── subject: a process or a snapshot
//!   commands/probe ── program, launch ──▶ the program ◀── placements: where its probes go
//!   commands/probe --pid ── outside ──▶ a process that runs already
//!   commands/{sites, types, meta} ── files
//! ```
//!
//! Exit status of the command itself, as `env(1)` has it: 125 when Pointee failed, 126 when the program
//! cannot be executed, 127 when it is not found; else, under `run`, the program's own.

mod acquaintance;
mod behaviour;
mod commands;
mod configuration;
mod following;
mod glob;
mod group_witness;
mod images;
mod launch;
mod output;
mod outside;
mod perf_map;
mod placements;
mod program;
mod runtime_file;
mod saving;
mod session;
mod start_state;
mod static_program;
mod subject;
mod supervise;
mod tracked;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Status when Pointee itself failed.
const OWN_FAILURE: u8 = 125;

/// Tells what the heap of a native program is made of: which types, how many, from where.
///
/// Nothing has to be rebuilt or relinked. Types come from debug info, where it is installed.
#[derive(Debug, Parser)]
#[command(name = "pointee", version, max_term_width = 100)]
#[command(after_help = "Examples:
  pointee run -- jq . big.json          run it, then show its heap by type
  pointee histo 4711                    the heap of a process under `run`, now
  pointee what 4711 0x55d0c0ffee10      what lies at this address
  pointee maps 4711                     what its whole address space is made of

Exit status: 125 when Pointee itself fails, 126 when the program cannot be executed, 127 when it is
not found; `run` ends otherwise with the program's status, or by the same signal.")]
struct Command {
    /// Read this configuration too, on top of the user's and the folder's pointee.toml.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    subcommand: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    Run(commands::run::Arguments),
    Histo(commands::histo::Arguments),
    What(commands::what::Arguments),
    Probe(commands::probe::Arguments),
    Observe(commands::observe::Arguments),
    Maps(commands::maps::Arguments),
    Snapshot(commands::snapshot::Arguments),
    Sites(commands::sites::Arguments),
    Types(commands::types::Arguments),
    Explain(commands::explain::Arguments),
    Meta(commands::meta::Arguments),
    RuntimePath(commands::runtime_path::Arguments),
}

fn main() -> ExitCode {
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => {
            let _ = error.print();
            // Help and version are no failures; a wrong command line is ours, not the program's.
            return if error.use_stderr() {
                OWN_FAILURE.into()
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    if let Err(error) = configuration::read(command.config.as_deref()) {
        eprintln!("pointee: {error:#}");
        return OWN_FAILURE.into();
    }
    let done = match &command.subcommand {
        Subcommands::Run(arguments) => commands::run::run(arguments),
        Subcommands::Histo(arguments) => commands::histo::run(arguments),
        Subcommands::What(arguments) => commands::what::run(arguments),
        Subcommands::Probe(arguments) => commands::probe::run(arguments),
        Subcommands::Observe(arguments) => commands::observe::run(arguments),
        Subcommands::Maps(arguments) => commands::maps::run(arguments),
        Subcommands::Snapshot(arguments) => commands::snapshot::run(arguments),
        Subcommands::Sites(arguments) => commands::sites::run(arguments),
        Subcommands::Types(arguments) => commands::types::run(arguments),
        Subcommands::Explain(arguments) => commands::explain::run(arguments),
        Subcommands::Meta(arguments) => commands::meta::run(arguments),
        Subcommands::RuntimePath(arguments) => commands::runtime_path::run(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pointee: {error:#}");
            OWN_FAILURE.into()
        }
    }
}
