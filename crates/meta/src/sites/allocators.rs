//! *Which functions of the file allocate, as far as is known by now?*
//!
//! The roots by name, what the configuration declares, what is learned of other files, and the wrappers that are found round by round.

use super::calls::{Body, Key, Program};
use super::identity;
use super::model::{self, Makes, Row, Size};
use super::parameters::parameters;
use super::pools::{Cell, Moved};
use super::typing::{Pointee, Types};
use super::value::{ANYWHERE, Value, offset_parameter};
use super::{Options, Summary};
use crate::config::{ByName, Declared};
use crate::facts::{Facts, Global};
use pointee_model::evidence::Role;
use pointee_model::image::TypeIndex;
use std::collections::{HashMap, HashSet};
use std::sync::RwLock;

/// One allocation function: a root or a wrapper.
#[derive(Clone, Debug)]
pub(super) struct Allocator {
    pub(super) size: Size,
    /// The argument that is the old block.
    pub(super) old: Option<u8>,
    /// The argument that is the size of one element, where as much as some of them is asked for.
    pub(super) unit: Option<u8>,
    /// The argument through which the result is stored.
    pub(super) out: Option<u8>,
    pub(super) makes: Makes,
    /// What a wrapper's result points to, when that is not `void`.
    pub(super) base: Option<TypeIndex>,
    /// Where in the block the result points; not 0 when the wrapper keeps a header before it.
    pub(super) offset: i64,
    /// Bytes that the wrapper keeps for itself before what it hands out; callers know nothing of them.
    pub(super) header: i64,
    /// Whether the result is the block. A collection keeps it where nobody follows.
    pub(super) returns_it: bool,
    /// Where in what it returns it puts the block, if that is not the block.
    pub(super) member: Option<i64>,
    /// Whether the function puts the block somewhere too, for others to find.
    pub(super) kept: bool,
    /// What a function of a generic collection stores, and in what role.
    pub(super) stores: Option<(TypeIndex, Role)>,
    /// The argument whose text is copied, where code without debug info tells.
    pub(super) text: Option<u8>,
    /// The argument that points to what the block is made a copy of.
    pub(super) copies: Option<u8>,
    /// Whether the result is some element of an array that the function lets grow: `T *push(array)`.
    pub(super) element: bool,
}

impl Allocator {
    /// One that returns the block, and no more is known.
    pub(super) fn of(size: Size, makes: Makes) -> Self {
        Self {
            size,
            old: None,
            unit: None,
            out: None,
            makes,
            base: None,
            offset: 0,
            header: 0,
            returns_it: true,
            member: None,
            kept: false,
            stores: None,
            text: None,
            copies: None,
            element: false,
        }
    }

    /// One that the configuration names.
    fn declared(declared: &Declared) -> Self {
        Self {
            old: declared.old,
            ..Self::of(declared.size, Makes::Whatever)
        }
    }

    /// Whether it is a function of a collection that knows nothing of what that holds.
    pub(super) fn is_erased_collection(&self) -> bool {
        !self.returns_it
            && self.out.is_none()
            && self.member.is_none()
            && self.stores.is_none()
            && self.makes == Makes::Whatever
    }

    /// Where in the block the result of a call with these arguments points.
    pub(super) fn offset_of(&self, arguments: &[Value; 6]) -> i64 {
        match offset_parameter(self.offset) {
            // What is seen of one element holds for the array.
            _ if self.element => 0,
            Some(index) => match arguments[usize::from(index) % 6] {
                Value::Constant(offset) => offset,
                _ => ANYWHERE,
            },
            None => self.offset,
        }
    }
}

/// All allocation functions of the file and what the interpreter must know beside them.
pub(super) struct Allocators<'f> {
    pub(super) by_key: HashMap<Key, Allocator>,
    pub(super) by_signature: HashMap<Vec<TypeIndex>, Key>,
    /// At link-time addresses, in order of these.
    globals: &'f [Global],
    identities: RwLock<HashMap<Key, Option<u8>>>,
    /// Where pools keep the next free byte; how that is moved, and how the names of functions begin that do not count.
    pub(super) cursors: HashMap<Cell, (Moved, &'static str)>,
    /// The functions that are pools.
    pub(super) pools: HashSet<u32>,
    /// Entries of the other functions that may move a cursor.
    pub(super) movers: HashSet<u64>,
}

/// Whether a function of the file has no more than its name of the library's function that makes text: it is given something else.
fn is_other(row: &Row, body: &Body<'_>, types: &Types<'_>) -> bool {
    let [first, ..] = parameters(body, types).by_register;
    let wanted = row.makes == Makes::Characters
        && row.out.is_none()
        && !model::is_string_member(body.linkage_name);
    wanted
        && first.is_some_and(|first| match types.pointee(first.r#type) {
            Some(Pointee::Type(target)) => !types.is_character(target),
            Some(Pointee::Void) | None => true,
        })
}

