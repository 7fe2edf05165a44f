//! *Which bytes become which?* One row per form that needs care: bytes at an address, and the
//! bytes that stand for them at another. The expectations were assembled by hand from the manual;
//! the test `coverage` has a second decoder read what is written for real functions.
#![allow(missing_docs)]

use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::decode::decode;
use pointee_patch::arch::x86_64::emit::Emitter;
use pointee_patch::arch::x86_64::emit::relay;
use pointee_patch::arch::x86_64::relocate::{
    Fields, RelocateError, call_as_jump, relocate, relocate_one,
};

const HOME: RunAddr = RunAddr(0x1000);
const NEAR: RunAddr = RunAddr(0x2000);
const FAR: RunAddr = RunAddr(0x7f00_0000_0000);

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x} ")).collect()
}

#[track_caller]
fn check(code: &str, to: RunAddr, expect: Result<&str, RelocateError>) {
    let mut copy = [0; 96];
    let found = relocate(&bytes(code), HOME, to, &mut copy).map(|r| hex(&copy[..r.len]));
    let expect = expect.map(|e| hex(&bytes(e)));
    assert_eq!(found, expect, "{code} from {HOME} to {to}");
}

#[test]
fn operands() {
    let rows = [
        // no distance in it
        ("48 89 e5", "48 89 e5"),
        // mov rax, [rip+10]
        ("48 8b 05 10000000", "48 8b 05 10f0ffff"),
        // mov dword [rip+10], imm32: the displacement counts from behind the immediate
        ("c7 05 10000000 78563412", "c7 05 10f0ffff 78563412"),
        // cmp byte [rip+10], 0
        ("80 3d 10000000 00", "80 3d 10f0ffff 00"),
        // vmovdqu64 zmm0, [rip+10]
        ("62 f1 fe 48 6f 05 10000000", "62 f1 fe 48 6f 05 10f0ffff"),
        // lea rdi, [rip-7]: the function's own entry, at home
        ("48 8d 3d f9ffffff", "48 8d 3d f9efffff"),
        // mov eax, [disp32] and [rbp+disp32] are absolute
        ("8b 04 25 10000000", "8b 04 25 10000000"),
        ("8b 85 10000000", "8b 85 10000000"),
        // jmp [rip+10]
        ("ff 25 10000000", "ff 25 10f0ffff"),
        // syscall, ud2, ret 8
        ("0f 05", "0f 05"),
        ("0f 0b", "0f 0b"),
        ("c2 0800", "c2 0800"),
    ];
    for (code, expect) in rows {
        check(code, NEAR, Ok(expect));
    }
    check("48 89 e5", FAR, Ok("48 89 e5"));
    check(
        "48 8b 05 10000000",
        FAR,
        Err(RelocateError::OperandOutOfReach),
    );
    check(
        "67 48 8b 05 10000000",
        NEAR,
        Err(RelocateError::NotRelocatable),
    );
}

