//! *What are the instructions of a file, and where can control come to them from elsewhere?*
//!
//! Every function is decoded from its start. Then each way in which control may arrive at an
//! instruction other than from the one before it is written down as a *mark* on it:
//!
//! | mark | control comes from |
//! | --- | --- |
//! | [`mark::TARGET`] | a direct branch in a function |
//! | [`mark::OUTSIDE`] | anywhere: a function's start, a return from a call or the kernel, an exception, a pointer, a jump table, a branch in code that belongs to no function |
//! | [`mark::INNER`] | a branch goes *into* the instruction (over a `lock` prefix, say): it must stay as it is |
//!
//! Pointers to code are taken from everything that can hold one: relocations, RIP-relative `lea`,
//! and, in files that are not relocated, immediate operands and words of data. Too many marks cost
//! a little; one too few would cost the program its life. So where the targets of an indirect jump
//! cannot be found ([`crate::indirect`]), every instruction of the function is marked.

use std::collections::BTreeSet;

use object::elf::{PF_X, PT_LOAD};
use pointee_meta::elf::Elf;
use pointee_model::addr::LinkAddr;
use pointee_patch::arch::x86_64::decode::{Flow, Instruction, Map, decode};
use pointee_patch::arch::x86_64::sweep::{branch_target, sweep};

use crate::functions::{self, Exclusion, Function};
use crate::indirect;
use crate::pointers::Pointers;

/// Bits of [`Place::marks`].
pub(crate) mod mark {
    /// The target of a direct branch.
    pub(crate) const TARGET: u8 = 1;
    /// Control may come from where nothing is known.
    pub(crate) const OUTSIDE: u8 = 2;
    /// A branch goes into its middle.
    pub(crate) const INNER: u8 = 4;
    /// It is code for certain: control comes to it by a known way.
    pub(crate) const REACHED: u8 = 8;
    /// A pointer to it was found that may as well mean data.
    pub(crate) const TAKEN: u8 = 16;
    /// More than the start of a function: a pointer, a table, an exception, or another object may
    /// lead to it.
    pub(crate) const POINTED: u8 = 32;
}

/// How control leaves an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Next,
    Jump,
    ConditionalJump,
    Call,
    IndirectCall,
    IndirectJump,
    Return,
    Trap,
    Syscall,
    /// An `int3` of the program's own: its handler may ask where it was.
    Breakpoint,
    /// `xbegin`: goes on, or to where it says.
    Transaction,
    /// Bytes that are no instruction, or one that cannot be moved: stay where they are.
    Fixed,
}

impl Kind {
    fn of(instruction: &Instruction) -> Self {
        // What `relocate` refuses.
        let flow = instruction.flow;
        let short_branch = flow.relative().is_some() && instruction.prefixes.short_operand();
        let low_operand = instruction.rip_relative.is_some() && instruction.prefixes.address_size;
        if short_branch || low_operand {
            return Self::Fixed;
        }
        if instruction.is(Map::Primary, 0xcc) {
            return Self::Breakpoint;
        }
        match flow {
            Flow::Next => Self::Next,
            Flow::Jump(_) => Self::Jump,
            Flow::ConditionalJump(_) | Flow::Loop(_) => Self::ConditionalJump,
            Flow::Call(_) => Self::Call,
            Flow::IndirectCall => Self::IndirectCall,
            Flow::IndirectJump => Self::IndirectJump,
            Flow::Return => Self::Return,
            Flow::Trap => Self::Trap,
            Flow::Syscall => Self::Syscall,
            Flow::TransactionBegin(_) => Self::Transaction,
        }
    }

    pub(crate) fn is_call(self) -> bool {
        matches!(self, Self::Call | Self::IndirectCall)
    }

    /// Whether the copy of its block goes back for it, so that whoever looks at a thread that is
    /// inside — an unwinder, a debugger, a signal handler — sees the original code.
    pub(crate) fn stays(self) -> bool {
        self.is_call() || matches!(self, Self::Syscall | Self::Breakpoint)
    }

    /// Whether control never goes on to the next instruction.
    pub(crate) fn ends_flow(self) -> bool {
        matches!(
            self,
            Self::Jump | Self::IndirectJump | Self::Return | Self::Trap
        )
    }

    /// Whether a block ends behind it.
    pub(crate) fn ends_block(self) -> bool {
        self != Self::Next
    }
}

/// One instruction of a function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Link-time address.
    pub(crate) at: u64,
    /// Target of a direct branch; 0 for none.
    pub(crate) target: u64,
    pub(crate) function: u32,
    pub(crate) len: u8,
    pub(crate) kind: Kind,
    pub(crate) marks: u8,
}

