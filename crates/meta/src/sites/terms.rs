//! *Which multiple of which number does a register hold?*
//!
//! Compilers write `28 · n` as `(8n - n) · 4`, in two registers. What is known of `n` by itself (nothing, most often)
//! does not tell that both terms are of one `n`, so that is followed apart: a *term* is `scale · n + add`, where `n` is what some
//! register held when it was last written in another way. Terms live within one run of instructions without jumps, for that is how such
//! sums are written.

use super::state::{SP, general};
use super::value::Value;
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

/// `scale · n + add`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Term {
    /// Tells `n` from other numbers: the address of the instruction that made it, or the register that brought it.
    symbol: u64,
    /// What is known of `n` otherwise.
    of: Value,
    scale: i64,
    add: i64,
}

/// What the registers hold, by their encoding number.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terms([Option<Term>; 16]);

impl Term {
    /// `self + factor · other`, if both are of one number.
    fn plus(self, other: Self, factor: i64) -> Option<Self> {
        (self.symbol == other.symbol).then_some(())?;
        Some(Self {
            scale: self.scale.checked_add(other.scale.checked_mul(factor)?)?,
            add: self.add.checked_add(other.add.checked_mul(factor)?)?,
            ..self
        })
    }

    fn times(self, factor: i64) -> Option<Self> {
        Some(Self {
            scale: self.scale.checked_mul(factor)?,
            add: self.add.checked_mul(factor)?,
            ..self
        })
    }

    fn offset(self, number: i64) -> Option<Self> {
        Some(Self {
            add: self.add.checked_add(number)?,
            ..self
        })
    }
}

impl Terms {
    /// At the start of a run of instructions: each register brings a number of its own.
    pub(super) fn at_start(registers: &[Value; 16]) -> Self {
        let mut terms = Self::default();
        for (number, (term, value)) in (0..).zip(terms.0.iter_mut().zip(registers)) {
            *term = value.is_number().then_some(Term {
                symbol: number,
                of: *value,
                scale: 1,
                add: 0,
            });
        }
        terms
    }

    /// The registers that hold just what one holds, that one first.
    pub(super) fn same_as(&self, register: usize) -> impl Iterator<Item = usize> {
        let term = self.0[register & 15];
        let same = move |other: &usize| {
            let (Some(a), Some(b)) = (term, self.0[*other]) else {
                return false;
            };
            *other != register && (a.symbol, a.scale, a.add) == (b.symbol, b.scale, b.add)
        };
        std::iter::once(register).chain((0..self.0.len()).filter(same))
    }

    /// What an instruction makes of them, if it is known; `registers` as they are behind it. Gives back what a register holds
    /// of which more is known by that.
    pub(super) fn step(
        &mut self,
        instruction: &Instruction,
        info: &mut InstructionInfoFactory,
        registers: &[Value; 16],
    ) -> Option<(usize, Value)> {
        use Mnemonic as M;
        let target = match instruction.op0_kind() {
            OpKind::Register => general(instruction.op0_register()),
            _ => None,
        };
        match instruction.mnemonic() {
            M::Cmp | M::Test | M::Nop | M::Push | M::Endbr64 => None,
            M::Mov | M::Movsxd | M::Lea | M::Add | M::Sub | M::Shl | M::Sal | M::Inc | M::Dec => {
                self.write(instruction, target?, registers)
            }
            M::Imul if instruction.op_count() > 1 => self.write(instruction, target?, registers),
            // Of the register itself.
            M::Cdqe => None,
            _ => {
                for used in info.info(instruction).used_registers() {
                    let reads = matches!(
                        used.access(),
                        OpAccess::Read | OpAccess::CondRead | OpAccess::None
                    );
                    if let (false, Some(register)) = (reads, general(used.register())) {
                        self.fresh(register, instruction.ip(), registers);
                    }
                }
                None
            }
        }
    }

    fn write(
        &mut self,
        instruction: &Instruction,
        target: usize,
        registers: &[Value; 16],
    ) -> Option<(usize, Value)> {
        if instruction.op0_register().size() < 4 || target == SP {
            self.fresh(target, instruction.ip(), registers);
            return None;
        }
        let Some(term) = self.computed(instruction) else {
            self.fresh(target, instruction.ip(), registers);
            return None;
        };
        self.0[target] = Some(term);
        let value = term.of.times(term.scale).offset(term.add);
        (term.scale > 1 && registers[target].is_number()).then_some((target, value))
    }