#[test]
fn jumps() {
    let rows = [
        // jmp rel8, jmp rel32, bnd jmp rel32
        ("eb 10", "e9 0df0ffff"),
        ("e9 00010000", "e9 00f1ffff"),
        ("f2 e9 00010000", "e9 01f1ffff"),
        // je rel8, je rel32, jg rel8 with a branch hint
        ("74 10", "0f 84 0cf0ffff"),
        ("0f 84 00010000", "0f 84 00f1ffff"),
        ("3e 7f 10", "0f 8f 0df0ffff"),
        // loop, loopne, jrcxz, jecxz
        ("e2 10", "e2 02 eb 05 e9 09f0ffff"),
        ("e0 10", "e0 02 eb 05 e9 09f0ffff"),
        ("e3 10", "e3 02 eb 05 e9 09f0ffff"),
        ("67 e3 10", "67 e3 02 eb 05 e9 09f0ffff"),
        // jrcxz to itself, je over a ret, jmp to the end (which is outside)
        ("e3 fe", "e3 02 eb 05 e9 f7ffffff"),
        ("74 01 c3 31 c0", "0f 84 01000000 c3 31 c0"),
        ("31 c0 eb fc", "31 c0 e9 f9ffffff"),
        ("eb 02 31 c0", "e9 fff0ffff 31 c0"),
    ];
    for (code, expect) in rows {
        if code != "eb 02 31 c0" {
            check(code, NEAR, Ok(expect));
        }
    }
    // 1004 is the first byte behind the displaced ones: home
    check("eb 02 31 c0", NEAR, Ok("e9 ffefffff 31 c0"));
    let far = [
        ("eb 10", "ff 25 00000000 1210000000000000"),
        ("74 10", "75 0e ff 25 00000000 1210000000000000"),
        ("e2 10", "e2 02 eb 0e ff 25 00000000 1210000000000000"),
        // inside the copy nothing is far
        ("74 01 c3 31 c0", "0f 84 01000000 c3 31 c0"),
    ];
    for (code, expect) in far {
        check(code, FAR, Ok(expect));
    }
    // into the middle of `xor eax, eax`; 16-bit distance or not; xbegin; int3
    check(
        "eb 01 31 c0",
        NEAR,
        Err(RelocateError::BranchIntoInstruction),
    );
    check("66 e9 00010000", NEAR, Err(RelocateError::NotRelocatable));
    check("66 74 10", NEAR, Err(RelocateError::NotRelocatable));
    check("c7 f8 00010000", NEAR, Err(RelocateError::NotRelocatable));
    check("cc", NEAR, Err(RelocateError::Breakpoint));
}

#[test]
fn calls() {
    let rows = [
        // call rel32; the linker's padded forms of it
        ("e8 00010000", "ff 35 05000000 e9 faf0ffff 0510000000000000"),
        (
            "67 e8 00010000",
            "ff 35 05000000 e9 fbf0ffff 0610000000000000",
        ),
        (
            "66 66 48 e8 00010000",
            "ff 35 05000000 e9 fdf0ffff 0810000000000000",
        ),
        // call to the next instruction, for its address
        ("e8 00000000", "ff 35 05000000 e9 faefffff 0510000000000000"),
        // call to the own entry
        ("e8 fbffffff", "ff 35 05000000 e9 f5efffff 0510000000000000"),
        // mov rbp, rsp; call rax
        (
            "48 89 e5 ff d0",
            "48 89 e5 ff 35 02000000 ff e0 0510000000000000",
        ),
        // call [rip+10]; call [r12+8]; call r12; notrack call [rax+8*rcx]; call fs:[10]
        (
            "ff 15 10000000",
            "ff 35 06000000 ff 25 0af0ffff 0610000000000000",
        ),
        (
            "41 ff 54 24 08",
            "ff 35 05000000 41 ff 64 24 08 0510000000000000",
        ),
        // call [rsp+8], call [rsp+rcx*8-16], call [rsp+1000]: behind the return address
        ("ff 54 24 08", "ff 35 04000000 ff 64 24 10 0410000000000000"),
        ("ff 54 cc f0", "ff 35 04000000 ff 64 cc f8 0410000000000000"),
        (
            "ff 94 24 00100000",
            "ff 35 07000000 ff a4 24 08100000 0710000000000000",
        ),
        ("41 ff d4", "ff 35 03000000 41 ff e4 0310000000000000"),
        ("3e ff 14 c8", "ff 35 04000000 3e ff 24 c8 0410000000000000"),
        (
            "64 ff 14 25 10000000",
            "ff 35 08000000 64 ff 24 25 10000000 0810000000000000",
        ),
    ];
    for (code, expect) in rows {
        check(code, NEAR, Ok(expect));
    }
    check(
        "e8 00010000",
        FAR,
        Ok("ff 35 0e000000 ff 25 00000000 0511000000000000 0510000000000000"),
    );
    check("ff d0 90", NEAR, Err(RelocateError::ReturnIntoPad));
    check("ff 14 24", NEAR, Err(RelocateError::CallThroughStack));
    check("ff 54 24 7f", NEAR, Err(RelocateError::CallThroughStack));
    check("ff d4", NEAR, Err(RelocateError::CallThroughStack));
    check("ff 18", NEAR, Err(RelocateError::NotRelocatable));
    check("ff 15 10000000", FAR, Err(RelocateError::OperandOutOfReach));
}

