//! *Are the types of allocation sites right?* — scored against what a reader of the sources says.
//!
//! ```text
//!   benches/truth/build.sh PROGRAM DIR ──▶ a program with debug info, from its distribution's source
//!   draw   ──▶ sites picked by a seed, each with its source lines and without our answer
//!              a person reads and writes    benches/truth/PROGRAM.tsv
//!   score  ──▶ coverage, precision with its bound, each miss
//! ```
//!
//! | word | meaning |
//! | --- | --- |
//! | place | file, line and callee of a call: what survives another compiler. One place may be many sites (inlining) |
//! | row | what is true of one place, and the text that proves it |
//! | answered | one type in one role, and the verdict says single or agreed; base-of and conflicts are no answers |

mod builds;
mod compare;
mod counts;
mod draw;
mod layouts;
mod rows;
mod score;
mod sites;
mod wrappers;

use anyhow::{Context, Result, bail};
use std::path::PathBuf;

pub(crate) const USAGE: &str = "\
  truth coverage FILE…        how many sites of each file have an answer, and the others by cause
  truth draw FILE             draws places at random and shows their source, without answers
                                --count N       places [default: 40]
                                --seed N        [default: 1]
                                --rows FILE     leave out the places that these rows have
  truth score ROWS FILE       scores a file's sites against rows; further pairs may follow
  truth compare FILE [FILE]   the lines on which two builds of a program, or one with its sources and without, say different types
  truth counts COMMAND…       runs each command line under `pointee run`; how many allocations have a type
                                --program NAME  of what else it starts: a server that another program ends
  truth wrappers LIST FILE    which wrappers of a list are found; further pairs may follow
  truth layouts FILE…         compares every record's members with what pahole says
  truth builds FILE.c… [-- OPTIONS]   compiles in 30 ways; the share of sites with an answer, and those without where it is low
                         all: --pointee FILE (this command instead of a fresh build), --no-sources
";

/// What all of them need.
pub(crate) struct Options {
    pointee: Option<PathBuf>,
    sources: bool,
    count: usize,
    seed: u64,
    rows: Option<PathBuf>,
    /// The file name of the one program that counts.
    program: Option<String>,
    files: Vec<PathBuf>,
    /// What follows `--`.
    rest: Vec<String>,
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self {
            pointee: None,
            sources: true,
            count: 40,
            seed: 1,
            rows: None,
            program: None,
            files: Vec::new(),
            rest: Vec::new(),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || {
                words
                    .next()
                    .with_context(|| format!("{word} wants a value"))
            };
            match *word {
                "--" => break,
                "--no-sources" => options.sources = false,
                "--pointee" => options.pointee = Some(value()?.into()),
                "--program" => options.program = Some((*value()?).to_owned()),
                "--rows" => options.rows = Some(value()?.into()),
                "--count" => options.count = value()?.parse().context("--count wants a number")?,
                "--seed" => options.seed = value()?.parse().context("--seed wants a number")?,
                _ if word.starts_with("--") => bail!("unknown option {word}"),
                _ => options.files.push(word.into()),
            }
        }
        options.rest = words.map(|word| (*word).to_owned()).collect();
        Ok(options)
    }
}

pub(crate) fn run(words: &[&str]) -> Result<()> {
    let (command, rest) = words.split_first().context("truth wants a command")?;
    let options = Options::parse(rest)?;
    match *command {
        "coverage" => score::coverage(&options),
        "draw" => draw::run(&options),
        "score" => score::run(&options),
        "counts" => counts::run(&options),
        "wrappers" => wrappers::run(&options),
        "layouts" => layouts::run(&options),
        "builds" => builds::run(&options),
        "compare" => compare::run(&options),
        _ => bail!("truth {command} is not known"),
    }
}
