//! *How are bytes of code written?* Through `/proc/self/mem`, which writes where the process itself may not: no page becomes
//! writable and executable, and no page that may be running becomes unexecutable. Private pages of a file are copied
//! for this process by the kernel, as they would be for a debugger.

#![allow(unsafe_code)] // Writes code.

use pointee_model::addr::RunAddr;

use crate::sys::{Errno, File};

/// The process's memory as a file.
pub(crate) struct Text(File);

impl Text {
    /// Refused where the process is not its own to debug (`PR_SET_DUMPABLE`), or has no `/proc`.
    pub(crate) fn open() -> Result<Self, Errno> {
        File::open(c"/proc/self/mem", true).map(Self)
    }

    /// Writes all of `bytes`.
    ///
    /// # Safety
    /// No thread runs there, or none is harmed.
    pub(crate) unsafe fn write(&self, at: RunAddr, bytes: &[u8]) -> Result<(), Errno> {
        // SAFETY: the caller's promise.
        match unsafe { self.0.write_at(bytes, at.0) }? {
            written if written == bytes.len() => Ok(()),
            _ => Err(Errno(5)),
        }
    }

    /// Reads, where the memory may be anything: fewer bytes, or an error, where it ends.
    pub(crate) fn read(&self, at: RunAddr, into: &mut [u8]) -> Result<usize, Errno> {
        self.0.read_at(into, at.0)
    }
}
