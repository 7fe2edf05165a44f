//! *What does Pointee cost?* — beside plain runs, a preload library that only forwards, and heaptrack.
//!
//! | word | meaning |
//! | --- | --- |
//! | variant | one way to run a program: plain, under this, under that |
//! | round | each variant once, in an order that shifts; machines drift, so only runs of one round are compared |
//! | ratio | median over the rounds of (variant ÷ plain of the same round) |
//!
//! Nothing is kept from one call to the next, and no figure is written down anywhere in the code.

mod fork;
pub(crate) mod hooks;
pub(crate) mod images;
mod instructions;
mod malloc;
mod measure;
mod pools;
pub(crate) mod probes;
mod programs;
mod queries;
mod site;
mod start;
pub(crate) mod suites;
pub(crate) mod table;
mod variant;
mod workloads;

use crate::workspace::Workspace;
use crate::{jq, shell};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use variant::Tools;

/// What to measure, and how often.
pub(crate) struct Options {
    rounds: usize,
    only: Vec<String>,
    /// Measured instead of a fresh build.
    pointee: Option<PathBuf>,
}

const PARTS: &[&str] = &[
    "instructions",
    "start",
    "fork",
    "site",
    "queries",
    "malloc",
    "pools",
    "programs",
];

impl Options {
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self {
            rounds: 7,
            only: Vec::new(),
            pointee: None,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let value = words.next();
            let value = value.with_context(|| format!("{word} wants a value"))?;
            match *word {
                "--rounds" => options.rounds = value.parse().context("--rounds wants a number")?,
                "--only" if PARTS.contains(value) => options.only.push((*value).to_owned()),
                "--only" => bail!("--only: one of {}", PARTS.join(", ")),
                "--pointee" => options.pointee = Some(value.into()),
                _ => bail!("unknown option {word}"),
            }
        }
        if options.rounds == 0 {
            bail!("--rounds wants at least one");
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }
}

/// Everything built and found that the parts use.
struct Bench {
    rounds: usize,
    /// Where measured programs find and leave their files.
    folder: PathBuf,
    /// The C sources.
    sources: PathBuf,
    /// jq, built with debug info; its sources.
    jq: PathBuf,
    jq_sources: PathBuf,
    tools: Tools,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::open()?;
    let folder = workspace.folder("bench")?;
    let sources = workspace.root().join("benches/overhead");
    let forwarder = folder.join("forward.so");
    let pointee = match &options.pointee {
        Some(pointee) => pointee.clone(),
        None => workspace.build_pointee()?,
    };
    let bench = Bench {
        rounds: options.rounds,
        jq: jq::build(&workspace)?,
        jq_sources: jq::sources(&workspace)?,
        tools: Tools::find(pointee, forwarder, sources.join("no-pools.toml"))?,
        folder,
        sources,
    };
    bench.compile(
        "forward.c",
        &bench.tools.forwarder,
        &["-shared", "-fPIC", "-fno-builtin"],
    )?;
    println!("# Overhead\n\n{}", bench.circumstances()?);
    for part in PARTS.iter().filter(|part| options.wants(part)) {
        match *part {
            "instructions" => instructions::measure(&bench)?,
            "start" => start::measure(&bench)?,
            "fork" => fork::measure(&bench)?,
            "site" => site::measure(&bench)?,
            "queries" => queries::measure(&bench)?,
            "malloc" => malloc::measure(&bench)?,
            "pools" => pools::measure(&bench)?,
            _ => programs::measure(&bench)?,
        }
    }
    Ok(())
}

impl Bench {
    /// Compiles a source of ours with -O2, as real programs are.
    fn compile(&self, source: &str, to: &Path, flags: &[&str]) -> Result<()> {
        let flags: Vec<&str> = ["-O2", "-g", "-pthread"]
            .iter()
            .chain(flags)
            .copied()
            .collect();
        shell::gcc(&[self.sources.join(source)], to, &flags)
    }

    /// On what and beside what it is measured.
    fn circumstances(&self) -> Result<String> {
        let processor = fs::read_to_string("/proc/cpuinfo")?
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("processor not named".to_owned(), |(_, name)| {
                name.to_owned()
            });
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let load = fs::read_to_string("/proc/loadavg")?;
        let load = load.split(' ').next().unwrap_or("?").to_owned();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(format!(
            "{processor}, {cores} cores, Linux {}, load {load} at the start; {}. Rounds: {}; ratios to \
             plain are medians over them.\n",
            kernel.trim(),
            self.tools.heaptrack_version(),
            self.rounds,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::Options;

    #[test]
    fn options() {
        let check = |words: &[&str], rounds_and_parts: Option<(usize, usize)>| {
            let parsed = Options::parse(words).ok();
            let parsed = parsed.map(|options| (options.rounds, options.only.len()));
            assert_eq!(parsed, rounds_and_parts, "{words:?}");
        };
        check(&[], Some((7, 0)));
        check(&["--rounds", "3"], Some((3, 0)));
        check(&["--only", "start", "--only", "malloc"], Some((7, 2)));
        check(&["--only", "nothing"], None);
        check(&["--rounds"], None);
        check(&["--rounds", "0"], None);
    }
}
