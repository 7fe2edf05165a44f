//! *What was this process like before Rust's start-up code touched it?*
//!
//! Rust's standard library ignores SIGPIPE and opens `/dev/null` for a closed standard descriptor before
//! `main` runs. A program under `pointee run` shall inherit neither, so both are noted by a
//! constructor, which runs before that.

#![allow(unsafe_code)] // A constructor in `.init_array`, and system calls that std has no face for.

use std::sync::atomic::{AtomicBool, Ordering};

static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);
static CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

#[used]
#[unsafe(link_section = ".init_array")]
static RECORD: extern "C" fn() = record;

extern "C" fn record() {
    // SAFETY: queries only; `action` is written by the call before it is read.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut action) == 0 {
            PIPE_IGNORED.store(action.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
        }
        for (fd, closed) in (0..).zip(&CLOSED) {
            closed.store(libc::fcntl(fd, libc::F_GETFD) < 0, Ordering::Relaxed);
        }
    }
}

/// Whether SIGPIPE was ignored.
pub(crate) fn was_pipe_ignored() -> bool {
    PIPE_IGNORED.load(Ordering::Relaxed)
}

/// Whether standard descriptor `fd` (0, 1 or 2) was closed.
pub(crate) fn was_closed(fd: usize) -> bool {
    CLOSED
        .get(fd)
        .is_some_and(|closed| closed.load(Ordering::Relaxed))
}
