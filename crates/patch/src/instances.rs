//! *Where was a function inlined, and where are its parameters there?* A table of it, made from a file's debug info on the host (crate
//! `pointee-probe`) and read in a process that has the file loaded, where there is no debug info. It is a run of bytes:
//!
//! ```text
//!   header: magic │ build id's length, build id │ instances, operands, bytes of names
//!   instance*: address │ names of the function and of the one that it lies in │ its first operand, how many
//!   operand*: constant or offset │ name │ kind, register, width, sign
//!   names, each with a zero at its end
//! ```
//!
//! A table is for the one build of the file whose build ID it has; whoever uses it compares that first. Any bytes may come in: what is
//! out of bounds is refused as a whole, before anything is read.

use core::ffi::CStr;

use pointee_model::addr::LinkAddr;

/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"PTEEINL1";
/// The most bytes of a build ID that fit.
pub const BUILD_ID_MAX: usize = 32;
const HEADER: usize = 56;
const INSTANCE: usize = 24;
const OPERAND: usize = 16;

/// Where a value is before an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    /// It is this.
    Constant(i64),
    /// What a general register holds, by its number in instructions, and what is added to it.
    Register(u8, i64),
    /// In memory, so far from where a general register points.
    Memory(u8, i64),
}

/// A parameter of an inlined body.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Operand<'n> {
    /// Its name.
    pub name: &'n CStr,
    /// Where it is before the body's first instruction.
    pub source: Source,
    /// How many of its bytes count: 1, 2, 4 or 8.
    pub width: u8,
    /// They are a number with a sign.
    pub is_signed: bool,
}

/// One place at which a function was inlined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instance<'t> {
    /// The body's first instruction.
    pub at: LinkAddr,
    /// The function that was inlined.
    pub function: &'t CStr,
    /// The function that it lies in.
    pub holder: &'t CStr,
    table: Table<'t>,
    first: u32,
    count: u32,
}

impl<'t> Instance<'t> {
    /// Its parameters, as far as they are known.
    pub fn operands(&self) -> impl ExactSizeIterator<Item = Operand<'t>> + use<'t> {
        let table = self.table;
        (self.first..self.first + self.count).map(move |number| table.operand(number as usize))
    }
}

/// A table that was found to be whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table<'t> {
    build_id: &'t [u8],
    instances: &'t [[u8; INSTANCE]],
    operands: &'t [[u8; OPERAND]],
    names: &'t [u8],
}

impl<'t> Table<'t> {
    /// Checks all of `bytes`; `None` if they are no table.
    #[must_use]
    pub fn read(bytes: &'t [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
        if header[..8] != MAGIC {
            return None;
        }
        let build_id = header[12..44].get(..word(header, 8) as usize)?;
        let (instances, rest) = records::<INSTANCE>(rest, word(header, 44))?;
        let (operands, names) = records::<OPERAND>(rest, word(header, 48))?;
        let table = Self {
            build_id,
            instances,
            operands,
            names: names.get(..word(header, 52) as usize)?,
        };
        // One zero at the end is an end for all.
        let ends = table.names.last() == Some(&0);
        let is_name = |name: u32| ends && (name as usize) < table.names.len();
        let whole = instances.iter().all(|record| {
            let last = word(record, 16).checked_add(word(record, 20));
            is_name(word(record, 8))
                && is_name(word(record, 12))
                && last.is_some_and(|last| last as usize <= operands.len())
        });
        let known = operands.iter().all(|record| {
            is_name(word(record, 8))
                && record[12] <= 2
                && record[13] < 16
                && matches!(record[14], 1 | 2 | 4 | 8)
        });
        (whole && known).then_some(table)
    }

    /// Of the file that it is about.
    #[must_use]
    pub fn build_id(&self) -> &'t [u8] {
        self.build_id
    }

    /// The places, as they were written.
    pub fn instances(&self) -> impl ExactSizeIterator<Item = Instance<'t>> + use<'t> {
        let table = *self;
        self.instances.iter().map(move |record| Instance {
            at: LinkAddr(long(record, 0)),
            function: table.name(word(record, 8)),
            holder: table.name(word(record, 12)),
            table,
            first: word(record, 16),
            count: word(record, 20),
        })
    }

    fn operand(&self, number: usize) -> Operand<'t> {
        let record = &self.operands[number];
        let (register, value) = (record[13], long(record, 0) as i64);
        Operand {
            name: self.name(word(record, 8)),
            source: match record[12] {
                0 => Source::Constant(value),
                1 => Source::Register(register, value),
                _ => Source::Memory(register, value),
            },
            width: record[14],
            is_signed: record[15] != 0,
        }
    }

    fn name(&self, at: u32) -> &'t CStr {
        let rest = self.names.get(at as usize..).unwrap_or(&[]);
        CStr::from_bytes_until_nul(rest).unwrap_or(c"")
    }
}

