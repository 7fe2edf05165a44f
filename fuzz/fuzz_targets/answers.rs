//! *Can hostile types, or hostile memory, break an answer?* — types that hold themselves, arrays
//! without end, members outside of their structs, pointers that lead in circles; and datagrams of the hand-off.
//!
//! The input is a metadata image. The process that it describes has one block from each of its
//! first sites; its memory says the same bytes again and again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointee_fuzz::questions::ask_process;
use pointee_fuzz::seeds;
use pointee_index::handoff::Hello;
use pointee_inspect::describe::{Shape, field_at, size_of_type, type_name};
use pointee_inspect::images::AlignedBytes;
use pointee_inspect::space::Layout;
use pointee_inspect::value::{Contents, print, print_array};
use pointee_model::addr::Alleged;
use pointee_model::evidence::Role;
use pointee_model::image::{Image, TypeIndex};
use std::hint::black_box;

/// Types of an image that are looked at.
const TYPES: usize = 64;
/// Longer than any answer about a small image.
const LONGEST: usize = 1 << 20;

fuzz_target!(
    init: seeds::plant(seed),
    |data: &[u8]| {
        if let Some(hello) = Hello::from_bytes(data) {
            assert_eq!(hello.to_bytes()[..28], data[..28]);
        }
        let bytes = AlignedBytes::copy_of(data);
        let Ok(image) = Image::parse(bytes.as_ref()) else { return };
        let memory = Repeated(data);
        for index in (0..image.types.len().min(TYPES) as TypeIndex).chain([TypeIndex::MAX]) {
            ask_type(&image, index, &memory);
        }
        if let Some(index) = seeds::region_with(&image).as_saved() {
            let images = seeds::images_with(data);
            ask_process(&index, &images, &Layout::default(), Some(&memory));
        }
    }
);

fn seed(file: &[u8]) -> Vec<Vec<u8>> {
    let Some(image) = seeds::image_of(file) else {
        return Vec::new();
    };
    let mut all = seeds::absurd_images(&image);
    all.push(image);
    all
}

fn ask_type(image: &Image<'_>, index: TypeIndex, memory: &Repeated<'_>) {
    black_box(size_of_type(image, index));
    let texts = [
        type_name(image, index),
        print(image, index, Alleged(8), memory),
        print_array(image, index, u64::MAX, Alleged(u64::MAX - 8), memory),
    ];
    for text in texts {
        assert!(text.len() < LONGEST, "{} bytes of text", text.len());
    }
    for role in (0..=u8::MAX).map(Role::from_byte).take(16) {
        let shape = Shape {
            module: 0,
            role,
            r#type: index,
            tail: index.wrapping_add(1),
            front: 0,
        };
        black_box(shape.name(image));
        black_box(shape.identity(image));
        for offset in [0, 7, 1 << 20, u64::MAX] {
            black_box(field_at(image, &shape, offset, offset));
            black_box(field_at(image, &shape, u64::MAX, offset));
        }
    }
}

/// The same bytes over and over; every sixteenth MiB cannot be read.
struct Repeated<'a>(&'a [u8]);

impl Contents for Repeated<'_> {
    fn read(&self, address: Alleged, buffer: &mut [u8]) -> bool {
        if self.0.is_empty() || address.0 >> 20 & 15 == 15 {
            return false;
        }
        let from = (address.0 % self.0.len() as u64) as usize;
        let source = self.0[from..].iter().chain(self.0.iter().cycle());
        for (to, byte) in buffer.iter_mut().zip(source) {
            *to = *byte;
        }
        true
    }
}
