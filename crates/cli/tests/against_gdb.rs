//! *Does the debugger say the same?* — of random addresses in the code and data of running programs.

mod harness;

use harness::pointee;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Debian packages of what is run here.
pub const PACKAGES: &[&str] = &["gdb", "perl", "python3", "redis-server"];

const ADDRESSES: usize = 1000;

/// `symbol + offset` of `info symbol`; `None` where gdb knows none.
fn gdb(pid: u32, addresses: &[u64]) -> Vec<Option<u64>> {
    let folder = tempfile::TempDir::new().expect("a folder");
    let script = folder.path().join("script");
    let commands: String = addresses
        .iter()
        .map(|address| format!("info symbol {address:#x}\n"))
        .collect();
    std::fs::write(&script, commands).expect("writes");
    let output = Command::new("gdb")
        .args(["-nx", "-batch", "-p", &pid.to_string(), "-x"])
        .arg(&script)
        .stdin(Stdio::null())
        .env_remove("DEBUGINFOD_URLS")
        .output()
        .expect("gdb runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let is_answer =
        |line: &&str| line.contains(" in section ") || line.starts_with("No symbol matches");
    let offset = |line: &str| {
        let name = line.split(" in section ").next()?;
        match name.rsplit_once(" + ") {
            Some((_, offset)) => offset.parse().ok(),
            None => (!line.starts_with("No symbol")).then_some(0),
        }
    };
    let answers: Vec<Option<u64>> = text.lines().filter(is_answer).map(offset).collect();
    assert_eq!(answers.len(), addresses.len(), "{text}");
    answers
}

/// Random addresses in the code and data of a program that prints `up` when it is there; it ends when it is killed. Both name more than `floor`.
fn check(command: &[&str], up: &str, floor: usize) {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let out = child.stdout.take().expect("a pipe");
    let mut lines = BufReader::new(out).lines();
    let is_up = lines.any(|line| line.expect("text").contains(up));
    assert!(is_up, "{command:?}");
    let pid = child.id();

    // Code and data of files, by the kernel's list.
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let ranges: Vec<(u64, u64)> = maps
        .lines()
        .filter(|line| line.contains('/') && !line.contains("memfd:"))
        .filter(|line| line.contains("r-xp") || line.contains("rw-p"))
        .filter_map(|line| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            let hex = |text| u64::from_str_radix(text, 16).ok();
            Some((hex(start)?, hex(end)?))
        })
        .collect();
    let total: u64 = ranges.iter().map(|(start, end)| end - start).sum();
    // The same addresses at each run of one build: multiples of a prime, wrapped.
    let nth = |number: u64| {
        let mut at = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % total;
        for (start, end) in &ranges {
            if at < end - start {
                return start + at;
            }
            at -= end - start;
        }
        unreachable!("below the total")
    };
    let addresses: Vec<u64> = (1..=ADDRESSES as u64).map(nth).collect();
    let output = pointee()
        .args(["what", &pid.to_string(), "--format", "json"])
        .args(addresses.iter().map(|address| format!("{address:#x}")))
        .output()
        .expect("runs");
    let ours: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let theirs = gdb(pid, &addresses);
    child.kill().expect("is there");
    child.wait().expect("ends");

    let (mut both, mut equal) = (0, 0);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let kind = ours["kind"]
            .as_str()
            .expect("every address lies in something");
        // gdb stretches a symbol up to the next one; where we see a gap there is none to compare.
        if let (Some(offset), "code" | "static", true) = (theirs, kind, ours["name"].is_string()) {
            both += 1;
            equal += usize::from(ours["offset"].as_u64() == Some(*offset));
        }
    }
    println!("{command:?}: {both} named by both, {equal} equal");
    assert!(both > floor, "{command:?}: {both}");
    assert!(equal * 1000 >= both * 999, "{command:?}: {equal} of {both}");
}

#[test]
fn a_thousand_addresses() {
    // Programs that link several libraries.
    let perl = "$|=1; print \"up\\n\"; <STDIN>";
    check(
        &["/usr/bin/perl", "-MSocket", "-MPOSIX", "-e", perl],
        "up",
        ADDRESSES / 2,
    );
    let python = "import ssl, sqlite3, decimal, sys; print('up', flush=True); sys.stdin.readline()";
    check(&["/usr/bin/python3", "-c", python], "up", ADDRESSES / 2);
    let folder = tempfile::TempDir::new().expect("a folder");
    let socket = folder.path().join("socket");
    let socket = socket.to_str().expect("a name");
    let redis = [
        "redis-server",
        "--port",
        "0",
        "--unixsocket",
        socket,
        "--save",
        "",
    ];
    // Its stripped file names what it exports only.
    check(&redis, "ccept connections", ADDRESSES / 3);
}

/// The relays and trampolines of a record have names, for gdb and for perf.
#[test]
fn hooks_of_a_record_have_names() {
    let mut child = pointee()
        .args(["run", "--report", "/dev/null", "--", "/usr/bin/perl", "-e"])
        .arg("$|=1; print \"$$\\n\"; <STDIN>")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("perl starts");
    let mut line = String::new();
    let out = child.stdout.take().expect("a pipe");
    BufReader::new(out).read_line(&mut line).expect("a line");
    let pid: u32 = line.trim().parse().expect("perl's number");
    let explained = pointee()
        .args(["explain", "--perf-map", &pid.to_string()])
        .output()
        .expect("runs");
    let path = format!("/tmp/perf-{pid}.map");
    let map = std::fs::read_to_string(&path).unwrap_or_default();
    let _ = std::fs::remove_file(&path);
    let hooks: Vec<(u64, &str)> = map
        .lines()
        .filter_map(|line| {
            let (address, rest) = line.split_once(' ')?;
            let name = rest.split_once(' ')?.1;
            Some((u64::from_str_radix(address, 16).ok()?, name))
        })
        .collect();
    let output = Command::new("gdb")
        .args(["-nx", "-batch", "-p", &pid.to_string()])
        .args(hooks.iter().flat_map(|(address, _)| {
            // In the relay, and in the trampoline.
            ["0", "33"].map(|into| format!("-ex=info symbol {address:#x}+{into}"))
        }))
        .stdin(Stdio::null())
        .env_remove("DEBUGINFOD_URLS")
        .output()
        .expect("gdb runs");
    drop(child.stdin.take());
    child.wait().expect("ends");
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&explained.stderr);
    for expected in ["malloc@hook", "free@hook", "execve@hook"] {
        assert!(
            hooks.iter().any(|(_, name)| *name == expected),
            "{expected}: {map}{complaint}"
        );
    }
    let names: Vec<&str> = said
        .lines()
        .filter_map(|line| {
            line.split_once(" in section .text of ")?
                .0
                .split(' ')
                .next()
        })
        .collect();
    let expected: Vec<&str> = hooks.iter().flat_map(|(_, name)| [*name; 2]).collect();
    assert_eq!(names, expected, "{said}");
}
