//! *Which site is this origin's, and what does it make?* — by the rules of `inspect/src/resolve.rs`, once for each origin.
//!
//! ```text
//!   origin ─▶ node ─▶ parents ─▶ hooked entry        the path, outermost first
//!   innermost call that an image classifies, outside wrappers and the language's own code = the site
//! ```

#![allow(unsafe_code)] // Tables in room of our own; nodes of the origin tree by number.

use super::allocators::{self, Allocator};
use super::types::{self, Record};
use super::{objects, room};
use crate::locate;
use crate::modules::{self, Module};
use crate::region::region;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
use pointee_index::layout::ORIGIN_LEVELS;
use pointee_index::origins::{HASH, Node, ROOTS, UNLOADED};
use pointee_index::words;
use pointee_model::addr::LinkAddr;
use pointee_model::call::{Call, classify};
use pointee_model::entries::{self, OPERATORS, is_language_library};
use pointee_model::evidence::Role;
use pointee_model::image::{Image, NO_TYPE, SiteRecord};

/// What is known of an origin. Filled in by whoever asks first, with the same answer.
pub(super) struct Made {
    is_known: AtomicU32,
    /// Return address of the site's call; 0 if there is none.
    site: AtomicU64,
    r#type: AtomicPtr<Record>,
    allocator: AtomicPtr<Allocator>,
}

impl Made {
    #[inline(always)]
    pub(super) fn site(&self) -> u64 {
        self.site.load(Relaxed)
    }

    #[inline(always)]
    pub(super) fn record(&self) -> *const Record {
        self.r#type.load(Relaxed)
    }

    #[inline(always)]
    pub(super) fn allocator(&self) -> *const Allocator {
        self.allocator.load(Relaxed)
    }
}

/// By origin.
static MADE: AtomicPtr<Made> = AtomicPtr::new(core::ptr::null_mut());
/// By origin: one more than the place of its node, all levels counted through.
static PLACES: AtomicPtr<AtomicU32> = AtomicPtr::new(core::ptr::null_mut());

/// Takes room for the tables. `false` if there is none.
pub(super) fn set_up() -> bool {
    let origins = region().geometry.origins as usize;
    PLACES.store(room::take(origins), Release);
    MADE.store(room::take(origins), Release);
    !MADE.load(Relaxed).is_null()
}

/// Sites that have a number; numbers fit into 16 bits, and the highest stands for none.
const NUMBERED: usize = 1 << 15;
/// Site by number.
static SITES: [AtomicU64; NUMBERED] = [const { AtomicU64::new(0) }; NUMBERED];

fn places(site: u64) -> impl Iterator<Item = usize> {
    let first = (site.wrapping_mul(HASH) >> 49) as usize;
    (0..64).map(move |step| (first + step) & (NUMBERED - 1))
}

/// Gives `site` a number. There is none for it when its neighbours' are all given.
fn give_id(site: u64) {
    let mut places = places(site);
    let _ = places.find(|place| {
        let before = SITES[*place].compare_exchange(0, site, AcqRel, Acquire);
        before.is_ok() || before == Err(site)
    });
}

/// The number of a site that some answer named.
pub(super) fn id_of(site: u64) -> Option<u32> {
    let mut places = places(site).filter(|_| site != 0);
    let place = places.find(|place| SITES[*place].load(Acquire) == site)?;
    Some(place as u32)
}

/// The site of a number.
pub(super) fn of_id(id: u32) -> Option<u64> {
    let site = SITES.get(id as usize)?.load(Acquire);
    (site != 0).then_some(site)
}

/// What `origin` stands for.
#[inline]
pub(super) fn of(origin: u32) -> Option<&'static Made> {
    let made = MADE.load(Acquire);
    if origin >= region().geometry.origins || made.is_null() {
        return None;
    }
    // SAFETY: there is one for each origin.
    let made = unsafe { &*made.add(origin as usize) };
    if made.is_known.load(Acquire) == 0 {
        resolve(origin, made);
    }
    Some(made)
}

/// Frames of a path that are looked at; no walk is longer.
const LONGEST: usize = 64;

#[derive(Clone, Copy)]
struct Frame {
    return_address: u64,
    module: Option<&'static Module>,
}

impl Frame {
    fn link(&self) -> LinkAddr {
        let bias = self.module.map_or(0, |module| module.bias);
        LinkAddr(self.return_address.wrapping_sub(bias))
    }

    fn image(&self) -> Option<&'static Image<'static>> {
        objects::image(self.module?)
    }

    fn record(&self) -> Option<&'static SiteRecord> {
        self.image()?.site_returning_to(self.link())
    }

    fn call(&self) -> (Call, Option<&'static SiteRecord>) {
        let is_library = self
            .module
            .is_some_and(|module| is_language_library(module.file_name()));
        classify(self.image(), is_library, self.link())
    }
}

