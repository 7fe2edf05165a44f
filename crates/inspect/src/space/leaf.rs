//! *What can a range of memory be?* — the kinds of leaves, and one leaf.

use super::Span;
use pointee_index::read::Block;
use pointee_model::addr::RunAddr;
use pointee_model::image::{LocalRecord, SiteRecord, VariableRecord};

/// What kind of thing a leaf is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    Heap,
    /// Cut out of a block, or of a mapping, by a pool.
    Pooled,
    /// Bytes behind a block that belong to it but were not asked for.
    Slack,
    /// The allocator's words before a block.
    Header,
    /// Given back, or not handed out yet.
    Free,
    /// Not free by its header, and in no block that was handed out: kept for the next request of its size.
    Cached,
    /// The allocator's own records.
    Allocator,
    /// Between the blocks of an allocator whose records are not read: free, or its own.
    Hole,
    /// In an arena, where its records cannot be followed.
    Arena,
    Static,
    Literal,
    /// Read-only data that has no name.
    Constants,
    /// Writable data that has no name.
    Data,
    /// Made by the linker for itself and the dynamic linker.
    Linkage,
    /// Between variables, for alignment.
    Padding,
    /// In a segment, outside of all sections: headers, and what fills the last page.
    Segment,
    Code,
    ThreadLocal,
    /// A thread's control block.
    Thread,
    Local,
    /// Made by `alloca`.
    Alloca,
    /// A caller's register, kept in a frame; the return address.
    Saved,
    /// In a frame, in no variable: what the compiler keeps there for itself.
    Frame,
    /// A stack outside of its frames.
    Stack,
    /// The same of memory set aside for signal handlers.
    SignalStack,
    Argument,
    Environment,
    Auxiliary,
    Vdso,
    Vvar,
    /// A mapped file that is no program.
    File,
    Anonymous,
    /// No access: guards, and room kept free.
    Reserved,
    /// Pointee's own.
    Pointee,
}

impl Kind {
    /// The word used in reports and JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Heap => "heap",
            Self::Pooled => "pool",
            Self::Slack => "slack",
            Self::Header => "header",
            Self::Free => "free",
            Self::Cached => "cached",
            Self::Allocator => "allocator",
            Self::Hole => "hole",
            Self::Arena => "arena",
            Self::Static => "static",
            Self::Literal => "literal",
            Self::Constants => "constants",
            Self::Data => "data",
            Self::Linkage => "linkage",
            Self::Padding => "padding",
            Self::Segment => "segment",
            Self::Code => "code",
            Self::ThreadLocal => "thread-local",
            Self::Thread => "thread",
            Self::Local => "local",
            Self::Alloca => "alloca",
            Self::Saved => "saved",
            Self::Frame => "frame",
            Self::Stack => "stack",
            Self::SignalStack => "signal-stack",
            Self::Argument => "argument",
            Self::Environment => "environment",
            Self::Auxiliary => "auxiliary",
            Self::Vdso => "vdso",
            Self::Vvar => "vvar",
            Self::File => "file",
            Self::Anonymous => "anonymous",
            Self::Reserved => "reserved",
            Self::Pointee => "pointee",
        }
    }
}

/// What exactly a leaf is. Objects, threads and frames go by their numbers in the layout.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum What<'a> {
    Block(Block),
    /// A block that only the allocator's header tells of.
    Chunk,
    Variable {
        object: usize,
        record: &'a VariableRecord,
    },
    Function {
        object: usize,
    },
    Literal {
        object: usize,
    },
    Section {
        object: usize,
        section: usize,
    },
    ThreadLocal {
        thread: usize,
        object: usize,
        record: Option<&'a VariableRecord>,
    },
    ControlBlock {
        thread: usize,
    },
    Local {
        thread: usize,
        frame: usize,
        object: usize,
        record: &'a LocalRecord,
    },
    /// A block that the function made on its stack, behind a pointer of its own.
    Carved {
        thread: usize,
        frame: usize,
        object: usize,
        pointer: &'a LocalRecord,
        /// Where, if that is clear.
        site: Option<&'a SiteRecord>,
    },
    Saved {
        thread: usize,
        frame: usize,
        register: u16,
    },
    Frame {
        thread: usize,
        frame: usize,
    },
    Stack {
        thread: usize,
    },
    SignalStack {
        thread: usize,
    },
    Start {
        piece: usize,
    },
    /// Nothing deeper than the mapping.
    Mapping,
}

/// A range that is one thing.
#[derive(Debug, Clone, Copy)]
pub struct Leaf<'a> {
    /// Where.
    pub span: Span,
    /// What kind.
    pub kind: Kind,
    /// What.
    pub what: What<'a>,
}

impl<'a> Leaf<'a> {
    pub(super) fn new(start: u64, end: u64, kind: Kind, what: What<'a>) -> Self {
        Self {
            span: Span {
                start: RunAddr(start),
                end: RunAddr(end),
            },
            kind,
            what,
        }
    }
}
