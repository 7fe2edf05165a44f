//! *Which of these words are starts?* — sixteen at a time.

#![allow(unsafe_code)] // Reads words through a raw pointer, in assembly.

use crate::words::START;
#[cfg(not(target_arch = "x86_64"))]
use crate::words::is_start;
use core::sync::atomic::AtomicU32;
#[cfg(not(target_arch = "x86_64"))]
use core::sync::atomic::Ordering::Relaxed;

/// Words that are looked at at once.
pub(crate) const MANY: u64 = 16;

/// A bit for each of the [`MANY`] words from `words` on, set if it is a start: in assembly, since atomic loads are not made into
/// vectors.
///
/// # Safety
/// As many words are there.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn starts(words: *const AtomicU32) -> u32 {
    // The start mark is a word's sign, which narrowing with saturation keeps.
    const { assert!(START == 1 << 31 && MANY == 16) };
    let marks: u32;
    // SAFETY: the caller's promise; words of four bytes are read whole by any wider load of an aligned place.
    unsafe {
        core::arch::asm!(
            "movdqu {a}, [{from}]",
            "movdqu {b}, [{from} + 16]",
            "packssdw {a}, {b}",
            "movdqu {b}, [{from} + 32]",
            "movdqu {c}, [{from} + 48]",
            "packssdw {b}, {c}",
            "packsswb {a}, {b}",
            "pmovmskb {marks:e}, {a}",
            from = in(reg) words,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            marks = lateout(reg) marks,
            options(nostack, readonly, preserves_flags),
        );
    }
    marks
}

/// As above.
///
/// # Safety
/// As many words are there.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(crate) unsafe fn starts(words: *const AtomicU32) -> u32 {
    // SAFETY: the caller's promise.
    let word = |at: u64| unsafe { &*words.add(at as usize) }.load(Relaxed);
    (0..MANY).fold(0, |marks, at| marks | u32::from(is_start(word(at))) << at)
}
