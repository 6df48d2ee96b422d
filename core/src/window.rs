//! The outcomes of the last seconds, for the breaker: a sliding window as a ring of buckets.
//!
//! Each cell carries the number of the bucket it counts for, so nothing is ever cleared on time: a cell of an older bucket counts as
//! zero and is taken over by a compare-and-swap. Recording is wait-free but for that swap; reading adds up at most [`BUCKETS`] cells.
//!
//! Promise: an outcome older than the window never counts; one younger than 29/30 of it always does.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Buckets of a window.
pub const BUCKETS: u64 = 30;

/// What a window counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Successes, the slow ones too.
    pub successes: u64,
    /// Failures.
    pub failures: u64,
    /// Successes that were slow.
    pub slow: u64,
}

impl Tally {
    /// All outcomes.
    pub fn requests(&self) -> u64 {
        self.successes + self.failures
    }

    /// Failures over all outcomes; `None` without any.
    pub fn error_rate(&self) -> Option<f64> {
        (self.requests() > 0).then(|| self.failures as f64 / self.requests() as f64)
    }

    /// Slow successes over all outcomes; `None` without any.
    pub fn slow_rate(&self) -> Option<f64> {
        (self.requests() > 0).then(|| self.slow as f64 / self.requests() as f64)
    }
}

/// A ring of buckets. All zero bytes are an empty window.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Window {
    successes: [Cell; BUCKETS as usize],
    failures: [Cell; BUCKETS as usize],
    slow: [Cell; BUCKETS as usize],
}

/// The low 32 bits of a bucket's number above a count of 32 bits.
#[derive(Debug, Default)]
#[repr(transparent)]
struct Cell(AtomicU64);

impl Cell {
    fn add(&self, bucket: u32, n: u32) {
        let mut word = self.0.load(Relaxed);
        loop {
            let count = if (word >> 32) as u32 == bucket { word as u32 } else { 0 };
            let next = u64::from(bucket) << 32 | u64::from(count.saturating_add(n));
            match self.0.compare_exchange_weak(word, next, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(seen) => word = seen,
            }
        }
    }

    fn get(&self, bucket: u32) -> u64 {
        let word = self.0.load(Relaxed);
        if (word >> 32) as u32 == bucket {
            u64::from(word as u32)
        } else {
            0
        }
    }
}

/// The number of the bucket that holds `now_us`, and thereby its place in the ring.
pub(crate) fn bucket(window_us: u64, now_us: u64) -> u64 {
    now_us / (window_us / BUCKETS).max(1)
}

impl Window {
    /// Counts an outcome at `now_us` in a window of `window_us` (both microseconds).
    pub fn record(&self, window_us: u64, now_us: u64, failure: bool, slow: bool) {
        let number = bucket(window_us, now_us);
        let (place, tag) = ((number % BUCKETS) as usize, number as u32);
        if failure {
            self.failures[place].add(tag, 1);
        } else {
            self.successes[place].add(tag, 1);
            if slow {
                self.slow[place].add(tag, 1);
            }
        }
    }

    /// What happened within the last `window_us` before `now_us`.
    pub fn tally(&self, window_us: u64, now_us: u64) -> Tally {
        let newest = bucket(window_us, now_us);
        let last = (newest % BUCKETS) as usize;
        // The ring as it lies: up to the newest bucket this lap, behind it the lap before.
        let lap = (newest as u32).wrapping_sub(last as u32);
        let before = lap.wrapping_sub(BUCKETS as u32);
        let sum = |cells: &[Cell; BUCKETS as usize]| {
            let of_lap = |(lap, range): (u32, std::ops::Range<usize>)| {
                range
                    .map(|place| cells[place].get(lap.wrapping_add(place as u32)))
                    .sum::<u64>()
            };
            of_lap((lap, 0..last + 1)) + of_lap((before, last + 1..BUCKETS as usize))
        };
        Tally {
            successes: sum(&self.successes),
            failures: sum(&self.failures),
            slow: sum(&self.slow),
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for cell in self.successes.iter().chain(&self.failures).chain(&self.slow) {
            cell.0.store(0, Relaxed);
        }
    }

    /// The words of the ring, for keeping them over a restart.
    pub fn words(&self) -> impl Iterator<Item = u64> {
        self.successes
            .iter()
            .chain(&self.failures)
            .chain(&self.slow)
            .map(|cell| cell.0.load(Relaxed))
    }

    /// Puts back what [`Window::words`] gave.
    pub fn restore(&self, words: impl Iterator<Item = u64>) {
        for (cell, word) in self.successes.iter().chain(&self.failures).chain(&self.slow).zip(words) {
            cell.0.store(word, Relaxed);
        }
    }

    /// How many words a ring has.
    pub const WORDS: usize = 3 * BUCKETS as usize;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn sessions_together_lose_nothing() {
        let window = Window::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..10_000).for_each(|n| window.record(60 * SECOND, 5 * SECOND, n % 2 == 0, false)));
            }
        });
        assert_eq!(
            window.tally(60 * SECOND, 5 * SECOND),
            Tally {
                successes: 40_000,
                failures: 40_000,
                slow: 0
            }
        );
    }

    proptest! {
        /// Against a list of (time, failure, slow) and exact sums.
        #[test]
        fn old_outcomes_never_count_young_ones_always(
            steps in prop::collection::vec((0u64..10_000_000, any::<bool>(), any::<bool>()), 1..200),
            seconds in 1u64..120,
        ) {
            let (window, length) = (Window::default(), seconds * SECOND);
            let mut now = 1_700_000_000 * SECOND;
            let mut all = Vec::new();
            for (step, failure, slow) in steps {
                now += step;
                window.record(length, now, failure, slow);
                all.push((now, failure));
                let count = |from: u64| all.iter().filter(|(at, _)| *at > from).count() as u64;
                let requests = window.tally(length, now).requests();
                prop_assert!(requests <= count(now - length));
                prop_assert!(requests >= count(now - length / 30 * 29));
            }
        }
    }
}
