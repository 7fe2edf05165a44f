//! *What does Pointee know of one ELF file, and how is that laid out in bytes?*
//!
//! A metadata image is a header, a table of sections, and sections of fixed-size records:
//!
//! ```text
//!   0   Header           magic, format, number of sections, provenance
//!   64  Section[n]       kind, record size, offset, count
//!   …   records          each section 8-byte aligned; tables ordered by address where they have one
//!   …   strings          UTF-8, NUL-terminated, offset 0 is the empty string
//! ```
//!
//! Invariants: every multi-byte field is little-endian and naturally aligned; every reference
//! is an index or an offset, never a pointer; a reader checks each before use, for an
//! image is a file that anyone can write. A different [`FORMAT`] is not read but rebuilt.
//! All addresses are link-time addresses ([`crate::addr::LinkAddr`]).

mod view;

pub use view::{Image, ImageError};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first eight bytes of every image.
pub const MAGIC: [u8; 8] = *b"PTEEIMG\0";
/// Grows whenever a record changes its layout *or its meaning* (a better analysis counts).
pub const FORMAT: u32 = 42;
/// Bytes of a string, at most: a damaged image may have thousands of references to one without end.
pub const STRING_MAX: usize = 1 << 16;
/// A [`TypeIndex`] that says "not known".
pub const NO_TYPE: TypeIndex = u32::MAX;

/// Index into [`Image::types`]; [`NO_TYPE`] for none.
pub type TypeIndex = u32;
/// Offset into the string section; 0 for the empty string.
pub type StrRef = u32;
/// Index into the file-name section ([`Image::file_name`]); `u32::MAX` for none.
pub type FileIndex = u32;

/// Start of the image.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`FORMAT`].
    pub format: u32,
    /// How many [`Section`]s follow.
    pub sections: u32,
    /// Build ID of the file described (its first 20 bytes, zero-padded), or what stands in for it ([`crate::identity`]).
    pub build_id: [u8; 20],
    /// Its length in bytes.
    pub build_id_len: u32,
    /// What the image was made from: eight bytes that hash debug file, dwz, dwo, sources and configuration, and eight that hash the
    /// [`section_kind::IMPORTS`], zero where there are none.
    pub provenance: [u8; 16],
    /// Bits of [`header_flags`].
    pub flags: u64,
}

/// Bits of [`Header::flags`].
pub mod header_flags {
    /// Debug info (DWARF) was found and read.
    pub const HAS_DWARF: u64 = 1;
    /// Source files were found and read.
    pub const HAS_SOURCES: u64 = 2;
}

/// Where one kind of record lies.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Section {
    /// A number of [`section_kind`].
    pub kind: u32,
    /// Bytes a record.
    pub record: u32,
    /// From the image's start, a multiple of 8.
    pub offset: u64,
    /// How many records.
    pub count: u64,
}

/// Values of [`Section::kind`]. A reader passes over kinds it does not know.
#[allow(missing_docs)]
pub mod section_kind {
    pub const STRINGS: u32 = 1;
    pub const TYPES: u32 = 2;
    pub const MEMBERS: u32 = 3;
    pub const ENUMERATORS: u32 = 4;
    pub const FUNCTIONS: u32 = 5;
    pub const LINES: u32 = 6;
    pub const INLINES: u32 = 7;
    pub const SITES: u32 = 8;
    pub const EVIDENCE: u32 = 9;
    pub const VARIABLES: u32 = 10;
    pub const FILES: u32 = 11;
    pub const ENTRIES: u32 = 12;
    pub const SECTIONS: u32 = 13;
    pub const LOCALS: u32 = 14;
    pub const SYSTEM_CALLS: u32 = 15;
    pub const CURSORS: u32 = 16;
    pub const GUARDS: u32 = 17;
    pub const EXPORTS: u32 = 18;
    pub const IMPORTS: u32 = 19;
}

/// What a [`TypeRecord`] is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum TypeKind {
    Unknown = 0,
    Void = 1,
    /// Integers, floats, booleans, characters; see [`TypeRecord::encoding`].
    Base = 2,
    Pointer = 3,
    Reference = 4,
    RvalueReference = 5,
    MemberPointer = 6,
    Struct = 7,
    Class = 8,
    Union = 9,
    Enum = 10,
    /// `count` elements of `target`; `u64::MAX` when the length is not known.
    Array = 11,
    /// `target` is the result ([`NO_TYPE`] for void); members are the parameters.
    Function = 12,
    Typedef = 13,
    Const = 14,
    Volatile = 15,
    Restrict = 16,
    Atomic = 17,
    /// A Rust enum or other tagged union: members carry [`MemberRecord::discriminant`].
    Variant = 18,
}

