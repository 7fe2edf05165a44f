//! *At any moment, does the index say what is alive?* — held against independent witnesses.
//!
//! Each call is logged by somebody else into a file: by a preloaded library through which all calls go, or by the program itself where
//! the allocator is linked in. The program is stopped at random moments; then every live block's
//! base and size, the bytes inside and between blocks, and the peak must be what the log says. A stop may fall into a call: that call's
//! blocks may be on either side, nothing else, and most stops must agree without this excuse. Who allocated them is asked of
//! gdb, for some blocks of each stop ([`witness`]).
//!
//! `POINTEE_STOPS=100` stops each program that often and looks at every byte each time ([`Depth::Bytes`]); best with `--release`.

#[path = "stops/call_log.rs"]
mod call_log;
mod harness;
#[path = "stops/witness.rs"]
mod witness;

use call_log::Log;
use harness::{eventually, pointee};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pointee_index::layout::PAGE;
use pointee_index::read::Block;
use pointee_index::records::module_flags;
use pointee_index::{Index, Memory};
use pointee_inspect::memory::Region;
use pointee_inspect::process::ProcessData;
use pointee_inspect::running;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use witness::Said;

/// Debian packages of what is run here.
pub const PACKAGES: &[&str] = &[
    "gcc",
    "gdb",
    "sqlite3",
    "libsqlite3-dev",
    "lua5.4",
    "liblua5.4-dev",
    "jq",
    "libjemalloc-dev",
    "libjemalloc2",
    "libmimalloc2.0",
    "libgoogle-perftools4",
];

/// No function that calls an allocator in `logged_calls.c` is longer.
const CALLER_LEN: u64 = 128;
/// Blocks of each stop whose callers gdb is asked for.
const WITNESSED: usize = 5;

/// What is looked up at a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// The first [`BYTES`] bytes of some blocks.
    Sample,
    /// Every byte of every block; of those above [`LONG`], which take long, one in [`STRIDE`].
    Bytes,
    /// Every byte of every block.
    All,
}

const BYTES: u64 = 64;
const LONG: u64 = 16 << 10;
const STRIDE: usize = 61;

/// How often each program is stopped, and whether bytes are looked up each time.
fn thoroughness() -> (usize, bool) {
    let stops = std::env::var("POINTEE_STOPS").ok();
    match stops.and_then(|stops| stops.parse().ok()) {
        Some(stops) => (stops, true),
        None => (20, false),
    }
}

struct Subject {
    what: String,
    command: Vec<String>,
    preload: Vec<PathBuf>,
    /// Whether it does the same each time, so that gdb can be asked.
    repeats: bool,
    /// The log's own functions between an allocation's caller and the place where gdb looks.
    frames_of_the_log: usize,
    /// And those that lie between the caller and the hooked entry.
    frames_of_the_log_in_path: usize,
}

impl Subject {
    fn preloads(&self) -> Option<String> {
        let list: Vec<_> = self
            .preload
            .iter()
            .map(|path| path.to_string_lossy())
            .collect();
        (!list.is_empty()).then(|| list.join(":"))
    }
}

/// xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn built(folder: &Path, source: &str, to: &str, flags: &[&str]) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hazards");
    let made = folder.join(to);
    let status = Command::new("gcc")
        .args(["-g", "-O1", "-fno-builtin", "-pthread", "-o"])
        .arg(&made)
        .arg(sources.join(source))
        .args(flags)
        .status()
        .expect("gcc runs");
    assert!(status.success(), "{source} compiles");
    made
}

/// A copy of the pages of an index that were touched: millions of look-ups would be as many system calls else.
struct Pages(BTreeMap<u64, Vec<u8>>);

impl Pages {
    fn of(index: &Index<Region>) -> Self {
        let mut pages = BTreeMap::new();
        let region = index.memory();
        region.each_touched(0..index.layout().len, |at| {
            let mut page = vec![0; PAGE as usize];
            assert!(region.read(at, &mut page), "page {at:#x}");
            pages.insert(at, page);
        });
        Self(pages)
    }
}

