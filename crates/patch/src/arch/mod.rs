//! *What differs from one processor to the next?*
//!
//! Each architecture is a folder with the same files: `instruction` (what is known of one),
//! `decode` (bytes → instruction), `relocate` (instructions → the same instructions elsewhere),
//! `emit` (the few forms that we write ourselves), `sweep` (a run of code → its instructions).

pub mod x86_64;