impl TypeKind {
    /// Reads the stored byte.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Void,
            2 => Self::Base,
            3 => Self::Pointer,
            4 => Self::Reference,
            5 => Self::RvalueReference,
            6 => Self::MemberPointer,
            7 => Self::Struct,
            8 => Self::Class,
            9 => Self::Union,
            10 => Self::Enum,
            11 => Self::Array,
            12 => Self::Function,
            13 => Self::Typedef,
            14 => Self::Const,
            15 => Self::Volatile,
            16 => Self::Restrict,
            17 => Self::Atomic,
            18 => Self::Variant,
            _ => Self::Unknown,
        }
    }
}

/// One unique type.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TypeRecord {
    /// Hash of name and structure; equal in every image for the same type.
    pub identity: [u8; 16],
    /// Size in bytes; `u64::MAX` when not known (a declaration, `void`, a function).
    pub size: u64,
    /// Arrays: number of elements, `u64::MAX` when not known. Otherwise 0.
    pub count: u64,
    /// Qualified name without keyword (`commit`, `std::pair<int, int>`); empty if anonymous.
    pub name: StrRef,
    /// Pointee, element, underlying or result type; [`NO_TYPE`] for `void` or none.
    pub target: TypeIndex,
    /// First record in the member section (in the enumerator section for enums).
    pub first_member: u32,
    /// How many.
    pub members: u32,
    /// [`TypeKind`].
    pub kind: u8,
    /// DWARF `DW_ATE_*` of base types, 0 otherwise.
    pub encoding: u8,
    /// Bits of [`type_flags`].
    pub flags: u16,
    /// Zero.
    pub reserved: u32,
}

/// Bits of [`TypeRecord::flags`].
pub mod type_flags {
    /// Declared, never defined, in this file.
    pub const DECLARATION: u16 = 1;
    /// Has a virtual table pointer.
    pub const POLYMORPHIC: u16 = 2;
    /// The type itself has no name: the name is its only typedef's, or one made for it (`(anonymous struct at list.c:12)`).
    pub const ANONYMOUS: u16 = 4;
}

/// One member of a struct, class, union or variant; one parameter of a function type.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemberRecord {
    /// Byte offset in the enclosing type (of the storage unit, for bit-fields).
    pub offset: u64,
    /// For an arm of a variant, the tag's value.
    pub discriminant: u64,
    /// Empty for anonymous members and base classes.
    pub name: StrRef,
    /// Its type.
    pub r#type: TypeIndex,
    /// Bit-fields: first bit counted from the least significant bit of `offset`.
    pub bit_offset: u16,
    /// Bit-fields: width in bits; 0 for ordinary members.
    pub bit_size: u16,
    /// Bits of [`member_flags`].
    pub flags: u32,
}

/// Bits of [`MemberRecord::flags`].
#[allow(missing_docs)]
pub mod member_flags {
    pub const BASE_CLASS: u32 = 1;
    pub const VIRTUAL_BASE: u32 = 2;
    pub const ARTIFICIAL: u32 = 4;
    /// `discriminant` holds.
    pub const HAS_DISCRIMINANT: u32 = 8;
    /// The tag of a variant.
    pub const IS_DISCRIMINANT: u32 = 16;
}

/// One enumerator.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EnumeratorRecord {
    /// Sign-extended to 64 bits.
    pub value: i64,
    /// Its name.
    pub name: StrRef,
    /// Zero.
    pub reserved: u32,
}

/// One contiguous piece of a function, in order of `start`; pieces do not overlap.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FunctionRecord {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Readable name, demangled and qualified.
    pub name: StrRef,
    /// Linker name; equals `name` where there is none other.
    pub linkage_name: StrRef,
    /// File of the definition.
    pub file: FileIndex,
    /// Line of the definition; 0 if not known.
    pub line: u32,
    /// Type of the result; [`NO_TYPE`] for `void` or not known.
    pub result: TypeIndex,
    /// Bits of [`function_flags`].
    pub flags: u32,
}

