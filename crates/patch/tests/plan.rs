//! *Is a function planned for, and as what?* One row per shape of prologue.
#![allow(missing_docs)]

use pointee_model::addr::RunAddr;
use pointee_patch::{
    Entry, EntryPlan, PadSpan, Place, Refusal, TRAMPOLINE_MAX, find_inward_branches, plan_entry,
    plan_instruction,
};

const AT: RunAddr = RunAddr(0x1000);
const TRAMPOLINE: RunAddr = RunAddr(0x2000);
const RELAY: RunAddr = RunAddr(0x3000);

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn plan(body: &str, padding: &str) -> Result<EntryPlan, Refusal> {
    let mut code = bytes(body);
    let body_len = Some(code.len());
    code.extend(bytes(padding));
    let entry = Entry {
        code: &code,
        at: AT,
        body_len,
    };
    plan_entry(&entry, TRAMPOLINE, RELAY)
}

/// `expect`: the pad's offset, the displaced bytes, whether the pad is looped to, the trampoline.
#[track_caller]
fn check(body: &str, padding: &str, expect: Result<(u32, u8, bool, &str), Refusal>) {
    let found = plan(body, padding);
    let shown = found.map(|p| {
        (
            p.pad_offset,
            p.displaced_len,
            p.looped,
            p.trampoline.to_vec(),
        )
    });
    let expect = expect.map(|(at, len, looped, t)| (at, len, looped, bytes(t)));
    assert_eq!(shown, expect, "{body} | {padding}");
    if let Ok(plan) = found {
        let code = bytes(&format!("{body}{padding}"));
        let at = plan.pad_offset as usize;
        assert_eq!(plan.removal().bytes, code[at..at + 5]);
        assert_eq!(plan.installation().at, plan.removal().at);
    }
}

/// The displaced bytes of a probe at `offset`.
#[test]
fn any_instruction() {
    // mov eax, 1; nop; xor ecx, ecx; push rax; pop rax; ret
    let plain = "b801000000 90 31c9 50 58 c3";
    // xor ecx, ecx; nop; nop; add rcx, rax; jmp rax
    let jumps = "31c9 90 90 4801c1 ffe0";
    // call +0; add eax, 1; nop; nop; ret
    let calls = "e800000000 83c001 90 90 c3";
    let rows = [
        (plain, 0, false, Ok(5)),
        (plain, 5, false, Ok(5)),
        (plain, 5, true, Err(Refusal::UnknownTargets)),
        (plain, 2, false, Err(Refusal::NoInstruction)),
        (plain, 11, false, Err(Refusal::NoInstruction)),
        (plain, 9, false, Ok(2)),
        (jumps, 0, false, Ok(7)),
        // The jump might go there; not into the first bytes.
        (
            "90 31c9 90 90 4801c1 ffe0",
            5,
            false,
            Err(Refusal::UnknownTargets),
        ),
        ("90 b801000000 ffe0", 1, true, Ok(5)),
        (calls, 0, false, Ok(5)),
        (calls, 5, false, Ok(5)),
        ("90 e800000000 c3", 0, false, Ok(6)),
        ("90 90 e800000000 c3", 0, false, Ok(7)),
        // nop; call rax: it would return into the pad
        ("90 ffd0 90 90 90 c3", 0, false, Err(Refusal::ReturnIntoPad)),
        // endbr64: behind it
        ("f30f1efa b801000000 c3", 0, false, Ok(5)),
    ];
    for (body, offset, catches, expected) in rows {
        let mut code = bytes(body);
        let body_len = Some(code.len());
        code.extend([0xcc; 8]);
        let function = Entry {
            code: &code,
            at: AT,
            body_len,
        };
        let place = Place {
            function,
            offset,
            catches,
        };
        let found = plan_instruction(&place, TRAMPOLINE, RELAY);
        let found = found.map(|plan| plan.displaced_len);
        assert_eq!(found, expected, "{body} at {offset}");
    }
}

