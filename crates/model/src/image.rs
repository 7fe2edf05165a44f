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
//! All addresses are link-time addresses ([`LinkAddr`]).

use crate::addr::LinkAddr;
use core::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first eight bytes of every image.
pub const MAGIC: [u8; 8] = *b"PTEEIMG\0";
/// Grows whenever a record changes its layout *or its meaning* (a better analysis counts).
pub const FORMAT: u32 = 21;
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
    /// Build ID of the file described (its first 20 bytes, zero-padded); all zero if it has none.
    pub build_id: [u8; 20],
    /// Its length in bytes.
    pub build_id_len: u32,
    /// Hash of what the image was made from: debug file, dwz, dwo, sources, configuration.
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
    /// The [`Role`](crate::entries::Role) that the configuration gives it; 0: the one that its name has.
    pub role: u32,
}

/// Why bytes are not an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageError {
    /// Too short or wrong magic.
    NotAnImage,
    /// Another [`FORMAT`] (the one found).
    OtherFormat(u32),
    /// A section that overlaps the end, is misaligned, or has records of another size.
    BadSection(u32),
}

impl core::fmt::Display for ImageError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotAnImage => f.write_str("not a metadata image"),
            Self::OtherFormat(found) => {
                write!(f, "metadata image of format {found}, expected {FORMAT}")
            }
            Self::BadSection(kind) => write!(f, "section {kind} of the metadata image is damaged"),
        }
    }
}

impl core::error::Error for ImageError {}

/// A read-only view of an image's bytes. Every accessor is total: a reference out of bounds
/// gives `None`, an empty slice or an empty string, never a panic.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    header: &'a Header,
    strings: &'a [u8],
    /// Unique types.
    pub types: &'a [TypeRecord],
    /// Members of all types.
    pub members: &'a [MemberRecord],
    /// Enumerators of all types.
    pub enumerators: &'a [EnumeratorRecord],
    /// Pieces of functions.
    pub functions: &'a [FunctionRecord],
    /// Line rows.
    pub lines: &'a [LineRecord],
    /// Pieces of inlined calls.
    pub inlines: &'a [InlineRecord],
    /// Allocation sites.
    pub sites: &'a [SiteRecord],
    /// Witnesses of all sites.
    pub evidence: &'a [EvidenceRecord],
    /// Static variables.
    pub variables: &'a [VariableRecord],
    /// Entry points of allocators.
    pub entries: &'a [EntryRecord],
    /// Loaded sections.
    pub sections: &'a [SectionRecord],
    /// Places of local variables.
    pub locals: &'a [LocalRecord],
    files: &'a [StrRef],
}

