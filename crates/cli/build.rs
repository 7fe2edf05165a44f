//! Builds the runtime, which the command carries inside.
//!
//! The runtime is a `no_std` library that must be built with `panic = "abort"` and optimised, whatever this
//! build is; it gets a target folder of its own, so that two builds do not wait for one lock.

use std::env;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let crates =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"))
            .join("..");
    for name in ["runtime", "index", "patch", "model"] {
        println!(
            "cargo:rerun-if-changed={}",
            crates.join(name).join("src").display()
        );
        println!(
            "cargo:rerun-if-changed={}",
            crates.join(name).join("Cargo.toml").display()
        );
    }
    println!(
        "cargo:rerun-if-changed={}",
        crates.join("runtime/build.rs").display()
    );
    println!("cargo:rerun-if-changed=build.rs");

    let target = out.join("runtime");
    build(&crates.join("runtime/Cargo.toml"), &target);
    let built = target.join("release/libpointee.so");
    let to = out.join("libpointee.so");
    std::fs::copy(&built, &to)
        .unwrap_or_else(|error| panic!("cannot copy {}: {error}", built.display()));
    let mut hasher = DefaultHasher::new();
    std::fs::read(&to)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", to.display()))
        .hash(&mut hasher);
    println!("cargo:rustc-env=RUNTIME_HASH={:016x}", hasher.finish());
}

fn build(manifest: &Path, target: &Path) {
    let cargo = env::var_os("CARGO").expect("cargo sets CARGO");
    let mut command = Command::new(cargo);
    command
        .args(["build", "--release", "--lib", "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(target);
    // What was meant for the command (a sanitizer, coverage, another linker) must not reach the runtime.
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        let leaks = [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_TARGET_DIR",
        ]
        .contains(&&*name_text)
            || ["CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_TARGET_"]
                .iter()
                .any(|prefix| name_text.starts_with(prefix))
            || [
                "CARGO_FEATURE_",
                "CARGO_CFG_",
                "CARGO_PKG_",
                "CARGO_MANIFEST_",
                "DEP_",
            ]
            .iter()
            .any(|prefix| name_text.starts_with(prefix));
        if leaks {
            command.env_remove(&name);
        }
    }
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("cargo does not start: {error}"));
    assert!(status.success(), "the runtime does not build");
}
