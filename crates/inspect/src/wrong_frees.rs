//! *Which blocks were freed by a function that must not free them?*
//!
//! The index notes pairs of paths whose classes differ ([`pointee_index::mismatches`]). Here they are judged, by what is known of
//! names, inlined calls and hooks:
//!
//! ```text
//!   asked for by      freed by              verdict
//!   malloc            delete, delete[]      wrong
//!   new               free, realloc         wrong      unless it is freed inside an operator delete
//!   new               delete[]              wrong      unless it could not be seen whether it was new or new[]
//!   malloc of X       free of Y             wrong      unless X has no function that frees
//! ```
//!
//! What passes through a function of the program's own that is named like an operator, inlined or not, is taken for
//! C++'s way. Where the index does not know enough, nothing is said.

use crate::process::{Frame, HookInfo, Mismatch, ModuleInfo, Path};
use crate::report::PlaceRow;
use crate::resolve::Resolver;
use pointee_index::class::Kind;
use pointee_index::records::Role;
use pointee_model::addr::LinkAddr;
use pointee_model::call::Call;
use pointee_model::entries::role_of;
use serde::Serialize;

/// Frames of the freeing path that are told.
const FRAMES_TOLD: usize = 4;

/// Blocks from one place that were freed at another by the wrong function.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct WrongFreeRow {
    pub blocks: u64,
    /// The function that handed them out.
    pub allocated_by: String,
    /// The function that freed them.
    pub freed_by: String,
    /// The function that had to.
    pub to_be_freed_by: String,
    pub r#type: Option<String>,
    /// Where they were allocated: see the site table.
    pub site: String,
    pub allocated_at: PlaceRow,
    /// Where they were freed, and who called that, innermost first.
    pub freed_at: Vec<PlaceRow>,
    /// Address and size of the first of them.
    pub first: String,
    pub first_bytes: u64,
}

/// One row a pair of places, most blocks first.
#[must_use]
pub fn wrong_frees(resolver: &Resolver<'_>) -> Vec<WrongFreeRow> {
    let all = resolver.process().mismatches.iter();
    let mut rows: Vec<_> = all.filter_map(|pair| judge(resolver, pair)).collect();
    rows.sort_by(|a, b| {
        let place = |row: &WrongFreeRow| (row.site.clone(), row.freed_by.clone());
        b.blocks
            .cmp(&a.blocks)
            .then_with(|| place(a).cmp(&place(b)))
    });
    rows
}

/// How a block was asked for, or given back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    C,
    New,
    NewArray,
    /// `new` or `new[]`: which of both is not known.
    Cpp,
}

impl Way {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::C => Self::C,
            Kind::New => Self::New,
            Kind::NewArray => Self::NewArray,
        }
    }

    /// Whether what was asked for in this way may be given back in `other`.
    fn agrees(self, other: Self) -> bool {
        match (self, other) {
            (Self::Cpp, other) | (other, Self::Cpp) => other != Self::C,
            _ => self == other,
        }
    }

    /// What hands out and what frees.
    fn names(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::C => None,
            Self::New => Some(("operator new", "operator delete")),
            Self::NewArray => Some(("operator new[]", "operator delete[]")),
            Self::Cpp => Some(("operator new or new[]", "operator delete or delete[]")),
        }
    }
}

