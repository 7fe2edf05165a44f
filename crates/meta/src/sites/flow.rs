//! *What happens to the results of the allocations in one function?*
//!
//! An abstract interpretation over the function's basic blocks. First the states at the starts of
//! blocks are computed to a fixed point; then each block is gone through once more with its final
//! state, and what is seen is noted down in an [`Outcome`]. The transfer function is in
//! [`step`](super::step), the effect of calls in [`effects`](super::effects).
//!
//! Blocks that nothing is seen to jump to are the targets of jump tables, or landing pads: the
//! former take the merged state of all indirect jumps, the latter a state that knows the frame only.

use super::allocators::Allocators;
use super::calls::{Body, Key, Program, contains, each_instruction};
use super::counted::Counts;
use super::join::Layout;
use super::outcome::{Doubt, Outcome};
use super::parameters::{Parameters, parameters};
use super::places::Places;
use super::pools::{Cell, Watch};
use super::request::is_record;
use super::state::{SP, State};
use super::terms::Terms;
use super::typing::{Pointee, Types};
use super::value::{OriginSet, Origins, Value};
use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind};
use pointee_model::image::TypeIndex;
use std::collections::{BTreeSet, HashMap, HashSet};

/// How often a block is gone through before its state counts as final.
const VISITS: u32 = 8;
/// Instructions of one function; longer ones are not looked at.
const LONGEST: usize = 400_000;

/// One function under interpretation.
pub(super) struct Interpreter<'a, 'f> {
    pub(super) program: &'a Program<'f>,
    pub(super) types: &'a Types<'f>,
    pub(super) allocators: &'a Allocators<'f>,
    pub(super) body: &'a Body<'f>,
    pub(super) places: Places<'f>,
    pub(super) parameters: Parameters<'f>,
    pub(super) origins: Origins,
    pub(super) info: InstructionInfoFactory,
    /// Slots whose address left the function.
    pub(super) escaped: BTreeSet<i64>,
    /// By slot and allocation: the variables that lay in the slot when the allocation was put there. The
    /// slot may serve another variable later, in which the stale pointer says nothing.
    pub(super) owners: HashMap<(i64, u64), Vec<u32>>,
    /// Types of allocations that an earlier run over the function has told, by call.
    pub(super) hints: HashMap<u64, TypeIndex>,
    pub(super) recording: bool,
    pub(super) counts: Counts,
    /// Blocks that end in a call that does not come back.
    dead_ends: HashSet<usize>,
    /// Blocks that end in a jump through a table.
    tables: HashSet<usize>,
    /// Whether the code under way is one of them.
    pub(super) in_dead_end: bool,
    /// The variables that were seen to hold an allocation, and how sure that was.
    pub(super) seen: HashSet<(u64, u32, Doubt)>,
    /// Blocks that no call hands out.
    pub(super) carved: HashSet<u64>,
    /// Of these, the ones that the stack pointer has pointed to.
    pub(super) rooms: HashSet<u64>,
    /// Which pointers are taken for cursors, and whether the code moves any.
    pub(super) watch: Watch,
    pub(super) moves_cursors: bool,
    /// Whether the function returns a pointer to no type; and its blocks, by where it keeps them for later.
    pub(super) lends: bool,
    /// Whether it returns a pointer to a record.
    pub(super) makes_records: bool,
    pub(super) kept: HashMap<Cell, OriginSet>,
    pub(super) outcome: Outcome,
    pub(super) code: Vec<Instruction>,
    pub(super) starts: Vec<u64>,
    /// What the registers hold multiples of, in the block that is gone through.
    pub(super) terms: Terms,
}

/// The program, as far as joins need it.
pub(super) struct Known<'a, 'f> {
    types: &'a Types<'f>,
    allocators: &'a Allocators<'f>,
}

impl Layout for Known<'_, '_> {
    fn size(&self, of: TypeIndex) -> Option<u64> {
        self.types.size(of)
    }

    fn is_one_array(&self, a: u64, b: u64) -> bool {
        let (Some((array, at)), Some((other, there))) =
            (self.allocators.global_at(a), self.allocators.global_at(b))
        else {
            return false;
        };
        let is_one = array == other && a.wrapping_sub(b) == at.wrapping_sub(there) as u64;
        let element = self.types.element(array);
        let size = element.and_then(|element| self.types.size(element));
        is_one && size.is_some_and(|size| size > 0 && at.abs_diff(there).is_multiple_of(size))
    }
}

