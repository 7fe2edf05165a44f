//! *Which source line is each instruction from, and which files are there?*
//!
//! Every line program is read once, however many units refer to it. A sequence that does not start
//! in code was thrown away by the linker and is dropped; so is one that overlaps an earlier one.
//! Of rows only those remain at which file or line changes.

use super::sections::Bytes;
use super::units::Units;
use crate::facts::Line;
use gimli::{Dwarf, LineProgramHeader, Unit};
use rayon::prelude::*;
use std::collections::HashMap;

/// Rows, and the numbering of files.
#[derive(Default)]
pub(super) struct Lines {
    pub(super) rows: Vec<Line>,
    pub(super) files: Vec<String>,
    /// By line program: its file numbers (as written in attributes) to indices in `files`.
    programs: Vec<Vec<Option<u32>>>,
    /// By unit: its line program.
    program_of: Vec<Option<u32>>,
}

impl Lines {
    /// The index in `files` of file `number` as unit `unit` counts them.
    pub(super) fn file(&self, unit: usize, number: u32) -> Option<u32> {
        let program = (*self.program_of.get(unit)?)?;
        *self.programs.get(program as usize)?.get(number as usize)?
    }
}

/// One line program before files are numbered.
struct Program {
    paths: Vec<Option<String>>,
    sequences: Vec<Sequence>,
    diagnostic: Option<String>,
}

/// Rows of ascending address; `file` is the program's own number.
struct Sequence {
    start: u64,
    end: u64,
    rows: Vec<(u64, u32, u32)>,
}

/// Reads the line programs of all units.
pub(super) fn read(
    units: &Units<'_>,
    is_code: &(dyn Fn(u64) -> bool + Sync),
    diagnostics: &mut Vec<String>,
) -> Lines {
    let mut numbers = HashMap::<(usize, usize), u32>::new();
    let mut owners = Vec::new();
    let mut program_of = Vec::with_capacity(units.units.len());
    for entry in &units.units {
        let owner = units.units.get(entry.line_unit);
        let offset = owner
            .and_then(|owner| owner.unit.line_program.as_ref())
            .map(|program| program.header().offset().0);
        let (Some(owner), Some(offset)) = (owner, offset) else {
            program_of.push(None);
            continue;
        };
        let number = *numbers.entry((owner.space, offset)).or_insert_with(|| {
            owners.push(entry.line_unit);
            (owners.len() - 1) as u32
        });
        program_of.push(Some(number));
    }
    let programs: Vec<Program> = owners
        .par_iter()
        .map(|unit| {
            let entry = &units.units[*unit];
            read_program(&units.spaces[entry.space], &entry.unit, is_code)
        })
        .collect();

    let mut lines = Lines {
        program_of,
        ..Lines::default()
    };
    let mut known = HashMap::<String, u32>::new();
    let mut sequences = Vec::new();
    for program in programs {
        diagnostics.extend(program.diagnostic);
        let numbers: Vec<Option<u32>> = program
            .paths
            .into_iter()
            .map(|path| {
                let path = path?;
                let next = known.len() as u32;
                Some(*known.entry(path).or_insert(next))
            })
            .collect();
        let at = lines.programs.len();
        sequences.extend(program.sequences.into_iter().map(|sequence| (at, sequence)));
        lines.programs.push(numbers);
    }
    lines.files = vec![String::new(); known.len()];
    for (path, number) in known {
        if let Some(slot) = lines.files.get_mut(number as usize) {
            *slot = path;
        }
    }
    lines.rows = join(sequences, &lines.programs);
    lines
}

fn join(mut sequences: Vec<(usize, Sequence)>, programs: &[Vec<Option<u32>>]) -> Vec<Line> {
    sequences.sort_by_key(|(_, sequence)| (sequence.start, sequence.end));
    let mut rows: Vec<Line> = Vec::new();
    let mut reached = 0;
    for (program, sequence) in sequences {
        if sequence.start < reached {
            continue;
        }
        if let Some(last) = rows.last()
            && last.file.is_some()
            && sequence.start > reached
        {
            rows.push(end_at(reached));
        }
        for (address, file, line) in sequence.rows {
            let file = programs
                .get(program)
                .and_then(|numbers| numbers.get(file as usize).copied().flatten());
            let same = rows
                .last()
                .is_some_and(|last| last.file == file && last.line == line);
            if !same {
                rows.push(Line {
                    address,
                    file,
                    line,
                });
            }
        }
        reached = sequence.end;
    }
    if rows.last().is_some_and(|last| last.file.is_some()) {
        rows.push(end_at(reached));
    }
    rows
}

