//! *Which real program is there to show?* — jq 1.6, whose sources the package `jq-src` brings.
//!
//! It is compiled as its own Makefile does, with debug info and without the regular expressions that would need
//! another library. Which functions of libc and libm there are is read from its `configure.ac`: glibc has all
//! that are asked for there but [`ABSENT`].

use crate::shell;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The version whose sources `jq-src` 0.4 holds.
const VERSION: &str = "1.6";

/// Functions that `configure.ac` asks for and glibc does not have, or only the variant with thread-local
/// storage of pthreads needs, which is off by default.
const ABSENT: &[&str] = &[
    "_isatty",
    "pow10",
    "pthread_key_create",
    "pthread_once",
    "atexit",
];

/// What else its `configure` finds on glibc.
const FOUND: &[&str] = &[
    "-D_GNU_SOURCE",
    "-DIEEE_8087",
    "-DHAVE_ALLOCA_H",
    "-DHAVE_ALLOCA",
    "-DHAVE_TM_TM_GMT_OFF",
];

/// Builds jq into `<target>/demo`, unless it is there already, and gives its path.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.folder("demo")?;
    let program = folder.join("jq");
    if !program.exists() {
        let title = format!("building jq {VERSION} with gcc -g -O2");
        shell::timed(&title, || compile(workspace, &folder, &program))?;
    }
    Ok(program)
}

fn compile(workspace: &Workspace, folder: &Path, program: &Path) -> Result<()> {
    let sources = sources(workspace)?;
    let generated = folder.join("generated");
    generate(&sources, &generated)?;
    let flags = flags(&sources, &generated)?;
    let units = units(&sources.join("src"))?;
    let objects: Vec<PathBuf> = units
        .iter()
        .map(|unit| folder.join(unit.with_extension("o").file_name().unwrap_or_default()))
        .collect();
    on_all_cores(&units, &objects, &flags)?;
    // Linked under another name first: a build that was cut short leaves no jq.
    let unfinished = folder.join("jq.unfinished");
    shell::gcc(&objects, &unfinished, &["-lm"])?;
    fs::rename(&unfinished, program)?;
    Ok(())
}

/// The folder of jq's sources.
pub(crate) fn sources(workspace: &Workspace) -> Result<PathBuf> {
    Ok(workspace.sources_of("jq-src")?.join("modules/jq"))
}

/// Writes the two files that jq's Makefile makes: its library in its own language as C strings, its version.
fn generate(sources: &Path, generated: &Path) -> Result<()> {
    let to = generated.join("src");
    fs::create_dir_all(&to)?;
    let library = sources.join("src/builtin.jq");
    let library = fs::read_to_string(&library).with_context(|| format!("{}", library.display()))?;
    let strings: String = library
        .lines()
        .map(|line| {
            let line = line.replace('\\', "\\\\").replace('"', "\\\"");
            format!("\"{line}\\n\"\n")
        })
        .collect();
    fs::write(to.join("builtin.inc"), strings)?;
    let version = format!("#define JQ_VERSION \"{VERSION}\"\n");
    fs::write(to.join("version.h"), version)?;
    Ok(())
}

/// The compiler's flags; public so that a single file of jq can be compiled the same way.
pub(crate) fn flags(sources: &Path, generated: &Path) -> Result<Vec<OsString>> {
    let configure = sources.join("configure.ac");
    let configure =
        fs::read_to_string(&configure).with_context(|| format!("{}", configure.display()))?;
    let optimised = ["-g", "-O2", "-w", "-std=gnu99"];
    let mut flags: Vec<OsString> = optimised.iter().chain(FOUND).map(Into::into).collect();
    flags.extend(
        functions_asked_for(&configure)
            .filter(|name| !ABSENT.contains(name))
            .map(|name| format!("-DHAVE_{}", name.to_uppercase()).into()),
    );
    for folder in [generated, sources, &sources.join("src")] {
        flags.push("-I".into());
        flags.push(folder.into());
    }
    Ok(flags)
}

/// The names in `AC_CHECK_FUNCS(name)`, `AC_CHECK_MATH_FUNC(name)` and `AC_FIND_FUNC([name], …)`.
fn functions_asked_for(configure: &str) -> impl Iterator<Item = &str> {
    let macros = ["AC_CHECK_FUNCS(", "AC_CHECK_MATH_FUNC(", "AC_FIND_FUNC(["];
    configure.lines().filter_map(move |line| {
        let asked = macros
            .iter()
            .find_map(|prefix| line.trim().strip_prefix(prefix))?;
        asked.split([')', ']', ' ']).next()
    })
}

/// The compile units; `inject_errors.c` is a library of jq's own tests.
fn units(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut units = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "c")
            && !path.ends_with("inject_errors.c")
        {
            units.push(path);
        }
    }
    units.sort();
    Ok(units)
}

fn on_all_cores(units: &[PathBuf], objects: &[PathBuf], flags: &[OsString]) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        loop {
            let unit = next.fetch_add(1, Ordering::Relaxed);
            let (Some(source), Some(object)) = (units.get(unit), objects.get(unit)) else {
                return Ok(());
            };
            let mut command = Command::new("gcc");
            command
                .arg("-c")
                .args(flags)
                .arg("-o")
                .arg(object)
                .arg(source);
            shell::output(&mut command)?;
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            })
    })
}

#[cfg(test)]
mod tests {
    use super::functions_asked_for;

    #[test]
    fn functions_are_found_in_each_form() {
        let rows = [
            ("AC_CHECK_FUNCS(memmem)", Some("memmem")),
            ("  AC_CHECK_MATH_FUNC(acos)", Some("acos")),
            ("AC_CHECK_MATH_FUNC(pow10) # gone", Some("pow10")),
            (
                "AC_FIND_FUNC([isatty], [c], [#include <unistd.h>], [0])",
                Some("isatty"),
            ),
            ("AC_CHECK_HEADER(\"shlwapi.h\")", None),
            ("", None),
        ];
        for (line, expect) in rows {
            assert_eq!(functions_asked_for(line).next(), expect, "{line}");
        }
    }
}
