//! *What is the type of one site, given all that was seen of it?*
//!
//! Candidates are the stripped types the witnesses point at. A candidate bigger than the whole
//! allocation is refuted, and so are a record of nothing but a link, which is how free blocks are kept, and a union's arm that no other
//! witness names where one names a type alone. Of those left, the first rule that leaves one decides:
//!
//! 0. what is said of the allocation itself: by the user, the compiler, the library's model, the
//!    argument of an allocator template;
//! 1. the size asked for, or the unit of the count, is a type's size exactly;
//! 2. bytes and characters give way to everything with structure (a buffer that is cast later),
//!    unless the size does not fit it;
//! 3. a type gives way to one that starts with it (a base class, a common header);
//! 4. what two independent kinds of witness point at, before what one does;
//! 5. of `char` and `unsigned char`, the one that it is kept as, then the one seen nearest to the call.
//!
//! More than one left is a conflict, and so is one that nothing names alone or that only a size was written with: the site keeps the candidate seen nearest to the call, and its
//! verdict says that it is not an answer.

use super::Evidence;
use super::outcome::Doubt;
use super::request::{Request, is_cut_short, is_record, role};
use super::typing::Types;
use super::weak::{BIGGER, is_kept_as_bytes, is_kept_as_void, is_view, is_weak, keeps};
use pointee_model::evidence::{Role, Verdict, Witness};
use pointee_model::image::{TypeIndex, TypeKind};

/// One thing seen, its union arms resolved to types; empty for `void`.
#[derive(Clone, Debug)]
pub(super) struct Clue {
    pub(super) witness: Witness,
    pub(super) doubt: Doubt,
    pub(super) types: Vec<TypeIndex>,
    /// The part that the type plays, where that is said too.
    pub(super) role: Option<Role>,
    pub(super) what: String,
    pub(super) address: u64,
    /// Whether it may be `void` as well: of the arms of a union one is a `void *`.
    pub(super) open: bool,
}

/// The answer for one site.
pub(super) struct Decision {
    pub(super) r#type: Option<TypeIndex>,
    pub(super) tail: Option<TypeIndex>,
    pub(super) role: Role,
    pub(super) verdict: Verdict,
    pub(super) evidence: Vec<Evidence>,
    /// The candidates that lost, and why.
    pub(super) dropped: Vec<(TypeIndex, &'static str)>,
}

/// The candidates that are left, and those that are not.
#[derive(Default)]
struct Candidates {
    left: Vec<TypeIndex>,
    dropped: Vec<(TypeIndex, &'static str)>,
}

impl Candidates {
    fn drop_where(&mut self, why: &'static str, test: impl Fn(TypeIndex) -> bool) {
        let dropped = &mut self.dropped;
        self.left.retain(|at| {
            let goes = test(*at);
            if goes {
                dropped.push((*at, why));
            }
            !goes
        });
    }

