//! *Where can indirect jumps go?*
//!
//! Compilers make three kinds, and each leaves its targets where they can be found:
//!
//! ```text
//!   jmp r, jmp [m]  with a pointer loaded from memory, an argument, a lea   → some address of code, all of which are marked
//!   jmp [T + i*8]                                                           → a table of addresses at T
//!   movslq r, [T + i*4]; add r, B; jmp r                                    → a table of distances from B, mostly T itself
//! ```
//!
//! Tables of distances are read wherever the address of data is taken (`lea`): as long as an entry
//! leads to code it counts, which is too many rather than too few. A jump through a register that
//! was computed in any other way, or by a table that is not found, is *unresolved*: hand-written
//! code, mostly. All instructions of its function are then marked as if control could come to each
//! of them.

use std::collections::HashSet;

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};

use crate::code::{Code, Kind, mark};

/// Entries of one table that are read at most.
const ENTRIES: usize = 1 << 16;
/// How many instructions are looked at to find what computed a jump's register.
const LOOK_BACK: usize = 2048;

/// Marks all targets.
pub(crate) fn resolve(code: &mut Code<'_>, bases: &[u64]) {
    let mut targets = Vec::new();
    let readable: Vec<u64> = bases
        .iter()
        .copied()
        .filter(|base| first_target(code, *base).is_some_and(|target| code.find(target).is_some()))
        .collect();
    for (at, base) in readable.iter().enumerate() {
        let until = readable.get(at + 1).copied().unwrap_or(u64::MAX);
        read_distances(code, *base, until, &mut targets);
    }
    for base in bases {
        read_addresses(code, *base, &mut targets);
    }
    let mut unresolved = Vec::new();
    for number in 0..code.functions.len() {
        let (first, last) = code.spans[number];
        if !code.places[first as usize..last as usize]
            .iter()
            .any(|place| place.kind == Kind::IndirectJump)
        {
            continue;
        }
        let search = Search::new(code, number);
        let resolved = search
            .uses_tables()
            .is_some_and(|tables| !tables || search.read_tables(&mut targets));
        if !resolved {
            // A computed jump may go to where the address of its function's neighbour was taken.
            unresolved.push(number);
            unresolved.extend(search.neighbours());
        }
    }
    targets.sort_unstable();
    targets.dedup();
    for target in targets {
        code.mark(target, mark::OUTSIDE | mark::POINTED);
    }
    for number in unresolved {
        code.unresolved[number] = true;
        let (first, last) = code.spans[number];
        for place in &mut code.places[first as usize..last as usize] {
            place.marks |= mark::OUTSIDE | mark::POINTED;
        }
    }
}

fn distance_at(code: &Code<'_>, at: u64) -> Option<i64> {
    let bytes = code.elf.code_at(at, 4)?.try_into().ok()?;
    Some(i64::from(i32::from_le_bytes(bytes)))
}

fn first_target(code: &Code<'_>, base: u64) -> Option<u64> {
    let target = base.wrapping_add_signed(distance_at(code, base)?);
    (target != base && code.is_executable(target)).then_some(target)
}

/// A table of four-byte distances from its own start.
fn read_distances(code: &Code<'_>, base: u64, until: u64, targets: &mut Vec<u64>) {
    for entry in 0..ENTRIES as u64 {
        let at = base.wrapping_add(4 * entry);
        let Some(distance) = distance_at(code, at).filter(|_| at < until) else {
            return;
        };
        let target = base.wrapping_add_signed(distance);
        if !code.is_executable(target) {
            return;
        }
        targets.push(target);
    }
}

/// A table of eight-byte addresses, in a file that is not relocated.
fn read_addresses(code: &Code<'_>, base: u64, targets: &mut Vec<u64>) {
    for entry in 0..ENTRIES as u64 {
        let word = code.elf.code_at(base.wrapping_add(8 * entry), 8);
        let Some(target) = word
            .and_then(|word| word.try_into().ok())
            .map(u64::from_le_bytes)
        else {
            return;
        };
        if !code.is_executable(target) {
            return;
        }
        targets.push(target);
    }
}

/// What the register of an indirect jump holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holds {
    /// A pointer that was loaded, handed over or taken: all such code is marked.
    Pointer,
    /// An address plus an entry of a table.
    TableEntry,
    /// Something computed.
    Unknown,
}

/// One function with an indirect jump.
struct Search<'s, 'e> {
    code: &'s Code<'e>,
    first: usize,
    last: usize,
    /// Direct branches within the function: target, source; sorted.
    branches: Vec<(u64, usize)>,
}

