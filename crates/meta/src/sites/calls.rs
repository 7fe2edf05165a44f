//! *Which instructions of the file call what?*
//!
//! Each function is decoded once, linearly over its pieces, and only its calls are kept: direct
//! calls, calls through a linkage slot, indirect calls, and jumps that leave the function (tail
//! calls). A callee is named by a [`Key`], so that two static functions of one name stay apart.

use super::model::{self, NO_RETURN};
use super::on_stack;
use super::pointers::{addressed_in_data, pointer_read, taken_address};
use super::unnamed;
use crate::elf::{Callee, Elf};
use crate::facts::{Facts, Function};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};

/// What is called.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Key {
    /// A function of this file; index into [`Program::bodies`].
    Local(u32),
    /// A function another file defines; index into [`Program::imports`].
    Import(u32),
    /// Known at run time only.
    Indirect,
    /// Nothing: the function carves a block out of what there is.
    Carved,
}

/// One call or tail jump.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) address: u64,
    pub(super) callee: Key,
}

/// One function with its calls, in order of address.
pub(super) struct Body<'f> {
    pub(super) name: &'f str,
    pub(super) linkage_name: &'f str,
    pub(super) entry: u64,
    pub(super) ranges: Vec<(u64, u64)>,
    /// What debug info says of it.
    pub(super) function: Option<&'f Function>,
    pub(super) calls: Vec<Call>,
    /// Whether it can come back to its caller.
    pub(super) returns: bool,
    /// Whether any function calls it by name, or may through a pointer.
    pub(super) is_called: bool,
    /// Whether other files can call it.
    pub(super) is_exported: bool,
    /// Whether any function calls it by name.
    pub(super) is_named: bool,
    /// The functions whose address it puts into registers, if it calls through any.
    pub(super) taken: Vec<Key>,
    /// Whether it moves the stack pointer by what a register holds.
    pub(super) moves_stack: bool,
}

/// All functions of the file.
pub(super) struct Program<'f> {
    pub(super) elf: &'f Elf,
    pub(super) bodies: Vec<Body<'f>>,
    pub(super) imports: Vec<&'f str>,
    entries: HashMap<u64, u32>,
    import_index: HashMap<&'f str, u32>,
    no_return: HashSet<&'static str>,
    /// Data that leads to an allocation function of another file when the program starts, in order of address.
    pub(super) pointers: Vec<(u64, Key)>,
    /// Such functions whose address code takes.
    pub(super) taken: Vec<Key>,
    /// Their linkage slots.
    pub(super) slots: HashMap<u64, Key>,
    /// The file's own functions whose address code or data takes.
    pub(super) addressed: HashSet<u32>,
}

/// A call before its callee's key is known.
struct Raw<'f> {
    address: u64,
    target: Option<Callee<'f>>,
}

/// What one pass over a function's code tells.
struct Scanned<'f> {
    calls: Vec<Raw<'f>>,
    returns: bool,
    moves_stack: bool,
    /// The linkage slots of allocation functions that it reads.
    reads: Vec<u64>,
    /// Whether it calls what a register points to.
    through_register: bool,
    loads: Vec<Load>,
    /// The functions whose address it takes.
    addressed: Vec<u32>,
}

/// What may put the address of a function into a register.
enum Load {
    /// It is what lies here.
    Slot(u64),
    Address(u64),
}

