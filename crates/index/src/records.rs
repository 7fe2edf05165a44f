//! *Which objects are loaded, and what did we change in them?*
//!
//! Records are appended, never moved; the header's counters say how many are whole.

pub use pointee_model::entries::Role;

use core::sync::atomic::AtomicU64;

/// A loaded object. Unloading keeps the record and sets `unloaded`.
#[derive(Debug)]
#[repr(C)]
pub struct Module {
    /// First byte in the process.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Run-time minus link-time address.
    pub bias: u64,
    /// Path, in the string section.
    pub path: u32,
    /// Bytes of the build ID; 0 if there is none.
    pub build_id_len: u32,
    /// Build ID.
    pub build_id: [u8; 20],
    /// Bits of [`module_flags`].
    pub flags: u32,
    /// How many modules had been unloaded when this one was; `u64::MAX` while it is loaded.
    pub unloaded: AtomicU64,
}

/// Bits of [`Module::flags`].
#[allow(missing_docs)]
pub mod module_flags {
    pub const EXECUTABLE: u32 = 1;
    pub const RUNTIME: u32 = 2;
    pub const DYNAMIC_LINKER: u32 = 4;
    /// The vDSO: code without a file.
    pub const VDSO: u32 = 16;
}

/// How a hook was placed, or why not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Placement {
    Refused = 0,
    /// A five-byte jump over the first instructions.
    Jump = 1,
}

/// One patched entry: what was there, what is there, why.
#[derive(Debug)]
#[repr(C)]
pub struct Hook {
    /// First byte that differs.
    pub address: u64,
    /// The code that the launch pad leads to.
    pub trampoline: u64,
    /// Name of the function, in the string section.
    pub name: u32,
    /// The module it lies in.
    pub module: u32,
    /// Bytes before.
    pub before: [u8; 16],
    /// Bytes after.
    pub after: [u8; 16],
    /// How many of them.
    pub len: u8,
    /// [`Role`].
    pub role: u8,
    /// [`Placement`].
    pub placement: u8,
    /// For a refusal, the engine's reason as a byte.
    pub reason: u8,
    /// The origin under which calls of this entry are recorded; 0 for none.
    pub root: u32,
}