/// Blocks whose state has changed. The first in order of address is taken first: compilers lay code
/// out nearly in the order it runs, so most blocks wait for those before them.
type Work = BTreeSet<usize>;

/// Where control goes at the end of a block.
#[derive(Clone, Copy)]
enum Exit {
    To(u64),
    /// A jump table.
    Table,
}

/// The ways out of a block, each with the value that is zero on it.
#[derive(Default)]
struct Left {
    first: Option<Exit>,
    null_first: Option<Value>,
    second: Option<Exit>,
    null_second: Option<Value>,
}

impl<'a, 'f> Interpreter<'a, 'f> {
    pub(super) fn new(
        program: &'a Program<'f>,
        types: &'a Types<'f>,
        allocators: &'a Allocators<'f>,
        body: &'a Body<'f>,
    ) -> Self {
        Self {
            program,
            types,
            allocators,
            body,
            places: Places::new(body.function, types),
            parameters: parameters(body, types),
            origins: Origins::default(),
            info: InstructionInfoFactory::new(),
            escaped: BTreeSet::new(),
            owners: HashMap::new(),
            hints: HashMap::new(),
            recording: false,
            counts: Counts::default(),
            dead_ends: HashSet::new(),
            tables: HashSet::new(),
            in_dead_end: false,
            seen: HashSet::new(),
            carved: HashSet::new(),
            rooms: HashSet::new(),
            watch: Watch::Known,
            moves_cursors: allocators.movers.contains(&body.entry),
            lends: handed_out(types, body) == Some(Pointee::Void),
            makes_records: matches!(handed_out(types, body), Some(Pointee::Type(at)) if is_record(types, at)),
            kept: HashMap::new(),
            outcome: Outcome::default(),
            code: Vec::new(),
            starts: Vec::new(),
            terms: Terms::default(),
        }
    }

    /// What is loaded from an allocation whose type is known is typed too.
    pub(super) fn with_hints(mut self, hints: HashMap<u64, TypeIndex>) -> Self {
        self.hints = hints;
        self
    }

    pub(super) fn run(mut self) -> Outcome {
        let mut code = Vec::new();
        each_instruction(self.program.elf, self.body, |instruction| {
            if code.len() < LONGEST {
                code.push(*instruction);
            }
        });
        code.sort_by_key(Instruction::ip);
        self.code = code;
        if self.code.len() >= LONGEST {
            self.outcome.incomplete = true;
            return self.outcome;
        }
        let jumped_to = self.find_blocks();
        let mut states: Vec<Option<State>> = vec![None; self.starts.len()];
        let mut visits = vec![0_u32; self.starts.len()];
        let mut work = Work::new();
        let mut tables: Option<State> = None;

        if let Some(entry) = self.block_at(self.body.entry) {
            states[entry] = Some(self.parameters.entry_state());
            work.insert(entry);
        }
        self.solve(&mut work, &mut states, &mut visits, &mut tables);
        // What the tables lead to may hold further tables.
        for _ in 0..4 {
            let Some(mut from_tables) = tables.clone() else {
                break;
            };
            // What one table leads to is gone through with what another brings too.
            if self.tables.len() > 1 {
                from_tables.guess(&mut self.origins);
            }
            for (block, reached) in jumped_to.iter().enumerate() {
                if !reached && self.starts[block] != self.body.entry {
                    self.enter(block, &from_tables, &mut states, &mut work);
                }
            }
            if work.is_empty() {
                break;
            }
            self.solve(&mut work, &mut states, &mut visits, &mut tables);
        }
        self.reach_the_rest(&mut work, &mut states, &mut visits, &mut tables);

        self.recording = true;
        for (block, state) in states.into_iter().enumerate() {
            if let Some(mut state) = state {
                self.go_through(block, &mut state);
            }
        }
        self.settle_rooms();
        self.settle_cursors();
        self.settle_counts();
        self.outcome
    }

