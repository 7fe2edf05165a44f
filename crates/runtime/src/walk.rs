//! *From which path of calls does this allocation come?*
//!
//! The walk starts at the return address of the hooked call and goes up to [`DEPTH`] frames, one
//! lookup in the origin tree a frame. A node's rule was made once, when the node was first
//! met ([`crate::cfi`]): it is a leaf where the metadata image knows the site for a classified one, where
//! there is no unwind information, where the rule is more than a register and an offset, or soon after
//! a call that the image of code without debug info does not know.

#![allow(unsafe_code)] // Reads the program's stack.

use crate::cfi;
use crate::region::region;
use crate::{modules, operators};
use core::sync::atomic::Ordering::Relaxed;
use pointee_index::class::Class;
use pointee_index::origins::{Frame, Node, Rule};

/// Frames at most. Of four C programs' allocations, the classified site was never more than five
/// frames up; C++ without inlining needs more.
const DEPTH: u32 = 8;

/// The origin of a call to the entry `root`, whose return address lies at `slot` and whose caller's frame pointer is `rbp`.
///
/// # Safety
/// `slot` is the stack pointer at the entry of a function.
pub(crate) unsafe fn origin(root: u32, slot: *const u64, rbp: u64) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { climb(root, slot, rbp, add) }.unwrap_or_else(|parent| parent)
}

/// The origin of such a call, if all of its path has been met before.
///
/// # Safety
/// As for [`origin`].
#[inline(always)]
pub(crate) unsafe fn known_origin(root: u32, slot: *const u64, rbp: u64) -> Option<u32> {
    // SAFETY: the caller's promise.
    unsafe { climb(root, slot, rbp, |_, _, _| None) }.ok()
}

/// Walks up to a leaf. `Err` with the origin so far where a node is missing and `add` does not make one.
///
/// # Safety
/// As for [`origin`].
#[inline(always)]
unsafe fn climb(
    root: u32,
    slot: *const u64,
    mut rbp: u64,
    add: impl Fn(u32, u64, Option<&Node>) -> Option<&'static Node>,
) -> Result<u32, u32> {
    let origins = &region().origins;
    let mut slot = slot as u64;
    let mut parent = root;
    let mut below: Option<&Node> = None;
    loop {
        // SAFETY: the stack slot of a return address, by the caller's promise or by the rule of the frame below.
        let return_address = unsafe { *(slot as *const u64) };
        let found = match below {
            Some(below) => origins.find_above(below, return_address),
            None => origins.find(parent, return_address),
        };
        let node = found
            .or_else(|| add(parent, return_address, below))
            .ok_or(parent)?;
        parent = node.id.load(Relaxed);
        let rule = Rule::from_bits(node.rule.load(Relaxed));
        if rule.is_leaf() {
            return Ok(parent);
        }
        let Some(next) = rule.next(slot, rbp) else {
            return Ok(parent);
        };
        if let Some(saved) = rule.saved_rbp(next) {
            // SAFETY: the place lies in the frame, between the slot and the CFA, or the rule would not say so.
            rbp = unsafe { *(saved as *const u64) };
        }
        slot = next;
        below = Some(node);
    }
}

#[cold]
fn add(parent: u32, return_address: u64, below: Option<&Node>) -> Option<&'static Node> {
    if return_address == 0 {
        // The end of a stack. Zero is also how an empty slot of the tree looks.
        return None;
    }
    let origins = &region().origins;
    let mut depth = below.map_or(1, |node| node.frame().depth + 1);
    let (class, is_undecided) = operators::class_of_frame(Class::of(parent), return_address, below);
    let add = |rule, module, depth| {
        let frame = Frame {
            module,
            depth,
            is_undecided,
        };
        origins.add(parent, below, return_address, rule, frame, class)
    };
    let Some(module) = modules::find(return_address) else {
        // Generated code, or a stack that is none: a leaf of no module.
        return add(Rule::LEAF, u32::MAX, depth);
    };
    let call_below = || {
        let return_address = below?.return_address.load(Relaxed);
        Some(modules::find(return_address)?.call(return_address))
    };
    if let Some(beyond) = module.call(return_address).frames_beyond(call_below) {
        // Counts for as many frames as leave those that readers look at.
        depth = depth.max(DEPTH.saturating_sub(beyond));
    }
    let rule = if depth == DEPTH {
        Rule::LEAF
    } else {
        cfi::rule(module, return_address).unwrap_or(Rule::LEAF)
    };
    add(rule, module.number, depth)
}