impl<'f> Program<'f> {
    /// Of the functions of other files those count as allocation functions that `allocates` says.
    pub(super) fn new(elf: &'f Elf, facts: &'f Facts, allocates: impl Fn(&str) -> bool) -> Self {
        let mut bodies = bodies(elf, facts);
        bodies.sort_by_key(|body| body.entry);
        bodies.dedup_by_key(|body| body.entry);
        let entries: HashMap<u64, u32> = (0..).zip(&bodies).map(|(at, b)| (b.entry, at)).collect();
        let mut program = Self {
            elf,
            bodies,
            imports: Vec::new(),
            entries,
            import_index: HashMap::new(),
            no_return: NO_RETURN.iter().copied().collect(),
            pointers: Vec::new(),
            taken: Vec::new(),
            slots: HashMap::new(),
            addressed: HashSet::new(),
        };
        program.slots = program.add_pointers(allocates);
        program.addressed = addressed_in_data(elf, &program.entries).collect();
        let raw: Vec<Scanned<'f>> = program
            .bodies
            .par_iter()
            .map(|body| scan(elf, body, &program.slots, &program.entries))
            .collect();
        for (at, scanned) in raw.into_iter().enumerate() {
            let calls: Vec<Call> = scanned
                .calls
                .into_iter()
                .filter_map(|raw| {
                    Some(Call {
                        address: raw.address,
                        callee: match raw.target {
                            Some(target) => program.intern(target)?,
                            None => Key::Indirect,
                        },
                    })
                })
                .collect();
            program.bodies[at].calls = calls;
            program.bodies[at].returns = scanned.returns;
            program.bodies[at].moves_stack = scanned.moves_stack;
            let imported = scanned
                .reads
                .iter()
                .filter_map(|slot| program.slots.get(slot));
            let imported: Vec<Key> = imported.copied().collect();
            if scanned.through_register {
                let local = scanned.loads.iter().filter_map(|load| match load {
                    Load::Slot(slot) => program.leads_to(*slot),
                    Load::Address(address) => program.entry(*address),
                });
                program.bodies[at].taken = local.chain(imported.iter().copied()).collect();
            }
            program.addressed.extend(scanned.addressed);
            program.taken.extend(imported);
        }
        let callees: HashSet<Key> = program
            .bodies
            .iter()
            .flat_map(|body| body.calls.iter().map(|call| call.callee))
            .collect();
        let called = callees.iter().filter_map(|callee| match callee {
            Key::Local(at) => Some(at),
            _ => None,
        });
        for at in called {
            program.bodies[*at as usize].is_named = true;
            program.bodies[*at as usize].is_called = true;
        }
        for at in &program.addressed {
            program.bodies[*at as usize].is_called = true;
        }
        for symbol in elf.symbols().filter(|symbol| symbol.is_exported()) {
            if let Some(at) = program.entries.get(&symbol.address) {
                program.bodies[*at as usize].is_exported = true;
            }
        }
        program
    }

    /// Notes the pointers to allocation functions of other files; gives back those that are linkage slots.
    fn add_pointers(&mut self, allocates: impl Fn(&str) -> bool) -> HashMap<u64, Key> {
        let elf = self.elf;
        let mut slots = HashMap::new();
        for (cell, name) in elf.imported_pointers() {
            if !allocates(name) {
                continue;
            }
            let Some(key) = self.intern(Callee::Imported(name)) else {
                continue;
            };
            let mut sections = elf.sections().iter();
            if sections.any(|section| section.name.starts_with(".got") && section.contains(cell)) {
                slots.insert(cell, key);
            } else {
                self.pointers.push((cell, key));
            }
        }
        slots
    }

    fn intern(&mut self, callee: Callee<'f>) -> Option<Key> {
        match callee {
            Callee::Local(address) => self.entries.get(&address).copied().map(Key::Local),
            Callee::Imported(name) => {
                let next = u32::try_from(self.imports.len()).ok()?;
                let index = *self.import_index.entry(name).or_insert(next);
                if index == next {
                    self.imports.push(name);
                }
                Some(Key::Import(index))
            }
        }
    }

    /// The function of this file that starts at an address.
    pub(super) fn entry(&self, address: u64) -> Option<Key> {
        self.entries.get(&address).copied().map(Key::Local)
    }

    /// The function of this file that a linkage slot leads to.
    fn leads_to(&self, slot: u64) -> Option<Key> {
        match self.elf.got_target(slot)? {
            Callee::Local(address) => self.entry(address),
            Callee::Imported(_) => None,
        }
    }

