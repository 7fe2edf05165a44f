//! *Which kind of number is this address?*
//!
//! Four kinds of address go through Pointee, all of them 64-bit numbers, and mixing two of them is
//! the classic defect of this field. Each is a type of its own; conversions are named functions.
//!
//! ```text
//!   FileOffset --(program headers)--> LinkAddr --(+ load bias)--> RunAddr
//!   Alleged: a RunAddr that a target *says* is one; it is checked before it is followed
//! ```

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `bytes` further on, wrapping at 2^64.
            #[must_use]
            pub const fn plus(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// The distance from `base` up to `self`; `None` when `self` lies below.
            #[must_use]
            pub const fn offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// An address as the ELF file states it (`p_vaddr`, `st_value`, DWARF's `DW_AT_low_pc`).
    LinkAddr
}
address! {
    /// An address in a running process (or its core file).
    RunAddr
}
address! {
    /// A position in a file, in bytes from its start.
    FileOffset
}
address! {
    /// An allegation from a target: a number it says is an address. Check it, then make a
    /// [`RunAddr`] of it.
    Alleged
}

/// Run-time minus link-time address of one loaded object (`l_addr` of glibc's link map).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LoadBias(pub u64);

impl LoadBias {
    /// Where `address` of the file lies in the process.
    #[must_use]
    pub const fn to_run(self, address: LinkAddr) -> RunAddr {
        RunAddr(address.0.wrapping_add(self.0))
    }

    /// Which address of the file lies at `address` of the process.
    #[must_use]
    pub const fn to_link(self, address: RunAddr) -> LinkAddr {
        LinkAddr(address.0.wrapping_sub(self.0))
    }
}
