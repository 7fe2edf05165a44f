//! Placements of the machine's own files, checked against a second decoder.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use pointee_meta::elf::Elf;
use pointee_patch::placement::{LOCKED, PAGE, PadBytes, Placement, UNLOCKED};
use pointee_probe::{At, Plan, Wanted};
use std::path::Path;

const FILES: [&str; 6] = [
    "/bin/gzip",
    "/usr/bin/perl",
    "/usr/bin/python3.11",
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
];

const KINDS: [At; 3] = [At::Entry, At::Jump, At::Instruction];

fn each_plan(mut check: impl FnMut(&str, At, &Elf, &Plan)) {
    let mut files = 0;
    for file in FILES.iter().filter(|file| Path::new(file).exists()) {
        files += 1;
        let elf = Elf::open(file).expect("an ELF file");
        for at in KINDS {
            let plan = Plan::new(&elf, &Wanted::all(at)).expect("a plan");
            check(file, at, &elf, &plan);
        }
    }
    assert!(files > 2, "nothing to check here");
}

/// Where the counters' instructions lie: the bytes that become locks.
fn counters(placement: &Placement<'_>) -> Vec<usize> {
    let mut island = placement.island().to_vec();
    placement.lock(&mut island);
    let changed = |byte: &usize| island[*byte] != placement.island()[*byte];
    (0..island.len()).filter(changed).collect()
}

fn pads(plan: &Plan) -> Vec<PadBytes> {
    Placement::parse(&plan.placement)
        .expect("a placement")
        .pads()
        .collect()
}

#[test]
fn pads_lie_in_code_and_replace_what_is_there() {
    each_plan(|file, at, elf, plan| {
        let mut end = 0;
        for pad in pads(plan) {
            assert!(pad.at.0 >= end, "{file} {at:?}: pads overlap at {}", pad.at);
            end = pad.at.0 + u64::from(pad.len);
            let there = elf.mapped_code_from(pad.at.0);
            assert_eq!(
                there.and_then(|bytes| bytes.get(..usize::from(pad.len))),
                Some(&pad.original[..usize::from(pad.len)]),
                "{file} {at:?}: {}",
                pad.at
            );
        }
    });
}

#[test]
fn every_pad_leads_to_a_copy() {
    each_plan(|file, at, elf, plan| {
        let header = Placement::parse(&plan.placement)
            .expect("a placement")
            .header;
        let pads = pads(plan);
        let pad_at = |address: u64| {
            let found = pads.binary_search_by_key(&address, |pad| pad.at.0).ok()?;
            pads.get(found)
        };
        // What is in memory when all are written.
        let now = |address: u64| {
            let behind = pads.partition_point(|pad| pad.at.0 <= address);
            let pad = behind.checked_sub(1).map(|before| &pads[before]);
            let within = pad.and_then(|pad| {
                let by = address - pad.at.0;
                (by < u64::from(pad.len)).then(|| pad.bytes[by as usize])
            });
            within.or_else(|| elf.mapped_code_from(address)?.first().copied())
        };
        let is_in_island = |address: u64| address.wrapping_sub(header.base) < header.island_len;
        for pad in pads.iter().filter(|pad| pad.trap.is_none()) {
            let bytes: Vec<u8> = (pad.at.0..pad.at.0 + 15).map_while(now).collect();
            let jump = Decoder::with_ip(64, &bytes, pad.at.0, DecoderOptions::NONE).decode();
            let target = jump.near_branch_target();
            let relayed = || {
                let relay = pad_at(target)?;
                let distance = i32::from_le_bytes(relay.bytes[1..5].try_into().ok()?);
                let jumps = (relay.len, relay.bytes[0]) == (5, 0xe9);
                jumps.then(|| (target + 5).wrapping_add_signed(i64::from(distance)))
            };
            let leads_there = is_in_island(target) || relayed().is_some_and(is_in_island);
            assert!(leads_there, "{file} {at:?}: {} {jump}", pad.at);
        }
    });
}

#[test]
fn every_counter_is_an_increment_of_its_own_word() {
    each_plan(|file, at, _, plan| {
        let placement = Placement::parse(&plan.placement).expect("a placement");
        let header = placement.header;
        let mut island = placement.island().to_vec();
        placement.lock(&mut island);
        let locked = counters(&placement);
        assert_eq!(locked.len(), header.counters as usize, "{file} {at:?}");
        for (number, byte) in locked.into_iter().enumerate() {
            assert_eq!((placement.island()[byte], island[byte]), (UNLOCKED, LOCKED));
            let code = &island[byte..byte + 8];
            let increment = Decoder::with_ip(64, code, byte as u64, DecoderOptions::NONE).decode();
            assert_eq!(
                (increment.mnemonic(), increment.len()),
                (Mnemonic::Inc, 8),
                "{file}"
            );
            assert!(increment.has_lock_prefix(), "{file} {at:?}");
            let word = island.len() + 8 * number;
            assert_eq!(
                increment.ip_rel_memory_address(),
                word as u64,
                "{file} {at:?}"
            );
        }
        assert_eq!(island.len() % PAGE, 0);
    });
}

