//! *Which variable of the asking thread lies at this address?*
//!
//! From the caller's frame outwards by the rules of [`crate::cfi`], up to the frame that spans the address; then the image
//! tells what lies there at the frame's place in the code. Rules are kept, so that asking again costs no evaluation.
//! Frames whose rule is more than a register and an offset end the walk: what lies beyond is not known.

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
    /// Where the call returns to.
    pub(super) return_address: u64,
    /// Where that is kept: the frame begins right above.
    pub(super) slot: u64,
    /// The frame pointer in it.
    pub(super) rbp: u64,
    /// One past its last byte: the canonical frame address.
    pub(super) end: u64,
    module: &'static Module,
}

/// Kept rules: a return address, mixed with the rule, and the rule. A torn pair does not match.
static KEPT: [[AtomicU64; 2]; 1024] = [const { [AtomicU64::new(0), AtomicU64::new(0)] }; 1024];

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
    for _ in 0..LONGEST {
        // SAFETY: the place of a return address, by the caller's promise or by the rule of the frame below.
        let return_address = unsafe { *(slot as *const u64) };
        let Some(module) = objects::holding(return_address) else {
            return;
        };
        let Some(rule) = rule(return_address, module).filter(|rule| !rule.is_leaf()) else {
            return;
        };
        let Some(next) = rule.next(slot, rbp) else {
            return;
        };
        let frame = Frame {
            return_address,
            slot,
            rbp,
            end: next + 8,
            module,
        };
        if each(&frame) {
            return;
        }
        if let Some(saved) = rule.saved_rbp(next) {
            // SAFETY: the place lies in the frame, between the slot and the CFA.
            rbp = unsafe { *(saved as *const u64) };
        }
        slot = next;
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
        let image = self.module.image.as_ref()?;
        let code = LinkAddr((self.return_address - 1).wrapping_sub(self.module.bias));
        let mut found: Option<(Local, u64)> = None;
        for record in image.locals_at(code).take(1024) {
            let base = match (LocalPlace::from_byte(record.place), record.register) {
                (LocalPlace::Frame, _) => self.end,
                (LocalPlace::Memory, RBP) => self.rbp,
                (LocalPlace::Memory, RSP) => self.slot + 8,
                _ => continue,
            };
            let start = base.wrapping_add_signed(record.offset);
            // Most variables are behind the address, and their types need not be looked at.
            if !self.spans(start) || start > address {
                continue;
            }
            let Some(size) = objects::type_of(self.module, record.r#type).map(|r#type| r#type.size)
            else {
                continue;
            };
            if address - start < size && found.as_ref().is_none_or(|(_, least)| size < *least) {
                let module = self.module;
                found = Some((
                    Local {
                        module,
                        record,
                        start,
                    },
                    size,
                ));
            }
        }
        found.map(|(local, _)| local)
    }
}
