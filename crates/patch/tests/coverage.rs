//! *How many real functions can be hooked, and is what is written for them right?*
//!
//! Every function entry (symbol or FDE) of the system's programs is planned for. Refusals are
//! counted by reason and printed. Every trampoline is read back by a second decoder, iced-x86,
//! which must find the displaced instructions in it: the same operations on the same addresses.
#![allow(missing_docs)]

mod binaries;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind};
use pointee_model::addr::RunAddr;
use pointee_patch::{Entry, EntryPlan, Refusal, find_inward_branches, plan_entry};

/// Where the files are taken to be loaded, so that no address looks like a small number.
const BIAS: u64 = 0x7f12_3400_0000;

#[test]
fn every_function() {
    for path in binaries::paths() {
        let binary = binaries::read(&path);
        let mut refused: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        let mut sweeping = Duration::ZERO;
        let (mut planned, mut looped, mut calls) = (0_u64, 0_u64, 0_u64);
        for text in binary.texts.iter().filter(|t| t.name == ".text") {
            let end = text.at + text.bytes.len() as u64;
            let inside: Vec<_> = binary
                .functions
                .iter()
                .filter(|(at, _)| (text.at..end).contains(at))
                .collect();
            let mut pads = Vec::new();
            for (i, &&(at, len)) in inside.iter().enumerate() {
                // The padding ends where the next function begins.
                let next = inside[i..].iter().map(|f| f.0).find(|&next| next > at);
                let stop = next.unwrap_or(end).min(end).max(at);
                let body_end = (at + len).min(end);
                let code_end = stop.max(body_end);
                let code = &text.bytes[(at - text.at) as usize..(code_end - text.at) as usize];
                let entry = Entry {
                    code,
                    at: RunAddr(BIAS + at),
                    body_len: Some((body_end - at) as usize),
                };
                let near = RunAddr(BIAS + end).plus(0x10_0000 + at % 0x1000);
                match plan_entry(&entry, near, near.plus(0x1000)) {
                    Ok(plan) => {
                        planned += 1;
                        pads.push(plan.span());
                        looped += u64::from(plan.looped);
                        calls += read_back(&entry, &plan);
                    }
                    Err(refusal) => refused.entry(refusal.reason()).or_default().push(at),
                }
            }
            pads.dedup();
            let started = Instant::now();
            let text_at = RunAddr(BIAS + text.at);
            let entered: BTreeSet<_> = find_inward_branches(&text.bytes, text_at, &pads)
                .map(|branch| pads[branch.pad].at.0 - BIAS)
                .collect();
            sweeping += started.elapsed();
            planned -= entered.len() as u64;
            refused
                .entry("a branch from outside goes into the launch pad")
                .or_default()
                .extend(entered);
        }
        let count: u64 = refused.values().map(|v| v.len() as u64).sum();
        let share = planned as f64 / (planned + count).max(1) as f64;
        eprintln!(
            "{}: {planned} of {} ({:.2} %), {looped} looped, {calls} displaced calls, \
             {sweeping:.1?} for the sweep",
            path.display(),
            planned + count,
            100.0 * share
        );
        for (reason, functions) in refused.iter().filter(|(_, f)| !f.is_empty()) {
            let examples: Vec<_> = functions.iter().take(4).map(|a| format!("{a:x}")).collect();
            eprintln!(
                "    {:6} {reason} ({})",
                functions.len(),
                examples.join(" ")
            );
        }
        let unknown = refused
            .get(Refusal::Undecodable.reason())
            .map_or(0, Vec::len);
        assert!(share >= 0.97, "{}: {share}", path.display());
        assert!(
            unknown as u64 * 1000 <= planned,
            "{}: {unknown} undecodable",
            path.display()
        );
    }
}

/// The dynamic linker's hook for debuggers, of which glibc makes `ret` and padding.
#[test]
fn dl_debug_state() {
    let path = binaries::paths()
        .into_iter()
        .find(|p| p.ends_with("ld-linux-x86-64.so.2"));
    let binary = binaries::read(&path.expect("glibc's dynamic linker"));
    let at = binary.symbols["_dl_debug_state"];
    let text = &binary
        .texts
        .iter()
        .find(|t| t.name == ".text")
        .expect(".text");
    let start = (at - text.at) as usize;
    let entry = Entry {
        code: &text.bytes[start..start + 16],
        at: RunAddr(BIAS + at),
        body_len: None,
    };
    let near = RunAddr(BIAS + at + 0x10_0000);
    let plan = plan_entry(&entry, near, near).expect("a plan");
    assert!(plan.displaced_len < 5, "it has grown: {:02x?}", entry.code);
    assert_eq!(plan.trampoline.last(), Some(&0xc3));
}

