//! *Which frames lie on a stack?* — by the rules in `.eh_frame`, as the C++ runtime unwinds; read from the process's memory,
//! for they are loaded with the code.
//!
//! ```text
//!   pc ─▶ object ─▶ .eh_frame_hdr (sorted) ─▶ rule for pc ─▶ canonical frame address, slots of saved registers ─▶ caller
//! ```
//!
//! Where only stack pointer and program counter are known, the frame pointer is lost until a frame restores it. A
//! function that needs it for its own frame address says in its first instructions how far it lies above
//! the stack pointer; what is found that way counts only if a return address lies where it must.

mod frame_pointer;

use super::signal_stacks::stack_noted_at;
use super::{Frame, Layout, Object, Span};
use crate::memory::ProcessMemory;
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, EvaluationResult, LittleEndian,
    Location, Pointer, Register, RegisterRule, UnwindContext, UnwindExpression, UnwindSection,
    UnwindTableRow, Value,
};
use pointee_model::addr::RunAddr;
use std::collections::HashMap;
use std::rc::Rc;

/// Sixteen general registers and the return address.
pub(super) const REGISTERS: usize = 17;
/// Registers by DWARF number; `None`: lost.
pub(super) type Registers = [Option<u64>; REGISTERS];

const RBP: usize = 6;
const RSP: usize = 7;
const RETURN: usize = 16;
/// Callee-saved: what a rule does not mention, the function did not touch (System V ABI for x86-64, 3.2.1).
const KEPT: [usize; 6] = [3, RBP, 12, 13, 14, 15];
/// Frames of one stack that are looked at: a runaway recursion has millions.
const MOST_FRAMES: usize = 20_000;
/// Bytes of one `.eh_frame` that are read.
const MOST_BYTES: u64 = 256 << 20;

type Bytes<'b> = EndianSlice<'b, LittleEndian>;

/// Unwinds the stacks of one process.
pub(super) struct Unwinder<'m> {
    layout: &'m Layout,
    objects: &'m [Object],
    memory: &'m ProcessMemory,
    pid: u32,
    rules: HashMap<usize, Option<Rc<Rules>>>,
    context: UnwindContext<usize>,
}

/// Unwind rules of one object.
struct Rules {
    table: Vec<u8>,
    frames: Vec<u8>,
    bases: BaseAddresses,
}

/// What the frames of one thread tell.
pub(super) struct Walked {
    /// Innermost first.
    pub(super) frames: Vec<Frame>,
    /// Why they do not go up to the thread's start, if they do not.
    pub(super) cut: Option<String>,
    /// The outermost of the stacks that they lie on.
    pub(super) stack: Option<Span>,
    /// What the thread set aside for its signal handlers, if one of them is among the frames.
    pub(super) signal_stack: Option<Span>,
}

impl Walked {
    /// No frames, and why.
    pub(super) fn nothing(why: String) -> Self {
        Self {
            frames: Vec::new(),
            cut: Some(why),
            stack: None,
            signal_stack: None,
        }
    }
}

/// What the rules say at one address.
struct Step {
    start: u64,
    row: UnwindTableRow<usize>,
    is_signal: bool,
}

impl<'m> Unwinder<'m> {
    pub(super) fn new(pid: u32, layout: &'m Layout, memory: &'m ProcessMemory) -> Self {
        Self {
            layout,
            objects: &layout.objects,
            memory,
            pid,
            rules: HashMap::new(),
            context: UnwindContext::new(),
        }
    }

    /// The frames from `registers` up; `stack` is where they begin, `stack_around` finds the one around another stack pointer.
    pub(super) fn frames(
        &mut self,
        mut registers: Registers,
        mut stack: Span,
        stack_around: &dyn Fn(RunAddr) -> Option<Span>,
    ) -> Walked {
        let mut walked = Walked {
            frames: Vec::new(),
            cut: None,
            stack: Some(stack),
            signal_stack: None,
        };
        let mut is_return = false;
        while walked.frames.len() < MOST_FRAMES {
            let (Some(pc), Some(sp)) = (registers[RETURN], registers[RSP]) else {
                return walked;
            };
            if pc == 0 {
                return walked;
            }
            match self.step(RunAddr(pc), RunAddr(sp), is_return, &registers) {
                Ok((mut frame, caller)) => {
                    is_return = !frame.is_signal;
                    let end = frame.span.end;
                    if frame.is_signal {
                        let noted = stack_noted_at(RunAddr(sp), self.memory, self.layout);
                        walked.signal_stack = walked.signal_stack.or(noted);
                        let here = noted.filter(|noted| noted.holds(RunAddr(sp)));
                        if here.is_some() || !stack.holds(end) {
                            // What was interrupted lies on another stack.
                            frame.span.end = here.unwrap_or(stack).end;
                            stack = stack_around(end).unwrap_or(stack);
                            walked.stack = Some(stack);
                        }
                    } else if end.0 <= sp || end > stack.end {
                        walked.frames.push(frame);
                        return walked;
                    }
                    walked.frames.push(frame);
                    registers = caller;
                }
                Err(reason) => {
                    // The frame itself is known to be there, but not how far it goes.
                    walked.frames.push(Frame {
                        pc: RunAddr(pc),
                        is_return,
                        span: Span {
                            start: RunAddr(sp),
                            end: RunAddr(sp),
                        },
                        registers: registers[..RETURN].to_vec(),
                        saved: Vec::new(),
                        is_signal: false,
                    });
                    walked.cut = Some(reason);
                    return walked;
                }
            }
        }
        walked.cut = Some(format!("only {MOST_FRAMES} frames are looked at"));
        walked
    }

