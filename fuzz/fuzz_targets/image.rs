//! *Is every accessor of a metadata image total?* — of any bytes that pass for an image.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointee_fuzz::seeds;
use pointee_inspect::images::AlignedBytes;
use pointee_model::addr::LinkAddr;
use pointee_model::image::Image;
use std::hint::black_box;

fuzz_target!(
    init: seeds::plant(|file| seeds::image_of(file).into_iter().collect()),
    |data: &[u8]| {
        let bytes = AlignedBytes::copy_of(data);
        let Ok(image) = Image::parse(bytes.as_ref()) else { return };
        let held = image.build_id().len() + image.types.len() + image.functions.len();
        assert!(held <= data.len());
        ask_records(&image);
        ask_addresses(&image);
    }
);

fn ask_records(image: &Image<'_>) {
    for record in image.types {
        black_box(image.string(record.name));
        for member in image.members_of(record).iter().take(64) {
            black_box(image.string(member.name));
            black_box(image.type_at(member.r#type));
        }
        for enumerator in image.enumerators_of(record).iter().take(64) {
            black_box(image.string(enumerator.name));
        }
    }
    for site in image.sites {
        black_box(image.string(site.callee));
        for witness in image.evidence_of(site).iter().take(64) {
            black_box(image.string(witness.what));
        }
    }
    for variable in image.variables {
        black_box(image.string(variable.name));
    }
    for entry in image.entries {
        black_box(image.string(entry.name));
    }
}

fn ask_addresses(image: &Image<'_>) {
    let starts = image.functions.iter().map(|function| function.start);
    let ends = image.functions.iter().map(|function| function.end);
    let rows = image.lines.iter().map(|row| row.address);
    let calls = image.sites.iter().map(|site| site.return_address);
    let few = starts.take(64).chain(ends.take(64)).chain(rows.take(64));
    for address in few.chain(calls.take(64)).chain([0, u64::MAX]) {
        let address = LinkAddr(address);
        if let Some(function) = image.function_at(address) {
            assert!((function.start..function.end).contains(&address.0));
            black_box(image.file_name(function.file));
        }
        if let Some(row) = image.line_at(address) {
            black_box(image.file_name(row.file));
        }
        for inline in image.inlines_at(address) {
            assert!((inline.start..inline.end).contains(&address.0));
        }
        if let Some(site) = image.site_returning_to(address) {
            assert_eq!(site.return_address, address.0);
        }
    }
}
