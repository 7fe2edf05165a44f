//! *What does a debugger read of generated code?* An ELF file in memory, as gdb's interface for compilers at run time takes it (gdb manual,
//! "JIT Compilation Interface"): names, unwind rules, and lines.
//!
//! ```text
//!   header │ section headers │ .eh_frame │ .symtab │ .debug_abbrev │ .debug_info │ .debug_line │ .strtab
//!                                                                                                └ also .debug_str
//! ```
//!
//! Sections have the addresses of the code and of the rules as they are; `.text` has no bytes, for they are where they run.
//!
//! **Lines** are those of a *listing*: a text about this code, of which the first line is a title and each further line tells of some
//! instructions, in the order of their addresses. So a row of the line table is one byte (DWARF 4, 6.2.5.1: special opcodes, all of which go
//! one line on). Whether the listing exists as a file is not said by the table, and debuggers ask only when they show it.
//!
//! Nothing is allocated; what does not fit into the buffer that is given is not written.

use pointee_model::addr::RunAddr;

/// A stretch of code with a name.
#[derive(Clone, Copy, Debug)]
pub struct Function<'a> {
    /// Its first byte.
    pub at: RunAddr,
    /// In bytes.
    pub len: u64,
    /// Its name, without zeros, in two parts that are put one behind the other.
    pub name: [&'a [u8]; 2],
}

/// A text that tells of code.
#[derive(Clone, Copy, Debug)]
pub struct Listing<'a> {
    /// The folder in which it lies, without zeros.
    pub folder: &'a [u8],
    /// Its name there.
    pub file: &'a [u8],
    /// Of the second line, the third …: where the code begins that it tells of, in bytes from the file's first. Rising.
    pub rows: &'a [u16],
    /// Where the code of the last line ends.
    pub end: u64,
}

/// What is told of code.
#[derive(Clone, Copy, Debug)]
pub struct DebugFile<'a> {
    /// The first byte of the code.
    pub at: RunAddr,
    /// In bytes.
    pub len: u64,
    /// The section `.eh_frame`.
    pub frames: &'a [u8],
    /// Where that lies.
    pub frames_at: RunAddr,
    /// The lines, if there are any.
    pub listing: Option<Listing<'a>>,
}

const HEADER: usize = 64;
const SECTION: usize = 64;
const SECTIONS: usize = 9;
const SYMBOL: usize = 24;
const NAMES: &[u8] =
    b"\0.text\0.eh_frame\0.symtab\0.strtab\0.debug_abbrev\0.debug_info\0.debug_line\0.debug_str\0";
/// The section of names, among the sections.
const STRTAB: u32 = 4;

/// Tag, whether there are children, attributes with their forms (DWARF 4, 7.5).
const ABBREVIATIONS: [u8; 31] = [
    1, 0x11, 1, // compile_unit, children
    0x13, 0x05, // language, data2
    0x03, 0x0e, // name, strp
    0x1b, 0x0e, // comp_dir, strp
    0x11, 0x01, // low_pc, addr
    0x12, 0x07, // high_pc, data8
    0x10, 0x17, // stmt_list, sec_offset
    0, 0, //
    2, 0x2e, 0, // subprogram, none
    0x03, 0x0e, // name, strp
    0x3f, 0x19, // external, flag_present
    0x11, 0x01, // low_pc, addr
    0x12, 0x07, // high_pc, data8
    0, 0, //
    0,
];
/// `DW_LANG_Mips_Assembler`: what debuggers take for assembly, of any processor.
const ASSEMBLY: u16 = 0x8001;
/// Opcodes of lines with a meaning of their own, and how many operands each of them has (DWARF 4, 6.2.5.2).
const OPERANDS: [u8; 12] = [0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1];
const FIRST_SPECIAL: u8 = OPERANDS.len() as u8 + 1;
const ADVANCE_PC: u8 = 2;
const END_SEQUENCE: [u8; 3] = [0, 1, 1];
const SET_ADDRESS: [u8; 3] = [0, 9, 2];

