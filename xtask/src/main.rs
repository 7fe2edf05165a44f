//! *What does one do often in this workspace?* — one subcommand for each answer.
//!
//! ```text
//!   demo ──▶ build Pointee ──▶ jq (build a real program) ──▶ pointee run
//!   test ──▶ packages ──▶ format, lints, documentation, tests, the runtime's needs, licences, capabilities
//!   truth ─▶ sites of programs ──▶ compared with what reading their sources says
//!   bench ─▶ build Pointee ──▶ jq, programs, microbench, start, fork, instructions; images ──▶ tables
//! ```
//!
//! Whatever is made goes to cargo's target folder.

mod bench;
mod capabilities;
mod demo;
mod jq;
mod licences;
mod packages;
mod shell;
mod test;
mod truth;
mod workspace;

use anyhow::{Result, bail};
use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask COMMAND

  demo              build Pointee and a real program (jq), and show that program's heap by type
  test              install what the tests need, then format check, lints, documentation, tests
  bench overhead    what Pointee costs, beside a do-nothing preload library and heaptrack
                      --rounds N      runs of each program and variant [default: 7]
                      --only PART     programs, malloc, site, fork, start or instructions; may be repeated
                      --pointee FILE  measure this command instead of building it
  bench hooks       what hooks in a running program cost, and how long its threads stand still
                      --rounds N      runs of each variant [default: 9]
                      --times N       hooked and unhooked so often [default: 10000]
                      --runs N        by 1, 8 and 64 threads, in so many runs [default: 10]
  bench images      how long it takes to make a file's metadata image, cold
                      [FILE…]         these files instead of jq and Pointee's own
  bench probe       how probes are placed in files of this machine, and what they cost
                      --rounds, --pointee as above
  bench suites      whether test suites say the same with a counter at every function
                      --perl FOLDER   a built source tree of Perl, whose `t` is run
                      --python FILE   an interpreter with its module `test`
                      --pointee       as above
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match words {
        ["demo"] => demo::run(),
        ["test"] => test::run(),
        ["bench", "hooks", options @ ..] => bench::hooks::run(options),
        ["bench", "images", files @ ..] => bench::images::run(files),
        ["bench", "overhead", options @ ..] => bench::run(&bench::Options::parse(options)?),
        ["truth", rest @ ..] => truth::run(rest),
        ["bench", "suites", options @ ..] => bench::suites::run(options),
        ["bench", "probe", options @ ..] => bench::probes::run(&bench::Options::parse(options)?),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}{}", truth::USAGE);
            Ok(())
        }
        _ => bail!("unknown command: {}\n\n{USAGE}", words.join(" ")),
    }
}
