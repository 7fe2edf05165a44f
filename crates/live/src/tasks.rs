//! *Which threads are there?* `/proc/self/task`, read without allocation.
//!
//! A listing alone is no proof: threads are born while it is read, and the kernel ends it early when the thread it stands
//! at dies. The number of the process's threads, which the folder's link count gives, is: see [`crate::stop`].

use crate::sys::{Errno, File};

/// The folder of this process's threads.
pub(crate) struct Tasks(File);

/// What hinders a thread from being stopped, as `/proc` tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hindrance {
    /// It sleeps, and blocks the signal that stops threads.
    BlocksSignal,
    /// It sleeps in the kernel where no signal wakes it: a `vfork` whose child has not yet gone on, a slow disk.
    Uninterruptible,
    /// A debugger holds it.
    Traced,
    /// It did not come to run in time.
    Slow,
}

/// The end of a thread, seen in its status.
pub(crate) enum Seen {
    Ended,
    Alive(Hindrance),
}

impl Tasks {
    pub(crate) fn open() -> Result<Self, Errno> {
        File::open(c"/proc/self/task", false).map(Self)
    }

    /// How many threads the process has, with those that have ended and were not waited for.
    pub(crate) fn count(&self) -> Result<usize, Errno> {
        Ok(self.0.links()?.saturating_sub(2) as usize)
    }

    /// Calls `visit` with the id of each thread in the listing, from its start.
    pub(crate) fn visit(
        &self,
        buffer: &mut [u8],
        mut visit: impl FnMut(u32) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.0.rewind()?;
        loop {
            let len = self.0.entries(buffer)?;
            if len == 0 {
                return Ok(());
            }
            let mut rest = buffer.get(..len).unwrap_or_default();
            while let Some((name, behind)) = next_name(rest) {
                if let Some(tid) = decimal(name) {
                    visit(tid)?;
                }
                rest = behind;
            }
        }
    }
}

/// Whether this process has other threads than this one, as far as can be told.
pub(crate) fn are_many() -> bool {
    Tasks::open().and_then(|tasks| tasks.count()) != Ok(1)
}

/// The name in the first `struct linux_dirent64`, with the zeros behind it, and the entries that follow.
fn next_name(entries: &[u8]) -> Option<(&[u8], &[u8])> {
    const LEN_AT: usize = 16;
    const NAME_AT: usize = 19;
    let len = u16::from_le_bytes([*entries.get(LEN_AT)?, *entries.get(LEN_AT + 1)?]);
    let (entry, behind) = entries.split_at_checked(usize::from(len))?;
    Some((entry.get(NAME_AT..)?, behind))
}

fn decimal(name: &[u8]) -> Option<u32> {
    let len = name.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let digits = name.get(..len).filter(|digits| !digits.is_empty())?;
    digits.iter().try_fold(0_u32, |number, digit| {
        number.checked_mul(10)?.checked_add(u32::from(digit - b'0'))
    })
}

/// Whether thread `tid` has `signal` blocked; not, if it has ended.
pub(crate) fn blocks_signal(tid: u32, signal: u32) -> bool {
    let mut status = [0; STATUS];
    read_status(tid, &mut status)
        .is_some_and(|status| blocks(field(status, b"SigBlk:").unwrap_or_default(), signal))
}

/// Room for what is read of a thread's status.
const STATUS: usize = 2048;

/// `/proc/self/task/TID/status`; `None` when there is no such thread.
fn read_status(tid: u32, status: &mut [u8; STATUS]) -> Option<&[u8]> {
    let mut path = *b"/proc/self/task/0000000000/status\0";
    let mut number = tid;
    for digit in path[16..26].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    // The kernel takes no leading zeros for a thread's name.
    let zeros = path[16..25].iter().take_while(|b| **b == b'0').count();
    path.copy_within(16 + zeros.., 16);
    let path = core::ffi::CStr::from_bytes_until_nul(&path).ok()?;
    let file = File::open(path, false).ok()?;
    let len = file.read(status).ok()?;
    status.get(..len)
}

/// What thread `tid` is doing that it does not take `signal`.
pub(crate) fn look_at(tid: u32, signal: u32) -> Seen {
    let mut status = [0; STATUS];
    let Some(status) = read_status(tid, &mut status) else {
        return Seen::Ended;
    };
    let traced = field(status, b"TracerPid:").is_some_and(|pid| pid != b"0");
    match field(status, b"State:").and_then(|state| state.first()) {
        Some(b'Z' | b'X') => Seen::Ended,
        Some(b'D') => Seen::Alive(Hindrance::Uninterruptible),
        Some(b't') => Seen::Alive(Hindrance::Traced),
        // Whoever runs with the signal blocked is about to unblock it, or to end.
        Some(b'S') if blocks(field(status, b"SigBlk:").unwrap_or_default(), signal) => {
            Seen::Alive(Hindrance::BlocksSignal)
        }
        Some(b'S') if traced => Seen::Alive(Hindrance::Traced),
        _ => Seen::Alive(Hindrance::Slow),
    }
}

/// The value of a field of `status`.
fn field<'a>(status: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let line = status
        .split(|byte| *byte == b'\n')
        .find(|line| line.starts_with(name))?;
    Some(line.get(name.len()..)?.trim_ascii())
}

/// Whether `signal` is in a mask written in hexadecimal digits.
fn blocks(mask: &[u8], signal: u32) -> bool {
    let bits = mask.iter().fold(0_u64, |bits, digit| {
        bits << 4 | u64::from((*digit as char).to_digit(16).unwrap_or(0))
    });
    bits >> (signal - 1) & 1 != 0
}