#[test]
fn prologues() {
    // push rbp; mov rbp, rsp; sub rsp, 16 …
    check(
        "55 4889e5 4883ec10 c3",
        "",
        Ok((0, 8, false, "55 4889e5 4883ec10 e9 fbefffff")),
    );
    // endbr64 stays
    check(
        "f30f1efa 55 4889e5 53 c3",
        "",
        Ok((4, 5, false, "55 4889e5 53 e9 ffefffff")),
    );
    // … and a jump to it comes to the pad
    check(
        "f30f1efa 55 4889e5 53 75f5 c3",
        "",
        Ok((4, 5, true, "55 4889e5 53 e9 ffefffff")),
    );
    // exactly five bytes
    check(
        "b801000000 c3",
        "",
        Ok((0, 5, false, "b801000000 e9 fbefffff")),
    );
    // the last displaced instruction leaves: nothing to go back to
    check("31c0 31d2 c3", "", Ok((0, 5, false, "31c0 31d2 c3")));
    check("e9 00010000", "", Ok((0, 5, false, "e9 00f1ffff")));
    // a displaced call returns home by itself
    check(
        "e8 00010000 c3",
        "",
        Ok((0, 5, false, "ff35 05000000 e9 faf0ffff 0510000000000000")),
    );
    // the pad's start is the head of a loop; a call of itself is a call
    check(
        "48ffc0 48ffc9 75f8 c3",
        "",
        Ok((0, 6, true, "48ffc0 48ffc9 e9 fbefffff")),
    );
    check(
        "4883ec08 90 e8f6ffffff c3",
        "",
        Ok((0, 5, false, "4883ec08 90 e9 fbefffff")),
    );
}

#[test]
fn short_functions() {
    // ret, then padding of each kind
    check("c3", "66662e0f1f840000000000", Ok((0, 1, false, "c3")));
    check("c3", "90909090", Ok((0, 1, false, "c3")));
    check("c3", "cccccccc", Ok((0, 1, false, "c3")));
    check("31c0 c3", "0f1f00", Ok((0, 3, false, "31c0 c3")));
    check("eb10", "6690 6690", Ok((0, 2, false, "e9 0df0ffff")));
    check("f30f1efa c3", "660f1f440000", Ok((4, 1, false, "c3")));
    // the padding counts as the body's
    check("c3 90909090", "", Ok((0, 1, false, "c3")));
    // no padding, too little, or something else
    check("c3", "", Err(Refusal::TooShort));
    check("c3", "9090", Err(Refusal::TooShort));
    check("c3", "31c031c0", Err(Refusal::TooShort));
    check("31c0 c3 31c0 c3", "", Err(Refusal::TooShort));
    // a jump to behind its end: what follows is no padding, then
    check("7401 c3", "90909090", Err(Refusal::TooShort));
    // falls through into what follows
    check("31c0", "90909090", Err(Refusal::TooShort));
    // its last instruction sticks out of it
    check("b8010000", "00c390", Err(Refusal::TooShort));
    check("", "", Err(Refusal::TooShort));
    // je over a ret: what follows the ret is the function's
    check(
        "7401 c3 31c0 c3",
        "",
        Ok((0, 5, false, "0f84 01000000 c3 31c0 e9 f7efffff")),
    );
}

#[test]
fn refusals() {
    // jump back to the second instruction
    check("55 4889e5 53 ebfa", "", Err(Refusal::InwardBranch));
    // jump back into the middle of an instruction, rel32
    check(
        "55 4889e5 53 0f84f7ffffff c3",
        "",
        Err(Refusal::InwardBranch),
    );
    check("06 4889e5 53 c3", "", Err(Refusal::Undecodable));
    check("cc 4889e5 53 c3", "", Err(Refusal::Breakpoint));
    check("ffd0 90 90 90 c3", "", Err(Refusal::ReturnIntoPad));
    check("9090 ff1424 c3", "", Err(Refusal::CallThroughStack));
    check("c7f800010000 c3", "", Err(Refusal::NotRelocatable));
}

#[test]
fn reach() {
    let code = bytes("488b0510000000 c3");
    let entry = Entry {
        code: &code,
        at: AT,
        body_len: None,
    };
    let far = RunAddr(1 << 40);
    assert_eq!(
        plan_entry(&entry, TRAMPOLINE, far),
        Err(Refusal::RelayOutOfReach)
    );
    assert_eq!(
        plan_entry(&entry, far, RELAY),
        Err(Refusal::OperandOutOfReach)
    );
    // Without an operand, the trampoline may be anywhere.
    let code = bytes("554889e553c3");
    let entry = Entry {
        code: &code,
        at: AT,
        body_len: None,
    };
    let plan = plan_entry(&entry, far, RELAY).expect("a plan");
    assert_eq!(
        *plan.trampoline,
        *bytes("554889e553 ff2500000000 0510000000000000")
    );
    // The last address that a pad reaches, and the one behind it.
    let last = AT.plus(5 + 0x7fff_ffff);
    assert!(plan_entry(&entry, TRAMPOLINE, last).is_ok());
    assert_eq!(
        plan_entry(&entry, TRAMPOLINE, last.plus(1)),
        Err(Refusal::RelayOutOfReach)
    );
}

