//! *What did the program allocate, as an independent witness logged it?* — `hazards/call_log.h` writes it.

#![allow(dead_code, unreachable_pub)] // A module of test files, each of which uses its own part.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const CALL: u64 = 40;
const HEADER: u64 = 24;
/// Calls there is room for.
const ROOM: u64 = 40_000_000;

/// A block that is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logged {
    /// As requested.
    pub size: u64,
    /// The function that called; 0 if not told.
    pub caller: u64,
    /// The call's place in the log.
    pub number: u64,
}

/// What the log says, replayed as far as it was written.
pub struct Log {
    file: File,
    replayed: u64,
    /// Whether the program tells callers: then it logs itself, and what libraries allocate is not in the log.
    pub tells_callers: bool,
    pub live: BTreeMap<u64, Logged>,
    pub allocations: u64,
    pub frees: u64,
    pub bytes: u64,
    pub live_bytes: u64,
    pub peak: u64,
}

impl Log {
    pub fn create(path: &Path) -> Self {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .expect("a log");
        file.set_len(HEADER + CALL * ROOM).expect("a sparse file");
        Self {
            file,
            replayed: 0,
            tells_callers: false,
            live: BTreeMap::new(),
            allocations: 0,
            frees: 0,
            bytes: 0,
            live_bytes: 0,
            peak: 0,
        }
    }

    fn words<const N: usize>(&self, at: u64) -> [u64; N] {
        let mut bytes = vec![0; N * 8];
        self.file.read_exact_at(&mut bytes, at).expect("the log");
        std::array::from_fn(|n| {
            u64::from_le_bytes(bytes[n * 8..n * 8 + 8].try_into().expect("8 bytes"))
        })
    }

    /// Calls that have begun.
    pub fn begun(&self) -> u64 {
        self.words::<1>(0)[0]
    }

    /// Operation and size of call `number`.
    pub fn operation_and_size(&self, number: u64) -> (u64, u64) {
        let call: [u64; 5] = self.words(HEADER + number * CALL);
        (call[0], call[2])
    }

    /// Replays what has ended. Returns whether a call is under way.
    pub fn catch_up(&mut self) -> bool {
        let [begun, ended, room] = self.words(0);
        assert!(begun < room, "the log is full");
        while self.replayed < ended {
            self.replay_next();
        }
        begun > ended
    }

    /// Replays one call more; `false` when there is none.
    pub fn next(&mut self) -> bool {
        let is_there = self.replayed < self.words::<2>(0)[1];
        if is_there {
            self.replay_next();
        }
        is_there
    }

    fn replay_next(&mut self) {
        let call = self.words(HEADER + self.replayed * CALL);
        self.tells_callers |= call[3] != 0;
        self.replay(call);
        self.replayed += 1;
    }

    fn replay(&mut self, [operation, old, size, caller, block]: [u64; 5]) {
        const FREE: u64 = 3;
        // A failed reallocation leaves the old block alone.
        if old != 0 && (block != 0 || size == 0 || operation == FREE) {
            let before = self.live.remove(&old).expect("a block that is alive");
            self.frees += 1;
            self.live_bytes -= before.size;
        }
        if block != 0 {
            let logged = Logged {
                size,
                caller,
                number: self.replayed,
            };
            let before = self.live.insert(block, logged);
            assert_eq!(before, None, "one block twice");
            self.allocations += 1;
            self.bytes += size;
            self.live_bytes += size;
            self.peak = self.peak.max(self.live_bytes);
        }
    }
}
