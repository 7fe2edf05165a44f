//! `pointee probe --pid`: counters in processes that run already, and none of it left.

mod harness;

use harness::process::{THREADS, assert_restored, count, line, maps, probe, start, sum};
use harness::{compile, pointee};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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

/// A program that says when it is ready, after `first`.
fn ready_after(first: &str) -> String {
    format!(
        r#"
        #include <errno.h>
        #include <stdio.h>
        #include <stddef.h>
        #include <linux/filter.h>
        #include <linux/seccomp.h>
        #include <sys/prctl.h>
        #include <sys/ptrace.h>
        #include <unistd.h>
        int main(void) {{
            {first}
            write(1, "ready\n", 6);
            char c;
            read(0, &c, 1);
        }}
    "#
    )
}

const STRICT: &str = "prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);";
const FILTERED: &str =
    "struct sock_filter all[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
    struct sock_fprog filter = { 1, all };
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);";
/// Its parent, which is the test, never traces: a child of its own does.
const TRACED: &str = "int pipes[2]; char started; pipe(pipes); pid_t traced = getpid();
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, 9);
        if (ptrace(PTRACE_SEIZE, traced, 0, 0) == 0) write(pipes[1], &started, 1);
        pause();
    }
    read(pipes[0], &started, 1);";

fn assert_refused(output: &std::process::Output, words: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{words}: {errors}");
    assert!(errors.contains(words), "{words}: {errors}");
}

#[test]
fn what_cannot_be_traced_is_refused_in_words() {
    let rows = [
        (STRICT, "seccomp"),
        (FILTERED, "seccomp"),
        (TRACED, "is traced by process"),
    ];
    for (first, words) in rows {
        let (_folder, program) = compile(&ready_after(first), &[]);
        let mut process = start(&[program.to_str().expect("UTF-8")]);
        assert_eq!(line(&mut process), "ready", "{first}");
        assert_refused(&probe(process.id(), &["--seconds", "0.1"]), words);
        let _ = process.kill();
        let _ = process.wait();
    }
    // No process has the highest number that there can be (proc(5), pid_max).
    assert_refused(&probe(1 << 22, &[]), "may not be looked at, or is none");
}

#[test]
fn another_users_process_is_refused() {
    // Who may do everything asks as nobody; who is somebody asks for the first process.
    let root = nix::unistd::geteuid().is_root();
    let mut asked = start(&["sleep", "60"]);
    let folder = tempfile::TempDir::new().expect("a folder");
    let command = folder.path().join("pointee");
    std::fs::copy(env!("CARGO_BIN_EXE_pointee"), &command).expect("copies");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).expect("opens");
    let mut ask = Command::new(&command);
    ask.args(["probe", "--pid"]);
    if root {
        use std::os::unix::process::CommandExt;
        ask.arg(asked.id().to_string()).uid(65534).gid(65534);
    } else {
        ask.arg("1");
    }
    assert_refused(&ask.output().expect("runs"), "may not be looked at");
    let _ = asked.kill();
    let _ = asked.wait();
}

#[test]
fn a_program_of_32_bits_is_refused() {
    let source =
        r#"__asm__(".globl _start\n_start: mov $29, %eax\n int $0x80\n jmp _start"); /* pause */"#;
    let flags = ["-m32", "-static", "-nostdlib", "-no-pie"];
    let (_folder, program) = compile(source, &flags);
    let mut process = start(&[program.to_str().expect("UTF-8")]);
    assert_refused(&probe(process.id(), &[]), "no program of 64 bits");
    let _ = process.kill();
    let _ = process.wait();
}

#[test]
fn pauses_are_told() {
    let mut process = start(&["sleep", "60"]);
    let output = probe(process.id(), &["--seconds", "0.05"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for when in ["attach", "detach"] {
        let row = &report["pauses"][when];
        let longest = row["longest_us"].as_u64().expect("a number");
        let rows = row["histogram"].as_array().expect("rows");
        let last = rows.last().expect("a pause");
        assert!(last["below_us"].as_u64() > Some(longest), "{when}: {row}");
        let count = |row: &serde_json::Value| row["count"].as_u64();
        assert!(rows.iter().filter_map(count).sum::<u64>() > 0, "{row}");
    }
    let text = pointee()
        .args([
            "probe",
            "--seconds",
            "0.05",
            "--pid",
            &process.id().to_string(),
        ])
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&text.stderr).into_owned();
    assert!(text.contains("stood still at attach: "), "{text}");
    let _ = process.kill();
    let _ = process.wait();
}
