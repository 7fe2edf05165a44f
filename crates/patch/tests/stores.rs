//! *Is every write seen?* Against iced-x86, for each instruction of the system's programs that refers to a variable by distance.
#![allow(missing_docs)]

mod binaries;

use std::collections::BTreeSet;

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, OpAccess};
use pointee_model::addr::LinkAddr;
use pointee_patch::arch::x86_64::decode::{Encoding, decode};
use pointee_patch::arch::x86_64::stores::{Stored, find_stores, stored};
use pointee_patch::arch::x86_64::sweep::sweep;

#[test]
fn every_write_is_seen() {
    let mut info = InstructionInfoFactory::new();
    let (mut seen, mut writes) = (0, 0);
    let mut wrong = BTreeSet::new();
    for path in binaries::paths() {
        for text in &binaries::read(&path).texts {
            for (at, instruction) in sweep(&text.bytes, LinkAddr(text.at)) {
                if instruction.rip_relative.is_none() {
                    continue;
                }
                let start = (at.0 - text.at) as usize;
                let bytes = &text.bytes[start..start + usize::from(instruction.len)];
                let theirs = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
                let used = info.info(&theirs).used_memory();
                let accesses: Vec<OpAccess> = used.iter().map(|memory| memory.access()).collect();
                // `call [m]` and `push [m]` write to the stack.
                let own = info.info(&theirs).op0_access();
                let writing = |access: &OpAccess| {
                    use OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
                    matches!(access, Write | CondWrite | ReadWrite | ReadCondWrite)
                };
                let theirs_writes = theirs.op0_kind() == iced_x86::OpKind::Memory
                    && writing(&own)
                    && accesses.iter().any(writing);
                let ours = stored(&instruction).is_some();
                seen += 1;
                writes += usize::from(ours);
                let guessed = instruction.encoding != Encoding::Legacy && ours;
                if !theirs.is_invalid() && ours != theirs_writes && !guessed {
                    wrong.insert(format!("{:?}: {ours}", theirs.code()));
                }
            }
        }
    }
    println!("{seen} operands, {writes} written");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(writes > 10_000, "{writes} writes");
}

#[test]
fn what_is_stored() {
    let rows: &[(&[u8], Option<Stored>)] = &[
        (&[0x48, 0x89, 0x05, 0, 0, 0, 0], Some(Stored::Register(0))), // mov [rip], rax
        (&[0x4c, 0x89, 0x2d, 0, 0, 0, 0], Some(Stored::Register(13))), // mov [rip], r13
        (
            &[0xc7, 0x05, 0, 0, 0, 0, 7, 0, 0, 0],
            Some(Stored::Immediate(7)),
        ), // mov dword [rip], 7
        (&[0x83, 0x05, 0, 0, 0, 0, 1], Some(Stored::Other)),          // add dword [rip], 1
        (&[0x83, 0x3d, 0, 0, 0, 0, 1], None),                         // cmp dword [rip], 1
        (&[0x48, 0x8b, 0x05, 0, 0, 0, 0], None),                      // mov rax, [rip]
        (&[0x0f, 0x11, 0x05, 0, 0, 0, 0], Some(Stored::Other)),       // movups [rip], xmm0
        (&[0x48, 0x89, 0xc3], None),                                  // mov rbx, rax
    ];
    for (bytes, expected) in rows {
        assert_eq!(
            stored(&decode(bytes).expect("an instruction")),
            *expected,
            "{bytes:02x?}"
        );
    }
    // nop; mov [0x200d], rax; mov [0x100e], eax
    let code = [
        0x90, 0x48, 0x89, 0x05, 5, 0x10, 0, 0, 0x89, 0x05, 0, 0, 0, 0,
    ];
    let found: Vec<_> = find_stores(&code, LinkAddr(0x1000), LinkAddr(0x2008), 8).collect();
    assert_eq!(found, [(LinkAddr(0x1001), Stored::Register(0))]);
}
