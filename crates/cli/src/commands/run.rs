//! `pointee run`: *what is the heap of this program made of?*

use crate::acquaintance::{self, Acquaintance};
use crate::following::{Following, Lost};
use crate::images::ImageSource;
use crate::launch::{self, HandOff, Inheritance, Start};
use crate::output::{Format, Listing, json};
use crate::outside::Mapped;
use crate::program::{self, Program, Way};
use crate::session::Session;
use crate::supervise::{self, End, Signals};
use crate::tracked::{self, Processes, Tracked};
use crate::{runtime_file, saving, static_program};
use anyhow::{Context, Result};
use pointee_inspect::process::Ending;
use pointee_inspect::report::{Circumstances, ProcessReport, State};
use pointee_inspect::resolve::Resolver;
use pointee_inspect::text;
use pointee_meta::cache::Places;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Run a program and show what its heap is made of
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pointee run -- jq . big.json                     report to standard error at its end
  pointee run --report heap.json --format json -- make -j2
  pointee run --snapshot now.pointee --snapshot-at 10 -- ./server
  pointee run --no-follow -- sh -c './configure; make'

The program's input, output, terminal, signals and exit status are its own. Descendants are
recorded too, each with a report of its own when it allocated anything. `run` returns when the
program itself ends; descendants that go on are reported as they are then.")]
pub(crate) struct Arguments {
    /// Record descendants too (the default).
    #[arg(long, overrides_with = "no_follow")]
    follow_forks: bool,
    /// Record the program alone.
    #[arg(long, overrides_with = "follow_forks")]
    no_follow: bool,
    /// Where the report goes: a file, or `-` for standard output [default: standard error].
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Save a snapshot, to be asked later on any machine (descendants: FILE.PID).
    #[arg(long, value_name = "FILE")]
    snapshot: Option<PathBuf>,
    /// When: at its end, after SECONDS, or at its highest point (within 1 %; it runs slower).
    #[arg(
        long,
        value_name = "peak|exit|SECONDS",
        default_value = "exit",
        requires = "snapshot"
    )]
    snapshot_at: saving::At,
    /// Save the contents of the heap too (with `--snapshot-at SECONDS`).
    #[arg(long, requires = "snapshot")]
    memory: bool,
    /// Tell what the record itself takes of memory, too.
    #[arg(long)]
    cost: bool,
    #[command(flatten)]
    listing: Listing,
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
    // Signals still end this.
    let acquaintance = program.seen_file().map(Acquaintance::make);
    let session = Session::open()?;
    let mut signals = Signals::take()?;
    let inheritance = Inheritance::of(&signals)?;
    let runtime = runtime_file::anywhere(session.folder());
    let images = acquaintance.map(|acquaintance| acquaintance.introduce(session.folder()));
    let setting = setting(arguments, &program, images.as_deref(), &session, runtime);
    let start = Start {
        path: &program.path,
        arguments: &arguments.command,
        environment: &setting.environment,
        mapped: setting.mapped,
    };
    let (session, started) = launch::start_or_end(&start, &inheritance, session);
    let child = started.child;
    let unseen = setting.unseen.or(started.unmapped);
    let first = child.as_raw() as u32;
    let processes = std::cell::RefCell::new(Processes::new(inheritance.files.1));
    let end = supervise::supervise(
        child,
        &mut signals,
        &session,
        setting.following.as_ref(),
        arguments.snapshot_at.after(),
        |arrival| processes.borrow_mut().add(arrival),
        || {
            if let Some(file) = &arguments.snapshot {
                let processes = processes.borrow();
                let mut source = ImageSource::new();
                saving::while_running(processes.newest(first), &mut source, file, arguments.memory);
            }
        },
    )?;
    let processes = processes.into_inner();
    let mut source = ImageSource::new();
    source.keep(processes.executables());
    let processes = processes.with_ends(first, end);
    // From here on a Ctrl-C is for us.
    drop(signals);
    drop(session);
    if let Some(file) = &arguments.snapshot
        && arguments.snapshot_at.after().is_none()
    {
        let at = arguments.snapshot_at;
        saving::at_end(&processes, &mut source, first, file, at, arguments.memory);
    }
    let path = program.path.to_string_lossy().into_owned();
    let lost = setting
        .following
        .map_or_else(Vec::new, Following::into_lost);
    let mut reports = reports(processes, &mut source, first, end, &path, unseen, &lost);
    if !arguments.cost {
        for report in &mut reports {
            report.recording = None;
        }
    }
    acquaintance::note(&program.path, &source.objects());
    if let Err(error) = write(arguments, &reports) {
        // The program's status counts for more than its report.
        eprintln!("pointee: the report could not be written: {error:#}");
    }
    supervise::end_as(end)
}

/// What a program is started with.
struct Setting {
    environment: Vec<OsString>,
    /// What is mapped into it.
    mapped: Option<Mapped>,
    /// Who sees to descendants that become statically linked programs.
    following: Option<Following>,
    /// Why it is not recorded, if so.
    unseen: Option<String>,
}

