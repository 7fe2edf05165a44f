//! *What do calls and returns do, and what do they hand out?*

use super::allocators::Allocator;
use super::calls::Key;
use super::collection;
use super::flow::Interpreter;
use super::handing::handed_back;
use super::memory::frame_offset;
use super::model::{COPY, LENGTH_OF_FIRST, RETURN_FIRST, Size, WRITE_TEXT};
use super::outcome::{Met, Seen};
use super::pointers::pointer_read;
use super::state::{ARGUMENTS, RESULT, State, dwarf, general};
use super::typing::Pointee;
use super::value::{Computed, Value};
use iced_x86::{Instruction, OpKind};
use pointee_model::evidence::Witness;
use pointee_model::image::{TypeIndex, TypeKind};

impl<'f> Interpreter<'_, 'f> {
    /// A call or tail jump. Says whether control comes back.
    pub(super) fn call(
        &mut self,
        instruction: &Instruction,
        state: &mut State,
        tail: bool,
    ) -> bool {
        let at = instruction.ip();
        let listed = self
            .callee_at(at)
            .filter(|key| *key != Key::Indirect)
            .or_else(|| self.callee_in_register(instruction, state));
        let through = if listed.is_none() {
            self.function_type(instruction, state)
        } else {
            None
        };
        let initial = if listed.is_none() {
            self.initial_callee(instruction, state)
        } else {
            None
        };
        let callee = listed.or(initial).or_else(|| {
            through.and_then(|function| self.allocators.of_signature(self.types, function))
        });
        let arguments = ARGUMENTS.map(|register| state.registers[register]);
        for argument in arguments {
            if let Value::Stack(slot) = argument {
                self.escaped.insert(slot);
            }
        }
        if self.recording {
            self.note_handed_away(callee, &arguments);
            self.note_given(callee, &arguments);
            match (listed, through) {
                (Some(callee), _) => {
                    self.observe(|it| it.observe_arguments(callee, &arguments, at));
                }
                (None, Some(function)) => {
                    self.observe(|it| it.observe_through(function, &arguments, at));
                }
                (None, None) => {}
            }
        }
        let allocators = self.allocators;
        let allocator = callee.and_then(|callee| Some((callee, allocators.get(callee)?)));
        if let Some((callee, allocator)) = allocator {
            if self.program.name(callee).starts_with("_Zna") {
                self.counts.arrays.insert(at);
            }
            self.allocate(
                allocator,
                Met {
                    call: at,
                    next: instruction.next_ip(),
                    callee,
                    place: None,
                    tail,
                    indirect: listed.is_none() || instruction.op0_kind() != OpKind::NearBranch64,
                    pointer: self.pointer_called(instruction, state),
                    size: Value::Unknown,
                    unit: None,
                    factors: None,
                    arguments,
                    near: Value::Unknown,
                    front: 0,
                },
                state,
            );
        }
        if callee.is_some_and(|callee| !self.program.returns(callee)) {
            return false;
        }
        let result = match (allocator, callee) {
            (Some((_, allocator)), _) if allocator.returns_it => Value::Allocated {
                origins: self.origins.single(at),
                offset: allocator.offset_of(&arguments),
            },
            (Some(_), _) => Value::Unknown,
            (None, Some(callee)) => self.result_of(callee, &arguments),
            (None, None) => through.map_or(Value::Unknown, |function| {
                self.result_through(function, &arguments)
            }),
        };
        if tail {
            self.stores_block(allocator.map(|(_, it)| it), &arguments, state, at);
            state.registers[RESULT] = result;
            self.returns(state, at);
            return false;
        }
        state.after_call();
        state.registers[RESULT] = result;
        state.forget(&self.escaped);
        self.stores_block(allocator.map(|(_, it)| it), &arguments, state, at);
        true
    }

    /// Without debug info nothing tells what a function does with a block that it is given: it may keep it.
    fn note_handed_away(&mut self, callee: Option<Key>, arguments: &[Value; 6]) {
        if self.body.function.is_some() {
            return;
        }
        let name = callee.map_or("", |callee| self.program.name(callee));
        let only_reads = [COPY, WRITE_TEXT, LENGTH_OF_FIRST, RETURN_FIRST];
        if name == "free" || only_reads.iter().any(|known| known.contains(&name)) {
            return;
        }
        for origins in arguments.iter().filter_map(|value| Self::start_of(*value)) {
            let calls = self.origins.calls(origins);
            self.outcome.stored.extend(calls);
        }
    }

    /// What a call stores through one of its arguments.
    fn stores_block(
        &mut self,
        allocator: Option<&Allocator>,
        arguments: &[Value; 6],
        state: &mut State,
        at: u64,
    ) {
        if let Some(out) = allocator.and_then(|allocator| allocator.out) {
            let block = Value::Allocated {
                origins: self.origins.single(at),
                offset: 0,
            };
            self.store_through(arguments[usize::from(out) % 6], block, state, at);
        }
    }

    /// The function whose address lies in the register that a call or jump goes through.
    pub(super) fn callee_in_register(
        &self,
        instruction: &Instruction,
        state: &State,
    ) -> Option<Key> {
        if instruction.op0_kind() != OpKind::Register {
            return None;
        }
        match state.registers[general(instruction.op0_register())?] {
            Value::Global(address) => self.program.entry(address),
            Value::Linked(slot) => self.program.slots.get(&slot).copied(),
            _ => None,
        }
    }

    /// What a call through a pointer in data leads to when the program starts, if that is an allocation function.
    fn initial_callee(&self, instruction: &Instruction, state: &State) -> Option<Key> {
        if instruction.op0_kind() != OpKind::Memory {
            return None;
        }
        let address = self.address(instruction, state);
        let Value::Global(cell) = address.value else {
            return None;
        };
        let pointers = &self.program.pointers;
        let found = pointers.binary_search_by_key(&cell, |(cell, _)| *cell);
        found
            .ok()
            .filter(|_| !address.indexed)
            .map(|at| pointers[at].1)
    }

    /// What keeps the pointer that a call goes through, by its name.
    fn pointer_called(&self, instruction: &Instruction, state: &State) -> Option<String> {
        /// Instructions between reading a pointer and the call.
        const FARTHEST: usize = 16;
        if !self.recording {
            return None;
        }
        let path = match instruction.op0_kind() {
            OpKind::Memory => {
                let address = self.address(instruction, state);
                match address.value {
                    Value::Global(cell) => self.allocators.global_name(cell),
                    _ => {
                        let (target, offset) = self.object_at(&address, state, instruction.ip())?;
                        self.types.path(target, offset)
                    }
                }
            }
            OpKind::Register => {
                let called = instruction.op0_register();
                let here = self
                    .code
                    .binary_search_by_key(&instruction.ip(), Instruction::ip)
                    .ok()?;
                let mut before = self.code[..here].iter().rev().take(FARTHEST);
                let read = before.find(|before| before.op0_register() == called)?;
                self.allocators.global_name(pointer_read(read)?)
            }
            _ => return None,
        };
        let name = path.rsplit('.').next().unwrap_or_default();
        (!name.is_empty()).then(|| name.to_owned())
    }

    /// What a function gives that only its type is known of: of a number that it makes of the only one it is given, from which it was made.
    fn result_through(&self, function: TypeIndex, arguments: &[Value; 6]) -> Value {
        let Some((result, entry)) = self
            .types
            .get(function)
            .and_then(|entry| Some((entry.target?, entry)))
        else {
            return Value::Unknown;
        };
        let is_number = |at| self.types.is_integer(self.types.strip(at));
        match entry.members.as_slice() {
            [only] if is_number(only.r#type) && is_number(result) => {
                Value::derived(arguments[0].from())
            }
            _ => self.typed_result(result, 0),
        }
    }

    /// The function type that an indirect call goes through.
    pub(super) fn function_type(
        &mut self,
        instruction: &Instruction,
        state: &State,
    ) -> Option<TypeIndex> {
        let value = self.read(instruction, 0, state);
        let object = self.object_of(value, state, instruction.ip()).or_else(|| {
            let register = general(instruction.op0_register())?;
            (instruction.op0_kind() == OpKind::Register)
                .then(|| self.variable_in(register, instruction.ip()))?
        });
        match object? {
            (target, 0) if self.types.get(target)?.kind == TypeKind::Function => Some(target),
            _ => None,
        }
    }

    fn variable_in(&self, register: usize, at: u64) -> Option<(TypeIndex, i64)> {
        self.places
            .in_register(dwarf(register), at)
            .find_map(|hit| match self.types.pointee(hit.r#type)? {
                Pointee::Type(target) => Some((target, -hit.offset)),
                Pointee::Void => None,
            })
    }

    fn allocate(&mut self, allocator: &Allocator, mut met: Met, state: &State) {
        if !self.recording {
            return;
        }
        let argument = |index: u8| met.arguments[usize::from(index) % 6];
        match allocator.size {
            Size::Argument { index, scale, add } => {
                met.size = argument(index).times(i64::from(scale)).offset(add);
            }
            Size::Product(a, b) => {
                let (a, b) = (argument(a), argument(b));
                met.size = a.multiplied(b);
                met.factors = Some((a, b));
                // By convention the unit comes second; where that is variable, the first may be it. One
                // of something says no more than the size.
                met.unit = match (a, b) {
                    (Value::Constant(1), size) | (size, Value::Constant(1))
                        if !matches!(size, Value::Constant(_)) =>
                    {
                        None
                    }
                    (_, Value::Constant(unit)) | (Value::Constant(unit), _) => {
                        u64::try_from(unit).ok()
                    }
                    (
                        _,
                        Value::Linear {
                            scale, add: 0, x, ..
                        },
                    )
                    | (
                        Value::Linear {
                            scale, add: 0, x, ..
                        },
                        _,
                    ) if scale > 1 && x != Computed::Joined => Some(u64::from(scale)),
                    _ => None,
                };
            }
            Size::Derived(mask) if mask.is_power_of_two() => {
                met.near = argument(mask.ilog2() as u8);
                met.size = Value::derived(met.near.from());
            }
            Size::Derived(_) | Size::Unknown => {}
        }
        if allocator.is_erased_collection()
            && let Some(element) = self.element_of(met.arguments[0], state, met.call)
        {
            let seen = Seen::Elements(element);
            self.note(met.call, Witness::Parameter, seen, met.call, "");
        }
        if let Some(unit) = allocator.unit
            && let Value::Constant(bytes) = argument(unit)
        {
            met.unit = met.unit.or(u64::try_from(bytes).ok());
        }
        let older = allocator.old.map(|old| (old, Witness::Reallocated));
        let copied = allocator.copies.map(|of| (of, Witness::Copied));
        for (argument, witness) in older.into_iter().chain(copied) {
            if let Some(target) = self.given(argument, &met, state) {
                let seen = Seen::Types(vec![target]);
                self.note(met.call, witness, seen, met.call, "");
            }
        }
        self.outcome.met.push(met);
    }

    /// What an argument points to the start of; of an array, its elements.
    fn given(&self, argument: u8, met: &Met, state: &State) -> Option<TypeIndex> {
        let at = usize::from(argument) % 6;
        let value = met.arguments[at];
        let named = || match value {
            Value::Unknown | Value::Linear { .. } | Value::Parameter { .. } => (self.terms)
                .same_as(ARGUMENTS[at])
                .find_map(|register| self.variable_in(register, met.call)),
            _ => None,
        };
        let (target, 0) = self.object_of(value, state, met.call).or_else(named)? else {
            return None;
        };
        Some(self.types.element(target).unwrap_or(target))
    }

    /// What a collection holds, given a pointer to its untyped part.
    fn element_of(&self, collection: Value, state: &State, at: u64) -> Option<TypeIndex> {
        let objects = match collection {
            // Variables share slots.
            Value::Stack(slot) => self
                .places
                .in_slot(slot, at, |register| frame_offset(state, register)),
            _ => {
                let (object, offset) = self.object_of(collection, state, at)?;
                return collection::element(self.types, object, offset);
            }
        };
        let mut held = objects
            .iter()
            .filter_map(|hit| collection::element(self.types, hit.r#type, hit.offset));
        let first = held.next()?;
        held.all(|other| other == first).then_some(first)
    }

    fn result_of(&mut self, callee: Key, arguments: &[Value; 6]) -> Value {
        let name = self.program.name(callee);
        if RETURN_FIRST.contains(&name) {
            return arguments[0];
        }
        if LENGTH_OF_FIRST.contains(&name) {
            return Value::derived(arguments[0].from());
        }
        let Some(body) = self.program.body(callee) else {
            return Value::Unknown;
        };
        if let Some(same) = self.allocators.returned_argument(self.program, callee) {
            let value = arguments[usize::from(same) % 6];
            if matches!(value, Value::Allocated { .. }) {
                return value;
            }
        }
        let from = arguments.iter().fold(0, |mask, value| mask | value.from());
        match body.function.and_then(|function| function.result) {
            Some(result) => self.typed_result(result, from),
            None => Value::Unknown,
        }
    }

    fn typed_result(&self, result: TypeIndex, from: u8) -> Value {
        match self.types.pointee(result) {
            Some(Pointee::Type(target)) => Value::Typed { target, offset: 0 },
            Some(Pointee::Void) => Value::Unknown,
            None => Value::derived(from),
        }
    }

    fn store_through(&mut self, pointer: Value, block: Value, state: &mut State, at: u64) {
        if let Value::Stack(slot) = pointer {
            state.set_slot(slot, 8, block);
            self.own_slot(slot, block, state, at);
            return;
        }
        if let (Value::Parameter { index, offset: 0 }, Some(origins)) =
            (pointer, Self::start_of(block))
            && self.recording
        {
            let calls = self.origins.calls(origins).iter();
            let handed = calls.map(|call| (*call, index));
            self.outcome.handed.extend(handed);
        }
        let (Some((target, offset)), Some(origins)) =
            (self.object_of(pointer, state, at), Self::start_of(block))
        else {
            return;
        };
        if self.recording {
            let pointees = self.types.pointees_at(target, offset);
            let witness = match pointer {
                Value::Global(_) => Witness::Global,
                _ => Witness::Field,
            };
            let what = self.types.path(target, offset);
            self.note_each(origins, witness, &pointees, at, &what);
        }
    }

    /// A return, or the tail jump that is one.
    pub(super) fn returns(&mut self, state: &State, at: u64) {
        let Value::Allocated { origins, offset } = state.registers[RESULT] else {
            return;
        };
        if !self.recording {
            return;
        }
        let result = match self.body.function {
            // Without debug info nothing says that there is no result.
            None => None,
            Some(function) => {
                let Some(pointee) = handed_back(self.types, function) else {
                    return;
                };
                Some(pointee)
            }
        };
        for call in self.origins.calls(origins).to_vec() {
            self.outcome.returned.push((call, offset));
        }
        if let Some(pointee) = result {
            let what = self.body.name.to_owned();
            self.observe(|it| {
                if offset == it.counts.front {
                    it.note_each(origins, Witness::Result, &[pointee], at, &what);
                }
            });
        }
    }

    /// The global that `address` lies in.
    pub(super) fn global_at(&self, address: u64) -> Option<(TypeIndex, i64)> {
        self.allocators.global_at(address)
    }
}