#[cold]
fn resolve(origin: u32, made: &Made) {
    let mut frames = [Frame {
        return_address: 0,
        module: None,
    }; LONGEST];
    let (root, len) = path(origin, &mut frames);
    let frames = &frames[..len];
    let chosen = choose(frames);
    if let Some((frame, record)) = chosen {
        give_id(frame.return_address);
        made.site.store(frame.return_address, Relaxed);
        if let (Some(record), Some(module)) = (record, frame.module)
            && let Some(r#type) = type_made(module, record)
        {
            made.r#type
                .store(core::ptr::from_ref(r#type).cast_mut(), Relaxed);
        }
    }
    let operator = operator_new(frames);
    if let Some(allocator) = allocators::of_root(root, operator) {
        made.allocator
            .store(core::ptr::from_ref(allocator).cast_mut(), Relaxed);
    }
    made.is_known.store(1, Release);
}

/// Whether the path goes through one of C++'s operators that hand out memory; `true` in it for arrays.
///
/// `operator new[]` of libstdc++ jumps to `operator new`, and is seen only by the name that the site calls.
fn operator_new(frames: &[Frame]) -> Option<bool> {
    let is_operator = |frame: &Frame| {
        let mut operators = OPERATORS
            .iter()
            .filter(|(_, role)| *role == entries::Role::New);
        operators.any(|(name, _)| {
            let found = frame
                .module
                .and_then(|module| locate::exported(module, name));
            found.is_some_and(|(start, len)| frame.return_address.wrapping_sub(start) <= len)
        })
    };
    let at = frames.iter().position(is_operator)?;
    let outer = frames.get(at + 1);
    Some(outer.is_some_and(|outer| {
        let callee = outer
            .image()
            .zip(outer.record())
            .map_or("", |(image, record)| image.string(record.callee));
        callee.starts_with("_Zna") || callee.starts_with("operator new[]")
    }))
}

/// The path of `origin`, innermost first: its root and how many frames were written.
fn path(origin: u32, frames: &mut [Frame; LONGEST]) -> (u32, usize) {
    let (mut at, mut len) = (origin, 0);
    while at >= ROOTS && len < LONGEST {
        let Some(node) = node(at) else {
            return (0, 0);
        };
        frames[len] = Frame {
            return_address: node.return_address.load(Acquire) & !UNLOADED,
            module: modules::numbered(node.frame().module),
        };
        len += 1;
        at = words::origin(node.parent.load(Relaxed));
    }
    frames[..len].reverse();
    (at, len)
}

fn choose(frames: &[Frame]) -> Option<(Frame, Option<&'static SiteRecord>)> {
    let mut outside = None;
    let mut frames_left = u32::MAX;
    let mut below = None;
    for frame in frames {
        if frames_left == 0 {
            break;
        }
        let (call, record) = frame.call();
        frames_left = (frames_left - 1).min(call.frames_beyond(|| below).unwrap_or(u32::MAX));
        below = Some(call);
        match call {
            Call::InWrapper | Call::InLibrary => continue,
            // What lies between is not known to be the function that jumps.
            _ if outside.is_some() && record.is_some_and(SiteRecord::stands_in) => break,
            Call::Site => return Some((*frame, record)),
            Call::Untyped | Call::Unnoted | Call::Unknown => {}
        }
        outside.get_or_insert((*frame, record));
    }
    outside.or_else(|| frames.last().map(|frame| (*frame, frame.record())))
}

/// The type of what a site makes: of the whole, or an array without length, or header and array.
fn type_made(module: &'static Module, site: &SiteRecord) -> Option<&'static Record> {
    if site.r#type == NO_TYPE {
        return None;
    }
    let unit = objects::type_of(module, site.r#type)?;
    match Role::from_byte(site.role) {
        Role::Element | Role::Characters | Role::Bytes => {
            types::derived(pointee_model::image::TypeKind::Array, unit, types::UNKNOWN)
        }
        Role::Header => {
            let tail = (site.tail != NO_TYPE)
                .then(|| objects::type_of(module, site.tail))
                .flatten();
            types::trailed(unit, tail, site.array_at(unit.size))
        }
        Role::Whole | Role::Base | Role::Unknown => Some(unit),
    }
}

/// The node of `origin`. The tree is searched by path, not by number: its numbers are noted in one go.
fn node(origin: u32) -> Option<&'static Node> {
    let places = PLACES.load(Acquire);
    // SAFETY: there is one for each origin, and origins are cut to the geometry.
    let place = |origin: u32| unsafe { &*places.add(origin as usize) };
    if origin >= region().geometry.origins {
        return None;
    }
    if place(origin).load(Acquire) == 0 {
        let mut number = 0;
        region().origins.each(|node| {
            number += 1;
            let id = words::origin(node.id.load(Relaxed));
            if id != 0 && id < region().geometry.origins {
                place(id).store(number, Release);
            }
        });
    }
    let mut at = place(origin).load(Acquire).checked_sub(1)? as usize;
    for level in 0..ORIGIN_LEVELS {
        let slots = 1usize << region().geometry.origin_levels[level];
        if at < slots {
            return region().origins.slot(level, at);
        }
        at -= slots;
    }
    None
}