    /// The function behind a key, if this file defines it.
    pub(super) fn body(&self, key: Key) -> Option<&Body<'f>> {
        match key {
            Key::Local(index) => self.bodies.get(index as usize),
            _ => None,
        }
    }

    /// The linker name behind a key.
    pub(super) fn name(&self, key: Key) -> &'f str {
        match key {
            Key::Local(index) => self
                .bodies
                .get(index as usize)
                .map_or("", |b| b.linkage_name),
            Key::Import(index) => self.imports.get(index as usize).copied().unwrap_or(""),
            Key::Indirect | Key::Carved => "",
        }
    }

    /// Whether a call to `key` comes back.
    pub(super) fn returns(&self, key: Key) -> bool {
        let name = self.name(key);
        if self.no_return.contains(name) || name.contains("core9panicking") {
            return false;
        }
        self.body(key).is_none_or(|body| body.returns)
    }
}

fn bodies<'f>(elf: &'f Elf, facts: &'f Facts) -> Vec<Body<'f>> {
    // What debug info leaves out where a function is a copy for some callers only.
    let mangled: HashMap<u64, &str> = elf
        .symbols()
        .filter(|symbol| symbol.is_function() && symbol.name.starts_with("_Z"))
        .map(|symbol| (symbol.address, without_suffix(symbol.name)))
        .collect();
    let linkage_name = |function: &'f Function| match mangled.get(&function.entry) {
        Some(symbol) if !function.linkage_name.starts_with('_') => *symbol,
        _ => &function.linkage_name,
    };
    let mut bodies: Vec<Body<'f>> = facts
        .functions
        .iter()
        .map(|function| Body {
            name: &function.name,
            linkage_name: linkage_name(function),
            entry: function.entry,
            ranges: function.ranges.clone(),
            function: function.has_dwarf.then_some(function),
            calls: Vec::new(),
            returns: true,
            is_called: false,
            is_exported: false,
            is_named: false,
            taken: Vec::new(),
            moves_stack: false,
        })
        .collect();
    let plain = |name, start, end| Body {
        name,
        linkage_name: name,
        entry: start,
        ranges: vec![(start, end)],
        function: None,
        calls: Vec::new(),
        returns: true,
        is_called: false,
        is_exported: false,
        is_named: false,
        taken: Vec::new(),
        moves_stack: false,
    };
    let mut known: HashMap<u64, usize> = HashMap::new();
    for (at, body) in bodies.iter().enumerate() {
        known.entry(body.entry).or_insert(at);
    }
    // A piece that lies apart (`.cold`) has a symbol of its own, and is its function's.
    let entries: HashSet<u64> = bodies.iter().map(|body| body.entry).collect();
    let mut pieces: Vec<(u64, u64)> = bodies.iter().flat_map(|body| body.ranges.clone()).collect();
    pieces.retain(|(start, _)| !entries.contains(start));
    pieces.sort_unstable();
    let is_piece = |address: u64| {
        let found = pieces.binary_search_by_key(&address, |(start, _)| *start);
        found.is_ok()
    };
    for symbol in elf.symbols() {
        if !symbol.is_function() || symbol.size == 0 || is_piece(symbol.address) {
            continue;
        }
        match known.get(&symbol.address) {
            None => {
                let end = symbol.address.saturating_add(symbol.size);
                known.insert(symbol.address, bodies.len());
                bodies.push(plain(symbol.name, symbol.address, end));
            }
            // Of several names the one that says most: debug info of libc states that of the alias for calls from within.
            Some(at) => {
                let body = &mut bodies[*at];
                if body.linkage_name != symbol.name
                    && model::row(body.linkage_name).is_none()
                    && model::row(symbol.name).is_some()
                {
                    body.linkage_name = symbol.name;
                }
            }
        }
    }
    let mut covered: Vec<(u64, u64)> = bodies.iter().flat_map(|body| body.ranges.clone()).collect();
    covered.sort_unstable();
    for (start, end) in unnamed::functions(elf) {
        let before = covered.partition_point(|(known, _)| *known <= start);
        let inside = before
            .checked_sub(1)
            .is_some_and(|at| start < covered[at].1);
        let end = covered.get(before).map_or(end, |(next, _)| end.min(*next));
        if !inside {
            bodies.push(plain("", start, end));
        }
    }
    bodies
}

