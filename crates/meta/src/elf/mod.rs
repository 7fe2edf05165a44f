//! *What does an ELF file say about itself?*
//!
//! [`Elf`] owns (or maps) the bytes of one 64-bit little-endian file and answers from small tables
//! made once: sections, segments, symbols, relocations. It reads no debug info.
//!
//! Invariants: every offset that comes from the file is checked against its length before use; a
//! damaged table counts as absent; nothing here allocates more than a small multiple of the file.

mod append;
mod bytes;
mod compression;
mod dynamic;
mod instruction;
mod linkage;
mod symbols;
mod thunks;

pub(crate) use append::with_section;
pub use bytes::FileBytes;
pub(crate) use compression::unpack_xz;
pub use linkage::Callee;
pub use symbols::Symbol;

use compression::{Packing, unpack};
pub use instruction::instruction_at;
use linkage::Linkage;
use object::LittleEndian;
use object::elf::{
    ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD, FileHeader64, FileType, Machine, NT_GNU_BUILD_ID, PF_W,
    PF_X, PT_LOAD, PT_NOTE, ProgramFlags, ProgramType, SHF_ALLOC, SHF_COMPRESSED, SHF_EXECINSTR,
    SHT_NOBITS, SHT_NOTE, SectionFlags, SectionType,
};
use object::pod::bytes_of_slice;
use object::read::elf::{
    CompressionHeader as _, FileHeader as _, ProgramHeader as _, SectionHeader as _,
};
use pointee_model::identity;
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use symbols::SymbolTable;

type Header = FileHeader64<LittleEndian>;
const LE: LittleEndian = LittleEndian;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// It could not be opened or mapped.
    #[error("cannot be read")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not a 64-bit little-endian ELF file, or its header is damaged.
    #[error("not a 64-bit little-endian ELF file: {0}")]
    NotElf(&'static str),
    /// A section's bytes cannot be had.
    #[error("unreadable section: {0}")]
    Compression(&'static str),
}

/// One section header.
#[derive(Debug, Clone)]
pub struct Section {
    /// Its name; empty when damaged.
    pub name: String,
    /// Link-time address; 0 when not loaded.
    pub address: u64,
    /// Bytes in memory (packed bytes for compressed sections).
    pub size: u64,
    /// Where the bytes lie in the file; empty for `SHT_NOBITS` and damaged headers.
    pub file: Range<usize>,
    /// `SHF_*`.
    pub flags: SectionFlags,
    /// `SHT_*`.
    pub kind: SectionType,
}

impl Section {
    /// Whether the section holds code.
    #[must_use]
    pub fn is_code(&self) -> bool {
        self.flags.0 & SHF_EXECINSTR.0 != 0
    }

    /// Whether `address` lies in the section when loaded.
    #[must_use]
    pub fn contains(&self, address: u64) -> bool {
        self.flags.0 & SHF_ALLOC.0 != 0 && address.wrapping_sub(self.address) < self.size
    }
}

/// One program header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// `PT_*`.
    pub kind: ProgramType,
    /// `PF_*`.
    pub flags: ProgramFlags,
    /// Link-time address.
    pub address: u64,
    /// Bytes in memory.
    pub memory_size: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_size: u64,
}

/// One ELF file.
#[derive(Debug)]
pub struct Elf {
    bytes: Arc<FileBytes>,
    path: Option<PathBuf>,
    machine: Machine,
    kind: FileType,
    entry: u64,
    sections: Vec<Section>,
    segments: Vec<Segment>,
    build_id: Vec<u8>,
    stand_in: OnceLock<[u8; identity::LEN]>,
    symbols: OnceLock<SymbolTable>,
    linkage: OnceLock<Linkage>,
    thunks: OnceLock<HashMap<u64, thunks::Thunk>>,
}

