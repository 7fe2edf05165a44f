//! *Which values pass a point?* Of an instruction that writes a variable, what it stores; of an inlined body, its parameters. Where they
//! are in a register at that instruction, code before it takes them down; where they are constants, the count alone tells.
//!
//! Each value that is taken down has a **record** of [`WORDS`] words among the counters:
//!
//! ```text
//!   last │ how often: 0 │ 1 │ 2–3 │ 4–7 │ … │ 2⁶³ and up │ value, how often: 16 times │ –, how often any other
//!   word 0    1           2   3     4           65          66 …                          98, 99
//! ```
//!
//! The first sixteen different values have a place of their own; so that a place is free while its word is zero, values are kept
//! combined with [`KEY`]. All is exact with several threads.

use std::collections::BTreeMap;

use pointee_meta::facts::{Facts, FrameBase, Place as Lies, Variable};
use pointee_model::image::{TypeIndex, TypeKind};
use pointee_patch::arch::x86_64::decode::{Instruction, Map};
use pointee_patch::arch::x86_64::stores::{Stored, stored};

use crate::code::Code;
use crate::frames::{Base, Frames};
use crate::subjects::{Instance, Subjects};

/// Words of a record.
pub(crate) const WORDS: usize = 100;
/// What values are combined with in their places. A program's value that equals it is counted with the others.
const KEY: u64 = 0x5555_5555_5555_5555;
const CLASSES: usize = 65;
const PLACES: usize = 16;
/// `DW_ATE_signed`, `DW_ATE_signed_char`.
const SIGNED: [u8; 2] = [5, 6];

/// The values of each point, by its number among [`Code::places`].
pub(crate) type Operands = BTreeMap<usize, Vec<Operand>>;

/// A value at a point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Operand {
    pub(crate) name: String,
    pub(crate) source: Source,
    pub(crate) form: Form,
}

/// Where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    Constant(i64),
    /// A general register, by its number in instructions, and what is added to it.
    Register(u8, i32),
    /// In memory, so far from where a general register points.
    Memory(u8, i32),
    /// `ah`, `ch`, `dh` or `bh`.
    SecondByte(u8),
}

/// How its bits are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Form {
    /// In bytes: 1, 2, 4 or 8.
    pub width: u8,
    /// As a number with a sign.
    pub is_signed: bool,
}

impl Form {
    /// The number that the low bits of `value` are.
    #[must_use]
    pub fn read(self, value: u64) -> i128 {
        let unused = 64 - 8 * u32::from(self.width.clamp(1, 8));
        match self.is_signed {
            true => i128::from((value << unused) as i64 >> unused),
            false => i128::from(value << unused >> unused),
        }
    }
}

/// A value that is known at a point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Value {
    /// Of a parameter its name, of a store that of the variable.
    pub name: String,
    /// How its bits are read.
    pub form: Form,
    /// What it is, or where it is taken down.
    pub kind: ValueKind,
}

/// See [`Value`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ValueKind {
    /// Always this.
    Constant(i64),
    /// In a record; the number of its first word among the counters.
    Recorded(u32),
}

/// What a record says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// The last value.
    pub last: i128,
    /// Values and how often they came, the most frequent first. The first sixteen that came.
    pub values: Vec<(i128, u64)>,
    /// How often any other came.
    pub others: u64,
    /// How often one of a range came: from, up to and with, count; without a sign.
    pub classes: Vec<(u64, u64, u64)>,
}

impl Seen {
    /// Reads a record; `None` if it is too short.
    #[must_use]
    pub fn read(words: &[u64], form: Form) -> Option<Self> {
        let record: &[u64; WORDS] = words.first_chunk()?;
        let (classes, table) = record[1..].split_at(CLASSES);
        let places = table.chunks_exact(2).take(PLACES);
        let taken = places.filter(|place| place[0] != 0);
        let mut values: Vec<(i128, u64)> = taken
            .map(|place| (form.read(place[0] ^ KEY), place[1]))
            .collect();
        values.sort_by_key(|(value, count)| (std::cmp::Reverse(*count), *value));
        let range = |class: usize| match class {
            0 => (0, 0),
            _ => (1 << (class - 1), u64::MAX >> (CLASSES - 1 - class)),
        };
        Some(Self {
            last: form.read(record[0]),
            values,
            others: table[2 * PLACES + 1],
            classes: (0..CLASSES)
                .filter(|class| classes[*class] != 0)
                .map(|class| (range(class).0, range(class).1, classes[class]))
                .collect(),
        })
    }
}

