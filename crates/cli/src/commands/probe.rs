//! `pointee probe`: *how often does this program come to each of these instructions?*

use crate::launch::{self, HandOff, Inheritance, Start};
use crate::output::{Format, ROWS, json, print};
use crate::outside::{Attached, Pauses, keeper};
use crate::placements::{Planned, Planner, Wish};
use crate::program::{self, Way};
use crate::runtime_file;
use crate::session::Session;
use crate::supervise::{self, Signals};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use nix::poll::{PollFd, PollFlags, poll};
use nix::unistd::Pid;
use pointee_inspect::text::grouped;
use pointee_meta::elf::Elf;
use pointee_probe::{At, Plan, Seen, Value, ValueKind, inlined_instances};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it is looked whether a process is still there.
const LOOK: Duration = Duration::from_millis(100);

/// Count how often a program executes chosen instructions
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pointee probe -- gzip -k file                        every function's calls, in every object
  pointee probe --at instruction --module gzip -- gzip -k file
  pointee probe --at call --module 'libc.so*' --function 'mem*' -- ls
  pointee probe --at instruction --dry-run /usr/bin/perl
  pointee probe --pid 4711 --module 'libc.so*' --seconds 2    a process that runs already
  pointee probe --inlined 'jv_*' -- ./jq . big.json       bodies that have no entry of their own
  pointee probe --written 'freelist' -- ./ruby prog.rb    who writes this variable, how often, and what

With --inlined and --written values are shown too: the parameters of the bodies, what is stored, as far as
they are constants, in registers or in the frame. The first sixteen different ones are counted one by one, all by
their size.

The program's input, output, terminal, signals and exit status are its own. Counts are exact, with
threads too, and include what the program's forked children do until they execute another program,
which is not counted. Functions are named by symbols; in stripped files by their addresses. Not
counted as functions: linkage stubs, cold parts of functions, signal-return stubs.

With --pid, all threads of the process are stopped for a moment, counters are put in, and nothing traces it
while it runs. At the end, by --seconds, Ctrl-C or with the process, its code is restored byte for byte
and what was mapped is unmapped, in what it forked too; also when this command is killed. The report says
how long it stood still. No traps are placed, and objects loaded
later are not counted. Calls that the kernel does not make again (epoll_wait, sigtimedwait) may end with EINTR, as
after every stop by a debugger.

Where no jump fits, a trap (int3) is placed. The program's own SIGTRAP stays what it made it. gdb stops
at a trap that is met; `signal SIGTRAP` goes on from there, `continue` does not.")]
pub(crate) struct Arguments {
    /// Which instructions are counted.
    #[arg(long, value_enum, default_value_t = Which::Entry, value_name = "WHICH")]
    at: Which,
    /// Count instead how often inlined bodies of functions whose name matches begin, by the debug info (may be repeated).
    #[arg(long, value_name = "GLOB", conflicts_with_all = ["at", "written"])]
    inlined: Vec<String>,
    /// Count instead the instructions that write variables whose name matches (may be repeated).
    #[arg(long, value_name = "GLOB", conflicts_with = "at")]
    written: Vec<String>,
    /// Only objects whose path or file name matches (may be repeated).
    #[arg(long, value_name = "GLOB")]
    module: Vec<String>,
    /// Only functions whose name matches (may be repeated).
    #[arg(long, value_name = "GLOB")]
    function: Vec<String>,
    /// Write text or JSON.
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    format: Format,
    /// Where the report goes: a file, or `-` for standard output [default: standard error].
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Place no traps: leave out what nothing else fits at.
    #[arg(long)]
    no_traps: bool,
    /// Show how the points of FILE would be placed; nothing is run.
    #[arg(long, value_name = "FILE", conflicts_with = "command")]
    dry_run: Option<PathBuf>,
    /// With --dry-run and --inlined: also write where the bodies are, and their parameters, as a table for
    /// pointee_find_inlined (pointee_hooks.h).
    #[arg(long, value_name = "FILE", requires_all = ["dry_run", "inlined"])]
    table: Option<PathBuf>,
    /// Count in this process, which runs already, until --seconds, Ctrl-C or its end.
    #[arg(long, value_name = "PID", conflicts_with_all = ["command", "dry_run"], value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// How long to count, with --pid.
    #[arg(long, value_name = "N", requires = "pid", value_parser = seconds)]
    seconds: Option<Duration>,
    /// The program and its arguments.
    #[arg(
        required_unless_present_any = ["dry_run", "pid"],
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PROGRAM"
    )]
    command: Vec<OsString>,
}

