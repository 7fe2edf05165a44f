//! *What do calls do, and what do stores, variables and returns show of an allocation?*

use super::allocators::Allocator;
use super::calls::Key;
use super::cpp::is_constructor;
use super::flow::{Interpreter, Met, Observation, Seen};
use super::memory::{Address, frame_offset};
use super::model::{LENGTH_OF_FIRST, RETURN_FIRST, Size, WRITE_TEXT};
use super::parameters::{in_registers, parameters};
use super::state::{ARGUMENTS, RESULT, State, dwarf};
use super::typing::Pointee;
use super::value::{Computed, OriginSet, Value};
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
        let listed = self.callee_at(at).filter(|key| *key != Key::Indirect);
        let through = if listed.is_none() {
            self.function_type(instruction, state)
        } else {
            None
        };
        let callee = listed.or_else(|| {
            through.and_then(|function| self.allocators.of_signature(self.types, function))
        });
        let arguments = ARGUMENTS.map(|register| state.registers[register]);
        for argument in arguments {
            if let Value::Stack(slot) = argument {
                self.escaped.insert(slot);
            }
        }
        if self.recording {
            match (listed, through) {
                (Some(callee), _) => self.observe_arguments(callee, &arguments, at),
                (None, Some(function)) => self.observe_through(function, &arguments, at),
                (None, None) => {}
            }
        }
        let allocators = self.allocators;
        let allocator = callee.and_then(|callee| Some((callee, allocators.get(callee)?)));
        if let Some((callee, allocator)) = allocator {
            self.allocate(
                allocator,
                Met {
                    call: at,
                    next: instruction.next_ip(),
                    callee,
                    place: None,
                    tail,
                    indirect: listed.is_none() || instruction.op0_kind() != OpKind::NearBranch64,
                    size: Value::Unknown,
                    unit: None,
                    factors: None,
                    arguments,
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
            (None, None) => through
                .and_then(|function| self.types.get(function)?.target)
                .map_or(Value::Unknown, |result| self.typed_result(result, 0)),
        };
        if tail {
            state.registers[RESULT] = result;
            self.returns(state, at);
            return false;
        }
        state.after_call();
        state.registers[RESULT] = result;
        for slot in &self.escaped {
            if !matches!(state.slot(*slot), Value::Allocated { .. }) {
                state.set_slot(*slot, 8, Value::Unknown);
            }
        }
        if let Some((_, allocator)) = allocator
            && let Some(out) = allocator.out
        {
            let block = Value::Allocated {
                origins: self.origins.single(at),
                offset: 0,
            };
            self.store_through(arguments[usize::from(out) % 6], block, state, at);
        }
        true
    }

    /// The function type that an indirect call goes through.
    pub(super) fn function_type(
        &mut self,
        instruction: &Instruction,
        state: &State,
    ) -> Option<TypeIndex> {
        let value = self.read(instruction, 0, state);
        let object = self.object_of(value, state, instruction.ip()).or_else(|| {
            let register = super::state::general(instruction.op0_register())?;
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
            Size::Derived(_) | Size::Unknown => {}
        }
        if let Some(old) = allocator.old {
            let register = ARGUMENTS[usize::from(old) % 6];
            let value = met.arguments[usize::from(old) % 6];
            let target = self
                .object_of(value, state, met.call)
                .or_else(|| match value {
                    Value::Unknown | Value::Linear { .. } | Value::Parameter { .. } => {
                        self.variable_in(register, met.call)
                    }
                    _ => None,
                });
            let seen = match target {
                Some((target, 0)) => Some(Seen::Types(vec![target])),
                _ => None,
            };
            if let Some(seen) = seen {
                self.note(met.call, Witness::Reallocated, seen, met.call, "");
            }
        }
        self.outcome.met.push(met);
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

    fn observe_arguments(&mut self, callee: Key, arguments: &[Value; 6], at: u64) {
        if !arguments
            .iter()
            .any(|value| Self::start_of(*value).is_some())
        {
            return;
        }
        let program = self.program;
        let Some(body) = program.body(callee) else {
            let name = program.name(callee);
            if let (Some(origins), Some(text)) = (Self::start_of(arguments[0]), self.types.text())
                && WRITE_TEXT.contains(&name)
            {
                let text = [Pointee::Type(text)];
                self.note_each(origins, Witness::Parameter, &text, at, name);
            }
            return;
        };
        let known = parameters(body, self.types);
        for (value, parameter) in arguments.iter().zip(known.by_register) {
            if let (Some(origins), Some(parameter)) = (Self::start_of(*value), parameter)
                && let Some(pointee) = self.types.pointee(parameter.r#type)
            {
                let witness = if parameter.name == "this" && is_constructor(body.name) {
                    Witness::Constructor
                } else {
                    Witness::Parameter
                };
                let what = format!("{}({})", body.name, parameter.name);
                self.note_each(origins, witness, &[pointee], at, &what);
            }
        }
    }

    /// The arguments of a call through a pointer to a function of known type.
    fn observe_through(&mut self, function: TypeIndex, arguments: &[Value; 6], at: u64) {
        let Some(entry) = self.types.get(function) else {
            return;
        };
        let declared = entry.members.iter().map(|member| member.r#type);
        let by_register = in_registers(declared, entry.target, self.types);
        for (value, parameter) in arguments.iter().zip(by_register) {
            if let (Some(origins), Some(parameter)) = (Self::start_of(*value), parameter)
                && let Some(pointee) = self.types.pointee(parameter)
            {
                self.note_each(origins, Witness::Parameter, &[pointee], at, "");
            }
        }
    }

    /// The variables that hold the start of a block before the instruction at `at`.
    pub(super) fn observe_variables(&mut self, state: &State, at: u64) {
        for (register, value) in state.registers.iter().enumerate() {
            if let Value::Allocated { origins, offset } = *value {
                let hits: Vec<_> = self
                    .places
                    .in_register(dwarf(register), at)
                    .filter(|hit| offset.wrapping_add(hit.offset) == 0)
                    .collect();
                for hit in hits {
                    self.observe_variable(origins, &hit, 0, at);
                }
            }
        }
        for (slot, value) in state.slots() {
            if let Some(origins) = Self::start_of(*value) {
                let hits = self
                    .places
                    .in_slot(*slot, at, |register| frame_offset(state, register));
                for hit in hits {
                    if self.may_own(*slot, origins, hit.index) {
                        self.observe_variable(origins, &hit, hit.offset, at);
                    }
                }
            }
        }
    }

    /// Notes which variables lie in a slot that an allocation is put into.
    pub(super) fn own_slot(&mut self, slot: i64, value: Value, state: &State, at: u64) {
        let Some(origins) = Self::start_of(value) else {
            return;
        };
        let hits = self
            .places
            .in_slot(slot, at, |register| frame_offset(state, register));
        for call in self.origins.calls(origins) {
            let owners = self.owners.entry((slot, *call)).or_default();
            for hit in &hits {
                if !owners.contains(&hit.index) {
                    owners.push(hit.index);
                }
            }
        }
    }

    /// Whether a variable that lies in a slot may be what an allocation in it was put into.
    fn may_own(&self, slot: i64, origins: OriginSet, variable: u32) -> bool {
        self.origins.calls(origins).iter().all(|call| {
            let owners = self.owners.get(&(slot, *call));
            owners.is_none_or(|owners| owners.is_empty() || owners.contains(&variable))
        })
    }

    fn observe_variable(
        &mut self,
        origins: OriginSet,
        hit: &super::places::Hit<'f>,
        offset: i64,
        at: u64,
    ) {
        let fresh = self
            .origins
            .calls(origins)
            .iter()
            .any(|call| !self.seen.contains(&(*call, hit.index)));
        if !fresh {
            return;
        }
        for call in self.origins.calls(origins) {
            self.seen.insert((*call, hit.index));
        }
        let inlined = hit.variable.inline.and_then(|inline| {
            let function = self.body.function?;
            function.inlines.get(inline as usize)
        });
        let owner = inlined.map_or(self.body.name, |inline| inline.name.as_str());
        let witness = if hit.variable.name == "this" && is_constructor(owner) {
            Witness::Constructor
        } else {
            Witness::Variable
        };
        let pointees = self.types.pointees_at(hit.r#type, offset);
        let what = match inlined {
            Some(inline) => format!("{}: {}", inline.name, hit.variable.name),
            None => hit.variable.name.clone(),
        };
        self.note_each(origins, witness, &pointees, at, &what);
    }

    /// A store of eight bytes somewhere but to the stack.
    pub(super) fn observe_store(&mut self, to: &Address, value: Value, state: &State, at: u64) {
        let Some(origins) = Self::start_of(value) else {
            return;
        };
        if let Value::Parameter { index, offset: 0 } = to.value {
            let calls = self.origins.calls(origins);
            self.outcome
                .handed
                .extend(calls.iter().map(|call| (*call, index)));
        }
        if let Value::Allocated {
            origins: holders,
            offset,
        } = to.value
        {
            let calls = self.origins.calls(origins).to_vec();
            for holder in self.origins.calls(holders).to_vec() {
                for call in &calls {
                    let seen = Seen::Into {
                        call: holder,
                        offset,
                    };
                    self.note(*call, Witness::Field, seen, at, "");
                }
            }
            // What a variable says of the other block does not wait for that block's type.
            if let Some((target, offset)) = self.variable_object(to, at) {
                let pointees = self.types.pointees_at(target, offset);
                let what = self.types.path(target, offset);
                self.note_each(origins, Witness::Field, &pointees, at, &what);
            }
            return;
        }
        let witness = match to.value {
            Value::Global(_) => Witness::Global,
            _ => Witness::Field,
        };
        if let Some((target, offset)) = self.object_at(to, state, at) {
            let pointees = self.types.pointees_at(target, offset);
            let what = match to.value {
                Value::Global(address) => self.allocators.global_name(address),
                _ => self.types.path(target, offset),
            };
            self.note_each(origins, witness, &pointees, at, &what);
        }
    }

    fn store_through(&mut self, pointer: Value, block: Value, state: &mut State, at: u64) {
        if let Value::Stack(slot) = pointer {
            state.set_slot(slot, 8, block);
            self.own_slot(slot, block, state, at);
            return;
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
                let Some(pointee) = function.result.and_then(|at| self.types.pointee(at)) else {
                    return;
                };
                Some(pointee)
            }
        };
        for call in self.origins.calls(origins).to_vec() {
            self.outcome.returned.push((call, offset));
        }
        if let (Some(pointee), 0) = (result, offset) {
            let what = self.body.name.to_owned();
            self.note_each(origins, Witness::Result, &[pointee], at, &what);
        }
    }

    fn note_each(
        &mut self,
        origins: OriginSet,
        witness: Witness,
        pointees: &[Pointee],
        at: u64,
        what: &str,
    ) {
        let types: Vec<TypeIndex> = pointees
            .iter()
            .filter_map(|pointee| match pointee {
                Pointee::Type(index) => Some(*index),
                Pointee::Void => None,
            })
            .collect();
        let seen = match (types.is_empty(), pointees.is_empty()) {
            (false, _) => Seen::Types(types),
            (true, false) => Seen::Void,
            (true, true) => return,
        };
        for call in self.origins.calls(origins).to_vec() {
            self.note(call, witness, seen.clone(), at, what);
        }
    }

    pub(super) fn note(
        &mut self,
        call: u64,
        witness: Witness,
        seen: Seen,
        address: u64,
        what: &str,
    ) {
        self.outcome.observations.push(Observation {
            call,
            witness,
            seen,
            address,
            what: what.to_owned(),
        });
    }

    /// The global that `address` lies in.
    pub(super) fn global_at(&self, address: u64) -> Option<(TypeIndex, i64)> {
        self.allocators.global_at(address)
    }
}