/// What the instructions among `subjects` store.
pub(crate) fn stores(code: &Code<'_>, facts: &Facts, subjects: &Subjects) -> Operands {
    let mut operands = Operands::new();
    for (at, name) in subjects {
        let Some(instruction) = code.instruction(&code.places[*at]) else {
            continue;
        };
        let width = width(&instruction);
        let source = match stored(&instruction) {
            Some(Stored::Immediate(value)) => Source::Constant(value),
            Some(Stored::Register(number)) => {
                let is_second = width == 1 && number >= 4 && instruction.prefixes.rex == 0;
                match is_second && number < 8 {
                    true => Source::SecondByte(number),
                    false => Source::Register(number, 0),
                }
            }
            _ => continue,
        };
        let global = facts.globals.iter().find(|global| global.name == *name);
        let is_signed = global
            .and_then(|global| form_of(facts, global.r#type))
            .is_some_and(|form| form.is_signed);
        let operand = Operand {
            name: name.clone(),
            source,
            form: Form { width, is_signed },
        };
        operands.insert(*at, vec![operand]);
    }
    operands
}

/// The bytes that a store of a general register or a constant writes. `rex` is the prefix, 0 if there is none.
fn width(instruction: &Instruction) -> u8 {
    let is_byte = instruction.map == Map::Primary && instruction.opcode & 1 == 0;
    match instruction.prefixes.rex & 8 != 0 {
        _ if is_byte => 1,
        true => 8,
        false if instruction.prefixes.operand_size => 2,
        false => 4,
    }
}

/// What is known of the parameters of inlined bodies. Of two that begin at one instruction the outer one has its say, as its name has.
pub(crate) fn parameters(code: &Code<'_>, facts: &Facts, instances: &[Instance<'_>]) -> Operands {
    let mut operands = Operands::new();
    for (instance, found) in instances
        .iter()
        .zip(each_parameters(code, facts, instances))
    {
        operands.entry(instance.place).or_insert(found);
    }
    operands.retain(|_, found| !found.is_empty());
    operands
}

/// Of each of these bodies the parameters whose values are known at its first instruction: as far as the debug info says that they are
/// constants, in general registers, or in the frame.
pub(crate) fn each_parameters(
    code: &Code<'_>,
    facts: &Facts,
    instances: &[Instance<'_>],
) -> Vec<Vec<Operand>> {
    let entries = instances
        .iter()
        .map(|instance| code.places[instance.place].at);
    let frames = Frames::of(code.elf);
    let bases = frames.map_or_else(BTreeMap::new, |frames| frames.bases(&entries.collect()));
    let of = |instance: &Instance<'_>| {
        let own = |variable: &&Variable| {
            variable.inline == Some(instance.number as u32) && variable.parameter.is_some()
        };
        let at = code.places[instance.place].at;
        let base = bases.get(&at).copied();
        let found = instance.holder.variables.iter().filter(own);
        found
            .filter_map(|variable| {
                let holds = |(start, end, _): &&(u64, u64, Lies)| (*start..*end).contains(&at);
                let (_, _, place) = variable.places.iter().find(holds)?;
                Some(Operand {
                    name: variable.name.clone(),
                    source: source(*place, instance.holder.frame_base, base)?,
                    form: form_of(facts, variable.r#type)?,
                })
            })
            .collect()
    };
    instances.iter().map(of).collect()
}

/// Where a parameter is. Memory is read only in the frame, which is there whatever the registers hold.
fn source(place: Lies, frame_base: FrameBase, base: Option<Base>) -> Option<Source> {
    let small = |offset: i64| i32::try_from(offset).ok();
    let memory =
        |register: u16, offset: i64| Some(Source::Memory(number_of(register)?, small(offset)?));
    let is_of_frame = |register: u16| {
        register == DWARF_RSP
            || frame_base == FrameBase::Register(register)
            || base.is_some_and(|(of_frame, _)| of_frame == register)
    };
    match place {
        Lies::Constant(value) => Some(Source::Constant(value)),
        Lies::Register(register) => Some(Source::Register(number_of(register)?, 0)),
        Lies::Value(register, offset) => {
            Some(Source::Register(number_of(register)?, small(offset)?))
        }
        Lies::Memory(register, offset) if is_of_frame(register) => memory(register, offset),
        Lies::Frame(offset) => {
            let (register, from) = match frame_base {
                FrameBase::Cfa => base?,
                FrameBase::Register(register) => (register, 0),
                FrameBase::Unknown => return None,
            };
            memory(register, from.checked_add(offset)?)
        }
        Lies::Memory(..) | Lies::Start(_) | Lies::Address(_) | Lies::Behind(..) => None,
    }
}

/// The number that instructions have for the general register with this number in DWARF (psABI x86-64, figure 3.36).
fn number_of(register: u16) -> Option<u8> {
    const FIRST: [u8; 8] = [0, 2, 1, 3, 6, 7, 5, 4];
    match register {
        0..8 => FIRST.get(usize::from(register)).copied(),
        8..16 => Some(register as u8),
        _ => None,
    }
}

/// How a value of a type is read that fits into a general register.
fn form_of(facts: &Facts, r#type: Option<TypeIndex>) -> Option<Form> {
    let mut index = r#type?;
    // Typedefs of typedefs end; in a damaged file they may not.
    for _ in 0..32 {
        let r#type = facts.types.get(index as usize)?;
        match r#type.kind {
            TypeKind::Typedef
            | TypeKind::Const
            | TypeKind::Volatile
            | TypeKind::Restrict
            | TypeKind::Atomic => index = r#type.target?,
            TypeKind::Base
            | TypeKind::Pointer
            | TypeKind::Reference
            | TypeKind::RvalueReference
            | TypeKind::Enum => {
                let size = r#type.size.unwrap_or(8);
                let width = u8::try_from(size).ok()?;
                return matches!(width, 1 | 2 | 4 | 8).then_some(Form {
                    width,
                    is_signed: r#type.kind == TypeKind::Base && SIGNED.contains(&r#type.encoding),
                });
            }
            _ => return None,
        }
    }
    None
}

/// Takes `rax` down in the record at `rcx`; changes those two, and flags.
#[rustfmt::skip]
pub(crate) const ROUTINE: [u8; 97] = [
    0x52,                                                        //    push rdx
    0x41, 0x50,                                                  //    push r8
    0x48, 0x89, 0x01,                                            //    mov [rcx], rax
    0x48, 0x0f, 0xbd, 0xd0,                                      //    bsr rdx, rax
    0x75, 0x04,                                                  //    jne 1f
    0x48, 0x83, 0xca, 0xff,                                      //    or rdx, -1
    0xf0, 0x48, 0xff, 0x44, 0xd1, 0x10,                          // 1: lock inc qword ptr [rcx+rdx*8+16]
    0x48, 0xba, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55,  //    movabs rdx, KEY
    0x48, 0x81, 0xc1, 0x10, 0x02, 0x00, 0x00,                    //    add rcx, 528
    0x48, 0x31, 0xc2,                                            //    xor rdx, rax
    0x74, 0x25,                                                  //    je 5f
    0x41, 0xb8, 0x10, 0x00, 0x00, 0x00,                          //    mov r8d, PLACES
    0x48, 0x8b, 0x01,                                            // 2: mov rax, [rcx]
    0x48, 0x85, 0xc0,                                            //    test rax, rax
    0x75, 0x07,                                                  //    jne 3f
    0xf0, 0x48, 0x0f, 0xb1, 0x11,                                //    lock cmpxchg [rcx], rdx
    0x74, 0x17,                                                  //    je 4f
    0x48, 0x39, 0xd0,                                            // 3: cmp rax, rdx
    0x74, 0x12,                                                  //    je 4f
    0x48, 0x83, 0xc1, 0x10,                                      //    add rcx, 16
    0x41, 0xff, 0xc8,                                            //    dec r8d
    0x75, 0xe3,                                                  //    jne 2b
    0xeb, 0x07,                                                  //    jmp 4f
    0x48, 0x81, 0xc1, 0x00, 0x01, 0x00, 0x00,                    // 5: add rcx, 256
    0xf0, 0x48, 0xff, 0x41, 0x08,                                // 4: lock inc qword ptr [rcx+8]
    0x41, 0x58,                                                  //    pop r8
    0x5a,                                                        //    pop rdx
    0xc3,                                                        //    ret
];

/// Below the red zone (psABI 3.2.2), the flags, `rax` and `rcx`.
const SAVE: &[u8] = &[
    0x48, 0x8d, 0x64, 0x24, 0x80, // lea rsp, [rsp-128]
    0x9c, 0x50, 0x51, // pushfq; push rax; push rcx
];
const RESTORE: &[u8] = &[
    0x59, 0x58, 0x9d, // pop rcx; pop rax; popfq
    0x48, 0x8d, 0xa4, 0x24, 0x80, 0, 0, 0, // lea rsp, [rsp+128]
];
/// `mov rax, [rsp+8]; mov rcx, [rsp]`.
const AGAIN: &[u8] = &[0x48, 0x8b, 0x44, 0x24, 0x08, 0x48, 0x8b, 0x0c, 0x24];
/// What the stack pointer has gone down when values are read.
const MOVED: i32 = 128 + 3 * 8;
const RSP: u8 = 4;
const DWARF_RSP: u16 = 7;

/// Appends to `code` what takes down those of `operands` that are not constants, with [`ROUTINE`] at offset `routine` of it. The stack pointer is
/// `pushed` bytes lower than in the program. The answer: for each, the offset of the distance to its record, counted from behind that.
pub(crate) fn emit(
    code: &mut Vec<u8>,
    operands: &[Operand],
    routine: u32,
    pushed: i32,
) -> Vec<u32> {
    let mut fields = Vec::new();
    let is_read = |operand: &&Operand| !matches!(operand.source, Source::Constant(_));
    for operand in operands.iter().filter(is_read) {
        code.extend(if fields.is_empty() { SAVE } else { AGAIN });
        load(code, operand, MOVED + pushed);
        code.extend([0x48, 0x8d, 0x0d]); // lea rcx, [rip+record]
        fields.push(code.len() as u32);
        code.extend([0; 4]);
        code.push(0xe8); // call ROUTINE
        let distance = routine.wrapping_sub(code.len() as u32 + 4);
        code.extend(distance.to_le_bytes());
    }
    if !fields.is_empty() {
        code.extend(RESTORE);
    }
    fields
}

/// The value into `rax`, without what its width leaves out. The stack pointer has gone down by `moved`.
fn load(code: &mut Vec<u8>, operand: &Operand, moved: i32) {
    let width = operand.form.width;
    let true_offset = |register: u8, offset: i32| match register {
        RSP => offset.wrapping_add(moved),
        _ => offset,
    };
    let (register, offset) = match operand.source {
        Source::Constant(_) => return,
        Source::SecondByte(number) => return code.extend([0x0f, 0xb6, 0xc0 | number & 7]), // movzx eax, r8
        Source::Memory(base, offset) => {
            return load_memory(code, base, true_offset(base, offset), width);
        }
        Source::Register(register, offset) => (register, true_offset(register, offset)),
    };
    let extended = register >> 3;
    code.extend([0x48 | extended, 0x8b, 0xc0 | register & 7]); // mov rax, register
    if offset != 0 {
        code.extend([0x48, 0x05]); // add rax, offset
        code.extend(offset.to_le_bytes());
    }
    match width {
        1 => code.extend([0x0f, 0xb6, 0xc0]), // movzx eax, al
        2 => code.extend([0x0f, 0xb7, 0xc0]), // movzx eax, ax
        4 => code.extend([0x89, 0xc0]),       // mov eax, eax
        _ => {}
    }
}

/// What lies at `[base + offset]` into `rax`, with zeros above it.
fn load_memory(code: &mut Vec<u8>, base: u8, offset: i32, width: u8) {
    let rex = 0x40 | base >> 3 | if width == 8 { 8 } else { 0 };
    code.push(rex);
    match width {
        1 => code.extend([0x0f, 0xb6]), // movzx eax, byte
        2 => code.extend([0x0f, 0xb7]), // movzx eax, word
        _ => code.push(0x8b),
    }
    code.push(0x80 | base & 7);
    if base & 7 == RSP {
        code.push(0x24); // no index
    }
    code.extend(offset.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(form: Form, value: u64, expect: i128) {
        assert_eq!(form.read(value), expect, "{form:?} {value:#x}");
    }

    #[test]
    fn forms() {
        let form = |width, is_signed| Form { width, is_signed };
        check(form(1, true), 0xff, -1);
        check(form(1, false), 0xff, 255);
        check(form(2, true), 0x1_8000, -0x8000);
        check(form(4, true), 0xffff_fffe, -2);
        check(form(8, false), u64::MAX, i128::from(u64::MAX));
        check(form(8, true), u64::MAX, -1);
    }

    #[test]
    fn a_record_is_read() {
        let mut words = [0; WORDS];
        words[0] = 3;
        words[1] = 1; // 0
        words[3] = 5; // 2–3
        (words[66], words[67]) = (3 ^ KEY, 5);
        (words[68], words[69]) = (KEY, 1);
        words[99] = 2;
        let form = Form {
            width: 4,
            is_signed: false,
        };
        let expect = Seen {
            last: 3,
            values: vec![(3, 5), (0, 1)],
            others: 2,
            classes: vec![(0, 0, 1), (2, 3, 5)],
        };
        assert_eq!(Seen::read(&words, form), Some(expect));
        assert_eq!(Seen::read(&words[1..], form), None);
    }
}
