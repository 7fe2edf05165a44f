//! *Where does a probe at each instruction of a file go?* — world: host (`std`).
//!
//! ```text
//!   ELF file ─functions, landing_pads─▶ functions ─code, pointers, indirect─▶ instructions, marks
//!        ─blocks─▶ blocks ─points, signals─▶ points ─place, room─▶ pads ─flags, island─▶ placement (bytes)
//! ```
//!
//! [`Plan::new`] reads one file and answers with a [`Plan`]: the bytes that put a counter at each
//! chosen instruction ([`pointee_patch::placement`]), and for each of these instructions how that
//! is done, or why it is not. Nothing is run and nothing is patched here; what is planned holds for
//! every process that loads the file, wherever it is loaded.
//!
//! # What it promises
//!
//! - *Inward branches are known before a byte is moved*: direct ones, jump tables, landing pads,
//!   returns, pointers ([`crate`]'s modules `code` and `indirect` say from what). In a function
//!   where the targets of an indirect jump cannot be told, every instruction counts as a target.
//! - *Calls return where they always did*: their return addresses are those of the original code,
//!   so that exceptions, `longjmp`, `backtrace` and debuggers see no copies above the innermost
//!   frame.
//! - *A counter changes nothing that is read*: flags that are live are saved, the red zone is
//!   respected, no register is used but one that is about to be overwritten.
//! - *Counts are exact*, in one thread and in many ([`pointee_patch::placement`], `lock`).
//!
//! - *Traps are the last resort*, and can be refused ([`Wanted::traps`]). Where they are allowed, system calls that may
//!   block or take `SIGTRAP` are handed over to whoever applies the placement (module `signals`); in a file
//!   where one of those cannot be, there is no trap.
//!
//! # What it needs
//!
//! - x86-64 ELF. Function bounds come from `.eh_frame` and symbols; code that is in neither is left
//!   alone.
//! - Code that does not read or check itself. A program that compares its own text will see pads.
//! - For traps: that code which is in no file, made while the program runs, makes no system calls about signals; that a
//!   debugger hands the signal on: gdb stops at a trap, and goes on in the copy by `signal SIGTRAP`; `continue` would skip it.
//!
//! # What it does not do yet
//!
//! - A breakpoint that a debugger sets in displaced code, in the original bytes, is not hit.
//! - The copies have no unwind information of their own: an unwinder that starts *inside* a copy, in
//!   a signal handler, does not get out of the innermost frame. (A thread that waits in the kernel, or
//!   has called something, is never in a copy.)
//! - A program that handles its own faults by the address of the instruction (some virtual machines)
//!   will not know the copy's.
//! - Restartable sequences (`rseq`) are not looked for; glibc's own use none.

mod blocks;
mod carvings;
mod code;
mod flags;
mod frames;
mod functions;
mod indirect;
mod instances;
mod island;
mod landing_pads;
mod overlap;
mod place;
mod plan;
mod pointers;
mod points;
mod room;
mod signals;
mod subjects;
mod tactics;
mod untold;
mod values;

pub use carvings::tell_of_cursors;
pub use functions::{Exclusion, Function};
pub use instances::{InstancesError, inlined_instances};
pub use plan::{Plan, PlanError, Point, Wanted};
pub use points::At;
pub use tactics::{Refusal, Tactic};
pub use untold::function_starts;
pub use values::{Form, Seen, Value, ValueKind};