impl Elf {
    /// Maps and reads the file at `path`.
    ///
    /// # Errors
    /// [`ElfError::Open`] and [`ElfError::NotElf`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ElfError> {
        let path = path.as_ref();
        let bytes = FileBytes::open(path).map_err(|source| ElfError::Open {
            path: path.to_owned(),
            source,
        })?;
        let mut elf = Self::parse(bytes)?;
        elf.path = Some(path.to_owned());
        Ok(elf)
    }

    /// Reads a file that is in memory already.
    ///
    /// # Errors
    /// [`ElfError::NotElf`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, ElfError> {
        Self::parse(FileBytes::Owned(bytes))
    }

    fn parse(bytes: FileBytes) -> Result<Self, ElfError> {
        let data: &[u8] = &bytes;
        let header = Header::parse(data).map_err(|_| ElfError::NotElf("no 64-bit header"))?;
        if !header.is_little_endian() {
            return Err(ElfError::NotElf("big-endian"));
        }
        let sections = read_sections(header, data);
        let segments = read_segments(header, data);
        let build_id = find_build_id(&sections, &segments, data).unwrap_or_default();
        Ok(Self {
            machine: header.e_machine(LE),
            kind: header.e_type(LE),
            entry: header.e_entry(LE),
            sections,
            segments,
            build_id,
            stand_in: OnceLock::new(),
            symbols: OnceLock::new(),
            linkage: OnceLock::new(),
            thunks: OnceLock::new(),
            path: None,
            bytes: Arc::new(bytes),
        })
    }

    /// Where the file was opened; `None` for bytes from memory.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// All bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// `EM_*`.
    #[must_use]
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// `ET_*`.
    #[must_use]
    pub fn file_kind(&self) -> FileType {
        self.kind
    }

    /// `e_entry`.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// The GNU build ID; empty when there is none.
    #[must_use]
    pub fn build_id(&self) -> &[u8] {
        &self.build_id
    }

    /// The build ID, or what stands in for it where there is none: never empty.
    #[must_use]
    pub fn identity(&self) -> &[u8] {
        if self.build_id.is_empty() {
            return self.stand_in.get_or_init(|| self.digest());
        }
        &self.build_id
    }

    fn digest(&self) -> [u8; identity::LEN] {
        let data: &[u8] = &self.bytes;
        let of_loaded = || {
            let headers = Header::parse(data).ok()?.program_headers(LE, data).ok()?;
            let mut segments = self.segments.iter();
            let code =
                segments.find(|it| identity::is_code(it.kind.0, it.flags.0) && it.file_size > 0)?;
            let start = usize::try_from(code.offset).ok()?;
            let end = start.checked_add(usize::try_from(code.file_size).ok()?)?;
            Some(identity::stand_in(
                bytes_of_slice(headers),
                data.get(start..end)?,
            ))
        };
        // Without code no process has it loaded: any digest serves.
        of_loaded().unwrap_or_else(|| identity::stand_in(&[], data))
    }

    /// All section headers in file order.
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// All program headers in file order.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The first section of that name.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// Sections that hold code, in file order.
    pub fn text_sections(&self) -> impl Iterator<Item = &Section> {
        self.sections
            .iter()
            .filter(|section| section.is_code() && section.size > 0)
    }

    /// Whether `address` is one at which code can lie: in an executable section, or in an
    /// executable segment where the file has no section headers.
    #[must_use]
    pub fn is_code(&self, address: u64) -> bool {
        if self.sections.is_empty() {
            return self.segments.iter().any(|segment| {
                segment.kind == PT_LOAD
                    && segment.flags.0 & PF_X.0 != 0
                    && address.wrapping_sub(segment.address) < segment.memory_size
            });
        }
        self.text_sections()
            .any(|section| section.contains(address))
    }

    /// The bytes of a section as stored, packed or not.
    #[must_use]
    pub fn stored_bytes(&self, section: &Section) -> &[u8] {
        self.bytes.get(section.file.clone()).unwrap_or(&[])
    }

    /// The unpacked bytes of a section; `.zdebug_x` is found under the name `.debug_x`.
    ///
    /// # Errors
    /// [`ElfError::Compression`] when it is packed and damaged; an absent section is `Ok(None)`.
    pub fn section_bytes(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>, ElfError> {
        if let Some(section) = self.section(name) {
            return self.unpacked(section).map(Some);
        }
        let Some(suffix) = name.strip_prefix(".debug_") else {
            return Ok(None);
        };
        let old_name = format!(".zdebug_{suffix}");
        let Some(section) = self.section(&old_name) else {
            return Ok(None);
        };
        let stored = self.stored_bytes(section);
        let Some((b"ZLIB", rest)) = stored.split_first_chunk() else {
            return Err(ElfError::Compression(".zdebug without its header"));
        };
        let Some((len, packed)) = rest.split_first_chunk::<8>() else {
            return Err(ElfError::Compression(".zdebug without its length"));
        };
        unpack(Packing::Zlib, packed, u64::from_be_bytes(*len)).map(|bytes| Some(Cow::Owned(bytes)))
    }

    /// The unpacked bytes of all sections of that name, one after the other: object files (`.dwo`)
    /// have one section for each type unit.
    ///
    /// # Errors
    /// As [`Elf::section_bytes`].
    pub fn joined_section_bytes(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>, ElfError> {
        let named = || self.sections.iter().filter(|section| section.name == name);
        let stored: usize = named().map(|section| section.file.len()).sum();
        if stored > self.bytes.len() {
            // Sections that share bytes could add up to anything.
            return Err(ElfError::Compression("sections overlap"));
        }
        let mut parts = named().map(|section| self.unpacked(section));
        let Some(first) = parts.next().transpose()? else {
            return Ok(None);
        };
        parts
            .try_fold(first, |mut joined, part| {
                joined.to_mut().extend_from_slice(&part?);
                Ok(joined)
            })
            .map(Some)
    }

    fn unpacked(&self, section: &Section) -> Result<Cow<'_, [u8]>, ElfError> {
        let stored = self.stored_bytes(section);
        if section.flags.0 & SHF_COMPRESSED.0 == 0 {
            return Ok(Cow::Borrowed(stored));
        }
        let (header, packed) =
            object::pod::from_bytes::<object::elf::CompressionHeader64<LittleEndian>>(stored)
                .map_err(|()| ElfError::Compression("no header"))?;
        let packing = match header.ch_type(LE) {
            ELFCOMPRESS_ZLIB => Packing::Zlib,
            ELFCOMPRESS_ZSTD => Packing::Zstd,
            _ => return Err(ElfError::Compression("unknown method")),
        };
        unpack(packing, packed, header.ch_size(LE)).map(Cow::Owned)
    }

    /// `len` bytes at link-time `address`, as loaded from the file; `None` when they are not all
    /// in one segment's file-backed part.
    #[must_use]
    pub fn code_at(&self, address: u64, len: usize) -> Option<&[u8]> {
        self.bytes_from(address)?.get(..len)
    }

    /// The file's bytes from link-time `address` to the end of its executable segment's last page: whole pages are mapped. None lie
    /// behind a segment that is longer in memory than in the file, or may be written.
    #[must_use]
    pub fn mapped_code_from(&self, address: u64) -> Option<&[u8]> {
        const PAGE: u64 = 4096;
        let mut code = self
            .segments
            .iter()
            .filter(|segment| segment.kind == PT_LOAD && segment.flags.0 & PF_X.0 != 0);
        code.find_map(|segment| {
            let whole = segment.file_size == segment.memory_size && segment.flags.0 & PF_W.0 == 0;
            let end = segment.address.checked_add(segment.file_size)?;
            let end = if whole {
                end.checked_next_multiple_of(PAGE)?
            } else {
                end
            };
            let within = address.checked_sub(segment.address)?;
            let len = usize::try_from(end.checked_sub(address)?).ok()?;
            let start = usize::try_from(segment.offset.checked_add(within)?).ok()?;
            let end = start.checked_add(len)?.min(self.bytes.len());
            self.bytes.get(start..end).filter(|bytes| !bytes.is_empty())
        })
    }

    /// All file-backed bytes from link-time `address` to the end of its segment.
    #[must_use]
    pub fn bytes_from(&self, address: u64) -> Option<&[u8]> {
        self.segments
            .iter()
            .filter(|segment| segment.kind == PT_LOAD)
            .find_map(|segment| {
                let within = address.checked_sub(segment.address)?;
                let rest = segment
                    .file_size
                    .checked_sub(within)
                    .filter(|rest| *rest > 0)?;
                let start = usize::try_from(segment.offset.checked_add(within)?).ok()?;
                // A truncated file ends before its segment does.
                let end = start
                    .checked_add(usize::try_from(rest).ok()?)?
                    .min(self.bytes.len());
                self.bytes.get(start..end)
            })
    }

    /// All symbols: those of `.symtab` first, then those of `.dynsym`.
    pub fn symbols(&self) -> impl Iterator<Item = Symbol<'_>> {
        self.symbol_table().iter(&self.bytes)
    }

    fn symbol_table(&self) -> &SymbolTable {
        self.symbols.get_or_init(|| {
            Header::parse(self.bytes()).map_or_else(
                |_| SymbolTable::default(),
                |header| SymbolTable::read(header, &self.bytes),
            )
        })
    }

    /// What is called by a call to `address`, when that is a stub of a procedure linkage table
    /// (`.plt`, `.plt.sec`, `.plt.got`, `.iplt`) or any other jump through a relocated slot.
    #[must_use]
    pub fn plt_target(&self, address: u64) -> Option<Callee<'_>> {
        self.linkage().stub_target(self, address)
    }

    /// What the slot at `address` (of `.got`, `.got.plt`, a table of pointers) points to once
    /// relocated.
    #[must_use]
    pub fn got_target(&self, slot: u64) -> Option<Callee<'_>> {
        self.linkage().slot_target(self, slot)
    }

    /// The slots and pointers that the loader fills with the address of a symbol that another file defines, in order of address.
    pub fn imported_pointers(&self) -> impl Iterator<Item = (u64, &str)> {
        self.linkage().imported(self)
    }

    fn linkage(&self) -> &Linkage {
        self.linkage.get_or_init(|| Linkage::read(self))
    }
}

