//! *What is this process's heap made of, and what lies at this address?* — world: host (`std`).
//!
//! Reads the two things everything is read from: an index (of a live process, a dead one, a
//! snapshot) and the metadata images of the files that were loaded.
//!
//! ```text
//!   file, process, snapshot ──memory──▶ Index ──process──▶ ProcessData
//!                                                               │ + images
//!   snapshot ◀── one file with all of it          resolve: path of return addresses → site, type
//!                                                               │
//!                              report (histogram, sites) ◀──────┴──────▶ lookup (one address), census (all)
//!                              │    text                                 │  space, describe, value
//! ```
//!
//! Invariants
//! - Whatever comes from a target or a file is untrusted: bounds-checked, cut to what is there,
//!   never a panic, memory in proportion to what was really written.
//! - Nothing here runs in the target or writes to it, and nothing stops it unless asked to ([`space::Stop`]).
//! - No analysis of debug info happens here: images come in ready-made ([`images::Images`]). Unwind rules are
//!   read where the process has them, in its memory.

pub mod at_peak;
pub mod census;
pub mod describe;
pub mod explain;
pub mod footprint;
pub mod images;
pub mod lookup;
pub mod memory;
pub mod pages;
pub mod process;
pub mod report;
pub mod resolve;
pub mod running;
pub mod snapshot;
pub mod space;
pub mod text;
pub mod types;
pub mod value;
pub mod wrong_frees;
