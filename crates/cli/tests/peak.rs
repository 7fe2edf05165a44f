//! *What was alive at the highest point, block by block?* — held against an independent log, and against what
//! programs say of themselves.
//!
//! A snapshot's peak is the last first free before which the heap was 1 % higher than at the one before; so its bytes are
//! within 1 % of the highest, and 64 KiB for each further thread.

#[path = "stops/call_log.rs"]
mod call_log;
mod harness;

use call_log::Log;
use harness::{compile, pointee};
use pointee_inspect::process::ProcessData;
use pointee_inspect::snapshot::Snapshot;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

/// Debian packages of what is run here.
pub const PACKAGES: &[&str] = &["gcc", "sqlite3", "jq", "groff-base"];

/// The blocks of a snapshot, and what it says of the highest point.
struct Peak {
    /// Sizes by base.
    blocks: BTreeMap<u64, u64>,
    /// Bytes at the captured moment, as counted by origin.
    captured: u64,
    highest: u64,
}

impl Peak {
    fn of(file: &Path) -> Self {
        let snapshot = Snapshot::open(file).expect("a snapshot");
        assert!(snapshot.info.at_peak && snapshot.info.blocks_at_peak);
        let data = ProcessData::read(&snapshot.index);
        let mut blocks = BTreeMap::new();
        snapshot.index.each_block(|block| {
            assert_eq!(blocks.insert(block.base, block.size), None, "twice");
        });
        Self {
            blocks,
            captured: data.total.peak.bytes,
            highest: data.peak_bytes,
        }
    }

    fn bytes(&self) -> u64 {
        self.blocks.values().sum()
    }
}

/// Runs `command` for a snapshot of its peak in `file`.
fn run(file: &Path, command: &[&str]) -> Output {
    pointee()
        .args(["run", "--report", "/dev/null", "--snapshot-at", "peak"])
        .arg("--snapshot")
        .arg(file)
        .arg("--")
        .args(command)
        .output()
        .expect("runs")
}

#[test]
fn blocks_of_real_programs_are_those_of_the_log() {
    let folder = TempDir::new().expect("a folder");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hazards/logging_malloc.c");
    let logger = folder.path().join("logging.so");
    let status = Command::new("gcc")
        .args(["-O1", "-fno-builtin", "-shared", "-fPIC", "-o"])
        .args([&logger, &source])
        .status()
        .expect("gcc runs");
    assert!(status.success(), "the logger compiles");
    let text = folder.path().join("text.roff");
    let lines: Vec<String> = (0..3000).map(|n| format!(".ds s{n} word\n")).collect();
    std::fs::write(&text, lines.concat() + "\\*(s1\n.bp\n").expect("writes");
    let sql = "create table t(a integer primary key, b); create index i on t(b); \
               with recursive c(x) as (select 1 union all select x + 1 from c limit 20000) \
               insert into t select x, printf('%.*c%d', x % 40, 'x', x * 7919 % 10007) from c; \
               delete from t where a % 3 = 0; select count(*), max(b) from t;";
    let filter = "[range(20000) | {a: ., b: (. | tostring)}] | group_by(.a % 7) | map(length)";
    let text = text.to_string_lossy();
    let rows: [(&str, &[&str]); 3] = [
        ("sqlite3", &["/usr/bin/sqlite3", ":memory:", sql]),
        ("jq", &["/usr/bin/jq", "-nc", filter]),
        // Written in C++.
        ("troff", &["/usr/bin/troff", &text]),
    ];
    for (name, command) in rows {
        let file = folder.path().join(format!("{name}.pointee"));
        let log_path = folder.path().join(format!("{name}.log"));
        let mut log = Log::create(&log_path);
        let log_variable = format!("CALL_LOG={}", log_path.display());
        let preload = format!("LD_PRELOAD={}", logger.display());
        let mut whole = vec!["env", &log_variable, &preload];
        whole.extend(command);
        let output = run(&file, &whole);
        assert!(output.status.success(), "{name}: {output:?}");
        let peak = Peak::of(&file);
        assert_eq!(peak.bytes(), peak.captured, "{name}: bytes");
        assert!(
            peak.captured >= peak.highest - peak.highest / 100,
            "{name}: {} of {}",
            peak.captured,
            peak.highest
        );
        // The moment is that before some call of the log.
        let mut agreed = false;
        while log.next() {
            agreed |= log.live_bytes == peak.captured && log.live.len() == peak.blocks.len() && {
                let logged = log.live.iter().map(|(base, block)| (*base, block.size));
                logged.eq(peak.blocks.iter().map(|(base, size)| (*base, *size)))
            };
        }
        assert_eq!(log.peak, peak.highest, "{name}: the highest");
        assert!(agreed, "{name}: the heap was never like this");
        eprintln!(
            "{name}: {} blocks of {} bytes, the highest is {}",
            peak.blocks.len(),
            peak.captured,
            peak.highest
        );
    }
}

const GROWING: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCKS = 20000 };
struct share { void *blocks[BLOCKS]; size_t sizes[BLOCKS]; };
static struct share *shares;
static pthread_barrier_t grown;

