//! *How do bytes of code change while threads run through them?*
//!
//! | what differs | how it is written |
//! | --- | --- |
//! | one byte | at once, by itself: nobody stands still |
//! | more | while all other threads stand still; counters in the middle of what changes are moved to copies |
//!
//! **One byte** is never seen half written, and around it every instruction begins where it did. Whether processors that fetched
//! the old byte may go on with it for a while and then take the new one is said by AMD for any store within eight aligned bytes (AMD64 APM 2, 7.6.1,
//! "asynchronous modification"), by Intel for breakpoints alone (SDM 3A, 9.1.3): elsewhere threads are stopped for it all the same. When
//! all have been made to forget what they fetched (`membarrier`), the change holds for every instruction that begins then.
//!
//! **More bytes** are not written at once through `/proc/self/mem`, and whatever the order, a thread could stand between two
//! instructions that a pad replaces by one. A counter can also be saved in a signal's frame, further up a stack, where a handler
//! will return to it: stacks are searched for an address in the middle of the pad before the pad is written.

#![allow(unsafe_code)] // Writes code, and reads stacks of threads that stand still.

use core::ops::Range;
use core::sync::atomic::AtomicU32;

use pointee_model::addr::RunAddr;
use pointee_patch::EntryPlan;
use pointee_patch::arch::x86_64::PAD_LEN;

use crate::maps::Maps;
use crate::processor;
use crate::refusal::Refusal;
use crate::stop::{Exclusive, Pause, Stopped, Thread};
use crate::sys;
use crate::text::Text;

/// How often it is tried to stop the threads at a moment when none has a counter saved in the pad.
const ATTEMPTS: u32 = 16;
/// How much of a stack is searched, from the stack pointer up, in bytes.
const STACK_MOST: u64 = 16 << 20;

/// The bytes of a pad, or of a distance.
pub(crate) type Bytes = [u8; PAD_LEN];

/// The bytes of code that differ while a hook is in place.
#[derive(Clone, Copy)]
pub(crate) struct Change {
    pub(crate) at: RunAddr,
    pub(crate) len: usize,
    /// Bytes from `at` on that are not executed any more where they are, or are changed.
    pub(crate) reach: usize,
    pub(crate) before: Bytes,
    pub(crate) after: Bytes,
}

impl Change {
    /// Nothing changes.
    pub(crate) const fn none(at: RunAddr) -> Self {
        Self {
            at,
            len: 0,
            reach: 0,
            before: [0; PAD_LEN],
            after: [0; PAD_LEN],
        }
    }

    /// Whether the two change the same bytes, or one of them bytes that the other has displaced.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        let end = |change: &Self| change.at.0 + change.reach as u64;
        self.at.0 < end(other) && other.at.0 < end(self)
    }

    pub(crate) fn is_there(&self, text: &Text, bytes: &Bytes) -> bool {
        let mut now = [0; PAD_LEN];
        text.read(self.at, &mut now[..self.len]) == Ok(self.len)
            && now[..self.len] == bytes[..self.len]
    }

    /// Writes `to` where `from` is. `plan`: of a pad that comes to where there was none.
    pub(crate) fn write(
        &self,
        held: &mut Exclusive,
        text: &Text,
        from: &Bytes,
        to: &Bytes,
        plan: Option<&EntryPlan>,
    ) -> Result<Pause, Refusal> {
        let differs = |index: &usize| from[*index] != to[*index];
        let first = (0..self.len).find(differs).unwrap_or(0);
        let last = (0..self.len).rfind(differs).unwrap_or(first);
        let (at, bytes) = (self.at.plus(first as u64), &to[first..=last]);
        // SAFETY: planned for that place. A single byte may change under running threads; for more they stand still, with none inside.
        let write = || unsafe { text.write(at, bytes) }.map_err(Refusal::NoMemoryFile);
        if first == last && single_bytes_may_change() {
            write()?;
            sys::synchronize_cores();
            return Ok(Pause::default());
        }
        stopped(held, |stopped, maps| {
            if let Some(plan) = plan.filter(|_| first != last) {
                move_out_of_pad(stopped, maps, plan)?;
            }
            write()
        })
    }
}

/// Whether a byte of code may be written under threads that run, and all of them then be made to take it.
pub(crate) fn single_bytes_may_change() -> bool {
    processor::takes_single_bytes() && sys::can_synchronize_cores()
}

/// Does something while the other threads stand still; anew, when one of them stood where it could not be done.
pub(crate) fn stopped(
    held: &mut Exclusive,
    act: impl Fn(&mut Stopped<'_>, &mut Maps) -> Result<(), Refusal>,
) -> Result<Pause, Refusal> {
    let mut attempt = 0;
    loop {
        let mut maps = Maps::read().map_err(Refusal::NoMaps)?;
        let mut stopped = held.stop().map_err(Refusal::Stop)?;
        let done = act(&mut stopped, &mut maps);
        if done.is_ok() {
            sys::synchronize_cores();
        }
        let pause = stopped.release();
        attempt += 1;
        match done {
            Err(Refusal::Busy) if attempt < ATTEMPTS => {
                sys::wait_on(&AtomicU32::new(0), 0, u64::from(attempt) * 100_000);
            }
            done => return done.map(|()| pause),
        }
    }
}

fn move_out_of_pad(
    stopped: &mut Stopped<'_>,
    maps: &mut Maps,
    plan: &EntryPlan,
) -> Result<(), Refusal> {
    let pad = plan.pad_at();
    let inside = pad.0 + 1..pad.0 + PAD_LEN as u64;
    for thread in stopped.threads() {
        if plan.resume_after_installation(thread.pc()).is_none()
            || stack_holds(&thread, maps, &inside)?
        {
            return Err(Refusal::Busy);
        }
    }
    for mut thread in stopped.threads() {
        if let Some(pc) = plan.resume_after_installation(thread.pc())
            && pc != thread.pc()
        {
            thread.set_pc(pc);
        }
    }
    Ok(())
}

/// Whether a word in use on the thread's stack lies in `range`.
pub(crate) fn stack_holds(
    thread: &Thread<'_>,
    maps: &mut Maps,
    range: &Range<u64>,
) -> Result<bool, Refusal> {
    // A stack mapped since: look at the mappings again.
    let stack = maps.find(thread.sp()).ok_or(Refusal::Busy)?;
    let start = thread.sp().0.next_multiple_of(8);
    let end = stack.end.0.min(start.saturating_add(STACK_MOST));
    let count = end.saturating_sub(start) / 8;
    // SAFETY: mapped, readable as stacks are, and its thread stands still.
    let words = unsafe { core::slice::from_raw_parts(start as *const u64, count as usize) };
    Ok(words.iter().any(|word| range.contains(word)))
}
