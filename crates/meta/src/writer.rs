//! *How do facts become the bytes of an image?*
//!
//! Records are filled in the order that the image format asks for, strings are interned once, and
//! the sections are laid out one after the other, each 8-byte aligned.

use crate::config::Config;
use crate::facts::{Facts, FrameBase, Function, LoadedSection, Place};
use crate::sites::{CountWrite, CursorWrite, Sites, Size, Summary, Wrapper};
use pointee_model::entries::{Declared, Role, role_of};
use pointee_model::image::{
    CursorRecord, EntryRecord, EnumeratorRecord, EvidenceRecord, FORMAT, FunctionRecord, Header,
    InlineRecord, LineRecord, LocalPlace, LocalRecord, MAGIC, MemberRecord, NO_TYPE, Section,
    SectionRecord, SiteRecord, StrRef, SummaryRecord, TypeKind, TypeRecord, VariableRecord,
    cursor_flags, function_flags, header_flags, section_kind, variable_flags,
};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use xxhash_rust::xxh3::xxh3_128;
use zerocopy::{Immutable, IntoBytes};

/// What an image says about its origin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    /// Build ID of the file; empty when it has none.
    pub build_id: Vec<u8>,
    /// Hash of everything of its own that the image is made from.
    pub inputs: u64,
    /// What was learned of other files, as [`Learned`](crate::link_map::Learned) says it.
    pub learned: u64,
}

impl Provenance {
    /// As the header holds it.
    #[must_use]
    pub fn bytes(&self) -> [u8; 16] {
        let both = u128::from(self.inputs) | u128::from(self.learned) << 64;
        both.to_le_bytes()
    }
}

/// Writes an image.
#[must_use]
pub fn write(facts: &Facts, sites: &Sites, config: &Config, provenance: &Provenance) -> Vec<u8> {
    let mut strings = Strings::new();
    let files: Vec<StrRef> = facts
        .files
        .iter()
        .map(|path| strings.intern(path))
        .collect();
    let types = Types::of(facts, &mut strings);
    let functions = functions(facts, sites, &mut strings);
    let inlines = inlines(facts, &mut strings);
    let variables = variables(facts, &mut strings);
    let sections = loaded_sections(facts, &mut strings);
    let locals = locals(facts, &mut strings);
    let lines: Vec<LineRecord> = facts
        .lines
        .iter()
        .map(|row| LineRecord {
            address: row.address,
            file: row.file.unwrap_or(u32::MAX),
            line: row.line,
        })
        .collect();
    let (records, evidence) = site_records(sites, &mut strings);
    let entries = entries(facts, sites, config, &mut strings);
    let cursors = cursors(sites, &mut strings);
    let exports = summaries(&sites.exports, &mut strings);
    let imports = summaries(&sites.imports, &mut strings);

    let mut layout = Layout::default();
    layout.add(section_kind::TYPES, &types.records);
    layout.add(section_kind::MEMBERS, &types.members);
    layout.add(section_kind::ENUMERATORS, &types.enumerators);
    layout.add(section_kind::FUNCTIONS, &functions);
    layout.add(section_kind::LINES, &lines);
    layout.add(section_kind::INLINES, &inlines);
    layout.add(section_kind::SITES, &records);
    layout.add(section_kind::EVIDENCE, &evidence);
    layout.add(section_kind::VARIABLES, &variables);
    layout.add(section_kind::ENTRIES, &entries);
    layout.add(section_kind::SECTIONS, &sections);
    layout.add(section_kind::LOCALS, &locals);
    layout.add(section_kind::SYSTEM_CALLS, &sites.system_calls);
    layout.add(section_kind::CURSORS, &cursors);
    layout.add(section_kind::GUARDS, &sites.guards);
    layout.add(section_kind::EXPORTS, &exports);
    layout.add(section_kind::IMPORTS, &imports);
    layout.add(section_kind::FILES, &files);
    layout.add(section_kind::STRINGS, &strings.bytes);
    let mut flags = 0;
    if facts.has_dwarf {
        flags |= header_flags::HAS_DWARF;
    }
    if sites.has_sources {
        flags |= header_flags::HAS_SOURCES;
    }
    layout.finish(provenance, flags)
}