/* Grows and gives back on the way; then all threads give back at once. */
static void *work(void *argument)
{
    struct share *share = argument;
    for (int i = 0; i < BLOCKS; i++) {
        share->sizes[i] = 16 + (i * 7919 + (share - shares) * 31) % 300;
        share->blocks[i] = malloc(share->sizes[i]);
        if (i % 5 == 4) {
            free(share->blocks[i - 2]);
            share->blocks[i - 2] = NULL;
        }
        if (i % 7 == 6 && share->blocks[i])
            share->blocks[i] = realloc(share->blocks[i], share->sizes[i] += 100);
    }
    pthread_barrier_wait(&grown);
    pthread_barrier_wait(&grown);
    for (int i = 0; i < BLOCKS; i++)
        free(share->blocks[i]);
    return NULL;
}

static void grow(int threads)
{
    pthread_t ids[threads];
    shares = calloc(threads, sizeof *shares);
    pthread_barrier_init(&grown, NULL, threads + 1);
    for (long t = 0; t < threads; t++)
        pthread_create(&ids[t], NULL, work, &shares[t]);
    pthread_barrier_wait(&grown);
    for (int t = 0; t < threads; t++)
        for (int i = 0; i < BLOCKS; i++)
            if (shares[t].blocks[i])
                printf("%d %p %zu\n", getpid(), shares[t].blocks[i], shares[t].sizes[i]);
    fflush(stdout);
    pthread_barrier_wait(&grown);
    for (int t = 0; t < threads; t++)
        pthread_join(ids[t], NULL);
    free(shares);
}

int main(int count, char **words)
{
    int threads = atoi(words[1]);
    if (!strcmp(words[2], "fork")) {
        void *kept = malloc(5000);
        if (fork() == 0) {
            printf("%d %p %d\n", getpid(), kept, 5000);
            grow(threads);
            free(kept);
            return 0;
        }
        wait(NULL);
        free(kept);
    } else if (!strcmp(words[2], "killed")) {
        struct share *share = shares = calloc(1, sizeof *shares);
        alarm(1); /* its action is to end the process */
        for (size_t size = 1000;; size += 10)
            for (int i = 0; i < BLOCKS; i += 1 + size % 7) {
                free(share->blocks[i]);
                share->blocks[i] = malloc(size);
            }
    } else {
        grow(threads);
    }
}
"#;

/// Blocks that the program says were alive at its highest point, by process.
fn told(output: &Output) -> BTreeMap<u32, BTreeMap<u64, u64>> {
    let mut told: BTreeMap<u32, BTreeMap<u64, u64>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let base = u64::from_str_radix(words[1].trim_start_matches("0x"), 16).expect("an address");
        told.entry(words[0].parse().expect("a process"))
            .or_default()
            .insert(base, words[2].parse().expect("a size"));
    }
    told
}

#[test]
fn threads_and_children_are_seen_at_their_highest() {
    let (folder, program) = compile(GROWING, &["-pthread", "-fno-builtin"]);
    let program = program.to_string_lossy();
    for (threads, how) in [(1, "plain"), (4, "plain"), (1, "fork"), (3, "fork")] {
        let what = format!("{threads} threads, {how}");
        let file = folder.path().join(&what);
        let output = run(&file, &[&program, &threads.to_string(), how]);
        assert!(output.status.success(), "{what}: {output:?}");
        let told = told(&output);
        let (pid, expect) = told.iter().next().expect("one process");
        let file = match how {
            "fork" => folder.path().join(format!("{what}.{pid}")),
            _ => file,
        };
        let peak = Peak::of(&file);
        assert_eq!(peak.bytes(), peak.captured, "{what}: bytes");
        let late = peak.highest / 100 + (64 << 10) * (threads - 1);
        assert!(
            peak.captured + late >= peak.highest,
            "{what}: {} of {}",
            peak.captured,
            peak.highest
        );
        // What was told of a moment that may be so much later: all but that much of it is there.
        let seen: u64 = expect
            .iter()
            .filter(|(base, size)| peak.blocks.get(base) == Some(size))
            .map(|(_, size)| size)
            .sum();
        let all: u64 = expect.values().sum();
        assert!(seen + late >= all, "{what}: {seen} of {all}");
        eprintln!(
            "{what}: {seen} of {all} bytes told, {} captured, {} the highest",
            peak.captured, peak.highest
        );
    }
}

#[test]
fn a_program_killed_while_it_grows_has_its_highest_point() {
    let (folder, program) = compile(GROWING, &["-pthread", "-fno-builtin"]);
    let file = folder.path().join("killed");
    let output = run(&file, &[&program.to_string_lossy(), "1", "killed"]);
    assert!(!output.status.success(), "ended by its alarm");
    let peak = Peak::of(&file);
    // If it is highest at its end, it may have ended between a block and its counters.
    assert!(peak.captured.abs_diff(peak.bytes()) < 1 << 20);
    assert!(peak.captured >= peak.highest - peak.highest / 100);
}
