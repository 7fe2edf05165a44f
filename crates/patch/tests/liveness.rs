//! *Is what is called dead really dead?* Against iced-x86, for every instruction of the system's programs: no register and no flag that
//! it reads may be missing. And rows of what is to be found in small functions.
#![allow(missing_docs)]

mod binaries;

use std::collections::BTreeSet;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, Mnemonic, RflagsBits,
};
use pointee_model::addr::LinkAddr;
use pointee_patch::arch::x86_64::liveness::{Convention, Flags, Live, Vectors};
use pointee_patch::arch::x86_64::sweep::sweep;

const ARITHMETIC: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::PF
    | RflagsBits::CF;
/// `add eax, eax`: writes all flags.
const WRITER: [u8; 2] = [0x01, 0xc0];

/// What is missing of what the one instruction `bytes` reads.
fn missing(bytes: &[u8], info: &mut InstructionInfoFactory) -> Option<String> {
    let theirs = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    if theirs.is_invalid() {
        return None;
    }
    let live = Live::at(bytes, 0, Convention::Psabi);
    // They clear registers, and read none.
    let clears = matches!(theirs.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall);
    if let (Vectors::Few(few), false) = (live.vectors, clears) {
        for used in info.info(&theirs).used_registers() {
            let register = used.register();
            let known = match register {
                _ if register.is_vector_register() => {
                    register.number() < 16 && few >> register.number() & 1 != 0
                }
                _ => {
                    !(register.is_k() || register.is_st() || register.is_mm() || register.is_tmm())
                }
            };
            if !known {
                return Some(format!("{register:?} of {:?}", theirs.code()));
            }
        }
    }
    if theirs.flow_control() != FlowControl::Next {
        return None;
    }
    let (read, written) = (theirs.rflags_read(), theirs.rflags_modified());
    let before_writer = [bytes, &WRITER].concat();
    let kept = Live::at(&before_writer, 0, Convention::Psabi).flags == Flags::Dead;
    if kept && read & ARITHMETIC != 0 {
        return Some(format!("flags {read:x} read by {:?}", theirs.code()));
    }
    let may_not_write = theirs.has_rep_prefix() || theirs.has_repne_prefix();
    if live.flags == Flags::Dead && (written & ARITHMETIC != ARITHMETIC || may_not_write) {
        return Some(format!("flags {written:x} written by {:?}", theirs.code()));
    }
    None
}

#[test]
fn nothing_that_is_read_is_missing() {
    let mut info = InstructionInfoFactory::new();
    let (mut seen, mut few, mut dead) = (0_u64, 0_u64, 0_u64);
    let mut wrong = BTreeSet::new();
    for path in binaries::paths() {
        let binary = binaries::read(&path);
        for text in &binary.texts {
            for (at, instruction) in sweep(&text.bytes, LinkAddr(text.at)) {
                let start = (at.0 - text.at) as usize;
                let bytes = &text.bytes[start..start + usize::from(instruction.len)];
                if let Some(missing) = missing(bytes, &mut info) {
                    wrong.insert(format!("{missing}, as {bytes:02x?}"));
                }
                let live = Live::at(bytes, 0, Convention::Psabi);
                seen += 1;
                few += u64::from(live.vectors != Vectors::All);
                dead += u64::from(live.flags == Flags::Dead);
            }
        }
    }
    let shown: Vec<_> = wrong.iter().take(40).collect();
    assert!(wrong.is_empty(), "{} forms: {shown:#?}", wrong.len());
    println!("{seen} instructions: {few} name few vectors, {dead} end the life of flags");
    assert!(
        few * 10 > seen * 9 && dead * 5 > seen,
        "too little is known to be of use"
    );
}

#[test]
fn small_functions() {
    use Convention::{Psabi, Unknown};
    let all = Live::ALL;
    let live = |flags, few| Live {
        flags,
        vectors: Vectors::Few(few),
    };
    let rows: &[(&[u8], usize, Convention, Live)] = &[
        // ret
        (&[0xc3], 0, Psabi, live(Flags::Dead, 0x03)),
        (&[0xc3], 0, Unknown, all),
        // je +0; ret: the flags are read
        (&[0x74, 0, 0xc3], 0, Psabi, live(Flags::Arithmetic, 0x03)),
        // mov eax, 1; xor eax, eax; je +0; ret
        (
            &[0xb8, 1, 0, 0, 0, 0x31, 0xc0, 0x74, 0, 0xc3],
            0,
            Psabi,
            live(Flags::Dead, 0x03),
        ),
        (
            &[0xb8, 1, 0, 0, 0, 0x31, 0xc0, 0x74, 0, 0xc3],
            7,
            Psabi,
            live(Flags::Arithmetic, 0x03),
        ),
        // adc eax, eax; ret
        (&[0x11, 0xc0, 0xc3], 0, Psabi, live(Flags::Arithmetic, 0x03)),
        // addsd xmm9, xmm10; ret
        (
            &[0xf2, 0x45, 0x0f, 0x58, 0xca, 0xc3],
            0,
            Psabi,
            live(Flags::Dead, 0x0603),
        ),
        // vaddsd xmm12, xmm13, xmm14; ret
        (
            &[0xc4, 0x41, 0x13, 0x58, 0xe6, 0xc3],
            0,
            Psabi,
            live(Flags::Dead, 0x7003),
        ),
        // call +0; ret: arguments go through
        (&[0xe8, 0, 0, 0, 0, 0xc3], 0, Psabi, live(Flags::Dead, 0xff)),
        // std; ret: the direction flag is set somewhere
        (&[0xfd, 0xc3], 0, Psabi, live(Flags::All, 0x03)),
        // vmovups zmm17, [rdi]; ret
        (
            &[0x62, 0xe1, 0x7c, 0x48, 0x10, 0x0f, 0xc3],
            0,
            Psabi,
            Live {
                flags: Flags::Arithmetic,
                vectors: Vectors::All,
            },
        ),
        // fld1; ret
        (
            &[0xd9, 0xe8, 0xc3],
            0,
            Psabi,
            Live {
                flags: Flags::Arithmetic,
                vectors: Vectors::All,
            },
        ),
        // no instruction
        (&[0x06, 0xc3], 0, Psabi, all),
    ];
    for (body, offset, convention, expected) in rows {
        let found = Live::at(body, *offset, *convention);
        assert_eq!(
            found, *expected,
            "{body:02x?} from {offset}, {convention:?}"
        );
    }
}