/// The allocation functions that go by a known name, that the configuration names, or that were found to be pools, exported or not,
/// wherever that name was found. The configuration was cut to this file before.
fn entries(
    facts: &Facts,
    sites: &Sites,
    config: &Config,
    strings: &mut Strings,
) -> Vec<EntryRecord> {
    let found = sites.wrappers.iter().filter(|wrapper| wrapper.is_pool);
    let found: HashMap<u64, Declared> = found
        .filter_map(|wrapper| Some((wrapper.entry, found_pool(wrapper)?)))
        .collect();
    let known = facts.functions.iter().filter_map(|function| {
        let name = function.linkage_name.as_str();
        let said = config.rules.iter().rev().find(|rule| rule.names(name));
        let declared = match said {
            Some(rule) => rule.hooked_as(),
            None => found.get(&function.entry).copied(),
        };
        match declared {
            Some(declared) => Some((function, name, declared.to_word())),
            None => Some((function, role_of(name)?.0, 0)),
        }
    });
    known
        .map(|(function, name, role)| EntryRecord {
            address: function.entry,
            size: function
                .ranges
                .first()
                .map_or(0, |(start, end)| end.saturating_sub(*start)),
            name: strings.intern(name),
            role,
        })
        .collect()
}

/// What a hook has to know of a pool that was found, if it can see its size.
fn found_pool(wrapper: &Wrapper) -> Option<Declared> {
    let (argument, count) = match wrapper.size {
        Size::Argument {
            index,
            scale: 1,
            add: 0,
        } => (index, None),
        Size::Product(count, size) => (size, Some(count)),
        _ => return None,
    };
    let is_seen = argument.max(count.unwrap_or(0)) < Declared::SEEN;
    is_seen.then_some(Declared {
        argument,
        count,
        is_found: true,
        ..Declared::of(Role::PoolAlloc)
    })
}

fn cursors(sites: &Sites, strings: &mut Strings) -> Vec<CursorRecord> {
    let record = |write: &CursorWrite| CursorRecord {
        address: write.address,
        next: write.next,
        name: strings.intern(&write.cursor),
        within: u16::from(write.within),
        flags: flags_of_cursor(write),
        base: write.count.map_or(0, |count| count.base),
        room: write.count.map_or(0, |count| count.room),
        step: write.count.and_then(|count| count.step).unwrap_or(0),
        scale: write.count.map_or(0, |count| u16::from(count.scale)),
        rounded: write.count.map_or(0, |count| u16::from(count.rounded)),
    };
    sites.cursor_writes.iter().map(record).collect()
}

fn flags_of_cursor(write: &CursorWrite) -> u16 {
    let count = write.count.as_ref();
    let is = |of: fn(&CountWrite) -> bool| count.is_some_and(of);
    let flags = [
        (write.down, cursor_flags::DOWN),
        (count.is_some(), cursor_flags::COUNTS),
        (is(|count| count.narrow), cursor_flags::NARROW),
        (is(|count| count.fixed), cursor_flags::FIXED),
        (is(|count| count.held), cursor_flags::HELD),
        (is(|count| count.only_back), cursor_flags::ONLY_BACK),
    ];
    let set = flags.into_iter().filter(|(is, _)| *is);
    set.fold(0, |all, (_, flag)| all | flag)
}

fn summaries(summaries: &[Summary], strings: &mut Strings) -> Vec<SummaryRecord> {
    let records = summaries.iter();
    records
        .map(|summary| summary.to_record(|text| strings.intern(text)))
        .collect()
}

/// The string section under construction.
struct Strings {
    bytes: Vec<u8>,
    /// By hash: names are many, and keeping each twice costs more than all else here.
    known: HashMap<u128, StrRef>,
}

impl Strings {
    fn new() -> Self {
        Self {
            bytes: vec![0],
            known: HashMap::new(),
        }
    }

