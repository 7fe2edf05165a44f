//! *Where do exceptions land?* The call-site table of a function's language-specific data, as GCC
//! and Clang write it for C++, Rust and C with cleanups (`.gcc_except_table`).
//!
//! ```text
//!   u8 encoding of LPStart, [LPStart] | u8 encoding of types, [uleb offset] |
//!   u8 encoding of call sites | uleb length | { start, length, landing pad: encoded; uleb action }*
//! ```
//!
//! Landing pads count from LPStart, which by default is the function's start. Of split functions
//! LPStart is stated.

use gimli::{EndianSlice, LittleEndian, Reader};
use pointee_meta::elf::Elf;

/// `DW_EH_PE_*` (LSB, 10.5.1).
const OMITTED: u8 = 0xff;

/// Adds the landing pads of the function at `function` to `pads`. What cannot be read is left out.
pub(crate) fn read(elf: &Elf, table: u64, function: u64, pads: &mut Vec<u64>) {
    if let Some(bytes) = elf.bytes_from(table) {
        let mut reader = EndianSlice::new(bytes, LittleEndian);
        // An error ends the reading.
        let _ = read_table(&mut reader, table, bytes.len(), function, pads);
    }
}

fn read_table(
    reader: &mut EndianSlice<'_, LittleEndian>,
    table: u64,
    table_len: usize,
    function: u64,
    pads: &mut Vec<u64>,
) -> gimli::Result<()> {
    let position = |reader: &EndianSlice<'_, LittleEndian>| {
        table.wrapping_add((table_len - reader.len()) as u64)
    };
    let start_encoding = reader.read_u8()?;
    let pads_from = if start_encoding == OMITTED {
        function
    } else {
        let here = position(reader);
        read_encoded(reader, start_encoding, here)?
    };
    if reader.read_u8()? != OMITTED {
        reader.read_uleb128()?;
    }
    let encoding = reader.read_u8()?;
    let len = reader.read_uleb128()?;
    let end = (reader.len() as u64).saturating_sub(len);
    while reader.len() as u64 > end {
        for _ in ["start", "length"] {
            read_encoded(reader, encoding, 0)?;
        }
        let pad = read_encoded(reader, encoding, 0)?;
        reader.read_uleb128()?;
        if pad != 0 {
            pads.push(pads_from.wrapping_add(pad));
        }
    }
    Ok(())
}

/// A number in one of the encodings; `here` is its own address, for those relative to it.
fn read_encoded(
    reader: &mut EndianSlice<'_, LittleEndian>,
    encoding: u8,
    here: u64,
) -> gimli::Result<u64> {
    let value = match encoding & 0x0f {
        0x00 | 0x04 | 0x0c => reader.read_u64()?,
        0x01 => reader.read_uleb128()?,
        0x02 => u64::from(reader.read_u16()?),
        0x03 => u64::from(reader.read_u32()?),
        0x09 => reader.read_sleb128()? as u64,
        0x0a => i64::from(reader.read_i16()?) as u64,
        0x0b => i64::from(reader.read_i32()?) as u64,
        _ => {
            return Err(gimli::Error::UnknownPointerEncoding(
                gimli::constants::DwEhPe(encoding),
            ));
        }
    };
    Ok(match encoding & 0x70 {
        0x10 => value.wrapping_add(here),
        _ => value,
    })
}