/// The longest trampoline there can be: its size is what a caller allots.
#[test]
fn longest() {
    let code = bytes("e240 e240 67676767676767676767676767e240 c3");
    let entry = Entry {
        code: &code,
        at: AT,
        body_len: None,
    };
    let plan = plan_entry(&entry, RunAddr(1 << 40), RELAY).expect("a plan");
    assert_eq!(plan.trampoline.len(), TRAMPOLINE_MAX);
}

#[test]
fn program_counters() {
    let plan = plan("55 7401 c3 5d c3", "9090").expect("a plan");
    let rows = [
        // at the start: it will enter the pad, like a call
        (0x1000, Some(0x1000)),
        (0x1001, Some(0x2001)),
        (0x1002, None),
        (0x1003, Some(0x2007)),
        (0x1004, Some(0x2008)),
        (0x1005, Some(0x1005)),
        (0x0fff, Some(0x0fff)),
    ];
    for (pc, expect) in rows {
        assert_eq!(
            plan.resume_after_installation(RunAddr(pc)),
            expect.map(RunAddr),
            "{pc:#x}"
        );
    }
    let rows = [
        (0x2000, Some(0x1000)),
        (0x2001, Some(0x1001)),
        (0x2006, Some(0x1001)),
        (0x2008, Some(0x1004)),
        // the jump home
        (0x2009, Some(0x1005)),
        (0x200d, Some(0x1005)),
        (0x1fff, None),
        (0x2000 + plan.trampoline.len() as u64, None),
    ];
    for (pc, expect) in rows {
        let found = plan
            .original_of(RunAddr(pc))
            .map(|o| (o.at.0, o.return_pushed));
        assert_eq!(found, expect.map(|at| (at, false)), "{pc:#x}");
    }
    // push rbx; call: before and behind the push of the return address
    let plan = self::plan("53 e8 00010000 5b c3", "").expect("a plan");
    for (pc, expect) in [
        (0x2000, (0x1000, false)),
        (0x2001, (0x1001, false)),
        (0x2007, (0x1001, true)),
    ] {
        let found = plan
            .original_of(RunAddr(pc))
            .map(|o| (o.at.0, o.return_pushed));
        assert_eq!(found, Some(expect), "{pc:#x}");
    }
}

/// Branches from elsewhere: each row is code at 0x1800, and what it does to pads at 0x1000 (eight
/// displaced bytes), 0x1810 and 0x1820 (three, and padding).
#[test]
fn branches_from_elsewhere() {
    let pads = [(0x1000, 8), (0x1810, 5), (0x1820, 3)].map(|(at, displaced_len)| PadSpan {
        at: RunAddr(at),
        displaced_len,
    });
    /// From, target, index of the pad.
    type Found = (u64, u64, usize);
    let rows: &[(&str, &[Found])] = &[
        // jmp to a pad's start, to its second byte, its fifth, and behind it
        ("e9 fbf7ffff", &[]),
        ("e9 fcf7ffff", &[(0x1800, 0x1001, 0)]),
        ("e9 fff7ffff", &[(0x1800, 0x1004, 0)]),
        ("e9 00f8ffff", &[]),
        // je forward; calls into it are no better
        ("90 74 10", &[(0x1801, 0x1813, 1)]),
        ("e8 0c000000", &[(0x1800, 0x1811, 1)]),
        // from the pad's own displaced code to displaced code, and to it from behind
        (
            "0f1f8000000000 0f1f8000000000 6690 31c0 74fc 90 74fa",
            &[(0x1815, 0x1811, 1)],
        ),
        // from displaced code into the padding under the pad
        (
            "0f1f8000000000 0f1f8000000000 0f1f8000000000 0f1f8000000000 0f1f4000 eb02",
            &[(0x1820, 0x1824, 2)],
        ),
        // behind bytes that are no instruction
        ("06 06 e9 fcf7ffff", &[(0x1802, 0x1003, 0)]),
    ];
    for (code, expect) in rows {
        let code_bytes = bytes(code);
        let found: Vec<_> = find_inward_branches(&code_bytes, RunAddr(0x1800), &pads)
            .map(|branch| (branch.from.0, branch.target.0, branch.pad))
            .collect();
        assert_eq!(found, *expect, "{code}");
    }
}

/// Whatever the bytes, an answer and no panic.
#[test]
fn hostile_bytes() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..1_000_000_u64 {
        let mut code = [0; 32];
        for chunk in code.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes());
        }
        let len = (state % 33) as usize;
        let body_len = (round % 3 != 0).then_some((state >> 8) as usize % 40);
        let entry = Entry {
            code: &code[..len],
            at: RunAddr(state),
            body_len,
        };
        let at = RunAddr(state.wrapping_add(round << 12));
        if let Ok(plan) = plan_entry(&entry, at, at) {
            assert!(!plan.trampoline.is_empty());
        }
    }
}