impl<'f> Allocators<'f> {
    pub(super) fn roots(
        program: &Program<'_>,
        types: &Types<'_>,
        facts: &'f Facts,
        options: &Options,
    ) -> Self {
        let imports = (0..)
            .zip(&program.imports)
            .map(|(at, name)| (Key::Import(at), *name));
        let locals = (0..)
            .zip(&program.bodies)
            .map(|(at, body)| (Key::Local(at), body.linkage_name));
        let by_name = ByName::new(&options.declared);
        let learned = options.learned.iter().map(|it| (&*it.name, it));
        let learned: HashMap<&str, &Summary> = learned.collect();
        let by_key = imports
            .chain(locals)
            .filter_map(|(key, name)| {
                let own = program.body(key);
                let is_other = |row: &Row| own.is_some_and(|body| is_other(row, body, types));
                let Some(row) = model::row(name).filter(|row| !is_other(row)) else {
                    let is_own = own.is_some();
                    if let Some(declared) = by_name.get(name, is_own) {
                        return Some((key, Allocator::declared(declared)));
                    }
                    let summary = learned.get(name).filter(|_| !is_own)?;
                    return Some((key, summary.allocator(types)));
                };
                Some((
                    key,
                    Allocator {
                        old: row.old,
                        out: row.out,
                        text: (row.makes == Makes::Characters).then_some(0),
                        returns_it: row.out.is_none() && !model::is_string_member(name),
                        ..Allocator::of(row.size, row.makes)
                    },
                ))
            })
            .collect();
        Self {
            by_key,
            by_signature: HashMap::new(),
            globals: fixed(&facts.globals),
            identities: RwLock::new(HashMap::new()),
            cursors: HashMap::new(),
            pools: HashSet::new(),
            movers: HashSet::new(),
        }
    }

    pub(super) fn get(&self, key: Key) -> Option<&Allocator> {
        self.by_key.get(&key)
    }

    pub(super) fn insert(&mut self, key: Key, allocator: Allocator) {
        self.by_key.insert(key, allocator);
    }

    pub(super) fn remove(&mut self, key: Key) {
        self.by_key.remove(&key);
    }

    /// Whether a function is a pool.
    pub(super) fn is_pool(&self, key: Key) -> bool {
        matches!(key, Key::Local(at) if self.pools.contains(&at))
    }

    /// The functions of this file that hand out memory of a size they are given.
    pub(super) fn local_roots(&self) -> Vec<u32> {
        let roots = self.by_key.iter().filter_map(|(key, known)| match key {
            Key::Local(at) if known.returns_it && known.makes == Makes::Whatever => Some(*at),
            _ => None,
        });
        roots.collect()
    }

    /// The allocation function, among those whose address is taken, of a function type.
    pub(super) fn of_signature(&self, types: &Types<'_>, function: TypeIndex) -> Option<Key> {
        if self.by_signature.is_empty() {
            return None;
        }
        let entry = types.get(function)?;
        let parameters = entry.members.iter().map(|member| member.r#type);
        self.by_signature
            .get(&signature(types, entry.target, parameters))
            .copied()
    }

    /// The argument that a small function returns unchanged.
    pub(super) fn returned_argument(&self, program: &Program<'_>, callee: Key) -> Option<u8> {
        if let Ok(known) = self.identities.read()
            && let Some(argument) = known.get(&callee)
        {
            return *argument;
        }
        let argument = program
            .body(callee)
            .and_then(|body| identity::returned_argument(program.elf, body));
        if let Ok(mut known) = self.identities.write() {
            known.insert(callee, argument);
        }
        argument
    }

    fn global(&self, address: u64) -> Option<&Global> {
        let after = self
            .globals
            .partition_point(|global| global.address <= address);
        let global = self.globals.get(after.checked_sub(1)?)?;
        (address.checked_sub(global.address)? < global.size.max(1)).then_some(global)
    }

    /// Type and offset in it of the global that `address` lies in.
    pub(super) fn global_at(&self, address: u64) -> Option<(TypeIndex, i64)> {
        let global = self.global(address)?;
        Some((
            global.r#type?,
            i64::try_from(address - global.address).ok()?,
        ))
    }

    pub(super) fn global_name(&self, address: u64) -> String {
        self.global(address)
            .map_or_else(String::new, |global| global.name.clone())
    }
}

/// The globals that are not thread-local; those come last.
fn fixed(globals: &[Global]) -> &[Global] {
    &globals[..globals.partition_point(|global| !global.thread_local)]
}
/// What tells the type of a function from others: its result and its parameters.
pub(super) fn signature(
    types: &Types<'_>,
    result: Option<TypeIndex>,
    parameters: impl Iterator<Item = TypeIndex>,
) -> Vec<TypeIndex> {
    let result = result.map_or(TypeIndex::MAX, |result| types.strip(result));
    std::iter::once(result)
        .chain(parameters.map(|parameter| types.strip(parameter)))
        .collect()
}