fn end_at(address: u64) -> Line {
    Line {
        address,
        file: None,
        line: 0,
    }
}

fn read_program(
    dwarf: &Dwarf<Bytes<'_>>,
    unit: &Unit<Bytes<'_>>,
    is_code: &(dyn Fn(u64) -> bool + Sync),
) -> Program {
    let mut result = Program {
        paths: Vec::new(),
        sequences: Vec::new(),
        diagnostic: None,
    };
    let Some(program) = unit.line_program.clone() else {
        return result;
    };
    result.paths = paths(dwarf, unit, program.header());
    let offset = program.header().offset().0;
    let mut rows = program.rows();
    let mut current: Vec<(u64, u32, u32)> = Vec::new();
    loop {
        let row = match rows.next_row() {
            Ok(Some((_, row))) => row,
            Ok(None) => break,
            Err(error) => {
                result.diagnostic = Some(format!("line program at {offset:#x}: {error}"));
                break;
            }
        };
        let address = row.address();
        if row.end_sequence() {
            let rows = std::mem::take(&mut current);
            if let Some((start, ..)) = rows.first().copied()
                && start < address
                && is_code(start)
            {
                result.sequences.push(Sequence {
                    start,
                    end: address,
                    rows,
                });
            }
            continue;
        }
        let file = u32::try_from(row.file_index()).unwrap_or(u32::MAX);
        let line = row
            .line()
            .and_then(|line| u32::try_from(line.get()).ok())
            .unwrap_or(0);
        match current.last_mut() {
            // Several rows at one address: the last one is what the code is from.
            Some(last) if last.0 == address => *last = (address, file, line),
            Some(last) if (last.1, last.2) == (file, line) => {}
            // Addresses only go up inside a sequence; a damaged row is left out.
            Some(last) if last.0 > address => {}
            _ => current.push((address, file, line)),
        }
    }
    result
}

/// The program's files, by the number that attributes and rows use.
fn paths(
    dwarf: &Dwarf<Bytes<'_>>,
    unit: &Unit<Bytes<'_>>,
    header: &LineProgramHeader<Bytes<'_>>,
) -> Vec<Option<String>> {
    let text = |value| {
        dwarf
            .attr_string(unit, value)
            .map(|bytes| bytes.to_string_lossy().into_owned())
            .ok()
    };
    let comp_dir = unit
        .comp_dir
        .map(|bytes| bytes.to_string_lossy().into_owned())
        .unwrap_or_default();
    let directories: Vec<Option<String>> = header
        .include_directories()
        .iter()
        .map(|value| text(*value).map(|directory| join_path(&comp_dir, &directory)))
        .collect();
    // Up to version 4 directories and files count from 1, and directory 0 is the compilation's.
    let old = header.version() < 5;
    let count = header.file_names().len() + usize::from(old);
    (0..count)
        .map(|number| {
            let file = header.file(number as u64)?;
            let name = text(file.path_name())?;
            if name.starts_with('/') {
                return Some(name);
            }
            let index = usize::try_from(file.directory_index()).ok()?;
            let directory = if old {
                match index.checked_sub(1) {
                    None => Some(&comp_dir),
                    Some(index) => directories.get(index).and_then(Option::as_ref),
                }
            } else {
                directories.get(index).and_then(Option::as_ref)
            };
            Some(directory.map_or_else(|| name.clone(), |directory| join_path(directory, &name)))
        })
        .collect()
}

fn join_path(base: &str, path: &str) -> String {
    // Joined paths of a hostile file grow with both parts, and there are many of them.
    const MAX_PATH: usize = 4096;
    if path.starts_with('/') || base.is_empty() || base.len() + path.len() > MAX_PATH {
        path.to_owned()
    } else if path == "." {
        base.to_owned()
    } else {
        format!(
            "{}/{}",
            base.trim_end_matches('/'),
            path.trim_start_matches("./")
        )
    }
}
