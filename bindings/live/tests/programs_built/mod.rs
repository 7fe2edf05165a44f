//! Builds the programs of the tests, with either compiler, linked with the library.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds `programs/SOURCE` with `compiler` and `options`.
pub(crate) fn build(source: &str, compiler: &str, options: &[&str]) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let libraries = std::env::current_exe()
        .expect("this test")
        .parent()
        .expect("a folder")
        .to_owned();
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
        "{}-{compiler}{}",
        source.replace('.', "-"),
        options.concat().replace('/', "-")
    ));
    // Tests run side by side, and some want the same program: it appears when it is whole.
    let unfinished = program.with_extension(format!("{:?}", std::thread::current().id()));
    let built = Command::new(compiler)
        .args(["-O2", "-g", "-Wall", "-pthread", "-I"])
        .arg(folder.join("include"))
        .arg(folder.join("tests/programs").join(source))
        .arg("-o")
        .arg(&unfinished)
        .args(options)
        .arg("-L")
        .arg(&libraries)
        .args(["-lpointee_hooks", "-rdynamic"])
        // Before LD_LIBRARY_PATH, in which cargo puts a folder with an older build.
        .arg(format!(
            "-Wl,--disable-new-dtags,-rpath,{}",
            libraries.display()
        ))
        .output()
        .expect("a compiler");
    assert!(
        built.status.success(),
        "{source}: {}",
        String::from_utf8_lossy(&built.stderr)
    );
    std::fs::rename(&unfinished, &program).expect("a finished program");
    program
}