impl Memory for Pages {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let inside = (at % PAGE) as usize;
            let (now, later) = rest.split_at_mut((PAGE as usize - inside).min(rest.len()));
            match self.0.get(&(at - at % PAGE)) {
                Some(page) => now.copy_from_slice(&page[inside..inside + now.len()]),
                None => now.fill(0),
            }
            at += now.len() as u64;
            rest = later;
        }
        true
    }

    fn next_touched(&self, offset: u64) -> Option<u64> {
        let (page, _) = self.0.range(offset - offset % PAGE..).next()?;
        Some(offset.max(*page))
    }
}

/// What one comparison found.
struct Comparison {
    /// Equal to the last block, without excuse.
    exact: bool,
    /// And in the middle of no call.
    quiet: bool,
    /// The stop fell between two counters of one event: as many blocks as the log has, but other bytes.
    torn: bool,
    blocks: usize,
    bytes: u64,
    /// What is said of blocks drawn at random, by the number of the call that made them.
    said: BTreeMap<u64, Said>,
}

/// Compares index and log of a stopped process.
fn compare(
    pid: u32,
    log: &mut Log,
    depth: Depth,
    random: &mut Random,
    subject: &Subject,
) -> Comparison {
    let what = &subject.what;
    let under_way = log.catch_up();
    let live = running::open(pid).expect("an index");
    let data = ProcessData::read(&live);
    let index = Index::open(Pages::of(&live)).expect("an index");
    let is_programs_own = |block: &Block| {
        let path = data.path_of(block.origin).map(|at| &data.paths[at]);
        let frame = path.and_then(|path| path.frames.first());
        let module = frame.and_then(|frame| data.modules.get(frame.module as usize));
        module.is_some_and(|module| module.flags & module_flags::EXECUTABLE != 0)
    };
    let mut found = BTreeMap::new();
    // With the blocks of libraries, which the log does not hold but which may lie next to one that it does.
    let mut starts = BTreeSet::new();
    index.each_block(|block| {
        starts.insert(block.base);
        if log.tells_callers && !is_programs_own(&block) {
            return;
        }
        assert_eq!(
            found.insert(block.base, block),
            None,
            "{what}: one block twice"
        );
    });
    let (mut missing, mut resized) = (Vec::new(), Vec::new());
    for (base, logged) in &log.live {
        match found.get(base) {
            Some(block) if block.size != logged.size => resized.push((*base, *block, *logged)),
            Some(_) => {}
            None => missing.push(*base),
        }
    }
    let extra: Vec<Block> = found
        .values()
        .filter(|block| !log.live.contains_key(&block.base))
        .copied()
        .collect();
    // One call may be between log and index: it takes one block away at most, and gives one at most.
    assert!(missing.len() <= 1, "{what}: {missing:x?} are missing");
    assert!(
        extra.len() <= usize::from(under_way),
        "{what}: {extra:x?} are too many"
    );
    // Such a call may have given a block another size where it lies.
    assert!(
        resized.len() <= usize::from(under_way),
        "{what}: other sizes in index and log: {resized:x?}"
    );

    let mut checked_sites = 0;
    for (base, logged) in log.live.iter().filter(|(_, logged)| logged.caller != 0) {
        let Some(block) = found.get(base) else {
            continue;
        };
        let path = data.path_of(block.origin).expect("a path");
        let frame = data.paths[path].frames.first().expect("a frame");
        let bias = data
            .modules
            .get(frame.module as usize)
            .map_or(0, |module| module.bias.0);
        let inside = frame
            .return_address
            .0
            .wrapping_add(bias)
            .wrapping_sub(logged.caller);
        assert!(
            (1..CALLER_LEN).contains(&inside),
            "{what}: {base:#x} comes from the function at {:#x}, not from {:x?}",
            logged.caller,
            data.paths[path]
        );
        checked_sites += 1;
    }
    assert!(log.live.values().all(|logged| logged.caller == 0) || checked_sites > 0);

    // A byte belongs to the block that the log says, whatever lies around it.
    let at = |address: u64| index.block_at(address).map(|block| block.base);
    let step = match depth {
        Depth::Sample => found.len().div_ceil(400).max(1),
        Depth::Bytes | Depth::All => 1,
    };
    let mut bytes = 0;
    for (_, block) in found.iter().step_by(step) {
        let last = block.base + block.size.max(1) - 1;
        let (end, stride) = match depth {
            Depth::Sample => (last.min(block.base + BYTES), 1),
            Depth::Bytes if block.size > LONG => (last, STRIDE),
            Depth::Bytes | Depth::All => (last, 1),
        };
        for address in (block.base..=end).step_by(stride).chain([last]) {
            assert_eq!(at(address), Some(block.base), "{what}: {address:#x}");
            bytes += 1;
        }
        let after = block.base + block.size.max(1);
        let expect = starts.get(&after).copied();
        assert_eq!(
            at(after),
            expect,
            "{what}: behind the block at {:#x}",
            block.base
        );
    }

    let exact = missing.is_empty() && extra.is_empty() && resized.is_empty();
    // The log ends a call before the hook does: counters may be one call behind, and then say nothing here.
    let live = data.total.live();
    let is_counted = log.tells_callers || live.blocks == log.live.len() as u64;
    let comparable = exact && !under_way && is_counted && !log.tells_callers;
    let torn = comparable && live.bytes != log.live_bytes;
    if comparable {
        assert!(data.peak_bytes <= log.peak, "{what}: peak");
    }
    let mut said = BTreeMap::new();
    if exact && subject.repeats {
        let logged: Vec<_> = log.live.iter().collect();
        let drawn: Vec<_> = (0..WITNESSED)
            .map(|_| logged[random.below(logged.len() as u64) as usize])
            .collect();
        let blocks: Vec<_> = drawn
            .iter()
            .map(|(base, _)| {
                let path = data.path_of(found[base].origin).expect("a path");
                (**base, &data.paths[path])
            })
            .collect();
        let numbers = drawn.iter().map(|(_, logged)| logged.number);
        said.extend(numbers.zip(witness::said_of(pid, &data, &blocks)));
    }
    Comparison {
        exact,
        quiet: exact && !under_way && is_counted && !torn,
        torn,
        blocks: found.len(),
        bytes,
        said,
    }
}

fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

fn is_stopped(pid: u32) -> bool {
    state(pid) == Some('T')
}

fn is_asleep(pid: u32) -> bool {
    state(pid) == Some('S')
}

fn child_of(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Runs the subject under `run`, stops it again and again, and compares; at its end the totals and the peak too.
fn check(folder: &Path, subject: &Subject) {
    let what = &subject.what;
    let (wanted, thorough) = thoroughness();
    let log_path = folder.join(format!("{what}.log"));
    let report = folder.join(format!("{what}.json"));
    let mut log = Log::create(&log_path);
    let mut command = pointee();
    command
        .args(["run", "--format", "json", "--report"])
        .arg(&report)
        .args(["--", "env"])
        .arg(format!("CALL_LOG={}", log_path.display()));
    if let Some(preload) = subject.preloads() {
        command.arg(format!("LD_PRELOAD={preload}"));
    }
    command
        .args(&subject.command)
        .stdout(Stdio::null())
        .stdin(Stdio::null());
    let mut supervisor = command.spawn().expect("starts");
    assert!(
        eventually(|| log.begun() > 1000),
        "{what}: nothing is logged"
    );
    let pid = child_of(supervisor.id()).expect("a program");
    let target = Pid::from_raw(pid as i32);
    let mut random = Random(0x2545_f491_4f6c_dd1d ^ u64::from(pid));
    let (mut torn, mut exact, mut stops, mut most, mut bytes) = (0, 0, 0, 0, 0);
    let mut said = BTreeMap::new();
    loop {
        std::thread::sleep(Duration::from_micros(random.below(9000)));
        kill(target, Signal::SIGSTOP).expect("runs for ever");
        // Who watches a program that stops, stops too; a late one of the two would wake the other at the wrong time.
        let stopped = || is_stopped(pid) && is_stopped(supervisor.id());
        assert!(eventually(stopped), "{what} does not stop");
        let depth = match (stops == wanted / 2, thorough) {
            (true, _) => Depth::All,
            (false, true) => Depth::Bytes,
            (false, false) => Depth::Sample,
        };
        let comparison = compare(pid, &mut log, depth, &mut random, subject);
        exact += usize::from(comparison.exact);
        torn += usize::from(comparison.torn);
        assert!(
            torn <= 1 + stops / 20,
            "{what}: {torn} of {stops} stops with other live bytes"
        );
        most = most.max(comparison.blocks);
        bytes += comparison.bytes;
        said.extend(comparison.said);
        stops += 1;
        assert!(
            exact * 2 + 8 > stops,
            "{what}: only {exact} of {stops} stops agree without excuse"
        );
        // The last stop is one that falls into no call, so that the report can be held against the log.
        let last = stops >= wanted && comparison.quiet;
        if last {
            kill(target, Signal::SIGKILL).expect("ends");
        }
        kill(Pid::from_raw(supervisor.id() as i32), Signal::SIGCONT).expect("goes on");
        if last {
            break;
        }
        kill(target, Signal::SIGCONT).expect("goes on");
        let running = || !is_stopped(pid) && is_asleep(supervisor.id());
        assert!(eventually(running), "{what} does not go on");
    }
    supervisor.wait().expect("ends");

    let text = std::fs::read(&report).expect("a report");
    let reports: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let last = reports
        .as_array()
        .and_then(|reports| reports.last())
        .expect("a report");
    let sum = |field: &str| -> u64 {
        let sites = last["sites"].as_array().expect("sites");
        let own = sites
            .iter()
            .filter(|site| !log.tells_callers || site["module"] == subject.command[0]);
        own.filter_map(|site| site[field].as_u64()).sum()
    };
    // What libraries hold since before the log began.
    let foreign = last["totals"]["live_bytes"].as_u64().expect("a number") - sum("live_bytes");
    let rows = [
        ("allocations", sum("allocations"), log.allocations),
        ("frees", sum("frees"), log.frees),
        ("bytes_allocated", sum("bytes_allocated"), log.bytes),
        ("live", sum("live"), log.live.len() as u64),
        ("live_bytes", sum("live_bytes"), log.live_bytes),
        (
            "peak_bytes",
            last["totals"]["peak_bytes"].as_u64().expect("a number"),
            log.peak + foreign,
        ),
    ];
    for (field, found, expect) in rows {
        assert_eq!(found, expect, "{what}: {field} at the end");
    }
    let frames = if said.is_empty() {
        0
    } else {
        witness::agrees(folder, subject, &log, &said)
    };
    eprintln!(
        "{what}: {stops} stops, {exact} without excuse, up to {most} blocks, {bytes} bytes looked up; \
         {} sites and {frames} frames as gdb sees them; {} allocations, peak {}",
        said.len(),
        log.allocations,
        log.peak
    );
    let _ = std::fs::remove_file(log_path);
}

fn skip_without(path: &str) -> bool {
    let missing = !Path::new(path).exists();
    if missing {
        eprintln!("SKIPPED: there is no {path}");
    }
    missing
}

const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
// They go on until they are killed, and do the same each time.
const SQL: &str = "create table t(a integer primary key, b); create index i on t(b); \
                   with recursive c(x) as (select 1 union all select x + 1 from c) \
                   replace into t select x % 2000, printf('%.*c%d', x % 40, 'x', x * 7919 % 10007) from c;";
const LUA: &str =
    "local t, i = {}, 0 while true do i = i + 1 t[i % 5000] = {x = i, s = 'v' .. i} end";
const JQ: &str = "reduce range(1000000000) as $i ([]; .[$i % 3000] = {a: $i, b: ($i | tostring)})";

#[test]
fn programs_agree_with_the_log() {
    let rows: [(&str, &[&str]); 3] = [
        ("sqlite3", &["/usr/bin/sqlite3", ":memory:", SQL]),
        ("lua", &["/usr/bin/lua5.4", "-e", LUA]),
        ("jq", &["/usr/bin/jq", "-n", JQ]),
    ];
    let jemalloc = format!("{LIBRARIES}/libjemalloc.so.2");
    for next in [None, Some(jemalloc.as_str())] {
        if next.is_some_and(skip_without) {
            continue;
        }
        let folder = TempDir::new().expect("a folder");
        let logger = built(
            folder.path(),
            "logging_malloc.c",
            "logging.so",
            &["-shared", "-fPIC"],
        );
        for (name, command) in &rows {
            if skip_without(command[0]) {
                continue;
            }
            let subject = Subject {
                what: format!("{name}-on-{}", next.map_or("libc", |_| "jemalloc")),
                command: command.iter().map(|word| (*word).to_owned()).collect(),
                preload: std::iter::once(logger.clone())
                    .chain(next.map(PathBuf::from))
                    .collect(),
                repeats: true,
                frames_of_the_log: 3,
                frames_of_the_log_in_path: 0,
            };
            check(folder.path(), &subject);
        }
    }
}

#[test]
fn engines_with_jemalloc_linked_in_agree_with_the_log() {
    let archive = format!("{LIBRARIES}/libjemalloc.a");
    let folder = TempDir::new().expect("a folder");
    let log = folder.path().join("log.o");
    built(folder.path(), "logging_wrap.c", "log.o", &["-c"]);
    let rows = [
        ("sqlite", "-DSQLITE", "libsqlite3.a", SQL),
        ("lua", "-DLUA", "liblua5.4.a", LUA),
    ];
    for (name, define, engine, program) in rows {
        let engine = format!("{LIBRARIES}/{engine}");
        if [&archive, &engine]
            .into_iter()
            .any(|path| skip_without(path))
        {
            continue;
        }
        let flags = [
            define,
            &log.to_string_lossy(),
            "-Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=free",
            &engine,
            &archive,
            "-lm",
            "-lstdc++",
            "-ldl",
        ];
        let linked = built(folder.path(), "engine.c", name, &flags);
        let subject = Subject {
            what: format!("{name}-with-jemalloc-linked-in"),
            command: vec![linked.to_string_lossy().into_owned(), program.to_owned()],
            preload: Vec::new(),
            repeats: true,
            frames_of_the_log: 3,
            frames_of_the_log_in_path: 1,
        };
        check(folder.path(), &subject);
    }
}

#[test]
fn other_allocators_agree_with_the_log() {
    let folder = TempDir::new().expect("a folder");
    let plain = built(folder.path(), "logged_calls.c", "logged", &[]);
    let mut rows = vec![("libc".to_owned(), plain.clone(), None)];
    for library in ["libjemalloc.so.2", "libmimalloc.so.2", "libtcmalloc.so.4"] {
        let path = format!("{LIBRARIES}/{library}");
        if !skip_without(&path) {
            rows.push((library.to_owned(), plain.clone(), Some(PathBuf::from(path))));
        }
    }
    let archive = format!("{LIBRARIES}/libjemalloc.a");
    if !skip_without(&archive) {
        let flags = [&*archive, "-lm", "-lstdc++", "-ldl"];
        let linked = built(folder.path(), "logged_calls.c", "linked", &flags);
        rows.push(("jemalloc-linked-in".to_owned(), linked, None));
    }
    for (what, program, preload) in rows {
        let subject = Subject {
            what,
            command: vec![
                program.to_string_lossy().into_owned(),
                "100000000".to_owned(),
            ],
            preload: preload.into_iter().collect(),
            // Its own functions call the allocator: the log says which.
            repeats: false,
            frames_of_the_log: 0,
            frames_of_the_log_in_path: 0,
        };
        check(folder.path(), &subject);
    }
}
