//! *What do arguments, variables and stores show of an allocation?*

use super::calls::{Key, contains};
use super::cpp::is_constructor;
use super::filled::is_returned;
use super::flow::Interpreter;
use super::memory::{Address, frame_offset};
use super::model::{COPY, WRITE_TEXT};
use super::outcome::{Doubt, Observation, Seen};
use super::parameters::{in_registers, parameters};
use super::state::{State, dwarf};
use super::typing::Pointee;
use super::value::{OriginSet, Value};
use pointee_model::evidence::Witness;
use pointee_model::image::TypeIndex;

impl<'f> Interpreter<'_, 'f> {
    pub(super) fn observe_arguments(&mut self, callee: Key, arguments: &[Value; 6], at: u64) {
        if !arguments.iter().any(|value| self.shown(*value).is_some()) {
            return;
        }
        let program = self.program;
        let Some(body) = program.body(callee) else {
            let name = program.name(callee);
            let Some(origins) = self.shown(arguments[0]).filter(|_| self.counts.front == 0) else {
                return;
            };
            if let Some(text) = self.types.text()
                && WRITE_TEXT.contains(&name)
            {
                let text = [Pointee::Type(text)];
                self.note_each(origins, Witness::Parameter, &text, at, name);
            }
            if COPY.contains(&name) {
                let calls = self.origins.calls(origins);
                let copies = calls.iter().map(|call| (*call, arguments[1]));
                self.outcome.copies.extend(copies);
            }
            return;
        };
        let known = parameters(body, self.types);
        for (value, parameter) in arguments.iter().zip(known.by_register) {
            if let (Some(origins), Some(parameter)) = (self.shown(*value), parameter)
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
    pub(super) fn observe_through(&mut self, function: TypeIndex, arguments: &[Value; 6], at: u64) {
        let Some(entry) = self.types.get(function) else {
            return;
        };
        let declared = entry.members.iter().map(|member| member.r#type);
        let by_register = in_registers(declared, entry.target, self.types);
        for (value, parameter) in arguments.iter().zip(by_register) {
            if let (Some(origins), Some(parameter)) = (self.shown(*value), parameter)
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
                let hits: Vec<_> = self.places.in_register(dwarf(register), at).collect();
                for hit in hits {
                    let offset = offset.wrapping_add(hit.offset);
                    if self.makes_records && self.counts.front == 0 {
                        self.note_own(origins, offset, &hit);
                    }
                    if offset == self.counts.front {
                        self.observe_variable(origins, &hit, 0, at);
                    }
                }
            }
        }
        for (slot, value) in state.slots() {
            if let Some(origins) = self.shown(*value) {
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

    /// Notes what a variable points to of the function, perhaps inlined, that made the block.
    fn note_own(&mut self, origins: OriginSet, offset: i64, hit: &super::places::Hit<'f>) {
        let [Pointee::Type(target)] = self.types.pointees_at(hit.r#type, 0)[..] else {
            return;
        };
        let inlines = self.body.function.map_or(&[][..], |body| &body.inlines);
        let within = hit.variable.inline.map(|at| inlines.get(at as usize));
        for call in self.origins.calls(origins) {
            let is_own = match within {
                None => true,
                Some(scope) => scope.is_some_and(|scope| contains(&scope.ranges, *call)),
            };
            if is_own {
                self.outcome.own.insert((*call, offset, target));
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
        let doubt = match self.is_left_over(hit, at) {
            true => Doubt::Stale,
            false => self.doubt(origins),
        };
        let fresh = self
            .origins
            .calls(origins)
            .iter()
            .any(|call| !self.seen.contains(&(*call, hit.index, doubt)));
        if !fresh {
            return;
        }
        for call in self.origins.calls(origins) {
            self.seen.insert((*call, hit.index, doubt));
        }
        let inlined = hit.variable.inline.and_then(|inline| {
            let function = self.body.function?;
            function.inlines.get(inline as usize)
        });
        let owner = inlined.map_or(self.body.name, |inline| inline.name.as_str());
        // A block that an inlined function is given is an argument, as if it were called.
        let is_given = hit.variable.parameter.is_some()
            && inlined.is_some_and(|inline| {
                let calls = self.origins.calls(origins);
                !calls.iter().any(|call| contains(&inline.ranges, *call))
            });
        let witness = if hit.variable.name == "this" && is_constructor(owner) {
            Witness::Constructor
        } else if is_given {
            Witness::Parameter
        } else {
            Witness::Variable
        };
        let pointees = self.types.pointees_at(hit.r#type, offset);
        let what = match inlined {
            Some(inline) => format!("{}: {}", inline.name, hit.variable.name),
            None => hit.variable.name.clone(),
        };
        self.note_as(origins, witness, doubt, &pointees, at, &what);
    }

    /// Whether the instruction at `at` lies outside of the block that declares the variable: the register that was the variable's
    /// may be another's there.
    fn is_left_over(&self, hit: &super::places::Hit<'f>, at: u64) -> bool {
        let blocks = self.body.function.map_or(&[][..], |body| &body.blocks);
        let block = hit
            .variable
            .block
            .and_then(|block| blocks.get(block as usize));
        block.is_some_and(|pieces| !contains(pieces, at))
    }

    /// A store of eight bytes somewhere but to the stack.
    pub(super) fn observe_store(&mut self, to: &Address, value: Value, state: &State, at: u64) {
        let Some(origins) = self.shown(value) else {
            return;
        };
        let calls = self.origins.calls(origins);
        self.outcome.stored.extend(calls);
        if let Some(base) = to.base
            && self.body.function.is_none()
            && !to.indexed
            && (self.next_ip(at))
                .is_some_and(|next| is_returned(self.program, self.body, next, base))
        {
            let filled = calls.iter().map(|call| (*call, to.displacement));
            self.outcome.filled.extend(filled);
        }
        if let Value::Parameter { index, offset: 0 } = to.value
            && self.counts.front == 0
        {
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
            let doubt = self.doubt(origins).max(self.doubt(holders));
            let holders = match self.counts.front {
                0 => self.origins.calls(holders).to_vec(),
                _ => Vec::new(),
            };
            for holder in holders {
                for call in &calls {
                    self.outcome.observations.push(Observation {
                        call: *call,
                        witness: Witness::Field,
                        doubt,
                        seen: Seen::Into {
                            call: holder,
                            offset,
                        },
                        address: at,
                        what: String::new(),
                        open: false,
                    });
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

    /// How sure it is that a word with these origins is one of them.
    fn doubt(&self, origins: OriginSet) -> Doubt {
        if self.in_dead_end || self.origins.is_guessed(origins) {
            Doubt::Stale
        } else if self.origins.is_mixed(origins) {
            Doubt::Mixed
        } else {
            Doubt::None
        }
    }

    pub(super) fn note_each(
        &mut self,
        origins: OriginSet,
        witness: Witness,
        pointees: &[Pointee],
        at: u64,
        what: &str,
    ) {
        let doubt = self.doubt(origins);
        self.note_as(origins, witness, doubt, pointees, at, what);
    }

    fn note_as(
        &mut self,
        origins: OriginSet,
        witness: Witness,
        doubt: Doubt,
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
        let open = matches!(seen, Seen::Types(_)) && pointees.contains(&Pointee::Void);
        let calls = self.origins.calls(origins).iter();
        let observations = calls.map(|call| Observation {
            call: *call,
            witness,
            doubt,
            seen: seen.clone(),
            address: at,
            what: what.to_owned(),
            open,
        });
        match self.counts.front {
            0 => self.outcome.observations.extend(observations),
            front => {
                let behind = observations.map(|seen| (front, seen));
                self.counts.behind.extend(behind);
            }
        }
    }

    /// Notes what is seen of one allocation for certain.
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
            doubt: Doubt::None,
            seen,
            address,
            what: what.to_owned(),
            open: false,
        });
    }
}