fn decode_at(code: &[u8], at: u64) -> Instruction {
    let instruction = Decoder::with_ip(64, code, at, DecoderOptions::NONE).decode();
    assert!(!instruction.is_invalid(), "{at:x}: {code:02x?}");
    instruction
}

/// Compares the copies with the originals; the answer is the number of calls among them.
fn read_back(entry: &Entry<'_>, plan: &EntryPlan) -> u64 {
    let pad = plan.pad_offset as usize;
    let pad_at = plan.pad_at().0;
    let to = plan.trampoline_at.0;
    let copy_of = |target: u64| {
        let landing = plan
            .landings()
            .iter()
            .find(|l| pad_at + u64::from(l.original) == target);
        landing.map_or(target, |l| to + u64::from(l.copy))
    };
    let mut calls = 0;
    let mut leaves = false;
    let mut end = 0;
    for landing in plan.landings() {
        let from_offset = pad + usize::from(landing.original);
        let original = decode_at(&entry.code[from_offset..], entry.at.0 + from_offset as u64);
        let mut here = usize::from(landing.copy);
        let mut next = || {
            let copy = decode_at(&plan.trampoline[here..], to + here as u64);
            here += copy.len();
            copy
        };
        let first = next();
        leaves = false;
        match original.flow_control() {
            FlowControl::UnconditionalBranch => {
                assert_eq!(
                    first.near_branch_target(),
                    copy_of(original.near_branch_target())
                );
                leaves = true;
            }
            FlowControl::ConditionalBranch if original.is_loop() || original.is_jcx_short() => {
                assert_eq!(first.code(), original.code());
                let (over, jump) = (next(), next());
                assert_eq!(first.near_branch_target(), jump.ip());
                assert_eq!(over.near_branch_target(), jump.next_ip());
                assert_eq!(
                    jump.near_branch_target(),
                    copy_of(original.near_branch_target())
                );
            }
            FlowControl::ConditionalBranch => {
                assert_eq!(first.condition_code(), original.condition_code());
                assert_eq!(
                    first.near_branch_target(),
                    copy_of(original.near_branch_target())
                );
            }
            FlowControl::Call if original.is_call_near() => {
                let jump = next();
                assert_eq!(jump.near_branch_target(), original.near_branch_target());
                assert_return_address(&first, &original, plan);
                (calls, leaves, here) = (calls + 1, true, here + 8);
            }
            FlowControl::IndirectCall => {
                let jump = next();
                assert_eq!(jump.flow_control(), FlowControl::IndirectBranch);
                assert_same_operands(&jump, &original);
                assert_return_address(&first, &original, plan);
                (calls, leaves, here) = (calls + 1, true, here + 8);
            }
            flow => {
                assert_eq!(first.code(), original.code());
                assert_same_operands(&first, &original);
                leaves = matches!(flow, FlowControl::Return | FlowControl::IndirectBranch);
            }
        }
        end = here;
    }
    if leaves {
        assert_eq!(end, plan.trampoline.len());
    } else {
        let home = decode_at(&plan.trampoline[end..], to + end as u64);
        assert_eq!(
            home.near_branch_target(),
            pad_at + u64::from(plan.displaced_len)
        );
        assert_eq!(end + home.len(), plan.trampoline.len());
    }
    let jump = decode_at(&plan.pad, pad_at);
    assert_eq!(jump.code(), Code::Jmp_rel32_64);
    calls
}

fn assert_return_address(push: &Instruction, call: &Instruction, plan: &EntryPlan) {
    assert_eq!(push.code(), Code::Push_rm64);
    let at = (push.ip_rel_memory_address() - plan.trampoline_at.0) as usize;
    let pushed = u64::from_le_bytes(plan.trampoline[at..at + 8].try_into().expect("8 bytes"));
    assert_eq!(pushed, call.next_ip());
}

fn assert_same_operands(copy: &Instruction, original: &Instruction) {
    assert_eq!(copy.op_count(), original.op_count());
    for i in 0..copy.op_count() {
        let kind = original.op_kind(i);
        assert_eq!(copy.op_kind(i), kind);
        match kind {
            OpKind::Register => assert_eq!(copy.op_register(i), original.op_register(i)),
            OpKind::Memory => {
                assert_eq!(copy.memory_base(), original.memory_base());
                assert_eq!(copy.memory_index(), original.memory_index());
                assert_eq!(copy.memory_index_scale(), original.memory_index_scale());
                assert_eq!(copy.segment_prefix(), original.segment_prefix());
                // Of a RIP-relative operand iced's displacement is the address itself.
                assert_eq!(
                    copy.memory_displacement64(),
                    original.memory_displacement64()
                );
            }
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => assert_eq!(copy.immediate(i), original.immediate(i)),
            _ => {}
        }
    }
}