    /// Keeps those that pass a test, if there is a choice and any does.
    fn keep(&mut self, why: &'static str, test: impl Fn(TypeIndex) -> bool) {
        if self.left.len() > 1 && self.left.iter().any(|at| test(*at)) {
            self.drop_where(why, |at| !test(at));
        }
    }
}

/// Weighs the clues of one site.
pub(super) fn decide(types: &Types<'_>, call: u64, clues: &[Clue], request: Request) -> Decision {
    let clues = &resolved(types, clues)[..];
    let mut candidates = Candidates::default();
    let mut nearest: Vec<&Clue> = clues.iter().collect();
    // What comes after the call tells more than what lies before it in the code.
    nearest.sort_by_key(|clue| {
        let after = clue.address >= call;
        (!after, clue.address.abs_diff(call))
    });
    for clue in &nearest {
        for index in &clue.types {
            if !candidates.left.contains(index) {
                candidates.left.push(*index);
            }
        }
    }
    let none = candidates.left.is_empty();
    // A struct may be cut short, where nothing else has room.
    let is_cut = candidates
        .left
        .iter()
        .all(|at| refuted(types, *at, request));
    candidates.drop_where(BIGGER, |at| {
        refuted(types, at, request) && !(is_cut && is_cut_short(types, at, request))
    });
    // A block that is given back is linked with others; that is not what it was, unless it is cut into such at once.
    let starts_as_link = (candidates.left.first()).is_some_and(|at| types.is_link(*at));
    if !starts_as_link && request.total != Some(8) {
        candidates.keep("how free blocks are linked", |at| !types.is_link(at));
    }
    // The arms of a union count where nothing else tells a type, or for what they confirm.
    let alone = |at: TypeIndex| clues.iter().any(|clue| clue.types == [at]);
    candidates.keep("an arm of a union that nothing else names", alone);
    // A word that may be something else may have its type from that, unless just so many bytes are asked for.
    // Bytes say nothing against it: structures are built in them.
    let asked = request.total.or(request.unit).filter(|bytes| *bytes > 1);
    let seen_only = |at: TypeIndex, doubt: Doubt| {
        let mut clues = clues.iter().filter(|clue| clue.types.contains(&at));
        clues.all(|clue| clue.doubt >= doubt)
    };
    let is_exact = |at: TypeIndex| asked.is_some() && asked == types.size(at);
    let is_told = (candidates.left.iter()).any(|at| is_exact(*at) && !seen_only(*at, Doubt::Stale));
    candidates.keep("seen only where variables are stale", |at| {
        !seen_only(at, Doubt::Stale) || is_exact(at) && !is_told
    });
    let doubted = |at: TypeIndex, doubt: Doubt| seen_only(at, doubt) && !is_exact(at);
    let is_certain = |at: &TypeIndex| !doubted(*at, Doubt::Mixed) && !types.is_character(*at);
    if candidates.left.iter().any(is_certain) {
        candidates.drop_where("seen only of what may be something else", |at| {
            doubted(at, Doubt::Mixed)
        });
    }
    if request.is_uneven() && !candidates.left.iter().any(|at| alone(*at)) {
        candidates.keep("an uneven number of bytes", |at| types.is_character(at));
    }
    narrow(types, &mut candidates, clues, request);
    if is_view(types, &candidates.left, clues, request) {
        candidates.drop_where(
            "how a variable looks at memory that is kept as void *",
            |_| true,
        );
    }
    let Candidates { left, dropped } = candidates;
    let chosen = left.first().copied();
    let is_weak = chosen.is_some_and(|at| is_weak(types, at, clues, request, &dropped));
    let (mut role, tail) = chosen.map_or((Role::Unknown, None), |at| role(types, at, request));
    // An array of one looks like one object; an allocator is asked for so many objects of its type.
    let said = clues
        .iter()
        .filter(|clue| chosen.is_some_and(|at| clue.types == [at]));
    let many = |clue: &Clue| clue.role == Some(Role::Element);
    let allocator = |clue: &Clue| clue.witness == Witness::TemplateArgument && clue.role.is_none();
    let first = |clue: &Clue| clue.role == Some(Role::Header);
    let one = |clue: &Clue| clue.role == Some(Role::Whole);
    match role {
        Role::Element
            if chosen.is_some_and(|at| is_record(types, at)) && said.clone().any(first) =>
        {
            role = Role::Header;
        }
        Role::Whole | Role::Header if said.clone().any(many) => role = Role::Element,
        Role::Element
            if request.unit.is_none()
                && request.total.is_some()
                // Of a single pointer nothing tells that it is not the first of several.
                && chosen.is_some_and(|at| types.pointee(at).is_none())
                && request.total == chosen.and_then(|at| types.size(at))
                && said.clone().any(one) =>
        {
            role = Role::Whole;
        }
        Role::Unknown if said.clone().any(|clue| many(clue) || allocator(clue)) => {
            role = Role::Element;
        }
        Role::Unknown => {
            // That the size is one object's may be said of a part of it; an owner says what it owns, and what carves what it takes.
            let mut parts = said.filter(|clue| {
                clue.role != Some(Role::Whole)
                    || clue.witness == Witness::TemplateArgument
                    || request.is_carved
            });
            role = parts.find_map(|clue| clue.role).unwrap_or(role);
        }
        _ => {}
    }
    // What is derived from it may be meant, where one has just the bytes that this has not.
    let stated = |clue: &Clue| {
        let is_said = kind(clue.witness) == SIZEOF
            || clue.witness == Witness::TemplateArgument && clue.role.is_some();
        is_said && chosen.is_some_and(|at| clue.types.contains(&at))
    };
    let bytes = request.bytes();
    if let Some(at) = chosen.filter(|at| is_record(types, *at))
        && matches!(role, Role::Header | Role::Element | Role::Unknown)
        && request.unit.is_none()
        && request.near.is_none_or(|near| near.unit.is_none())
        && Some(bytes) != types.size(at)
        && !clues.iter().any(stated)
        && types.has_derived(at, bytes, role == Role::Element)
    {
        role = Role::Base;
    }
    let tail = tail.filter(|_| role == Role::Header);
    // `Box<[T; 3]>` is three objects of T.
    let chosen = chosen.map(
        |at| match types.element(at).filter(|_| role == Role::Whole) {
            Some(element) => {
                role = Role::Element;
                element
            }
            None => at,
        },
    );
    let verdict = match (left.len(), none, clues.is_empty()) {
        (1, ..) if is_weak => Verdict::Conflicting,
        (1, ..) => agreement(clues, left[0]),
        (0, true, true) => Verdict::Unknown,
        (0, true, false) => Verdict::Opaque,
        (0, false, _) if is_kept_as_void(clues) => Verdict::Opaque,
        // Everything seen is refuted by the size.
        (0, false, _) => Verdict::Unknown,
        _ => Verdict::Conflicting,
    };
    let mut evidence = Vec::new();
    for clue in &nearest {
        let listed: Vec<Option<TypeIndex>> = if clue.types.is_empty() {
            vec![None]
        } else {
            clue.types.iter().copied().map(Some).collect()
        };
        for r#type in listed {
            evidence.push(Evidence {
                witness: clue.witness,
                role: r#type.map_or(Role::Unknown, |at| self::role(types, at, request).0),
                r#type,
                what: clue.what.clone(),
                address: clue.address,
            });
        }
    }
    evidence.dedup_by(|a, b| a.witness == b.witness && a.r#type == b.r#type && a.what == b.what);
    evidence.truncate(24);
    Decision {
        r#type: chosen,
        tail,
        role,
        verdict,
        evidence,
        dropped,
    }
}

/// A declaration that several definitions have the name of is any of them, as the arms of a union are.
fn resolved(types: &Types<'_>, clues: &[Clue]) -> Vec<Clue> {
    let mut clues = clues.to_vec();
    for clue in &mut clues {
        let meant: Vec<TypeIndex> = clue
            .types
            .iter()
            .flat_map(|at| types.meant(*at))
            .copied()
            .collect();
        if !meant.is_empty() {
            clue.types.retain(|at| types.meant(*at).is_empty());
            clue.types.extend(meant);
        }
    }
    clues
}

fn refuted(types: &Types<'_>, index: TypeIndex, request: Request) -> bool {
    let incomplete = types
        .get(index)
        .is_some_and(|entry| entry.kind == TypeKind::Function);
    let open_at = types.flexible(index).map(|(offset, _)| offset);
    match (request.total, open_at.or_else(|| types.size(index))) {
        (Some(total), Some(size)) => incomplete || (total > 0 && total < size),
        _ => incomplete,
    }
}

fn narrow(types: &Types<'_>, candidates: &mut Candidates, clues: &[Clue], request: Request) {
    let seen = candidates.left.clone();
    let size = |at: TypeIndex| types.size(at).unwrap_or(0);
    // 0. What is said of the allocation itself, not of where its result goes.
    for witness in [
        Witness::Configuration,
        Witness::Compiler,
        Witness::Model,
        Witness::TemplateArgument,
    ] {
        candidates.keep("not what is said of the allocation itself", |at| {
            let said = |clue: &Clue| clue.witness == witness && clue.types == [at];
            clues.iter().any(said)
        });
    }
    // An array of variable length is declared, however its memory is looked at.
    candidates.keep("not what the array is declared to be", |at| {
        let is_declared =
            |clue: &Clue| clue.witness == Witness::Variable && clue.role == Some(Role::Element);
        request.is_carved
            && clues
                .iter()
                .any(|clue| is_declared(clue) && clue.types == [at])
    });
    // `char *text = get(3 * sizeof(int) + 1)`: digits and not numbers; `struct item *p = get(sizeof(p))`.
    let kept_otherwise = is_kept_as_bytes(types, clues)
        || clues.iter().any(|clue| {
            let fits = |at| [request.total, request.unit].contains(&types.size(at));
            keeps(clue.witness)
                && matches!(clue.types[..], [only] if is_record(types, only) && fits(only))
        });
    let cast_to_bytes = clues.iter().any(|clue| {
        clue.witness == Witness::CastInSource
            && matches!(clue.types[..], [only] if types.is_character(only))
    });
    // A buffer that is text before it grows and after, of which as much is asked for as of records that are put into it too.
    let text_grows = request.grows && request.total.is_none() && {
        let mut older = clues
            .iter()
            .filter(|clue| clue.witness == Witness::Reallocated);
        older.any(|clue| matches!(clue.types[..], [only] if types.is_character(only)))
    };
    if kept_otherwise {
        candidates.drop_where("only its size is meant", |at| {
            let said = || clues.iter().filter(|clue| clue.types.contains(&at));
            let is_part = said().all(|clue| clue.role == Some(Role::Element));
            let is_number = types.pointee(at).is_some() || types.is_integer(at);
            !types.is_character(at)
                && (is_number
                    || ((text_grows || cast_to_bytes && is_part) && is_kept_as_bytes(types, clues)))
                && said().all(|clue| kind(clue.witness) == SIZEOF)
        });
    }
    // A record gives way to one derived from it before sizes are compared: `(n + 2) · 16` bytes may
    // be a header of 32 and an array, and the base may have 16.
    most_derived(types, candidates, |part| is_record(types, part));
    // 1. Exactly that size. One byte fits everything and says nothing.
    if let Some(total) = request.total.filter(|total| *total > 1) {
        candidates.keep("another has just the size asked for", |at| {
            size(at) == total
        });
    }
    if let Some(unit) = request.unit.filter(|unit| *unit > 1) {
        // The factor found may be a divisor of the true one: what is left over tells.
        let left_over = request.head != 1 && !request.head.is_multiple_of(unit);
        let header = |at: &TypeIndex| {
            is_record(types, *at) && (unit + 1..=request.head).contains(&size(*at))
        };
        let whole = !left_over && !candidates.left.iter().any(header);
        candidates.keep("another has just the size of one element", |at| {
            let tail = types
                .flexible(at)
                .and_then(|(_, element)| types.size(element));
            let fits = match request.is_common {
                true => size(at) > 0 && size(at).is_multiple_of(unit),
                false => size(at) == unit,
            };
            (whole && fits) || tail == Some(unit)
        });
    }
    // The size of any pointer is that of every other, so `sizeof(char *)` is written for all of them;
    // and so is `sizeof(long)` for what is unsigned.
    let first = candidates.left.first().map(|at| size(*at));
    let alike = |at: &TypeIndex| types.is_integer(*at) && Some(size(*at)) == first;
    let pointer = |at: &TypeIndex| types.pointee(*at).is_some();
    if candidates.left.iter().all(pointer) || candidates.left.iter().all(alike) {
        candidates.keep("only its size is meant", |at| {
            clues
                .iter()
                .any(|clue| kind(clue.witness) != SIZEOF && clue.types.contains(&at))
        });
    }
    // Text and its end, as long as something else says: that a record lies at its start is how it is looked at.
    if request.is_uneven() && candidates.left.iter().any(|at| types.is_character(*at)) {
        candidates.drop_where("a view of bytes", |at| {
            let mut said = clues.iter().filter(|clue| clue.types.contains(&at));
            is_record(types, at)
                && request.head < size(at)
                && types.flexible(at).is_none()
                && said.all(|clue| matches!(clue.witness, Witness::Variable | Witness::Parameter))
        });
    }
    // Numbers that the size is no multiple of are how the start of some bytes is looked at.
    if candidates.left.iter().any(|at| types.is_character(*at)) {
        candidates.drop_where("what is asked for is no number of them", |at| {
            let asked = match request.unit {
                Some(_) => 0,
                None => request.total.unwrap_or(request.head),
            };
            types.is_integer(at) && size(at) > 1 && !asked.is_multiple_of(size(at))
        });
    }
    // A buffer of so many bytes whose start is looked at as something smaller.
    if request.total.is_some() && is_kept_as_bytes(types, clues) {
        candidates.drop_where("a view of bytes", |at| {
            let mut said = clues.iter().filter(|clue| clue.types.contains(&at));
            is_record(types, at)
                && types.flexible(at).is_none()
                && types.size(at) != request.total
                && said.all(|clue| matches!(clue.witness, Witness::Variable | Witness::Parameter))
        });
    }
    // What is copied, and into what is of the same type.
    let is_copy = |at: TypeIndex| {
        let of_it = |clue: &&Clue| clue.types == [at];
        let mut said = clues.iter().filter(of_it);
        let copied = said.clone().any(|clue| clue.witness == Witness::Copied);
        copied && said.any(|clue| keeps(clue.witness))
    };
    let copies: Vec<TypeIndex> = seen.iter().copied().filter(|at| is_copy(*at)).collect();
    candidates.keep("not what is copied", |at| {
        let is_more = |copy: &TypeIndex| is_record(types, *copy) && types.starts_with(at, *copy);
        copies.contains(&at) || copies.iter().any(is_more)
    });
    // 2. Structure before bytes.
    let fits = |at: TypeIndex| {
        let size = size(at);
        size > 1
            && (types.flexible(at).is_some() || request.total.is_none_or(|total| total % size == 0))
    };
    let bytes = "bytes give way to structure";
    candidates.keep(bytes, |at| !types.is_character(at) && fits(at));
    candidates.keep(bytes, |at| !types.is_character(at));
    // 3. The most derived.
    most_derived(types, candidates, |_| true);
    // A buffer of bytes that is looked at as one structure and another is neither.
    let bytes: Vec<TypeIndex> = seen
        .iter()
        .copied()
        .filter(|at| types.is_character(*at))
        .collect();
    let is_view = |at: &TypeIndex| {
        let mut clues = clues.iter().filter(|clue| clue.types.contains(at));
        clues.all(|clue| matches!(clue.witness, Witness::Variable | Witness::Parameter))
    };
    if let [one] = bytes[..]
        && candidates.left.len() > 1
        && candidates
            .left
            .iter()
            .all(|at| is_record(types, *at) && is_view(at))
    {
        let why = "one of several views of bytes";
        let views = std::mem::replace(&mut candidates.left, vec![one]);
        candidates.dropped.retain(|(at, _)| *at != one);
        candidates
            .dropped
            .extend(views.into_iter().map(|at| (at, why)));
    }
    // 4. What two independent kinds of witness point at, before what one does: a pointer is cast to
    // what a function wants, and only the allocation's own type is written beside it too.
    candidates.keep("two kinds of witness agree on another", |at| {
        kinds(clues, at) > 1
    });
    // 5. Text and bytes are told apart by what keeps them, of that by what is nearest.
    if candidates.left.iter().all(|at| types.is_character(*at)) {
        candidates.keep("it is kept as another", |at| {
            let kept = |clue: &Clue| keeps(clue.witness) && clue.witness != Witness::Result;
            clues.iter().any(|clue| kept(clue) && clue.types == [at])
        });
        let nearest = candidates.left.first().copied();
        candidates.drop_where("farther from the call", |at| Some(at) != nearest);
    }
}

/// Drops the types, among those that `may_go`, which another one starts with.
fn most_derived(
    types: &Types<'_>,
    candidates: &mut Candidates,
    may_go: impl Fn(TypeIndex) -> bool,
) {
    let whole = candidates.left.clone();
    candidates.drop_where("another starts with it", |part| {
        let derived = |other: &TypeIndex| {
            *other != part && types.starts_with(*other, part) && !types.starts_with(part, *other)
        };
        may_go(part) && whole.iter().any(derived)
    });
}

/// Two independent kinds that point at one type agree. Destinations of all sorts are one kind: all
/// of them are what the program's declarations say of one pointer.
fn agreement(clues: &[Clue], chosen: TypeIndex) -> Verdict {
    if kinds(clues, chosen) > 1 {
        Verdict::Agreed
    } else {
        Verdict::Single
    }
}

/// How many independent kinds of witness point at a type.
fn kinds(clues: &[Clue], chosen: TypeIndex) -> usize {
    let mut kinds: Vec<u8> = clues
        .iter()
        .filter(|clue| clue.types.contains(&chosen))
        .map(|clue| kind(clue.witness))
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds.len()
}

/// The kind of witness that `sizeof` is.
pub(super) const SIZEOF: u8 = Witness::SizeofInSource as u8;

/// Destinations of all sorts are one kind.
pub(super) fn kind(witness: Witness) -> u8 {
    match witness {
        Witness::Variable
        | Witness::Field
        | Witness::Global
        | Witness::Result
        | Witness::Parameter
        | Witness::Reallocated
        | Witness::AssignedInSource => Witness::Variable as u8,
        other => other as u8,
    }
}