/// The name of the function that a symbol is a copy of, with some parameters known or left out.
fn without_suffix(name: &str) -> &str {
    let copy = [".constprop.", ".isra."]
        .iter()
        .filter_map(|mark| name.find(mark))
        .min();
    copy.map_or(name, |at| &name[..at])
}

/// Decodes all pieces of a function, in order.
pub(super) fn each_instruction(elf: &Elf, body: &Body<'_>, mut visit: impl FnMut(&Instruction)) {
    let mut instruction = Instruction::default();
    for (start, end) in &body.ranges {
        let Some(code) = usize::try_from(end.saturating_sub(*start))
            .ok()
            .and_then(|len| elf.code_at(*start, len))
        else {
            continue;
        };
        let mut decoder = Decoder::with_ip(64, code, *start, DecoderOptions::NONE);
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            elf.meant(&mut instruction);
            visit(&instruction);
        }
    }
}

/// Whether `address` lies in a piece of the function.
pub(super) fn contains(ranges: &[(u64, u64)], address: u64) -> bool {
    ranges
        .iter()
        .any(|(start, end)| (*start..*end).contains(&address))
}

fn scan<'f>(
    elf: &'f Elf,
    body: &Body<'f>,
    slots: &HashMap<u64, Key>,
    entries: &HashMap<u64, u32>,
) -> Scanned<'f> {
    let mut calls = Vec::new();
    let mut returns = false;
    let mut moves_stack = false;
    let mut reads = Vec::new();
    let mut through_register = false;
    let mut loads = Vec::new();
    let mut addressed = Vec::new();
    each_instruction(elf, body, |instruction| {
        moves_stack |= on_stack::moves_stack(instruction);
        if instruction.is_ip_rel_memory_operand() && instruction.op0_kind() == OpKind::Register {
            let address = instruction.ip_rel_memory_address();
            match instruction.mnemonic() {
                Mnemonic::Lea => loads.push(Load::Address(address)),
                Mnemonic::Mov => loads.push(Load::Slot(address)),
                _ => {}
            }
        }
        through_register |= instruction.op0_kind() == OpKind::Register
            && matches!(
                instruction.flow_control(),
                FlowControl::IndirectCall | FlowControl::IndirectBranch
            );
        reads.extend(pointer_read(instruction).filter(|slot| slots.contains_key(slot)));
        addressed.extend(taken_address(instruction).and_then(|at| entries.get(&at)));
        let leaves = |target: u64| !contains(&body.ranges, target);
        let found = match instruction.flow_control() {
            FlowControl::Return => {
                returns = true;
                None
            }
            FlowControl::Call | FlowControl::IndirectCall => Some(target(elf, instruction)),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
                if leaves(instruction.near_branch_target()) =>
            {
                returns = true;
                Some(target(elf, instruction))
            }
            FlowControl::IndirectBranch => {
                returns = true;
                // Without a slot it is a jump table as likely as a tail call.
                Some(target(elf, instruction))
            }
            _ => None,
        };
        if let Some(target) = found {
            calls.push(Raw {
                address: instruction.ip(),
                target,
            });
        }
    });
    // Pieces lie in any order; the entry's comes first.
    calls.sort_by_key(|raw: &Raw<'_>| raw.address);
    // A function that only loops is as good as one that never returns; an empty one is not.
    let returns = returns || calls.is_empty();
    Scanned {
        calls,
        returns,
        moves_stack,
        reads,
        through_register,
        loads: if through_register { loads } else { Vec::new() },
        addressed,
    }
}

fn target<'f>(elf: &'f Elf, instruction: &Instruction) -> Option<Callee<'f>> {
    if instruction.op0_kind() == OpKind::NearBranch64 {
        let address = instruction.near_branch_target();
        return Some(elf.plt_target(address).unwrap_or(Callee::Local(address)));
    }
    if instruction.memory_base() == Register::RIP {
        return elf.got_target(instruction.ip_rel_memory_address());
    }
    None
}
