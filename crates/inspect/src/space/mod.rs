//! *What is each byte of this address space part of?*
//!
//! A [`Layout`] is what can be seen of a process from outside beside its index: mappings, loaded
//! files, threads with their stacks unwound, what the kernel put there at the start. It is taken
//! once, from a running process ([`Layout::of_process`]), and saved in snapshots, so that both give
//! the same answers. A [`Space`] joins it with the index and the images and cuts every mapping into
//! *leaves*: ranges that do not overlap and leave nothing out.
//!
//! ```text
//!   /proc/PID/{maps,stat,task} ─┐
//!   ELF headers in its memory  ─┼─▶ Layout ─┐
//!   .eh_frame in its memory    ─┘           ├─▶ Space ─▶ leaf of an address, leaves of a mapping
//!                         index, images ────┘
//! ```
//!
//! Words
//! - *leaf*: the deepest allocation, or a part of an allocator's own that is in none.
//! - *object*: a loaded ELF file (or the kernel's, `[vdso]`).
//! - *frame*: from the stack pointer of one call up to its *canonical frame address*, where its caller's begins.
//!
//! Invariant: nothing runs in the process. Threads go on, unless [`Stop::Briefly`] asks for their registers.

mod arenas;
mod carved;
mod chunks;
mod gaps;
mod layers;
mod leaf;
mod leaves;
mod mapped;
mod objects;
mod signal_stacks;
mod start;
mod thread_leaves;
mod thread_local;
mod threads;
mod unwind;

pub use leaf::{Kind, Leaf, What};
pub use leaves::Space;
pub use mapped::{Mapper, PagesSeen};
pub use objects::vdso_function;

use crate::memory::ProcessMemory;
use crate::process::{ModuleInfo, ProcessData};
use crate::running::{self, Mapping};
use pointee_model::addr::{LinkAddr, LoadBias, RunAddr};
use serde::{Deserialize, Serialize};
use std::io;

/// Bytes from `start` up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// First byte.
    pub start: RunAddr,
    /// One past the last.
    pub end: RunAddr,
}

impl Span {
    /// Whether `address` lies in it.
    #[must_use]
    pub fn holds(&self, address: RunAddr) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// What was where, and who was running.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Layout {
    /// In order of address.
    pub mappings: Vec<Mapping>,
    /// In order of address.
    pub objects: Vec<Object>,
    /// The main thread first.
    pub threads: Vec<Thread>,
    /// What the kernel laid above the first frame, in order of address.
    pub start: Vec<StartPiece>,
}

/// A loaded ELF file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Object {
    /// Path as the process knows it; `[vdso]`.
    pub path: String,
    /// From its first to its last segment.
    pub span: Span,
    /// From link-time to run-time addresses.
    pub bias: LoadBias,
    /// Empty if there is none.
    pub build_id: Vec<u8>,
    /// `PT_LOAD`: where, and the `PF_*` flags.
    pub segments: Vec<(Span, u32)>,
    /// `PT_TLS`.
    pub thread_local: Option<ThreadLocalSegment>,
    /// `PT_GNU_EH_FRAME`.
    pub unwind_table: Option<RunAddr>,
    /// `PT_DYNAMIC`.
    pub dynamic: Option<RunAddr>,
    /// Its number among those with thread-local variables, from 1.
    pub thread_local_number: Option<u64>,
}

/// What every thread has a copy of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadLocalSegment {
    /// The initial contents.
    pub address: LinkAddr,
    /// Bytes of a block.
    pub size: u64,
}

/// One thread.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Thread {
    /// The kernel's number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// The mapping, or part of one, that its stack lies in.
    pub stack: Option<Span>,
    /// The memory that it set aside for its signal handlers, if one of its frames tells.
    #[serde(default)]
    pub signal_stack: Option<Span>,
    /// Innermost first.
    pub frames: Vec<Frame>,
    /// Why `frames` does not go up to the thread's start; `None` if it does.
    pub cut: Option<String>,
    /// Its control block (glibc's `struct pthread`), at which its thread pointer points.
    pub control_block: Option<RunAddr>,
    /// Its thread-local blocks: number of the object in [`Layout::objects`], and where.
    pub blocks: Vec<(u32, Span)>,
}

/// One frame.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Frame {
    /// Where it is executing, or will go on.
    pub pc: RunAddr,
    /// `pc` is a return address: the call before it is what is being executed.
    pub is_return: bool,
    /// From its stack pointer to its canonical frame address.
    pub span: Span,
    /// Registers as this frame sees them, by DWARF number; `None`: lost.
    pub registers: Vec<Option<u64>>,
    /// Where the caller's registers are kept: slot and DWARF number (16: the return address).
    pub saved: Vec<(RunAddr, u16)>,
    /// Made by the kernel to run a signal handler.
    pub is_signal: bool,
}

impl Frame {
    /// An address in the instruction that is being executed, for questions about code.
    #[must_use]
    pub fn executing(&self) -> RunAddr {
        RunAddr(self.pc.0.wrapping_sub(u64::from(self.is_return)))
    }
}

