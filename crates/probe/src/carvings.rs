//! *How does one hear of the blocks that inlined code cuts out of a pool?*
//!
//! Where a pool's code was put into its callers, no function is entered: what is left is the write that moves its cursor
//! ([`CursorRecord`]). Before each such write the copy tells whoever filled the slot of [`Event::Carve`], what the cursor will be,
//! and where it is; what it was still stands there.
//!
//! ```text
//!   lea rsp, [rsp-128]           the red zone
//!   push VALUE                   what will be written; of a sum, what is added
//!   push rdi; push rsi
//!   lea rdi, [the cursor]
//!   [mov rsi, [rdi]; add [rsp+16], rsi]          sums: their flags are about to be overwritten
//!   lea rsi, [rip+carving]
//!   call [rip+slot]              which keeps all registers and flags
//!   pop rsi; pop rdi; lea rsp, [rsp+136]
//! ```

use std::collections::BTreeMap;

use iced_x86::{Code as Form, Decoder, DecoderOptions, Instruction, OpKind, Register};
use pointee_meta::elf::Elf;
use pointee_model::image::CursorRecord;
use pointee_patch::placement::{Carving, Event};

use crate::blocks::Blocks;
use crate::code::Code;
use crate::flags::Liveness;
use crate::island::{self, Wishes};
use crate::place;

/// By instruction, what is told of it and how.
pub(crate) type Carvings = BTreeMap<usize, Told>;

/// What is told of one write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) carving: Carving,
    /// Where in the island that lies.
    pub(crate) record: u32,
    pub(crate) write: Write,
}

/// How an instruction writes a cursor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    cursor: Place,
    value: Value,
}

/// Where the cursor is.
#[derive(Clone, Copy, Debug)]
enum Place {
    Fixed(u64),
    /// Numbers of base and index, and the scale, as instructions have them.
    Relative {
        base: u8,
        index: Option<(u8, u8)>,
        displacement: i32,
    },
}

/// What is written, or by how much it moves.
#[derive(Clone, Copy, Debug)]
enum Value {
    Register(u8),
    /// Half of a vector register.
    Half {
        register: u8,
        high: bool,
    },
    Sum(Summand),
    Difference(Summand),
}

#[derive(Clone, Copy, Debug)]
enum Summand {
    Register(u8),
    Constant(i32),
}

/// The placement that tells of all of `cursors`, the records of this file's image, as far as there is room for pads; `None` where there is none.
/// Nothing is counted, and there are no traps.
#[must_use]
pub fn tell_of_cursors(elf: &Elf, cursors: &[CursorRecord]) -> Option<Vec<u8>> {
    if elf.machine() != object::elf::EM_X86_64 || cursors.is_empty() {
        return None;
    }
    let code = Code::read(elf);
    let blocks = Blocks::of(&code);
    let mut needed = vec![false; code.places.len()];
    // In order of address, as their instructions are.
    let mut wanted = BTreeMap::new();
    for (number, cursor) in (0..).zip(cursors) {
        let Some(index) = code.find(cursor.address) else {
            continue;
        };
        let place = &code.places[index];
        if place.end() != cursor.next {
            continue;
        }
        let bytes = code.bytes(place);
        let instruction = Decoder::with_ip(64, bytes, place.at, DecoderOptions::NONE).decode();
        if let Some(write) = Write::of(&instruction, cursor.within) {
            needed[index] = true;
            let carving = Carving {
                next: cursor.next,
                number,
                flags: u32::from(cursor.flags),
            };
            wanted.insert(index, (carving, write));
        }
    }
    let placement = place::place(&code, &blocks, &needed, false, false);
    let is_moved = |index: usize| {
        let displaced = placement.displaced[blocks.of_place(index)];
        let range = displaced.map(|displaced| displaced.first as usize..displaced.last as usize);
        range.is_some_and(|range| range.contains(&index))
    };
    let moved = wanted.into_iter().filter(|(index, _)| is_moved(*index));
    let told = |(at, (index, (carving, write)))| {
        let record = Carving::offset(at) as u32;
        let told = Told {
            carving,
            record,
            write,
        };
        (index, told)
    };
    let carvings: Carvings = moved.enumerate().map(told).collect();
    if carvings.is_empty() {
        return None;
    }
    let island = island::build(
        &code,
        &blocks,
        &Liveness::of(&code, &blocks),
        &placement,
        &Wishes {
            points: &vec![false; code.places.len()],
            operands: &BTreeMap::new(),
            watched: &BTreeMap::new(),
            signal_calls: &Default::default(),
            traps: false,
            carvings: &carvings,
        },
    );
    island.ok().map(|island| island.bytes)
}

