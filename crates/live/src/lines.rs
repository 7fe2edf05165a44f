//! *What is each instruction of generated code for?* Rows in the order of the code, each for the bytes up to the next: lines of a listing
//! (`listing.rs`), and what a debugger is told by its line table.

use pointee_patch::EntryPlan;
use pointee_patch::arch::x86_64::context::Part;
use pointee_patch::arch::x86_64::relocate::MAX_DISPLACED;

use crate::probe::MOST;

/// What stretches of code are for. Fresh pages are zero, which is the first of these.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    /// A jump to what is called instead.
    ToReplacement,
    /// The hook's record is pushed for the stub that comes next.
    Push,
    /// A jump to the stub of wrapped functions.
    ToStub,
    /// No code: what the jump before reads, and what is left over.
    Data,
    /// Of a probe: keeps what somebody may still read.
    Save,
    /// Of a probe: its action with this number.
    Action(u8),
    /// Of a probe: brings back what was kept.
    Restore,
    /// The displaced instruction with this number.
    Displaced(u8),
    /// The jump to the first instruction that was not displaced.
    Home,
    /// Of a thunk: a wrapped function returns to it.
    Return,
}

/// A relay is three rows at most, a probe all its actions and what is around them.
const ROWS: usize = MOST + 2 + MAX_DISPLACED + 1;

/// The rows of one piece of code.
#[derive(Clone, Copy)]
pub(crate) struct Lines {
    rows: [(u16, What); ROWS],
    len: u8,
    end: u64,
}

impl Lines {
    pub(crate) const fn none() -> Self {
        Self {
            rows: [(0, What::Data); ROWS],
            len: 0,
            end: 0,
        }
    }

    /// Of code that is all for one thing.
    pub(crate) fn all(what: What, len: u64) -> Self {
        let mut lines = Self::none();
        lines.add(0, what);
        lines.end = len;
        lines
    }

    /// A part of a probe begins `at` bytes into the code.
    pub(crate) fn part(&mut self, at: usize, part: Part) {
        let what = match part {
            Part::Save => What::Save,
            Part::Action(number) => What::Action(number as u8),
            Part::Restore => What::Restore,
        };
        self.add(at, what);
    }

    /// Something else begins `at` bytes into the code; the rows come in that order. Those of which there are more than can be are left out.
    pub(crate) fn add(&mut self, at: usize, what: What) {
        if let (Some(row), Ok(at)) = (self.rows.get_mut(usize::from(self.len)), u16::try_from(at)) {
            *row = (at, what);
            self.len += 1;
        }
    }

    /// The trampoline of `plan` lies `at` bytes into the code, and is its last part.
    pub(crate) fn trampoline(&mut self, at: usize, plan: &EntryPlan) {
        for (number, landing) in plan.landings().iter().enumerate() {
            self.add(
                at + usize::from(landing.copy),
                What::Displaced(number as u8),
            );
        }
        let len = plan.trampoline.len();
        if usize::from(plan.copies_len()) < len {
            self.add(at + usize::from(plan.copies_len()), What::Home);
        }
        self.end = (at + len) as u64;
    }

    /// What each row is for.
    pub(crate) fn iter(&self) -> impl Iterator<Item = What> + '_ {
        self.rows[..self.len()].iter().map(|(_, what)| *what)
    }

    /// Where each row begins; of which the first [`Self::len`] count.
    pub(crate) fn offsets(&self) -> [u16; ROWS] {
        self.rows.map(|(at, _)| at)
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Where the last row ends, in bytes from the code's first.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }
}
