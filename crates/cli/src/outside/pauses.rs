//! *How long did processes stand still?* Each time from the first thread that was stopped to the last that was let go.

use std::collections::BTreeMap;
use std::time::Duration;

/// Times that processes stood still, by powers of two.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    counts: BTreeMap<u64, u64>,
    longest: Duration,
}

impl Pauses {
    pub(super) fn add(&mut self, pause: Duration) {
        let microseconds = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX >> 1);
        let limit = (microseconds + 1).next_power_of_two();
        *self.counts.entry(limit).or_default() += 1;
        self.longest = self.longest.max(pause);
    }

    /// The longest.
    pub(crate) fn longest(&self) -> Duration {
        self.longest
    }

    /// How many took less than so many microseconds, and not less than half of that. In order.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.counts.iter().map(|(limit, count)| (*limit, *count))
    }
}
