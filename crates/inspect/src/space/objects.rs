//! *Which ELF files are loaded, and where?* — read from the headers in the process's own memory, so
//! that a file that was deleted, or was never one, is seen too.

use super::{Object, Span, ThreadLocalSegment};
use crate::memory::ProcessMemory;
use crate::running::Mapping;
use crate::value::Contents;
use object::{Object as _, ObjectSymbol};
use pointee_model::addr::{Alleged, LinkAddr, LoadBias, RunAddr};
use std::collections::HashMap;

/// Program headers that are looked at; real files have a dozen.
const MOST_HEADERS: usize = 64;
/// Bytes of notes that are looked at for the build ID.
const MOST_NOTES: usize = 4096;
/// Objects in the dynamic linker's list that are followed: a damaged list may be a circle.
const MOST_OBJECTS: usize = 10_000;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_NOTE: u32 = 4;
const PT_TLS: u32 = 7;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const PF_X: u32 = 1;

/// The loaded objects, in order of address.
pub(super) fn find(mappings: &[Mapping], memory: &ProcessMemory) -> Vec<Object> {
    let mut objects: Vec<Object> = Vec::new();
    for mapping in mappings {
        let may_be = mapping.permissions.starts_with('r')
            && mapping.offset == 0
            && (mapping.inode != 0 || mapping.path == "[vdso]");
        let inside = |object: &Object| object.span.holds(mapping.start);
        if may_be && !objects.iter().any(inside) {
            objects.extend(object(mapping, mappings, memory));
        }
    }
    objects
}

struct Header {
    kind: u32,
    flags: u32,
    address: u64,
    size: u64,
}

fn object(mapping: &Mapping, mappings: &[Mapping], memory: &ProcessMemory) -> Option<Object> {
    let headers = headers(memory, mapping.start)?;
    let loads = || headers.iter().filter(|header| header.kind == PT_LOAD);
    let first = loads().map(|header| header.address).min()? & !0xfff;
    let bias = LoadBias(mapping.start.0.wrapping_sub(first));
    let run = |address: u64| bias.to_run(LinkAddr(address));
    let span = |header: &Header| Span {
        start: run(header.address),
        end: run(header.address.wrapping_add(header.size)),
    };
    let segments: Vec<(Span, u32)> = loads().map(|load| (span(load), load.flags)).collect();
    let end = segments.iter().map(|(span, _)| span.end).max()?;
    // A file that was only mapped to be read has its headers in memory too, but no code where they say.
    let is_loaded = segments.iter().any(|(span, flags)| {
        flags & PF_X != 0
            && mappings.iter().any(|mapping| {
                let holds = mapping.start <= span.start && span.start < mapping.end;
                holds && mapping.permissions.contains('x')
            })
    });
    if !is_loaded || end <= mapping.start {
        return None;
    }
    let at = |kind: u32| headers.iter().find(|header| header.kind == kind);
    Some(Object {
        path: mapping.path.clone(),
        span: Span {
            start: mapping.start,
            end,
        },
        bias,
        build_id: headers
            .iter()
            .filter(|header| header.kind == PT_NOTE)
            .find_map(|note| build_id(memory, span(note)))
            .unwrap_or_default(),
        segments,
        thread_local: at(PT_TLS).map(|header| ThreadLocalSegment {
            address: LinkAddr(header.address),
            size: header.size,
        }),
        unwind_table: at(PT_GNU_EH_FRAME).map(|header| run(header.address)),
        dynamic: at(PT_DYNAMIC).map(|header| run(header.address)),
        thread_local_number: None,
    })
}

/// The program headers of the ELF image at `start` (System V ABI, "Program Header").
fn headers(memory: &ProcessMemory, start: RunAddr) -> Option<Vec<Header>> {
    const SIZE: usize = 56;
    let mut head = [0; 64];
    let is_elf = memory.read_at(start, &mut head) && head.starts_with(b"\x7fELF\x02\x01");
    if !is_elf {
        return None;
    }
    let size = u64::from(u16_at(&head, 54));
    let count = usize::from(u16_at(&head, 56)).min(MOST_HEADERS);
    if size != SIZE as u64 {
        return None;
    }
    let mut bytes = vec![0; count * SIZE];
    if !memory.read_at(start.plus(u64_at(&head, 32)), &mut bytes) {
        return None;
    }
    let header = |bytes: &[u8]| Header {
        kind: u32_at(bytes, 0),
        flags: u32_at(bytes, 4),
        address: u64_at(bytes, 16),
        size: u64_at(bytes, 40),
    };
    Some(bytes.chunks_exact(SIZE).map(header).collect())
}

fn build_id(memory: &ProcessMemory, notes: Span) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let len = usize::try_from(notes.end.0.checked_sub(notes.start.0)?).ok()?;
    let mut bytes = vec![0; len.min(MOST_NOTES)];
    if !memory.read_at(notes.start, &mut bytes) {
        return None;
    }
    let mut rest = bytes.as_slice();
    while rest.len() >= 12 {
        let (name, size, kind) = (u32_at(rest, 0), u32_at(rest, 4), u32_at(rest, 8));
        let start = 12 + (name as usize).checked_next_multiple_of(4)?;
        let end = start.checked_add(size as usize)?;
        if kind == NT_GNU_BUILD_ID && rest.get(12..16) == Some(b"GNU\0") {
            return rest.get(start..end).map(<[u8]>::to_vec);
        }
        rest = rest.get(end.checked_next_multiple_of(4)?..)?;
    }
    None
}

