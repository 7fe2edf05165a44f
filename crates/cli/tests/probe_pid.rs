//! `pointee probe --pid`: counters in processes that run already, and none of it left.

mod harness;

use harness::{compile, pointee};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Starts `command`, with pipes for input and output.
fn start(command: &[&str]) -> Child {
    Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn line(process: &mut Child) -> String {
    let output = process.stdout.as_mut().expect("a pipe");
    let (mut line, mut byte) = (Vec::new(), [0]);
    // Byte by byte, so that nothing is read ahead.
    while output.read(&mut byte).expect("reads") == 1 && byte != *b"\n" {
        line.extend(byte);
    }
    String::from_utf8(line).expect("UTF-8")
}

fn probe(pid: u32, options: &[&str]) -> Output {
    pointee()
        .args(["probe", "--format", "json", "--report", "-"])
        .args(["--pid", &pid.to_string()])
        .args(options)
        .output()
        .expect("runs")
}

/// Counts in `pid` for a moment; the answer is how often anything was come to.
fn count(pid: u32, options: &[&str]) -> u64 {
    let output = probe(pid, options);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    sum(&output.stdout, None)
}

/// The counts of a report, of one function or of all.
fn sum(report: &[u8], function: Option<&str>) -> u64 {
    let report: Value = serde_json::from_slice(report).expect("JSON");
    let modules = report["modules"].as_array().expect("modules").iter();
    modules
        .flat_map(|module| module["hits"].as_array().expect("hits"))
        .filter(|hit| function.is_none_or(|name| hit["function"] == name))
        .map(|hit| hit["count"].as_u64().expect("a number"))
        .sum()
}

fn maps(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs")
}

/// All code of `pid` is its files', and nothing of ours is mapped. Threads in a signal's handler may keep copies mapped, not pads.
fn assert_restored(pid: u32) {
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

const THREADS: &str = r#"
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

#[test]
fn threads_in_a_hot_function_are_counted_a_hundred_times() {
    let (_folder, program) = compile(THREADS, &["-pthread"]);
    let mut process = start(&[program.to_str().expect("UTF-8")]);
    assert_eq!(line(&mut process), "ready");
    for round in 0..100 {
        let at = ["entry", "instruction"][round % 2];
        let options = ["--module", "program", "--at", at, "--seconds", "0.02"];
        assert!(count(process.id(), &options) > 0, "round {round}");
    }
    assert_restored(process.id());
    drop(process.stdin.take());
    assert_eq!(line(&mut process), "done");
    assert_eq!(process.wait().expect("ends").code(), Some(7));
}

#[test]
fn xz_with_two_threads_writes_the_same_bytes() {
    let command = ["xz", "-T2", "-2", "--block-size=1MiB", "-c"];
    // Text of which no two lines are alike.
    let chunk: String = (0..40_000u64)
        .map(|i| format!("{:x} line\n", i.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect();
    let mut xz = start(&command);
    let (mut input, mut output) = (xz.stdin.take(), xz.stdout.take());
    let done = std::sync::atomic::AtomicBool::new(false);
    let ordering = std::sync::atomic::Ordering::Relaxed;
    let (fed, written) = std::thread::scope(|scope| {
        let feeder = scope.spawn(|| {
            let mut pipe = input.take().expect("a pipe");
            let mut fed = 0;
            while !done.load(ordering) {
                pipe.write_all(chunk.as_bytes()).expect("writes");
                fed += 1;
            }
            fed
        });
        let reader = scope.spawn(|| {
            let mut written = Vec::new();
            let mut pipe = output.take().expect("a pipe");
            pipe.read_to_end(&mut written).expect("reads");
            written
        });
        let mut counted = 0;
        for _ in 0..20 {
            counted += count(xz.id(), &["--module", "liblzma*", "--seconds", "0.05"]);
            assert_restored(xz.id());
        }
        done.store(true, ordering);
        assert!(counted > 0);
        (feeder.join().expect("feeds"), reader.join().expect("reads"))
    });
    assert!(xz.wait().expect("ends").success());
    let mut plain = start(&command);
    let mut pipe = plain.stdin.take().expect("a pipe");
    let same = std::thread::scope(|scope| {
        scope.spawn(move || {
            (0..fed).for_each(|_| pipe.write_all(chunk.as_bytes()).expect("writes"))
        });
        plain.wait_with_output().expect("ends").stdout == written
    });
    assert!(same, "the output differs");
}

#[test]
fn interpreters_compute_the_same() {
    let perl = "$| = 1; print qq(ready\n); $s = 0; $SIG{ALRM} = sub { $end = 1 }; \
        while (!$end) { %h = map { $_ => $_ * 2 } 1 .. 50; $n = 0; $n += $_ for values %h; $bad = 1 if $n != 2550 } \
        print $bad ? qq(wrong\n) : qq(right\n)";
    let mut process = start(&["perl", "-e", perl]);
    assert_eq!(line(&mut process), "ready");
    let pid = process.id();
    for round in 0..20 {
        let options: &[&str] = match round % 10 {
            9 => &[
                "--at",
                "instruction",
                "--module",
                "perl*",
                "--function",
                "Perl_p*",
            ],
            _ => &["--module", "perl*", "--function", "Perl_*"],
        };
        let options = [options, &["--seconds", "0.05"]].concat();
        assert!(count(pid, &options) > 0, "round {round}");
        assert_restored(pid);
    }
    let killed = Command::new("kill")
        .args(["-ALRM", &pid.to_string()])
        .status();
    assert!(killed.expect("runs").success());
    assert_eq!(line(&mut process), "right");
    assert!(process.wait().expect("ends").success());
}

const FORKS: &str = r#"
    #include <stdio.h>
    #include <unistd.h>
    __attribute__((noinline)) long hot(long i) { __asm__ volatile("" : "+r"(i)); return i + 1; }
    int main(void) {
        char c;
        puts("ready");
        fflush(stdout);
        read(0, &c, 1);
        pid_t child = fork();
        if (child == 0) for (long i = 0; ; usleep(100)) { alarm(60); i = hot(i); }
        printf("%d\n", child);
        fflush(stdout);
        read(0, &c, 1);
    }
"#;

#[test]
fn what_it_forks_is_counted_and_restored() {
    let (_folder, program) = compile(FORKS, &[]);
    let mut process = start(&[program.to_str().expect("UTF-8")]);
    assert_eq!(line(&mut process), "ready");
    let prober = pointee()
        .args(["probe", "--format", "json", "--report", "-"])
        .args(["--pid", &process.id().to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !maps(process.id()).contains("pointee-counters") {
        assert!(Instant::now() < deadline, "not attached");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Not before all of it is written: it stands until then, and reads nothing.
    let mut input = process.stdin.take().expect("a pipe");
    input.write_all(b"x").expect("writes");
    let child: u32 = line(&mut process).parse().expect("a number");
    std::thread::sleep(Duration::from_millis(300));
    let interrupted = Command::new("kill")
        .args(["-INT", &prober.id().to_string()])
        .status();
    assert!(interrupted.expect("runs").success());
    let output = prober.wait_with_output().expect("ends");
    assert!(output.status.success());
    for pid in [process.id(), child] {
        assert_restored(pid);
        assert!(!maps(pid).contains("pointee"), "{}", maps(pid));
    }
    let killed = Command::new("kill").arg(child.to_string()).status();
    assert!(killed.expect("runs").success());
    assert!(
        sum(&output.stdout, Some("hot")) > 0,
        "only the child calls it"
    );
    drop(input);
    assert!(process.wait().expect("ends").code().is_some());
}

#[test]
fn what_cannot_be_traced_is_refused_in_words() {
    let filtered = r#"
        #include <stdio.h>
        #include <linux/seccomp.h>
        #include <sys/prctl.h>
        #include <unistd.h>
        int main(void) {
            puts("ready");
            fflush(stdout);
            prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
            char c;
            read(0, &c, 1);
        }
    "#;
    let (_folder, program) = compile(filtered, &[]);
    let mut process = start(&[program.to_str().expect("UTF-8")]);
    assert_eq!(line(&mut process), "ready");
    let deadline = Instant::now() + Duration::from_secs(60);
    let mode = || std::fs::read_to_string(format!("/proc/{}/status", process.id()));
    while !mode().expect("reads").contains("Seccomp:\t1") {
        assert!(Instant::now() < deadline, "no filter");
        std::thread::sleep(Duration::from_millis(10));
    }
    let rows = [
        (process.id(), "seccomp"),
        // No process has the highest number that there can be (proc(5), pid_max).
        (1 << 22, "may not be looked at, or is none"),
    ];
    for (pid, words) in rows {
        let output = probe(pid, &["--seconds", "0.1"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{errors}");
        assert!(errors.contains(words), "{words}: {errors}");
    }
    let _ = process.kill();
    let _ = process.wait();
}
