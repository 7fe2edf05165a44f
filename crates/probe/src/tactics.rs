//! *How is a point reached, or why is it not?* — the words of reports; `place` says what they mean in
//! bytes.

/// How an instruction was reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Tactic {
    /// A five-byte jump on one instruction.
    Jump,
    /// A five-byte jump that displaces instructions beside it.
    Neighbours,
    /// A five-byte jump that reaches into padding.
    Padding,
    /// A call that calls the copy.
    Call,
    /// A two-byte jump to a jump near by.
    Relay,
    /// The same, of one byte: its distance is the byte behind it, whatever that is.
    Overlap,
    /// None of its own: control comes to it in copies only.
    Copied,
    /// Nothing is changed at a function's start: all its callers are known, and call the copy.
    Callers,
    /// An `int3`, where nothing else fits: the handler of its signal goes on in the copy.
    Trap,
}

impl Tactic {
    /// All, in order of preference.
    pub const ALL: [Self; 9] = [
        Self::Jump,
        Self::Neighbours,
        Self::Padding,
        Self::Call,
        Self::Relay,
        Self::Overlap,
        Self::Copied,
        Self::Callers,
        Self::Trap,
    ];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Jump => "jump",
            Self::Neighbours => "neighbours",
            Self::Padding => "padding",
            Self::Call => "call",
            Self::Relay => "relay",
            Self::Overlap => "overlap",
            Self::Copied => "copied",
            Self::Callers => "callers",
            Self::Trap => "trap",
        }
    }
}

/// Why an instruction has no probe.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Refusal {
    /// Fewer than two bytes, or none to relay through.
    NoRoom,
    /// The same, in a function with an indirect jump of unknown targets.
    UnknownJumps,
    /// A branch goes into its middle, or its meaning depends on its place.
    Immovable,
    /// Nothing known leads to it: it may be data.
    Unreached,
    /// A trap would fit, in a file where a system call that is about signals cannot be seen.
    Unseen,
}

impl Refusal {
    /// In a few words.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoRoom => "no room for a jump",
            Self::UnknownJumps => "no room for a jump, in a function with unknown jump targets",
            Self::Immovable => "the instruction cannot be moved",
            Self::Unreached => "no known way leads there: it may be data",
            Self::Unseen => {
                "only a trap fits, and a system call of this file that may block its signal cannot be seen"
            }
        }
    }
}
