//! *Is what is written around handlers what it is meant to be?* Read by iced-x86, for processors that this machine need not be: every byte
//! belongs to an instruction, every jump arrives at one, what is saved is restored, and the stack pointer ends where it began.
//! That nothing changes is seen by execution, in `bindings/live`.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};
use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::context::{Action, Context, Part, Processor, Width, act};
use pointee_patch::arch::x86_64::emit::Emitter;
use pointee_patch::arch::x86_64::liveness::{Flags, Live, Vectors};

const AT: RunAddr = RunAddr(0x5555_0000_0000);
const NEAR: RunAddr = RunAddr(0x5555_0010_0000);
const FAR: RunAddr = RunAddr(0x7fff_0000_0000);
const FEW: u16 = 0b1000_0100_0000_0110;

fn call(context: Context, handler: RunAddr) -> Action {
    Action::Call {
        handler,
        data: 0x1122_3344_5566_7788,
        context,
    }
}

/// The instructions of what is written. A far call has its target behind it, over which it jumps.
fn written(actions: &[Action], live: Live, width: Width) -> Vec<Instruction> {
    let processor = Processor {
        width,
        xsave_components: 7,
        xsave_len: 2432,
    };
    let mut bytes = [0; 1536];
    let mut emitter = Emitter::new(&mut bytes, AT);
    let mut parts = Vec::new();
    let mut told = |part: Part, at: usize| parts.push((part, AT.0 + at as u64));
    let frame = act(&mut emitter, actions, live, NEAR, &processor, &mut told).expect("room");
    let len = emitter.len();
    let mut decoder = Decoder::with_ip(64, &bytes[..len], AT.0, DecoderOptions::NONE);
    let mut instructions = Vec::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        assert!(
            !instruction.is_invalid(),
            "{width:?} {live:?}: {:#x}",
            instruction.ip()
        );
        if instruction.code() == Code::Jmp_rel8_64 {
            let over = instruction.near_branch64() - instruction.next_ip();
            let to = decoder.position() + over as usize;
            decoder.set_position(to).expect("within");
            decoder.set_ip(AT.0 + to as u64);
        }
        instructions.push(instruction);
    }
    let starts: BTreeSet<u64> = instructions
        .iter()
        .map(Instruction::ip)
        .chain([AT.0 + len as u64])
        .collect();
    for instruction in &instructions {
        if matches!(
            instruction.flow_control(),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
        ) {
            assert!(
                starts.contains(&instruction.near_branch64()),
                "{width:?} {live:?}: {instruction:?}"
            );
        }
    }
    assert!(parts.iter().all(|(_, at)| starts.contains(at)));
    let done = parts.iter().filter_map(|(part, _)| match part {
        Part::Action(number) => Some(*number),
        Part::Save | Part::Restore => None,
    });
    assert!(done.eq(0..actions.len()), "{parts:?}");
    if let Some(frame) = frame {
        for offset in [frame.begins, frame.based, frame.unbased, frame.ends] {
            assert!(offset == 0 || starts.contains(&(AT.0 + u64::from(offset))));
        }
    }
    instructions
}

/// Bytes that a register is saved in or restored from, if the instruction does that.
fn moved(instruction: &Instruction) -> Option<(Register, u64, bool)> {
    let moves = [Mnemonic::Mov, Mnemonic::Movaps, Mnemonic::Vmovaps];
    let kinds = (instruction.op0_kind(), instruction.op1_kind());
    let base = instruction.memory_base() == Register::RSP;
    (moves.contains(&instruction.mnemonic()) && base).then_some(())?;
    let at = instruction.memory_displacement64();
    match kinds {
        (OpKind::Memory, OpKind::Register) => Some((instruction.op1_register(), at, true)),
        (OpKind::Register, OpKind::Memory) => Some((instruction.op0_register(), at, false)),
        _ => None,
    }
}

#[test]
fn what_is_saved_is_restored() {
    let lives = [Flags::Dead, Flags::Arithmetic, Flags::All].map(|flags| {
        [Vectors::Few(FEW), Vectors::Few(0xffff), Vectors::All]
            .map(|vectors| Live { flags, vectors })
    });
    for live in lives.into_iter().flatten() {
        for width in [Width::Sse, Width::Avx, Width::Avx512] {
            for context in [Context::General, Context::Everything] {
                let actions = [call(context, NEAR), call(context, FAR)];
                let instructions = written(&actions, live, width);
                let calls = instructions.iter().filter(|i| {
                    i.flow_control() == FlowControl::Call
                        || i.flow_control() == FlowControl::IndirectCall
                });
                assert_eq!(calls.count(), 2);
                // Where each register was stored first is where it is loaded from last.
                let mut stored = BTreeMap::new();
                let mut loaded = BTreeMap::new();
                for (register, at, saves) in instructions.iter().filter_map(moved) {
                    let register = register.full_register();
                    if saves {
                        stored.entry(register).or_insert(at);
                    } else {
                        loaded.insert(register, at);
                    }
                }
                let vectors = match (context, live.vectors) {
                    (Context::Everything, Vectors::Few(few)) => (few | 1).count_ones() as usize,
                    _ => 0,
                };
                assert_eq!(stored.len(), 15 + vectors, "{live:?} {width:?}");
                for (register, at) in &stored {
                    assert_eq!(
                        loaded.get(register),
                        Some(at),
                        "{register:?}, {live:?} {width:?}"
                    );
                }
                let moves: i64 = instructions
                    .iter()
                    .filter(|i| i.mnemonic() == Mnemonic::Lea && i.op0_register() == Register::RSP)
                    .map(|i| i.memory_displacement64() as i64)
                    .sum();
                assert_eq!(moves, 0);
                let has =
                    |mnemonic: Mnemonic| instructions.iter().any(|i| i.mnemonic() == mnemonic);
                assert_eq!(has(Mnemonic::Popfq), live.flags == Flags::All);
                assert_eq!(has(Mnemonic::Sahf), live.flags == Flags::Arithmetic);
                let all = context == Context::Everything && live.vectors == Vectors::All;
                assert_eq!(has(Mnemonic::Xsavec) && has(Mnemonic::Xrstor), all);
                let cleared = vectors > 0 && width > Width::Sse;
                assert_eq!(has(Mnemonic::Vzeroupper) && has(Mnemonic::Vptest), cleared);
            }
        }
    }
}

#[test]
fn counters() {
    let dead = Live {
        flags: Flags::Dead,
        vectors: Vectors::All,
    };
    let read = Live::ALL;
    let count = |cell, shared| Action::Count { cell, shared };
    use Mnemonic::{Add, Inc, Lahf, Lea, Mov, Sahf, Seto};
    let rows: [(Action, Live, &[Mnemonic]); 4] = [
        (count(NEAR, false), dead, &[Inc]),
        (count(NEAR, true), dead, &[Inc]),
        (
            count(FAR, false),
            dead,
            &[Lea, Mov, Mov, Mov, Inc, Mov, Mov, Lea],
        ),
        (
            count(NEAR, true),
            read,
            &[Lea, Mov, Mov, Lahf, Seto, Inc, Add, Sahf, Mov, Mov, Lea],
        ),
    ];
    for (action, live, expected) in rows {
        let instructions = written(&[action], live, Width::Avx);
        let found: Vec<Mnemonic> = instructions.iter().map(Instruction::mnemonic).collect();
        assert_eq!(found, expected, "{action:?}");
        let locked = instructions.iter().any(Instruction::has_lock_prefix);
        assert_eq!(locked, matches!(action, Action::Count { shared: true, .. }));
    }
}