#[test]
fn relays() {
    let context = 0x1122_3344_5566_7788;
    let rows = [
        (NEAR, "49 bb 8877665544332211 e9 f1efffff"),
        (
            FAR,
            "49 bb 8877665544332211 ff 25 00000000 0010000000000000",
        ),
    ];
    for (at, expect) in rows {
        assert_eq!(hex(&relay(at, context, HOME)), hex(&bytes(expect)));
    }
}

/// One instruction, whose target is 3000 and which returns to 1100: its copy, and where that holds
/// what depends on places.
#[test]
fn one_instruction_and_its_fields() {
    let rows = [
        // mov rax, [rip+10]; cmp byte [rip+10], 0; nothing
        ("48 8b 05 10000000", "48 8b 05 10f0ffff", (Some(3), None)),
        ("80 3d 10000000 00", "80 3d 10f0ffff 00", (Some(2), None)),
        ("55", "55", (None, None)),
        // jmp rel8, je rel8, loop, jecxz
        ("eb 10", "e9 fb0f0000", (Some(1), None)),
        ("74 10", "0f 84 fa0f0000", (Some(2), None)),
        ("e2 10", "e2 02 eb 05 e9 f70f0000", (Some(5), None)),
        ("67 e3 10", "67 e3 02 eb 05 e9 f60f0000", (Some(6), None)),
        // xbegin
        ("c7 f8 10000000", "c7 f8 fa0f0000", (Some(2), None)),
        // call rel32, call rax, call [rip+10], call [r12+8]
        (
            "e8 00010000",
            "ff 35 05000000 e9 f50f0000 0011000000000000",
            (Some(7), Some(11)),
        ),
        (
            "ff d0",
            "ff 35 02000000 ff e0 0011000000000000",
            (None, Some(8)),
        ),
        (
            "ff 15 10000000",
            "ff 35 06000000 ff 25 0af0ffff 0011000000000000",
            (Some(8), Some(12)),
        ),
        (
            "41 ff 54 24 08",
            "ff 35 05000000 41 ff 64 24 08 0011000000000000",
            (None, Some(11)),
        ),
    ];
    for (code, expect, (relative, absolute)) in rows {
        let code_bytes = bytes(code);
        let mut copy = [0; 64];
        let mut emitter = Emitter::new(&mut copy, NEAR);
        let instruction = decode(&code_bytes).expect("an instruction");
        let fields = relocate_one(
            &instruction,
            &code_bytes,
            HOME,
            RunAddr(0x3000),
            RunAddr(0x1100),
            &mut emitter,
        );
        let len = emitter.len();
        assert_eq!(
            (hex(&copy[..len]), fields),
            (hex(&bytes(expect)), Ok(Fields { relative, absolute })),
            "{code}"
        );
    }
    // call [rip+10], call [rbx+rcx*8], call [rsp+8], call [rsp]
    let rows = [
        ("ff 15 10000000", Ok(("ff 25 10f0ffff", Some(2)))),
        ("ff 14 cb", Ok(("ff 24 cb", None))),
        ("ff 54 24 08", Ok(("ff 64 24 10", None))),
        ("ff 14 24", Err(RelocateError::CallThroughStack)),
    ];
    for (code, expect) in rows {
        let code_bytes = bytes(code);
        let mut copy = [0; 64];
        let mut emitter = Emitter::new(&mut copy, NEAR);
        let instruction = decode(&code_bytes).expect("an instruction");
        let field = call_as_jump(&instruction, &code_bytes, HOME, &mut emitter);
        let len = emitter.len();
        let found = field.map(|field| (hex(&copy[..len]), field));
        assert_eq!(
            found,
            expect.map(|(bytes_then, field)| (hex(&bytes(bytes_then)), field)),
            "{code}"
        );
    }
}
