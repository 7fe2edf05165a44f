//! *How are probes placed, and what do they cost?* — `cargo xtask bench probe`.
//!
//! Two tables: for each file, how its points are placed (`pointee probe --dry-run`); for each program, how much
//! longer it takes with a counter at each function, and at each instruction, of everything it loads.
//! Processor time, the command's own included; planning is taken out: each program runs on a small and on a large input, and the difference counts.

use super::Options;
use super::measure::{interleaved, median, usage};
use super::table::{Table, figure};
use crate::shell;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// What the tables are about.
const HEAD: &str = "
# Probes: how they are placed, and what they cost

Made by `cargo xtask bench probe`; `pointee probe --help` says how to ask. What is not placed has no
counter, and is listed by name and reason in the report.

| word | how control comes to the counter |
| --- | --- |
| jump | a five-byte jump over one instruction |
| neighbours | a five-byte jump that displaces instructions beside it |
| padding | a five-byte jump that reaches into padding |
| call | a call calls the copy instead |
| relay | a two-byte jump to a five-byte one in dead bytes near by |
| overlap | the same, of one byte: its distance is the byte behind it, which others execute |
| callers | nothing is changed at a function's start; all that call it call the copy |
| copied | through a copy that it follows, or that branches to it |
| trap | an `int3`, where nothing else fits; `--no-traps` refuses it |

Not counted as functions, by rule: linkage stubs (`.plt`, `.plt.got`, `.plt.sec`, `.iplt`), cold parts of functions (a symbol
that says `.cold`, or an FDE that begins with a frame already set up), signal-return stubs. Not counted as instructions: those
of signal-return stubs, and what no known way leads to (it may be data). Each object with counters takes three more mappings: copies, counters, and what is known of both.
";

/// Files whose placement is shown, where they are installed.
const FILES: [&str; 14] = [
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib64/ld-linux-x86-64.so.2",
    "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
    "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
    "/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0",
    "/usr/lib/x86_64-linux-gnu/liblzma.so.5",
    "/usr/lib/x86_64-linux-gnu/libsqlite3.so.0",
    "/usr/bin/perl",
    "/usr/bin/python3.11",
    "/usr/lib/gcc/x86_64-linux-gnu/12/cc1",
    "/usr/bin/gzip",
    "/usr/bin/xz",
    "/usr/bin/sqlite3",
    "/usr/bin/git",
];

/// A loop of calls: what one counter costs.
const CALLS: &str = "#include <stdlib.h>\n\
    __attribute__((noinline)) void empty(void) { __asm__ volatile(\"\"); }\n\
    int main(int n, char **words) { for (long i = atol(words[1]); i > 0; i--) empty(); return n > 9; }\n";
/// A loop of calls of a function of one byte, with another behind it, which pointers lead to, and nothing dead around: what one trap costs.
const TRAPS: &str = "#include <stdlib.h>\n\
    __asm__(\".text\\n.fill 160, 1, 0xc3\\n.type one, @function\\none: ret\\n.size one, . - one\\n.type two, @function\\ntwo: ret\\n.size two, . - two\\n.fill 160, 1, 0xc3\\n\");\n\
    void one(void), two(void); static void (*volatile const both[])(void) = {one, two};\n\
    int main(int n, char **words) { for (long i = atol(words[1]); i > 0; i--) both[0](); return n > 9; }\n";

/// A C++ program that throws, and catches two frames up.
const THROWS: &str = "#include <cstdio>\n#include <cstdlib>\n#include <map>\n#include <stdexcept>\n#include <string>\n\
    __attribute__((noinline)) long work(long i) { if (i % 7 == 0) throw std::runtime_error(std::to_string(i)); return i; }\n\
    __attribute__((noinline)) long between(long i) { std::string kept = std::to_string(i); return work(i) + kept.size(); }\n\
    int main(int, char **words) { long sum = 0; std::map<std::string, long> seen;\n\
    for (long i = atol(words[1]); i > 0; i--) try { sum += between(i); seen[std::to_string(i % 97)] += i; } catch (const std::exception &e) { sum += e.what()[0]; }\n\
    printf(\"%ld %zu\\n\", sum, seen.size()); }\n";

/// Calls of the small and of the large run.
const SMALL: u64 = 1000;
const LARGE: u64 = 200_000_000;
const LARGE_TRAPS: u64 = 300_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Plain,
    Entry,
    Instruction,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::open()?;
    let pointee = match &options.pointee {
        Some(pointee) => pointee.clone(),
        None => workspace.build_pointee()?,
    };
    let folder = workspace.folder("bench")?;
    println!("{}", HEAD.trim_start());
    place(&pointee)?;
    slow_down(&pointee, &folder, options.rounds)
}

fn place(pointee: &Path) -> Result<()> {
    const TACTICS: [&str; 9] = [
        "jump",
        "neighbours",
        "padding",
        "call",
        "relay",
        "overlap",
        "callers",
        "copied",
        "trap",
    ];
    for at in ["entry", "instruction"] {
        println!("## Placement, `--at {at}`\n");
        let head = ["file", "points", "placed", "%"].into_iter().chain(TACTICS);
        let mut table = Table::new(head);
        for file in FILES.iter().filter(|file| Path::new(file).exists()) {
            let words = ["probe", "--at", at, "--dry-run", file];
            let text = shell::output(Command::new(pointee).args(words))?;
            let line = text.lines().next().context("no table")?;
            let counts = line.split_once(": ").context("no counts")?.1;
            let (placed, rest) = counts.split_once(" of ").context("no points")?;
            let (points, tactics) = rest.split_once(" points placed: ").context("no tactics")?;
            let number = |text: &str| text.replace(',', "").parse::<f64>().unwrap_or(0.0);
            let share = 100.0 * number(placed) / number(points);
            let count = |name: &&str| {
                let parts = tactics.split(", ").filter_map(|part| part.split_once(' '));
                let named = parts.into_iter().find(|(_, tactic)| tactic == name);
                named.map_or("0", |(count, _)| count).to_owned()
            };
            let name = file.rsplit('/').next().unwrap_or(file);
            let cells = [
                name.to_owned(),
                points.to_owned(),
                placed.to_owned(),
                figure(Some(share), 3),
            ];
            table.row(cells.into_iter().chain(TACTICS.iter().map(count)));
        }
        table.print();
    }
    Ok(())
}

