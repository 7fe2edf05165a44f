//! *What does debug info state about one file, before any analysis?*
//!
//! The reader of DWARF fills these tables; site inference and the image writer read them. They are
//! plain owned data with link-time addresses, independent of DWARF's versions and encodings.

use pointee_model::image::{TypeIndex, TypeKind};

/// Everything debug info states about one file.
#[derive(Debug, Default)]
pub struct Facts {
    /// Unique types; a [`TypeIndex`] points here.
    pub types: Vec<Type>,
    /// Concrete functions, in order of entry address.
    pub functions: Vec<Function>,
    /// Variables with a fixed address, in order of address; thread-local ones after the others.
    pub globals: Vec<Global>,
    /// What only symbol tables name: data in order of (thread-local, address), without types.
    pub data_symbols: Vec<Global>,
    /// Sections that are loaded, in order of address.
    pub sections: Vec<LoadedSection>,
    /// What the compiler says that calls allocate: by return address, in order of it.
    pub allocations: Vec<(u64, TypeIndex)>,
    /// Line rows in order of address.
    pub lines: Vec<Line>,
    /// Paths of source files; `file` fields point here.
    pub files: Vec<String>,
    /// What was wrong or not understood, in words, with offsets.
    pub diagnostics: Vec<String>,
    /// Whether any DWARF was found.
    pub has_dwarf: bool,
}

/// One unique type (see `TypeRecord` for the meaning of the fields).
#[derive(Debug, Clone)]
pub struct Type {
    /// What it is.
    pub kind: TypeKind,
    /// Qualified name without keyword; empty if it has none.
    pub name: String,
    /// Size in bytes, if known.
    pub size: Option<u64>,
    /// Pointee, element, underlying, result.
    pub target: Option<TypeIndex>,
    /// Array length, if known.
    pub count: Option<u64>,
    /// Members or parameters.
    pub members: Vec<Member>,
    /// Enumerators: name and value.
    pub enumerators: Vec<(String, i64)>,
    /// `DW_ATE_*` of base types.
    pub encoding: u8,
    /// Bits of `type_flags`.
    pub flags: u16,
    /// Template or generic type arguments, in order.
    pub arguments: Vec<TypeIndex>,
    /// Hash of name and structure.
    pub identity: [u8; 16],
    /// The source file that declares it, where that is stated; index into [`Facts::files`]. Of several equal types the first's.
    pub file: Option<u32>,
}

/// One member (see `MemberRecord`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Member {
    pub name: String,
    pub r#type: TypeIndex,
    pub offset: u64,
    pub bit_offset: u16,
    pub bit_size: u16,
    pub flags: u32,
    pub discriminant: u64,
}

/// One concrete function: something with code of its own.
#[derive(Debug, Clone, Default)]
pub struct Function {
    /// Readable qualified name, demangled where it was mangled.
    pub name: String,
    /// Linker name; equals `name` in C.
    pub linkage_name: String,
    /// First byte of the entry.
    pub entry: u64,
    /// All contiguous pieces `[start, end)`, the entry's first.
    pub ranges: Vec<(u64, u64)>,
    /// File of the definition (index into `Facts::files`).
    pub file: Option<u32>,
    /// Line of the definition, 0 if not known.
    pub line: u32,
    /// Type of the result; `None` for void or not known.
    pub result: Option<TypeIndex>,
    /// `DW_AT_prototyped`-independent: whether the debug info of the function was there at all.
    pub has_dwarf: bool,
    /// Parameters in order, locals, and those of everything inlined here.
    pub variables: Vec<Variable>,
    /// Calls inlined into it, outer before inner.
    pub inlines: Vec<Inline>,
    /// Pieces `[start, end)` of each block of statements that declares variables.
    pub blocks: Vec<Vec<(u64, u64)>>,
    /// What `Place::Frame` is relative to.
    pub frame_base: FrameBase,
    /// `.debug_*` language of its unit (`DW_LANG_*`).
    pub language: u16,
    /// Template or generic type arguments.
    pub arguments: Vec<TypeIndex>,
}

/// A parameter or local variable.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its type; `None` if not known.
    pub r#type: Option<TypeIndex>,
    /// `Some(n)`: the n-th parameter of the function (of the inlined one, if `inline` is set).
    pub parameter: Option<u16>,
    /// `Some(i)`: belongs to `Function::inlines[i]`.
    pub inline: Option<u32>,
    /// `Some(i)`: declared in the block whose pieces are `Function::blocks[i]`.
    pub block: Option<u32>,
    /// Line of the declaration, 0 if not known.
    pub line: u32,
    /// Where it lies, by code address `[start, end)`; what is there beyond its block is left over.
    pub places: Vec<(u64, u64, Place)>,
}

/// Where a variable lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a register (DWARF number; x86-64: 0 rax 1 rdx 2 rcx 3 rbx 4 rsi 5 rdi 6 rbp 7 rsp 8–15 r8–r15).
    Register(u16),
    /// Its first eight bytes are in a register, and the rest elsewhere or nowhere (`DW_OP_reg… DW_OP_piece 8 …`).
    Start(u16),
    /// In memory at register + offset.
    Memory(u16, i64),
    /// In memory at frame base + offset.
    Frame(i64),
    /// At a fixed link-time address.
    Address(u64),
    /// In memory at the address that lies at register (`None`: frame base) + offset.
    Behind(Option<u16>, i64),
    /// Its *value* is register + offset (`DW_OP_breg … DW_OP_stack_value`).
    Value(u16, i64),
    /// Its value is this (`DW_AT_const_value`, `DW_OP_lit… DW_OP_stack_value`).
    Constant(i64),
}

/// What `DW_OP_fbreg` is relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FrameBase {
    /// Not known.
    #[default]
    Unknown,
    /// The canonical frame address.
    Cfa,
    /// A register.
    Register(u16),
}

/// One inlined call.
#[derive(Debug, Clone, Default)]
pub struct Inline {
    /// Readable qualified name of the inlined function.
    pub name: String,
    /// Its linker name, if it has one.
    pub linkage_name: String,
    /// The instruction where control enters it; `None` if no code of it is left.
    pub entry: Option<u64>,
    /// Pieces `[start, end)`.
    pub ranges: Vec<(u64, u64)>,
    /// Where it is called from.
    pub call_file: Option<u32>,
    /// Line of that call, 0 if not known.
    pub call_line: u32,
    /// 1 for a call inlined directly into the function.
    pub depth: u32,
    /// The inlined call it lies in (index into `Function::inlines`).
    pub parent: Option<u32>,
    /// Its result type.
    pub result: Option<TypeIndex>,
    /// Template or generic type arguments.
    pub arguments: Vec<TypeIndex>,
}

/// A variable with a fixed address.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Global {
    pub address: u64,
    pub size: u64,
    pub name: String,
    pub r#type: Option<TypeIndex>,
    /// The address is an offset in the thread-local block.
    pub thread_local: bool,
}

/// A section that is loaded.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct LoadedSection {
    pub address: u64,
    pub size: u64,
    pub name: String,
    /// Bits of `section_flags`.
    pub flags: u32,
}

/// A row of the line table; holds up to the next.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// First byte.
    pub address: u64,
    /// `None` ends a sequence.
    pub file: Option<u32>,
    /// 0: not known.
    pub line: u32,
}
