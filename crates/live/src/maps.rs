//! *What is mapped where?* `/proc/self/maps`, as ranges in order. It is read before threads are stopped, because that
//! takes longer than a stop should.

use pointee_model::addr::RunAddr;

use crate::pages::Pages;
use crate::sys::{Errno, File};

/// The process's mappings at one moment.
pub(crate) struct Maps {
    ranges: Pages,
    count: usize,
}

/// One mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Range {
    pub(crate) start: RunAddr,
    pub(crate) end: RunAddr,
    pub(crate) writable: bool,
    /// Readable too.
    pub(crate) executable: bool,
}

/// Page offsets are free for what may be done with the pages.
const WRITABLE: u64 = 1;
const EXECUTABLE: u64 = 2;
/// More than `vm.max_map_count` usually allows is not kept.
const MOST: usize = 1 << 17;

impl Maps {
    pub(crate) fn read() -> Result<Self, Errno> {
        let mut ranges = Pages::new(MOST * 16)?;
        let mut buffer = Pages::new(64 << 10)?;
        let file = File::open(c"/proc/self/maps", false)?;
        let buffer = buffer.bytes();
        let words: &mut [[u64; 2]] = ranges.words();
        let mut count = 0;
        let mut filled = 0;
        // Up to the end, or to a line longer than the buffer.
        while let Some(free) = buffer.get_mut(filled..).filter(|free| !free.is_empty()) {
            let read = file.read(free)?;
            if read == 0 {
                break;
            }
            filled += read;
            let text = buffer.get(..filled).unwrap_or_default();
            let whole = text
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            for line in text
                .get(..whole)
                .unwrap_or_default()
                .split(|byte| *byte == b'\n')
            {
                if let (Some(range), Some(slot)) = (parse(line), words.get_mut(count)) {
                    *slot = range;
                    count += 1;
                }
            }
            buffer.copy_within(whole..filled, 0);
            filled -= whole;
        }
        Ok(Self { ranges, count })
    }

    /// Mappings that can be read and executed, in order.
    pub(crate) fn executable(&mut self) -> impl Iterator<Item = Range> + '_ {
        let words: &mut [[u64; 2]] = self.ranges.words();
        let words = words.get(..self.count).unwrap_or_default();
        let executable = words.iter().filter(|range| range[1] & EXECUTABLE != 0);
        executable.map(|[start, marked]| Range {
            start: RunAddr(*start),
            end: RunAddr(marked & !0xfff),
            writable: marked & WRITABLE != 0,
            executable: true,
        })
    }

    /// The mapping that holds `address`.
    pub(crate) fn find(&mut self, address: RunAddr) -> Option<Range> {
        let words: &mut [[u64; 2]] = self.ranges.words();
        let words = words.get(..self.count)?;
        let next = words.partition_point(|range| range[0] <= address.0);
        let [start, marked] = *words.get(next.checked_sub(1)?)?;
        let end = marked & !0xfff;
        (address.0 < end).then_some(Range {
            start: RunAddr(start),
            end: RunAddr(end),
            writable: marked & WRITABLE != 0,
            executable: marked & EXECUTABLE != 0,
        })
    }
}

/// `start-end rwxp …`.
fn parse(line: &[u8]) -> Option<[u64; 2]> {
    let (start, rest) = hexadecimal(line)?;
    let (end, rest) = hexadecimal(rest.strip_prefix(b"-")?)?;
    let rights = rest.strip_prefix(b" ")?.get(..3)?;
    let mut marks = 0;
    if rights[1] == b'w' {
        marks |= WRITABLE;
    }
    if rights[2] == b'x' && rights[0] == b'r' {
        marks |= EXECUTABLE;
    }
    Some([start, end & !0xfff | marks])
}

fn hexadecimal(text: &[u8]) -> Option<(u64, &[u8])> {
    let len = text
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let (digits, rest) = text.split_at_checked(len.min(16))?;
    let number = digits.iter().fold(0_u64, |number, digit| {
        number << 4 | u64::from((*digit as char).to_digit(16).unwrap_or(0))
    });
    (len > 0).then_some((number, rest))
}
