//! The order of a block's stores and loads, in every interleaving that the memory model permits.
//!
//! One thread allocates, frees and allocates again at one address; another reads meanwhile. What the reader takes for a
//! block must have been one. With the release of [`publish`] or the acquire of [`observe`] taken away, the model finds the
//! interleaving in which it is not.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
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