impl DebugFile<'_> {
    /// Writes the file about `functions`, which lie in the code. Its length; `None` if it does not fit into `into`.
    #[must_use]
    pub fn write<'n>(
        &self,
        into: &mut [u8],
        functions: impl Iterator<Item = Function<'n>> + Clone,
    ) -> Option<usize> {
        let listing = self.listing.as_ref();
        let mut file = Writer { into, len: 0 };
        file.zeros(HEADER + SECTION * SECTIONS)?;
        let frames = file.section(8, |file| file.put(self.frames))?;
        // Names: those of sections, of the listing, of functions.
        let folder_at = NAMES.len();
        let file_at = folder_at + listing.map_or(0, |listing| listing.folder.len() + 1);
        let names_at = file_at + listing.map_or(0, |listing| listing.file.len() + 1);
        let named = || {
            let mut name_at = names_at;
            functions.clone().map(move |function| {
                let at = name_at as u32;
                name_at += function.name.iter().map(|part| part.len()).sum::<usize>() + 1;
                (at, function)
            })
        };
        let symbols = file.section(8, |file| {
            file.zeros(SYMBOL)?;
            for (name, function) in named() {
                file.put(&name.to_le_bytes())?;
                file.put(&[0x12, 0, 1, 0])?; // global function, in .text
                file.put(&function.at.0.to_le_bytes())?;
                file.put(&function.len.to_le_bytes())?;
            }
            Some(())
        })?;
        let mut debug = [(0, 0); 3];
        if let Some(listing) = listing {
            debug[0] = file.section(1, |file| file.put(&ABBREVIATIONS))?;
            debug[1] = file.section(1, |file| {
                let strings = [file_at as u32, folder_at as u32];
                self.put_unit(file, strings, named())
            })?;
            debug[2] = file.section(1, |file| self.put_lines(file, listing))?;
        }
        let names = file.section(1, |file| {
            file.put(NAMES)?;
            if let Some(listing) = listing {
                for name in [listing.folder, listing.file] {
                    file.put(name)?;
                    file.put(&[0])?;
                }
            }
            for function in functions.clone() {
                file.put(function.name[0])?;
                file.put(function.name[1])?;
                file.put(&[0])?;
            }
            Some(())
        })?;
        let len = file.len;
        file.put_header();
        // Kind, flags, address, where and how long, link, info, alignment, entry size.
        const PROGBITS: u32 = 1;
        let in_file = |range: (usize, usize)| (range.0 as u64, range.1 as u64);
        let debug_section = |range| (PROGBITS, 0, 0, in_file(range), [0, 0], [1, 0]);
        let rows: [SectionRow; SECTIONS - 1] = [
            (
                8, // NOBITS
                6, // ALLOC, EXECINSTR
                self.at.0,
                (frames.0 as u64, self.len),
                [0, 0],
                [16, 0],
            ),
            (
                PROGBITS,
                2, // ALLOC
                self.frames_at.0,
                in_file(frames),
                [0, 0],
                [8, 0],
            ),
            (
                2, // SYMTAB, of which the first is local
                0,
                0,
                in_file(symbols),
                [STRTAB, 1],
                [8, SYMBOL as u64],
            ),
            (3, 0, 0, in_file(names), [0, 0], [1, 0]), // STRTAB
            debug_section(debug[0]),
            debug_section(debug[1]),
            debug_section(debug[2]),
            debug_section(names),
        ];
        let used = if listing.is_some() { SECTIONS - 1 } else { 4 };
        for (number, row) in rows[..used].iter().enumerate() {
            file.put_section_header(number + 1, row);
        }
        file.patch(60, &[used as u8 + 1]); // e_shnum
        Some(len)
    }

    /// A unit of debug info: the listing, and each function.
    fn put_unit<'n>(
        &self,
        file: &mut Writer<'_>,
        [listing, folder]: [u32; 2],
        functions: impl Iterator<Item = (u32, Function<'n>)>,
    ) -> Option<()> {
        file.prefixed(|file| {
            file.put(&4_u16.to_le_bytes())?; // version
            file.put(&[0; 4])?; // the only abbreviations
            file.put(&[8])?; // bytes of an address
            file.put(&[1])?;
            file.put(&ASSEMBLY.to_le_bytes())?;
            file.put(&listing.to_le_bytes())?;
            file.put(&folder.to_le_bytes())?;
            file.put(&self.at.0.to_le_bytes())?;
            file.put(&self.len.to_le_bytes())?;
            file.put(&[0; 4])?; // the only lines
            for (name, function) in functions {
                file.put(&[2])?;
                file.put(&name.to_le_bytes())?;
                file.put(&function.at.0.to_le_bytes())?;
                file.put(&function.len.to_le_bytes())?;
            }
            file.put(&[0])
        })
    }

    fn put_lines(&self, file: &mut Writer<'_>, listing: &Listing<'_>) -> Option<()> {
        file.prefixed(|file| {
            file.put(&4_u16.to_le_bytes())?; // version
            file.prefixed(|file| {
                // Bytes and operations of the shortest instruction, rows begin statements, one line on, by special opcodes that differ
                // in nothing else.
                file.put(&[1, 1, 1, 1, 1, FIRST_SPECIAL])?;
                file.put(&OPERANDS)?;
                file.put(&[0])?; // no folder but the unit's
                file.put(listing.file)?;
                file.put(&[0, 0, 0, 0, 0]) // its end, folder, time and length; no more files
            })?;
            file.put(&SET_ADDRESS)?;
            file.put(&self.at.0.to_le_bytes())?;
            let mut at = 0;
            for row in listing.rows {
                let advance = row.checked_sub(at)?;
                at = *row;
                match u8::try_from(advance)
                    .ok()
                    .and_then(|advance| advance.checked_add(FIRST_SPECIAL))
                {
                    Some(special) => file.put(&[special])?,
                    None => {
                        file.put(&[ADVANCE_PC])?;
                        file.put_leb(u64::from(advance))?;
                        file.put(&[FIRST_SPECIAL])?;
                    }
                }
            }
            file.put(&[ADVANCE_PC])?;
            file.put_leb(listing.end.checked_sub(u64::from(at))?)?;
            file.put(&END_SEQUENCE)
        })
    }
}

