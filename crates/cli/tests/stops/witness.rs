//! *Who allocated this block, as gdb sees it?*
//!
//! Some blocks are drawn at each stop and what the index and `pointee what` say of them is kept. Then the program, which does
//! the same each time, runs a second time without us under gdb, which tells its backtrace at just those calls.

#![allow(unreachable_pub)] // A module of one test file.

use super::Subject;
use super::call_log::Log;
use crate::harness::pointee;
use pointee_inspect::process::{Path as Walked, ProcessData};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// A place in a loaded file: its path and the link-time address.
type Place = (String, u64);

/// What we say of one block.
#[derive(Debug)]
pub struct Said {
    /// Return addresses, innermost first.
    path: Vec<Place>,
    /// The call that is the site, and what lies below it.
    site: Place,
    function: Option<String>,
    wrappers: usize,
}

/// One frame as gdb sees it.
#[derive(Debug)]
struct Frame {
    place: Place,
    function: String,
}

/// What we say of the blocks at `addresses` of the stopped process `pid`, in their order.
pub fn said_of(pid: u32, data: &ProcessData, blocks: &[(u64, &Walked)]) -> Vec<Said> {
    let output = pointee()
        .args(["what", "--format", "json"])
        .arg(pid.to_string())
        .args(blocks.iter().map(|(base, _)| format!("{base:#x}")))
        .output()
        .expect("runs");
    let answers: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answers.len(), blocks.len());
    let said = blocks.iter().zip(answers).map(|((base, walked), answer)| {
        assert_eq!(answer["base"], format!("{base:#x}"), "{answer:#}");
        let path = walked.frames.iter().map(|frame| {
            let module = &data.modules[frame.module as usize];
            (real(&module.path), frame.return_address.0)
        });
        let site = &answer["site"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let offset = text(&site["offset"]).expect("an offset");
        let offset = u64::from_str_radix(offset.trim_start_matches("0x"), 16).expect("a number");
        Said {
            path: path.collect(),
            site: (real(answer["module"].as_str().expect("a module")), offset),
            function: text(&site["function"]),
            wrappers: site["wrappers"].as_array().map_or(0, Vec::len),
        }
    });
    said.collect()
}

/// As the kernel names the file.
fn real(path: &str) -> String {
    let path = std::fs::canonicalize(path).expect("a file");
    path.to_string_lossy().into_owned()
}

/// Runs the subject under gdb and compares. Returns how many frames agreed.
pub fn agrees(folder: &Path, subject: &Subject, log: &Log, said: &BTreeMap<u64, Said>) -> usize {
    let what = &subject.what;
    let numbers: Vec<u8> = said
        .keys()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    let chosen = folder.join(format!("{what}.chosen"));
    std::fs::write(&chosen, numbers).expect("writes");
    let second = folder.join(format!("{what}.second.log"));
    let second_log = Log::create(&second);
    let out = folder.join(format!("{what}.backtraces"));
    let mut wrapper = format!(
        "set exec-wrapper env CALL_LOG={} CALL_WITNESS={}",
        second.display(),
        chosen.display()
    );
    if let Some(preload) = subject.preloads() {
        wrapper += &format!(" LD_PRELOAD={preload}");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stops/backtraces.py");
    let told = Command::new("gdb")
        .args(["-q", "-nx", "-batch", "-ex", &wrapper, "-x"])
        .arg(script)
        .arg("--args")
        .args(&subject.command)
        .env("WITNESS_OUT", &out)
        .env("WITNESS_COUNT", said.len().to_string())
        .stdin(Stdio::null())
        .output()
        .expect("gdb runs");
    let backtraces = read(&out);
    assert_eq!(
        backtraces.len(),
        said.len(),
        "{what}: {}",
        String::from_utf8_lossy(&told.stderr)
    );

    let mut agreed = 0;
    for (number, said) in said {
        assert_eq!(
            second_log.operation_and_size(*number),
            log.operation_and_size(*number),
            "{what} does not do the same each time: call {number}"
        );
        let seen = &backtraces[number];
        let callers = &seen[subject.frames_of_the_log..];
        let path = &said.path[subject.frames_of_the_log_in_path..];
        let context = || format!("{what}, call {number}:\n{said:#x?}\n{seen:#x?}");
        assert!(!path.is_empty(), "{}", context());
        for (ours, gdbs) in path.iter().zip(callers) {
            assert_eq!(*ours, gdbs.place, "{}", context());
            agreed += 1;
        }
        // The site is the call that returns to one of the frames (no call instruction has more than 8 bytes), or that return
        // address itself where the call is not known.
        let at = callers.iter().position(|frame| {
            frame.place.0 == said.site.0
                && (0..=8).contains(&frame.place.1.wrapping_sub(said.site.1))
        });
        let at = at.unwrap_or_else(|| panic!("the site is no frame: {}", context()));
        // One without a name is left out of the chain.
        assert!(
            said.wrappers <= at + subject.frames_of_the_log_in_path,
            "{}",
            context()
        );
        // One function of libc goes by many names.
        if let Some(function) = &said.function
            && !said.site.0.contains("/libc.so")
        {
            assert_eq!(*function, callers[at].function, "{}", context());
        }
    }
    let _ = std::fs::remove_file(second);
    agreed
}

/// Backtraces by number of the call.
fn read(file: &Path) -> BTreeMap<u64, Vec<Frame>> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let (lines, maps) = text.split_once("maps ").unwrap_or((&text, ""));
    let words: Vec<&str> = maps.split_whitespace().collect();
    let hex = |text: &str| u64::from_str_radix(text, 16).expect("hexadecimal");
    // All are position-independent: link-time addresses count from where the file is loaded.
    let starts: BTreeMap<u64, &str> = words
        .chunks_exact(2)
        .map(|pair| (hex(pair[0]), pair[1]))
        .collect();
    let frame = |word: &str| {
        let mut parts = word.split(':');
        let pc = hex(parts.next().expect("an address"));
        // What gdb finds beyond the program's first function may be no code at all.
        let (start, path) = starts.range(..=pc).next_back().unwrap_or((&0, &"?"));
        Frame {
            place: ((*path).to_owned(), pc - start),
            function: parts.next().expect("a function").to_owned(),
        }
    };
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let number = words.next().expect("a number").parse().expect("a number");
        (number, words.map(frame).collect())
    };
    lines.lines().map(line).collect()
}
