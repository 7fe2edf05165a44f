//! *Which programs are measured, doing what?* — real ones, with inputs made on the spot, the same each time.

use super::{Bench, Context, Result, shell};
use crate::demo;
use anyhow::bail;
use std::ffi::OsString;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program with its arguments.
pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) words: Vec<OsString>,
}

/// The command of a workload; none when its program is not installed.
type Maker = fn(&Bench) -> Result<Option<Command>>;

/// Those whose programs are installed.
pub(super) fn workloads(bench: &Bench) -> Result<Vec<Workload>> {
    let makers: [(&str, Maker); 7] = [
        ("python3, its pools off", python),
        ("jq", jq),
        ("sqlite3", sqlite),
        ("perl", perl),
        ("git log", git_log),
        ("cc1 -O2", compiler_proper),
        ("pointee meta (Rust)", pointee_meta),
    ];
    let mut workloads = Vec::new();
    for (name, make) in makers {
        let Some(command) = make(bench)? else {
            eprintln!("  {name} is not installed: left out");
            continue;
        };
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        workloads.push(Workload {
            name,
            words: words.map(Into::into).collect(),
        });
    }
    Ok(workloads)
}

/// With its own pools Python would hand out nearly all objects before malloc sees them.
fn python(bench: &Bench) -> Result<Option<Command>> {
    let python = Path::new("/usr/bin/python3");
    let script = bench.folder.join("records.py");
    fs::write(&script, PYTHON)?;
    let mut command = Command::new("/usr/bin/env");
    command.arg("PYTHONMALLOC=malloc").arg(python).arg(script);
    Ok(python.exists().then_some(command))
}

fn jq(bench: &Bench) -> Result<Option<Command>> {
    let input = bench.folder.join("requests.json");
    demo::write_input(&input, 100_000)?;
    let mut command = Command::new(&bench.jq);
    command
        .arg("map(select(.status == 200) | .agent.name) | group_by(.) | map(length)")
        .arg(input);
    Ok(Some(command))
}

fn sqlite(_: &Bench) -> Result<Option<Command>> {
    Ok(installed("sqlite3", |command| {
        command.args([":memory:", SQL]);
    }))
}

fn perl(bench: &Bench) -> Result<Option<Command>> {
    let script = bench.folder.join("words.pl");
    fs::write(&script, PERL)?;
    Ok(installed("perl", |command| {
        command.arg(script);
    }))
}

fn git_log(bench: &Bench) -> Result<Option<Command>> {
    let Some(git) = shell::find_program("git") else {
        return Ok(None);
    };
    let repository = bench.folder.join("repository");
    make_repository(&git, &repository)?;
    let mut command = Command::new(git);
    command.args(["--no-pager", "-C"]).arg(repository);
    command.args(["log", "--patch", "--stat"]);
    Ok(Some(command))
}

/// gcc's compiler proper, on a big source: the driver itself allocates next to nothing.
fn compiler_proper(bench: &Bench) -> Result<Option<Command>> {
    let path = shell::output(Command::new("gcc").arg("-print-prog-name=cc1"))?;
    let mut command = Command::new(path.trim_end());
    command
        .args(["-quiet", "-O2", "-w", "-fpreprocessed"])
        .arg(preprocess(bench)?)
        .args(["-o", "/dev/null"]);
    Ok(Some(command))
}

/// A Rust program with threads: Pointee, making an image of this program, debug info and all, that no cache has.
fn pointee_meta(bench: &Bench) -> Result<Option<Command>> {
    let mut command = Command::new("/usr/bin/env");
    command
        .arg("XDG_CACHE_HOME=/dev/null")
        .arg(&bench.tools.pointee)
        .args(["meta", "--embed"])
        .arg(bench.folder.join("xtask.with-image"))
        .arg(std::env::current_exe()?);
    Ok(Some(command))
}

/// A program of the system with the arguments that `add` adds.
fn installed(name: &str, add: impl FnOnce(&mut Command)) -> Option<Command> {
    let mut command = Command::new(shell::find_program(name)?);
    add(&mut command);
    Some(command)
}

