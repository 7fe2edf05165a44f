//! *Does `run` end as the program ends, and leave it alone meanwhile?*

mod harness;

use harness::{Running, compile, eventually, pointee, with_and_without};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

#[test]
fn output_and_end_are_the_programs_own() {
    let rows: &[&[&str]] = &[
        &["/bin/true"],
        &["/bin/false"],
        &["sh", "-c", "echo out; echo err >&2; exit 7"],
        &["sh", "-c", "kill -9 $$"],
        &["sh", "-c", "kill -15 $$"],
        &["sh", "-c", "kill -ABRT $$"],
        &["sh", "-c", "kill -PIPE $$"],
        &["env"],
        &["env", "-i", "sh", "-c", "env | grep -v ^_="],
        &["env", "-0"],
        &["cat", "/proc/self/environ"],
        &["sh", "-c", "cat /proc/self/environ"],
        &["env", "LD_PRELOAD=libm.so.6", "cat", "/proc/self/environ"],
        &[
            "sh",
            "-c",
            "LD_PRELOAD=libm.so.6 bash -c 'cat /proc/$$/environ; grep -c libm.so /proc/$$/maps'",
        ],
        &["cat", "/proc/self/cmdline", "/proc/self/comm"],
        &["sh", "-c", "grep -e ^Sig[PBIC] -e ^Shd /proc/self/status"],
        &["sh", "-c", "ls /proc/self/fd"],
        &["sh", "-c", "exec 0<&-; ls /proc/self/fd"],
        &["sh", "-c", "ulimit -a"],
        &["bash", "-c", "for i in 1 2 3; do echo $i | cat; done; wait"],
        &["perl", "-e", "print join(',', map { $_ x 3 } 1..500)"],
        &[
            "sqlite3",
            ":memory:",
            "select hex(zeroblob(100)), sqlite_version()",
        ],
        &["jq", "-n", "[range(500)] | map(tostring) | add"],
    ];
    for command in rows {
        let (plain, watched) = with_and_without(command);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(text(&watched.stdout), text(&plain.stdout), "{command:?}");
        assert_eq!(text(&watched.stderr), text(&plain.stderr), "{command:?}");
        assert_eq!(watched.status.code(), plain.status.code(), "{command:?}");
        assert_eq!(
            watched.status.signal(),
            plain.status.signal(),
            "{command:?}"
        );
        assert!(!watched.status.core_dumped(), "{command:?}");
    }
}

#[test]
fn failures_of_its_own_have_the_status_of_env() {
    let rows: &[(&[&str], i32)] = &[
        (&["run", "--", "/no/such/program"], 127),
        (&["run", "--", "no-such-program-anywhere"], 127),
        (&["run", "--", "/etc/passwd"], 126),
        (&["run", "--", "/"], 126),
        (&["run"], 125),
        (&["no-such-subcommand"], 125),
        (&["histo", "/no/such/snapshot"], 125),
        (&["histo", "/etc/passwd"], 125),
        (&["histo", "999999999"], 125),
        (&["what", "1", "nonsense"], 125),
        (&["sites", "/etc/passwd"], 125),
        (&["--help"], 0),
        (&["--version"], 0),
    ];
    for (arguments, expect) in rows {
        let output = pointee().args(*arguments).output().expect("runs");
        assert_eq!(output.status.code(), Some(*expect), "{arguments:?}");
        assert!(
            *expect == 0 || !output.stderr.is_empty(),
            "{arguments:?} says nothing"
        );
    }
}

#[test]
fn standard_descriptors_stay_closed() {
    let script = format!(
        "exec '{}' run --report /dev/null -- ls /proc/self/fd <&-",
        env!("CARGO_BIN_EXE_pointee")
    );
    let watched = Command::new("sh")
        .args(["-c", &script])
        .output()
        .expect("runs");
    let plain = Command::new("sh")
        .args(["-c", "exec ls /proc/self/fd <&-"])
        .output()
        .expect("runs");
    assert_eq!(watched.stdout, plain.stdout);
}

#[test]
fn an_ignored_sigpipe_stays_ignored_and_a_default_one_default() {
    for trap in ["trap '' PIPE;", ""] {
        let plain = format!("{trap} exec grep SigIgn /proc/self/status");
        let watched = format!(
            "{trap} exec '{}' run --report /dev/null -- grep SigIgn /proc/self/status",
            env!("CARGO_BIN_EXE_pointee")
        );
        let run = |script: &str| {
            Command::new("sh")
                .args(["-c", script])
                .output()
                .expect("runs")
        };
        assert_eq!(run(&watched).stdout, run(&plain).stdout, "{trap:?}");
    }
}

const WAITS: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static volatile sig_atomic_t got;
static void on(int signal) { got = signal; }
int main(void) {
    signal(SIGUSR1, on);
    signal(SIGTERM, on);
    siginterrupt(SIGUSR1, 1);
    siginterrupt(SIGTERM, 1);
    volatile char *p = malloc(77);
    p[0] = 1;
    puts("ready");
    fflush(stdout);
    char c;
    while (!got && read(0, &c, 1) < 0) {}
    return got;
}
"#;

