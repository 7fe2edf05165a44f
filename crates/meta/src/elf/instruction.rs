//! *What is the instruction at an address?* — as text, for those who read explanations.

use super::Elf;
use iced_x86::{Decoder, DecoderOptions, FastFormatter};

/// The instruction at a link-time address; `None` where the file has no code.
#[must_use]
pub fn instruction_at(elf: &Elf, address: u64) -> Option<String> {
    let code = elf.bytes_from(address)?;
    let instruction = Decoder::with_ip(64, code, address, DecoderOptions::NONE).decode();
    let mut text = String::new();
    FastFormatter::new().format(&instruction, &mut text);
    (!instruction.is_invalid()).then_some(text)
}
