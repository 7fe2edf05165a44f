//! *Which block did a function of the asking thread make on its stack while it ran?* — arrays of variable length, and `alloca`,
//! by the rules of `inspect/src/space/carved.rs`; of registers, only those are known that a walk knows.
//!
//! What lies where changes from call to call: nothing is kept.

#![allow(unsafe_code)] // Reads slots of the asking thread's frames.

use super::frames::Frame;
use super::objects;
use super::types::{self, Record};
use pointee_model::addr::LinkAddr;
use pointee_model::image::{Image, LocalPlace, LocalRecord, SiteRecord, TypeKind, site_flags};

/// What `alloca` blocks are aligned to at least (System V ABI, AMD64, 3.2.2).
const ALIGNMENT: u64 = 16;
/// Registers that hold the same when a call returns: rbx, rbp, r12 to r15 (DWARF numbers).
const CALLS_KEEP: [u16; 6] = [3, 6, 12, 13, 14, 15];
/// Places of variables that are looked at.
const MOST: usize = 1024;

/// A block in a frame.
pub(super) struct Carved {
    pub(super) start: u64,
    pub(super) len: u64,
    /// The array's variable; `None` for `alloca`.
    pub(super) variable: Option<&'static LocalRecord>,
    /// Of `alloca`: what the pointer to it says.
    pub(super) r#type: Option<&'static Record>,
    /// Where it was made, as a return address would be; 0 if that is not clear.
    pub(super) site: u64,
}

/// The instructions that make room on the stack in the function that `frame` executes.
pub(super) fn sites_of(frame: &Frame<'_>) -> &'static [SiteRecord] {
    let of = || {
        let image = objects::image(frame.module())?;
        let function = image.function_at(frame.link())?;
        let after = |address: u64| {
            image
                .sites
                .partition_point(|site| site.return_address <= address)
        };
        image.sites.get(after(function.start)..after(function.end))
    };
    let sites = of().unwrap_or_default();
    let carves = |site: &SiteRecord| site.flags & site_flags::NO_CALL != 0;
    if sites.iter().any(carves) { sites } else { &[] }
}

/// The block of `frame` that holds `address`; `sites` are those of its function. Where blocks of the frame begin at places that are
/// not known, none is told.
pub(super) fn at(frame: &Frame<'_>, sites: &[SiteRecord], address: u64) -> Option<Carved> {
    let image = objects::image(frame.module())?;
    let mut fixed = frame.return_slot();
    let mut arrays = false;
    for (record, r#type) in variables(frame, image) {
        if is_open(r#type) {
            arrays = true;
        } else if let Some(start) = frame.start_of(record).filter(|start| frame.spans(*start)) {
            fixed = fixed.min(start);
        }
    }
    let is_below = address < fixed;
    if !is_below && !arrays {
        return None;
    }
    // The nearest start at or below the address, and the next one above it.
    let mut found: Option<(u64, &LocalRecord, &Record)> = None;
    let mut next = if is_below { fixed } else { frame.return_slot() };
    for (record, r#type) in variables(frame, image) {
        let start = if is_open(r#type) {
            place_of(frame, record)?
        } else if r#type.kind == TypeKind::Pointer as u8 && !record.is_parameter() {
            let held = held_by(frame, record)?;
            if held >= fixed || held % ALIGNMENT != 0 {
                continue;
            }
            held
        } else {
            continue;
        };
        if !frame.spans(start) {
            continue;
        }
        let is_array = is_open(r#type);
        if start > address {
            next = next.min(start);
        } else if found
            .is_none_or(|(nearest, ..)| nearest < start || (nearest == start && is_array))
        {
            found = Some((start, record, r#type));
        }
    }
    let (start, record, r#type) = found?;
    if is_open(r#type) {
        return Some(Carved {
            start,
            len: next - start,
            variable: Some(record),
            r#type: Some(r#type),
            site: 0,
        });
    }
    let elements = elements_of(frame, image, record);
    Some(Carved {
        start,
        len: next - start,
        variable: None,
        r#type: elements,
        site: only_site(frame, sites, elements),
    })
}

type Variable = (&'static LocalRecord, &'static Record);

fn variables(
    frame: &Frame<'_>,
    image: &'static Image<'static>,
) -> impl Iterator<Item = Variable> + use<> {
    let records = image.locals_at(frame.link()).take(MOST);
    let module = frame.module();
    records.filter_map(move |record| Some((record, objects::type_of(module, record.r#type)?)))
}

fn is_open(r#type: &Record) -> bool {
    r#type.kind == TypeKind::Array as u8 && matches!(r#type.size, types::UNKNOWN | 0)
}

/// Where a variable lies; `None` if that is not known.
fn place_of(frame: &Frame<'_>, record: &LocalRecord) -> Option<u64> {
    match LocalPlace::from_byte(record.place) {
        LocalPlace::Memory => {
            let base = frame.register(record.register)?;
            Some(base.wrapping_add_signed(record.offset))
        }
        LocalPlace::Behind if record.register != LocalRecord::CFA => {
            let base = frame.register(record.register)?;
            slot(frame, base.wrapping_add_signed(record.offset))
        }
        _ => frame.start_of(record),
    }
}

/// What a pointer holds; 0 for one that lies nowhere, `None` if that is not known.
fn held_by(frame: &Frame<'_>, record: &LocalRecord) -> Option<u64> {
    match LocalPlace::from_byte(record.place) {
        LocalPlace::Register if CALLS_KEEP.contains(&record.register) => {
            frame.register(record.register)
        }
        LocalPlace::Memory | LocalPlace::Frame => slot(frame, place_of(frame, record)?).or(Some(0)),
        _ => Some(0),
    }
}

/// What a slot of a frame holds; `None` if it is none.
fn slot(frame: &Frame<'_>, at: u64) -> Option<u64> {
    let is_one = at.is_multiple_of(8) && frame.spans(at);
    // SAFETY: a slot of a frame of the asking thread that goes on.
    is_one.then(|| unsafe { *(at as *const u64) })
}

/// An array, of unknown length, of what a pointer points to.
fn elements_of(
    frame: &Frame<'_>,
    image: &'static Image<'static>,
    pointer: &LocalRecord,
) -> Option<&'static Record> {
    let mut at = pointer.r#type;
    for _ in 0..types::DEEPEST {
        let record = image.type_at(at)?;
        at = record.target;
        if TypeKind::from_byte(record.kind) == TypeKind::Pointer {
            let target = objects::type_of(frame.module(), at)?;
            return types::derived(TypeKind::Array, target, types::UNKNOWN);
        }
    }
    None
}

/// Where the only site of a function leads on to. There may be blocks that no site stands for, where one is of constant size.
fn only_site(frame: &Frame<'_>, sites: &[SiteRecord], made: Option<&'static Record>) -> u64 {
    let mut carving = sites
        .iter()
        .filter(|site| site.flags & site_flags::NO_CALL != 0);
    let (Some(site), None) = (carving.next(), carving.next()) else {
        return 0;
    };
    let of_site = objects::type_of(frame.module(), site.r#type);
    let element = made.and_then(Record::target);
    if element.is_none() || of_site.map(core::ptr::from_ref) == element.map(core::ptr::from_ref) {
        frame.run(LinkAddr(site.return_address))
    } else {
        0
    }
}
