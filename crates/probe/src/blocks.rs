//! *Which instructions run one after the other, whatever happens?*
//!
//! A block begins at every mark and ends behind every branch and call. Control can only enter it at
//! its start, so the rest of its bytes may be overwritten once all of it runs elsewhere.

use crate::code::{Code, Kind, mark};
use crate::functions::Exclusion;

/// A run of instructions of one function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// Its instructions: first, one past the last.
    pub(crate) first: u32,
    pub(crate) last: u32,
    /// Link-time addresses of its bytes.
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Control may come from where nothing is known.
    pub(crate) outside: bool,
    /// It is code for certain.
    pub(crate) reached: bool,
    /// It may not be moved: no instruction, entered amid one, or known to others by its bytes.
    pub(crate) fixed: bool,
    /// That, because it is one instruction which a branch enters amid; else it could be moved.
    pub(crate) inner: bool,
}

/// The blocks of a file, sorted by address.
#[derive(Debug)]
pub(crate) struct Blocks {
    pub(crate) all: Vec<Block>,
    /// For each instruction, the block that holds it.
    holders: Vec<u32>,
}

impl Blocks {
    /// Cuts the code into blocks.
    pub(crate) fn of(code: &Code<'_>) -> Self {
        let mut all: Vec<Block> = Vec::new();
        let mut open = false;
        for (at, place) in code.places.iter().enumerate() {
            let immovable = place.kind == Kind::Fixed || place.is(mark::INNER);
            let begins = !open
                || immovable
                || place.is(mark::TARGET | mark::OUTSIDE | mark::TAKEN)
                || all.last().is_some_and(|block| {
                    block.end != place.at
                        || code.places[block.first as usize].function != place.function
                });
            if begins {
                let returns_from_signal = code.functions[place.function as usize].exclusion
                    == Some(Exclusion::SignalReturn);
                all.push(Block {
                    first: at as u32,
                    last: at as u32,
                    start: place.at,
                    end: place.at,
                    outside: place.is(mark::OUTSIDE),
                    reached: place.is(mark::REACHED),
                    fixed: immovable || returns_from_signal,
                    inner: place.kind != Kind::Fixed
                        && place.is(mark::INNER)
                        && !returns_from_signal,
                });
            }
            if let Some(block) = all.last_mut() {
                block.last = at as u32 + 1;
                block.end = place.end();
            }
            open = !place.kind.ends_block() && !immovable;
        }
        let mut holders = vec![0; code.places.len()];
        for (at, block) in all.iter().enumerate() {
            holders[block.first as usize..block.last as usize].fill(at as u32);
        }
        Self { all, holders }
    }

    /// The index of the block that begins at `address`.
    pub(crate) fn at(&self, code: &Code<'_>, address: u64) -> Option<usize> {
        let place = code.find(address)?;
        let block = self.of_place(place);
        (self.all[block].first as usize == place).then_some(block)
    }

    /// The index of the block that holds instruction `place`.
    pub(crate) fn of_place(&self, place: usize) -> usize {
        self.holders[place] as usize
    }

    /// The block that adjoins `at` behind it.
    pub(crate) fn next(&self, at: usize) -> Option<usize> {
        let end = self.all[at].end;
        self.all
            .get(at + 1)
            .filter(|next| next.start == end)
            .map(|_| at + 1)
    }

    /// Where control may go from block `at`, as far as it is direct; behind a call, to its return.
    pub(crate) fn successors(&self, code: &Code<'_>, at: usize) -> impl Iterator<Item = usize> {
        let block = &self.all[at];
        let last = &code.places[block.last as usize - 1];
        let branch = (last.target != 0 && last.kind != Kind::Call)
            .then(|| self.at(code, last.target))
            .flatten();
        let next = (!last.kind.ends_flow()).then(|| self.next(at)).flatten();
        branch.into_iter().chain(next)
    }
}
