//! *Which threads are to stand still, and who of them has not come yet?* The stopper's side of a stop: see [`crate::stop`].
//!
//! They are listed, with the signal that reaches each, before the first signal is sent: reading a thread's status takes longer than
//! signalling it, and nobody is to stand still for that.

use core::sync::atomic::Ordering::{Acquire, Release};

use crate::pages::Pages;
use crate::stop::{BELL, HELD, QUEUED, StopError, UNBLOCKED, USUAL, WANTED, arrived, is_here};
use crate::sys::{self, Errno, SignalInfo};
use crate::tasks::{self, Hindrance, Seen, Tasks};

/// How long a thread is waited for that runs or could, in nanoseconds. On a machine with nothing else to do that takes
/// microseconds; but a thread comes only when the scheduler lets it.
const PATIENCE: u64 = 10_000_000_000;
/// How long a thread is waited for that sleeps where the signal does not reach it. The threads that have arrived stand
/// still meanwhile.
const PATIENCE_WITH_SLEEPERS: u64 = 300_000_000;
/// After this long it is looked whether somebody died, in nanoseconds; then after twice as long, and so on. Looking takes the time of
/// those that are waited for: with 64 busy threads on two shared processors, always after 2 ms, stops took a second.
const LOOK_AGAIN: u64 = 2_000_000;
const LOOK_AGAIN_MOST: u64 = 128_000_000;

/// The threads that are to stand still.
pub(crate) struct Crowd {
    tasks: Tasks,
    listing: Pages,
    /// Each thread that was listed and the signal for it; from `signalled` on, it was not yet sent.
    members: Pages,
    len: usize,
    signalled: usize,
    pid: u32,
    own: u32,
}

impl Crowd {
    pub(crate) fn list() -> Result<Self, StopError> {
        let tasks = Tasks::open().map_err(StopError::NoTaskList)?;
        let threads = tasks.count().map_err(StopError::NoTaskList)?;
        // Room for twice as many.
        let mut crowd = Self {
            tasks,
            listing: Pages::new(4096 + threads * 32).map_err(StopError::NoMemory)?,
            members: Pages::new((2 * threads + 64) * 8).map_err(StopError::NoMemory)?,
            len: 0,
            signalled: 0,
            pid: sys::process_id(),
            own: sys::thread_id(),
        };
        if threads > 1 {
            crowd.list_again()?;
        }
        Ok(crowd)
    }

    /// Whether there is anybody but this thread.
    pub(crate) fn has_others(&self) -> Result<bool, StopError> {
        let threads = self.tasks.count().map_err(StopError::NoTaskList)?;
        Ok(threads > 1)
    }

    /// Adds those that are not yet listed.
    fn list_again(&mut self) -> Result<(), StopError> {
        let (known, own) = (self.len, self.own);
        let members: &mut [[u32; 2]] = self.members.words();
        let mut len = known;
        let mut room = true;
        let listed = self.tasks.visit(self.listing.bytes(), |tid| {
            let before = members.get(..known).unwrap_or_default();
            if tid == own || before.iter().any(|member| member[0] == tid) {
                return Ok(());
            }
            let signal = match tasks::blocks_signal(tid, USUAL) {
                true => UNBLOCKED,
                false => USUAL,
            };
            match members.get_mut(len) {
                Some(member) => {
                    *member = [tid, signal];
                    len += 1;
                }
                None => room = false,
            }
            Ok(())
        });
        listed.map_err(StopError::NoTaskList)?;
        self.len = len;
        room.then_some(()).ok_or(StopError::Multiplying)
    }

    /// Signals those to whom nothing was sent yet; who is gone is struck off.
    fn signal(&mut self, number: u32, deadline: u64) -> Result<(), StopError> {
        let members: &mut [[u32; 2]] = self.members.words();
        while self.signalled < self.len {
            let [tid, signal] = members[self.signalled];
            if send(self.pid, tid, signal, number, deadline)? {
                self.signalled += 1;
            } else {
                self.len -= 1;
                members.swap(self.signalled, self.len);
            }
        }
        Ok(())
    }

    /// Signals every other thread and waits until all have arrived.
    pub(crate) fn gather(&mut self, number: u32, began: u64) -> Result<(), StopError> {
        let deadline = began + PATIENCE;
        let mut news = true;
        loop {
            self.signal(number, deadline)?;
            let ended = self.wait(number, began)?;
            let alive = self.tasks.count().map_err(StopError::NoTaskList)?;
            // One that has ended may no longer be counted, and a new one be in its place: then only a listing without news will do.
            if (ended == 0 || !news) && arrived() + 1 + ended >= alive {
                return Ok(());
            }
            if sys::now() > deadline {
                return Err(StopError::Multiplying);
            }
            let before = self.len;
            self.list_again()?;
            news = self.len > before;
        }
    }

    /// Waits until all who were signalled have arrived or ended. The answer: how many have ended and are still counted.
    fn wait(&mut self, number: u32, began: u64) -> Result<usize, StopError> {
        let pid = self.pid;
        let members: &[[u32; 2]] = self.members.words();
        let members = members.get(..self.signalled).unwrap_or_default();
        let mut gone = 0;
        let mut ended = 0;
        let mut patience = LOOK_AGAIN;
        loop {
            let wanted = (members.len() - gone) as u32;
            WANTED.store(wanted, Release);
            let bell = BELL.load(Acquire);
            if arrived() >= wanted as usize {
                return Ok(ended);
            }
            let asleep = sys::now();
            sys::wait_on(&BELL, bell, patience);
            let now = sys::now();
            if now - asleep < patience {
                continue;
            }
            patience = (patience * 2).min(LOOK_AGAIN_MOST);
            // Somebody takes long. Who is neither here nor alive is not waited for.
            gone = 0;
            ended = 0;
            for &[tid, _] in members {
                if is_here(tid) {
                    continue;
                }
                if !sys::has_thread(pid, tid) {
                    gone += 1;
                    continue;
                }
                match tasks::look_at(tid, UNBLOCKED) {
                    Seen::Ended => {
                        gone += 1;
                        ended += usize::from(sys::has_thread(pid, tid));
                    }
                    // It came while we looked.
                    Seen::Alive(_) if is_here(tid) => {}
                    Seen::Alive(hindrance) => {
                        let patience = match hindrance {
                            Hindrance::Slow => PATIENCE,
                            _ => PATIENCE_WITH_SLEEPERS,
                        };
                        if now - began > patience {
                            return Err(StopError::Unresponsive(tid, hindrance));
                        }
                        // Behind a signal of the program's own, ours was lost. A second one to who comes after all does nothing.
                        send(pid, tid, USUAL, number, now)?;
                    }
                }
            }
        }
    }
}

/// Sends the signal; `false` if the thread is gone.
fn send(pid: u32, tid: u32, signal: u32, number: u32, deadline: u64) -> Result<bool, StopError> {
    let info = SignalInfo {
        signal,
        error: number,
        code: QUEUED,
        _unused: 0,
        pid,
        uid: 0,
        value: HELD.as_ptr() as u64,
        _rest: [0; 12],
    };
    loop {
        match sys::queue_signal(pid, tid, &info) {
            Ok(()) => return Ok(true),
            Err(Errno::NO_PROCESS) => return Ok(false),
            // As many signals are queued as the user may have: some will be taken.
            Err(Errno::AGAIN) if sys::now() < deadline => {
                sys::wait_on(&HELD, number, 100_000);
            }
            Err(error) => return Err(StopError::SignalRefused(error)),
        }
    }
}
