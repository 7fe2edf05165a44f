//! *Which blocks were alive at the highest point?*
//!
//! Where that is wanted, a process has a second file, twice as long as its region. Whenever the peak is captured by
//! origin, the parts of the region that hold blocks, and what was captured, are copied there, the two halves in turn, to
//! the places that they have in the region:
//!
//! ```text
//!   copy 0   mark, …, owners of tables, directory, covers, …, peak, …, tables
//!   copy 1   the same, of another moment
//! ```
//!
//! A process that ends while it copies leaves the other half whole. All else that a reader needs (paths,
//! modules, strings) only grows, and is in the region.

use crate::layout::Layout;
use core::ops::Range;
use core::sync::atomic::AtomicU64;

/// Copies in the file.
pub const COPIES: u64 = 2;

/// First bytes of a copy.
#[derive(Debug)]
#[repr(C)]
pub struct Mark {
    /// Which capture it is, counted from 1; 0 while it is written.
    pub number: AtomicU64,
    /// Bytes alive then, as counted.
    pub live_bytes: AtomicU64,
}

/// The parts of a region that a copy has, in order.
#[must_use]
pub const fn copied(layout: &Layout) -> [Range<u64>; 3] {
    [
        layout.table_owners..layout.page_chunks,
        layout.peak..layout.threads,
        layout.tables..layout.len,
    ]
}