impl<'s, 'e> Search<'s, 'e> {
    fn new(code: &'s Code<'e>, function: usize) -> Self {
        let (first, last) = (
            code.spans[function].0 as usize,
            code.spans[function].1 as usize,
        );
        let mut branches: Vec<(u64, usize)> = (first..last)
            .filter(|at| code.places[*at].target != 0 && !code.places[*at].kind.is_call())
            .map(|at| (code.places[at].target, at))
            .collect();
        branches.sort_unstable();
        Self {
            code,
            first,
            last,
            branches,
        }
    }

    fn decode(&self, at: usize) -> Instruction {
        let place = &self.code.places[at];
        Decoder::with_ip(64, self.code.bytes(place), place.at, DecoderOptions::NONE).decode()
    }

    /// What the jumps of the function need: `None` if one of them is unresolved, else whether any
    /// goes by a table.
    fn uses_tables(&self) -> Option<bool> {
        let mut tables = false;
        for at in self.first..self.last {
            if self.code.places[at].kind != Kind::IndirectJump {
                continue;
            }
            let jump = self.decode(at);
            if jump.op0_kind() != OpKind::Register {
                continue;
            }
            match self.value_before(at, jump.op0_register().full_register()) {
                Holds::Pointer => {}
                Holds::TableEntry => tables = true,
                Holds::Unknown => return None,
            }
        }
        Some(tables)
    }

    /// What `register` holds before instruction `at`, on all ways that lead there.
    fn value_before(&self, at: usize, register: Register) -> Holds {
        let mut work = vec![(at, register)];
        let mut seen = HashSet::new();
        let mut info = InstructionInfoFactory::new();
        let mut result = Holds::Pointer;
        while let Some((at, register)) = work.pop() {
            if !seen.insert((at, register)) {
                continue;
            }
            if seen.len() > LOOK_BACK {
                return Holds::Unknown;
            }
            let address = self.code.places[at].at;
            let from = self
                .branches
                .partition_point(|(target, _)| *target < address);
            let sources = self.branches[from..]
                .iter()
                .take_while(|(target, _)| *target == address);
            let falls = at.checked_sub(1).filter(|before| {
                *before >= self.first && !self.code.places[*before].kind.ends_flow()
            });
            for before in sources.map(|(_, source)| *source).chain(falls) {
                let instruction = self.decode(before);
                if !writes(&mut info, &instruction, register) {
                    work.push((before, register));
                    continue;
                }
                match self.value_written(before, &instruction, register) {
                    Written::Is(Holds::Unknown) => return Holds::Unknown,
                    Written::Is(Holds::TableEntry) => result = Holds::TableEntry,
                    Written::Is(Holds::Pointer) => {}
                    Written::From(registers) => {
                        work.extend(
                            registers
                                .into_iter()
                                .flatten()
                                .map(|register| (before, register)),
                        );
                    }
                }
            }
        }
        result
    }

    fn value_written(&self, at: usize, instruction: &Instruction, register: Register) -> Written {
        let source = (instruction.op1_kind() == OpKind::Register)
            .then(|| instruction.op1_register().full_register());
        let from_memory = instruction.op1_kind() == OpKind::Memory;
        match instruction.mnemonic() {
            Mnemonic::Mov => match source {
                Some(source) if instruction.op1_register().size() == 8 => {
                    Written::From([Some(source), None])
                }
                // A 32-bit move of an immediate is an address in a file that is not relocated.
                _ if instruction.op0_register().size() >= 4 => Written::Is(Holds::Pointer),
                _ => Written::Is(Holds::Unknown),
            },
            Mnemonic::Pop => Written::Is(Holds::Pointer),
            Mnemonic::Call => Written::Is(if register == Register::RAX {
                Holds::Pointer
            } else {
                Holds::Unknown
            }),
            Mnemonic::Lea if instruction.is_ip_rel_memory_operand() => Written::Is(Holds::Pointer),
            Mnemonic::Lea => {
                let plain = instruction.memory_displacement64() == 0
                    && instruction.memory_index_scale() == 1;
                let parts = [instruction.memory_base(), instruction.memory_index()];
                let entry = plain && parts.iter().any(|part| self.is_table_entry(at, *part));
                Written::Is(if entry {
                    Holds::TableEntry
                } else {
                    Holds::Unknown
                })
            }
            Mnemonic::Add => {
                let parts = [Some(register), source];
                let entry = parts
                    .into_iter()
                    .flatten()
                    .any(|part| self.is_table_entry(at, part));
                // Where a file is loaded, plus an address that it was linked at, from its headers: code of no table, for those of
                // eight bytes hold whole addresses. (`_dl_call_fini` of glibc.)
                let loaded = from_memory
                    && instruction.memory_index() == Register::None
                    && instruction.op0_register().size() == 8;
                match (entry, loaded) {
                    (true, _) => Written::Is(Holds::TableEntry),
                    (_, true) => Written::From([Some(register), None]),
                    _ => Written::Is(Holds::Unknown),
                }
            }
            // A choice between two, from memory or not.
            name if is_conditional_move(name) => Written::From([Some(register), source]),
            // Null, in a path that does not come here.
            Mnemonic::Xor if source == Some(register) => Written::Is(Holds::Pointer),
            // glibc's mangled pointers: `ror r, 17; xor r, fs:[0x30]`.
            Mnemonic::Xor if from_memory && instruction.segment_prefix() == Register::FS => {
                Written::From([Some(register), None])
            }
            Mnemonic::Ror => Written::From([Some(register), None]),
            _ => Written::Is(Holds::Unknown),
        }
    }

