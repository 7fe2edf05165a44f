//! *How is code put into a running program?* The instrumentation engine; it knows nothing of
//! allocation.
//!
//! World: **in the target**, before any allocator works, and on the host. `no_std`, nothing is
//! allocated, nothing is written, no unsafe code: bytes and addresses come in, bytes and addresses
//! go out. Who writes them into the target's text, and what the other threads do meanwhile, is the
//! caller's matter.
//!
//! # Words
//!
//! ```text
//!    caller             function                 relay                      hook
//!   ┌────────────┐     ┌──────────────────┐     ┌──────────────────────┐   ┌─────────────────┐
//!   │ call f     │────►│ (endbr64)        │  ┌─►│ mov r11, context     │──►│ look at it,     │
//!   └────────────┘     │ jmp relay ── pad │──┘  │ jmp hook             │   │ call or jump to │
//!                      ├──────────────────┤     └──────────────────────┘   │ the trampoline  │
//!                      │ the rest of f    │◄─┐   trampoline                └───────┬─────────┘
//!                      │ …                │  │  ┌──────────────────────┐           │
//!                      └──────────────────┘  │  │ displaced, relocated │◄──────────┘
//!                                            └──│ jmp rest of f        │
//!                                               └──────────────────────┘
//! ```
//!
//! - **Launch pad**: the five bytes at a patch point that are overwritten by `jmp rel32`.
//! - **Displaced instructions**: those that had a byte among them.
//! - **Trampoline**: the displaced instructions, relocated, and a jump to the first instruction
//!   that was not displaced. To call it is to call the function as it was.
//! - **Relay**: a stub within reach of the pad that loads a constant and goes to the hook, which
//!   may be anywhere.
//!
//! # Levels
//!
//! Each can be used without those below it in the table.
//!
//! | level | what comes in | what goes out | what the caller sees to |
//! | --- | --- | --- | --- |
//! | [`decode`](arch::x86_64::decode), [`sweep`](arch::sweep) | any bytes | instructions: length, flow, distances, operands as far as moving them asks for | |
//! | [`relocate`](arch::x86_64::relocate) | whole instructions, where they are and where they are to run | a copy that does the same, and where in it each begins | that nothing else jumps into the originals' middle |
//! | [`plan_entry`] | a function's code from its entry, with the padding behind it | the pad, the trampoline, the bytes before ([`EntryPlan`]) | room for relay and trampoline within 2 GiB; branches from outside the function: [`find_inward_branches`] |
//! | [`plan_one_byte`] | the same | the same, of which the first byte alone changes | that the relay lies where [`one_byte_jump`] says |
//! | [`plan_instruction`] | all of a function, and an instruction's place in it | the same for that instruction | as for [`plan_entry`], and whether exceptions are caught in the function |
//! | [`act`](arch::x86_64::context::act), [`liveness`](arch::x86_64::liveness) | counters and calls of handlers; a function's code | code that does them and changes nothing that is still read | which convention the function's callers and callees keep to |
//! | [`stores`](arch::x86_64::stores) | code, a variable | the instructions that write it, and what they store | |
//! | [`placement`], [`instances`] | bytes made on the host from a file | what to map and write for probes all over it; where its inlined functions are | that the file loaded is that file |
//! | [`debug_file`] | names, unwind rules, lines | a file for gdb's interface | who is told of it |
//!
//! # Strategy
//!
//! The caller finds room for a relay and a trampoline within 2 GiB of the function; [`plan_entry`] computes the bytes; the caller writes
//! trampoline and relay, makes them executable, and writes the pad last. [`EntryPlan::removal`] undoes that. Threads that stand
//! inside the pad are moved as [`EntryPlan::resume_after_installation`] tells.
//!
//! An `endbr64` stays first, for indirect branches must land on one. When a function ends before
//! the pad does (`ret`, then padding up to the next one), the padding is overwritten too.
//!
//! Any other instruction of a function is planned for by [`plan_instruction`], and what is done there is written by
//! [`act`](arch::x86_64::context::act) with as much of the processor's state saved around it as is asked for, and as somebody still reads.
//!
//! That is for one function at a time, in the target. For a whole file, with a probe at any of its
//! instructions, the planning is done on the host (crate `pointee-probe`), and [`placement`] is what
//! is handed over.
//!
//! # Invariants
//!
//! 1. *A pad is never entered but at its start.* The function's own direct branches are searched,
//!    and by [`find_inward_branches`] those of all code around it; a displaced call returns to where
//!    it always did, which is behind the pad or refused.
//! 2. *The trampoline does what the displaced instructions did*, to the flag and the byte of stack;
//!    what cannot be done so is refused, never approximated. The exception: a displaced call, see
//!    [`arch::x86_64::relocate`], reads its return address from the trampoline.
//! 3. *Only the pad's bytes change*, and the plan holds what they were.
//! 4. *Any bytes may come in.* Decoding, relocating and planning never panic.
//!
//! # What is not known here
//!
//! - Branches from code that was not given are not seen, nor are indirect ones: a jump table with a
//!   case in the first five bytes, which compilers do not make.
//! - That no other thread is inside the pad while it is written, and how five bytes become visible
//!   at once, is up to the caller (Intel SDM 3A, 9.1.3: cross-modifying code).
//! - What the indirect jumps of a function, and exceptions caught in it, arrive at. In such functions a pad behind the entry
//!   covers a single instruction or is refused; `pointee-probe`, which reads jump tables and landing pads, does better.
//! - GCC's `-fipa-ra` lets callers in one unit rely on registers that the callee happens not to
//!   clobber. For a function that is called from its own unit, a hook has to keep all of them, and
//!   a relay that uses `r11` may not be used.
//! - An indirect jump or call to a relay's hook, and a hook's call of a trampoline through a pointer,
//!   land on no `endbr64` unless the hook has one: nothing here serves a process with indirect-branch
//!   tracking, which Linux does not offer to programs so far.
//! - A jump of the function to its own first instruction comes to the hook like a call; the plan says
//!   so ([`EntryPlan::looped`]), and it is for the hook's owner to judge.
//! - Saved program counters — in a signal's frame, in a `ucontext` — can lie inside a pad like those of
//!   running threads.
//!
//! # What is refused
//!
//! [`Refusal`] lists it. Of the functions of Debian 12's libc, libstdc++, libcrypto, libsqlite3,
//! libpython, perl, bash and git 99.6 to 100 % can be hooked, of its python3.11, which was split into
//! hot and cold parts by a profile, 98 %; the test `coverage` counts each reason.
//!
//! # Example
//!
//! ```
//! use pointee_model::addr::RunAddr;
//! use pointee_patch::{Entry, plan_entry};
//!
//! // push rbp; mov rbp, rsp; sub rsp, 16; leave; ret
//! let code = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10, 0xc9, 0xc3];
//! let entry = Entry { code: &code, at: RunAddr(0x1000), body_len: None };
//! let plan = plan_entry(&entry, RunAddr(0x2000), RunAddr(0x3000))?;
//! assert_eq!(plan.pad, [0xe9, 0xfb, 0x1f, 0, 0]); // jmp 0x3000
//! assert_eq!(plan.trampoline[..8], code[..8]);
//! assert_eq!(plan.removal().bytes, code[..5]);
//! # Ok::<(), pointee_patch::Refusal>(())
//! ```

#![no_std]
#![forbid(unsafe_code)]

pub mod arch;
pub mod branches;
pub mod debug_file;
pub mod instances;
pub mod placement;
pub mod plan;

pub use branches::{InwardBranch, PadSpan, find_inward_branches};
pub use plan::{
    Entry, EntryPlan, Original, Place, Refusal, TRAMPOLINE_MAX, Write, one_byte_jump, plan_entry,
    plan_instruction, plan_one_byte,
};
