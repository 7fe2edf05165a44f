//! *How do we know that type?*
//!
//! Every typed site carries its witnesses. A witness is one observation in the code, the debug info
//! or the source ([`Witness`]) that points at one type in one role ([`Role`]); the [`Verdict`] says
//! how the witnesses of a site agree. Stored as bytes in the image; unknown bytes read as the
//! variant that claims least.

/// What part the type plays in the allocation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Role {
    /// Not known.
    Unknown = 0,
    /// The allocation is one object of the type.
    Whole = 1,
    /// The allocation is an array of the type; its length follows from the requested size.
    Element = 2,
    /// The allocation starts with the type and goes on with an array (`tail` of the site, if known).
    Header = 3,
    /// The allocation holds some type derived from this one.
    Base = 4,
    /// Bytes with no more structure.
    Bytes = 5,
    /// Characters: a string.
    Characters = 6,
}

/// What was seen that points at a type.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Witness {
    /// Not one of those below.
    Unknown = 0,
    /// `sizeof` in the source text of the call.
    SizeofInSource = 1,
    /// The result lies where debug info says a typed variable lies.
    Variable = 2,
    /// The result is stored into a typed field.
    Field = 3,
    /// The result is stored into a typed global.
    Global = 4,
    /// The result is returned from a function with a typed result.
    Result = 5,
    /// The result is passed to a typed parameter.
    Parameter = 6,
    /// The old pointer of a reallocation is typed.
    Reallocated = 7,
    /// A template or generic argument of an inlined or called function.
    TemplateArgument = 8,
    /// A virtual table stored into the object.
    VirtualTable = 9,
    /// The object is the `this` of a constructor.
    Constructor = 10,
    /// Built-in knowledge of the called library function (`fopen` makes a `FILE`).
    Model = 11,
    /// The compiler's own statement (`DW_AT_LLVM_alloc_type` and the like).
    Compiler = 12,
    /// The user's configuration.
    Configuration = 13,
    /// A cast in the source text of the call.
    CastInSource = 14,
    /// What the source text assigns the result to.
    AssignedInSource = 15,
    /// What the function that allocates copies into the block: `copy_of(pointer, size)`.
    Copied = 16,
}

/// How the witnesses of one site agree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Verdict {
    /// No witness.
    Unknown = 0,
    /// One independent kind of witness.
    Single = 1,
    /// Two or more independent kinds, one type.
    Agreed = 2,
    /// Witnesses of different types.
    Conflicting = 3,
    /// Every destination seen is a `void *`, or nobody takes the address.
    Opaque = 4,
}

macro_rules! from_byte {
    ($type:ident: $($variant:ident),+) => {
        impl $type {
            /// Reads the stored byte; a byte of no variant is `Unknown`.
            #[must_use]
            pub const fn from_byte(byte: u8) -> Self {
                $(if byte == Self::$variant as u8 { return Self::$variant; })+
                Self::Unknown
            }
        }
    };
}

from_byte!(Role: Whole, Element, Header, Base, Bytes, Characters);
from_byte!(Witness: SizeofInSource, Variable, Field, Global, Result, Parameter, Reallocated,
    TemplateArgument, VirtualTable, Constructor, Model, Compiler, Configuration, CastInSource,
    AssignedInSource, Copied);
from_byte!(Verdict: Single, Agreed, Conflicting, Opaque);

impl Witness {
    /// The word used in reports and JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::SizeofInSource => "sizeof",
            Self::Variable => "variable",
            Self::Field => "field",
            Self::Global => "global",
            Self::Result => "result",
            Self::Parameter => "parameter",
            Self::Reallocated => "realloc",
            Self::TemplateArgument => "template",
            Self::VirtualTable => "vtable",
            Self::Constructor => "constructor",
            Self::Model => "model",
            Self::Compiler => "compiler",
            Self::Configuration => "configuration",
            Self::CastInSource => "cast",
            Self::Copied => "copy",
            Self::AssignedInSource => "assigned",
        }
    }
}

impl Role {
    /// The word used in JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Whole => "whole",
            Self::Element => "element",
            Self::Header => "header",
            Self::Base => "base",
            Self::Bytes => "bytes",
            Self::Characters => "characters",
        }
    }
}

impl Verdict {
    /// The word used in reports and JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Single => "single",
            Self::Agreed => "agreed",
            Self::Conflicting => "conflicting",
            Self::Opaque => "opaque",
        }
    }
}