/// What `--at` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    /// The first instruction of each function.
    Entry,
    /// Calls.
    Call,
    /// Jumps of all kinds.
    Jump,
    /// System calls.
    Syscall,
    /// Every instruction.
    Instruction,
}

impl From<Which> for At {
    fn from(which: Which) -> Self {
        match which {
            Which::Entry => Self::Entry,
            Which::Call => Self::Call,
            Which::Jump => Self::Jump,
            Which::Syscall => Self::Syscall,
            Which::Instruction => Self::Instruction,
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    modules: Vec<ModuleRow>,
    /// With `--pid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pauses: Option<PausesRow>,
}

/// How long the process stood still.
#[derive(Debug, Serialize)]
struct PausesRow {
    attach: PauseRow,
    detach: PauseRow,
}

#[derive(Debug, Serialize)]
struct PauseRow {
    longest_us: u64,
    histogram: Vec<PauseCount>,
}

#[derive(Debug, Serialize)]
struct PauseCount {
    below_us: u64,
    count: u64,
}

impl PauseRow {
    fn new(pauses: &Pauses) -> Self {
        let counts = pauses.counts();
        Self {
            longest_us: u64::try_from(pauses.longest().as_micros()).unwrap_or(u64::MAX),
            histogram: counts
                .map(|(below_us, count)| PauseCount { below_us, count })
                .collect(),
        }
    }

    /// In a few words.
    fn text(&self) -> String {
        let counts = self.histogram.iter().map(|row| {
            let limit = grouped(row.below_us);
            format!("{} below {limit} µs", grouped(row.count))
        });
        let counts: Vec<String> = counts.collect();
        let longest = grouped(self.longest_us);
        format!("{} (the longest: {longest} µs)", counts.join(", "))
    }
}

#[derive(Debug, Serialize)]
struct ModuleRow {
    module: String,
    points: u64,
    placed: u64,
    tactics: BTreeMap<&'static str, u64>,
    refused: Vec<RefusedRow>,
    /// How many of what was asked for are no points, by rule.
    excluded: BTreeMap<&'static str, u64>,
    hits: Vec<HitRow>,
}

#[derive(Debug, Serialize)]
struct RefusedRow {
    function: String,
    offset: u32,
    why: &'static str,
}

#[derive(Debug, Serialize)]
struct HitRow {
    function: String,
    offset: u32,
    /// The variable or the inlined function that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    count: u64,
    /// The values that passed, as far as they are known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<ValueRow>,
}

#[derive(Debug, Serialize)]
struct ValueRow {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<i128>,
    /// The most frequent first; the first sixteen that came.
    counts: Vec<CountRow>,
    /// How often any other came.
    others: u64,
    /// All of them, by size as numbers without a sign.
    ranges: Vec<RangeRow>,
}

#[derive(Debug, Serialize)]
struct CountRow {
    value: i128,
    count: u64,
}

#[derive(Debug, Serialize)]
struct RangeRow {
    from: u64,
    to: u64,
    count: u64,
}

impl ValueRow {
    /// What is known of `value`, which passed a point `count` times.
    fn new(value: &Value, count: u64, words: &[u64]) -> Option<Self> {
        let name = value.name.clone();
        match value.kind {
            ValueKind::Constant(constant) => Some(Self {
                name,
                last: None,
                counts: vec![CountRow {
                    value: value.form.read(constant as u64),
                    count,
                }],
                others: 0,
                ranges: Vec::new(),
            }),
            ValueKind::Recorded(first) => {
                let seen = Seen::read(words.get(first as usize..)?, value.form)?;
                let counts = seen.values.into_iter();
                let ranges = seen.classes.into_iter();
                Some(Self {
                    name,
                    last: Some(seen.last),
                    counts: counts
                        .map(|(value, count)| CountRow { value, count })
                        .collect(),
                    others: seen.others,
                    ranges: ranges
                        .map(|(from, to, count)| RangeRow { from, to, count })
                        .collect(),
                })
            }
        }
    }

    /// In one line: the most frequent values, then the ranges if not all have a place of their own.
    fn text(&self) -> String {
        const SHOWN: usize = 8;
        // What looks like an address is read as one.
        let number = |value: i128| match value >> 32 {
            0 | -1 => value.to_string(),
            _ => format!("{value:#x}"),
        };
        let mut parts: Vec<String> = self
            .counts
            .iter()
            .take(SHOWN)
            .map(|row| format!("{} × {}", number(row.value), grouped(row.count)))
            .collect();
        let rest = self.counts.iter().skip(SHOWN).map(|row| row.count);
        let rest = rest.sum::<u64>() + self.others;
        if rest > 0 {
            parts.push(format!("others × {}", grouped(rest)));
        }
        let mut text = format!("{} = {}", self.name, parts.join(", "));
        if self.others > 0 {
            let ranges = self.ranges.iter().map(|row| {
                let (from, to) = (i128::from(row.from), i128::from(row.to));
                format!("{}–{} × {}", number(from), number(to), grouped(row.count))
            });
            let ranges: Vec<String> = ranges.collect();
            let _ = write!(text, "; by size: {}", ranges.join(", "));
        }
        text
    }
}

impl ModuleRow {
    /// Of an object without any probes.
    fn refused(module: String, plan: &Plan, why: &'static str) -> Self {
        let refused = plan.points.iter().map(|point| RefusedRow {
            function: plan.functions[point.function as usize].label(),
            offset: point.offset,
            why,
        });
        Self {
            placed: 0,
            tactics: BTreeMap::new(),
            refused: refused.collect(),
            hits: Vec::new(),
            ..Self::new(module, plan, &[])
        }
    }

    fn new(module: String, plan: &Plan, counts: &[u64]) -> Self {
        let label = |function: u32| plan.functions[function as usize].label();
        let mut refused = Vec::new();
        let mut hits = Vec::new();
        for point in &plan.points {
            match point.placed {
                Err(why) => refused.push(RefusedRow {
                    function: label(point.function),
                    offset: point.offset,
                    why: why.reason(),
                }),
                Ok((_, counter)) => {
                    let count = counts.get(counter as usize).copied().unwrap_or(0);
                    if count > 0 {
                        hits.push(HitRow {
                            function: label(point.function),
                            offset: point.offset,
                            subject: point
                                .subject
                                .and_then(|number| plan.subjects.get(number as usize))
                                .cloned(),
                            count,
                            values: plan
                                .values
                                .get(&counter)
                                .into_iter()
                                .flatten()
                                .filter_map(|value| ValueRow::new(value, count, counts))
                                .collect(),
                        });
                    }
                }
            }
        }
        let tactics = plan.tactics();
        Self {
            module,
            points: plan.points.len() as u64,
            placed: tactics.values().sum(),
            tactics: tactics
                .into_iter()
                .map(|(tactic, count)| (tactic.name(), count))
                .collect(),
            refused,
            excluded: plan
                .excluded
                .iter()
                .map(|(rule, count)| (rule.name(), *count))
                .collect(),
            hits,
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (at, subjects) = match (arguments.inlined.as_slice(), arguments.written.as_slice()) {
        ([], []) => (arguments.at.into(), &[][..]),
        ([], written) => (At::Write, written),
        (inlined, _) => (At::Inlined, inlined),
    };
    let wish = Wish {
        at,
        subjects: subjects.to_vec(),
        modules: arguments.module.clone(),
        functions: arguments.function.clone(),
        // Nothing that could take their signals runs in a process from outside.
        traps: !arguments.no_traps && arguments.pid.is_none(),
        watched: arguments.pid.is_none(),
    };
    match (&arguments.dry_run, arguments.pid) {
        (Some(file), _) => {
            let path = file.to_string_lossy().into_owned();
            let elf = Elf::open(file).with_context(|| path.clone())?;
            let plan = wish.plan(&elf, &path).with_context(|| path.clone())?;
            if let Some(table) = &arguments.table {
                let wanted = |name: &str| wish.is_subject(name);
                let (bytes, _) = inlined_instances(&elf, &wanted).with_context(|| path.clone())?;
                std::fs::write(table, bytes)
                    .with_context(|| format!("cannot write {}", table.display()))?;
            }
            let report = Report {
                modules: vec![ModuleRow::new(path, &plan, &[])],
                pauses: None,
            };
            print(&rendered(arguments, &report)?)
        }
        (None, Some(pid)) => probe_process(arguments, Pid::from_raw(pid), &wish),
        (None, None) => run_program(arguments, wish),
    }
}

fn run_program(arguments: &Arguments, wish: Wish) -> Result<()> {
    let name = &arguments.command[0];
    let program = program::find_or_end(name);
    let reason = match program.way {
        Way::Preloaded => None,
        Way::Mapped(_) => Some("statically linked: nothing can be preloaded"),
        Way::Unseen(ref reason) => Some(reason.as_str()),
    };
    if let Some(reason) = reason {
        bail!("{}: probes cannot be put in: {reason}", name.display());
    }
    let session = Session::open()?;
    let runtime = runtime_file::anywhere(session.folder())?;
    let socket = session.folder().join("placements");
    let planner = Arc::new(Planner::open(&socket, wish)?);
    let mut signals = Signals::take()?;
    let inheritance = Inheritance::of(&signals)?;
    let handoff = HandOff {
        socket: &session.socket_path(),
        next: None,
        images: None,
        cache: None,
        follow: false,
        blocks_outlive: false,
        peak: false,
        runtime: &runtime,
        probes: Some(&socket),
    };
    let environment = launch::environment(std::env::vars_os(), &handoff);
    let start = Start {
        path: &program.path,
        arguments: &arguments.command,
        environment: &environment,
        mapped: None,
    };
    let (session, started) = launch::start_or_end(&start, &inheritance, session);
    let child = started.child;
    planner.serve();
    let end = supervise::supervise(child, &mut signals, &session, None, None, |_| {}, || {})?;
    drop(signals);
    drop(session);
    let rows = planner.planned().into_iter().map(|planned| row(&planned));
    // Objects in which nothing was to be counted were only watched.
    let modules = rows.filter(|row| row.points > 0).collect();
    let report = Report {
        modules,
        pauses: None,
    };
    if let Err(error) = write(arguments, &report) {
        // The program's status counts for more than its report.
        eprintln!("pointee: the report could not be written: {error:#}");
    }
    supervise::end_as(end)
}

/// Counts in a process that runs already.
fn probe_process(arguments: &Arguments, pid: Pid, wish: &Wish) -> Result<()> {
    let signals = keeper::begin()?;
    let is_over = || signals.read_signal().is_ok_and(|signal| signal.is_some());
    let mut attached = Attached::attach(pid, wish, &is_over)?;
    let deadline = arguments.seconds.map(|seconds| Instant::now() + seconds);
    while attached.is_there() && !is_over() {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            break;
        }
        let wait = left.unwrap_or(LOOK).min(LOOK).as_millis() as u16;
        let mut sources = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut sources, wait.max(1));
    }
    let left = attached.detach();
    let refused = attached
        .refused()
        .iter()
        .map(|refused| ModuleRow::refused(refused.path.clone(), &refused.plan, refused.why));
    let modules = attached
        .counted()
        .map(|(path, plan, counts)| ModuleRow::new(path.to_owned(), plan, &counts))
        .chain(refused)
        .collect();
    let pauses = PausesRow {
        attach: PauseRow::new(&attached.attaching),
        detach: PauseRow::new(&attached.detaching),
    };
    let report = Report {
        modules,
        pauses: Some(pauses),
    };
    write(arguments, &report)?;
    for left in left? {
        eprintln!(
            "pointee: process {}: its code is as it was; the copies stay mapped: {}",
            left.pid, left.why
        );
    }
    Ok(())
}

/// A number of seconds, for `--seconds`.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "no number".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn row(planned: &Planned) -> ModuleRow {
    /// The process says no more than that.
    const UNWRITTEN: &str =
        "its code in memory is not the file's, or there is no room for the copies near it";
    if planned.is_written() {
        ModuleRow::new(planned.path.clone(), &planned.plan, &planned.counts())
    } else {
        ModuleRow::refused(planned.path.clone(), &planned.plan, UNWRITTEN)
    }
}

fn write(arguments: &Arguments, report: &Report) -> Result<()> {
    let text = rendered(arguments, report)?;
    match &arguments.report {
        // Whoever reads it may be gone before the process is as it was.
        None => std::io::stderr().write_all(text.as_bytes())?,
        Some(path) if path.as_os_str() == "-" => print(&text)?,
        Some(path) => std::fs::write(path, text)
            .with_context(|| format!("cannot write {}", path.display()))?,
    }
    Ok(())
}

fn rendered(arguments: &Arguments, report: &Report) -> Result<String> {
    Ok(match arguments.format {
        Format::Json => json(report)?,
        Format::Text => text(report),
    })
}

/// For people: each module's tactics, what was refused, and the most frequent points of all.
fn text(report: &Report) -> String {
    let mut text = String::new();
    if report.modules.iter().all(|module| module.points == 0) {
        text.push_str("No point was found: nothing that was seen to be loaded matches.\n");
    }
    for module in report.modules.iter().filter(|module| module.points > 0) {
        let tactics: Vec<String> = module
            .tactics
            .iter()
            .map(|(name, count)| format!("{} {name}", grouped(*count)))
            .collect();
        let _ = writeln!(
            text,
            "{}: {} of {} points placed: {}",
            module.module,
            grouped(module.placed),
            grouped(module.points),
            tactics.join(", ")
        );
        for (rule, count) in &module.excluded {
            let _ = writeln!(text, "    left out {}: {rule}", grouped(*count));
        }
        for refused in module.refused.iter().take(ROWS) {
            let _ = writeln!(
                text,
                "    refused {}+{:#x}: {}",
                refused.function, refused.offset, refused.why
            );
        }
        if module.refused.len() > ROWS {
            let _ = writeln!(
                text,
                "    and {} more",
                grouped((module.refused.len() - ROWS) as u64)
            );
        }
    }
    if let Some(pauses) = &report.pauses {
        let each = [("attach", &pauses.attach), ("detach", &pauses.detach)];
        for (when, pauses) in each.iter().filter(|(_, row)| !row.histogram.is_empty()) {
            let _ = writeln!(text, "stood still at {when}: {}", pauses.text());
        }
    }
    let mut hits: Vec<(&HitRow, &str)> = report
        .modules
        .iter()
        .flat_map(|module| module.hits.iter().map(|hit| (hit, module.module.as_str())))
        .collect();
    hits.sort_by_key(|(hit, _)| std::cmp::Reverse(hit.count));
    if !hits.is_empty() {
        let _ = writeln!(text, "\n{:>16}  where", "count");
    }
    for (hit, module) in hits.iter().take(ROWS) {
        let name = module.rsplit('/').next().unwrap_or(module);
        let _ = writeln!(
            text,
            "{:>16}  {}{}+{:#x} ({name})",
            grouped(hit.count),
            hit.subject
                .as_ref()
                .map_or_else(String::new, |subject| format!("{subject} in ")),
            hit.function,
            hit.offset
        );
        for value in &hit.values {
            let _ = writeln!(text, "{:>18}{}", "", value.text());
        }
    }
    text
}