fn judge(resolver: &Resolver<'_>, pair: &Mismatch) -> Option<WrongFreeRow> {
    let process = resolver.process();
    let allocating = process.hook_of_root(pair.allocated.root)?;
    let freeing = process.hook_of_root(pair.freed.root)?;
    let asked = way_asked(resolver, pair);
    if asked == Way::C && pair.is_undecided {
        return None;
    }
    let given_back = way_given_back(resolver, pair, freeing);
    let owner = asked == Way::C && given_back == Way::C && !is_same_allocator(allocating, freeing);
    if asked.agrees(given_back) && !owner {
        return None;
    }
    let right = process.hooks.iter().find(|hook| {
        matches!(hook.role, Role::Free | Role::PoolFree)
            && hook.placement != 0
            && is_same_allocator(hook, allocating)
    });
    let (allocated_by, to_be_freed_by) = match asked.names() {
        Some((new, delete)) => (new.to_owned(), delete.to_owned()),
        // Whose free is not known cannot be freed wrongly.
        None => (named(resolver, allocating), named(resolver, right?)),
    };
    let freed_by = match given_back.names() {
        Some((_, delete)) => delete.to_owned(),
        None => named(resolver, freeing),
    };
    let site = resolver.resolve(&pair.allocated);
    let shape = site.shape.as_ref();
    Some(WrongFreeRow {
        blocks: pair.blocks,
        allocated_by,
        freed_by,
        to_be_freed_by,
        r#type: shape.and_then(|shape| Some(shape.name(resolver.image(shape.module)?))),
        site: crate::report::site_id(resolver, &site),
        allocated_at: PlaceRow::from(&site.position.place),
        freed_at: freed_at(resolver, &pair.freed),
        first: pair.first.to_string(),
        first_bytes: pair.first_len,
    })
}

fn way_asked(resolver: &Resolver<'_>, pair: &Mismatch) -> Way {
    let through_operator = || {
        let mut frames = pair.allocated.frames.iter();
        frames.any(|frame| is_in(resolver, frame, "operator new", "_Zn"))
    };
    match Way::of(pair.class.kind()) {
        Way::C if through_operator() => Way::Cpp,
        Way::New if pair.is_undecided => Way::Cpp,
        way => way,
    }
}

fn way_given_back(resolver: &Resolver<'_>, pair: &Mismatch, freeing: &HookInfo) -> Way {
    if freeing.role == Role::Delete {
        return Way::of(Kind::of_operator(&freeing.name));
    }
    // The call may name an operator that then jumped to the function that freed.
    let called = resolver.process().module_at(pair.called);
    let called = called.map(|(number, module)| Frame {
        module: number,
        return_address: LinkAddr(module.bias.to_link(pair.called).0 + 1),
    });
    let mut frames = pair.freed.frames.iter().chain(&called);
    if frames.any(|frame| is_in(resolver, frame, "operator delete", "_Zd")) {
        Way::Cpp
    } else {
        Way::C
    }
}

/// Whether a frame is in a function of that name, plain or mangled, inlined or not.
fn is_in(resolver: &Resolver<'_>, frame: &Frame, plain: &str, mangled: &str) -> bool {
    let position = resolver.position(frame);
    let mut places = position.inlined.iter().chain([&position.place]);
    places.any(|place| {
        let name = place.function.as_deref().unwrap_or("");
        name.starts_with(plain) || name.starts_with(mangled)
    })
}

/// Whether both belong to the malloc of one file, or to what the configuration declares in it.
fn is_same_allocator(one: &HookInfo, other: &HookInfo) -> bool {
    let is_declared = |hook: &HookInfo| role_of(&hook.name).is_none() && !is_operator(hook);
    one.module == other.module && is_declared(one) == is_declared(other)
}

fn is_operator(hook: &HookInfo) -> bool {
    matches!(hook.role, Role::New | Role::Delete)
}

/// `free of libc.so.6`.
fn named(resolver: &Resolver<'_>, hook: &HookInfo) -> String {
    let module = resolver.process().modules.get(hook.module as usize);
    format!("{} of {}", hook.name, module.map_or("?", ModuleInfo::name))
}

fn freed_at(resolver: &Resolver<'_>, path: &Path) -> Vec<PlaceRow> {
    let own = |frame: &&Frame| resolver.call(frame).0 != Call::InLibrary;
    let first = path.frames.iter().position(|frame| own(&frame));
    let frames = &path.frames[first.unwrap_or(0)..];
    let place = |frame: &Frame| {
        let mut place = PlaceRow::from(&resolver.position(frame).place);
        if place.function.is_none() && place.file.is_none() {
            let module = resolver.process().modules.get(frame.module as usize);
            let module = module.map_or("?", ModuleInfo::name);
            place.function = Some(format!("{module}+{}", frame.return_address));
        }
        place
    };
    frames.iter().take(FRAMES_TOLD).map(place).collect()
}
