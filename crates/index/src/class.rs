//! *Who has to free this block?* — four bits that a block carries from its origin.
//!
//! ```text
//!   3 2   allocator   the first three by number; all further ones share the fourth
//!   1 0   kind        C's way, new, new[]; or blocks were cut out of it: then that says nothing more
//! ```
//!
//! A freeing function has a class too. Where both differ, somebody may have freed by the wrong function: the runtime notes the
//! two paths ([`crate::mismatches`]), and readers judge. Equal classes say nothing is wrong that this can see.

use crate::words::{CLASS_MASK, CLASS_SHIFT};

/// In which way a block is asked for and given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `malloc` and `free`, or what an allocator has in their place.
    C = 0,
    /// `operator new` and `operator delete`.
    New = 1,
    /// `operator new[]` and `operator delete[]`.
    NewArray = 2,
}

impl Kind {
    /// That of one of C++'s operators, by its mangled name (Itanium C++ ABI, §5.1.3: `nw`, `na`, `dl`, `da`).
    #[must_use]
    pub fn of_operator(name: &str) -> Self {
        if name.starts_with("_Zna") || name.starts_with("_Zda") {
            Self::NewArray
        } else {
            Self::New
        }
    }
}

/// A class, as it lies in words and in numbers of origins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class(u32);

impl Class {
    /// The allocators that are told from each other, and all others together.
    pub const ALLOCATORS: u32 = 4;

    /// The class of blocks of allocator `number`, counted from 0, in one of the ways.
    #[must_use]
    pub const fn new(number: u32, kind: Kind) -> Self {
        let number = if number < Self::ALLOCATORS {
            number
        } else {
            Self::ALLOCATORS - 1
        };
        Self((number << 2 | kind as u32) << CLASS_SHIFT)
    }

    /// Of a word or an origin.
    #[inline(always)]
    #[must_use]
    pub const fn of(word: u32) -> Self {
        Self(word & CLASS_MASK)
    }

    /// The bits to put into a word or an origin.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The same allocator's, in another way.
    #[must_use]
    pub const fn with_kind(self, kind: Kind) -> Self {
        Self(self.0 & !(3 << CLASS_SHIFT) | (kind as u32) << CLASS_SHIFT)
    }

    /// Set in the word of a block that others were cut out of: equal to no freeing function's class.
    pub const CONTAINER: u32 = 3 << CLASS_SHIFT;

    /// Whether blocks were cut out of a block of this class.
    #[must_use]
    pub const fn is_container(self) -> bool {
        self.0 & Self::CONTAINER == Self::CONTAINER
    }

    /// In which way; a class that no writer makes is C's.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self.0 >> CLASS_SHIFT & 3 {
            1 => Kind::New,
            2 => Kind::NewArray,
            _ => Kind::C,
        }
    }

    /// The allocator's number, [`Self::ALLOCATORS`] - 1 for several.
    #[must_use]
    pub const fn allocator(self) -> u32 {
        self.0 >> (CLASS_SHIFT + 2)
    }
}
