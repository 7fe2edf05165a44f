//! *Does damaged input stop anything?* Truncated and flipped versions of real files: no panic, no hang.

mod common;

use common::{compile_c, run};
use std::path::Path;
use std::time::{Duration, Instant};

/// Marsaglia's xorshift: the same cases every time, others with `POINTEE_TEST_SEED=number`.
struct Random(u64);

impl Random {
    fn seeded(seed: u64) -> Self {
        let more = std::env::var("POINTEE_TEST_SEED").ok();
        let more: u64 = more.and_then(|text| text.parse().ok()).unwrap_or(0);
        Self(seed ^ more.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// Small files of different makers, from the system and from the compiler at hand.
fn samples(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut samples = Vec::new();
    for path in ["/usr/bin/true", "/lib64/ld-linux-x86-64.so.2"] {
        if let Ok(bytes) = std::fs::read(path) {
            samples.push((path.to_owned(), bytes));
        }
    }
    let rows: &[&[&str]] = &[
        &["-gdwarf-5", "-O2"],
        &["-gdwarf-4", "-O2", "-fdebug-types-section"],
        &["-gdwarf-5", "-gz=zlib"],
    ];
    for flags in rows {
        let bytes = std::fs::read(compile_c(directory, flags)).expect("program");
        samples.push((format!("{flags:?}"), bytes));
    }
    run(
        "objcopy",
        &["--compress-debug-sections=zstd", "program"],
        directory,
    );
    let bytes = std::fs::read(directory.join("program")).expect("program");
    samples.push(("zstd".to_owned(), bytes));
    samples
}

fn check(name: &str, bytes: &[u8]) {
    let start = Instant::now();
    let image = pointee_meta::read_untrusted(bytes);
    let taken = start.elapsed();
    // Each sample takes milliseconds when whole; the machine may be busy.
    assert!(taken < Duration::from_secs(10), "{name}: {taken:?}");
    assert!(
        image < 64 * bytes.len() + (1 << 20),
        "{name}: image of {image} bytes"
    );
}

#[test]
fn whole_files_give_images() {
    let directory = tempfile::tempdir().expect("temporary folder");
    for (name, bytes) in samples(directory.path()) {
        assert!(pointee_meta::read_untrusted(&bytes) > 300, "{name}");
    }
}

#[test]
fn truncated_files_are_harmless() {
    let directory = tempfile::tempdir().expect("temporary folder");
    let mut random = Random::seeded(0x5eed);
    for (name, bytes) in samples(directory.path()) {
        for _ in 0..30 {
            let len = random.below(bytes.len());
            check(&format!("{name} cut at {len}"), &bytes[..len]);
        }
    }
}

#[test]
fn flipped_bits_are_harmless() {
    let directory = tempfile::tempdir().expect("temporary folder");
    let mut random = Random::seeded(0xf11b);
    for (name, bytes) in samples(directory.path()) {
        for round in 0..80 {
            let mut damaged = bytes.clone();
            for _ in 0..1 + round {
                let at = random.below(damaged.len());
                damaged[at] ^= 1 << random.below(8);
            }
            check(&format!("{name} round {round}"), &damaged);
        }
    }
}

/// Every byte of the headers takes the values that break arithmetic.
#[test]
fn extreme_headers_are_harmless() {
    let directory = tempfile::tempdir().expect("temporary folder");
    let program = compile_c(directory.path(), &["-g", "-O1"]);
    let bytes = std::fs::read(program).expect("program");
    for at in 16..64 {
        for value in [0x00, 0x7f, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            check(&format!("header byte {at} = {value:#x}"), &damaged);
        }
    }
}

/// Damage inside one debug section at a time reaches deeper than damage anywhere.
#[test]
fn damaged_debug_sections_are_harmless() {
    let directory = tempfile::tempdir().expect("temporary folder");
    let mut random = Random::seeded(0xd0d0);
    for flags in [["-gdwarf-5", "-O2"], ["-gdwarf-4", "-O2"]] {
        let program = compile_c(directory.path(), &flags);
        let elf = pointee_meta::elf::Elf::open(&program).expect("ELF");
        for section in elf
            .sections()
            .iter()
            .filter(|section| section.name.starts_with(".debug_"))
        {
            for round in 0..40 {
                let mut damaged = elf.bytes().to_vec();
                for _ in 0..=round / 4 {
                    let at = section.file.start + random.below(section.file.len());
                    damaged[at] = random.below(256) as u8;
                }
                check(
                    &format!("{flags:?} {} round {round}", section.name),
                    &damaged,
                );
            }
        }
    }
}
