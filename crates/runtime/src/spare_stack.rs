//! *Where does code of ours run when the program's stack may be too small for it?*
//!
//! What an `execve` takes of us needs some 30 KiB. glibc's `posix_spawn` gives its child that much; musl's gives it five, in the frame of the
//! caller. So in a statically linked program, whose libc may be any, an exec is prepared on a stack of ours. Its owner does not give
//! it back when the exec succeeds: then it has other memory, and whoever comes next sees that and takes it over.

#![allow(unsafe_code)] // Changes the stack.

use crate::sys;
use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

/// Bytes of one.
const LEN: usize = 128 << 10;
/// How many can be in use at once. Pages that are never used take no memory.
const STACKS: usize = 8;

#[repr(C, align(4096))]
struct Stack(UnsafeCell<[u8; LEN]>);
// SAFETY: only its owner uses it.
unsafe impl Sync for Stack {}

static ALL: [Stack; STACKS] = [const { Stack(UnsafeCell::new([0; LEN])) }; STACKS];
/// The threads that have them, by the kernel's id; 0: nobody.
static OWNERS: [AtomicU32; STACKS] = [const { AtomicU32::new(0) }; STACKS];

/// Runs `work` on a stack of ours, if there is one; it is told whether it does.
pub(crate) fn run<T, W: FnOnce(bool) -> T>(work: W) -> T {
    struct Call<T, W> {
        work: Option<W>,
        result: Option<T>,
    }
    unsafe extern "C" fn call<T, W: FnOnce(bool) -> T>(call: *mut c_void) {
        // SAFETY: the `Call` of the frame that waits for this.
        let call = unsafe { &mut *call.cast::<Call<T, W>>() };
        call.result = call.work.take().map(|work| work(true));
    }
    let own = sys::gettid() as u32;
    let Some(at) = (0..STACKS).find(|at| is_claimed(&OWNERS[*at], own)) else {
        return work(false);
    };
    let mut both = Call {
        work: Some(work),
        result: None,
    };
    // SAFETY: the upper end of a stack that nobody else uses; `both` outlives the call.
    unsafe {
        let top = ALL[at].0.get().cast::<u8>().add(LEN);
        on_stack((&raw mut both).cast(), call::<T, W>, top);
    }
    OWNERS[at].store(0, Release);
    both.result.unwrap_or_else(|| sys::abort())
}

/// Claims a stack for thread `own`, if nobody has it, or somebody whose memory is not this any more.
fn is_claimed(owner: &AtomicU32, own: u32) -> bool {
    let before = owner.load(Relaxed);
    let is_free = before == 0 || before == own || sys::has_other_memory(before);
    is_free && owner.compare_exchange(before, own, AcqRel, Relaxed).is_ok()
}

/// Calls `function` with `argument` on the stack that ends at `top`, a multiple of 16.
///
/// # Safety
/// As for the function; nobody uses that stack.
#[unsafe(naked)]
unsafe extern "C" fn on_stack(
    argument: *mut c_void,
    function: unsafe extern "C" fn(*mut c_void),
    top: *mut u8,
) {
    naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "mov rsp, rdx",
        "call rsi",
        "mov rsp, rbp",
        "pop rbp",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
    );
}