    /// Landing pads and the like that hold a call: reached with nothing known but the frame.
    fn reach_the_rest(
        &mut self,
        work: &mut Work,
        states: &mut [Option<State>],
        visits: &mut [u32],
        tables: &mut Option<State>,
    ) {
        let frame = states
            .iter()
            .flatten()
            .map(|state| state.registers[SP])
            .next_back();
        for block in 0..self.starts.len() {
            if states[block].is_none() && self.has_call(block) {
                let mut state = State::at_entry();
                state.registers[SP] = frame.unwrap_or_default();
                states[block] = Some(state);
                work.insert(block);
                self.solve(work, states, visits, tables);
            }
        }
    }

    fn solve(
        &mut self,
        work: &mut Work,
        states: &mut [Option<State>],
        visits: &mut [u32],
        tables: &mut Option<State>,
    ) {
        while let Some(block) = work.pop_first() {
            visits[block] += 1;
            if visits[block] > VISITS {
                continue;
            }
            let Some(known) = &states[block] else {
                continue;
            };
            let mut state = known.clone();
            let left = self.go_through(block, &mut state);
            if let Some(Exit::Table) = left.first {
                self.tables.insert(block);
                match tables {
                    Some(merged) => {
                        let known = self.known();
                        merged.merge(&state, &mut self.origins, &known);
                    }
                    None => *tables = Some(state.clone()),
                }
            }
            for (exit, null) in [
                (left.first, left.null_first),
                (left.second, left.null_second),
            ] {
                let Some(Exit::To(target)) = exit else {
                    continue;
                };
                let Some(next) = self.block_at(target) else {
                    continue;
                };
                match null {
                    // On this way a failed allocation is a null pointer and nothing more.
                    Some(block @ Value::Allocated { .. }) => {
                        let mut failed = state.clone();
                        failed.replace(block, Value::Constant(0));
                        self.enter(next, &failed, states, work);
                    }
                    _ => self.enter(next, &state, states, work),
                }
            }
        }
    }

    fn enter(
        &mut self,
        block: usize,
        state: &State,
        states: &mut [Option<State>],
        work: &mut Work,
    ) {
        let changed = match &mut states[block] {
            Some(known) => {
                let layout = self.known();
                known.merge(state, &mut self.origins, &layout)
            }
            empty => {
                *empty = Some(state.clone());
                true
            }
        };
        if changed {
            work.insert(block);
        }
    }

    /// The callee of the call or tail jump at `address`.
    pub(super) fn callee_at(&self, address: u64) -> Option<Key> {
        self.body
            .calls
            .binary_search_by_key(&address, |call| call.address)
            .ok()
            .map(|found| self.body.calls[found].callee)
    }

    /// The instruction after the one at `address`.
    pub(super) fn next_ip(&self, address: u64) -> Option<u64> {
        self.instruction_at(address).map(Instruction::next_ip)
    }

    /// The instruction at `address`.
    pub(super) fn instruction_at(&self, address: u64) -> Option<&Instruction> {
        let found = self.code.binary_search_by_key(&address, Instruction::ip);
        found.ok().map(|at| &self.code[at])
    }

    /// What joins ask.
    pub(super) fn known(&self) -> Known<'a, 'f> {
        Known {
            types: self.types,
            allocators: self.allocators,
        }
    }

