//! *Which mapping does this address lie in?* — by `/proc/self/maps`, read anew for each question.

use crate::hooks::is_filtered;
use crate::sys;

/// `struct pointee_mapping` of `pointee.h`.
#[repr(C)]
pub(super) struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    inode: u64,
    /// `PROT_*`.
    protection: u32,
    is_shared: u32,
}

/// The mapping that holds `address`. No system call is made once the process has put itself under a filter of them.
pub(super) fn at(address: u64) -> Option<Mapping> {
    if is_filtered() {
        return None;
    }
    let file = usize::try_from(sys::open(c"/proc/self/maps", false)).ok()?;
    let found = search(file, address);
    sys::close(file);
    found
}

fn search(file: usize, address: u64) -> Option<Mapping> {
    let mut buffer = [0; 1024];
    let (mut filled, mut read) = (0, 0);
    let mut is_rest = false;
    loop {
        let got = usize::try_from(sys::pread(file, &mut buffer[filled..], read)).ok()?;
        read += got;
        filled += got;
        let mut start = 0;
        while let Some(len) = buffer[start..filled].iter().position(|byte| *byte == b'\n') {
            let mapping = parse(&buffer[start..start + len]);
            if !core::mem::take(&mut is_rest)
                && let Some(mapping) = mapping
                && (mapping.start..mapping.end).contains(&address)
            {
                return Some(mapping);
            }
            start += len + 1;
        }
        if got == 0 {
            return None;
        }
        if start == 0 && filled == buffer.len() {
            // A long path: the line's beginning is enough, its rest is passed over.
            let mapping = parse(&buffer).filter(|_| !is_rest);
            if let Some(mapping) = mapping
                && (mapping.start..mapping.end).contains(&address)
            {
                return Some(mapping);
            }
            is_rest = true;
            start = filled;
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
    }
}

/// `start-end rwxp offset major:minor inode path`
fn parse(line: &[u8]) -> Option<Mapping> {
    let mut words = line
        .split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty());
    let range = words.next()?;
    let dash = range.iter().position(|byte| *byte == b'-')?;
    let [read, write, execute, share] = *words.next()?.first_chunk::<4>()?;
    let offset = number(words.next()?, 16)?;
    let inode = number(words.nth(1)?, 10)?;
    let bit = |byte, letter, bit| if byte == letter { bit } else { 0 };
    Some(Mapping {
        start: number(&range[..dash], 16)?,
        end: number(&range[dash + 1..], 16)?,
        offset,
        inode,
        protection: bit(read, b'r', 1) | bit(write, b'w', 2) | bit(execute, b'x', 4),
        is_shared: u32::from(share == b's'),
    })
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(digits).ok()?, radix).ok()
}
