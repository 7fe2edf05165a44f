//! *Which variable of the asking thread lies at this address?*
//!
//! From the caller's frame outwards by the rules of [`crate::cfi`], up to the frame that spans the address; then the image
//! tells what lies there at the frame's place in the code. Rules are kept, so that asking again costs no evaluation.
//! From a signal handler it goes on in what was interrupted, wherever that lies: the kernel's frame holds its registers. Other frames whose
//! rule is more than a register and an offset end the walk: what lies beyond is not known.

#![allow(unsafe_code)] // Reads the asking thread's stack.

use super::objects;
use crate::cfi;
use crate::modules::Module;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use pointee_index::origins::Rule;
use pointee_model::addr::LinkAddr;
use pointee_model::image::{LocalPlace, LocalRecord};

/// Frames that are walked.
const LONGEST: usize = 4096;
/// DWARF numbers of the registers that a walk knows (System V ABI, AMD64, figure 3.36).
const RBP: u16 = 6;
const RSP: u16 = 7;

/// A frame of the asking thread, seen from a call that it made.
#[derive(Clone, Copy)]
pub(super) struct Frame {
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
/// `slot` is the stack pointer at the entry of a function called by this thread, `rbp` the frame pointer there.
pub(super) unsafe fn walk(mut slot: u64, mut rbp: u64, mut each: impl FnMut(&Frame) -> bool) {
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

/// A variable in a frame.
pub(super) struct Local {
    pub(super) module: &'static Module,
    pub(super) record: &'static LocalRecord,
    pub(super) start: u64,
}

impl Frame {
    /// Whether the address lies in it.
    pub(super) fn spans(&self, address: u64) -> bool {
        (self.slot + 8..self.end).contains(&address)
    }

    /// The module of its code.
    pub(super) fn module(&self) -> &'static Module {
        self.module
    }

    /// The variable that holds `address`: the smallest, where several do.
    pub(super) fn local_at(&self, address: u64) -> Option<Local> {
        let asked = Asked::of(self, address);
        let record = asked.known().unwrap_or_else(|| {
            let found = self.find_local(address);
            asked.remember(found);
            found
        })?;
        Some(Local {
            module: self.module,
            record,
            start: self.start_of(record)?,
        })
    }

    /// Where a variable lies that is in the frame's memory.
    fn start_of(&self, record: &LocalRecord) -> Option<u64> {
        let base = match (LocalPlace::from_byte(record.place), record.register) {
            (LocalPlace::Frame, _) => self.end,
            (LocalPlace::Memory, RBP) => self.rbp,
            (LocalPlace::Memory, RSP) => self.slot + 8,
            _ => return None,
        };
        Some(base.wrapping_add_signed(record.offset))
    }

    fn find_local(&self, address: u64) -> Option<&'static LocalRecord> {
        let image = objects::image(self.module)?;
        let code = LinkAddr(self.code.wrapping_sub(self.module.bias));
        let mut found: Option<(&LocalRecord, u64)> = None;
        for record in image.locals_at(code).take(1024) {
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
            if address - start < size && found.is_none_or(|(_, least)| size < least) {
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
    fn of(frame: &Frame, address: u64) -> Self {
        let below = |at: u64| frame.end.wrapping_sub(at);
        // Stacks are smaller than 4 GiB, or the question is another each time.
        let whose = below(frame.slot) << 32 ^ u64::from(frame.module.number);
        Self([frame.code, below(address), below(frame.rbp), whose])
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