#[test]
fn every_function_and_nearly_every_instruction_has_its_counter() {
    each_plan(|file, at, _, plan| {
        let placed = plan
            .points
            .iter()
            .filter(|point| point.placed.is_ok())
            .count() as f64;
        let share = placed / plan.points.len().max(1) as f64;
        let least = match at {
            At::Entry => 0.999,
            At::Instruction => 0.9999,
            _ => 0.999,
        };
        assert!(
            share >= least || plan.points.is_empty(),
            "{file} {at:?}: {share}"
        );
        // Each has a counter of its own.
        let mut counters: Vec<u32> = plan
            .points
            .iter()
            .filter_map(|point| Some(point.placed.ok()?.1))
            .collect();
        counters.sort_unstable();
        assert!(
            counters
                .iter()
                .enumerate()
                .all(|(at, counter)| at as u32 == *counter),
            "{file} {at:?}"
        );
    });
}

#[test]
fn traps_are_few_and_can_be_refused() {
    each_plan(|file, at, elf, plan| {
        let traps: Vec<PadBytes> = pads(plan)
            .into_iter()
            .filter(|pad| pad.trap.is_some())
            .collect();
        assert!(
            traps.len() <= 1 + plan.points.len() / 100,
            "{file} {at:?}: {} traps",
            traps.len()
        );
        let placement = Placement::parse(&plan.placement).expect("a placement");
        for trap in &traps {
            assert_eq!((trap.len, trap.bytes[0]), (1, 0xcc), "{file} {at:?}");
            assert_eq!(placement.find_trap(trap.at), trap.trap, "{file} {at:?}");
        }
        let without = Wanted {
            traps: false,
            ..Wanted::all(at)
        };
        let refused = Plan::new(elf, &without).expect("a plan");
        assert!(pads(&refused).iter().all(|pad| pad.trap.is_none()));
        assert_eq!(refused.points.len(), plan.points.len(), "{file} {at:?}");
        let placed = |plan: &Plan| plan.tactics().values().sum::<u64>();
        assert!(placed(&refused) <= placed(plan), "{file} {at:?}");
    });
}

#[test]
fn a_placement_holds_wherever_it_is_loaded() {
    each_plan(|file, at, _, plan| {
        let placement = Placement::parse(&plan.placement).expect("a placement");
        let (bias, delta) = (0x5555_5555_0000_u64, -0x1234_5000_i64);
        let mut island = placement.island().to_vec();
        placement
            .correct(&mut island, bias, delta)
            .expect("within reach");
        let base = placement.header.base;
        let here = base.wrapping_add(bias).wrapping_add_signed(delta);
        // An operand or target outside the island and its counters is the same in both, by its link-time address.
        let island_end = placement.island().len() as u64 + placement.header.counters_len() as u64;
        for start in counters(&placement) {
            let read = |code: &[u8], at: u64| -> Vec<Instruction> {
                let code = &code[start..code.len().min(start + 64)];
                Decoder::with_ip(64, code, at + start as u64, DecoderOptions::NONE)
                    .into_iter()
                    .collect()
            };
            let (then, now) = (read(placement.island(), base), read(&island, here));
            // A return address that is pushed lies among the code; jumps end it.
            let is_code = |instruction: &&Instruction| {
                instruction.mnemonic() != Mnemonic::Push
                    && instruction.flow_control() == FlowControl::Next
            };
            for (then, now) in then.iter().take_while(is_code).zip(&now) {
                assert_eq!(then.mnemonic(), now.mnemonic());
                if !then.is_ip_rel_memory_operand() {
                    continue;
                }
                let (then, now) = (then.ip_rel_memory_address(), now.ip_rel_memory_address());
                let inside = then.wrapping_sub(base) < island_end;
                let expect = if inside {
                    then - base + here
                } else {
                    then.wrapping_add(bias)
                };
                assert_eq!(now, expect, "{file} {at:?}");
            }
        }
    });
}

#[test]
fn damaged_files_are_harmless() {
    let bytes = std::fs::read("/bin/gzip").expect("gzip");
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let mut plans = 0;
    for round in 0..300 {
        let mut damaged = bytes.clone();
        if round % 3 == 0 {
            damaged.truncate(random(bytes.len()));
        }
        for _ in 0..1 + random(40) {
            let within = if round % 2 == 0 { 4096 } else { damaged.len() };
            if let Some(byte) = damaged.get_mut(random(within.max(1))) {
                *byte = random(256) as u8;
            }
        }
        let Ok(elf) = Elf::from_bytes(damaged) else {
            continue;
        };
        for at in [At::Entry, At::Instruction] {
            plans += usize::from(Plan::new(&elf, &Wanted::all(at)).is_ok());
        }
    }
    assert!(plans > 100, "most were refused at once: {plans}");
}
