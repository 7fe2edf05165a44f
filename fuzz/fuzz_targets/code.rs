//! *Is what is planned for any machine code sound?* — decoding is total; a trampoline consists of
//! instructions, the pad leads to the relay, and operands still mean what they meant.
//!
//! ```text
//!   input: entry u64, trampoline i32 and relay i32 from there, length of the body u8, code
//! ```
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointee_fuzz::seeds;
use pointee_meta::elf::Elf;
use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::decode::{Instruction, Map, decode};
use pointee_patch::arch::x86_64::relocate::relocate;
use pointee_patch::arch::x86_64::sweep::{find_calls, sweep};
use pointee_patch::{Entry, EntryPlan, find_inward_branches, plan_entry};

const HEAD: usize = 17;
/// Functions of each file that are seeds.
const FUNCTIONS: usize = 200;

fuzz_target!(init: seeds::plant(seed), |data: &[u8]| {
    let Some((head, code)) = data.split_at_checked(HEAD) else { return };
    let at = RunAddr(u64::from_le_bytes(head[..8].try_into().unwrap_or_default()));
    let beside = |bytes: &[u8]| {
        let distance = i32::from_le_bytes(bytes.try_into().unwrap_or_default());
        at.plus(i64::from(distance) as u64)
    };
    let (trampoline_at, relay_at) = (beside(&head[8..12]), beside(&head[12..16]));
    let body_len = (head[16] != 0).then_some(usize::from(head[16]));

    let swept: usize = sweep(code, at).map(|(_, found)| usize::from(found.len)).sum();
    assert!(swept <= code.len());
    find_calls(code, at).for_each(drop);
    let _ = relocate(&code[..code.len().min(32)], at, trampoline_at, &mut [0; 128]);

    let entry = Entry { code, at, body_len };
    let Ok(plan) = plan_entry(&entry, trampoline_at, relay_at) else { return };
    check(&plan, code, relay_at);
    for inward in find_inward_branches(code, at, &[plan.span()]) {
        assert_eq!(inward.pad, 0);
    }
});

fn check(plan: &EntryPlan, code: &[u8], relay_at: RunAddr) {
    let from_pad = &code[plan.pad_offset as usize..];
    assert_eq!(plan.original[..], from_pad[..plan.original.len()]);
    let pad = decode(&plan.pad).expect("the pad is a jump");
    let target = pad.target_offset().expect("the pad is a direct jump");
    assert_eq!(plan.pad_at().plus(target as u64), relay_at);
    check_trampoline(plan, from_pad);
    for pc in 0..plan.trampoline.len() as u64 {
        let original = plan.original_of(plan.trampoline_at.plus(pc));
        assert!(
            original.is_some(),
            "byte {pc} of the trampoline stands for nothing"
        );
    }
    for pc in 0..16 {
        let pc = plan.pad_at().plus(pc);
        if let Some(resume) = plan.resume_after_installation(pc)
            && resume != pc
        {
            let original = plan.original_of(resume).expect("in the trampoline");
            assert_eq!(original.at, pc, "{plan:?}");
        }
    }
}

/// Walks from one displaced instruction to the next, through its copy.
fn check_trampoline(plan: &EntryPlan, from_pad: &[u8]) {
    let bytes: &[u8] = &plan.trampoline;
    let landings = plan.landings();
    for (number, landing) in landings.iter().enumerate() {
        let (original_at, copy_at) = (usize::from(landing.original), usize::from(landing.copy));
        let original = decode(&from_pad[original_at..]).expect("it was decoded before");
        let next = landings.get(number + 1);
        let mut at = copy_at;
        let copy = decode(&bytes[at..]).expect("a copy begins with an instruction");
        if original.flow.relative().is_none() && !landing.pushes {
            check_operand(plan, (&original, original_at), (&copy, copy_at));
            at += usize::from(copy.len);
            assert!(
                next.is_none_or(|next| usize::from(next.copy) == at),
                "{plan:?}"
            );
            continue;
        }
        // A branch: up to the next copy, each instruction after the other; behind a call and
        // behind an indirect jump lies an address.
        let end = next.map_or(bytes.len(), |next| usize::from(next.copy));
        while at < end {
            let piece = decode(&bytes[at..]).expect("a trampoline consists of instructions");
            at += usize::from(piece.len);
            if piece.is(Map::Primary, 0xff) && piece.displacement.is_some_and(|d| d.value == 0) {
                at += 8;
            }
            if landing.pushes && at + 8 == end {
                at = end;
            }
        }
        assert_eq!(at, end, "{plan:?}");
    }
}

/// Another place, the same operand.
fn check_operand(plan: &EntryPlan, original: (&Instruction, usize), copy: (&Instruction, usize)) {
    assert_eq!(original.0.opcode, copy.0.opcode);
    assert_eq!(original.0.len, copy.0.len);
    let meant = |(instruction, at): (&Instruction, usize), base: RunAddr| {
        let offset = instruction.rip_offset()?;
        Some(base.plus(at as u64).plus(offset as u64))
    };
    assert_eq!(
        meant(original, plan.pad_at()),
        meant(copy, plan.trampoline_at),
        "{plan:?}"
    );
}

/// The entries of a file's functions, the trampoline near and far.
fn seed(file: &[u8]) -> Vec<Vec<u8>> {
    let Ok(elf) = Elf::from_bytes(file.to_vec()) else {
        return Vec::new();
    };
    let image = seeds::image_of(file).unwrap_or_default();
    let bytes = pointee_inspect::images::AlignedBytes::copy_of(&image);
    let Ok(image) = pointee_model::image::Image::parse(bytes.as_ref()) else {
        return Vec::new();
    };
    let functions = image.functions.iter().take(FUNCTIONS);
    let inputs = functions.filter_map(|function| {
        let len = function.end.checked_sub(function.start)?.min(96);
        let code = elf.code_at(function.start, len as usize)?;
        let mut input = function.start.to_le_bytes().to_vec();
        input.extend_from_slice(&0x7fff_0000i32.to_le_bytes());
        input.extend_from_slice(&0x1000i32.to_le_bytes());
        input.push(len as u8);
        input.extend_from_slice(code);
        Some(input)
    });
    inputs.collect()
}