fn read_sections(header: &Header, data: &[u8]) -> Vec<Section> {
    let Ok(table) = header.sections(LE, data) else {
        return Vec::new();
    };
    table
        .iter()
        .map(|section| {
            let file = (section.sh_type(LE) != SHT_NOBITS)
                .then(|| {
                    let start = usize::try_from(section.sh_offset(LE)).ok()?;
                    let end = start.checked_add(usize::try_from(section.sh_size(LE)).ok()?)?;
                    (end <= data.len()).then_some(start..end)
                })
                .flatten()
                .unwrap_or(0..0);
            Section {
                name: table
                    .section_name(LE, section)
                    .map(|name| String::from_utf8_lossy(name).into_owned())
                    .unwrap_or_default(),
                address: section.sh_addr(LE),
                size: section.sh_size(LE),
                file,
                flags: section.sh_flags(LE),
                kind: section.sh_type(LE),
            }
        })
        .collect()
}

fn read_segments(header: &Header, data: &[u8]) -> Vec<Segment> {
    header
        .program_headers(LE, data)
        .unwrap_or(&[])
        .iter()
        .map(|segment| Segment {
            kind: segment.p_type(LE),
            flags: segment.p_flags(LE),
            address: segment.p_vaddr(LE),
            memory_size: segment.p_memsz(LE),
            offset: segment.p_offset(LE),
            file_size: segment.p_filesz(LE),
        })
        .collect()
}