    fn intern(&mut self, text: &str) -> StrRef {
        // A NUL would end the string early for every reader; none belongs in a name.
        let mut text = text.as_bytes();
        if text.contains(&0) {
            text = text.split(|byte| *byte == 0).next().unwrap_or(&[]);
        }
        if text.is_empty() {
            return 0;
        }
        // Beyond 4 GiB of strings there is no offset; such a name is lost.
        let Ok(next) = StrRef::try_from(self.bytes.len()) else {
            return 0;
        };
        let at = *self.known.entry(xxh3_128(text)).or_insert(next);
        if at == next {
            self.bytes.extend_from_slice(text);
            self.bytes.push(0);
        }
        at
    }
}

#[derive(Default)]
struct Types {
    records: Vec<TypeRecord>,
    members: Vec<MemberRecord>,
    enumerators: Vec<EnumeratorRecord>,
}

impl Types {
    fn of(facts: &Facts, strings: &mut Strings) -> Self {
        let mut result = Self::default();
        for entry in &facts.types {
            let (first_member, members) = if entry.kind == TypeKind::Enum {
                let first = result.enumerators.len();
                result
                    .enumerators
                    .extend(
                        entry
                            .enumerators
                            .iter()
                            .map(|(name, value)| EnumeratorRecord {
                                value: *value,
                                name: strings.intern(name),
                                reserved: 0,
                            }),
                    );
                (first, entry.enumerators.len())
            } else {
                let first = result.members.len();
                result
                    .members
                    .extend(entry.members.iter().map(|member| MemberRecord {
                        offset: member.offset,
                        discriminant: member.discriminant,
                        name: strings.intern(&member.name),
                        r#type: member.r#type,
                        bit_offset: member.bit_offset,
                        bit_size: member.bit_size,
                        flags: member.flags,
                    }));
                (first, entry.members.len())
            };
            result.records.push(TypeRecord {
                identity: entry.identity,
                size: entry.size.unwrap_or(u64::MAX),
                count: match entry.kind {
                    TypeKind::Array => entry.count.unwrap_or(u64::MAX),
                    _ => 0,
                },
                name: strings.intern(&entry.name),
                target: entry.target.unwrap_or(NO_TYPE),
                first_member: first_member as u32,
                members: members as u32,
                kind: entry.kind as u8,
                encoding: entry.encoding,
                flags: entry.flags,
                reserved: 0,
            });
        }
        result
    }
}

/// Pieces of functions in order of address. Where two overlap, the one that starts later takes
/// over: readers search for the last start at or below an address.
fn functions(facts: &Facts, sites: &Sites, strings: &mut Strings) -> Vec<FunctionRecord> {
    let wrappers: HashSet<u64> = sites.wrappers.iter().map(|wrapper| wrapper.entry).collect();
    let mut pieces: Vec<FunctionRecord> = Vec::new();
    for function in &facts.functions {
        let name = strings.intern(&function.name);
        let linkage_name = strings.intern(&function.linkage_name);
        for (start, end) in &function.ranges {
            pieces.push(FunctionRecord {
                start: *start,
                end: *end,
                name,
                linkage_name,
                file: function.file.unwrap_or(u32::MAX),
                line: function.line,
                result: function.result.unwrap_or(NO_TYPE),
                flags: flags_of(function, *start, &wrappers),
            });
        }
    }
    pieces.sort_by_key(|piece| piece.start);
    pieces.dedup_by_key(|piece| piece.start);
    for at in 1..pieces.len() {
        let start = pieces[at].start;
        let before = &mut pieces[at - 1];
        before.end = before.end.min(start);
    }
    pieces
}

fn flags_of(function: &Function, start: u64, wrappers: &HashSet<u64>) -> u32 {
    let mut flags = 0;
    if !function.has_dwarf {
        flags |= function_flags::FROM_SYMBOL;
    }
    if start != function.entry {
        flags |= function_flags::PIECE;
    }
    if wrappers.contains(&function.entry) {
        flags |= function_flags::WRAPPER;
    }
    flags
}