type SectionRow = (u32, u64, u64, (u64, u64), [u32; 2], [u64; 2]);

/// A buffer that is filled from its start.
struct Writer<'b> {
    into: &'b mut [u8],
    len: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.len.checked_add(bytes.len())?;
        self.into.get_mut(self.len..end)?.copy_from_slice(bytes);
        self.len = end;
        Some(())
    }

    fn zeros(&mut self, count: usize) -> Option<()> {
        let end = self.len.checked_add(count)?;
        self.into.get_mut(self.len..end)?.fill(0);
        self.len = end;
        Some(())
    }

    fn put_leb(&mut self, mut number: u64) -> Option<()> {
        while number >= 0x80 {
            self.put(&[number as u8 | 0x80])?;
            number >>= 7;
        }
        self.put(&[number as u8])
    }

    /// What `fill` puts, at a multiple of `alignment`: where it is, and how long.
    fn section(
        &mut self,
        alignment: usize,
        fill: impl FnOnce(&mut Self) -> Option<()>,
    ) -> Option<(usize, usize)> {
        self.zeros(self.len.next_multiple_of(alignment) - self.len)?;
        let start = self.len;
        fill(self)?;
        Some((start, self.len - start))
    }

    /// What `fill` puts, behind its length in four bytes.
    fn prefixed(&mut self, fill: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        let at = self.len;
        self.zeros(4)?;
        fill(self)?;
        let len = u32::try_from(self.len - at - 4).ok()?;
        self.patch(at, &len.to_le_bytes());
        Some(())
    }

    /// Over what was put before.
    fn patch(&mut self, at: usize, bytes: &[u8]) {
        if let Some(there) = self.into.get_mut(at..at + bytes.len()) {
            there.copy_from_slice(bytes);
        }
    }

    /// An executable for x86-64 with sections only; their number comes later.
    fn put_header(&mut self) {
        self.patch(0, b"\x7fELF\x02\x01\x01");
        self.patch(16, &[2, 0, 62, 0, 1]);
        self.patch(40, &(HEADER as u64).to_le_bytes());
        self.patch(52, &[HEADER as u8]);
        self.patch(58, &[SECTION as u8]);
        self.patch(62, &[STRTAB as u8]);
    }

    fn put_section_header(&mut self, number: usize, row: &SectionRow) {
        // The names stand in the order of the sections.
        let mut names = NAMES.iter().enumerate().filter(|(_, byte)| **byte == 0);
        let name = names.nth(number - 1).map_or(0, |(zero, _)| zero as u32 + 1);
        let (kind, flags, address, (at, len), [link, info], [alignment, entry]) = *row;
        let start = HEADER + number * SECTION;
        let words = [
            u64::from(name) | u64::from(kind) << 32,
            flags,
            address,
            at,
            len,
            u64::from(link) | u64::from(info) << 32,
            alignment,
            entry,
        ];
        for (number, word) in words.iter().enumerate() {
            self.patch(start + 8 * number, &word.to_le_bytes());
        }
    }
}
