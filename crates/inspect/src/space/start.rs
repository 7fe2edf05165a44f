//! *What did the kernel lay on the first stack?*
//!
//! ```text
//!   first frame ─▶ argc, argv[argc], NULL, environ[…], NULL, auxv[…], AT_NULL     words
//!                  … AT_RANDOM's bytes, AT_PLATFORM's text …
//!                  argument strings, environment strings, AT_EXECFN's path         up to the stack's end
//! ```
//!
//! The vectors are read as they are now: a program may have put other pointers there, and those that lead
//! elsewhere are not followed.

use super::objects::word;
use super::{Span, StartKind, StartPiece};
use crate::memory::ProcessMemory;
use crate::running::Mapping;
use pointee_model::addr::RunAddr;

/// Pointers of one vector that are followed.
const MOST: u64 = 1 << 16;
/// Longest string: the kernel's limit for one (`MAX_ARG_STRLEN`).
const LONGEST: usize = 128 << 10;

/// The stack pointer at the program's start: field 28 of `/proc/PID/stat`, 0 for those who may not trace it.
pub(super) fn first_frame(pid: u32) -> Option<RunAddr> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, also parentheses.
    let rest = stat.get(stat.rfind(')')? + 1..)?;
    let start: u64 = rest.split_whitespace().nth(25)?.parse().ok()?;
    (start != 0).then_some(RunAddr(start))
}

/// What lies above the first frame, in order of address.
pub(super) fn pieces(
    first: RunAddr,
    mappings: &[Mapping],
    memory: &ProcessMemory,
) -> Vec<StartPiece> {
    let Some(stack) = mappings
        .iter()
        .find(|mapping| (mapping.start..mapping.end).contains(&first))
    else {
        return Vec::new();
    };
    let mut reader = Reader {
        memory,
        stack: Span {
            start: first,
            end: stack.end,
        },
        pieces: Vec::new(),
    };
    reader.read(first);
    let mut pieces = reader.pieces;
    pieces.sort_by_key(|piece| piece.span.start);
    // Strings that were made to overlap count once.
    let mut end = RunAddr(0);
    pieces.retain(|piece| {
        let apart = piece.span.start >= end;
        end = end.max(piece.span.end);
        apart
    });
    pieces
}

struct Reader<'m> {
    memory: &'m ProcessMemory,
    stack: Span,
    pieces: Vec<StartPiece>,
}

impl Reader<'_> {
    fn read(&mut self, first: RunAddr) -> Option<()> {
        let count = word(self.memory, first)?.min(MOST);
        let mut at = first.plus(8);
        for number in 0..count {
            let pointer = word(self.memory, at.plus(number * 8))?;
            self.string(pointer, StartKind::Argument, || format!("argv[{number}]"));
        }
        at = at.plus((count + 1) * 8);
        self.add(first, at, StartKind::ArgumentVector, "argv".to_owned());
        let environment = at;
        for _ in 0..MOST {
            let pointer = word(self.memory, at)?;
            at = at.plus(8);
            if pointer == 0 {
                break;
            }
            self.string(pointer, StartKind::Environment, String::new);
        }
        self.add(
            environment,
            at,
            StartKind::EnvironmentVector,
            "environ".to_owned(),
        );
        self.auxiliary(at)
    }

    fn auxiliary(&mut self, first: RunAddr) -> Option<()> {
        let mut at = first;
        for _ in 0..64 {
            let (tag, value) = (word(self.memory, at)?, word(self.memory, at.plus(8))?);
            at = at.plus(16);
            match tag {
                0 => break,
                15 => self.string(value, StartKind::Auxiliary, || "AT_PLATFORM".to_owned()),
                24 => self.string(value, StartKind::Auxiliary, || {
                    "AT_BASE_PLATFORM".to_owned()
                }),
                31 => self.string(value, StartKind::Auxiliary, || "AT_EXECFN".to_owned()),
                25 if self.stack.holds(RunAddr(value)) => {
                    let bytes = RunAddr(value);
                    let name = "AT_RANDOM".to_owned();
                    self.add(bytes, bytes.plus(16), StartKind::Auxiliary, name);
                }
                _ => {}
            }
        }
        self.add(first, at, StartKind::AuxiliaryVector, "auxv".to_owned());
        Some(())
    }

    /// The string at `pointer`; one of the environment goes by its own name.
    fn string(&mut self, pointer: u64, kind: StartKind, name: impl FnOnce() -> String) {
        let start = RunAddr(pointer);
        if !self.stack.holds(start) {
            return;
        }
        let left = usize::try_from(self.stack.end.0 - pointer).unwrap_or(LONGEST);
        let mut text = Vec::new();
        let mut part = [0; 256];
        while text.len() < left.min(LONGEST) {
            let len = (left - text.len()).min(part.len());
            if !self
                .memory
                .read_at(start.plus(text.len() as u64), &mut part[..len])
            {
                return;
            }
            match part[..len].iter().position(|byte| *byte == 0) {
                Some(end) => {
                    text.extend_from_slice(&part[..end]);
                    break;
                }
                None => text.extend_from_slice(&part[..len]),
            }
        }
        let name = match kind {
            StartKind::Environment => {
                let end = text.iter().position(|byte| *byte == b'=');
                String::from_utf8_lossy(&text[..end.unwrap_or(text.len())]).into_owned()
            }
            _ => name(),
        };
        self.add(start, start.plus(text.len() as u64 + 1), kind, name);
    }

    fn add(&mut self, start: RunAddr, end: RunAddr, kind: StartKind, name: String) {
        self.pieces.push(StartPiece {
            span: Span { start, end },
            kind,
            name,
        });
    }
}
