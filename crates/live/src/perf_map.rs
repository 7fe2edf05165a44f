//! *How does `perf` name generated code?* By a file `/tmp/perf-PID.map`, a line for each piece: address and length in hexadecimal, and a
//! name (linux/tools/perf/Documentation/jit-interface.txt). It is written only when it is asked for, and only grows: an address that was
//! given back and serves another hook has a second line, and nothing tells which of them a sample is older than.

use core::ffi::CStr;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;

use pointee_model::addr::RunAddr;

use crate::announce::NAME;
use crate::hook;
use crate::stop;
use crate::sys::{self, Errno, File};
use crate::wrap;

static IS_WANTED: AtomicBool = AtomicBool::new(false);

/// `/tmp/perf-`, ten digits, `.map`, a zero.
const PATH: usize = 26;
/// Two numbers of sixteen digits, a name with its suffix, and what parts them.
const LINE: usize = 2 * 17 + NAME + 16;

/// From now on the file is written for all that is hooked, and what is hooked already.
///
/// # Errors
///
/// [`Errno`]: the file cannot be opened. Nothing is written then, nor later.
pub fn write_perf_map() -> Result<(), Errno> {
    let _held = stop::exclusive();
    open()?;
    if !IS_WANTED.swap(true, Relaxed) {
        for hook in hook::in_place().chain(hook::retired()) {
            hook.announcement.write_to_perf_map();
        }
        wrap::announced().write_to_perf_map();
    }
    Ok(())
}

/// Adds a line, if there is to be one. Under the engine's lock.
pub(crate) fn add(at: RunAddr, len: u64, name: &[u8]) {
    if !IS_WANTED.load(Relaxed) {
        return;
    }
    let mut line = Text::<LINE>::new();
    line.hexadecimal(at.0);
    line.put(b" ");
    line.hexadecimal(len);
    line.put(b" ");
    line.put(name);
    line.put(b"\n");
    // Who cannot write any more, on a full disk, has a shorter file.
    let _ = open().and_then(|file| file.append(line.bytes()));
}

/// In a forked child that is another file.
fn open() -> Result<File, Errno> {
    let mut path = Text::<PATH>::new();
    path.put(b"/tmp/perf-");
    path.decimal(sys::process_id());
    path.put(b".map\0");
    let path = CStr::from_bytes_until_nul(path.bytes()).map_err(|_| Errno(22))?;
    File::open_to_append(path)
}

/// A few characters on the stack; what does not fit is cut off.
struct Text<const ROOM: usize> {
    bytes: [u8; ROOM],
    len: usize,
}

impl<const ROOM: usize> Text<ROOM> {
    const fn new() -> Self {
        Self {
            bytes: [0; ROOM],
            len: 0,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn put(&mut self, text: &[u8]) {
        let room = self.bytes[self.len..].iter_mut();
        self.len += room.zip(text).map(|(to, from)| *to = *from).count();
    }

    fn hexadecimal(&mut self, number: u64) {
        let digits = (64 - number.leading_zeros()).div_ceil(4).max(1);
        for place in (0..digits).rev() {
            self.put(&[b"0123456789abcdef"[(number >> (4 * place) & 15) as usize]]);
        }
    }

    fn decimal(&mut self, number: u32) {
        let mut unit = 1_000_000_000;
        while unit > 1 && number < unit {
            unit /= 10;
        }
        while unit > 0 {
            self.put(&[b'0' + (number / unit % 10) as u8]);
            unit /= 10;
        }
    }
}
