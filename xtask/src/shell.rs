//! *How are other programs run?* — quietly: a line for each step with its time; what a program says is
//! shown when it fails.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

/// Runs `command` to its end under one line of progress on standard error.
pub(crate) fn step(title: &str, command: &mut Command) -> Result<()> {
    timed(title, || output(command).map(drop))
}

/// Shows `title` while `work` is done, then how long it took.
pub(crate) fn timed<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprint!("  {title} …");
    let _ = std::io::stderr().flush();
    let start = Instant::now();
    let done = work();
    let end = if done.is_ok() { "" } else { " failed" };
    eprintln!("{end} {:.1} s", start.elapsed().as_secs_f64());
    done
}

/// The standard output of `command`; an error with all it said when it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{shown} does not start"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{shown}: {}\n{text}{errors}", output.status);
    }
    Ok(text)
}

/// Runs `command` to its end with all it says in `file`: how it ended and what it said. A process that outlives the
/// command, as those of a failed test may, would hold a pipe open.
pub(crate) fn said_to_file(command: &mut Command, file: &Path) -> Result<(ExitStatus, String)> {
    let log = File::create(file).with_context(|| file.display().to_string())?;
    let status = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .with_context(|| format!("{} does not start", shown(command)))?;
    let text = String::from_utf8_lossy(&std::fs::read(file)?).into_owned();
    Ok((status, text))
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// The path of a program, found as a shell would.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// Compiles `sources` to `to` with gcc.
pub(crate) fn gcc(sources: &[PathBuf], to: &Path, flags: &[&str]) -> Result<()> {
    let mut command = Command::new("gcc");
    command.arg("-o").arg(to).args(sources).args(flags);
    output(&mut command).map(drop)
}