    /// A number that is of no other; whatever was of the one that the same instruction made before is of an older one.
    fn fresh(&mut self, register: usize, at: u64, registers: &[Value; 16]) {
        let others = self.0.iter_mut();
        others
            .filter(|term| term.is_some_and(|term| term.symbol == at))
            .for_each(|term| *term = None);
        self.0[register] = registers[register].is_number().then_some(Term {
            symbol: at,
            of: registers[register],
            scale: 1,
            add: 0,
        });
    }

    /// What an instruction computes out of terms.
    fn computed(&self, instruction: &Instruction) -> Option<Term> {
        use Mnemonic as M;
        let register = |register: Register| self.0[general(register)?];
        let operand = |at: u32| match instruction.op_kind(at) {
            OpKind::Register if instruction.op_register(at).size() >= 4 => {
                register(instruction.op_register(at))
            }
            _ => None,
        };
        let number = |at: u32| {
            let number = instruction.try_immediate(at).ok();
            number.map(|number| number as i64)
        };
        let sum = |sign: i64| match number(1) {
            Some(number) => operand(0)?.offset(number.checked_mul(sign)?),
            None => operand(0)?.plus(operand(1)?, sign),
        };
        match instruction.mnemonic() {
            M::Mov | M::Movsxd => operand(1),
            M::Add => sum(1),
            M::Sub => sum(-1),
            M::Inc => operand(0)?.offset(1),
            M::Dec => operand(0)?.offset(-1),
            M::Shl | M::Sal => operand(0)?.times(1 << number(1).filter(|bits| *bits < 32)?),
            M::Imul if instruction.op_count() == 3 => operand(1)?.times(number(2)?),
            M::Lea => {
                let (base, index) = (instruction.memory_base(), instruction.memory_index());
                let factor = i64::from(instruction.memory_index_scale());
                let sum = match (base, index) {
                    (Register::None, index) => register(index)?.times(factor)?,
                    (base, Register::None) => register(base)?,
                    (base, index) => register(base)?.plus(register(index)?, factor)?,
                };
                sum.offset(instruction.memory_displacement64() as i64)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sites::value::Computed;
    use iced_x86::{Decoder, DecoderOptions};

    /// `n` comes in rdi, something else in rsi; what is told of rax at last.
    #[test]
    fn products() {
        type Row = (&'static [u8], Option<(u32, i64)>);
        let rows: [Row; 6] = [
            // lea rax,[rdi*8]; sub rax,rdi; lea rax,[rax*4+28]
            (
                b"\x48\x8d\x04\xfd\0\0\0\0\x48\x29\xf8\x48\x8d\x04\x85\x1c\0\0\0",
                Some((28, 28)),
            ),
            // lea eax,[rdi*8]; sub eax,edi; shl eax,2
            (b"\x8d\x04\xfd\0\0\0\0\x29\xf8\xc1\xe0\x02", Some((28, 0))),
            // lea rdx,[rdi+rdi*8]; lea rax,[rdi+rdx*2]
            (b"\x48\x8d\x14\xff\x48\x8d\x04\x57", Some((19, 0))),
            // lea rax,[rdi*8]; sub rax,rsi
            (b"\x48\x8d\x04\xfd\0\0\0\0\x48\x29\xf0", None),
            // lea rax,[rdi*8]; mov rdi,[rsi]; sub rax,rdi
            (b"\x48\x8d\x04\xfd\0\0\0\0\x48\x8b\x3e\x48\x29\xf8", None),
            // imul rax,rdi,24; add rax,24
            (b"\x48\x6b\xc7\x18\x48\x83\xc0\x18", Some((24, 24))),
        ];
        for (code, expect) in rows {
            let registers = [Value::Unknown; 16];
            let mut terms = Terms::at_start(&registers);
            let mut last = None;
            let mut info = InstructionInfoFactory::new();
            for instruction in &mut Decoder::with_ip(64, code, 0x1000, DecoderOptions::NONE) {
                last = terms.step(&instruction, &mut info, &registers);
            }
            let expect = expect.map(|(scale, add)| Value::Linear {
                from: 0,
                x: Computed::Somehow,
                scale,
                add,
            });
            assert_eq!(last.map(|(_, value)| value), expect, "{code:x?}");
        }
    }
}