    fn step(
        &mut self,
        pc: RunAddr,
        sp: RunAddr,
        is_return: bool,
        registers: &Registers,
    ) -> Result<(Frame, Registers), String> {
        let looked_up = RunAddr(pc.0.wrapping_sub(u64::from(is_return)));
        let objects = self.objects;
        let holds = |object: &Object| {
            object.span.holds(looked_up)
                && object
                    .segments
                    .iter()
                    .any(|(span, _)| span.holds(looked_up))
        };
        let Some(at) = objects.iter().position(holds) else {
            return self
                .by_frame_pointer(pc, sp, is_return, registers)
                .ok_or_else(|| format!("code at {pc} is in no file that is loaded"));
        };
        let name = objects[at].path.rsplit('/').next().unwrap_or("");
        let rules = self
            .rules_of(at)
            .ok_or_else(|| format!("{name} has no unwind rules"))?;
        let Some(step) = self.rule_at(&rules, looked_up) else {
            return self
                .by_frame_pointer(pc, sp, is_return, registers)
                .ok_or_else(|| format!("code at {pc} in {name} has no unwind rule"));
        };
        let frames = rules.frames();
        let mut registers = *registers;
        let cfa = match step.row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                let number = usize::from(register.0);
                if number == RBP && registers[RBP].is_none() {
                    registers[RBP] = self.frame_pointer(RunAddr(step.start), looked_up, sp);
                }
                let base = registers.get(number).copied().flatten();
                base.map(|base| base.wrapping_add_signed(*offset))
            }
            CfaRule::Expression(expression) => {
                self.evaluate(&frames, *expression, &registers, None)
            }
        };
        let cfa = cfa.ok_or_else(|| {
            format!("the frame pointer that code at {pc} in {name} goes by is known only when it is stopped")
        })?;
        let (caller, saved) = self.caller(&step.row, cfa, &frames, &registers);
        let frame = Frame {
            pc,
            is_return,
            span: Span {
                start: sp,
                end: RunAddr(cfa),
            },
            registers: registers[..RETURN].to_vec(),
            saved,
            is_signal: step.is_signal,
        };
        Ok((frame, caller))
    }

    /// The caller's registers, and where they were kept.
    fn caller(
        &self,
        row: &UnwindTableRow<usize>,
        cfa: u64,
        frames: &EhFrame<Bytes<'_>>,
        registers: &Registers,
    ) -> (Registers, Vec<(RunAddr, u16)>) {
        let mut caller: Registers = [None; REGISTERS];
        let mut saved = Vec::new();
        for number in KEPT {
            caller[number] = registers[number];
        }
        caller[RSP] = Some(cfa);
        for number in 0..REGISTERS {
            let register = Register(number as u16);
            let Some(rule) = row.register(register) else {
                continue;
            };
            let mut load = |slot: u64| {
                saved.push((RunAddr(slot), number as u16));
                self.word(slot)
            };
            caller[number] = match rule {
                RegisterRule::Undefined | RegisterRule::Architectural => None,
                RegisterRule::SameValue => registers[number],
                RegisterRule::Offset(offset) => load(cfa.wrapping_add_signed(offset)),
                RegisterRule::ValOffset(offset) => Some(cfa.wrapping_add_signed(offset)),
                RegisterRule::Register(other) => {
                    registers.get(usize::from(other.0)).copied().flatten()
                }
                RegisterRule::Expression(expression) => self
                    .evaluate(frames, expression, registers, Some(cfa))
                    .and_then(load),
                RegisterRule::ValExpression(expression) => {
                    self.evaluate(frames, expression, registers, Some(cfa))
                }
                RegisterRule::Constant(value) => Some(value),
            };
        }
        saved.sort_unstable_by_key(|(slot, _)| *slot);
        (caller, saved)
    }

    fn word(&self, address: u64) -> Option<u64> {
        super::objects::word(self.memory, RunAddr(address))
    }

    fn evaluate(
        &self,
        frames: &EhFrame<Bytes<'_>>,
        expression: UnwindExpression<usize>,
        registers: &Registers,
        initial: Option<u64>,
    ) -> Option<u64> {
        const ENCODING: gimli::Encoding = gimli::Encoding {
            address_size: 8,
            format: gimli::Format::Dwarf32,
            version: 4,
        };
        let mut evaluation = expression.get(frames).ok()?.evaluation(ENCODING);
        evaluation.set_max_iterations(1000);
        if let Some(initial) = initial {
            evaluation.set_initial_value(initial);
        }
        let mut result = evaluation.evaluate().ok()?;
        loop {
            result = match result {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresMemory { address, size, .. } => {
                    let mask = u64::MAX
                        .checked_shr(64 - 8 * u32::from(size.min(8)))
                        .unwrap_or(0);
                    let value = Value::Generic(self.word(address)? & mask);
                    evaluation.resume_with_memory(value).ok()?
                }
                EvaluationResult::RequiresRegister { register, .. } => {
                    let value = registers.get(usize::from(register.0)).copied().flatten()?;
                    evaluation
                        .resume_with_register(Value::Generic(value))
                        .ok()?
                }
                _ => return None,
            };
        }
        match evaluation.as_result().first()?.location {
            Location::Address { address } => Some(address),
            Location::Value { value } => value.to_u64(u64::MAX).ok(),
            _ => None,
        }
    }

    /// Code without rules that keeps frame pointers, as just-in-time compilers make it.
    fn by_frame_pointer(
        &self,
        pc: RunAddr,
        sp: RunAddr,
        is_return: bool,
        registers: &Registers,
    ) -> Option<(Frame, Registers)> {
        let base = registers[RBP].filter(|base| *base >= sp.0 && base % 8 == 0)?;
        let (above, back) = (self.word(base)?, self.word(base.checked_add(8)?)?);
        if !self.is_return_address(RunAddr(back)) {
            return None;
        }
        let mut caller: Registers = [None; REGISTERS];
        caller[RBP] = Some(above);
        caller[RSP] = Some(base + 16);
        caller[RETURN] = Some(back);
        let frame = Frame {
            pc,
            is_return,
            span: Span {
                start: sp,
                end: RunAddr(base + 16),
            },
            registers: registers[..RETURN].to_vec(),
            saved: vec![
                (RunAddr(base), RBP as u16),
                (RunAddr(base + 8), RETURN as u16),
            ],
            is_signal: false,
        };
        Some((frame, caller))
    }

    fn rule_at(&mut self, rules: &Rules, address: RunAddr) -> Option<Step> {
        let frames = rules.frames();
        let cie = EhFrame::cie_from_offset;
        let header = EhFrameHdr::new(&rules.table, LittleEndian)
            .parse(&rules.bases, 8)
            .ok();
        let found = match header.as_ref().and_then(|header| header.table()) {
            Some(table) => table.fde_for_address(&frames, &rules.bases, address.0, cie),
            None => frames.fde_for_address(&rules.bases, address.0, cie),
        };
        let found = found.ok()?;
        let row = found
            .unwind_info_for_address(&frames, &rules.bases, &mut self.context, address.0)
            .ok()?
            .clone();
        Some(Step {
            start: found.initial_address(),
            row,
            is_signal: found.is_signal_trampoline(),
        })
    }

    fn rules_of(&mut self, object: usize) -> Option<Rc<Rules>> {
        if let Some(known) = self.rules.get(&object) {
            return known.clone();
        }
        let read = self.read_rules(object).map(Rc::new);
        self.rules.insert(object, read.clone());
        read
    }

    fn read_rules(&self, number: usize) -> Option<Rules> {
        let object = self.objects.get(number)?;
        let (table_at, frames_at) = match object.unwind_table {
            Some(table) => (Some(table), None),
            // Linked statically without the table: the section's header in the file says where the rules are.
            None => (None, Some(self.section(object, ".eh_frame")?)),
        };
        let to_end = |start: RunAddr| {
            let (segment, _) = object.segments.iter().find(|(span, _)| span.holds(start))?;
            let len = segment.end.offset_from(start)?.min(MOST_BYTES);
            let mut bytes = vec![0; usize::try_from(len).ok()?];
            self.memory.read_at(start, &mut bytes).then_some(bytes)
        };
        let table = match table_at {
            Some(table) => to_end(table)?,
            None => Vec::new(),
        };
        let mut bases = BaseAddresses::default();
        if let Some(table) = table_at {
            bases = bases.set_eh_frame_hdr(table.0);
        }
        let frames_at = match frames_at {
            Some(at) => at,
            None => {
                let header = EhFrameHdr::new(&table, LittleEndian)
                    .parse(&bases, 8)
                    .ok()?;
                match header.eh_frame_ptr() {
                    Pointer::Direct(address) => RunAddr(address),
                    Pointer::Indirect(address) => RunAddr(self.word(address)?),
                }
            }
        };
        Some(Rules {
            table,
            frames: to_end(frames_at)?,
            bases: bases.set_eh_frame(frames_at.0),
        })
    }

    fn section(&self, object: &Object, name: &str) -> Option<RunAddr> {
        use object::{Object as _, ObjectSection};
        let path = format!("/proc/{}/root{}", self.pid, object.path);
        let is_file = std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_file());
        let bytes = is_file.then(|| std::fs::read(&path).ok()).flatten()?;
        let file = object::File::parse(&*bytes).ok()?;
        let address = file.section_by_name(name)?.address();
        Some(object.bias.to_run(pointee_model::addr::LinkAddr(address)))
    }
}

impl Rules {
    fn frames(&self) -> EhFrame<Bytes<'_>> {
        EhFrame::new(&self.frames, LittleEndian)
    }
}
