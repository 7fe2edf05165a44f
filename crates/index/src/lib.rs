//! *Which allocation does this address lie in?* — world: hooks (`no_std`, no allocation, no blocking, no system call).
//!
//! The index is one region of memory that a watched process writes and anyone may read: mapped
//! from a file that outlives the process, or private to it, or the tables alone private to it. Everything in it is addressed by
//! offsets from the region's start, so the same bytes are read in the process, from another one, or
//! from a file on another machine.
//!
//! ```text
//!   region
//!   ├ header        magic, geometry, process, totals            layout
//!   ├ modules       loaded objects, by load order               records
//!   ├ hooks         patched entries, bytes before and after     records
//!   ├ strings       names and paths                             records
//!   ├ signal stacks thread → its alternate signal stack           signal_stacks
//!   ├ mismatches    (origin, freeing origin) → frees             mismatches
//!   ├ directory     (level, 64 MiB chunk, plane) → table        table
//!   ├ covers        level, chunk → block over its first byte    table
//!   ├ pages         page → who mapped it, and how               pages
//!   ├ origins       (parent, return address) → origin           origins
//!   ├ peak          origin → live at the highest moment         counters
//!   ├ threads       per thread: running totals                counters
//!   ├ counters      per thread: origin → allocations, frees     counters
//!   └ tables        granule words, mapped when first written    table, words
//! ```
//!
//! Invariants
//! - A block is inserted and erased by the thread that owns it; words of different blocks never
//!   share a granule of one plane. No lock, and no read-modify-write on shared words, in [`Writer::insert`] and [`Writer::erase`].
//! - A reader may see a block half written only as absent (see [`words`] for the order of stores).
//! - The writer never follows a value read back from the region without bounds: a process
//!   that scribbles over its index loses answers, nothing else.
//! - The crate makes no system call; memory it is given reads as zero where never written.
#![no_std]

pub mod claim;
pub mod class;
pub mod counters;
pub mod direct;
pub mod handoff;
pub mod layout;
mod marks;
pub mod mismatches;
pub mod nested;
pub mod origins;
pub mod pages;
pub mod peak;
pub mod read;
pub mod records;
pub mod signal_stacks;
pub mod table;
pub mod words;

pub use layout::{Geometry, Header};
pub use read::{Index, Memory};
pub use table::Writer;