fn find_build_id(sections: &[Section], segments: &[Segment], data: &[u8]) -> Option<Vec<u8>> {
    let in_sections = sections
        .iter()
        .filter(|section| section.kind == SHT_NOTE)
        .map(|section| section.file.clone());
    // In a file made by `strip --only-keep-debug` the segments point at bytes that are gone, so
    // sections come first.
    let in_segments = segments
        .iter()
        .filter(|segment| segment.kind == PT_NOTE)
        .filter_map(|segment| {
            let start = usize::try_from(segment.offset).ok()?;
            Some(start..start.checked_add(usize::try_from(segment.file_size).ok()?)?)
        });
    in_sections
        .chain(in_segments)
        .find_map(|range| build_id_note(data.get(range)?))
}

/// Walks the notes of one note section (ELF gABI: name size, descriptor size, type; padded to 4).
fn build_id_note(mut notes: &[u8]) -> Option<Vec<u8>> {
    loop {
        let (head, rest) = notes.split_first_chunk::<12>()?;
        let word = |at: usize| {
            head.get(at..at + 4)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u32::from_le_bytes)
        };
        let (name_len, desc_len, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
        let name = rest.get(..name_len)?;
        let rest = rest.get(name_len.checked_next_multiple_of(4)?..)?;
        let desc = rest.get(..desc_len)?;
        if kind == NT_GNU_BUILD_ID.0 && name == b"GNU\0" && !desc.is_empty() {
            return Some(desc.to_vec());
        }
        notes = rest.get(desc_len.checked_next_multiple_of(4)?..)?;
    }
}