/// What the kernel put on the first stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartKind {
    /// Number and pointers of the arguments.
    ArgumentVector,
    /// One argument.
    Argument,
    /// Pointers to the environment's strings.
    EnvironmentVector,
    /// `NAME=value`.
    Environment,
    /// The auxiliary vector.
    AuxiliaryVector,
    /// What an entry of it points to.
    Auxiliary,
}

/// A piece of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartPiece {
    /// Where.
    pub span: Span,
    /// What.
    pub kind: StartKind,
    /// `argv[1]`, `PATH`, `AT_RANDOM`.
    pub name: String,
}

/// How registers are come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// What the kernel tells of threads that wait; a thread that runs keeps its frames to itself.
    Never,
    /// Each thread is stopped for some microseconds (`PTRACE_SEIZE`). A wait of some kinds
    /// (`epoll_wait`, signal(7)) may end early with `EINTR`.
    Briefly,
}

impl Layout {
    /// Looks at process `pid`.
    ///
    /// # Errors
    /// When there is no such process, or it may not be read.
    pub fn of_process(pid: u32, stop: Stop) -> io::Result<Self> {
        let memory = ProcessMemory::open(pid)?;
        let mappings = running::mappings(pid)?;
        let mut objects = objects::find(&mappings, &memory);
        objects::number_thread_locals(pid, &mut objects, &memory);
        let first = start::first_frame(pid);
        let start = first.map_or_else(Vec::new, |first| start::pieces(first, &mappings, &memory));
        let mut layout = Self {
            mappings,
            objects,
            threads: Vec::new(),
            start,
        };
        layout.threads = threads::find(pid, &layout, &memory, stop, first);
        Ok(layout)
    }

    /// Whether it is one that [`Layout::of_process`] could have made: ranges are ordered and lie apart.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        fn is_ordered(spans: impl Iterator<Item = Span>) -> bool {
            let mut end = RunAddr(0);
            spans.into_iter().all(|span| {
                let apart = end <= span.start && span.start < span.end;
                end = span.end;
                apart
            })
        }
        let mappings = self.mappings.iter().map(|mapping| Span {
            start: mapping.start,
            end: mapping.end,
        });
        let threads = self.threads.iter();
        let stacks = threads
            .clone()
            .flat_map(|thread| thread.stack.into_iter().chain(thread.signal_stack));
        let blocks = threads.flat_map(|thread| thread.blocks.iter().map(|(_, span)| *span));
        let segments = self.objects.iter().flat_map(|object| &object.segments);
        is_ordered(mappings)
            && is_ordered(self.objects.iter().map(|object| object.span))
            && is_ordered(self.start.iter().map(|piece| piece.span))
            && stacks.chain(blocks).all(|span| span.start <= span.end)
            && segments.into_iter().all(|(span, _)| span.start <= span.end)
    }

    /// The mapping that holds `address`, with its number.
    #[must_use]
    pub fn mapping_at(&self, address: RunAddr) -> Option<(usize, &Mapping)> {
        let after = self
            .mappings
            .partition_point(|mapping| mapping.start <= address);
        let at = after.checked_sub(1)?;
        let mapping = self.mappings.get(at)?;
        (address < mapping.end).then_some((at, mapping))
    }

    /// The object one of whose segments holds `address`, with its number.
    #[must_use]
    pub fn object_at(&self, address: RunAddr) -> Option<(usize, &Object)> {
        let holds = |object: &Object| {
            object.span.holds(address)
                && object.segments.iter().any(|(span, _)| span.holds(address))
        };
        let at = self.objects.iter().position(holds)?;
        Some((at, &self.objects[at]))
    }

    /// The objects whose images it takes to tell what lies at `address`, by number: the one there; on a stack, those
    /// of its frames; in a thread-local block, the block's.
    #[must_use]
    pub fn objects_needed(&self, address: RunAddr) -> Vec<usize> {
        let here = self.object_at(address).map(|(number, _)| number);
        let mut needed: Vec<usize> = here.into_iter().collect();
        for thread in &self.threads {
            let mut stacks = thread.stack.into_iter().chain(thread.signal_stack);
            if stacks.any(|stack| stack.holds(address)) {
                let code = thread.frames.iter().map(Frame::executing);
                needed.extend(code.filter_map(|code| Some(self.object_at(code)?.0)));
            }
            let blocks = thread.blocks.iter().filter(|(_, span)| span.holds(address));
            needed.extend(blocks.map(|(number, _)| *number as usize));
        }
        needed.sort_unstable();
        needed.dedup();
        needed
    }

    /// Numbers the objects as `process` numbers its modules; those it does not know are added to it.
    /// The same layout gives the same numbers.
    #[must_use]
    pub fn join(&self, process: &mut ProcessData) -> Vec<u32> {
        let number = |object: &Object| {
            let is_it = |module: &ModuleInfo| {
                module.loaded
                    && module.bias == object.bias
                    && module.start < object.span.end
                    && object.span.start < module.end
            };
            if let Some(known) = process.modules.iter().position(is_it) {
                return known as u32;
            }
            process.modules.push(ModuleInfo {
                start: object.span.start,
                end: object.span.end,
                bias: object.bias,
                path: object.path.clone(),
                build_id: object.build_id.clone(),
                flags: 0,
                loaded: true,
            });
            process.modules.len() as u32 - 1
        };
        self.objects.iter().map(number).collect()
    }
}
