//! *How is a function hooked in a program that is running?* The engine for one's own process: code is written, by one byte or with
//! all threads stopped for a moment, and unwinders and debuggers are told. What is to be written is planned by `pointee-patch`.
//!
//! World: **in the target**. `no_std`, raw system calls, memory of its own: the allocator may be what is hooked.
//!
//! # Levels
//!
//! | level | what it does | what it needs | what it does not reach |
//! | --- | --- | --- | --- |
//! | [`replace()`] | calls of a function go to another, which can call the original | the replacement has the function's type, and keeps the registers that its callers rely on | code that was inlined |
//! | [`wrap()`] | any function is seen at its call and its return, its true return address included | observers that return; 128 calls deep in a thread, 1,024 threads | hardware shadow stacks, `swapcontext` between the two |
//! | [`redirect`] | one call or tail call goes elsewhere | a `rel32`, or a distance to a cell | |
//! | [`redirect_callers`] | all calls of a function, each where it is made, when it first comes | a choice that any thread may ask for at any moment | by registers and tail calls it stays at the entry |
//! | [`redirect_imports`] | all calls through the slots of an import; no code changes, no thread stops | relocations of the loaded objects | addresses that were copied elsewhere; objects loaded later, until asked to look again |
//! | [`probe()`] | a counter, or a handler with the registers, before any instruction | the function's bounds, by its unwind rules; a handler that keeps to its [`Context`] | several instructions under one pad where indirect jumps or handlers of exceptions arrive unknown |
//! | [`stores_to`], [`inlined()`] | the instructions that write a variable, the beginnings of inlined bodies: places for probes | a variable that is named in the instruction; a table made from debug info | stores through pointers; what debug info does not tell |
//!
//! # Contract
//!
//! What is promised at each level:
//!
//! | promise | how |
//! | --- | --- |
//! | any thread may call the engine at any time, while all others run | [`stop`] |
//! | a call that begins after [`replace()`] returned comes to the hook; one that begins after [`Installed::remove`] returned does not | one byte, and all made to see it; or five, written while all threads stand still |
//! | no thread goes on in the middle of the pad | counters are moved to the copies of their instructions; those saved in signal frames are looked for |
//! | no page is writable and executable, and none that runs is made unexecutable | `/proc/self/mem` |
//! | after removal the text is what it was, byte for byte, and [`settle()`] gives all memory back | [`hook`] |
//! | around a probe's handler all is kept that somebody may still read | `xsavec`, or the function's own code tells what |
//! | unwinders go through each byte that was written, as far as the function itself could be unwound; debuggers have its name and a line for each instruction | `.eh_frame`, a file in memory; [`write_listings`], [`write_perf_map`] for who wants to read them |
//! | what cannot be done so is a [`Refusal`], and nothing has changed | |
//!
//! What the caller promises, at each level:
//!
//! - The address is one at which an instruction begins; of [`replace()`], [`wrap()`] and [`redirect_callers`] a function's first.
//! - The object it lies in stays loaded as long as the hook is in place.
//! - The engine is not called by a signal handler that interrupts the dynamic linker or an unwinder, whose locks it may need, nor by an observer or handler that
//!   runs where such a lock is held.
//! - Nobody else changes the same bytes. Who has done so before is found out, and refused; who does so later is found out at removal ([`Refusal::TextChanged`]).
//!
//! What the process must be: on Linux, x86-64, with `/proc` mounted and itself dumpable, since code is written through `/proc/self/mem`. Lengths of functions,
//! names and objects are asked of libgcc's unwinder and of the dynamic linker if they are there, by weak symbols: without them hooks that need
//! those are refused.
//!
//! # What it is not for
//!
//! Other processes (they are stopped by ptrace), and code in which every instruction is to be seen (`pointee-probe`).
#![no_std]

mod announce;
pub mod callers;
mod change;
mod characters;
mod crowd;
pub mod entry;
mod frames;
pub mod hook;
pub mod inlined;
mod island;
mod lines;
mod listing;
mod lock;
mod maps;
mod objects;
mod pages;
mod perf_map;
pub mod probe;
mod processor;
pub mod refusal;
mod restart;
mod settle;
pub mod sites;
pub mod slots;
pub mod stop;
pub mod stores;
mod stubs;
mod sys;
pub mod tasks;
mod text;
mod unwinder;
pub mod wrap;

pub use callers::redirect_callers;
pub use entry::replace;
pub use hook::Installed;
pub use inlined::inlined;
pub use listing::write_listings;
pub use perf_map::write_perf_map;
pub use pointee_patch::arch::x86_64::context::{Action, Context, Registers};
pub use pointee_patch::arch::x86_64::liveness::Convention;
pub use pointee_patch::arch::x86_64::stores::Stored;
pub use probe::{Probe, probe};
pub use refusal::Refusal;
pub use settle::settle;
pub use sites::redirect;
pub use slots::{SlotHook, redirect_imports};
pub use stop::{Pause, StopError};
pub use stores::stores_to;
pub use stubs::Saved;
pub use sys::Errno;
pub use wrap::{Observers, wrap};