/// Numbers the objects that have thread-local variables, as the dynamic linker does. It keeps the number in its own
/// record of the object; libc exports where (for libthread_db). Without that, the order of loading is the order of
/// numbers as long as nothing was unloaded.
pub(super) fn number_thread_locals(pid: u32, objects: &mut [Object], memory: &ProcessMemory) {
    let numbers = linked_numbers(pid, objects, memory).unwrap_or_default();
    let mut executable = true;
    for object in objects
        .iter_mut()
        .filter(|object| object.thread_local.is_some())
    {
        let known = object.dynamic.and_then(|dynamic| numbers.get(&dynamic));
        // The executable lies first when it is not position-independent; it has number 1 wherever it lies.
        object.thread_local_number = match known {
            Some(number) => Some(*number),
            None if numbers.is_empty() && executable => Some(1),
            None => None,
        };
        executable = false;
    }
}

/// From the address of an object's dynamic section to its number.
fn linked_numbers(
    pid: u32,
    objects: &[Object],
    memory: &ProcessMemory,
) -> Option<HashMap<RunAddr, u64>> {
    let libc = objects.iter().find(|object| {
        let name = object.path.rsplit('/').next().unwrap_or("");
        name.starts_with("libc.so") || name.starts_with("libc-")
    })?;
    let description = symbol(pid, libc, "_thread_db_link_map_l_tls_modid")?;
    let mut field = [0; 12];
    if !memory.read_at(description, &mut field) {
        return None;
    }
    // Bits, count and offset of the field (glibc, nptl_db/db_info.c).
    let (bits, offset) = (u32_at(&field, 0), u64::from(u32_at(&field, 8)));
    if bits != 64 || offset > 1 << 16 {
        return None;
    }
    let mut numbers = HashMap::new();
    let mut at = objects
        .iter()
        .find_map(|object| debug_map(memory, object.dynamic?))?;
    for _ in 0..MOST_OBJECTS {
        // struct link_map: l_addr, l_name, l_ld, l_next (<link.h>).
        let (dynamic, next) = (word(memory, at.plus(16))?, word(memory, at.plus(24))?);
        match word(memory, at.plus(offset)) {
            Some(number @ 1..) => {
                numbers.insert(RunAddr(dynamic), number);
            }
            Some(0) => {}
            None => break,
        }
        if next == 0 {
            break;
        }
        at = RunAddr(next);
    }
    Some(numbers)
}

/// The dynamic linker's list, by the executable's `DT_DEBUG`.
fn debug_map(memory: &ProcessMemory, dynamic: RunAddr) -> Option<RunAddr> {
    const DT_DEBUG: u64 = 21;
    for number in 0..256 {
        let entry = dynamic.plus(number * 16);
        let tag = word(memory, entry)?;
        if tag == 0 {
            return None;
        }
        if tag == DT_DEBUG {
            let debug = word(memory, entry.plus(8)).filter(|debug| *debug != 0)?;
            let map = word(memory, RunAddr(debug).plus(8))?;
            return (map != 0).then_some(RunAddr(map));
        }
    }
    None
}

/// An exported symbol of `object`.
fn symbol(pid: u32, object: &Object, name: &str) -> Option<RunAddr> {
    let path = format!("/proc/{pid}/root{}", object.path);
    let is_file = std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_file());
    let bytes = is_file.then(|| std::fs::read(&path).ok()).flatten()?;
    let file = object::File::parse(&*bytes).ok()?;
    let symbol = file
        .dynamic_symbols()
        .find(|symbol| symbol.name() == Ok(name))?;
    Some(object.bias.to_run(LinkAddr(symbol.address())))
}

/// The function of the kernel's object at `address`, by its symbols in memory.
#[must_use]
pub fn vdso_function(
    vdso: &Object,
    address: RunAddr,
    contents: Option<&dyn Contents>,
) -> Option<String> {
    let len = vdso.span.end.offset_from(vdso.span.start)?.min(1 << 20);
    // Section headers lie behind the last segment, on its last page.
    let mut bytes = vec![0; usize::try_from(len.next_multiple_of(4096)).ok()?];
    if !contents?.read(Alleged(vdso.span.start.0), &mut bytes) {
        return None;
    }
    let file = object::File::parse(&*bytes).ok()?;
    let link = vdso.bias.to_link(address).0;
    let symbol = file
        .dynamic_symbols()
        .find(|symbol| link.wrapping_sub(symbol.address()) < symbol.size())?;
    symbol.name().ok().map(str::to_owned)
}

/// The eight bytes at `address`.
pub(super) fn word(memory: &ProcessMemory, address: RunAddr) -> Option<u64> {
    let mut bytes = [0; 8];
    memory
        .read_at(address, &mut bytes)
        .then(|| u64::from_le_bytes(bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let bytes = bytes
        .get(at..at + 2)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}
