//! *What does one instruction do to the state?* — the transfer function, calls excepted.
//!
//! Instructions that matter for pointers and sizes are modelled; of all others it is only known
//! what they write, and that becomes unknown.

use super::flow::Interpreter;
use super::join::join;
use super::memory::Address;
use super::state::{ARGUMENTS, RESULT, SP, State, general, vector};
use super::value::Value;
use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind};

/// rdx, the upper half of a product.
const UPPER_HALF: usize = 2;

impl<'f> Interpreter<'_, 'f> {
    pub(super) fn step(&mut self, instruction: &Instruction, state: &mut State) {
        use Mnemonic as M;
        match instruction.mnemonic() {
            M::Mov => self.copy(instruction, state),
            M::Movsxd | M::Movsx | M::Movzx => {
                let value = self.read(instruction, 1, state);
                let kept = if value.is_scalar() {
                    value
                } else {
                    Value::Unknown
                };
                self.write(instruction, 0, state, kept);
            }
            M::Cdqe => {
                let value = state.registers[0];
                state.registers[0] = if value.is_scalar() {
                    value
                } else {
                    Value::Unknown
                };
            }
            M::Lea => {
                let address = self.address(instruction, state);
                let value = self.address_value(&address, instruction.ip());
                let part = |register| general(register).map(|at| state.registers[at]);
                let parts = (
                    part(instruction.memory_base()),
                    part(instruction.memory_index()),
                );
                let mut value = value;
                if let (Some(base), Some(index)) = parts {
                    self.note_step(base, index, false);
                    let index = index.times(i64::from(instruction.memory_index_scale()));
                    let distance = instruction.memory_displacement64() as i64;
                    let sum = self.counted_sum(base, index, distance, instruction.ip());
                    value = sum.unwrap_or(value);
                }
                self.write(instruction, 0, state, value);
            }
            M::Sub if self.make_room(instruction, state) => {}
            M::Xor | M::Sub if same_register(instruction) => {
                self.write(instruction, 0, state, Value::Constant(0));
            }
            // n + n has a step that the sum of two unknown numbers has not.
            M::Add if same_register(instruction) => {
                let twice = self.read(instruction, 0, state).times(2);
                self.write(instruction, 0, state, twice);
            }
            M::Add => self.arithmetic(instruction, state, Value::plus),
            M::Sub => self.arithmetic(instruction, state, Value::minus),
            M::Shl | M::Sal => self.arithmetic(instruction, state, |value, by| match by {
                Value::Constant(bits @ 0..=31) => value.times(1 << bits),
                _ => Value::derived(value.from() | by.from()),
            }),
            M::And | M::Or | M::Shr | M::Sar => {
                let aligns_stack = instruction.op_count() == 2
                    && instruction.op0_kind() == OpKind::Register
                    && general(instruction.op0_register()) == Some(SP);
                if !aligns_stack {
                    let rounds = instruction.mnemonic() == M::And;
                    let operation = if rounds { Value::masked } else { bitwise };
                    self.arithmetic(instruction, state, operation);
                }
            }
            M::Inc => self.adjust(instruction, state, 1),
            M::Dec => self.adjust(instruction, state, -1),
            M::Imul if instruction.op_count() > 1 => self.multiply(instruction, state),
            // The upper half says whether the product fits.
            M::Imul | M::Mul if instruction.op0_register().size() == 8 => {
                let by = self.read(instruction, 0, state);
                state.registers[RESULT] = state.registers[RESULT].multiplied(by);
                state.registers[UPPER_HALF] = Value::Unknown;
            }
            M::Push => self.push(instruction, state),
            M::Pop => self.pop(instruction, state),
            M::Leave => {
                let frame = state.registers[5];
                state.registers[SP] = frame.offset(8);
                state.registers[5] = match frame {
                    Value::Stack(at) => state.slot(at),
                    _ => Value::Unknown,
                };
            }
            M::Xchg if registers_only(instruction) => {
                let (a, b) = (
                    self.read(instruction, 0, state),
                    self.read(instruction, 1, state),
                );
                self.write(instruction, 0, state, b);
                self.write(instruction, 1, state, a);
            }
            M::Cmp => self.note_limit(instruction, state),
            M::Test | M::Nop | M::Endbr64 | M::Bt | M::Prefetcht0 | M::Prefetchw => {}
            mnemonic if is_conditional_move(mnemonic) => {
                let (a, b) = (
                    self.read(instruction, 0, state),
                    self.read(instruction, 1, state),
                );
                let known = self.known();
                let joined = join(a, b, &mut self.origins, &known);
                self.write(instruction, 0, state, joined);
            }
            _ => {
                if !self.vector_step(instruction, state) {
                    self.forget_written(instruction, state);
                }
            }
        }
    }

    fn copy(&mut self, instruction: &Instruction, state: &mut State) {
        let value = self.read(instruction, 1, state);
        if general(instruction.op0_register()) == Some(SP) {
            self.set_stack(value);
        }
        self.write(instruction, 0, state, value);
    }

    fn arithmetic(
        &mut self,
        instruction: &Instruction,
        state: &mut State,
        operation: impl Fn(Value, Value) -> Value,
    ) {
        let a = self.read(instruction, 0, state);
        let b = self.read(instruction, 1, state);
        let mnemonic = instruction.mnemonic();
        if matches!(mnemonic, Mnemonic::Add | Mnemonic::Sub) {
            self.note_step(a, b, mnemonic == Mnemonic::Sub);
        }
        let value = match mnemonic {
            Mnemonic::Add => self.counted_sum(a, b, 0, instruction.ip()),
            Mnemonic::Sub => {
                self.note_difference(a, b);
                None
            }
            _ => self.align(mnemonic, a, b),
        };
        self.write(
            instruction,
            0,
            state,
            value.unwrap_or_else(|| operation(a, b)),
        );
    }

    fn adjust(&mut self, instruction: &Instruction, state: &mut State, by: i64) {
        let value = self.read(instruction, 0, state).offset(by);
        self.write(instruction, 0, state, value);
    }

    fn multiply(&mut self, instruction: &Instruction, state: &mut State) {
        let first = instruction.op_count() - 2;
        let a = self.read(instruction, first, state);
        let b = self.read(instruction, first + 1, state);
        self.write(instruction, 0, state, a.multiplied(b));
    }

    fn push(&mut self, instruction: &Instruction, state: &mut State) {
        let value = self.read(instruction, 0, state);
        let stack = state.registers[SP].offset(-8);
        state.registers[SP] = stack;
        if let Value::Stack(at) = stack {
            state.set_slot(at, 8, value);
        }
    }

    fn pop(&mut self, instruction: &Instruction, state: &mut State) {
        let stack = state.registers[SP];
        let value = match stack {
            Value::Stack(at) => state.slot(at),
            _ => Value::Unknown,
        };
        state.registers[SP] = stack.offset(8);
        self.write(instruction, 0, state, value);
    }

    /// Moves between general and vector registers and memory, by which pointers travel in pairs.
    /// Says whether the instruction was one of them.
    fn vector_step(&mut self, instruction: &Instruction, state: &mut State) -> bool {
        use Mnemonic as M;
        let to_vector = vector(instruction.op0_register())
            .filter(|_| instruction.op0_kind() == OpKind::Register);
        let from_vector = vector(instruction.op1_register())
            .filter(|_| instruction.op1_kind() == OpKind::Register);
        match (instruction.mnemonic(), to_vector, from_vector) {
            (M::Movq | M::Vmovq, Some(to), from) => {
                let low = match from {
                    Some(from) => state.vector(from)[0],
                    None => self.read(instruction, 1, state),
                };
                state.set_vector(to, [low, Value::Constant(0)]);
            }
            (M::Movq | M::Vmovq, None, Some(from)) => {
                let low = state.vector(from)[0];
                self.write(instruction, 0, state, low);
            }
            (M::Movhps | M::Movhpd, Some(to), None) => {
                let high = self.read(instruction, 1, state);
                state.set_vector(to, [state.vector(to)[0], high]);
            }
            (M::Movhps | M::Movhpd, None, Some(from)) => {
                let high = state.vector(from)[1];
                self.write(instruction, 0, state, high);
            }
            (M::Movlps | M::Movlpd, None, Some(from)) => {
                let low = state.vector(from)[0];
                self.write(instruction, 0, state, low);
            }
            (M::Pinsrq, Some(to), None) => {
                let value = self.read(instruction, 1, state);
                let mut pair = state.vector(to);
                pair[usize::from(instruction.immediate8() & 1)] = value;
                state.set_vector(to, pair);
            }
            (M::Punpcklqdq | M::Unpcklpd | M::Movlhps, Some(to), Some(from)) => {
                state.set_vector(to, [state.vector(to)[0], state.vector(from)[0]]);
            }
            (M::Vpunpcklqdq | M::Vunpcklpd, Some(to), Some(a)) => {
                let high = vector(instruction.op2_register());
                let pair = high.map_or([Value::Unknown; 2], |b| {
                    [state.vector(a)[0], state.vector(b)[0]]
                });
                state.set_vector(to, pair);
            }
            (M::Vpinsrq, Some(to), Some(from)) => {
                let value = self.read(instruction, 2, state);
                let mut pair = state.vector(from);
                pair[usize::from(instruction.immediate8() & 1)] = value;
                state.set_vector(to, pair);
            }
            (mnemonic, Some(to), from) if is_whole_vector_move(mnemonic) => {
                let pair = match from {
                    Some(from) => state.vector(from),
                    None => self.read_pair(instruction, state),
                };
                state.set_vector(to, pair);
            }
            (mnemonic, None, Some(from))
                if is_whole_vector_move(mnemonic) && instruction.op1_register().is_xmm() =>
            {
                let [low, high] = state.vector(from);
                let address = self.address(instruction, state);
                self.store(&address, 8, low, state, instruction.ip());
                let above = Address {
                    value: address.value.offset(8),
                    displacement: address.displacement.wrapping_add(8),
                    ..address
                };
                self.store(&above, 8, high, state, instruction.ip());
            }
            (M::Pxor | M::Xorps | M::Vpxor, Some(to), Some(from)) if to == from => {
                state.set_vector(to, [Value::Constant(0); 2]);
            }
            _ => return false,
        }
        true
    }

    fn read_pair(&mut self, instruction: &Instruction, state: &State) -> [Value; 2] {
        if instruction.op1_kind() != OpKind::Memory || !instruction.op0_register().is_xmm() {
            return [Value::Unknown; 2];
        }
        let low = self.address(instruction, state);
        let high = Address {
            value: low.value.offset(8),
            displacement: low.displacement.wrapping_add(8),
            ..low
        };
        [
            self.load(&low, state, instruction.ip()),
            self.load(&high, state, instruction.ip()),
        ]
    }

    /// What a string instruction or a long vector is written to.
    fn note_filled_block(&mut self, instruction: &Instruction, state: &State) {
        let to = match instruction.op0_kind() {
            OpKind::MemoryESRDI => Some(Address {
                value: state.registers[ARGUMENTS[0]],
                base: None,
                displacement: 0,
                indexed: false,
            }),
            OpKind::Memory => Some(self.address(instruction, state)),
            _ => None,
        };
        if let Some(to) = to {
            self.note_use(&to, usize::MAX, true);
        }
    }

    /// What an instruction that is not modelled writes is unknown from here on.
    fn forget_written(&mut self, instruction: &Instruction, state: &mut State) {
        let is_write = |access: OpAccess| {
            !matches!(
                access,
                OpAccess::None | OpAccess::NoMemAccess | OpAccess::Read | OpAccess::CondRead
            )
        };
        if instruction.has_rep_prefix() || vector(instruction.op1_register()).is_some() {
            self.note_filled_block(instruction, state);
        }
        let info = self.info.info(instruction);
        // Where it writes is told by what the registers held before it.
        for used in info
            .used_memory()
            .iter()
            .filter(|used| is_write(used.access()))
        {
            if let Some(Value::Stack(at)) = general(used.base()).map(|at| state.registers[at]) {
                let slot = at.wrapping_add(used.displacement() as i64);
                state.set_slot(slot, used.memory_size().size().max(1), Value::Unknown);
            }
        }
        for used in info
            .used_registers()
            .iter()
            .filter(|used| is_write(used.access()))
        {
            let register = used.register();
            if let Some(number) = general(register) {
                if number != SP {
                    state.registers[number] = Value::Unknown;
                }
            } else if let Some(number) = vector(register) {
                state.set_vector(number, [Value::Unknown; 2]);
            }
        }
    }

    /// The value of an operand.
    pub(super) fn read(&mut self, instruction: &Instruction, operand: u32, state: &State) -> Value {
        match instruction.op_kind(operand) {
            OpKind::Register => {
                let register = instruction.op_register(operand);
                let Some(number) = general(register) else {
                    return Value::Unknown;
                };
                let value = state.registers[number];
                match register.size() {
                    8 => value,
                    4 => value.truncated(),
                    _ if value.is_scalar() => value,
                    _ => Value::Unknown,
                }
            }
            OpKind::Memory => {
                let size = instruction.memory_size().size();
                let address = self.address(instruction, state);
                match size {
                    8 => self.load(&address, state, instruction.ip()),
                    4 => self.load(&address, state, instruction.ip()).truncated(),
                    _ => Value::Unknown,
                }
            }
            OpKind::NearBranch64 => Value::Global(instruction.near_branch_target()),
            _ => instruction
                .try_immediate(operand)
                .map_or(Value::Unknown, |number| Value::Constant(number as i64)),
        }
    }

    fn write(&mut self, instruction: &Instruction, operand: u32, state: &mut State, value: Value) {
        match instruction.op_kind(operand) {
            OpKind::Register => {
                let register = instruction.op_register(operand);
                let Some(number) = general(register) else {
                    if let Some(number) = vector(register) {
                        state.set_vector(number, [Value::Unknown; 2]);
                    }
                    return;
                };
                state.registers[number] = match register.size() {
                    8 => value,
                    4 => value.truncated(),
                    _ => Value::Unknown,
                };
            }
            OpKind::Memory => {
                let size = instruction.memory_size().size();
                let address = self.address(instruction, state);
                self.store(&address, size, value, state, instruction.ip());
            }
            _ => {}
        }
    }
}

fn bitwise(a: Value, b: Value) -> Value {
    Value::derived(a.from() | b.from())
}

fn same_register(instruction: &Instruction) -> bool {
    registers_only(instruction) && instruction.op0_register() == instruction.op1_register()
}

fn registers_only(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Register && instruction.op1_kind() == OpKind::Register
}

fn is_conditional_move(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Cmova
            | M::Cmovae
            | M::Cmovb
            | M::Cmovbe
            | M::Cmove
            | M::Cmovg
            | M::Cmovge
            | M::Cmovl
            | M::Cmovle
            | M::Cmovne
            | M::Cmovno
            | M::Cmovnp
            | M::Cmovns
            | M::Cmovo
            | M::Cmovp
            | M::Cmovs
    )
}

fn is_whole_vector_move(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Movaps
            | M::Movups
            | M::Movapd
            | M::Movupd
            | M::Movdqa
            | M::Movdqu
            | M::Vmovaps
            | M::Vmovups
            | M::Vmovdqa
            | M::Vmovdqu
    )
}
