//! *Do calls through linkage tables lead where the system's disassembler says?*

mod common;

use common::run;
use pointee_meta::elf::{Callee, Elf};
use std::path::Path;

/// Stubs as objdump names them: `0000000000001030 <free@plt>:`.
fn stubs(path: &str) -> Vec<(u64, String)> {
    let listing = run(
        "objdump",
        &["-d", "--no-show-raw-insn", path],
        Path::new("/"),
    );
    listing
        .lines()
        .filter_map(|line| {
            let (address, rest) = line.split_once(" <")?;
            let name = rest.strip_suffix(">:")?.strip_suffix("@plt")?;
            Some((u64::from_str_radix(address, 16).ok()?, name.to_owned()))
        })
        .collect()
}

#[test]
fn stubs_lead_to_the_symbols_that_objdump_names() {
    let mut compared = 0;
    for path in [
        "/usr/bin/bash",
        "/usr/bin/git",
        "/usr/bin/ls",
        "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
        "/usr/lib/x86_64-linux-gnu/libc.so.6",
    ] {
        if !Path::new(path).exists() {
            continue;
        }
        let elf = Elf::open(path).expect("ELF");
        let exported = |address: u64, name: &str| {
            elf.symbols()
                .any(|symbol| symbol.address == address && symbol.name == name)
        };
        for (address, name) in stubs(path) {
            // IFUNCs without a name show as *ABS*+0x…; versions are not part of our names.
            let name = name.split('@').next().unwrap_or("");
            if let Some(resolver) = name.strip_prefix("*ABS*+0x") {
                let resolver = u64::from_str_radix(resolver, 16).expect("number");
                assert_eq!(
                    elf.plt_target(address),
                    Some(Callee::Local(resolver)),
                    "{path} {name}"
                );
                compared += 1;
                continue;
            }
            match elf.plt_target(address) {
                Some(Callee::Imported(found)) => assert_eq!(found, name, "{path} at {address:#x}"),
                Some(Callee::Local(at)) => assert!(exported(at, name), "{path} {name} at {at:#x}"),
                None => panic!("{path}: nothing for {name} at {address:#x}"),
            }
            compared += 1;
        }
    }
    assert!(compared > 100, "only {compared} stubs compared");
}
