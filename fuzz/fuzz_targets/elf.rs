//! *Does any ELF file with any debug info break the way from file to image?*
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointee_fuzz::seeds;

fuzz_target!(
    init: seeds::plant(|file| vec![file.to_vec()]),
    |data: &[u8]| {
        let image = pointee_meta::read_untrusted(data);
        // A damaged file may say things twice, not a hundred times.
        assert!(image < 64 * data.len() + (1 << 20), "image of {image} bytes");
    }
);
