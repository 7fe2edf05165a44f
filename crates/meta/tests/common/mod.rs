//! Compiles the fixtures, so that tests look at what the system's own compilers write.
#![allow(dead_code)] // Each test file uses its own part.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a command that must succeed; returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Where a source file of the fixtures lies.
pub(crate) fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    path.to_string_lossy().into_owned()
}

/// Compiles the C fixture with more flags into `directory`.
pub(crate) fn compile_c(directory: &Path, flags: &[&str]) -> PathBuf {
    let (first, second) = (fixture("layout.c"), fixture("second.c"));
    let mut arguments = vec!["-o", "program", "-Wl,--build-id"];
    arguments.extend_from_slice(flags);
    arguments.extend_from_slice(&[&first, &second]);
    run("gcc", &arguments, directory);
    directory.join("program")
}
