//! *Which memory runs the signal handlers of a thread?* — its alternate signal stack, by two witnesses.
//!
//! ```text
//!   the frame that the kernel made to run a handler says which was set then      any process, if a thread is in a handler
//!   the index has what calls of sigaltstack set                                   recorded processes, also while it is not in use
//! ```
//!
//! Such a stack lies in something else: a block, a variable, a mapping, the thread's own stack.

use super::layers::fold;
use super::leaf::{Kind, Leaf, What};
use super::leaves::{Space, overlaps};
use super::{Layout, Span};
use crate::memory::ProcessMemory;
use pointee_model::addr::RunAddr;

/// What the kernel noted of the thread's alternate stack in the frame of a signal whose `struct ucontext` lies at `context`: it has two words
/// before its `uc_stack` (arch/x86/include/uapi/asm/ucontext.h). Only one that is mapped counts.
pub(super) fn stack_noted_at(
    context: RunAddr,
    memory: &ProcessMemory,
    layout: &Layout,
) -> Option<Span> {
    const STACK: u64 = 16;
    const DISABLED: u64 = 2;
    let word = |number: u64| super::objects::word(memory, context.plus(STACK + 8 * number));
    let (start, flags, len) = (word(0)?, word(1)? & 0xffff_ffff, word(2)?);
    if flags & DISABLED != 0 {
        return None;
    }
    mapped(start, len, layout)
}

fn mapped(start: u64, len: u64, layout: &Layout) -> Option<Span> {
    let (start, end) = (RunAddr(start), RunAddr(start.checked_add(len)?));
    let is_mapped = len != 0
        && layout.mapping_at(start).is_some()
        && layout.mapping_at(RunAddr(end.0 - 1)).is_some();
    is_mapped.then_some(Span { start, end })
}

impl<'a> Space<'a> {
    /// All of living threads, with the threads' numbers, in order of address and apart.
    fn signal_stacks(&self) -> &[(usize, Span)] {
        self.signal_stacks.get_or_init(|| {
            let threads = self.layout.threads.iter().enumerate();
            let mut stacks: Vec<(usize, Span)> = threads
                .filter_map(|(number, thread)| Some((number, thread.signal_stack?)))
                .collect();
            if let Some(index) = self.index {
                index.each_signal_stack(|seen| {
                    let mut threads = self.layout.threads.iter();
                    let thread = threads.position(|thread| thread.id == seen.thread);
                    stacks.extend(thread.zip(mapped(seen.start, seen.len, self.layout)));
                });
            }
            stacks.sort_by_key(|(thread, span)| (span.start, *thread));
            let mut end = RunAddr(0);
            stacks.retain(|(_, span)| {
                let is_apart = end <= span.start;
                end = end.max(span.end);
                is_apart
            });
            stacks
        })
    }

    /// The signal stack that holds `address`, and whose it is.
    #[must_use]
    pub fn signal_stack_at(&self, address: RunAddr) -> Option<(usize, Span)> {
        let mut stacks = self.signal_stacks().iter();
        stacks.find(|(_, span)| span.holds(address)).copied()
    }

    /// The deepest thing at `address` of a signal stack.
    pub(super) fn leaf_on_signal_stack(&self, address: RunAddr) -> Option<Leaf<'a>> {
        let (_, stack) = self.signal_stack_at(address)?;
        let leaves = self.cut_signal_stacks(stack).into_iter();
        let mut here = leaves.filter(|(seen, _)| seen.holds(address));
        here.next().map(|(_, leaf)| leaf)
    }

    /// Frames on signal stacks in `window`, and what is left of these stacks.
    pub(super) fn leaves_on_signal_stacks(&self, window: Span) -> Vec<Leaf<'a>> {
        let cut = self.cut_signal_stacks(window).into_iter();
        cut.map(|(seen, leaf)| Leaf { span: seen, ..leaf })
            .collect()
    }

    fn cut_signal_stacks(&self, window: Span) -> Vec<(Span, Leaf<'a>)> {
        let inside = |(thread, span): &(usize, Span)| {
            let part = Span {
                start: span.start.max(window.start),
                end: span.end.min(window.end),
            };
            overlaps(*span, window).then_some((*thread, *span, part))
        };
        let stacks = self.signal_stacks().iter().filter_map(inside);
        stacks
            .flat_map(|(thread, span, part)| {
                let mut frames = self.frames(part);
                frames.sort_by_key(|leaf| leaf.span.start);
                let what = What::SignalStack { thread };
                let whole = Leaf::new(span.start.0, span.end.0, Kind::SignalStack, what);
                fold(part, &[frames], &mut |gap| vec![(gap, whole)])
            })
            .collect()
    }
}
