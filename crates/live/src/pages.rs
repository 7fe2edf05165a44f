//! *Where does the engine keep what it needs for a moment?* In pages of its own: the program's allocator may be what is
//! being hooked, and a stopped thread may hold its lock.

#![allow(unsafe_code)] // Memory comes from the kernel.

use crate::sys::{self, Errno, map};

/// Writable pages, zeroed, given back when dropped.
#[derive(Debug)]
pub(crate) struct Pages {
    at: u64,
    len: usize,
}

impl Pages {
    /// At least `len` bytes.
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        let len = len.max(1).next_multiple_of(4096);
        let at = sys::map_pages(None, len, map::READ | map::WRITE)?;
        Ok(Self { at, len })
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: our own pages, and `self` is borrowed.
        unsafe { core::slice::from_raw_parts_mut(self.at as *mut u8, self.len) }
    }

    /// The pages as plain numbers.
    pub(crate) fn words<T: Plain>(&mut self) -> &mut [T] {
        // SAFETY: pages are aligned for any plain number, of which every bit pattern is one.
        unsafe {
            core::slice::from_raw_parts_mut(self.at as *mut T, self.len / core::mem::size_of::<T>())
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: ours, and nobody borrows them any more.
        unsafe { sys::unmap_pages(self.at, self.len) };
    }
}

/// # Safety
/// Any bits are a value; the alignment is a page's at most.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: plain numbers.
unsafe impl Plain for [u32; 2] {}
// SAFETY: plain numbers.
unsafe impl Plain for [u64; 2] {}
// SAFETY: plain numbers.
unsafe impl Plain for [[u64; 2]; 3] {}