fn setting(
    arguments: &Arguments,
    program: &Program,
    images: Option<&Path>,
    session: &Session,
    runtime: Result<PathBuf>,
) -> Setting {
    let plain = |mapped, unseen| Setting {
        environment: std::env::vars_os()
            .map(|(name, value)| launch::assignment(name, value))
            .collect(),
        mapped,
        following: None,
        unseen,
    };
    if let Way::Unseen(reason) = &program.way {
        return plain(None, Some(reason.clone()));
    }
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return plain(None, Some(format!("{error:#}"))),
    };
    let cache = Places::default().user;
    let next = session.folder().join("next");
    let handoff = HandOff {
        socket: &session.socket_path(),
        next: (!arguments.no_follow).then_some(&*next),
        images,
        cache: cache.as_deref(),
        follow: !arguments.no_follow,
        blocks_outlive: arguments.snapshot.is_some() || arguments.cost,
        peak: arguments.snapshot_at == saving::At::Peak,
        runtime: &runtime,
        probes: None,
    };
    let text = launch::hand_off_text(&handoff);
    let mut setting = match &program.way {
        Way::Mapped(file) => match static_program::why_unseen(file) {
            Some(reason) => return plain(None, Some(reason)),
            None => {
                let handoff = text.clone();
                let runtime = runtime.clone();
                plain(Some(Mapped { runtime, handoff }), None)
            }
        },
        _ => Setting {
            environment: launch::environment(std::env::vars_os(), &handoff),
            ..plain(None, None)
        },
    };
    if !arguments.no_follow {
        // Who asks in vain goes on unseen.
        setting.following = Following::open(&next, runtime, images, text).ok();
    }
    setting
}

/// One report a program that allocated, the first process's first.
fn reports(
    processes: Vec<(Tracked, Circumstances)>,
    source: &mut ImageSource,
    first: u32,
    end: End,
    program: &str,
    unseen: Option<String>,
    lost: &[Lost],
) -> Vec<ProcessReport> {
    let mut reports = Vec::new();
    let mut went_on = Vec::new();
    for (tracked, mut circumstances) in processes {
        let is_first = tracked.pid == first;
        let copies = tracked.size_of_copies();
        match tracked.into_data() {
            Ok(data) => {
                if tracked::went_on_unseen(&data, &circumstances) {
                    went_on.push(circumstances.clone());
                }
                let is_running = circumstances.state == State::Running;
                if data.ending == Ending::Exec {
                    circumstances.state = State::Exec;
                    if is_running {
                        let reason =
                            "it is still running, as a program that did not announce itself";
                        circumstances.unseen.push(reason.to_owned());
                    }
                }
                let allocated = data.total.allocated.blocks != 0 || data.total.freed.blocks != 0;
                if is_first || allocated || is_running {
                    let images = source.for_process(&data);
                    let resolver = Resolver::new(&data, &images);
                    let mut report = ProcessReport::new(&resolver, &circumstances);
                    if let Some(recording) = &mut report.recording {
                        recording.copies = copies;
                    }
                    reports.push(report);
                }
            }
            Err(reason) => {
                circumstances.unseen.push(format!("its index: {reason}"));
                reports.push(ProcessReport::unseen(program.to_owned(), circumstances));
            }
        }
    }
    for mut circumstances in went_on {
        circumstances.generation += 1;
        let generation = (circumstances.pid, circumstances.generation);
        if lost
            .iter()
            .any(|lost| (lost.pid, lost.generation) == generation)
        {
            continue;
        }
        let reason = "it became a program in which the runtime cannot be, or is not, loaded";
        circumstances.unseen = vec![reason.to_owned()];
        reports.push(ProcessReport::unseen(
            "(not known)".to_owned(),
            circumstances,
        ));
    }
    for lost in lost {
        let is_first = lost.pid == first;
        let circumstances = Circumstances {
            pid: lost.pid,
            parent: lost.parent,
            generation: lost.generation,
            state: State::Ended,
            exit: is_first.then(|| tracked::exit_of(end)),
            unseen: vec![lost.reason.clone()],
        };
        reports.push(ProcessReport::unseen(lost.program.clone(), circumstances));
    }
    if !reports.iter().any(|report| report.pid == first) {
        let reason = unseen.unwrap_or_else(|| "the runtime did not start in it".to_owned());
        let circumstances = Circumstances {
            pid: first,
            parent: std::process::id(),
            generation: 0,
            state: State::Ended,
            exit: Some(tracked::exit_of(end)),
            unseen: vec![reason],
        };
        reports.insert(0, ProcessReport::unseen(program.to_owned(), circumstances));
    }
    reports
}

/// Rows of a descendant's tables.
const ROWS_OF_DESCENDANTS: usize = 5;

fn write(arguments: &Arguments, reports: &[ProcessReport]) -> Result<()> {
    let mut target: Box<dyn Write> = match &arguments.report {
        None => Box::new(std::io::stderr().lock()),
        Some(path) if path.as_os_str() == "-" => Box::new(std::io::stdout().lock()),
        Some(path) => {
            let file = std::fs::File::create(path);
            Box::new(file.with_context(|| format!("cannot create {}", path.display()))?)
        }
    };
    let is_terminal = match &arguments.report {
        None => std::io::stderr().is_terminal(),
        Some(path) => path.as_os_str() == "-" && std::io::stdout().is_terminal(),
    };
    let output = match arguments.listing.format {
        Format::Json => json(&reports)?,
        Format::Text => {
            let style = arguments.listing.style(is_terminal);
            let first = reports.first().map(|report| report.pid);
            let texts = reports.iter().map(|report| {
                let mut style = style;
                if Some(report.pid) != first {
                    style.rows = if arguments.listing.all {
                        usize::MAX
                    } else {
                        style.rows.min(ROWS_OF_DESCENDANTS)
                    };
                }
                text::render(report, style)
            });
            texts.collect::<Vec<_>>().join("\n")
        }
    };
    target.write_all(output.as_bytes())?;
    target.flush()?;
    Ok(())
}