/// Bits of [`FunctionRecord::flags`].
pub mod function_flags {
    /// From a symbol table, not from debug info.
    pub const FROM_SYMBOL: u32 = 1;
    /// A `.cold` or otherwise split-off piece, not the entry.
    pub const PIECE: u32 = 2;
    /// Hands out memory for its caller: the sites in it are not the answer, its callers' are.
    pub const WRAPPER: u32 = 4;
}

/// A row of the line table: holds from `address` to the next row. In order of address.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LineRecord {
    /// First byte of the row.
    pub address: u64,
    /// `u32::MAX`: no position from here on.
    pub file: FileIndex,
    /// 0: not known.
    pub line: u32,
}

/// One contiguous piece of an inlined call, in order of `start`, outer before inner.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InlineRecord {
    /// First byte.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Readable name of the inlined function.
    pub name: StrRef,
    /// Where it is called from.
    pub call_file: FileIndex,
    /// Line of that call.
    pub call_line: u32,
    /// 1 for a function inlined directly into the concrete one, 2 for one inlined into that, …
    pub depth: u32,
}

/// One allocation site, in order of `return_address`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SiteRecord {
    /// Address of the instruction after the call (or after the tail jump): what the walk finds.
    pub return_address: u64,
    /// Address of the call itself.
    pub call: u64,
    /// Name of what is called.
    pub callee: StrRef,
    /// Type in `role`; [`NO_TYPE`] if not known.
    pub r#type: TypeIndex,
    /// For [`Role::Header`](crate::evidence::Role::Header): element of the trailing array, or [`NO_TYPE`].
    pub tail: TypeIndex,
    /// First record in the evidence section.
    pub first_evidence: u32,
    /// How many.
    pub evidence: u32,
    /// [`Role`](crate::evidence::Role).
    pub role: u8,
    /// [`Verdict`](crate::evidence::Verdict).
    pub verdict: u8,
    /// Bits of [`site_flags`].
    pub flags: u16,
}

/// Bits of [`SiteRecord::flags`].
pub mod site_flags {
    /// The call is made inside a wrapper on behalf of its caller: walk on.
    pub const WRAPPER: u16 = 1;
    /// A tail jump: no frame of this function remains at run time.
    pub const TAIL: u16 = 2;
    /// The call is indirect.
    pub const INDIRECT: u16 = 4;
    /// Reallocates.
    pub const REALLOC: u16 = 8;
    /// The call of a function that jumps to an allocation function: it has the type of that site, of whose function no
    /// frame remains, and counts where it is the innermost frame outside of wrappers and libraries of the language.
    pub const STAND_IN: u16 = 16;
    /// No call: the instruction carves the block out of the stack, or of a pool by moving its cursor.
    pub const NO_CALL: u16 = 32;
    /// Four bits: of a header, the logarithm of the bytes in front of the array, which end with the header; 0: there are no others than its own.
    pub const ARRAY_AT: u16 = 0xf00;

    /// [`ARRAY_AT`] for an array that begins `bytes`, a power of two, into the block.
    #[must_use]
    pub const fn array_at(bytes: u64) -> u16 {
        (bytes.trailing_zeros() as u16) << ARRAY_AT.trailing_zeros() & ARRAY_AT
    }
}

impl SiteRecord {
    /// See [`site_flags::STAND_IN`].
    #[must_use]
    pub fn stands_in(&self) -> bool {
        self.flags & site_flags::STAND_IN != 0
    }

    /// Where the array begins whose header is so many bytes long.
    #[must_use]
    pub fn array_at(&self, header: u64) -> u64 {
        match (self.flags & site_flags::ARRAY_AT) >> site_flags::ARRAY_AT.trailing_zeros() {
            0 => header,
            bits => header.max(1 << bits),
        }
    }
}

/// One witness of one site.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EvidenceRecord {
    /// The type it points at, or [`NO_TYPE`] (a `void *` destination).
    pub r#type: TypeIndex,
    /// Name of the variable, field, parameter or function seen; may be empty.
    pub what: StrRef,
    /// Address of the instruction that shows it; 0 where it is source text.
    pub address: u64,
    /// [`Witness`](crate::evidence::Witness).
    pub witness: u8,
    /// [`Role`](crate::evidence::Role).
    pub role: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

