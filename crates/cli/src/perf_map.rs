//! *How does `perf` name the relays and trampolines of a recorded process?* By the file `/tmp/perf-PID.map`, a line for each hook: address and length in
//! hexadecimal, and a name (linux/tools/perf/Documentation/jit-interface.txt). It is written from outside, when it is asked for: a record costs
//! nothing for it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use pointee_inspect::process::HookInfo;
use pointee_patch::TRAMPOLINE_MAX;
use pointee_patch::arch::x86_64::PAD_LEN;

/// Writes the names of the hooks that are in place in process `pid` behind those that its file has. How many.
///
/// # Errors
/// The file cannot be opened, because it is somebody else's or a link, or not be written.
pub(crate) fn write(pid: u32, hooks: &[HookInfo]) -> io::Result<usize> {
    let mut file = open(pid)?;
    let lines: Vec<String> = hooks.iter().filter_map(line).collect();
    file.write_all(lines.concat().as_bytes())?;
    Ok(lines.len())
}

fn open(pid: u32) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(format!("/tmp/perf-{pid}.map"))
}

/// From the relay, where the launch pad leads, to the end of the trampoline.
fn line(hook: &HookInfo) -> Option<String> {
    let [0xe9, distance @ ..] = hook.after.first_chunk::<5>()? else {
        return None;
    };
    let behind = hook.address.plus(PAD_LEN as u64);
    let relay = behind
        .0
        .wrapping_add_signed(i64::from(i32::from_le_bytes(*distance)));
    let end = hook.trampoline.0.checked_add(TRAMPOLINE_MAX as u64)?;
    let len = end.checked_sub(relay).filter(|_| hook.placement != 0)?;
    Some(format!("{relay:x} {len:x} {}@hook\n", hook.name))
}
