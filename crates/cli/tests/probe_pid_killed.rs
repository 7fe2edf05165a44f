//! `pointee probe --pid` when somebody ends at an unforeseen moment: the process, or the command.

mod harness;

use harness::process::{THREADS, assert_restored, line, maps, start, sum};
use harness::{compile, pointee};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Whatever is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Begins to count in the program of `pid`.
fn prober(pid: u32) -> Child {
    pointee()
        .args(["probe", "--format", "json", "--report", "-"])
        .args(["--module", "program", "--pid", &pid.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts")
}

fn send(signal: &str, pid: u32) {
    let status = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status();
    assert!(status.expect("runs").success());
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The output of `command`, which ends by itself.
fn ended(mut command: Child) -> Output {
    until("ended", || command.try_wait().expect("waits").is_some());
    command.wait_with_output().expect("reads")
}

/// Whether `pid` has probes, and runs.
fn has_probes(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    maps(pid).contains("pointee-counters")
        && status.is_ok_and(|status| status.contains("TracerPid:\t0"))
}

/// How long it takes about until probes are in `program`, and out again.
fn usual(program: &str) -> (Duration, Duration) {
    let mut process = start(&[program]);
    assert_eq!(line(&mut process), "ready");
    let begun = Instant::now();
    let prober = prober(process.id());
    until("attached", || has_probes(process.id()));
    let attached = begun.elapsed();
    send("-INT", prober.id());
    let asked = Instant::now();
    assert!(ended(prober).status.success());
    let detached = asked.elapsed();
    drop(process.stdin.take());
    assert!(process.wait().expect("ends").code().is_some());
    (attached, detached)
}

/// Moments from the beginning to some time after `around`, most of them near it.
fn moments(around: Duration, count: u32) -> impl Iterator<Item = Duration> {
    (0..count).map(move |number| around * (count + number) * 2 / (3 * count))
}

#[test]
fn the_process_is_killed_at_any_moment_of_attaching() {
    let (_folder, program) = compile(THREADS, &["-pthread"]);
    let program = program.to_str().expect("UTF-8");
    for moment in moments(usual(program).0, 16) {
        let mut process = start(&[program]);
        assert_eq!(line(&mut process), "ready");
        let prober = prober(process.id());
        std::thread::sleep(moment);
        process.kill().expect("kills");
        let output = ended(prober);
        let errors = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => {}
            Some(125) => assert!(
                errors.contains("has ended") || errors.contains("is none"),
                "{moment:?}: {errors}"
            ),
            status => panic!("{moment:?}: {status:?}, {errors}"),
        }
        assert_eq!(process.wait().expect("ends").signal(), Some(9));
    }
}

#[test]
fn the_process_is_killed_while_it_has_probes_and_while_they_are_taken_away() {
    let (_folder, program) = compile(THREADS, &["-pthread"]);
    let program = program.to_str().expect("UTF-8");
    let (_, detaching) = usual(program);
    for (number, moment) in moments(detaching, 12).enumerate() {
        let mut process = start(&[program]);
        assert_eq!(line(&mut process), "ready");
        let prober = prober(process.id());
        until("attached", || has_probes(process.id()));
        std::thread::sleep(Duration::from_millis(20));
        if number > 0 {
            send("-INT", prober.id());
            std::thread::sleep(moment);
        }
        process.kill().expect("kills");
        let output = ended(prober);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{moment:?}: {errors}");
        assert!(
            sum(&output.stdout, Some("hot")) > 0,
            "what was counted stays"
        );
        assert_eq!(process.wait().expect("ends").signal(), Some(9));
    }
}

#[test]
fn the_command_is_killed_at_any_moment_and_the_process_runs_on_as_before() {
    let (_folder, program) = compile(THREADS, &["-pthread"]);
    let program = program.to_str().expect("UTF-8");
    let (attaching, _) = usual(program);
    let mut process = start(&[program]);
    assert_eq!(line(&mut process), "ready");
    let pid = process.id();
    for (number, moment) in moments(attaching, 24).enumerate() {
        let signal = ["-KILL", "-TERM", "-INT"][number % 3];
        let prober = prober(pid);
        std::thread::sleep(moment);
        send(signal, prober.id());
        let output = ended(prober);
        match signal {
            "-KILL" => assert_eq!(output.status.signal(), Some(9)),
            // Before or after the probes were in.
            _ => assert!(matches!(output.status.code(), Some(0 | 125)), "{output:?}"),
        }
        // The output is at its end when the keeper is, too.
        if signal != "-KILL" {
            assert!(!maps(pid).contains("pointee"), "{}", maps(pid));
        }
        assert_restored(pid);
    }
    drop(process.stdin.take());
    assert_eq!(line(&mut process), "done");
    assert_eq!(process.wait().expect("ends").code(), Some(7));
}

#[test]
fn a_process_that_ends_or_executes_a_program_meanwhile_is_reported_until_then() {
    let source = r#"
        #include <stdio.h>
        #include <unistd.h>
        __attribute__((noinline)) long hot(long i) { __asm__ volatile("" : "+r"(i)); return i + 1; }
        int main(int count, char **words) {
            char c;
            puts("ready");
            fflush(stdout);
            read(0, &c, 1);
            for (long i = 0; i < 1000; ) i = hot(i);
            if (count > 1) execl("/bin/cat", "cat", (char *)0);
            return 3;
        }
    "#;
    let (_folder, program) = compile(source, &[]);
    let program = program.to_str().expect("UTF-8");
    for words in [&[program][..], &[program, "executes"]] {
        let mut process = start(words);
        assert_eq!(line(&mut process), "ready");
        let prober = prober(process.id());
        until("attached", || has_probes(process.id()));
        let mut input = process.stdin.take().expect("a pipe");
        // Not read before the process goes on.
        input.write_all(b"x").expect("writes");
        let output = ended(prober);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(sum(&output.stdout, Some("hot")), 1000, "{words:?}");
        if words.len() > 1 {
            input.write_all(b"still there\n").expect("writes");
            assert_eq!(line(&mut process), "still there");
            assert!(!maps(process.id()).contains("pointee"));
        }
        drop(input);
        assert_eq!(
            process.wait().expect("ends").code(),
            Some(if words.len() > 1 { 0 } else { 3 })
        );
    }
}