impl Write {
    /// How an instruction writes the eight bytes that lie `within` bytes into its memory operand; `None` for what is not followed.
    fn of(instruction: &Instruction, within: u16) -> Option<Self> {
        if instruction.op0_kind() != OpKind::Memory
            || instruction.segment_prefix() != Register::None
        {
            return None;
        }
        let register = || general(instruction.op1_register());
        let value = match (instruction.code(), within) {
            (Form::Mov_rm64_r64, 0) => Value::Register(register()?),
            (Form::Add_rm64_r64, 0) => Value::Sum(Summand::Register(register()?)),
            (Form::Sub_rm64_r64, 0) => Value::Difference(Summand::Register(register()?)),
            (Form::Add_rm64_imm8 | Form::Add_rm64_imm32, 0) => Value::Sum(constant(instruction)?),
            (Form::Sub_rm64_imm8 | Form::Sub_rm64_imm32, 0) => {
                Value::Difference(constant(instruction)?)
            }
            (
                Form::Movups_xmmm128_xmm
                | Form::Movaps_xmmm128_xmm
                | Form::Movdqu_xmmm128_xmm
                | Form::Movdqa_xmmm128_xmm,
                0 | 8,
            ) => Value::Half {
                register: instruction.op1_register().number() as u8,
                high: within == 8,
            },
            (Form::Movq_xmmm64_xmm | Form::Movlps_m64_xmm | Form::Movlpd_m64_xmm, 0) => {
                Value::Half {
                    register: instruction.op1_register().number() as u8,
                    high: false,
                }
            }
            _ => return None,
        };
        let within = i32::from(within);
        let cursor = if instruction.is_ip_rel_memory_operand() {
            let address = instruction.ip_rel_memory_address();
            Place::Fixed(address.wrapping_add(within as u64))
        } else {
            let index = match instruction.memory_index() {
                Register::None => None,
                index => Some((
                    general_or_stack(index)?,
                    instruction.memory_index_scale().trailing_zeros() as u8,
                )),
            };
            let displacement = instruction.memory_displacement64() as i64;
            Place::Relative {
                base: general_or_stack(instruction.memory_base())?,
                index,
                displacement: i32::try_from(displacement).ok()?.checked_add(within)?,
            }
        };
        Some(Self { cursor, value })
    }
}

/// The number of a whole general register, other than the stack pointer.
fn general(register: Register) -> Option<u8> {
    general_or_stack(register).filter(|number| *number != RSP)
}

fn general_or_stack(register: Register) -> Option<u8> {
    register.is_gpr64().then(|| register.number() as u8)
}

fn constant(instruction: &Instruction) -> Option<Summand> {
    let value = instruction.immediate(1) as i64;
    i32::try_from(value).ok().map(Summand::Constant)
}

const RSP: u8 = 4;
const RDI: u8 = 7;
/// What the stack pointer has gone down when the cursor's address is computed.
const MOVED: i32 = 128 + 3 * 8;
const _: () = assert!(Carving::MOVED == MOVED as usize + 8 && Carving::VALUE == 24);

/// Appends to an island's `code` what tells of a write. The answer: where a distance to an address in the module is to be filled in, if
/// there is one.
pub(crate) fn emit(code: &mut Vec<u8>, told: &Told) -> Option<(u32, u64)> {
    let Told { record, write, .. } = told;
    let push = |code: &mut Vec<u8>, register: u8| {
        code.extend([0x40 | register >> 3, 0x50 | register & 7]);
    };
    code.extend([0x48, 0x8d, 0x64, 0x24, 0x80]); // lea rsp, [rsp-128]
    match write.value {
        Value::Register(register)
        | Value::Sum(Summand::Register(register))
        | Value::Difference(Summand::Register(register)) => push(code, register),
        Value::Sum(Summand::Constant(value)) | Value::Difference(Summand::Constant(value)) => {
            code.push(0x68); // push imm32
            code.extend(value.to_le_bytes());
        }
        Value::Half { register, high } => {
            code.extend([0x48, 0x8d, 0x64, 0x24, 0xf8]); // lea rsp, [rsp-8]
            let extended = 0x40 | (register & 8) >> 1;
            let modrm = (register & 7) << 3 | RSP;
            if high {
                code.extend([extended, 0x0f, 0x17, modrm, 0x24]); // movhps [rsp], xmm
            } else {
                code.extend([0x66, extended, 0x0f, 0xd6, modrm, 0x24]); // movq [rsp], xmm
            }
        }
    }
    code.extend([0x57, 0x56]); // push rdi; push rsi
    let field = load_address(code, &write.cursor);
    match write.value {
        Value::Register(_) | Value::Half { .. } => {}
        Value::Difference(_) => {
            code.extend([0x48, 0xf7, 0x5c, 0x24, 0x10]); // neg qword ptr [rsp+16]
            add_old(code);
        }
        Value::Sum(_) => add_old(code),
    }
    code.extend([0x48, 0x8d, 0x35]); // lea rsi, [rip+carving]
    let distance = record.wrapping_sub(code.len() as u32 + 4);
    code.extend(distance.to_le_bytes());
    code.extend([0xff, 0x15]); // call [rip+slot]
    let distance = (Event::Carve.slot() as u32).wrapping_sub(code.len() as u32 + 4);
    code.extend(distance.to_le_bytes());
    code.extend([0x5e, 0x5f]); // pop rsi; pop rdi
    code.extend([0x48, 0x8d, 0xa4, 0x24, 0x88, 0, 0, 0]); // lea rsp, [rsp+136]
    field
}

/// Adds what the cursor is to what it moves by.
fn add_old(code: &mut Vec<u8>) {
    code.extend([0x48, 0x8b, 0x37]); // mov rsi, [rdi]
    code.extend([0x48, 0x01, 0x74, 0x24, 0x10]); // add [rsp+16], rsi
}

/// `lea rdi, [the cursor]`, with a displacement of four bytes always.
fn load_address(code: &mut Vec<u8>, cursor: &Place) -> Option<(u32, u64)> {
    match *cursor {
        Place::Fixed(address) => {
            code.extend([0x48, 0x8d, RDI << 3 | 5]);
            let field = code.len() as u32;
            code.extend([0; 4]);
            Some((field, address))
        }
        Place::Relative {
            base,
            index,
            displacement,
        } => {
            let moved = if base == RSP { MOVED } else { 0 };
            let (index, scale) = index.unwrap_or((RSP, 0));
            let rex = 0x48 | (index >> 3) << 1 | base >> 3;
            let sib = scale << 6 | (index & 7) << 3 | base & 7;
            code.extend([rex, 0x8d, 0x80 | RDI << 3 | RSP, sib]);
            code.extend(displacement.wrapping_add(moved).to_le_bytes());
            None
        }
    }
}
