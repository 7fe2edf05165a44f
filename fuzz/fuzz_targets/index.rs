//! *Does an index that its own process scribbled over mislead a reader?* — into a panic, a long
//! walk, or a wrong answer that could have been seen to be wrong.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointee_fuzz::questions::{ask_index, ask_process};
use pointee_fuzz::region::{Flat, Pages};
use pointee_fuzz::seeds;
use pointee_index::Index;
use pointee_inspect::images::{AlignedBytes, Images};
use pointee_inspect::space::Layout;
use pointee_model::image::Image;

fuzz_target!(init: seeds::plant(seed), |data: &[u8]| {
    let pages = Pages::of(data);
    if let Ok(index) = Index::open(&pages) {
        ask_index(&index);
    }
    // The slowest of the three: an eighth of the inputs.
    if data.len() % 8 == 0
        && let Ok(index) = Index::open(Flat(&pages))
    {
        ask_index(&index);
    }
    if let Some(index) = pages.as_saved() {
        ask_process(&index, &Images::default(), &Layout::default(), None);
    }
});

fn seed(file: &[u8]) -> Vec<Vec<u8>> {
    let bytes = AlignedBytes::copy_of(&seeds::image_of(file).unwrap_or_default());
    let image = Image::parse(bytes.as_ref());
    let region = seeds::region_with(&image.unwrap_or(Image::empty()));
    vec![region.to_input(), seeds::boastful_region().to_input()]
}
