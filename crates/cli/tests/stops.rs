//! *At any moment, does the index say what is alive?* — held against an independent log.
//!
//! Each call is logged by somebody else into a file: by a preloaded library through which all calls go, or by the program itself where
//! the allocator is linked in. The program is stopped at random moments; then every live block's
//! base, size and site, and the bytes inside and between blocks, must be what the log says. A stop may fall into a call: that call's
//! blocks may be on either side, nothing else, and most stops must agree without this excuse.

mod harness;

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
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Debian packages of what is run here.
pub const PACKAGES: &[&str] = &[
    "gcc",
    "sqlite3",
    "lua5.4",
    "jq",
    "libjemalloc-dev",
    "libjemalloc2",
    "libmimalloc2.0",
    "libgoogle-perftools4",
];

/// No function that calls an allocator in `logged_calls.c` is longer.
const CALLER_LEN: u64 = 128;
const CALL: u64 = 40;
const HEADER: u64 = 24;
/// A hundred stops over three programs.
const STOPS: usize = 34;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Logged {
    size: u64,
    caller: u64,
}

/// What the log says, replayed as far as it was written.
struct Log {
    file: File,
    replayed: u64,
    /// Whether the program logs itself: then it says from which function, and what libraries allocate is not in the log.
    tells_callers: bool,
    live: BTreeMap<u64, Logged>,
    allocations: u64,
    frees: u64,
    bytes: u64,
    live_bytes: u64,
    peak: u64,
}

impl Log {
    fn create(path: &Path) -> Self {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .expect("a log");
        file.set_len(HEADER + CALL * 40_000_000)
            .expect("a sparse file");
        Self {
            file,
            replayed: 0,
            tells_callers: false,
            live: BTreeMap::new(),
            allocations: 0,
            frees: 0,
            bytes: 0,
            live_bytes: 0,
            peak: 0,
        }
    }

    fn words<const N: usize>(&self, at: u64) -> [u64; N] {
        let mut bytes = vec![0; N * 8];
        self.file.read_exact_at(&mut bytes, at).expect("the log");
        std::array::from_fn(|n| {
            u64::from_le_bytes(bytes[n * 8..n * 8 + 8].try_into().expect("8 bytes"))
        })
    }

    /// Replays what has ended. Returns whether a call is under way.
    fn catch_up(&mut self) -> bool {
        let [begun, ended, room] = self.words(0);
        assert!(begun < room, "the log is full");
        while self.replayed < ended {
            let call = self.words(HEADER + self.replayed * CALL);
            self.tells_callers |= call[3] != 0;
            self.replay(call);
            self.replayed += 1;
        }
        begun > ended
    }

    fn replay(&mut self, [operation, old, size, caller, block]: [u64; 5]) {
        const FREE: u64 = 3;
        // A failed reallocation leaves the old block alone.
        if old != 0 && (block != 0 || size == 0 || operation == FREE) {
            let before = self.live.remove(&old).expect("a block that is alive");
            self.frees += 1;
            self.live_bytes -= before.size;
        }
        if block != 0 {
            let before = self.live.insert(block, Logged { size, caller });
            assert_eq!(before, None, "one block twice");
            self.allocations += 1;
            self.bytes += size;
            self.live_bytes += size;
            self.peak = self.peak.max(self.live_bytes);
        }
    }
}

struct Subject {
    command: Vec<String>,
    preload: Vec<PathBuf>,
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
    blocks: usize,
}

