//! *Which build of a file is this, where no build ID says so?*
//!
//! Linkers leave the build ID out if they are told to, and some compilers' wrappers tell them (`musl-gcc`). A *stand-in* takes its place
//! wherever a build is named: a digest of the program headers and of the code, which are the same in the file, in a stripped copy of it, and
//! in the memory of a process before anybody patches it.

use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

/// Bytes of a stand-in.
pub const LEN: usize = 16;

/// Whether a segment's bytes are digested: those of the first one of which this is true are. `kind` and `flags` as in a program header.
#[must_use]
pub const fn is_code(kind: u32, flags: u32) -> bool {
    const PT_LOAD: u32 = 1;
    const EXECUTE: u32 = 1;
    const WRITE: u32 = 2;
    const READ: u32 = 4;
    // What may be written need not stay as it was in the file, and what may only run cannot be read.
    kind == PT_LOAD && flags & (EXECUTE | WRITE | READ) == EXECUTE | READ
}

/// The stand-in for the build ID of a file with these program headers, as stored, and these bytes of code, as many as the file has.
#[must_use]
pub fn stand_in(program_headers: &[u8], code: &[u8]) -> [u8; LEN] {
    xxh3_128_with_seed(code, xxh3_64(program_headers)).to_le_bytes()
}
