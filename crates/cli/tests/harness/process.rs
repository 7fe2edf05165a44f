//! Processes that run already: their output, their memory, and probes in them.

use super::pointee;
use serde_json::Value;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Output, Stdio};

/// Starts `command`, with pipes for input and output.
pub fn start(command: &[&str]) -> Child {
    Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

pub fn line(process: &mut Child) -> String {
    let output = process.stdout.as_mut().expect("a pipe");
    let (mut line, mut byte) = (Vec::new(), [0]);
    // Byte by byte, so that nothing is read ahead.
    while output.read(&mut byte).expect("reads") == 1 && byte != *b"\n" {
        line.extend(byte);
    }
    String::from_utf8(line).expect("UTF-8")
}

pub fn probe(pid: u32, options: &[&str]) -> Output {
    pointee()
        .args(["probe", "--format", "json", "--report", "-"])
        .args(["--pid", &pid.to_string()])
        .args(options)
        .output()
        .expect("runs")
}

/// Counts in `pid` for a moment; the answer is how often anything was come to.
pub fn count(pid: u32, options: &[&str]) -> u64 {
    let output = probe(pid, options);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    sum(&output.stdout, None)
}

/// The counts of a report, of one function or of all.
pub fn sum(report: &[u8], function: Option<&str>) -> u64 {
    let report: Value = serde_json::from_slice(report).expect("JSON");
    let modules = report["modules"].as_array().expect("modules").iter();
    modules
        .flat_map(|module| module["hits"].as_array().expect("hits"))
        .filter(|hit| function.is_none_or(|name| hit["function"] == name))
        .map(|hit| hit["count"].as_u64().expect("a number"))
        .sum()
}

pub fn maps(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs")
}

/// All code of `pid` is its files', and nothing of ours is mapped. Threads in a signal's handler may keep copies mapped, not pads.
pub fn assert_restored(pid: u32) {
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("opens");
    let mut compared = 0;
    for mapping in maps(pid).lines() {
        let words: Vec<&str> = mapping.split_whitespace().collect();
        let hex = |text: &str| u64::from_str_radix(text, 16).expect("hexadecimal");
        let [range, permissions, offset, _, _, path @ ..] = words.as_slice() else {
            panic!("{mapping}");
        };
        assert!(!permissions.contains("wx"), "{mapping}");
        let Some(path) = path.first().filter(|path| path.starts_with('/')) else {
            continue;
        };
        if !permissions.contains('x') || path.starts_with("/memfd") {
            continue;
        }
        let (start, end) = range.split_once('-').expect("a range");
        let mut now = vec![0; (hex(end) - hex(start)) as usize];
        memory.read_exact_at(&mut now, hex(start)).expect("reads");
        let file = std::fs::read(path).expect("reads");
        let from = hex(offset) as usize;
        let file = &file[from..file.len().min(from + now.len())];
        assert!(&now[..file.len()] == file, "{mapping}: code differs");
        compared += 1;
    }
    assert!(compared > 1, "the program and libraries");
}

/// Calls `hot` from four threads and a handler of signals while a fifth makes threads; says when it is ready, ends with status 7 when
/// its input ends.
pub const THREADS: &str = r#"
    #include <pthread.h>
    #include <signal.h>
    #include <stdio.h>
    #include <sys/time.h>
    #include <unistd.h>
    __attribute__((noinline)) long hot(long i) { __asm__ volatile("" : "+r"(i)); return i + 1; }
    static volatile long done, ticks;
    static void tick(int s) { ticks = hot(ticks); }
    static void *work(void *p) { long i = 0; while (!done) i = hot(i); return p; }
    static void *once(void *p) { hot(1); return p; }
    static void *makes(void *p) {
        while (!done) {
            pthread_t t;
            pthread_create(&t, 0, once, 0);
            pthread_join(t, 0);
            usleep(200);
        }
        return p;
    }
    int main(void) {
        signal(SIGALRM, tick);
        struct itimerval often = {{0, 2000}, {0, 2000}};
        setitimer(ITIMER_REAL, &often, 0);
        pthread_t t[5];
        for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, work, 0);
        pthread_create(&t[4], 0, makes, 0);
        puts("ready");
        fflush(stdout);
        char c;
        while (read(0, &c, 1) < 0);
        done = 1;
        for (int i = 0; i < 5; i++) pthread_join(t[i], 0);
        puts("done");
        return 7;
    }
"#;