/// Compares index and log of a stopped process.
fn compare(pid: u32, log: &mut Log, every_byte: bool, what: &str) -> Comparison {
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
    let mut missing = Vec::new();
    for (base, logged) in &log.live {
        match found.get(base) {
            Some(block) => assert_eq!(block.size, logged.size, "{what}: size of {base:#x}"),
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
    let step = if every_byte {
        1
    } else {
        found.len().div_ceil(400).max(1)
    };
    for (_, block) in found.iter().step_by(step) {
        let inside = if every_byte {
            block.size.min(1 << 12)
        } else {
            block.size.min(64)
        };
        for address in (block.base..block.base + inside).chain([block.base + block.size.max(1) - 1])
        {
            assert_eq!(at(address), Some(block.base), "{what}: {address:#x}");
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
    Comparison {
        exact: missing.is_empty() && extra.is_empty(),
        blocks: found.len(),
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
fn check(folder: &Path, subject: &Subject, what: &str) {
    let log_path = folder.join(format!("{what}.log"));
    let report = folder.join(format!("{what}.json"));
    let mut log = Log::create(&log_path);
    let mut command = pointee();
    command
        .args(["run", "--format", "json", "--report"])
        .arg(&report)
        .args(["--", "env"])
        .arg(format!("CALL_LOG={}", log_path.display()));
    if !subject.preload.is_empty() {
        let list: Vec<_> = subject
            .preload
            .iter()
            .map(|path| path.to_string_lossy())
            .collect();
        command.arg(format!("LD_PRELOAD={}", list.join(":")));
    }
    command
        .args(&subject.command)
        .stdout(Stdio::null())
        .stdin(Stdio::null());
    let mut supervisor = command.spawn().expect("starts");
    assert!(
        eventually(|| log.words::<3>(0)[0] > 1000),
        "{what}: nothing is logged"
    );
    let pid = child_of(supervisor.id()).expect("a program");
    let target = Pid::from_raw(pid as i32);
    let mut random = 0x2545_f491_4f6c_dd1d_u64 ^ u64::from(pid);
    let (mut exact, mut stops, mut most) = (0, 0, 0);
    loop {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_micros(random % 9000));
        kill(target, Signal::SIGSTOP).expect("runs for ever");
        // Who watches a program that stops, stops too; a late one of the two would wake the other at the wrong time.
        let stopped = || is_stopped(pid) && is_stopped(supervisor.id());
        assert!(eventually(stopped), "{what} does not stop");
        let comparison = compare(pid, &mut log, stops == STOPS / 2, what);
        exact += usize::from(comparison.exact);
        most = most.max(comparison.blocks);
        stops += 1;
        assert!(
            exact * 2 + 8 > stops,
            "{what}: only {exact} of {stops} stops agree without excuse"
        );
        // The last stop is one that falls into no call, so that the report can be held against the log.
        let last = stops >= STOPS && comparison.exact;
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
    eprintln!(
        "{what}: {stops} stops, {exact} exact, up to {most} blocks; {} allocations, peak {}",
        log.allocations, log.peak
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
// They go on until they are killed.
const SQL: &str = "create table t(a, b); create index i on t(b); \
                   with recursive c(x) as (select 1 union all select x + 1 from c) \
                   insert into t select x, hex(randomblob(x % 40)) from c;";
const LUA: &str =
    "local t, i = {}, 0 while true do i = i + 1 t[i % 5000] = {x = i, s = 'v' .. i} end";
const JQ: &str = "reduce range(1000000000) as $i ([]; .[$i % 3000] = {a: $i, b: ($i | tostring)})";

#[test]
fn programs_agree_with_the_log() {
    let rows: [(&str, &[&str]); 3] = [
        ("sqlite3", &["sqlite3", ":memory:", SQL]),
        ("lua", &["lua5.4", "-e", LUA]),
        ("jq", &["jq", "-n", JQ]),
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
            if skip_without(&format!("/usr/bin/{}", command[0])) {
                continue;
            }
            let subject = Subject {
                command: command.iter().map(|word| (*word).to_owned()).collect(),
                preload: std::iter::once(logger.clone())
                    .chain(next.map(PathBuf::from))
                    .collect(),
            };
            let what = format!(
                "{name}-on-{}",
                if next.is_some() { "jemalloc" } else { "libc" }
            );
            check(folder.path(), &subject, &what);
        }
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
            command: vec![
                program.to_string_lossy().into_owned(),
                "100000000".to_owned(),
            ],
            preload: preload.into_iter().collect(),
        };
        check(folder.path(), &subject, &what);
    }
}