    /// Runs a block's instructions on `state`; says where control goes then.
    fn go_through(&mut self, block: usize, state: &mut State) -> Left {
        let start = self.starts[block];
        let end = self.starts.get(block + 1).copied().unwrap_or(u64::MAX);
        let first = self
            .code
            .partition_point(|instruction| instruction.ip() < start);
        let mut at = first;
        let mut expected = start;
        self.in_dead_end = self.dead_ends.contains(&block);
        self.terms = Terms::at_start(&state.registers);
        while let Some(instruction) = self.code.get(at).copied() {
            if instruction.ip() >= end || instruction.ip() != expected {
                break;
            }
            if self.recording {
                self.observe(|it| it.observe_variables(state, instruction.ip()));
                self.observe_arrays(state, instruction.ip());
            }
            let next = instruction.next_ip();
            match instruction.flow_control() {
                FlowControl::Next => {
                    self.step(&instruction, state);
                    let terms = &mut self.terms;
                    if let Some((register, value)) =
                        terms.step(&instruction, &mut self.info, &state.registers)
                    {
                        state.registers[register] = value;
                    }
                }
                FlowControl::Call | FlowControl::IndirectCall => {
                    if !self.call(&instruction, state, false) {
                        self.dead_ends.insert(block);
                        return Left::default();
                    }
                    self.terms = Terms::at_start(&state.registers);
                }
                FlowControl::Return => {
                    self.returns(state, instruction.ip());
                    return Left::default();
                }
                FlowControl::UnconditionalBranch => {
                    return Left {
                        first: self.branch(&instruction, state),
                        ..Left::default()
                    };
                }
                FlowControl::ConditionalBranch => {
                    let before = at.checked_sub(1).and_then(|before| self.code.get(before));
                    let null = before.copied().and_then(|before| {
                        let if_taken = is_test_for_null(&before, &instruction)?;
                        Some((self.read(&before, 0, state), if_taken))
                    });
                    return self.conditional(&instruction, state, null);
                }
                FlowControl::IndirectBranch => {
                    let first = (!self.indirect_tail(&instruction, state)).then_some(Exit::Table);
                    return Left {
                        first,
                        ..Left::default()
                    };
                }
                FlowControl::XbeginXabortXend => self.step(&instruction, state),
                FlowControl::Interrupt | FlowControl::Exception => {
                    if instruction.mnemonic() == Mnemonic::Ud2 {
                        return Left::default();
                    }
                }
            }
            expected = next;
            at += 1;
        }
        // An empty block holds padding only, or code that could not be decoded.
        Left {
            first: (at > first).then_some(Exit::To(expected)),
            ..Left::default()
        }
    }

    /// Both ways of a conditional jump. `null` is the value compared with zero, and whether the
    /// jump is taken if it is.
    fn conditional(
        &mut self,
        instruction: &Instruction,
        state: &State,
        null: Option<(Value, bool)>,
    ) -> Left {
        let target = instruction.near_branch_target();
        let taken = if contains(&self.body.ranges, target) {
            Some(Exit::To(target))
        } else {
            // A conditional tail call; the other way goes on as before.
            self.call(instruction, &mut state.clone(), true);
            None
        };
        Left {
            first: taken,
            null_first: null
                .filter(|(_, if_taken)| *if_taken)
                .map(|(value, _)| value),
            second: Some(Exit::To(instruction.next_ip())),
            null_second: null
                .filter(|(_, if_taken)| !*if_taken)
                .map(|(value, _)| value),
        }
    }

    fn branch(&mut self, instruction: &Instruction, state: &mut State) -> Option<Exit> {
        let target = instruction.near_branch_target();
        if contains(&self.body.ranges, target) {
            return Some(Exit::To(target));
        }
        self.call(instruction, state, true);
        None
    }

    /// An indirect jump: a tail call where the callee or its type is known, a jump table otherwise.
    fn indirect_tail(&mut self, instruction: &Instruction, state: &mut State) -> bool {
        let known = self
            .callee_at(instruction.ip())
            .is_some_and(|key| key != Key::Indirect)
            || self.callee_in_register(instruction, state).is_some()
            || self.function_type(instruction, state).is_some();
        if known {
            self.call(instruction, state, true);
        }
        known
    }

    /// Whether a value is the start of one of the function's allocations.
    pub(super) fn start_of(value: Value) -> Option<super::value::OriginSet> {
        match value {
            Value::Allocated { origins, offset: 0 } => Some(origins),
            _ => None,
        }
    }
}

/// What the result of a function points to.
fn handed_out(types: &Types<'_>, body: &Body<'_>) -> Option<Pointee> {
    types.pointee(body.function?.result?)
}

/// Whether `before` compares its first operand, eight bytes in a register or (unoptimised code) in memory, with zero, and
/// `jump` is taken if it is zero.
fn is_test_for_null(before: &Instruction, jump: &Instruction) -> Option<bool> {
    let if_taken = match jump.mnemonic() {
        Mnemonic::Je => true,
        Mnemonic::Jne => false,
        _ => return None,
    };
    let compared = match before.mnemonic() {
        Mnemonic::Test => {
            before.op1_kind() == OpKind::Register && before.op0_register() == before.op1_register()
        }
        Mnemonic::Cmp => before.try_immediate(1).is_ok_and(|number| number == 0),
        _ => false,
    };
    let size = match before.op0_kind() {
        OpKind::Register => before.op0_register().size(),
        OpKind::Memory => before.memory_size().size(),
        _ => 0,
    };
    (compared && size == 8).then_some(if_taken)
}