fn site_records(sites: &Sites, strings: &mut Strings) -> (Vec<SiteRecord>, Vec<EvidenceRecord>) {
    let mut records: Vec<SiteRecord> = Vec::with_capacity(sites.sites.len());
    let mut evidence: Vec<EvidenceRecord> = Vec::new();
    for site in &sites.sites {
        records.push(SiteRecord {
            return_address: site.return_address,
            call: site.call,
            callee: strings.intern(&site.callee),
            r#type: site.r#type.unwrap_or(NO_TYPE),
            tail: site.tail.unwrap_or(NO_TYPE),
            first_evidence: evidence.len() as u32,
            evidence: site.evidence.len() as u32,
            role: site.role as u8,
            verdict: site.verdict as u8,
            flags: site.flags,
        });
        evidence.extend(site.evidence.iter().map(|seen| EvidenceRecord {
            r#type: seen.r#type.unwrap_or(NO_TYPE),
            what: strings.intern(&seen.what),
            address: seen.address,
            witness: seen.witness as u8,
            role: seen.role as u8,
            reserved: [0; 6],
        }));
    }
    records.sort_by_key(|site| site.return_address);
    (records, evidence)
}

fn inlines(facts: &Facts, strings: &mut Strings) -> Vec<InlineRecord> {
    let mut pieces: Vec<InlineRecord> = Vec::new();
    for inline in facts
        .functions
        .iter()
        .flat_map(|function| &function.inlines)
    {
        let name = strings.intern(&inline.name);
        pieces.extend(inline.ranges.iter().map(|(start, end)| InlineRecord {
            start: *start,
            end: *end,
            name,
            call_file: inline.call_file.unwrap_or(u32::MAX),
            call_line: inline.call_line,
            depth: inline.depth,
        }));
    }
    pieces.par_sort_by_key(|piece| (piece.start, piece.depth));
    pieces
}

/// Static variables, then thread-local ones; what debug info describes hides the symbols inside it.
fn variables(facts: &Facts, strings: &mut Strings) -> Vec<VariableRecord> {
    let described = facts.globals.iter().map(|global| (global, 0));
    let named = facts
        .data_symbols
        .iter()
        .map(|global| (global, variable_flags::FROM_SYMBOL));
    let mut variables: Vec<VariableRecord> = described
        .chain(named)
        .map(|(global, mut flags)| {
            if global.thread_local {
                flags |= variable_flags::THREAD_LOCAL;
            }
            VariableRecord {
                address: global.address,
                size: global.size,
                name: strings.intern(&global.name),
                r#type: global.r#type.unwrap_or(NO_TYPE),
                flags,
                reserved: 0,
            }
        })
        .collect();
    let thread_local = |variable: &VariableRecord| variable.flags & variable_flags::THREAD_LOCAL;
    let from_symbol = |variable: &VariableRecord| variable.flags & variable_flags::FROM_SYMBOL;
    // Of two at one address the one that debug info gives a size comes first.
    variables.sort_by_key(|variable| {
        let unsized_last = variable.size == 0;
        (
            thread_local(variable),
            variable.address,
            unsized_last,
            from_symbol(variable),
        )
    });
    variables.dedup_by_key(|variable| (thread_local(variable), variable.address));
    // A symbol inside of a variable (an alias of a member, a section's start) tells less than the variable.
    let mut covered = (0, 0);
    variables.retain(|variable| {
        let (thread, end) = covered;
        let inside = thread == thread_local(variable) && variable.address < end;
        if inside && from_symbol(variable) != 0 {
            return false;
        }
        covered = (
            thread_local(variable),
            variable.address.saturating_add(variable.size),
        );
        true
    });
    variables
}

fn loaded_sections(facts: &Facts, strings: &mut Strings) -> Vec<SectionRecord> {
    let record = |section: &LoadedSection| SectionRecord {
        address: section.address,
        size: section.size,
        name: strings.intern(&section.name),
        flags: section.flags,
    };
    facts.sections.iter().map(record).collect()
}

