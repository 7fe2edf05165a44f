//! The order of stores and loads, in every interleaving that the memory model permits: of a block's words, and of those who
//! take over what a dead thread had.
//!
//! One thread allocates, frees and allocates again at one address; another reads meanwhile. What the reader takes for a
//! block must have been one. With the release of [`publish`] or the acquire of [`observe`] taken away, the model finds the
//! interleaving in which it is not.

use loom::sync::Arc;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;
use pointee_index::claim::{Claim, Flag};
use pointee_index::words::{Cell, encode, observe, origin, publish, retract};

struct Word(AtomicU32);

impl Cell for Word {
    fn load(&self, order: Ordering) -> u32 {
        self.0.load(order)
    }

    fn store(&self, word: u32, order: Ordering) {
        self.0.store(word, order);
    }
}

/// Blocks one after the other at one address: size, origin.
fn check(history: &'static [(u64, u32)]) {
    loom::model(move || {
        let words = Arc::new([
            Word(AtomicU32::new(0)),
            Word(AtomicU32::new(0)),
            Word(AtomicU32::new(0)),
        ]);
        let written = Arc::clone(&words);
        let writer = thread::spawn(move || {
            for (size, origin) in history {
                publish(|at| &written[at], encode(*size, *origin));
                if (*size, *origin) != history[history.len() - 1] {
                    retract(&written[0]);
                }
            }
        });
        if let Some((first, size)) = observe(|at| &words[at]) {
            assert!(
                history.contains(&(size, origin(first))),
                "{size} of {}",
                origin(first)
            );
        }
        writer.join().unwrap();
        let last = history[history.len() - 1];
        assert_eq!(
            observe(|at| &words[at]).map(|(first, size)| (size, origin(first))),
            Some(last)
        );
    });
}

#[test]
fn a_block_is_seen_whole_or_not_at_all() {
    check(&[(100, 1)]);
    check(&[(100, 1), (8, 2)]);
    check(&[(8, 2), (100, 1)]);
    check(&[(100, 1), (200, 2)]);
    check(&[(1 << 40, 1), (24, 2)]);
}

struct Taken(AtomicBool);

impl Flag for Taken {
    fn swap(&self, value: bool, order: Ordering) -> bool {
        self.0.swap(value, order)
    }

    fn store(&self, value: bool, order: Ordering) {
        self.0.store(value, order);
    }
}

/// What a thread had: its stack's number and its own.
struct Slot {
    taken: Taken,
    key: AtomicU32,
    thread: AtomicU32,
}

impl Slot {
    fn give(&self, key: u32, thread: u32, is_wanted: impl Fn(&Self) -> bool) -> bool {
        let claim = Claim::of(&self.taken, || is_wanted(self));
        if claim.is_some() {
            self.thread.store(thread, Relaxed);
            self.key.store(key, Release);
        }
        claim.is_some()
    }
}

/// Thread 1 is no more. Thread 2 has its stack, thread 3 asks who is dead. Without the second look in [`Claim::of`] both get it.
#[test]
fn a_dead_threads_slot_is_taken_over_once() {
    loom::model(|| {
        let slot = Arc::new(Slot {
            taken: Taken(AtomicBool::new(false)),
            key: AtomicU32::new(10),
            thread: AtomicU32::new(1),
        });
        let same = Arc::clone(&slot);
        let heir = thread::spawn(move || same.give(10, 2, |slot| slot.key.load(Acquire) == 10));
        let finder = slot.give(30, 3, |slot| {
            slot.key.load(Acquire) != 0 && slot.thread.load(Relaxed) == 1
        });
        let heir = heir.join().unwrap();
        assert!(!(heir && finder), "both have it");
        if heir || finder {
            let has = (slot.key.load(Relaxed), slot.thread.load(Relaxed));
            assert_eq!(has, if heir { (10, 2) } else { (30, 3) });
        }
    });
}
