//! *Do two decoders agree?* Ours against iced-x86: at every byte offset of all code of the
//! system's programs (a decoder is asked about each instruction, and also about every sequence of
//! bytes that begins amid one), and on random bytes.
#![allow(missing_docs)]

mod binaries;

use iced_x86::{Decoder, DecoderOptions, FlowControl};
use pointee_patch::arch::x86_64::decode::{Flow, Instruction, decode};

/// An address far from both ends of the address space.
const AT: u64 = 0x5555_0000_0000;

fn iced(code: &[u8]) -> Option<(iced_x86::Instruction, iced_x86::ConstantOffsets)> {
    let code = &code[..code.len().min(15)];
    let mut decoder = Decoder::with_ip(64, code, AT, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then(|| (instruction, decoder.get_constant_offsets(&instruction)))
}

/// What ours says differently about the beginning of `code`; `None` when iced knows no
/// instruction there, whatever ours says.
fn disagreement(code: &[u8]) -> Option<String> {
    let (theirs, offsets) = iced(code)?;
    let ours = match decode(code) {
        Ok(ours) => ours,
        Err(error) => return Some(format!("{error:?}, theirs {:?}", theirs.code())),
    };
    let rip_relative = theirs
        .is_ip_rel_memory_operand()
        .then_some(offsets.displacement_offset() as u8);
    let displacement = offsets.has_displacement().then_some((
        offsets.displacement_offset() as u8,
        offsets.displacement_size() as u8,
    ));
    let target = (theirs.near_branch_target() != 0).then_some(theirs.near_branch_target());
    let our_target = ours.target_offset().map(|o| AT.wrapping_add(o as u64));
    // iced makes the address of a moffs a displacement, and of a 16-bit xbegin no near branch64.
    let moffs = ours.modrm.is_none() && displacement.is_some();
    let differs = ours.len as usize != theirs.len()
        || ours.rip_relative != rip_relative
        || (ours.displacement.map(|f| (f.at, f.len)) != displacement && !moffs)
        || our_target != target
        || !same_flow(&ours, theirs.flow_control())
        || (rip_relative.is_some()
            && !ours.prefixes.address_size
            && ours.rip_offset().map(|o| AT.wrapping_add(o as u64))
                != Some(theirs.ip_rel_memory_address()));
    differs.then(|| {
        format!(
            "{ours:?}, theirs {:?} len {} {offsets:?} to {target:x?} {:?}",
            theirs.code(),
            theirs.len(),
            theirs.flow_control()
        )
    })
}

fn same_flow(ours: &Instruction, theirs: FlowControl) -> bool {
    match ours.flow {
        Flow::Next => matches!(
            theirs,
            FlowControl::Next | FlowControl::Call | FlowControl::XbeginXabortXend
        ),
        Flow::Jump(_) => theirs == FlowControl::UnconditionalBranch,
        Flow::ConditionalJump(_) | Flow::Loop(_) => theirs == FlowControl::ConditionalBranch,
        Flow::TransactionBegin(_) => theirs == FlowControl::XbeginXabortXend,
        Flow::Call(_) => theirs == FlowControl::Call,
        Flow::IndirectCall => theirs == FlowControl::IndirectCall,
        Flow::IndirectJump => theirs == FlowControl::IndirectBranch,
        Flow::Return => theirs == FlowControl::Return,
        Flow::Trap => matches!(
            theirs,
            FlowControl::Interrupt | FlowControl::Exception | FlowControl::Next
        ),
        Flow::Syscall => matches!(theirs, FlowControl::Call | FlowControl::Interrupt),
    }
}

fn report(found: &[(String, String)]) {
    for (bytes, what) in found.iter().take(40) {
        eprintln!("{bytes}: {what}");
    }
    assert!(found.is_empty(), "{} disagreements", found.len());
}

fn hex(code: &[u8]) -> String {
    code.iter().take(15).map(|b| format!("{b:02x}")).collect()
}

#[test]
fn every_offset_of_real_code() {
    let mut found = Vec::new();
    for path in binaries::paths() {
        let binary = binaries::read(&path);
        let (mut compared, mut invalid) = (0_u64, 0_u64);
        for text in &binary.texts {
            for at in 0..text.bytes.len() {
                let code = &text.bytes[at..];
                match iced(code) {
                    Some(_) => compared += 1,
                    None => invalid += 1,
                }
                if let Some(what) = disagreement(code) {
                    found.push((hex(code), what));
                }
            }
        }
        eprintln!("{}: {compared} compared, {invalid} invalid", path.display());
    }
    report(&found);
}

#[test]
fn linear_from_each_symbol() {
    for path in binaries::paths() {
        let binary = binaries::read(&path);
        let (mut instructions, mut unknown) = (0_u64, 0_u64);
        for text in &binary.texts {
            for &(at, len) in &binary.functions {
                let Some(start) = at.checked_sub(text.at).map(|s| s as usize) else {
                    continue;
                };
                let end = (start + len as usize).min(text.bytes.len());
                let mut here = start;
                while here < end {
                    match decode(&text.bytes[here..end]) {
                        Ok(i) => here += usize::from(i.len),
                        Err(_) => {
                            unknown += 1;
                            break;
                        }
                    }
                    instructions += 1;
                }
            }
        }
        eprintln!(
            "{}: {instructions} instructions, {unknown} unknown",
            path.display()
        );
        // Tables amid hand-written code (libcrypto) are not instructions.
        assert!(
            unknown * 10_000 <= instructions,
            "{unknown} of {instructions}"
        );
    }
}

/// xorshift64*: the bytes are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

#[test]
fn random_bytes() {
    const HEADS: &[&[u8]] = &[
        &[],
        &[0x0f],
        &[0x0f, 0x38],
        &[0x0f, 0x3a],
        &[0xc5],
        &[0xc4],
        &[0x62],
        &[0x8f],
        &[0x66],
        &[0x66, 0x0f],
        &[0xf2, 0x0f],
        &[0xf3, 0x0f],
        &[0x48],
        &[0x66, 0x48],
        &[0x67],
        &[0xf0],
        &[0x62, 0xf1],
        &[0x62, 0xf2],
        &[0x62, 0xf3],
        &[0x62, 0xf5],
        &[0x62, 0xf6],
        &[0xc4, 0xe1],
        &[0xc4, 0xe2],
        &[0xc4, 0xe3],
        &[0x8f, 0xe8],
        &[0x8f, 0xe9],
        &[0x8f, 0xea],
    ];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut found = Vec::new();
    let mut valid = 0;
    for round in 0..4_000_000_usize {
        let mut code = [0; 24];
        for chunk in code.chunks_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes());
        }
        let head = HEADS[round % HEADS.len()];
        code[..head.len()].copy_from_slice(head);
        valid += usize::from(iced(&code).is_some());
        if let Some(what) = disagreement(&code) {
            found.push((hex(&code), what));
        }
    }
    eprintln!("{valid} valid to iced");
    report(&found);
}

/// Cut anywhere, an instruction is truncated, never something else, and nothing panics.
#[test]
fn truncated() {
    let mut random = Random(42);
    for _ in 0..200_000 {
        let mut code = [0; 16];
        code[..8].copy_from_slice(&random.next().to_le_bytes());
        code[8..].copy_from_slice(&random.next().to_le_bytes());
        let Ok(whole) = decode(&code) else { continue };
        for len in 0..usize::from(whole.len) {
            assert!(decode(&code[..len]).is_err(), "{} cut at {len}", hex(&code));
        }
        assert_eq!(decode(&code[..usize::from(whole.len)]), Ok(whole));
    }
}
