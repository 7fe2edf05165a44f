//! Guards as compilers write them, and what looks like one: functions in assembly, linked by gcc.

use super::find;
use crate::elf::Elf;
use crate::sites::behind;
use std::process::Command;

/// `allocate` is the function; `asked` the one that may have a copy of it.
fn linked(name: &str, asked: &str, options: &[&str]) -> Elf {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("code.s");
    let text = format!(
        "
        .intel_syntax noprefix
        .data
pointer: .quad allocate
        .text
        .globl asked
        .hidden asked
        .type allocate, @function
        .type asked, @function
allocate: .cfi_startproc
        mov rax, [rip + pointer]
        lea rdx, [rip + allocate]
        cmp rax, rdx
        jne 1f
        xor eax, eax
        ret
1:      jmp rax
        .cfi_endproc
        .size allocate, . - allocate
asked:  .cfi_startproc
        {asked}
        .cfi_endproc
        .size asked, . - asked
        "
    );
    std::fs::write(&source, text).expect("written");
    let file = folder.path().join("code");
    let status = Command::new("gcc")
        .args(["-nostdlib", "-Wl,-e,asked"])
        .args(options)
        .arg("-o")
        .args([&file, &source])
        .status();
    assert!(status.is_ok_and(|status| status.success()), "{name}");
    Elf::open(&file).expect("an ELF file")
}

fn place(elf: &Elf, name: &str) -> (u64, u64) {
    let symbol = elf.symbols().find(|symbol| symbol.name == name);
    let symbol = symbol.expect("it is there");
    (symbol.address, symbol.address + symbol.size)
}

#[test]
fn of_promoted_calls() {
    let rows = [
        (
            "unequal goes away",
            "mov rax, [rip + pointer]; cmp rax, offset allocate; jne 1f; xor eax, eax; ret; 1: mov rdi, rsi; jmp rax",
            1,
        ),
        (
            "equal goes away",
            "cmp rax, offset allocate; je 1f; call rax; ret; 1: xor eax, eax; ret",
            1,
        ),
        (
            "a register holds the function",
            "lea rdx, [rip + allocate]; cmp rax, rdx; jne 1f; xor eax, eax; ret; 1: call rax; ret",
            1,
        ),
        (
            "moves between, and on the way",
            "cmp rax, offset allocate; mov rdi, rsi; jne 1f; xor eax, eax; ret; 1: mov rcx, rax; xor eax, eax; jmp 2f; 2: call rcx; ret",
            1,
        ),
        (
            "the constant is kept over a loop",
            "lea rbx, [rip + allocate]; 3: mov rax, [rip + pointer]; cmp rax, rbx; jne 1f; dec edi; 2: test edi, edi; jne 3b; ret; 1: call rax; jmp 2b",
            1,
        ),
        (
            "one way brings another constant",
            "lea rbx, [rip + allocate]; test edi, edi; je 3f; lea rbx, [rip + asked]; 3: cmp rax, rbx; jne 1f; xor eax, eax; ret; 1: call rax; ret",
            0,
        ),
        (
            "the way is another's",
            "cmp rax, offset allocate; jne 1f; xor eax, eax; ret; 1: call rcx; ret",
            0,
        ),
        (
            "the pointer is overwritten",
            "cmp rax, offset allocate; jne 1f; xor eax, eax; ret; 1: mov rax, rcx; call rax; ret",
            0,
        ),
        (
            "no copy but a call",
            "cmp rax, offset allocate; jne 1f; mov rdi, rsi; call allocate; ret; 1: call rax; ret",
            0,
        ),
        (
            "a question",
            "cmp rax, offset allocate; jne 1f; xor eax, eax; ret; 1: mov eax, 1; ret",
            0,
        ),
        (
            "others come to the branch",
            "test rdi, rdi; je 2f; cmp rax, offset allocate; 2: jne 1f; xor eax, eax; ret; 1: call rax; ret",
            0,
        ),
        (
            "the flags are looked at again",
            "cmp rax, offset allocate; jne 1f; xor eax, eax; ret; 1: seta cl; call rax; ret",
            0,
        ),
    ];
    for (name, asked, expected) in rows {
        let elf = linked(name, asked, &["-static", "-no-pie"]);
        let function = place(&elf, "allocate");
        let found = find(&elf, &[function]);
        assert_eq!(found.len(), expected, "{name}");
        for guard in found {
            let len = usize::from(guard.len);
            let now = elf.code_at(guard.address, len);
            assert_eq!(now, guard.original.get(..len), "{name}");
            assert_eq!(guard.function, function.0, "{name}");
        }
    }
}

#[test]
fn what_a_pointer_leads_to() {
    let rows = [
        ("read", "mov rax, [rip + pointer]; call rax; ret", true),
        (
            "behind a condition",
            "test rdi, rdi; js 1f; jmp [rip + pointer]; 1: ret",
            true,
        ),
        ("after a call", "call 1f; 1: jmp [rip + pointer]", false),
        ("its address only", "lea rax, [rip + pointer]; ret", false),
    ];
    for (name, asked, is_found) in rows {
        // The variable is filled by the linker, or by a relocation when the program starts.
        for options in [&["-static", "-no-pie"][..], &["-shared"]] {
            let elf = linked(name, asked, options);
            let (start, end) = place(&elf, "asked");
            let expected = is_found.then(|| place(&elf, "allocate"));
            assert_eq!(behind::find(&elf, start, end), expected, "{name}");
        }
    }
}