#[test]
fn signals_sent_to_the_supervisor_reach_the_program() {
    let (_folder, program) = compile(WAITS, &[]);
    for signal in [Signal::SIGUSR1, Signal::SIGTERM] {
        let running = Running::start(&[], &program);
        kill(Pid::from_raw(running.supervisor.id() as i32), signal).expect("sent");
        let mut supervisor = running.supervisor;
        // Waiting would close it, and the program ends when its input does.
        let _input = supervisor.stdin.take();
        let status = supervisor.wait().expect("ends");
        assert_eq!(status.code(), Some(signal as i32));
    }
}

#[test]
fn a_signal_arrives_once_whether_sent_to_the_supervisor_or_to_its_group() {
    use std::io::Read;
    use std::os::unix::process::CommandExt;
    let (_folder, program) = compile(TELLS, &[]);
    let mut supervisor = pointee()
        .args(["run", "--report", "/dev/null", "--"])
        .arg(&program)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut told = supervisor.stdout.take().expect("a pipe");
    let mut next = || {
        let mut byte = [0];
        told.read_exact(&mut byte).expect("a byte");
        byte[0]
    };
    assert_eq!(next(), 0, "ready");
    let own = supervisor.id() as i32;
    let is_idle = || {
        std::thread::sleep(std::time::Duration::from_millis(5));
        let place = std::fs::read_to_string(format!("/proc/{own}/wchan")).unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{own}/status")).unwrap_or_default();
        place.contains("poll") && status.contains("ShdPnd:\t0000000000000000")
    };
    for to in [own, -own].into_iter().cycle().take(40) {
        kill(Pid::from_raw(to), Signal::SIGTERM).expect("sent");
        assert_eq!(next(), Signal::SIGTERM as u8, "to {to}");
        assert!(eventually(is_idle), "the supervisor waits again");
        // Had it come twice, the second would be first here.
        kill(Pid::from_raw(to), Signal::SIGUSR1).expect("sent");
        assert_eq!(next(), Signal::SIGUSR1 as u8, "to {to}");
        assert!(eventually(is_idle), "the supervisor waits again");
    }
    kill(Pid::from_raw(-own), Signal::SIGKILL).expect("sent");
    supervisor.wait().expect("ends");
}

/// Writes each signal's number.
const TELLS: &str = r#"
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
static void on(int signal) { char byte = signal; write(1, &byte, 1); }
int main(void) {
    struct sigaction tell = {.sa_handler = on};
    sigaction(SIGUSR1, &tell, 0);
    sigaction(SIGTERM, &tell, 0);
    volatile char *p = malloc(77);
    p[0] = 0;
    on(p[0]);
    for (;;)
        pause();
}
"#;

#[test]
fn a_program_that_stops_stops_the_supervisor() {
    let (_folder, program) = compile(WAITS, &[]);
    let running = Running::start(&[], &program);
    let supervisor = running.supervisor.id();
    let is_stopped = || {
        let stat = std::fs::read_to_string(format!("/proc/{supervisor}/stat")).unwrap_or_default();
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('T'))
    };
    kill(Pid::from_raw(running.pid as i32), Signal::SIGSTOP).expect("sent");
    assert!(eventually(is_stopped), "the supervisor stops");
    // As a shell continues a job: all of its processes.
    kill(Pid::from_raw(supervisor as i32), Signal::SIGCONT).expect("sent");
    kill(Pid::from_raw(running.pid as i32), Signal::SIGCONT).expect("sent");
    assert!(eventually(|| !is_stopped()), "the supervisor goes on");
    assert_eq!(running.finish().code(), Some(0));
}

#[test]
fn a_descendant_that_goes_on_is_not_waited_for() {
    let started = std::time::Instant::now();
    let output = pointee()
        .args([
            "run",
            "--",
            "sh",
            "-c",
            "sleep 20 >/dev/null 2>&1 & sleep 0.3; exit 3",
        ])
        .stdin(Stdio::null())
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(3));
    assert!(started.elapsed().as_secs() < 10);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("still running"), "{text}");
}

#[test]
fn a_report_that_cannot_be_written_does_not_change_the_end() {
    let output = pointee()
        .args(["run", "--report", "/dev/full", "--", "sh", "-c", "exit 9"])
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(9));
    assert!(String::from_utf8_lossy(&output.stderr).contains("could not be written"));
}

#[test]
fn bad_input_is_named_once_with_what_was_expected() {
    let rows: [(&[&str], &str); 4] = [
        (
            &["meta", "/nonexistent"],
            "pointee: /nonexistent: cannot be read: No such file or directory (os error 2)",
        ),
        (
            &["sites", "/etc/passwd"],
            "pointee: /etc/passwd: not a 64-bit little-endian ELF file: no 64-bit header",
        ),
        (
            &["histo", "/etc/passwd"],
            "pointee: /etc/passwd: not a snapshot",
        ),
        (
            &["what", "1", "zz"],
            "error: invalid value 'zz' for '<ADDRESS>...': expected an address: decimal digits, or hexadecimal ones after 0x",
        ),
    ];
    for (arguments, expect) in rows {
        let output = pointee().args(arguments).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.lines().next(), Some(expect), "{arguments:?}");
        assert_eq!(output.status.code(), Some(125), "{arguments:?}");
    }
}