/// The header of a table; `None` if the build ID is too long.
#[must_use]
pub fn header(build_id: &[u8], instances: u32, operands: u32, names: u32) -> Option<[u8; HEADER]> {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8] = build_id.len() as u8; // at most BUILD_ID_MAX
    header[12..44]
        .get_mut(..build_id.len())?
        .copy_from_slice(build_id);
    header[44..48].copy_from_slice(&instances.to_le_bytes());
    header[48..52].copy_from_slice(&operands.to_le_bytes());
    header[52..].copy_from_slice(&names.to_le_bytes());
    Some(header)
}

/// The record of an instance. Names are offsets among the names, operands a number and how many.
#[must_use]
pub fn instance_record(at: LinkAddr, names: [u32; 2], operands: [u32; 2]) -> [u8; INSTANCE] {
    let mut record = [0; INSTANCE];
    record[..8].copy_from_slice(&at.0.to_le_bytes());
    let words = names.into_iter().chain(operands);
    for (field, word) in record[8..].chunks_exact_mut(4).zip(words) {
        field.copy_from_slice(&word.to_le_bytes());
    }
    record
}

/// The record of an operand.
#[must_use]
pub fn operand_record(name: u32, source: Source, width: u8, is_signed: bool) -> [u8; OPERAND] {
    let (kind, register, value) = match source {
        Source::Constant(value) => (0, 0, value),
        Source::Register(register, offset) => (1, register, offset),
        Source::Memory(register, offset) => (2, register, offset),
    };
    let mut record = [0; OPERAND];
    record[..8].copy_from_slice(&value.to_le_bytes());
    record[8..12].copy_from_slice(&name.to_le_bytes());
    record[12..].copy_from_slice(&[kind, register, width, u8::from(is_signed)]);
    record
}

/// The first `count` records, and what follows them.
fn records<const LEN: usize>(bytes: &[u8], count: u32) -> Option<(&[[u8; LEN]], &[u8])> {
    let (records, rest) = bytes.split_at_checked(LEN.checked_mul(count as usize)?)?;
    Some((records.as_chunks().0, rest))
}

fn word(record: &[u8], at: usize) -> u32 {
    let bytes = record.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes))
}

fn long(record: &[u8], at: usize) -> u64 {
    let bytes = record.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    const SOURCES: [Source; 3] = [
        Source::Constant(-7),
        Source::Register(7, 0),
        Source::Memory(4, -24),
    ];

    fn written() -> Vec<u8> {
        let names = b"take\0caller\0size\0";
        let mut bytes = header(&[1, 2, 3], 2, 3, names.len() as u32)
            .expect("a short build ID")
            .to_vec();
        bytes.extend(instance_record(LinkAddr(0x1234), [0, 5], [0, 2]));
        bytes.extend(instance_record(LinkAddr(0x5678), [0, 5], [2, 1]));
        for source in SOURCES {
            bytes.extend(operand_record(12, source, 4, true));
        }
        bytes.extend(names);
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = written();
        let table = Table::read(&bytes).expect("a table");
        assert_eq!(table.build_id(), [1, 2, 3]);
        let found: Vec<_> = table.instances().collect();
        assert_eq!(
            found
                .iter()
                .map(|i| (i.at.0, i.function, i.holder))
                .collect::<Vec<_>>(),
            [(0x1234, c"take", c"caller"), (0x5678, c"take", c"caller")]
        );
        let operands = found.iter().flat_map(Instance::operands);
        let expect = SOURCES.map(|source| Operand {
            name: c"size",
            source,
            width: 4,
            is_signed: true,
        });
        assert!(operands.eq(expect));
    }

    #[test]
    fn damaged_tables_are_harmless() {
        let whole = written();
        for len in 0..whole.len() {
            assert_eq!(Table::read(&whole[..len]), None, "{len}");
        }
        for at in 0..whole.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                let Some(table) = Table::read(&bytes) else {
                    continue;
                };
                for instance in table.instances() {
                    assert!(instance.operands().count() <= 3);
                }
            }
        }
    }
}
