//! *How does `/proc/PID/environ` come to end where the program's environment ends?*
//!
//! That file, and so `ps e`, shows the bytes between two addresses that the kernel noted at exec. The second is moved
//! back to the first string that was cut out of the environment. `PR_SET_MM_MAP` needs no privilege, but it
//! sets all such addresses at once: the others are given as `/proc/self/stat` and `brk` tell them.
//!
//! Where this does not work (a kernel without `CONFIG_CHECKPOINT_RESTORE`, no `/proc`), the file shows blanked strings.

use crate::sys::{self, MemoryMap};

/// Ends the environment that the kernel shows at `end`, if it lies inside.
pub(crate) fn cut_at(end: u64) {
    let Some(map) = current().filter(|map| (map.env_start..map.env_end).contains(&end)) else {
        return;
    };
    sys::set_memory_map(&MemoryMap {
        env_end: end,
        ..map
    });
}

/// What the kernel has noted now.
fn current() -> Option<MemoryMap> {
    let mut text = [0; 2048];
    let file = usize::try_from(sys::open(c"/proc/self/stat", false)).ok()?;
    let read = sys::pread(file, &mut text, 0);
    sys::close(file);
    let text = text.get(..usize::try_from(read).ok()?)?;
    // The second field is the program's name in parentheses, which may hold any byte.
    let name_end = text.iter().rposition(|byte| *byte == b')')?;
    let rest = core::str::from_utf8(&text[name_end + 1..]).ok()?;
    // Numbered as in proc(5).
    let field = |number: usize| rest.split_ascii_whitespace().nth(number - 3)?.parse().ok();
    Some(MemoryMap {
        start_code: field(26)?,
        end_code: field(27)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        brk: u64::try_from(sys::brk(0)).ok()?,
        start_stack: field(28)?,
        arg_start: field(48)?,
        arg_end: field(49)?,
        env_start: field(50)?,
        env_end: field(51)?,
        auxv: 0,
        auxv_len: 0,
        executable: -1,
    })
}