/// A program and its arguments.
type Words = Vec<String>;

/// One program: its words for a small and for a large input.
struct Program {
    name: &'static str,
    small: Words,
    large: Words,
}

fn slow_down(pointee: &Path, folder: &Path, rounds: usize) -> Result<()> {
    let programs = programs(folder)?;
    println!("## Processor time, everything loaded, as multiples of plain\n");
    let mut table = Table::new(["program", "plain, s", "entry", "instruction"]);
    let (mut a_call, mut a_trap) = (None, None);
    for program in &programs {
        let variants = [Variant::Plain, Variant::Entry, Variant::Instruction];
        let runs = interleaved(rounds, &variants, |variant| {
            let run = |words: &[String]| usage(&mut command(pointee, variant, words));
            Ok((run(&program.small)?, run(&program.large)?))
        });
        let seconds = |variant: usize| {
            let differences = runs[variant].iter().flatten();
            median(differences.map(|(small, large)| large.cpu - small.cpu))
        };
        let (plain, entry, instruction) = (seconds(0), seconds(1), seconds(2));
        let over = |value: Option<f64>| Some(value? / plain?);
        if program.name != "traps" {
            table.row([
                program.name.to_owned(),
                figure(plain, 2),
                figure(over(entry), 2),
                figure(over(instruction), 2),
            ]);
        }
        let each = |count: u64| {
            let more = entry.zip(plain).map(|(entry, plain)| entry - plain);
            more.map(|more| more / (count - SMALL) as f64 * 1e9)
        };
        match program.name {
            "calls" => a_call = each(LARGE),
            "traps" => a_trap = each(LARGE_TRAPS),
            _ => {}
        }
    }
    table.print();
    println!(
        "One counter at a function that does nothing, called in a loop: {} ns; one that only a trap fits: {} ns.",
        figure(a_call, 2),
        figure(a_trap, 0)
    );
    Ok(())
}

fn command(pointee: &Path, variant: Variant, words: &[String]) -> Command {
    let at = match variant {
        Variant::Plain => {
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]);
            return command;
        }
        Variant::Entry => "entry",
        Variant::Instruction => "instruction",
    };
    let mut command = Command::new(pointee);
    command
        .args(["probe", "--at", at, "--report", "/dev/null", "--"])
        .args(words);
    command
}

fn programs(folder: &Path) -> Result<Vec<Program>> {
    let compiled = |file: &str, text: &str, flags: &[&str]| {
        let (source, program) = (folder.join(file), folder.join(file).with_extension(""));
        std::fs::write(&source, text)?;
        shell::gcc(&[source], &program, flags)?;
        anyhow::Ok(program.to_string_lossy().into_owned())
    };
    let calls = compiled("calls.c", CALLS, &["-O2"])?;
    let traps = compiled("traps.c", TRAPS, &["-O2"])?;
    let throws = compiled("throws.cc", THROWS, &["-O2", "-lstdc++"])?;
    let (small, large) = (folder.join("small"), folder.join("large"));
    let text = std::fs::read("/lib/x86_64-linux-gnu/libc.so.6").context("libc.so.6")?;
    std::fs::write(&small, &text[..1000])?;
    std::fs::write(&large, text.repeat(8))?;
    let both = |words: &[&str], small: &str, large: &str| {
        let with = |last: &str| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .chain([last.to_owned()])
                .collect()
        };
        (with(small), with(large))
    };
    let (small, large) = (small.to_string_lossy(), large.to_string_lossy());
    let perl = |n: &str| {
        format!(
            "my %h; for my $i (1..{n}) {{ $h{{$i % 1000}} .= chr(65 + $i % 26); }} print length join '', values %h;"
        )
    };
    let sql = |n: &str| {
        format!(
            "with recursive c(x) as (select 1 union all select x+1 from c where x<{n}) select sum(x*x%7), count(*) from c;"
        )
    };
    let python = |n: &str| format!("print(sum(len(str(i * i)) for i in range({n})))");
    let rows: [(&str, (Words, Words)); 8] = [
        (
            "calls",
            both(&[&calls], &SMALL.to_string(), &LARGE.to_string()),
        ),
        (
            "traps",
            both(&[&traps], &SMALL.to_string(), &LARGE_TRAPS.to_string()),
        ),
        ("throws", both(&[&throws], "10", "300000")),
        ("gzip", both(&["gzip", "-kc"], &small, &large)),
        ("xz", both(&["xz", "-1", "-T1", "-kc"], &small, &large)),
        ("perl", both(&["perl", "-e"], &perl("10"), &perl("3000000"))),
        (
            "sqlite3",
            both(&["sqlite3", ":memory:"], &sql("10"), &sql("3000000")),
        ),
        (
            "python3.11",
            both(
                &["/usr/bin/python3.11", "-c"],
                &python("10"),
                &python("3000000"),
            ),
        ),
    ];
    let found = rows.into_iter().filter(|(_, (words, _))| {
        words[0].contains('/') && Path::new(&words[0]).exists()
            || shell::find_program(&words[0]).is_some()
    });
    Ok(found
        .map(|(name, (small, large))| Program { name, small, large })
        .collect())
}
