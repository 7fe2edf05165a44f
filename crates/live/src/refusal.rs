//! *Why is a hook not installed, or not removed?*

use core::fmt;

use crate::stop::StopError;
use crate::sys::Errno;
use crate::tasks::Hindrance;

/// Nothing has changed, because of this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The function's code cannot be moved.
    Plan(pointee_patch::Refusal),
    /// The threads cannot be stopped.
    Stop(StopError),
    /// `/proc/self/mem` cannot be opened or written.
    NoMemoryFile(Errno),
    /// `/proc/self/maps` cannot be read.
    NoMaps(Errno),
    /// No free pages within reach.
    NoRoom,
    /// The address is not in executable memory.
    NotCode,
    /// This engine has hooked it already.
    AlreadyHooked,
    /// No hook of this engine is in place there.
    NotHooked,
    /// No direct call or jump, or one through memory at a distance, of four bytes.
    NotACall,
    /// No object imports the symbol, or nobody has it.
    NotImported,
    /// The function jumps to its own start, which a hook would take for a call.
    Looped,
    /// Others have changed the code since.
    TextChanged,
    /// The unwinder does not know the function, so that its bounds are not known.
    NoBounds,
    /// As many actions as can be are at the instruction.
    TooMany,
    /// The processor has no `xsavec`.
    NoXsave,
    /// At each attempt a thread had a program counter saved where code was to change.
    Busy,
}

impl Refusal {
    /// The reason in a few words.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Plan(refusal) => refusal.reason(),
            Self::Stop(StopError::NoTaskList(_)) => "the threads cannot be listed",
            Self::Stop(StopError::SignalRefused(_)) => "the threads cannot be signalled",
            Self::Stop(StopError::NoMemory(_)) => "no memory for the list of threads",
            Self::Stop(StopError::Multiplying) => "threads are born faster than stopped",
            Self::Stop(StopError::Unresponsive(_, hindrance)) => match hindrance {
                Hindrance::BlocksSignal => "a thread blocks the signal that stops threads",
                Hindrance::Uninterruptible => "a thread sleeps uninterruptibly",
                Hindrance::Traced => "a thread is held by a debugger",
                Hindrance::Slow => "a thread does not come to run",
            },
            Self::NoMemoryFile(_) => "the process may not write its own memory",
            Self::NoMaps(_) => "the mappings cannot be read",
            Self::NoRoom => "no free memory within reach",
            Self::NotCode => "not executable memory",
            Self::AlreadyHooked => "hooked already",
            Self::NotHooked => "not hooked",
            Self::NotACall => "no call or jump with a distance of four bytes",
            Self::NotImported => "no object imports it",
            Self::Looped => "the function jumps to its own start",
            Self::TextChanged => "somebody else has changed the code",
            Self::NoBounds => "the function's bounds are not known",
            Self::TooMany => "too many probes at the instruction",
            Self::NoXsave => "the processor cannot save its vector registers",
            Self::Busy => "threads are interrupted where code would change",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl core::error::Error for Refusal {}