/// Where locals lie, cut to the function's pieces: readers search from the start of the piece they are in.
fn locals(facts: &Facts, strings: &mut Strings) -> Vec<LocalRecord> {
    let mut locals = Vec::new();
    for function in &facts.functions {
        let inlines = function.inlines.iter();
        let inlines: Vec<StrRef> = inlines.map(|inline| strings.intern(&inline.name)).collect();
        for variable in &function.variables {
            let name = strings.intern(&variable.name);
            if name == 0 {
                continue;
            }
            let inline = variable
                .inline
                .and_then(|inline| inlines.get(inline as usize).copied())
                .unwrap_or(0);
            let record = |start: u64, end: u64, (place, register, offset)| LocalRecord {
                start,
                end,
                offset,
                name,
                r#type: variable.r#type.unwrap_or(NO_TYPE),
                inline,
                register,
                place: place as u8,
                flags: u8::from(variable.parameter.is_some()),
            };
            for (start, end, place) in &variable.places {
                let Some(place) = local_place(*place, function.frame_base) else {
                    continue;
                };
                let pieces = function.ranges.iter().take(MOST_PIECES);
                for (first, last) in pieces.filter(|(first, last)| first < end && start < last) {
                    locals.push(record(*start.max(first), *end.min(last), place));
                }
            }
        }
    }
    locals.par_sort_by_key(|local| local.start);
    locals
}

/// Pieces of one function that its locals are looked for in: real ones have two or three.
const MOST_PIECES: usize = 8;

fn local_place(place: Place, base: FrameBase) -> Option<(LocalPlace, u16, i64)> {
    Some(match (place, base) {
        (Place::Register(register), _) => (LocalPlace::Register, register, 0),
        (Place::Memory(register, offset), _) => (LocalPlace::Memory, register, offset),
        (Place::Value(register, offset), _) => (LocalPlace::Value, register, offset),
        (Place::Frame(offset), FrameBase::Cfa) => (LocalPlace::Frame, 0, offset),
        (Place::Frame(offset), FrameBase::Register(register)) => {
            (LocalPlace::Memory, register, offset)
        }
        (Place::Behind(Some(register), offset), _)
        | (Place::Behind(None, offset), FrameBase::Register(register)) => {
            (LocalPlace::Behind, register, offset)
        }
        (Place::Behind(None, offset), FrameBase::Cfa) => {
            (LocalPlace::Behind, LocalRecord::CFA, offset)
        }
        // At a fixed address it is no local; what the frame base is, is not known.
        (Place::Frame(_) | Place::Behind(None, _), FrameBase::Unknown)
        | (Place::Start(_) | Place::Address(_) | Place::Constant(_), _) => return None,
    })
}

/// Sections collected so far.
#[derive(Default)]
struct Layout<'a> {
    table: Vec<Section>,
    /// The records of each.
    records: Vec<&'a [u8]>,
    /// Bytes of all, each filled up to a multiple of eight.
    len: usize,
}

impl<'a> Layout<'a> {
    fn add<T: IntoBytes + Immutable>(&mut self, kind: u32, records: &'a [T]) {
        self.table.push(Section {
            kind,
            record: size_of::<T>() as u32,
            offset: self.len as u64,
            count: records.len() as u64,
        });
        let bytes = records.as_bytes();
        self.records.push(bytes);
        self.len += bytes.len().next_multiple_of(8);
    }

    fn finish(mut self, provenance: &Provenance, flags: u64) -> Vec<u8> {
        let mut build_id = [0; 20];
        let len = provenance.build_id.len().min(build_id.len());
        build_id[..len].copy_from_slice(&provenance.build_id[..len]);
        let header = Header {
            magic: MAGIC,
            format: FORMAT,
            sections: self.table.len() as u32,
            build_id,
            build_id_len: len as u32,
            provenance: provenance.bytes(),
            flags,
        };
        let start = size_of::<Header>() + size_of_val(self.table.as_slice());
        for section in &mut self.table {
            section.offset += start as u64;
        }
        let mut bytes = Vec::with_capacity(start + self.len);
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(self.table.as_bytes());
        for records in &self.records {
            bytes.extend_from_slice(records);
            bytes.resize(
                bytes.len() + records.len().next_multiple_of(8) - records.len(),
                0,
            );
        }
        bytes
    }
}
