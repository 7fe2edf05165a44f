//! *What was this process like before Rust's start-up code touched it?*
//!
//! Rust's standard library ignores SIGPIPE and opens `/dev/null` for a closed standard descriptor before
//! `main` runs; glibc handles two signals of its own, which `posix_spawn` may have left ignored, once there are threads. A program under `pointee run` shall inherit none of it, so all is noted by a
//! constructor, which runs before that.

#![allow(unsafe_code)] // A constructor in `.init_array`, and system calls that std has no face for.

use std::sync::atomic::{AtomicBool, Ordering};

static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);
/// glibc's SIGCANCEL and SIGSETXID (nptl/internal-signals.h): its `sigaction` refuses them.
const INTERNAL: [i32; 2] = [32, 33];
static INTERNAL_IGNORED: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];
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
        for (signal, ignored) in INTERNAL.iter().zip(&INTERNAL_IGNORED) {
            let mut action = KernelAction::default();
            let none = std::ptr::null::<KernelAction>();
            let asked = libc::syscall(libc::SYS_rt_sigaction, *signal, none, &raw mut action, 8);
            let is_ignored = asked == 0 && action.handler == libc::SIG_IGN;
            ignored.store(is_ignored, Ordering::Relaxed);
        }
        for (fd, closed) in (0..).zip(&CLOSED) {
            closed.store(libc::fcntl(fd, libc::F_GETFD) < 0, Ordering::Relaxed);
        }
    }
}

/// `struct sigaction` as the kernel has it.
#[repr(C)]
#[derive(Default)]
struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// Ignores glibc's own signals again that were. For the child, between fork and exec.
pub(crate) fn restore_internal_signals() {
    for (signal, ignored) in INTERNAL.iter().zip(&INTERNAL_IGNORED) {
        if ignored.load(Ordering::Relaxed) {
            let action = KernelAction {
                handler: libc::SIG_IGN,
                ..KernelAction::default()
            };
            // SAFETY: sets one disposition; no thread of this process relies on it any more.
            unsafe {
                let none = std::ptr::null_mut::<KernelAction>();
                libc::syscall(libc::SYS_rt_sigaction, *signal, &raw const action, none, 8);
            }
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
