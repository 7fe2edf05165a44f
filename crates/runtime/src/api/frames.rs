//! *Which variable of the asking thread lies at this address?*
//!
//! From the caller's frame outwards by the rules of [`crate::cfi`], up to the frame that spans the address; then the image
//! tells what lies there at the frame's place in the code. Rules are kept, so that asking again costs no evaluation.
//! From a signal handler it goes on in what was interrupted, wherever that lies: the kernel's frame holds its registers. Other frames whose
//! rule is more than a register and an offset end the walk: what lies beyond is not known.

#![allow(unsafe_code)] // Reads the asking thread's stack.

use super::carved::{self, Carved};
use super::{objects, types};
use crate::cfi;
use crate::modules::Module;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use pointee_index::origins::Rule;
use pointee_model::addr::LinkAddr;
use pointee_model::image::{LocalPlace, LocalRecord};

/// Frames that are walked.
const LONGEST: usize = 4096;
/// Bytes of a frame within which its frame pointer is looked for.
const LARGEST: u64 = 16 << 20;
/// DWARF numbers of the registers that a walk knows (System V ABI, AMD64, figure 3.36).
const RBP: u16 = 6;
const RSP: u16 = 7;

/// Where a call came from, and what the registers hold that calls preserve.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    /// The stack pointer at its entry.
    pub(super) slot: u64,
    pub(super) rbp: u64,
    pub(super) saved: &'a Saved,
}

/// `rbx`, `r12` to `r15`, as the stubs push them.
pub(super) type Saved = [u64; 5];

/// A frame of the asking thread, seen from a call that it made.
#[derive(Clone, Copy)]
pub(super) struct Frame<'a> {
    /// Where it goes on: where the call returns to, or what was interrupted.
    pub(super) goes_on_at: u64,
    /// An address in the instruction that is being executed.
    code: u64,
    /// Eight bytes below it; where a return address is kept.
    pub(super) slot: u64,
    /// The frame pointer in it.
    pub(super) rbp: u64,
    /// One past its last byte: the canonical frame address.
    pub(super) end: u64,
    module: &'static Module,
    /// Of the innermost frame.
    saved: Option<&'a Saved>,
}

/// Kept rules: a return address, mixed with the rule, and the rule. A torn pair does not match.
static KEPT: [[AtomicU64; 2]; 1024] = [const { [AtomicU64::new(0), AtomicU64::new(0)] }; 1024];

/// The rule of the frame that executes the instruction right before, or around, the byte before `return_address`.
fn rule(return_address: u64, module: &'static Module) -> Option<Rule> {
    let hash = return_address.wrapping_mul(pointee_index::origins::HASH) >> 54;
    let [key, kept] = &KEPT[hash as usize];
    let bits = kept.load(Relaxed);
    if key.load(Relaxed) ^ bits == return_address {
        return Some(Rule::from_bits(bits));
    }
    let rule = cfi::rule(module, return_address)?;
    kept.store(rule.bits(), Relaxed);
    key.store(return_address ^ rule.bits(), Relaxed);
    Some(rule)
}

/// Calls `each` for the frames from the one that made the call whose return address lies at `slot`, until it says stop.
///
/// # Safety
/// `caller` is a call of this thread that goes on.
pub(super) unsafe fn walk(caller: Caller<'_>, mut each: impl FnMut(&Frame<'_>) -> bool) {
    let Caller {
        mut slot,
        mut rbp,
        saved,
    } = caller;
    let mut saved = Some(saved);
    // SAFETY: the caller's promise.
    let mut goes_on_at = unsafe { *(slot as *const u64) };
    let mut code = goes_on_at.wrapping_sub(1);
    for _ in 0..LONGEST {
        let Some(module) = objects::holding(code) else {
            return;
        };
        let rule = rule(code.wrapping_add(1), module).filter(|rule| !rule.is_leaf());
        let Some(next) = rule.and_then(|rule| rule.next(slot, rbp)) else {
            if !is_signal_return(module, goes_on_at) {
                return;
            }
            // SAFETY: a handler returns here with the kernel's frame on top of the stack.
            let interrupted = unsafe { Interrupted::at(slot + 8) };
            saved = None;
            rbp = interrupted.rbp;
            slot = interrupted.rsp.wrapping_sub(8);
            goes_on_at = interrupted.rip;
            code = goes_on_at;
            continue;
        };
        let frame = Frame {
            goes_on_at,
            code,
            slot,
            rbp,
            end: next + 8,
            module,
            saved: saved.take(),
        };
        if each(&frame) {
            return;
        }
        if let Some(saved) = rule.and_then(|rule| rule.saved_rbp(next)) {
            // SAFETY: the place lies in the frame, between the slot and the CFA.
            rbp = unsafe { *(saved as *const u64) };
        }
        slot = next;
        // SAFETY: the place of a return address, by the rule of the frame below.
        goes_on_at = unsafe { *(slot as *const u64) };
        code = goes_on_at.wrapping_sub(1);
    }
}