    /// Whether `register` was last loaded, looking straight up, as an entry of a table of distances.
    fn is_table_entry(&self, at: usize, register: Register) -> bool {
        let mut info = InstructionInfoFactory::new();
        let above = (self.first..at)
            .rev()
            .take(LOOK_BACK)
            .map(|at| self.decode(at));
        let mut written =
            above.filter(|instruction| writes(&mut info, instruction, register.full_register()));
        written.next().is_some_and(|load| {
            load.mnemonic() == Mnemonic::Movsxd
                && load.op1_kind() == OpKind::Memory
                && load.memory_index_scale() == 4
        })
    }

    /// Reads all tables whose address the function takes, as distances from themselves and from
    /// every address of code that it takes. Whether there was any.
    fn read_tables(&self, targets: &mut Vec<u64>) -> bool {
        let places = &self.code.places[self.first..self.last];
        let taken: Vec<u64> = (self.first..self.last)
            .filter(|at| self.code.bytes(&self.code.places[*at]).get(1) == Some(&0x8d))
            .map(|at| self.decode(at))
            .filter(|lea| lea.mnemonic() == Mnemonic::Lea && lea.is_ip_rel_memory_operand())
            .map(|lea| lea.ip_rel_memory_address())
            .collect();
        let (code, data): (Vec<u64>, Vec<u64>) =
            taken.iter().partition(|at| self.code.is_executable(**at));
        let (Some(start), Some(end)) = (places.first(), places.last()) else {
            return false;
        };
        let own = start.at..end.end();
        let mut found = false;
        for table in data {
            for base in code.iter().copied().chain([table]) {
                for entry in 0..ENTRIES as u64 {
                    let distance = distance_at(self.code, table.wrapping_add(4 * entry));
                    let target = distance.map(|distance| base.wrapping_add_signed(distance));
                    let Some(target) = target.filter(|target| own.contains(target)) else {
                        break;
                    };
                    targets.push(target);
                    found = true;
                }
            }
        }
        found
    }

    /// The functions into which this one takes an address. (Of their starts alone it is a plain pointer.)
    fn neighbours(&self) -> Vec<usize> {
        (self.first..self.last)
            .filter(|at| self.code.bytes(&self.code.places[*at]).get(1) == Some(&0x8d))
            .map(|at| self.decode(at))
            .filter(|lea| lea.mnemonic() == Mnemonic::Lea && lea.is_ip_rel_memory_operand())
            .filter_map(|lea| self.code.holder(lea.ip_rel_memory_address()))
            .filter(|place| {
                let function = self.code.places[*place].function as usize;
                self.code.functions[function].start != self.code.places[*place].at
            })
            .map(|place| self.code.places[place].function as usize)
            .collect()
    }
}

/// Where a written value comes from.
enum Written {
    Is(Holds),
    From([Option<Register>; 2]),
}

fn writes(
    info: &mut InstructionInfoFactory,
    instruction: &Instruction,
    register: Register,
) -> bool {
    // What a callee may change (psABI 3.2.1).
    const KEPT: [Register; 7] = [
        Register::RBX,
        Register::RBP,
        Register::RSP,
        Register::R12,
        Register::R13,
        Register::R14,
        Register::R15,
    ];
    if instruction.mnemonic() == Mnemonic::Call {
        return !KEPT.contains(&register);
    }
    info.info(instruction).used_registers().iter().any(|used| {
        used.register().full_register() == register
            && !matches!(
                used.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess
            )
    })
}

fn is_conditional_move(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Cmova
            | Cmovae
            | Cmovb
            | Cmovbe
            | Cmove
            | Cmovg
            | Cmovge
            | Cmovl
            | Cmovle
            | Cmovne
            | Cmovno
            | Cmovnp
            | Cmovns
            | Cmovo
            | Cmovp
            | Cmovs
    )
}