/// One variable with a fixed address (global, static, function-local static): those of all threads in order of address, then
/// the thread-local ones in order of offset. Two never overlap but where one starts inside the other.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VariableRecord {
    /// First byte; an offset in the TLS block for thread-local ones.
    pub address: u64,
    /// Bytes, 0 if not known.
    pub size: u64,
    /// Qualified name.
    pub name: StrRef,
    /// Its type.
    pub r#type: TypeIndex,
    /// Bits of [`variable_flags`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// Bits of [`VariableRecord::flags`].
pub mod variable_flags {
    /// One in each thread: the address is an offset in the thread-local block.
    pub const THREAD_LOCAL: u32 = 1;
    /// From a symbol table, not from debug info: no type.
    pub const FROM_SYMBOL: u32 = 2;
}

/// One section that is loaded, in order of address.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SectionRecord {
    /// First byte.
    pub address: u64,
    /// Bytes in memory.
    pub size: u64,
    /// `.data`, `.rodata`, …
    pub name: StrRef,
    /// Bits of [`section_flags`].
    pub flags: u32,
}

/// Bits of [`SectionRecord::flags`].
#[allow(missing_docs)]
pub mod section_flags {
    pub const WRITABLE: u32 = 1;
    pub const CODE: u32 = 2;
    /// Takes no bytes of the file: `.bss`.
    pub const ZEROED: u32 = 4;
    /// The initial contents of thread-local blocks.
    pub const THREAD_LOCAL: u32 = 8;
}

/// Where one local variable or parameter lies over one piece of code, in order of `start`. A variable that moves has several.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LocalRecord {
    /// First byte of the code over which it lies there; never before the start of the function's piece.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Counted from the register, or from the canonical frame address.
    pub offset: i64,
    /// Its name.
    pub name: StrRef,
    /// Its type.
    pub r#type: TypeIndex,
    /// Name of the inlined function it belongs to; 0 for the function's own.
    pub inline: StrRef,
    /// DWARF number of the register, for all places but [`LocalPlace::Frame`].
    pub register: u16,
    /// [`LocalPlace`].
    pub place: u8,
    /// 1: a parameter.
    pub flags: u8,
}

/// Where a [`LocalRecord`] says its variable is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum LocalPlace {
    /// Not known.
    Unknown = 0,
    /// In the register itself: it has no address.
    Register = 1,
    /// In memory, at register + offset.
    Memory = 2,
    /// In memory, at the canonical frame address + offset.
    Frame = 3,
    /// Nowhere: its value is register + offset.
    Value = 4,
    /// In memory, at the address that is kept at register + offset ([`LocalRecord::CFA`]: at the canonical frame address + offset).
    Behind = 5,
}

impl LocalRecord {
    /// Stands for the canonical frame address among the registers.
    pub const CFA: u16 = u16::MAX;

    /// Whether it is a parameter, of an inlined function too.
    #[must_use]
    pub const fn is_parameter(&self) -> bool {
        self.flags & 1 != 0
    }
}

impl LocalPlace {
    /// Reads the stored byte.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Register,
            2 => Self::Memory,
            3 => Self::Frame,
            4 => Self::Value,
            5 => Self::Behind,
            _ => Self::Unknown,
        }
    }
}

/// One entry point to hook, where the dynamic symbols alone do not show it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EntryRecord {
    /// Address of the function.
    pub address: u64,
    /// Bytes of its body, 0 if not known.
    pub size: u64,
    /// Its name (`malloc`, `je_malloc` …).
    pub name: StrRef,
    /// What the configuration says of it ([`Declared::to_word`](crate::entries::Declared::to_word)); 0: the role that its name has.
    pub role: u32,
}

/// A `syscall` instruction that may change what is mapped, and the bytes that a jump to a hook may replace; in order of `window`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SystemCallRecord {
    /// First byte that may be replaced: a whole number of instructions from there on, entered at the first only.
    pub window: u64,
    /// The number in `eax`; [`UNKNOWN`](Self::UNKNOWN) if that is only known when it runs.
    pub number: u32,
    /// Bytes that may be replaced; 0 if there is no room for a jump.
    pub len: u8,
    /// How far into them the instruction lies.
    pub offset: u8,
    /// What they are.
    pub original: [u8; Self::LONGEST],
    /// Zero.
    pub reserved: [u8; 2],
}

impl SystemCallRecord {
    /// Bytes at most.
    pub const LONGEST: usize = 24;
    /// The number is not known.
    pub const UNKNOWN: u32 = u32::MAX;
}

