//! *Under what is a program run?* — the variants, and the command line of each.

use crate::shell;
use anyhow::Result;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// One way to run a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Variant {
    Plain,
    /// Plain once more: how far two runs of the same thing lie apart.
    PlainAgain,
    /// Under the preload library that only forwards.
    Forwarder,
    /// With the runtime preloaded, nothing else.
    Preloaded,
    /// Under `pointee run` with all pools ignored.
    RunWithoutPools,
    /// Under `pointee run`, its report thrown away; images are in the cache.
    Run,
    /// Under heaptrack, recorder and interpreter, as one uses it.
    Heaptrack,
}

impl Variant {
    /// All but the first are compared with it.
    pub(super) const ALL: [Self; 7] = [
        Self::Plain,
        Self::PlainAgain,
        Self::Forwarder,
        Self::Preloaded,
        Self::RunWithoutPools,
        Self::Run,
        Self::Heaptrack,
    ];

    /// The head of its column.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::PlainAgain => "plain again",
            Self::Forwarder => "forwarder",
            Self::Preloaded => "runtime preloaded",
            Self::RunWithoutPools => "pointee run, no pools",
            Self::Run => "pointee run",
            Self::Heaptrack => "heaptrack",
        }
    }
}

/// What the variants need.
pub(super) struct Tools {
    pub(super) pointee: PathBuf,
    pub(super) runtime: PathBuf,
    pub(super) forwarder: PathBuf,
    /// Configuration that ignores pools.
    no_pools: PathBuf,
    heaptrack: Option<PathBuf>,
}

/// 4 GiB of address space: older versions of heaptrack take all memory there is with some programs.
const HEAPTRACK_MEMORY: &str = "--as=4294967296";

/// Seconds after which a run under heaptrack is given up.
const HEAPTRACK_TIME: &str = "180";

impl Tools {
    pub(super) fn find(pointee: PathBuf, forwarder: PathBuf, no_pools: PathBuf) -> Result<Self> {
        let runtime = shell::output(Command::new(&pointee).arg("runtime-path"))?;
        Ok(Self {
            pointee,
            runtime: runtime.trim_end().into(),
            forwarder,
            no_pools,
            heaptrack: shell::find_program("heaptrack"),
        })
    }

    pub(super) fn heaptrack_version(&self) -> String {
        let Some(heaptrack) = &self.heaptrack else {
            return "heaptrack is not installed".to_owned();
        };
        let version = shell::output(Command::new(heaptrack).arg("--version"));
        version.map_or_else(
            |_| "heaptrack of unknown version".to_owned(),
            |text| text.trim().to_owned(),
        )
    }

    /// Those that can be run here.
    pub(super) fn variants(&self) -> Vec<Variant> {
        let there = |variant: &Variant| *variant != Variant::Heaptrack || self.heaptrack.is_some();
        Variant::ALL.into_iter().filter(there).collect()
    }

    /// The command that runs `words` under `variant`.
    pub(super) fn command(&self, variant: Variant, words: &[OsString]) -> Command {
        let with = |program: &PathBuf, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).args(words);
            command
        };
        let preloading = |library: &PathBuf| {
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]).env("LD_PRELOAD", library);
            command
        };
        match variant {
            Variant::Plain | Variant::PlainAgain => {
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]);
                command
            }
            Variant::Forwarder => preloading(&self.forwarder),
            Variant::Preloaded => preloading(&self.runtime),
            Variant::RunWithoutPools => {
                let no_pools = self.no_pools.to_string_lossy();
                let options = ["run", "--config", &no_pools, "--report", "/dev/null", "--"];
                with(&self.pointee, &options)
            }
            Variant::Run => with(&self.pointee, &["run", "--report", "/dev/null", "--"]),
            Variant::Heaptrack => {
                let recording = self.forwarder.with_file_name("heaptrack");
                let recording = recording.to_string_lossy();
                let heaptrack = self.heaptrack.as_deref().unwrap_or("heaptrack".as_ref());
                let mut command = Command::new("timeout");
                command
                    .args([HEAPTRACK_TIME, "prlimit", HEAPTRACK_MEMORY])
                    .arg(heaptrack)
                    .args(["--output", &recording])
                    .args(words);
                command
            }
        }
    }
}
