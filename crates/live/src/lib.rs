//! *How is a function hooked in a program that is running?* The engine for one's own process: code is written, by one byte or with
//! all threads stopped for a moment, and unwinders and debuggers are told. What is to be written is planned by `pointee-patch`.
//!
//! World: **in the target**. `no_std`, raw system calls, memory of its own: the allocator may be what is hooked.
//!
//! # Contract
//!
//! | promise | how |
//! | --- | --- |
//! | any thread may call the engine at any time, while all others run | [`stop`] |
//! | a call that begins after [`replace`] returned comes to the hook; one that begins after [`Installed::remove`] returned does not | one byte, and all made to see it; or five, written while all threads stand still |
//! | no thread goes on in the middle of the pad | counters are moved to the copies of their instructions; those saved in signal frames are looked for |
//! | no page is writable and executable, and none that runs is made unexecutable | `/proc/self/mem` |
//! | after removal the text is what it was, byte for byte, and [`settle()`] gives all memory back | [`hook`] |
//! | around a [`probe`](mod@probe)'s handler all is kept that somebody may still read | `xsavec`, or the function's own code tells what |
//! | what cannot be done so is a [`Refusal`], and nothing has changed | |
//!
//! What the caller promises: the replacement has the type of what it replaces.
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