/// Whether a handler that returns to `address` returns to the kernel: `mov rax, 15; syscall`, as gdb tells it too.
fn is_signal_return(module: &Module, address: u64) -> bool {
    const CODE: [u8; 9] = [0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
    // SAFETY: bytes of a loaded module, at a place where it is executed.
    let there = || unsafe { core::ptr::read_unaligned(address as *const [u8; 9]) };
    module.holds_all(address, 9) && there() == CODE
}

/// Registers of the code that a signal interrupted.
struct Interrupted {
    rbp: u64,
    rsp: u64,
    rip: u64,
}

impl Interrupted {
    /// From the `struct ucontext` at `context`, whose general registers start at its sixth word (arch/x86/include/uapi/asm).
    ///
    /// # Safety
    /// There is one.
    unsafe fn at(context: u64) -> Self {
        // SAFETY: the caller's promise.
        let register = |number: usize| unsafe { *(context as *const u64).add(5 + number) };
        Self {
            rbp: register(10),
            rsp: register(15),
            rip: register(16),
        }
    }
}

/// What lies in a frame.
pub(super) enum InFrame {
    Variable(Local),
    Carved(Carved),
}

/// A variable in a frame.
pub(super) struct Local {
    pub(super) record: &'static LocalRecord,
    pub(super) start: u64,
}

impl Frame<'_> {
    /// Whether the address lies in it.
    pub(super) fn spans(&self, address: u64) -> bool {
        (self.slot + 8..self.end).contains(&address)
    }

    /// The module of its code.
    pub(super) fn module(&self) -> &'static Module {
        self.module
    }

    /// Where it executes, as its file states it.
    pub(super) fn link(&self) -> LinkAddr {
        LinkAddr(self.code.wrapping_sub(self.module.bias))
    }

    /// An address of its file, as the process has it.
    pub(super) fn run(&self, link: LinkAddr) -> u64 {
        link.0.wrapping_add(self.module.bias)
    }

    /// Where its return address is kept: the end of what is its own.
    pub(super) fn return_slot(&self) -> u64 {
        self.end - 8
    }

    /// The variable that holds `address`: the smallest, where several do. Else the block that was carved out there.
    pub(super) fn holding(&self, address: u64) -> Option<InFrame> {
        let asked = Asked::of(self, address);
        if let Some(known) = asked.known() {
            return Some(InFrame::Variable(self.local(known?)?));
        }
        let found = self.find_local(address);
        let sites = carved::sites_of(self);
        if sites.is_empty() {
            asked.remember(found);
        } else if found.is_none() {
            return carved::at(self, sites, address).map(InFrame::Carved);
        }
        Some(InFrame::Variable(self.local(found?)?))
    }

    fn local(&self, record: &'static LocalRecord) -> Option<Local> {
        Some(Local {
            record,
            start: self.start_of(record)?,
        })
    }

    /// The frame pointer, if what it holds can be one: a function without uses the register for anything.
    fn frame_pointer(&self) -> Option<u64> {
        (self.rbp.abs_diff(self.end) < LARGEST).then_some(self.rbp)
    }

    /// Where a variable lies that is in the frame's memory.
    pub(super) fn start_of(&self, record: &LocalRecord) -> Option<u64> {
        let place = LocalPlace::from_byte(record.place);
        let base = match (place, record.register) {
            (LocalPlace::Frame, _) | (LocalPlace::Behind, LocalRecord::CFA) => self.end,
            (LocalPlace::Memory | LocalPlace::Behind, RBP) => self.frame_pointer()?,
            (LocalPlace::Memory | LocalPlace::Behind, RSP) => self.slot + 8,
            _ => return None,
        };
        let at = base.wrapping_add_signed(record.offset);
        if place != LocalPlace::Behind {
            return Some(at);
        }
        let is_slot = at % 8 == 0 && self.spans(at);
        // SAFETY: a slot of a frame of the asking thread that goes on.
        is_slot.then(|| unsafe { *(at as *const u64) })
    }

    /// What a register held when the frame made its call, by DWARF number.
    pub(super) fn register(&self, number: u16) -> Option<u64> {
        /// Places in [`Saved`], by DWARF number.
        const PLACES: [(u16, usize); 5] = [(3, 0), (12, 1), (13, 2), (14, 3), (15, 4)];
        match number {
            RBP => Some(self.rbp),
            RSP => Some(self.slot + 8),
            _ => {
                let place = PLACES.iter().find(|(known, _)| *known == number);
                Some(self.saved?[place?.1])
            }
        }
    }

    fn find_local(&self, address: u64) -> Option<&'static LocalRecord> {
        let image = objects::image(self.module)?;
        let mut found: Option<(&LocalRecord, u64)> = None;
        for record in image.locals_at(self.link()).take(1024) {
            let Some(start) = self.start_of(record) else {
                continue;
            };
            // Most variables are behind the address, and their types need not be looked at.
            if !self.spans(start) || start > address {
                continue;
            }
            let Some(size) = objects::type_of(self.module, record.r#type).map(|r#type| r#type.size)
            else {
                continue;
            };
            // Of an array of variable length the length is not known.
            let is_in = size != types::UNKNOWN && address - start < size;
            if is_in && found.is_none_or(|(_, least)| size < least) {
                found = Some((record, size));
            }
        }
        found.map(|(record, _)| record)
    }
}

