//! *Which stretches of a file are functions?*
//!
//! Two witnesses are joined: symbols that name code, and the frame description entries (FDEs) of
//! `.eh_frame`, which stripped files have too. A start that lies inside another's range divides
//! that range: hand-written functions have several entries.
//!
//! Not functions, each by a rule that is printed ([`Exclusion`]):
//!
//! - linkage stubs: whatever lies in `.plt`, `.plt.got`, `.plt.sec` and `.iplt`;
//! - signal-return stubs: an FDE whose augmentation has the letter `S`. Unwinders know them by
//!   their bytes, so nothing may be changed there;
//! - cold parts: a symbol whose name says so (`.cold`), or an FDE whose first row has a frame
//!   already (the CFA is not `rsp + 8`), so that it cannot have been called.

use std::collections::BTreeMap;

use gimli::{CfaRule, Register};
use pointee_meta::elf::Elf;

use crate::frames::Frames;
use crate::landing_pads;

/// Why a stretch of code is not counted as a function, or an instruction is no point.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Exclusion {
    /// The rarely executed part of a function that was split.
    ColdPart,
    /// What the kernel lets a signal handler return to.
    SignalReturn,
    /// Nothing known leads there.
    Unreached,
}

impl Exclusion {
    /// In a few words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ColdPart => "cold part of a function",
            Self::SignalReturn => "signal-return stub",
            Self::Unreached => "no known way leads there: it may be data",
        }
    }
}

/// A stretch of code. Functions do not overlap, and are sorted by their starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Function {
    /// Link-time address of its first byte.
    pub start: u64,
    /// One past its last byte.
    pub end: u64,
    /// A symbol's name; `None` in stripped files.
    pub name: Option<String>,
    /// Why it is not counted as one.
    pub exclusion: Option<Exclusion>,
}

impl Function {
    /// Its symbol, or its address.
    #[must_use]
    pub fn label(&self) -> String {
        self.name
            .clone()
            .unwrap_or_else(|| format!("{:#x}", self.start))
    }
}

/// The functions of a file, and where its exceptions land.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) functions: Vec<Function>,
    pub(crate) landing_pads: Vec<u64>,
}

#[derive(Default)]
struct Candidate<'a> {
    end: Option<u64>,
    name: Option<&'a str>,
    /// How good the name is: dynamic before static, global before local.
    rank: u8,
    exclusion: Option<Exclusion>,
}

/// Whether a section holds nothing but linkage stubs.
fn is_linkage(name: &str) -> bool {
    matches!(name, ".plt" | ".plt.got" | ".plt.sec" | ".iplt")
}

/// Finds them.
pub(crate) fn find(elf: &Elf) -> Found {
    let sections: Vec<(u64, u64)> = elf
        .text_sections()
        .filter(|section| !is_linkage(&section.name))
        .map(|section| {
            (
                section.address,
                section.address.saturating_add(section.size),
            )
        })
        .collect();
    let section_of = |address: u64| {
        sections
            .iter()
            .find(|(from, to)| (*from..*to).contains(&address))
    };
    let mut candidates: BTreeMap<u64, Candidate<'_>> = BTreeMap::new();
    let mut landing_pads = Vec::new();
    read_frames(elf, |frame| {
        if section_of(frame.start).is_none() || frame.len == 0 {
            return;
        }
        let candidate = candidates.entry(frame.start).or_default();
        candidate.end = Some(frame.start.saturating_add(frame.len));
        candidate.exclusion = frame.exclusion;
        if let Some(table) = frame.exception_table {
            landing_pads::read(elf, table, frame.start, &mut landing_pads);
        }
    });
    for symbol in elf.symbols() {
        if !symbol.is_function() || section_of(symbol.address).is_none() {
            continue;
        }
        let candidate = candidates.entry(symbol.address).or_default();
        if symbol.size > 0 && candidate.end.is_none() {
            candidate.end = Some(symbol.address.saturating_add(symbol.size));
        }
        let rank = 1 + 2 * u8::from(!symbol.is_local()) + u8::from(symbol.dynamic);
        if rank > candidate.rank && !symbol.name.is_empty() {
            candidate.rank = rank;
            candidate.name = Some(symbol.name);
        }
        if symbol.name.ends_with(".cold") || symbol.name.contains(".cold.") {
            candidate.exclusion = Some(Exclusion::ColdPart);
        }
    }
    let starts: Vec<u64> = candidates.keys().copied().collect();
    // What a divided range has left goes to the entry that divides it.
    let mut carried = 0;
    let mut functions = Vec::new();
    for (at, (start, candidate)) in candidates.into_iter().enumerate() {
        let next = starts.get(at + 1).copied().unwrap_or(u64::MAX);
        let section_end = section_of(start).map_or(start, |(_, to)| *to);
        let stated = candidate.end.unwrap_or(next);
        let end = stated.max(carried).min(section_end);
        carried = end;
        functions.push(Function {
            start,
            end: end.min(next),
            name: candidate.name.map(str::to_owned),
            exclusion: candidate.exclusion,
        });
    }
    Found {
        functions,
        landing_pads,
    }
}

/// One FDE.
struct Frame {
    start: u64,
    len: u64,
    exclusion: Option<Exclusion>,
    /// Address of its language-specific data.
    exception_table: Option<u64>,
}

fn read_frames(elf: &Elf, mut each: impl FnMut(&Frame)) {
    let Some(frames) = Frames::of(elf) else {
        return;
    };
    frames.each(|record| {
        let mut first = None;
        record.rows(|row| {
            first = Some(row.cfa().clone());
            false
        });
        let entry = &record.entry;
        let exclusion = if entry.is_signal_trampoline() {
            Some(Exclusion::SignalReturn)
        } else {
            match first {
                Some(CfaRule::RegisterAndOffset { register, offset })
                    if register != Register(7) || offset != 8 =>
                {
                    Some(Exclusion::ColdPart)
                }
                _ => None,
            }
        };
        let exception_table = entry.lsda().and_then(|pointer| match pointer {
            gimli::Pointer::Direct(address) => Some(address),
            gimli::Pointer::Indirect(_) => None,
        });
        each(&Frame {
            start: entry.initial_address(),
            len: entry.len(),
            exclusion,
            exception_table,
        });
    });
}
