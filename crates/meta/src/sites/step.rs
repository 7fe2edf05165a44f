//! *What does one instruction do to the state?* — the transfer function, calls excepted.
//!
//! Instructions that matter for pointers and sizes are modelled; of all others it is only known
//! what they write, and that becomes unknown.

use super::flow::Interpreter;
use super::state::{RESULT, SP, State, dwarf, general, vector};
use super::typing::Pointee;
use super::value::{Value, join};
use crate::elf::Callee;
use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind, Register};
use pointee_model::image::TypeIndex;

/// rdx, the upper half of a product.
const UPPER_HALF: usize = 2;

/// A memory operand.
#[derive(Clone, Copy)]
pub(super) struct Address {
    pub(super) value: Value,
    /// The base register, if it is a general one.
    base: Option<usize>,
    displacement: i64,
    indexed: bool,
}

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
                self.write(instruction, 0, state, value);
            }
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
            M::Test | M::Cmp | M::Nop | M::Endbr64 | M::Bt | M::Prefetcht0 | M::Prefetchw => {}
            mnemonic if is_conditional_move(mnemonic) => {
                let (a, b) = (
                    self.read(instruction, 0, state),
                    self.read(instruction, 1, state),
                );
                let types = self.types;
                let joined = join(a, b, &mut self.origins, |at| types.size(at));
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
        self.write(instruction, 0, state, operation(a, b));
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

    /// What an instruction that is not modelled writes is unknown from here on.
    fn forget_written(&mut self, instruction: &Instruction, state: &mut State) {
        let (mut registers, mut memory) = (Vec::new(), Vec::new());
        let is_write = |access: OpAccess| {
            !matches!(
                access,
                OpAccess::None | OpAccess::NoMemAccess | OpAccess::Read | OpAccess::CondRead
            )
        };
        let info = self.info.info(instruction);
        for used in info.used_registers() {
            if is_write(used.access()) {
                registers.push(used.register());
            }
        }
        for used in info.used_memory() {
            if is_write(used.access()) {
                memory.push((
                    used.memory_size().size(),
                    used.base(),
                    used.displacement() as i64,
                ));
            }
        }
        for (size, base, displacement) in memory {
            if let Some(Value::Stack(at)) = general(base).map(|at| state.registers[at]) {
                state.set_slot(at.wrapping_add(displacement), size.max(1), Value::Unknown);
            }
        }
        for register in registers {
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

    /// The memory operand of an instruction.
    pub(super) fn address(&self, instruction: &Instruction, state: &State) -> Address {
        if instruction.is_ip_rel_memory_operand() {
            return Address {
                value: Value::Global(instruction.ip_rel_memory_address()),
                base: None,
                displacement: 0,
                indexed: false,
            };
        }
        let mut base = general(instruction.memory_base());
        let mut index = general(instruction.memory_index());
        let displacement = instruction.memory_displacement64() as i64;
        let value = |register: Option<usize>| register.map(|at| state.registers[at]);
        let scale = i64::from(instruction.memory_index_scale());
        let is_pointer = |value: Option<Value>| {
            value.is_some_and(|value| value != Value::Unknown && !value.is_scalar())
        };
        if scale == 1 && is_pointer(value(index)) && !is_pointer(value(base)) {
            std::mem::swap(&mut base, &mut index);
        }
        let segmented = matches!(instruction.segment_prefix(), Register::FS | Register::GS);
        let start = match value(base) {
            _ if segmented => Value::Unknown,
            Some(value) => value,
            None if instruction.memory_base() == Register::None => Value::Constant(0),
            None => Value::Unknown,
        };
        let sum = match value(index) {
            Some(number) if base == index && start.is_number() => number.times(scale + 1),
            Some(index) => start.plus(index.times(scale)),
            None => start,
        };
        Address {
            value: sum.offset(displacement),
            base: base.filter(|_| !segmented),
            displacement,
            indexed: index.is_some(),
        }
    }

    /// The value of an address, by debug info where the state does not know the base.
    fn address_value(&self, address: &Address, at: u64) -> Value {
        match address.value {
            Value::Unknown | Value::Linear { .. } if !address.indexed => self
                .variable_target(address, at)
                .map_or(address.value, |(target, offset)| Value::Typed {
                    target,
                    offset,
                }),
            value => value,
        }
    }

    fn variable_target(&self, address: &Address, at: u64) -> Option<(TypeIndex, i64)> {
        self.variable_targets(address, at).next()
    }

    /// What the variables in the base register point to.
    fn variable_targets(
        &self,
        address: &Address,
        at: u64,
    ) -> impl Iterator<Item = (TypeIndex, i64)> {
        let register = address.base.map_or(usize::MAX, dwarf);
        let displacement = address.displacement;
        self.places
            .in_register(register, at)
            .filter_map(move |hit| match self.types.pointee(hit.r#type)? {
                // The variable's value is register + offset, so the register is that much before.
                Pointee::Type(target) => Some((target, displacement - hit.offset)),
                Pointee::Void => None,
            })
    }

    /// The object that a variable in the base register points to, if the address lies in it.
    pub(super) fn variable_object(&self, address: &Address, at: u64) -> Option<(TypeIndex, i64)> {
        self.variable_targets(address, at).find(|(target, offset)| {
            let size = self.types.size(*target);
            u64::try_from(*offset).is_ok_and(|offset| size.is_some_and(|size| offset < size))
        })
    }

    /// The object that an address lies in, as far as types tell: its type and the offset in it. A
    /// pointer to a base is also one to what is derived from it, so a type that ends before the
    /// offset gives way to that of another variable in the register.
    pub(super) fn object_at(
        &self,
        address: &Address,
        state: &State,
        at: u64,
    ) -> Option<(TypeIndex, i64)> {
        let fixed = matches!(address.value, Value::Stack(_) | Value::Global(_));
        let variables = self.variable_targets(address, at).filter(|_| !fixed);
        let mut first = None;
        for (target, offset) in self
            .object_of(address.value, state, at)
            .into_iter()
            .chain(variables)
        {
            let size = self
                .types
                .size(target)
                .and_then(|size| i64::try_from(size).ok());
            match size {
                // With an index the base is an array of such objects.
                Some(size) if size > 0 && address.indexed && offset >= size => {
                    return Some((target, offset.rem_euclid(size)));
                }
                Some(size) if offset >= size || offset < 0 => {
                    first = first.or(Some((target, offset)));
                }
                _ => return Some((target, offset)),
            }
        }
        first
    }

    /// The object that a pointer's value points into.
    pub(super) fn object_of(
        &self,
        value: Value,
        state: &State,
        at: u64,
    ) -> Option<(TypeIndex, i64)> {
        match value {
            Value::Typed { target, offset } => Some((target, offset)),
            Value::Parameter { index, offset } => {
                let parameter = self
                    .parameters
                    .by_register
                    .get(usize::from(index))?
                    .as_ref()?;
                match self.types.pointee(parameter.r#type)? {
                    Pointee::Type(target) => Some((target, offset)),
                    Pointee::Void => None,
                }
            }
            Value::Allocated { origins, offset } if super::value::is_number(offset) => {
                let mut hints = self
                    .origins
                    .calls(origins)
                    .iter()
                    .map(|call| self.hints.get(call));
                let first = *hints.next()??;
                hints
                    .all(|hint| hint == Some(&first))
                    .then_some((first, offset))
            }
            Value::Global(address) => self.global_at(address),
            Value::Constant(address) if address > 0x1000 => self.global_at(address as u64),
            Value::Stack(slot) => self
                .places
                .in_slot(slot, at, |register| frame_offset(state, register))
                .first()
                .map(|hit| (hit.r#type, hit.offset)),
            _ => None,
        }
    }

    fn load(&mut self, address: &Address, state: &State, at: u64) -> Value {
        if let Value::Stack(slot) = address.value
            && !address.indexed
        {
            let value = state.slot(slot);
            if value != Value::Unknown {
                return self.downcast(slot, value, state, at);
            }
        }
        let Some((target, offset)) = self.object_at(address, state, at) else {
            return self.linked(address);
        };
        match self.types.pointees_at(target, offset)[..] {
            [Pointee::Type(target)] => Value::Typed { target, offset: 0 },
            _ => Value::Unknown,
        }
    }

    /// A pointer that was put into a variable of a derived type is read as that.
    fn downcast(&self, slot: i64, value: Value, state: &State, at: u64) -> Value {
        if !matches!(value, Value::Typed { .. } | Value::Parameter { .. }) {
            return value;
        }
        let Some((base, 0)) = self.object_of(value, state, at) else {
            return value;
        };
        self.places
            .in_slot(slot, at, |register| frame_offset(state, register))
            .iter()
            .filter(|hit| hit.offset == 0)
            .find_map(|hit| match self.types.pointee(hit.r#type)? {
                Pointee::Type(target) if self.types.size(target) > self.types.size(base) => {
                    Some(Value::Typed { target, offset: 0 })
                }
                _ => None,
            })
            .unwrap_or(value)
    }

    /// What a slot of the linkage table holds; the addresses of other files' globals are not known.
    fn linked(&self, address: &Address) -> Value {
        match address.value {
            Value::Global(slot) if !address.indexed => match self.program.elf.got_target(slot) {
                Some(Callee::Local(address)) => Value::Global(address),
                _ => Value::Unknown,
            },
            _ => Value::Unknown,
        }
    }

    fn store(&mut self, address: &Address, size: usize, value: Value, state: &mut State, at: u64) {
        if let Value::Stack(slot) = address.value {
            if !address.indexed {
                let whole = size == 8 || (size == 4 && value.is_scalar());
                state.set_slot(slot, size, if whole { value } else { Value::Unknown });
                self.own_slot(slot, value, state, at);
            }
            return;
        }
        if let Value::Stack(slot) = value {
            self.escaped.insert(slot);
        }
        if self.recording && size == 8 {
            self.observe_store(address, value, state, at);
        }
    }
}

/// The frame offset a register (DWARF number) holds.
pub(super) fn frame_offset(state: &State, register: u16) -> Option<i64> {
    match state.registers[super::state::from_dwarf(register)?] {
        Value::Stack(offset) => Some(offset),
        _ => None,
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
