//! *What lies at an address, and what do loads and stores of it do?*

use super::flow::Interpreter;
use super::pools::Keeps;
use super::state::{State, dwarf, from_dwarf, general};
use super::typing::Pointee;
use super::value::{Value, is_number};
use crate::elf::Callee;
use iced_x86::{Instruction, Mnemonic, Register};
use pointee_model::image::TypeIndex;

/// A memory operand.
#[derive(Clone, Copy)]
pub(super) struct Address {
    pub(super) value: Value,
    /// The base register, if it is a general one.
    pub(super) base: Option<usize>,
    pub(super) displacement: i64,
    pub(super) indexed: bool,
}

impl<'f> Interpreter<'_, 'f> {
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
            // Shifted down before, to be aligned.
            Some(Value::Allocated { origins, .. }) if self.is_carved(origins) && scale > 1 => {
                let bits = Value::Constant(i64::from(scale.trailing_zeros()));
                let aligned = self.align(Mnemonic::Shl, value(index).unwrap_or_default(), bits);
                start.plus(aligned.unwrap_or_default())
            }
            Some(index) => {
                let index = index.times(scale);
                let at = instruction.ip();
                if let Some(block) = self.block_of(start, displacement, index, at) {
                    return Address {
                        value: block,
                        base: None,
                        displacement,
                        indexed: true,
                    };
                }
                self.element_start(start, index).plus(index)
            }
            None => start,
        };
        Address {
            value: sum.offset(displacement),
            base: base.filter(|_| !segmented),
            displacement,
            indexed: index.is_some(),
        }
    }

    /// Where the array begins that an index goes into: compilers add the array's offset in its object to the index.
    fn element_start(&self, start: Value, index: Value) -> Value {
        let Value::Linear { scale, add, .. } = index else {
            return start;
        };
        let lies_in = |target: TypeIndex, offset: i64| {
            let size = self
                .types
                .size(target)
                .and_then(|size| i64::try_from(size).ok());
            size.is_some_and(|size| offset < size)
        };
        let inside = match start {
            _ if scale < 2 || add <= 0 => false,
            Value::Typed { target, offset } => {
                self.types.is_structure(target) && lies_in(target, offset.saturating_add(add))
            }
            Value::Global(address) => self.global_at(address).is_some_and(|(target, offset)| {
                self.types.is_structure(target) && lies_in(target, offset.saturating_add(add))
            }),
            _ => false,
        };
        if inside { start.offset(add) } else { start }
    }

    /// The value of an address, by debug info where the state does not know the base.
    pub(super) fn address_value(&self, address: &Address, at: u64) -> Value {
        match address.value {
            Value::Unknown | Value::Linear { .. } | Value::Parameter { .. }
                if !address.indexed && !self.is_typed_parameter(address.value) =>
            {
                self.variable_target(address, at)
                    .map_or(address.value, |(target, offset)| Value::Typed {
                        target,
                        offset,
                    })
            }
            value => value,
        }
    }

    /// Whether a value is what a parameter holds that is declared to point to something.
    fn is_typed_parameter(&self, value: Value) -> bool {
        let Value::Parameter { index, .. } = value else {
            return false;
        };
        let declared = self.parameters.by_register.get(usize::from(index));
        declared.copied().flatten().is_some_and(|parameter| {
            matches!(self.types.pointee(parameter.r#type), Some(Pointee::Type(_)))
        })
    }

    /// The file that the function stands in.
    fn file(&self) -> Option<u32> {
        self.body.function.and_then(|function| function.file)
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
                // With an index the base is an array of such objects; and so it is where nothing else begins with one.
                Some(size)
                    if size > 0
                        && offset >= size
                        && (address.indexed || self.types.pointee(target).is_some()) =>
                {
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
            Value::Allocated { origins, offset } if is_number(offset) => {
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

    pub(super) fn load(&mut self, address: &Address, state: &State, at: u64) -> Value {
        if let Value::Stack(slot) = address.value
            && !address.indexed
        {
            let value = state.slot(slot);
            if value != Value::Unknown {
                return self.downcast(slot, value, state, at);
            }
        }
        self.note_use(address, 1, false);
        let object = self.object_at(address, state, at);
        if let Some(block) = self.read_cursor(address, object, at) {
            return block;
        }
        if let Some(block) = self.read_kept(address, object) {
            return block;
        }
        let Some((target, offset)) = object else {
            return self.linked(address);
        };
        match self.types.pointees_at(target, offset)[..] {
            [Pointee::Type(target)] => Value::Typed {
                target: self.types.in_file(target, self.file()),
                offset: 0,
            },
            _ => Value::Unknown,
        }
    }

    /// A store of a block where a pointer to no type is kept, in a function that may return what it reads from there.
    fn keep(&mut self, address: &Address, value: Value, state: &State, at: u64) {
        let (true, Some(origins)) = (self.lends, Self::start_of(value)) else {
            return;
        };
        let object = self.object_at(address, state, at);
        let Some((cell, Keeps::Pointer)) = self.cell(address, object) else {
            return;
        };
        let before = self.kept.get(&cell).copied();
        let all = before.map_or(origins, |before| self.origins.union(before, origins));
        self.kept.insert(cell, all);
    }

    /// What a read gives of what the function itself has put there, at some time.
    fn read_kept(&self, address: &Address, object: Option<(TypeIndex, i64)>) -> Option<Value> {
        if self.kept.is_empty() {
            return None;
        }
        let (cell, _) = self.cell(address, object)?;
        let origins = *self.kept.get(&cell)?;
        Some(Value::Allocated { origins, offset: 0 })
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
                Some(Callee::Imported(_)) if self.program.slots.contains_key(&slot) => {
                    Value::Linked(slot)
                }
                _ => Value::Unknown,
            },
            _ => Value::Unknown,
        }
    }

    pub(super) fn store(
        &mut self,
        address: &Address,
        size: usize,
        value: Value,
        state: &mut State,
        at: u64,
    ) {
        if let Value::Stack(slot) = address.value {
            if !address.indexed {
                let whole = size == 8 || (size == 4 && value.is_scalar());
                state.set_slot(slot, size, if whole { value } else { Value::Unknown });
                self.own_slot(slot, value, state, at);
                if size == 8 {
                    self.note_filled(address, value, state, at);
                }
            }
            return;
        }
        if let Value::Stack(slot) = value {
            self.escaped.insert(slot);
        }
        self.note_use(address, size, true);
        if size == 8 {
            self.keep(address, value, state, at);
            self.note_filled(address, value, state, at);
        }
        let is_word = matches!(size, 4 | 8);
        if self.recording
            && is_word
            && !self.write_cursor(address, size, value, state, at)
            && size == 8
        {
            self.note_count(address, value);
            self.observe(|it| it.observe_store(address, value, state, at));
        }
        if is_word {
            self.go_on_counting(address, value, state, at);
        }
    }
}

/// The frame offset a register (DWARF number) holds.
pub(super) fn frame_offset(state: &State, register: u16) -> Option<i64> {
    match state.registers[from_dwarf(register)?] {
        Value::Stack(offset) => Some(offset),
        _ => None,
    }
}