/// A question about a frame: all that the answer depends on, wherever the frame lies. A function may have thousands of places of variables.
struct Asked([u64; 4]);

/// Answers that are kept: question, record or [`NOTHING`], and all of these mixed. A torn one does not match.
static ANSWERS: [[AtomicU64; 6]; 1024] = [const { [const { AtomicU64::new(0) }; 6] }; 1024];

/// Stands for no record.
const NOTHING: u64 = 1;

impl Asked {
    fn of(frame: &Frame<'_>, address: u64) -> Self {
        let below = |at: u64| frame.end.wrapping_sub(at);
        // Stacks are smaller than 4 GiB, or the question is another each time.
        let whose = below(frame.slot) << 32 ^ u64::from(frame.module.number);
        let pointer = frame.frame_pointer().map_or(0, below);
        Self([frame.code, below(address), pointer, whose])
    }

    fn place(&self) -> &'static [AtomicU64; 6] {
        let Self([code, address, ..]) = self;
        let mixed = (code ^ address << 20).wrapping_mul(pointee_index::origins::HASH);
        &ANSWERS[(mixed >> 54) as usize]
    }

    /// Mixed with its answer.
    fn mixed(&self, answer: u64) -> u64 {
        let [a, b, c, d] = self.0;
        a ^ b.rotate_left(13) ^ c.rotate_left(29) ^ d.rotate_left(43) ^ answer
    }

    /// The answer, if it is kept: a record, or that there is none.
    fn known(&self) -> Option<Option<&'static LocalRecord>> {
        let kept = self.place().each_ref().map(|word| word.load(Relaxed));
        let [question @ .., answer, mixed] = kept;
        if answer == 0 || question != self.0 || mixed != self.mixed(answer) {
            return None;
        }
        // SAFETY: stored by `remember`; records of images stay.
        Some((answer != NOTHING).then(|| unsafe { &*(answer as *const LocalRecord) }))
    }

    fn remember(&self, found: Option<&'static LocalRecord>) {
        let answer = found.map_or(NOTHING, |record| core::ptr::from_ref(record) as u64);
        let [a, b, c, d] = self.0;
        let words = [a, b, c, d, answer, self.mixed(answer)];
        for (place, word) in self.place().iter().zip(words) {
            place.store(word, Relaxed);
        }
    }
}
