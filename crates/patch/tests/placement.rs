//! Placements as bytes: read back as written, harmless whatever the bytes, right at any distance.
#![allow(missing_docs)]

use pointee_model::addr::LinkAddr;
use pointee_patch::placement::{Header, LOCKED, PAGE, PadBytes, Placement, UNLOCKED};

fn pad(at: u64, is_relative: bool) -> PadBytes {
    let mut bytes = [0; 16];
    bytes[..5].copy_from_slice(&[0xe9, 0x10, 0x20, 0, 0]);
    PadBytes {
        at: LinkAddr(at),
        len: 5,
        is_relative,
        trap: None,
        bytes,
        original: [0x90; 16],
    }
}

fn trap(at: u64, copy: u32) -> PadBytes {
    PadBytes {
        len: 1,
        trap: Some(copy),
        bytes: [0xcc; 16],
        ..pad(at, false)
    }
}

/// An island of one page: a distance at 40, an address at 48, a counter at 60.
fn placement() -> Vec<u8> {
    let header = Header {
        base: 0x10_0000,
        island_len: PAGE as u64,
        relative: 1,
        absolute: 1,
        counters: 1,
        pads: 3,
        unwatched: 0,
        traps: 1,
        carvings: 0,
    };
    let mut island = vec![0xcc; PAGE];
    island[40..44].copy_from_slice(&0x100_i32.to_le_bytes());
    island[48..56].copy_from_slice(&0x1234_u64.to_le_bytes());
    island[60] = UNLOCKED;
    let mut bytes = header.to_bytes().to_vec();
    bytes.resize(PAGE, 0);
    bytes.extend(island);
    bytes.extend([40_u32, 48, 60].iter().flat_map(|at| at.to_le_bytes()));
    bytes.extend(
        [pad(0x1000, true), trap(0x1800, 72), pad(0x2000, false)]
            .iter()
            .flat_map(PadBytes::to_bytes),
    );
    bytes
}

#[test]
fn what_was_written_is_read() {
    let bytes = placement();
    let placement = Placement::parse(&bytes).expect("a placement");
    assert_eq!(
        placement.pads().collect::<Vec<_>>(),
        [pad(0x1000, true), trap(0x1800, 72), pad(0x2000, false)]
    );
    assert_eq!((placement.header.pads, placement.header.traps), (3, 1));
    let mut island = placement.island().to_vec();
    placement.lock(&mut island);
    assert_eq!((island[60], island[61]), (LOCKED, 0xcc));
}

#[test]
fn traps_are_found_by_their_address() {
    let bytes = placement();
    let placement = Placement::parse(&bytes).expect("a placement");
    let rows = [
        (0x1800, Some(72)),
        (0x1801, None),
        (0x17ff, None),
        // A pad that is a jump; before and behind all.
        (0x1000, None),
        (0, None),
        (u64::MAX, None),
    ];
    for (at, expect) in rows {
        assert_eq!(placement.find_trap(LinkAddr(at)), expect, "{at:#x}");
    }
}

#[test]
fn distances_are_corrected_or_refused() {
    let bytes = placement();
    let placement = Placement::parse(&bytes).expect("a placement");
    let rows = [
        (0, Some((0x100, 0x2010))),
        (0x50, Some((0xb0, 0x2060))),
        (-0x50, Some((0x150, 0x1fc0))),
        (i64::from(i32::MAX), Some((0x100 - i32::MAX, 0))),
        (i64::MAX, None),
        (i64::MIN, None),
    ];
    for (delta, expect) in rows {
        let mut island = placement.island().to_vec();
        let corrected = placement.correct(&mut island, 0x7000_0000, delta);
        assert_eq!(corrected.is_some(), expect.is_some(), "{delta}");
        let Some((distance, jump)) = expect else {
            continue;
        };
        assert_eq!(island[40..44], i32::to_le_bytes(distance), "{delta}");
        assert_eq!(island[48..56], 0x7000_1234_u64.to_le_bytes(), "{delta}");
        match pad(0x1000, true).written(delta) {
            Some(bytes) => assert_eq!(bytes[1..5], i32::to_le_bytes(jump), "{delta}"),
            None => assert_eq!(jump, 0, "{delta}"),
        }
        assert_eq!(
            pad(0x1000, false).written(delta),
            Some(pad(0x1000, false).bytes)
        );
    }
}

#[test]
fn any_bytes_are_harmless() {
    let whole = placement();
    for len in (0..whole.len()).step_by(7) {
        assert!(
            Placement::parse(&whole[..len]).is_none(),
            "{len} of {}",
            whole.len()
        );
    }
    for at in 8..64 {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            if let Some(placement) = Placement::parse(&bytes) {
                let mut island = placement.island().to_vec();
                let _ = placement.correct(&mut island, u64::MAX, -1);
                placement.lock(&mut island);
                let _ = placement.find_trap(LinkAddr(0x1800));
                let _ = placement.pads().filter_map(|pad| pad.written(-1)).count();
            }
        }
    }
}
