//! *What are the bytes of a compressed section?*
//!
//! Three forms exist: `SHF_COMPRESSED` with zlib, the same with Zstandard, and the older `.zdebug_*`
//! (`"ZLIB"`, big-endian length, zlib). The length announced in the file is an allegation: it bounds
//! the output, and memory grows only as output is really produced.

use super::ElfError;
use std::io::Read;

/// deflate cannot expand by more than 1032 : 1 (RFC 1951: 258 bytes from two bits). The same bound
/// is asked of Zstandard, whose blocks could pretend to any ratio.
const LARGEST_RATIO: u64 = 1100;

/// How the bytes of a section are packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Packing {
    Zlib,
    Zstd,
}

/// Unpacks `packed`, which claims to hold `alleged_len` bytes.
pub(crate) fn unpack(
    packing: Packing,
    packed: &[u8],
    alleged_len: u64,
) -> Result<Vec<u8>, ElfError> {
    let possible = (packed.len() as u64).saturating_mul(LARGEST_RATIO);
    if alleged_len > possible {
        return Err(ElfError::Compression("length beyond what can be packed"));
    }
    let mut bytes = Vec::new();
    let complete = match packing {
        Packing::Zlib => flate2::read::ZlibDecoder::new(packed)
            .take(alleged_len)
            .read_to_end(&mut bytes)
            .is_ok(),
        Packing::Zstd => unpack_zstd(packed, alleged_len, &mut bytes),
    };
    if !complete || bytes.len() as u64 != alleged_len {
        return Err(ElfError::Compression("damaged or shorter than announced"));
    }
    Ok(bytes)
}

fn unpack_zstd(packed: &[u8], alleged_len: u64, bytes: &mut Vec<u8>) -> bool {
    ruzstd::decoding::StreamingDecoder::new(packed)
        .is_ok_and(|decoder| decoder.take(alleged_len).read_to_end(bytes).is_ok())
}

/// Unpacks an xz stream (`.gnu_debugdata`) of at most `limit` bytes.
pub(crate) fn unpack_xz(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    struct Bounded {
        bytes: Vec<u8>,
        limit: usize,
    }
    impl std::io::Write for Bounded {
        fn write(&mut self, more: &[u8]) -> std::io::Result<usize> {
            if self.bytes.len() + more.len() > self.limit {
                return Err(std::io::ErrorKind::FileTooLarge.into());
            }
            self.bytes.extend_from_slice(more);
            Ok(more.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut output = Bounded {
        bytes: Vec::new(),
        limit,
    };
    let mut input = std::io::BufReader::new(packed);
    lzma_rs::xz_decompress(&mut input, &mut output).ok()?;
    Some(output.bytes)
}