const PYTHON: &str = "\
import json
rows = [{'id': i, 'name': 'n%d' % i, 'values': [i, i + 0.5, str(i)]} for i in range(30000)]
for _ in range(2):
    text = json.dumps(rows)
    rows = json.loads(text)
groups = {}
for row in rows:
    groups.setdefault(row['name'][:4], []).append(row)
print(len(text), len(groups))
";

const SQL: &str = "\
CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, value REAL);
WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 200000)
  INSERT INTO t SELECT x, 'name ' || (x * 7919 % 100003), x / 3.0 FROM n;
CREATE INDEX i ON t(name);
SELECT count(*), sum(value), max(length(group_concat)) FROM
  (SELECT value, group_concat(upper(name) || '-' || id) AS group_concat FROM t GROUP BY substr(name, 1, 7), id % 97);
";

const PERL: &str = "\
my (%groups, $random, $length) = ();
for my $i (1 .. 400_000) {
    $random = ($random * 1103515245 + 12345) & 0x7fffffff;
    push @{$groups{'key ' . ($random % 50_000)}}, \"value $i\";
}
$length += length join ',', @{$groups{$_}} for sort keys %groups;
print \"$length\\n\";
";

/// A repository with a linear history of small changes, unless it is there already.
fn make_repository(git: &Path, to: &Path) -> Result<()> {
    if to.join("complete").exists() {
        return Ok(());
    }
    let _ = fs::remove_dir_all(to);
    shell::output(
        Command::new(git)
            .args(["init", "--quiet", "--bare"])
            .arg(to),
    )?;
    let mut import = Command::new(git)
        .arg("-C")
        .arg(to)
        .args(["fast-import", "--quiet"])
        .stdin(Stdio::piped())
        .spawn()
        .context("git does not start")?;
    let stream = import.stdin.take().context("git has no input")?;
    write_history(BufWriter::new(stream), 6_000)?;
    if !import.wait()?.success() {
        bail!("git fast-import failed");
    }
    // The branch that HEAD names depends on the user's configuration.
    let head = ["symbolic-ref", "HEAD", "refs/heads/main"];
    shell::output(Command::new(git).arg("-C").arg(to).args(head))?;
    fs::write(to.join("complete"), "")?;
    Ok(())
}

/// A stream for `git fast-import`: `commits` commits that each change some lines of one of forty files.
fn write_history(mut to: impl Write, commits: usize) -> Result<()> {
    let mut files = vec![vec![0_usize; 120]; 40];
    for commit in 1..=commits {
        let number = commit * 7 % files.len();
        let file = &mut files[number];
        for line in 0..5 {
            let at = (commit * 31 + line * 17) % file.len();
            file[at] = commit;
        }
        let text: String = file
            .iter()
            .enumerate()
            .map(|(line, changed)| format!("line {line}, changed last by commit {changed}\n"))
            .collect();
        let message = format!("Change file {number}\n\nFor the {commit}th time.\n");
        let seconds = 1_500_000_000 + commit * 60;
        write!(
            to,
            "commit refs/heads/main\ncommitter Some One <some@one.example> {seconds} +0000\ndata {}\n{message}\n\
             M 644 inline folder/file-{number}\ndata {}\n{text}\n",
            message.len(),
            text.len(),
        )?;
    }
    to.flush()?;
    Ok(())
}

/// A big source after the preprocessor: jq's parser, which bison wrote.
fn preprocess(bench: &Bench) -> Result<PathBuf> {
    let to = bench.folder.join("parser.i");
    let generated = bench.jq.with_file_name("generated");
    let mut command = Command::new("gcc");
    command
        .arg("-E")
        .args(crate::jq::flags(&bench.jq_sources, &generated)?)
        .arg(bench.jq_sources.join("src/parser.c"))
        .arg("-o")
        .arg(&to);
    shell::output(&mut command)?;
    Ok(to)
}
