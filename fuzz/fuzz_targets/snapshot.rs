//! *Is a hostile snapshot an error or harmless?* — also one whose checksums are right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointee_fuzz::questions::{ask_index, ask_process};
use pointee_fuzz::seeds;
use pointee_inspect::process::ProcessData;
use pointee_inspect::snapshot::Snapshot;
use pointee_inspect::value::Contents;

fuzz_target!(
    init: seeds::plant(|file| {
        seeds::image_of(file).and_then(|image| seeds::snapshot_with(&image)).into_iter().collect()
    }),
    |data: &[u8]| {
        ask(data.to_vec());
        ask(with_sound_checksums(data));
    }
);

fn ask(bytes: Vec<u8>) {
    let Ok(snapshot) = Snapshot::from_bytes(bytes.into()) else {
        return;
    };
    ask_index(&snapshot.index);
    let contents = snapshot.contents.as_ref();
    let contents = contents.map(|pages| pages as &dyn Contents);
    ask_process(
        &snapshot.index,
        &snapshot.images,
        &snapshot.layout,
        contents,
    );
    let process = ProcessData::read(&snapshot.index);
    assert!(process.modules.len() <= 1 << 16);
}

/// The file with the checksum of each section set right: a stranger can do that, too.
fn with_sound_checksums(data: &[u8]) -> Vec<u8> {
    const HEAD: usize = 16;
    const RECORD: usize = 24;
    let mut bytes = data.to_vec();
    let word = |at: usize| {
        let word = data.get(at..at + 8).and_then(|word| word.try_into().ok());
        word.map_or(usize::MAX, |word| u64::from_le_bytes(word) as usize)
    };
    for at in (HEAD..data.len()).step_by(RECORD).take(64) {
        let (start, len) = (word(at + 8), word(at + 16));
        let section = start.checked_add(len).and_then(|end| data.get(start..end));
        let Some((section, sum)) = section.zip(bytes.get_mut(at + 4..at + 8)) else {
            break;
        };
        sum.copy_from_slice(&crc32fast::hash(section).to_le_bytes());
    }
    bytes
}
