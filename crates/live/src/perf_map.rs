//! *How does `perf` name generated code?* By a file `/tmp/perf-PID.map`, a line for each piece: address and length in hexadecimal, and a
//! name (linux/tools/perf/Documentation/jit-interface.txt). It is written only when it is asked for, and only grows: an address that was
//! given back and serves another hook has a second line, and nothing tells which of them a sample is older than.

use core::ffi::CStr;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;

use pointee_model::addr::RunAddr;

use crate::announce::NAME;
use crate::characters::Characters;
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
    let mut line = Characters::<LINE>::new();
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
    let mut path = Characters::<PATH>::new();
    path.put(b"/tmp/perf-");
    path.decimal(sys::process_id());
    path.put(b".map\0");
    let path = CStr::from_bytes_until_nul(path.bytes()).map_err(|_| Errno(22))?;
    File::open_to_append(path)
}
