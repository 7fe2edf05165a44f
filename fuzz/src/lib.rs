//! *What do the fuzz targets share?*
//!
//! ```text
//!   real files ──seeds──▶ inputs ──▶ target ──region──▶ index, snapshot ──questions──▶ everything that can be asked
//! ```
//!
//! A target checks that no bytes make a parser panic, overflow, run for long or take much memory
//! (the last two are libFuzzer's `-timeout` and `-rss_limit_mb`), and what can be said of any answer:
//! a block holds the address it was found by, a trampoline decodes.

pub mod questions;
pub mod region;
pub mod seeds;