impl Place {
    pub(crate) fn end(&self) -> u64 {
        self.at + u64::from(self.len)
    }

    pub(crate) fn is(&self, bits: u8) -> bool {
        self.marks & bits != 0
    }
}

/// All code of a file.
#[derive(Debug)]
pub(crate) struct Code<'e> {
    pub(crate) elf: &'e Elf,
    pub(crate) functions: Vec<Function>,
    /// Sorted, not overlapping.
    pub(crate) places: Vec<Place>,
    /// The instructions of each function: first, one past the last.
    pub(crate) spans: Vec<(u32, u32)>,
    /// Functions in which an indirect jump goes nobody knows where.
    pub(crate) unresolved: Vec<bool>,
    /// Targets of branches that lie in no function, sorted.
    pub(crate) strays: Vec<u64>,
    /// Executable ranges by link-time address.
    executable: Vec<(u64, u64)>,
    /// For each granule of code, the first instruction in it or behind it.
    granules: Vec<u32>,
}

/// Bytes of code that one number of [`Code::granules`] stands for, as a power of two.
const GRANULE: u32 = 6;

impl<'e> Code<'e> {
    /// Reads the code of `elf`.
    pub(crate) fn read(elf: &'e Elf) -> Self {
        let found = functions::find(elf);
        let executable = elf
            .segments()
            .iter()
            .filter(|segment| segment.kind == PT_LOAD && segment.flags.0 & PF_X.0 != 0)
            .map(|segment| {
                (
                    segment.address,
                    segment.address.saturating_add(segment.file_size),
                )
            })
            .collect();
        let mut code = Self {
            elf,
            unresolved: vec![false; found.functions.len()],
            functions: found.functions,
            places: Vec::new(),
            spans: Vec::new(),
            strays: Vec::new(),
            executable,
            granules: Vec::new(),
        };
        code.decode();
        code.index();
        code.mark_direct();
        code.mark_gaps();
        for at in 0..code.functions.len() {
            let (start, cold) = (code.functions[at].start, code.functions[at].exclusion);
            // A cold part is only jumped to, and by whom is known.
            if cold != Some(Exclusion::ColdPart) {
                code.mark(start, mark::OUTSIDE);
            }
        }
        for pad in found.landing_pads {
            code.mark(pad, mark::OUTSIDE | mark::POINTED);
        }
        code.mark_returns();
        let pointers = Pointers::of(&code);
        for pointer in pointers.certain {
            code.mark(pointer, mark::OUTSIDE | mark::POINTED);
        }
        for pointer in pointers.taken {
            code.mark(pointer, mark::TAKEN | mark::POINTED);
        }
        let exported = elf
            .symbols()
            .filter(|symbol| symbol.dynamic && symbol.is_function());
        for address in exported.map(|symbol| symbol.address).chain([elf.entry()]) {
            code.mark(address, mark::POINTED);
        }
        indirect::resolve(&mut code, &pointers.bases);
        code.reach();
        code
    }

    /// The index of the instruction at `address`.
    pub(crate) fn find(&self, address: u64) -> Option<usize> {
        let granule =
            usize::try_from(address.checked_sub(self.places.first()?.at)? >> GRANULE).ok()?;
        let first = *self.granules.get(granule)? as usize;
        let last = self
            .granules
            .get(granule + 1)
            .map_or(self.places.len(), |last| *last as usize);
        let at = self.places[first..last]
            .binary_search_by_key(&address, |place| place.at)
            .ok()?;
        Some(first + at)
    }

    fn index(&mut self) {
        let Some(base) = self.places.first().map(|place| place.at) else {
            return;
        };
        for (at, place) in self.places.iter().enumerate() {
            let granule = ((place.at - base) >> GRANULE) as usize;
            // Code lies in the file, however far apart a damaged header says: no more granules than bytes.
            if granule < self.elf.bytes().len() && granule >= self.granules.len() {
                self.granules.resize(granule + 1, at as u32);
            }
        }
    }

    /// The index of the instruction that holds the byte at `address`.
    pub(crate) fn holder(&self, address: u64) -> Option<usize> {
        let at = self
            .places
            .partition_point(|place| place.at <= address)
            .checked_sub(1)?;
        (address < self.places[at].end()).then_some(at)
    }

    /// Whether `address` lies where code can be.
    pub(crate) fn is_executable(&self, address: u64) -> bool {
        self.executable
            .iter()
            .any(|(from, to)| (*from..*to).contains(&address))
    }

