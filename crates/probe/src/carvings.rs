//! *How does one hear of the blocks that inlined code cuts out of a pool?*
//!
//! Where a pool's code was put into its callers, no function is entered: what is left is the write that moves its cursor, a pointer or a number
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
use pointee_model::image::{CursorRecord, cursor_flags};
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
    Constant(i32),
    /// Half of a vector register.
    Half {
        register: u8,
        high: bool,
    },
    Sum(Summand),
    Difference(Summand),
    /// One more; which leaves a flag as it was.
    Next,
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
        if let Some(write) = Write::of(&instruction, cursor.within, cursor.flags) {
            needed[index] = true;
            let carving = Carving {
                next: cursor.next,
                number,
                flags: u32::from(cursor.flags),
                base: cursor.base as u64,
                room: cursor.room,
                step: cursor.step,
                scale: u32::from(cursor.scale),
                rounding: (1 << cursor.rounded.min(16)) - 1,
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
    /// How an instruction writes the cursor that lies `within` bytes into its memory operand: eight bytes, or four by what its `flags` say; `None`
    /// for what is not followed.
    fn of(instruction: &Instruction, within: u16, flags: u16) -> Option<Self> {
        if instruction.op0_kind() != OpKind::Memory
            || instruction.segment_prefix() != Register::None
        {
            return None;
        }
        let register = || general(instruction.op1_register());
        let value = match (instruction.code(), within) {
            _ if flags & cursor_flags::NARROW != 0 => narrow_value(instruction, within)?,
            (Form::Mov_rm64_imm32, 0) if flags & cursor_flags::COUNTS != 0 => {
                Value::Constant(i32::try_from(instruction.immediate(1) as i64).ok()?)
            }
            (Form::Inc_rm64, 0) => Value::Next,
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

/// What an instruction writes to a number of four bytes.
fn narrow_value(instruction: &Instruction, within: u16) -> Option<Value> {
    let register = || {
        let register = instruction.op1_register();
        let whole = register.is_gpr32().then(|| register.full_register());
        whole.and_then(general)
    };
    Some(match (instruction.code(), within) {
        (Form::Mov_rm32_r32, 0) => Value::Register(register()?),
        (Form::Mov_rm32_imm32, 0) => Value::Constant(instruction.immediate32() as i32),
        (Form::Add_rm32_r32, 0) => Value::Sum(Summand::Register(register()?)),
        (Form::Sub_rm32_r32, 0) => Value::Difference(Summand::Register(register()?)),
        (Form::Add_rm32_imm8 | Form::Add_rm32_imm32, 0) => {
            Value::Sum(Summand::Constant(instruction.immediate(1) as i32))
        }
        (Form::Sub_rm32_imm8 | Form::Sub_rm32_imm32, 0) => {
            Value::Difference(Summand::Constant(instruction.immediate(1) as i32))
        }
        (Form::Inc_rm32, 0) => Value::Next,
        _ => return None,
    })
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
        Value::Constant(value)
        | Value::Sum(Summand::Constant(value))
        | Value::Difference(Summand::Constant(value)) => {
            code.push(0x68); // push imm32
            code.extend(value.to_le_bytes());
        }
        Value::Next => code.extend([0x6a, 1]), // push 1
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
        Value::Register(_) | Value::Constant(_) | Value::Half { .. } => {}
        Value::Next => {
            code.extend([0x48, 0x8b, 0x37]); // mov rsi, [rdi]
            code.extend([0x48, 0x8d, 0x76, 0x01]); // lea rsi, [rsi+1]
            code.extend([0x48, 0x89, 0x74, 0x24, 0x10]); // mov [rsp+16], rsi
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Base, index and displacement of the cursor, as the emitted code computes it with the stack pointer moved.
    type Cursor = (Register, Register, i64);

    fn check(bytes: &[u8], within: u16, expect: Option<Cursor>) {
        check_flags(bytes, within, 0, expect);
    }

    fn check_flags(bytes: &[u8], within: u16, flags: u16, expect: Option<Cursor>) {
        let instruction = Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE).decode();
        let told = Write::of(&instruction, within, flags).map(|write| Told {
            carving: Carving::default(),
            record: Carving::offset(0) as u32,
            write,
        });
        let found = told.map(|told| {
            let mut code = vec![0; 0x100];
            let start = code.len();
            emit(&mut code, &told);
            let emitted: Vec<Instruction> =
                Decoder::with_ip(64, &code[start..], 0x100, DecoderOptions::NONE)
                    .into_iter()
                    .collect();
            assert!(emitted.iter().all(|it| !it.is_invalid()), "{bytes:02x?}");
            // What it takes off the stack it gives back, but for the call.
            let moved: i32 = emitted.iter().map(moves_stack).sum();
            assert_eq!(moved, 0, "{bytes:02x?}");
            let is_cursor = |it: &&Instruction| {
                it.code() == Form::Lea_r64_m && it.op0_register() == Register::RDI
            };
            let lea = emitted.iter().find(is_cursor).expect("the cursor");
            let displacement = lea.memory_displacement64() as i64;
            (lea.memory_base(), lea.memory_index(), displacement)
        });
        assert_eq!(found, expect, "{bytes:02x?}");
    }

    fn moves_stack(instruction: &Instruction) -> i32 {
        if instruction.code() == Form::Lea_r64_m && instruction.op0_register() == Register::RSP {
            return instruction.memory_displacement64() as i32;
        }
        match instruction.flow_control() {
            iced_x86::FlowControl::Next => instruction.stack_pointer_increment(),
            _ => 0,
        }
    }

    #[test]
    fn writes_of_all_forms() {
        use Register as R;
        let moved = i64::from(MOVED);
        // mov [rdi+16], rax; mov [r12], r13; mov [rsp+8], rax; mov [rax+rcx*8+16], rdx
        check(&[0x48, 0x89, 0x47, 0x10], 0, Some((R::RDI, R::None, 16)));
        check(&[0x4d, 0x89, 0x2c, 0x24], 0, Some((R::R12, R::None, 0)));
        check(
            &[0x48, 0x89, 0x44, 0x24, 8],
            0,
            Some((R::RSP, R::None, 8 + moved)),
        );
        check(
            &[0x48, 0x89, 0x54, 0xc8, 0x10],
            0,
            Some((R::RAX, R::RCX, 16)),
        );
        // add [rbx], rsi; add qword [rbx+8], 24; sub [rbp-8], rax
        check(&[0x48, 0x01, 0x33], 0, Some((R::RBX, R::None, 0)));
        check(&[0x48, 0x83, 0x43, 8, 24], 0, Some((R::RBX, R::None, 8)));
        check(&[0x48, 0x29, 0x45, 0xf8], 0, Some((R::RBP, R::None, -8)));
        // movups [rdi+16], xmm0: both halves; movq [r9], xmm10
        check(&[0x0f, 0x11, 0x47, 0x10], 0, Some((R::RDI, R::None, 16)));
        check(&[0x0f, 0x11, 0x47, 0x10], 8, Some((R::RDI, R::None, 24)));
        check(
            &[0x66, 0x45, 0x0f, 0xd6, 0x11],
            0,
            Some((R::R9, R::None, 0)),
        );
        // mov [rdi], rsp; mov qword [rdi], 0; mov fs:[rdi], rax; mov [rdi], eax; the upper half of eight bytes
        check(&[0x48, 0x89, 0x27], 0, None);
        check(&[0x48, 0xc7, 0x07, 0, 0, 0, 0], 0, None);
        check(&[0x64, 0x48, 0x89, 0x07], 0, None);
        check(&[0x89, 0x07], 0, None);
        check(&[0x48, 0x89, 0x47, 0x10], 8, None);
    }

    #[test]
    fn writes_of_numbers() {
        use Register as R;
        const NARROW: u16 = cursor_flags::COUNTS | cursor_flags::NARROW;
        let rows: &[(&[u8], u16, Option<Cursor>)] = &[
            // mov qword [rdi], 0; inc qword [rdi+8]
            (
                &[0x48, 0xc7, 0x07, 0, 0, 0, 0],
                cursor_flags::COUNTS,
                Some((R::RDI, R::None, 0)),
            ),
            (
                &[0x48, 0xff, 0x47, 8],
                cursor_flags::COUNTS,
                Some((R::RDI, R::None, 8)),
            ),
            // mov [rdi+8], eax; mov [rdi+8], r9d; mov dword [rdi+8], 0; add [rdi+8], esi; add dword [rbx], 24; inc dword [rbx]
            (&[0x89, 0x47, 8], NARROW, Some((R::RDI, R::None, 8))),
            (&[0x44, 0x89, 0x4f, 8], NARROW, Some((R::RDI, R::None, 8))),
            (
                &[0xc7, 0x47, 8, 0, 0, 0, 0],
                NARROW,
                Some((R::RDI, R::None, 8)),
            ),
            (&[0x01, 0x77, 8], NARROW, Some((R::RDI, R::None, 8))),
            (&[0x83, 0x03, 24], NARROW, Some((R::RBX, R::None, 0))),
            (&[0xff, 0x03], NARROW, Some((R::RBX, R::None, 0))),
            // mov [rdi+8], rax and mov [rdi+8], ax, of a number of four bytes
            (&[0x48, 0x89, 0x47, 8], NARROW, None),
            (&[0x66, 0x89, 0x47, 8], NARROW, None),
        ];
        for (bytes, flags, expect) in rows {
            check_flags(bytes, 0, *flags, *expect);
        }
    }
}
