//! *Which blocks did a function make on its stack while it ran?* — arrays of variable length, and `alloca`.
//!
//! ```text
//!   frame   │ what calls are given │ block, block, …   │ variables, saved registers │
//!           stack pointer          └ carved ───────────┘ fixed
//! ```
//!
//! An array of variable length is a variable whose place lies behind a slot or a register. Of an `alloca` block only the pointer is
//! a variable (and no parameter: those lead anywhere): it is told where the image knows instructions of the function that carve, and a pointer leads to an aligned
//! place below everything fixed. The length of neither is stated: each reaches up to what lies next.

use super::chunks::word;
use super::leaf::{Kind, Leaf, What};
use super::leaves::Space;
use super::thread_leaves::Place;
use super::{Frame, Span};
use crate::describe::{open_element, underlying};
use pointee_model::addr::{LinkAddr, RunAddr};
use pointee_model::image::{Image, LocalRecord, SiteRecord, TypeKind, site_flags};

/// What `alloca` blocks are aligned to at least (System V ABI, AMD64, 3.2.2).
const ALIGNMENT: u64 = 16;

impl<'a> Space<'a> {
    /// The blocks in the frame `number` of `thread`, in order; `fixed` are its other parts, in order too.
    pub(super) fn carved(
        &self,
        (thread, number): (usize, usize),
        frame: &Frame,
        fixed: &[Leaf<'a>],
    ) -> Vec<Leaf<'a>> {
        let executing = frame.executing();
        let Some((object, record)) = self.layout.object_at(executing) else {
            return Vec::new();
        };
        let Some(image) = self.image(object) else {
            return Vec::new();
        };
        let lowest_fixed = fixed.first().map_or(frame.span.end, |leaf| leaf.span.start);
        let below = Span {
            start: frame.span.start,
            end: lowest_fixed,
        };
        let link = record.bias.to_link(executing);
        let sites = carving_sites(image, link);
        let mut starts: Vec<(RunAddr, Kind, What<'a>)> = Vec::new();
        let locals = self.locals(frame);
        let is_known = |array: &LocalRecord| {
            let mut records = locals.iter().map(|(_, record, _)| *record);
            records.any(|record| std::ptr::eq(record, array))
        };
        let mut arrays = image
            .locals_at(link)
            .filter(|local| open_element(image, local.r#type).is_some());
        if !arrays.all(is_known) {
            // Others reach up to a place that is not known.
            return Vec::new();
        }
        for (object, local, place) in locals.iter().copied() {
            if let Place::Memory(start) = place
                && frame.span.holds(start)
                && open_element(image, local.r#type).is_some()
            {
                let what = What::Local {
                    thread,
                    frame: number,
                    object,
                    record: local,
                };
                starts.push((start, Kind::Local, what));
            } else if !sites.is_empty()
                && !local.is_parameter()
                && is_pointer(image, local)
                && let Some(start) = self.value_of(frame, place)
                && below.holds(start)
                && start.0.is_multiple_of(ALIGNMENT)
            {
                let what = What::Carved {
                    thread,
                    frame: number,
                    object,
                    pointer: local,
                    site: only_site(image, local, &sites),
                };
                starts.push((start, Kind::Alloca, what));
            }
        }
        // Where an array's own pointer is a variable too, the array counts.
        starts.sort_by_key(|(start, kind, _)| (*start, *kind == Kind::Alloca));
        starts.dedup_by_key(|(start, ..)| *start);
        let ends: Vec<RunAddr> = starts
            .iter()
            .map(|(start, ..)| *start)
            .chain(fixed.iter().map(|leaf| leaf.span.start))
            .collect();
        let end_of = |start: RunAddr| {
            let next = ends.iter().copied().filter(|end| *end > start).min();
            next.unwrap_or(frame.span.end)
        };
        let leaf = |(start, kind, what): (RunAddr, Kind, What<'a>)| {
            Leaf::new(start.0, end_of(start).0, kind, what)
        };
        starts.into_iter().map(leaf).collect()
    }

    /// What a variable of a pointer's size holds.
    fn value_of(&self, frame: &Frame, place: Place) -> Option<RunAddr> {
        let value = match place {
            Place::Memory(at) => word(self.contents?, at.0)?,
            Place::Register(number) => {
                let known = frame.registers.get(usize::from(number));
                known.copied().flatten()?
            }
        };
        Some(RunAddr(value))
    }
}

fn is_pointer(image: &Image<'_>, local: &LocalRecord) -> bool {
    underlying(image, local.r#type)
        .is_some_and(|(_, record)| TypeKind::from_byte(record.kind) == TypeKind::Pointer)
}

/// The instructions that make room on the stack in the function that holds `address`.
fn carving_sites<'a>(image: &Image<'a>, address: LinkAddr) -> Vec<&'a SiteRecord> {
    let Some(function) = image.function_at(address) else {
        return Vec::new();
    };
    let after = |address: u64| {
        image
            .sites
            .partition_point(|site| site.return_address <= address)
    };
    let sites = image.sites.get(after(function.start)..after(function.end));
    sites
        .unwrap_or_default()
        .iter()
        .filter(|site| site.flags & site_flags::NO_CALL != 0)
        .collect()
}

/// The one of `sites` that made what `pointer` leads to, if that is clear. There may be blocks that no site stands for: room of a constant
/// size is made with the frame.
fn only_site<'a>(
    image: &Image<'a>,
    pointer: &LocalRecord,
    sites: &[&'a SiteRecord],
) -> Option<&'a SiteRecord> {
    let (_, pointer) = underlying(image, pointer.r#type)?;
    let Some((wanted, _)) = underlying(image, pointer.target) else {
        // Of `void *` nothing is known.
        return if let [site] = sites { Some(site) } else { None };
    };
    let makes = |site: &&&SiteRecord| {
        underlying(image, site.r#type).is_some_and(|(made, _)| made == wanted)
    };
    let mut fitting = sites.iter().filter(makes);
    let first = fitting.next()?;
    fitting.next().is_none().then_some(*first)
}