    /// The bytes of an instruction.
    pub(crate) fn bytes(&self, place: &Place) -> &'e [u8] {
        self.elf
            .code_at(place.at, usize::from(place.len))
            .unwrap_or(&[])
    }

    /// Decodes one instruction again.
    pub(crate) fn instruction(&self, place: &Place) -> Option<Instruction> {
        decode(self.bytes(place)).ok()
    }

    /// Adds `bits` to the instruction at `address`, if there is one.
    pub(crate) fn mark(&mut self, address: u64, bits: u8) -> bool {
        match self.find(address) {
            Some(at) => {
                self.places[at].marks |= bits;
                true
            }
            None => false,
        }
    }

    fn decode(&mut self) {
        for (number, function) in self.functions.iter().enumerate() {
            let first = self.places.len() as u32;
            let len = function.end.saturating_sub(function.start) as usize;
            let bytes = self.elf.bytes_from(function.start).unwrap_or(&[]);
            let bytes = &bytes[..len.min(bytes.len())];
            let mut offset = 0;
            while offset < bytes.len() {
                let at = function.start + offset as u64;
                let place = match decode(&bytes[offset..]) {
                    Ok(instruction) => Place {
                        at,
                        target: instruction
                            .target_offset()
                            .map_or(0, |by| at.wrapping_add_signed(by)),
                        function: number as u32,
                        len: instruction.len,
                        kind: Kind::of(&instruction),
                        marks: 0,
                    },
                    Err(_) => Place {
                        at,
                        target: 0,
                        function: number as u32,
                        len: 1,
                        kind: Kind::Fixed,
                        marks: 0,
                    },
                };
                offset += usize::from(place.len);
                self.places.push(place);
            }
            self.spans.push((first, self.places.len() as u32));
        }
    }

    fn mark_direct(&mut self) {
        for at in 0..self.places.len() {
            let target = self.places[at].target;
            if target != 0
                && !self.mark(target, mark::TARGET)
                && let Some(holder) = self.holder(target)
            {
                self.places[holder].marks |= mark::INNER;
            }
        }
    }

    /// Branches of code between functions.
    fn mark_gaps(&mut self) {
        let mut gaps = Vec::new();
        for section in self.elf.text_sections() {
            let mut from = section.address;
            let end = section.address.saturating_add(section.size);
            let first = self
                .functions
                .partition_point(|function| function.start < from);
            for function in &self.functions[first..] {
                if function.start >= end {
                    break;
                }
                gaps.push((from, function.start));
                from = function.end.max(from);
            }
            gaps.push((from, end));
        }
        let mut strays = BTreeSet::new();
        for (from, to) in gaps.into_iter().filter(|(from, to)| from < to) {
            let Some(bytes) = self.elf.code_at(from, (to - from) as usize) else {
                continue;
            };
            for (at, instruction) in sweep(bytes, LinkAddr(from)) {
                if let Some(target) = branch_target(at, &instruction) {
                    strays.insert(target.0);
                }
            }
        }
        for target in &strays {
            self.mark(*target, mark::TARGET | mark::OUTSIDE | mark::POINTED);
        }
        self.strays = strays.into_iter().collect();
    }

    fn mark_returns(&mut self) {
        for at in 1..self.places.len() {
            let before = self.places[at - 1];
            if before.kind.stays() && before.end() == self.places[at].at {
                self.places[at].marks |= mark::OUTSIDE;
            }
        }
    }

    /// Marks what control reaches by known ways, starting where it comes from outside.
    fn reach(&mut self) {
        let mut work: Vec<usize> = (0..self.places.len())
            .filter(|at| self.places[*at].is(mark::OUTSIDE))
            .collect();
        // Cold parts have no other way in than jumps; a return after a call is only as good as the call.
        for (number, function) in self.functions.iter().enumerate() {
            if function.exclusion.is_some() {
                work.push(self.spans[number].0 as usize);
            }
        }
        while let Some(mut at) = work.pop() {
            while let Some(place) = self.places.get_mut(at) {
                if place.is(mark::REACHED) {
                    break;
                }
                place.marks |= mark::REACHED;
                let (kind, end, target) = (place.kind, place.end(), place.target);
                if target != 0
                    && let Some(to) = self.find(target)
                {
                    work.push(to);
                }
                let next_adjoins = self.places.get(at + 1).is_some_and(|next| next.at == end);
                if kind.ends_flow() || !next_adjoins {
                    break;
                }
                at += 1;
            }
        }
        // What is code anyway, and has its address taken, can be jumped to.
        for place in &mut self.places {
            if place.is(mark::TAKEN) && place.is(mark::REACHED) {
                place.marks |= mark::OUTSIDE;
            }
        }
    }
}