impl<'a> Image<'a> {
    /// Checks `bytes` (8-byte aligned) and makes a view of them; the record sections are bounds-checked here, the
    /// references inside records when they are used.
    ///
    /// # Errors
    /// [`ImageError`] when the bytes are no image of this [`FORMAT`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let (header, rest) = Header::ref_from_prefix(bytes).map_err(|_| ImageError::NotAnImage)?;
        if header.magic != MAGIC {
            return Err(ImageError::NotAnImage);
        }
        if header.format != FORMAT {
            return Err(ImageError::OtherFormat(header.format));
        }
        let table_len = (header.sections as usize)
            .checked_mul(size_of::<Section>())
            .filter(|len| *len <= rest.len())
            .ok_or(ImageError::NotAnImage)?;
        let sections =
            <[Section]>::ref_from_bytes(&rest[..table_len]).map_err(|_| ImageError::NotAnImage)?;
        Ok(Self {
            header,
            strings: section(bytes, sections, section_kind::STRINGS)?,
            types: section(bytes, sections, section_kind::TYPES)?,
            members: section(bytes, sections, section_kind::MEMBERS)?,
            enumerators: section(bytes, sections, section_kind::ENUMERATORS)?,
            functions: section(bytes, sections, section_kind::FUNCTIONS)?,
            lines: section(bytes, sections, section_kind::LINES)?,
            inlines: section(bytes, sections, section_kind::INLINES)?,
            sites: section(bytes, sections, section_kind::SITES)?,
            evidence: section(bytes, sections, section_kind::EVIDENCE)?,
            variables: section(bytes, sections, section_kind::VARIABLES)?,
            entries: section(bytes, sections, section_kind::ENTRIES)?,
            sections: section(bytes, sections, section_kind::SECTIONS)?,
            locals: section(bytes, sections, section_kind::LOCALS)?,
            files: section(bytes, sections, section_kind::FILES)?,
        })
    }

    /// An image that knows nothing.
    #[must_use]
    pub fn empty() -> Image<'static> {
        static HEADER: Header = Header {
            magic: MAGIC,
            format: FORMAT,
            sections: 0,
            build_id: [0; 20],
            build_id_len: 0,
            provenance: [0; 16],
            flags: 0,
        };
        Image {
            header: &HEADER,
            strings: &[],
            types: &[],
            members: &[],
            enumerators: &[],
            functions: &[],
            lines: &[],
            inlines: &[],
            sites: &[],
            evidence: &[],
            variables: &[],
            entries: &[],
            sections: &[],
            locals: &[],
            files: &[],
        }
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &'a Header {
        self.header
    }

    /// Build ID of the described file; empty if it has none.
    #[must_use]
    pub fn build_id(&self) -> &'a [u8] {
        let len = (self.header.build_id_len as usize).min(self.header.build_id.len());
        &self.header.build_id[..len]
    }

    /// The string at `at`; empty when out of bounds or not UTF-8; cut at [`STRING_MAX`] bytes.
    #[must_use]
    pub fn string(&self, at: StrRef) -> &'a str {
        let Some(tail) = self.strings.get(at as usize..) else {
            return "";
        };
        let tail = &tail[..tail.len().min(STRING_MAX)];
        let end = tail.iter().position(|byte| *byte == 0);
        match core::str::from_utf8(&tail[..end.unwrap_or(tail.len())]) {
            Ok(text) => text,
            // The cut went through a character.
            Err(error) if error.error_len().is_none() && tail.len() == STRING_MAX => {
                core::str::from_utf8(&tail[..error.valid_up_to()]).unwrap_or("")
            }
            Err(_) => "",
        }
    }

    /// The string at `at` for C, unchecked for UTF-8; `None` when out of bounds, or where the last string has no end.
    #[must_use]
    pub fn c_string(&self, at: StrRef) -> Option<*const core::ffi::c_char> {
        let is_ended = self.strings.last() == Some(&0);
        let tail = self.strings.get(at as usize..).filter(|_| is_ended)?;
        Some(tail.as_ptr().cast())
    }

    /// Whether the string at `at` is `text`, which holds no NUL.
    #[must_use]
    pub fn is_string(&self, at: StrRef, text: &[u8]) -> bool {
        let rest = self.strings.get(at as usize..);
        rest.and_then(|tail| tail.strip_prefix(text))
            .is_some_and(|tail| tail.first() == Some(&0))
    }

    /// Path of a source file; empty when there is none.
    #[must_use]
    pub fn file_name(&self, file: FileIndex) -> &'a str {
        self.files
            .get(file as usize)
            .map_or("", |at| self.string(*at))
    }

    /// The same for C.
    #[must_use]
    pub fn file_name_c(&self, file: FileIndex) -> Option<*const core::ffi::c_char> {
        self.c_string(*self.files.get(file as usize)?)
    }

    /// The type at `index`.
    #[must_use]
    pub fn type_at(&self, index: TypeIndex) -> Option<&'a TypeRecord> {
        self.types.get(index as usize)
    }

    /// Members of a type; empty for types that have none and for damaged references.
    #[must_use]
    pub fn members_of(&self, record: &TypeRecord) -> &'a [MemberRecord] {
        slice(self.members, record.first_member, record.members)
    }

    /// Enumerators of an enum.
    #[must_use]
    pub fn enumerators_of(&self, record: &TypeRecord) -> &'a [EnumeratorRecord] {
        slice(self.enumerators, record.first_member, record.members)
    }

    /// The piece of a function that holds `address`.
    #[must_use]
    pub fn function_at(&self, address: LinkAddr) -> Option<&'a FunctionRecord> {
        let after = self
            .functions
            .partition_point(|function| function.start <= address.0);
        let function = self.functions.get(after.checked_sub(1)?)?;
        (address.0 < function.end).then_some(function)
    }

    /// Variables at fixed addresses, in order of address.
    #[must_use]
    pub fn statics(&self) -> &'a [VariableRecord] {
        &self.variables[..self.first_thread_local()]
    }

    /// Thread-local variables, in order of offset in the block.
    #[must_use]
    pub fn thread_locals(&self) -> &'a [VariableRecord] {
        &self.variables[self.first_thread_local()..]
    }

    fn first_thread_local(&self) -> usize {
        self.variables
            .partition_point(|variable| variable.flags & variable_flags::THREAD_LOCAL == 0)
    }

    /// The places of local variables that hold at code `address`, in no order.
    pub fn locals_at(&self, address: LinkAddr) -> impl Iterator<Item = &'a LocalRecord> + use<'a> {
        let start = self
            .function_at(address)
            .map_or(address.0, |function| function.start);
        let first = self.locals.partition_point(|local| local.start < start);
        self.locals[first..]
            .iter()
            .take_while(move |local| local.start <= address.0)
            .filter(move |local| address.0 < local.end)
    }

    /// The line row that holds `address`.
    #[must_use]
    pub fn line_at(&self, address: LinkAddr) -> Option<&'a LineRecord> {
        let after = self.lines.partition_point(|row| row.address <= address.0);
        let row = self.lines.get(after.checked_sub(1)?)?;
        (row.file != u32::MAX).then_some(row)
    }

    /// The inlined calls that hold `address`, outermost first.
    pub fn inlines_at(
        &self,
        address: LinkAddr,
    ) -> impl Iterator<Item = &'a InlineRecord> + use<'a> {
        // Pieces nest inside one function, so the search starts at the function's first piece.
        let start = self
            .function_at(address)
            .map_or(address.0, |function| function.start);
        let first = self.inlines.partition_point(|piece| piece.start < start);
        self.inlines[first..]
            .iter()
            .take_while(move |piece| piece.start <= address.0)
            .filter(move |piece| address.0 < piece.end)
    }

    /// The site whose call returns to `address`.
    #[must_use]
    pub fn site_returning_to(&self, address: LinkAddr) -> Option<&'a SiteRecord> {
        let at = self
            .sites
            .binary_search_by_key(&address.0, |site| site.return_address)
            .ok()?;
        self.sites.get(at)
    }

    /// The witnesses of a site.
    #[must_use]
    pub fn evidence_of(&self, site: &SiteRecord) -> &'a [EvidenceRecord] {
        slice(self.evidence, site.first_evidence, site.evidence)
    }
}

fn slice<T>(records: &[T], first: u32, count: u32) -> &[T] {
    let first = first as usize;
    first
        .checked_add(count as usize)
        .and_then(|end| records.get(first..end))
        .unwrap_or(&[])
}

fn section<'a, T>(bytes: &'a [u8], table: &[Section], kind: u32) -> Result<&'a [T], ImageError>
where
    T: FromBytes + Immutable + KnownLayout,
{
    let Some(entry) = table.iter().find(|section| section.kind == kind) else {
        return Ok(&[]);
    };
    let bad = ImageError::BadSection(kind);
    if entry.record as usize != size_of::<T>() {
        return Err(bad);
    }
    let start = usize::try_from(entry.offset).map_err(|_| bad)?;
    let len = usize::try_from(entry.count)
        .ok()
        .and_then(|count| count.checked_mul(size_of::<T>()))
        .ok_or(bad)?;
    let end = start.checked_add(len).ok_or(bad)?;
    let records = bytes.get(start..end).ok_or(bad)?;
    <[T]>::ref_from_bytes(records).map_err(|_| bad)
}
