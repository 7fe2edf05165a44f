//! What debug info says of an allocation itself.

use super::{DebugFiles, Elf, Options, described, infer, read_facts};
use pointee_model::evidence::Witness;
use std::process::Command;

/// A function that returns `malloc(64)` as `void *`, and debug info as LLVM 21 writes it: a call site with the type. Its
/// attributes: 0x7d the address it returns to, 0x3e0e the type.
const CALL_SITE: &str = r#"
        .text
        .globl keep
        .type keep, @function
keep:   subq $8, %rsp
        movl $64, %edi
        call malloc@plt
.Lafter:
        addq $8, %rsp
        ret
.Lend:  .size keep, .-keep
        .section .debug_abbrev,"",@progbits
        .byte 1, 0x11, 1, 0x03, 8, 0x13, 5, 0x11, 1, 0x12, 6, 0, 0
        .byte 2, 0x2e, 1, 0x03, 8, 0x49, 0x13, 0x11, 1, 0x12, 6, 0, 0
        .byte 3, 0x48, 0, 0x7d, 1, 0x8e, 0x7c, 0x13, 0, 0
        .byte 4, 0x13, 0, 0x03, 8, 0x0b, 0x0b, 0, 0
        .byte 5, 0x0f, 0, 0x0b, 0x0b, 0, 0
        .byte 0
        .section .debug_info,"",@progbits
.Lunit: .long .Llast - .Lfirst
.Lfirst:
        .short 5
        .byte 1, 8
        .long 0
        .byte 1
        .asciz "stated.c"
        .short 0x1d
        .quad keep
        .long .Lend - keep
        .byte 2
        .asciz "keep"
        .long .Lpointer - .Lunit
        .quad keep
        .long .Lend - keep
        .byte 3
        .quad .Lafter
        .long .Lgadget - .Lunit
        .byte 0
.Lgadget:
        .byte 4
        .asciz "gadget"
        .byte 64
.Lpointer:
        .byte 5, 8
        .byte 0
.Llast:
        .section .note.GNU-stack,"",@progbits
"#;

#[test]
fn the_compiler_states_the_type() {
    let folder = tempfile::tempdir().expect("a folder");
    let (text, library) = (
        folder.path().join("stated.s"),
        folder.path().join("stated.so"),
    );
    std::fs::write(&text, CALL_SITE).expect("the source is written");
    let status = Command::new("gcc")
        .args(["-shared", "-o"])
        .args([&library, &text])
        .status();
    assert!(status.expect("the compiler runs").success());
    let elf = Elf::open(&library).expect("the linker writes ELF");
    let facts = read_facts(&elf, &DebugFiles::inside(&elf));
    let found = infer(&elf, &facts, &Options::default());
    let sites: Vec<_> = found
        .sites
        .iter()
        .map(|site| described(&facts, site))
        .collect();
    // Without it the function would hand out what its callers want.
    assert_eq!(sites, ["Whole struct gadget"], "{found:#?}");
    let witnesses = found.sites[0].evidence.iter().map(|seen| seen.witness);
    assert!(witnesses.into_iter().any(|it| it == Witness::Compiler));
}