/// One instruction that writes the cursor of a pool, in order of `address`: moved on, it carves a block; set back, it takes
/// back what lies between.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CursorRecord {
    /// Address of the instruction.
    pub address: u64,
    /// Address of the one after it: what a site has for a return address.
    pub next: u64,
    /// The member or variable that is the cursor.
    pub name: StrRef,
    /// How many bytes into the instruction's memory operand the cursor lies.
    pub within: u16,
    /// Bits of [`cursor_flags`].
    pub flags: u16,
    /// Of a number, where the bytes begin that it counts: bytes from the number on, or an address.
    pub base: i64,
    /// How many these are, if they are a variable; else 0.
    pub room: u64,
    /// How much a number grows by; 0: by what it is more then.
    pub step: u32,
    /// Bytes of what a number counts.
    pub scale: u16,
    /// A number was rounded up to a multiple of `1 << rounded` before it grew.
    pub rounded: u16,
}

/// Bits of [`CursorRecord::flags`].
pub mod cursor_flags {
    /// Blocks are carved downwards.
    pub const DOWN: u16 = 1;
    /// The cursor is a number.
    pub const COUNTS: u16 = 2;
    /// It has four bytes.
    pub const NARROW: u16 = 4;
    /// `base` is an address.
    pub const FIXED: u16 = 8;
    /// At `base` lies a pointer to the bytes that are counted.
    pub const HELD: u16 = 16;
    /// Nothing is carved out: what lies behind is taken back.
    pub const ONLY_BACK: u16 = 32;
}

/// A branch that decides whether a call through a pointer runs a copy of the function that it nearly always leads to, in order of `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GuardRecord {
    /// First byte of the branch.
    pub address: u64,
    /// The function that there is a copy of.
    pub function: u64,
    /// What the branch is.
    pub original: [u8; Self::LONGEST],
    /// What is to be there, for the call to be made always.
    pub always: [u8; Self::LONGEST],
    /// Bytes of both.
    pub len: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

impl GuardRecord {
    /// Bytes at most: of a near branch on a condition.
    pub const LONGEST: usize = 6;
}

/// What one function that hands out memory does for its callers in other files: in order of name, of those that the file exports, and
/// of those of other files by whose summaries its own sites were found.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SummaryRecord {
    /// [`TypeRecord::identity`] of what its result points to; zero for `void`, or not known.
    pub base: [u8; 16],
    /// Where in the block its result points: bytes; `i64::MIN` for anywhere, `i64::MIN + 1 + n` for what argument `n` says.
    pub offset: i64,
    /// Bytes added to the size.
    pub add: i64,
    /// Factor of the size.
    pub scale: u32,
    /// Its linker name, without a version.
    pub name: StrRef,
    /// File name of the file that defines it; empty for the file described.
    pub library: StrRef,
    /// Bits of [`summary_flags`].
    pub flags: u32,
    /// How its arguments say the size: a number of [`summary_size`].
    pub size: u8,
    /// The argument that counts, or the mask of them.
    pub first: u8,
    /// The other argument of a product.
    pub second: u8,
    /// The argument that is the old block; [`SummaryRecord::NONE`] if there is none.
    pub old: u8,
    /// The argument that is the size of one element, likewise.
    pub unit: u8,
    /// The argument through which the block is stored, likewise.
    pub out: u8,
    /// The argument whose text, or what else it points to, is copied, likewise.
    pub text: u8,
    /// Zero.
    pub reserved: u8,
}

impl SummaryRecord {
    /// No argument.
    pub const NONE: u8 = u8::MAX;
}

/// Values of [`SummaryRecord::size`].
#[allow(missing_docs)]
pub mod summary_size {
    pub const UNKNOWN: u8 = 0;
    /// `scale · first + add`.
    pub const ARGUMENT: u8 = 1;
    /// `first · second`: count and unit.
    pub const PRODUCT: u8 = 2;
    /// Computed in some way from the arguments in the mask `first`.
    pub const DERIVED: u8 = 3;
}

/// Bits of [`SummaryRecord::flags`].
pub mod summary_flags {
    /// It returns the block.
    pub const RETURNS: u32 = 1;
    /// It hands out text.
    pub const TEXT: u32 = 2;
    /// It puts the block somewhere too.
    pub const KEPT: u32 = 4;
    /// What it returns is some element of an array that it lets grow.
    pub const ELEMENT: u32 = 8;
    /// It cuts its blocks out of larger ones.
    pub const POOL: u32 = 16;
}
