//! *What does an image say?* — a checked view of its bytes, and the questions that readers ask of it.

use super::{
    CursorRecord, EntryRecord, EnumeratorRecord, EvidenceRecord, FORMAT, FileIndex, FunctionRecord,
    GuardRecord, Header, InlineRecord, LineRecord, LocalRecord, MAGIC, MemberRecord, STRING_MAX,
    Section, SectionRecord, SiteRecord, StrRef, SummaryRecord, SystemCallRecord, TypeIndex,
    TypeRecord, VariableRecord, section_kind, variable_flags,
};
use crate::addr::LinkAddr;
use zerocopy::{FromBytes, Immutable, KnownLayout};

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
    /// System calls that may change what is mapped.
    pub system_calls: &'a [SystemCallRecord],
    /// Writes of pools' cursors.
    pub cursors: &'a [CursorRecord],
    /// Branches to copies of pools' functions.
    pub guards: &'a [GuardRecord],
    /// What the file's functions hand out to other files.
    pub exports: &'a [SummaryRecord],
    /// What functions of other files were taken to hand out.
    pub imports: &'a [SummaryRecord],
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
            system_calls: section(bytes, sections, section_kind::SYSTEM_CALLS)?,
            cursors: section(bytes, sections, section_kind::CURSORS)?,
            guards: section(bytes, sections, section_kind::GUARDS)?,
            exports: section(bytes, sections, section_kind::EXPORTS)?,
            imports: section(bytes, sections, section_kind::IMPORTS)?,
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
            system_calls: &[],
            cursors: &[],
            guards: &[],
            exports: &[],
            imports: &[],
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
    #[inline]
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
