//! Everything that changes on a call, for one target: a version or an instance.
//!
//! A [`Target`] is plain atomics without pointers, so that it may lie in shared memory or on the heap; all zero bytes are a target that has
//! seen nothing. What survives a restart is written as [`Target::snapshot`] and put back by [`Target::restore`]; the latencies of the last
//! minutes travel apart, minute by minute.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, SeqCst},
};

use thiserror::Error;

use crate::breaker::{Breaker, SharedSettings};
use crate::ejection::Ejection;
use crate::histogram::{LatencyRing, MinuteSnapshot, SUB_WINDOWS};
use crate::outcome::{CIRCUIT_OPEN, Outcome, RETRIES, Verdict};

/// Counters of a target: the seven outcomes, refusals by an open breaker, retries.
pub const COUNTERS: usize = 9;
/// Longest latency, in microseconds; longer ones count as this: 5 minutes.
pub const MAX_LATENCY_US: u64 = 300_000_000;

/// Health of one version or one instance.
/// What a decision touches lies together in front, what a report touches behind it: two or three cache lines each.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Target {
    /// Calls sent and not yet accounted for.
    in_flight: AtomicU64,
    /// Turns of weighted round robin taken so far: among all eligible instances, and among what [`Turn::Narrowed`] left of them.
    turns: [AtomicU64; 2],
    /// Ejection; unused for a version.
    pub ejection: Ejection,
    /// The breaker's settings, for reports.
    pub settings: SharedSettings,
    /// The circuit breaker; unused for an instance.
    pub breaker: Breaker,
    counts: [AtomicU64; COUNTERS],
    last_success_us: AtomicU64,
    last_failure_us: AtomicU64,
    /// Last latency plus one; 0 = none.
    last_latency_us: AtomicU64,
    updated_us: AtomicU64,
    /// Peak-EWMA of the latency in microseconds, and when it was last touched.
    ewma_us: AtomicU64,
    ewma_at_us: AtomicU64,
    /// Latencies and outcomes of the last minutes.
    pub latency: LatencyRing,
}

/// Which sequence of weighted round robin a pick belongs to. They are apart, so that retries do not disturb the shares of first attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Turn {
    /// Among all eligible instances.
    Whole = 0,
    /// Among some of them: others were tried already, or none is eligible.
    Narrowed = 1,
}

/// A snapshot that cannot be read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("unreadable snapshot of a target: {0}")]
pub struct SnapshotError(&'static str);

/// The minute of a time in microseconds.
pub fn minute(now_us: u64) -> u64 {
    now_us / 60_000_000
}

impl Target {
    /// Counts one attempt. The latency counts where the outcome has one; a retry is one more attempt after the first.
    pub fn record(&self, outcome: Outcome, latency_us: u64, retries: u32, now_us: u64) {
        let minute = minute(now_us);
        self.counts[outcome as usize].fetch_add(1, Relaxed);
        self.latency.count_outcome(minute, outcome as usize, 1);
        if retries > 0 {
            self.counts[RETRIES].fetch_add(u64::from(retries), Relaxed);
            self.latency.count_outcome(minute, RETRIES, retries);
        }
        if outcome.has_latency() {
            let latency_us = latency_us.min(MAX_LATENCY_US);
            self.latency.record(minute, latency_us);
            self.last_latency_us.store(latency_us + 1, Relaxed);
            self.touch_ewma(latency_us, now_us);
        }
        match outcome.verdict() {
            Verdict::Success => self.last_success_us.store(now_us, Relaxed),
            Verdict::Failure => self.last_failure_us.store(now_us, Relaxed),
            Verdict::Neutral => {}
        }
        self.updated_us.store(now_us, Relaxed);
    }

    /// Counts one refusal by the open breaker.
    pub fn record_refusal(&self, now_us: u64) {
        self.counts[CIRCUIT_OPEN].fetch_add(1, Relaxed);
        self.latency.count_outcome(minute(now_us), CIRCUIT_OPEN, 1);
    }

    /// Adds what was gathered elsewhere for a minute. False, and only the counts since the last reset taken in, if that minute is not
    /// among the last ones kept here.
    pub fn merge(&self, minute_of: u64, gathered: &MinuteSnapshot, now_us: u64) -> bool {
        for (count, more) in self.counts.iter().zip(gathered.outcomes) {
            count.fetch_add(more, Relaxed);
        }
        self.updated_us.fetch_max(now_us, Relaxed);
        let now = minute(now_us);
        let is_kept = minute_of <= now && minute_of + SUB_WINDOWS as u64 > now;
        is_kept && self.latency.load_minute(minute_of, gathered)
    }

    /// Forgets what was counted and measured. Breaker, ejection, turns and calls under way stay, and what balancing knows of latency.
    pub fn reset_statistics(&self) {
        let words = [
            &self.last_success_us,
            &self.last_failure_us,
            &self.last_latency_us,
            &self.updated_us,
        ];
        for word in words.into_iter().chain(&self.counts) {
            word.store(0, Relaxed);
        }
        self.latency.reset();
    }

    /// Takes the next turn of weighted round robin.
    pub fn take_turn(&self, which: Turn) -> u64 {
        self.turns[which as usize].fetch_add(1, Relaxed)
    }

    /// The turn that would be taken next.
    pub fn next_turn(&self, which: Turn) -> u64 {
        self.turns[which as usize].load(Relaxed)
    }

    /// One more call under way. Also pins the target: see the host's table.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, SeqCst);
    }

    /// One call less under way.
    pub fn end(&self) {
        // Never below zero, whatever a restart in between made of it.
        let _ = self.in_flight.fetch_update(AcqRel, Acquire, |n| n.checked_sub(1));
    }

    /// Calls under way.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(SeqCst)
    }

    /// Outcomes since the statistics were last reset, in the order of [`Outcome`], then refusals and retries.
    pub fn counts(&self) -> [u64; COUNTERS] {
        std::array::from_fn(|i| self.counts[i].load(Relaxed))
    }

    /// Time of the last success, in microseconds since the Unix epoch.
    pub fn last_success_us(&self) -> Option<u64> {
        Some(self.last_success_us.load(Relaxed)).filter(|at| *at > 0)
    }

    /// Time of the last failure.
    pub fn last_failure_us(&self) -> Option<u64> {
        Some(self.last_failure_us.load(Relaxed)).filter(|at| *at > 0)
    }

    /// The last latency, in microseconds.
    pub fn last_latency_us(&self) -> Option<u64> {
        self.last_latency_us.load(Relaxed).checked_sub(1)
    }

    /// Time of the last outcome.
    pub fn updated_us(&self) -> Option<u64> {
        Some(self.updated_us.load(Relaxed)).filter(|at| *at > 0)
    }

    /// Peak-EWMA (Finagle): rises to a higher latency at once, decays towards lower ones within about ten seconds.
    fn touch_ewma(&self, latency_us: u64, now_us: u64) {
        let before = self.ewma_us.load(Relaxed);
        let elapsed = now_us.saturating_sub(self.ewma_at_us.swap(now_us, Relaxed));
        let next = if latency_us >= before {
            latency_us
        } else {
            // exp(-x) to its second order: within 3 % where it matters, and always between 0 and 1.
            let x = elapsed as f64 / 10e6;
            let keep = 1.0 / (1.0 + x + x * x / 2.0);
            (before as f64 * keep + latency_us as f64 * (1.0 - keep)) as u64
        };
        // Lost updates between sessions only delay it.
        self.ewma_us.store(next, Relaxed);
    }

    /// Expected latency times calls under way: what `least_latency` compares.
    pub fn load(&self) -> u128 {
        u128::from(self.ewma_us.load(Relaxed).max(1)) * u128::from(self.in_flight() + 1)
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        let own = [
            &self.turns[0],
            &self.turns[1],
            &self.last_success_us,
            &self.last_failure_us,
            &self.last_latency_us,
            &self.updated_us,
            &self.ewma_us,
            &self.ewma_at_us,
        ];
        self.breaker
            .words()
            .chain(self.ejection.words())
            .chain(own.into_iter().map(|word| word.load(Relaxed)))
            .chain(self.counts.iter().map(|word| word.load(Relaxed)))
    }

    const OWN_WORDS: usize = 8;
    const WORDS: usize = Breaker::WORDS + Ejection::WORDS + Self::OWN_WORDS + COUNTERS;
    const MINUTE_WORDS: usize = 3 * SUB_WINDOWS;
    const FORMAT: u8 = 2;

    /// A hash of everything but the latencies: whether anything happened since the last one.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        self.words().for_each(|word| hasher.update(&word.to_le_bytes()));
        hasher.digest().max(1)
    }

    /// What must survive a restart, as bytes: a format number, then position (2 bytes) and value (8 bytes, little-endian) of each word that is
    /// not zero. Of the minutes given only sum and maximum are in it; their buckets travel in the minute metrics.
    pub fn snapshot(&self, minutes: &[(u64, MinuteSnapshot)]) -> Vec<u8> {
        let sums = minutes
            .iter()
            .take(SUB_WINDOWS)
            .flat_map(|(minute, latencies)| [*minute, latencies.sum_us, latencies.max_us]);
        Self::encode(self.words().chain(sums))
    }

    /// A snapshot of breaker and ejection as they are, over the statistics of one that was written before (`None`: of a target that
    /// has counted nothing). What is written of counts belongs to the batches of reports that were written with them; a transition
    /// cannot wait for those.
    pub fn snapshot_over(&self, written: Option<&[u8]>) -> Vec<u8> {
        let mut words = written
            .and_then(|bytes| Self::words_of(bytes).ok())
            .unwrap_or([0; Self::WORDS + Self::MINUTE_WORDS]);
        let moved = self.breaker.words().chain(self.ejection.words());
        words.iter_mut().zip(moved).for_each(|(word, now)| *word = now);
        Self::encode(words.into_iter())
    }

    fn encode(words: impl Iterator<Item = u64>) -> Vec<u8> {
        let mut bytes = vec![Self::FORMAT];
        for (position, word) in words.enumerate().filter(|(_, word)| *word != 0) {
            bytes.extend_from_slice(&(position as u16).to_le_bytes());
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The words of a snapshot.
    fn words_of(bytes: &[u8]) -> Result<[u64; Self::WORDS + Self::MINUTE_WORDS], SnapshotError> {
        let (format, rest) = bytes.split_first().ok_or(SnapshotError("it is empty"))?;
        if *format != Self::FORMAT {
            return Err(SnapshotError("unknown format"));
        }
        let mut words = [0u64; Self::WORDS + Self::MINUTE_WORDS];
        for entry in rest.chunks(10) {
            let (Some(position), Some(word)) = (entry.first_chunk::<2>(), entry.last_chunk::<8>()) else {
                return Err(SnapshotError("it is cut short"));
            };
            if entry.len() != 10 {
                return Err(SnapshotError("it is cut short"));
            }
            let place = words.get_mut(usize::from(u16::from_le_bytes(*position)));
            *place.ok_or(SnapshotError("a position is out of range"))? = u64::from_le_bytes(*word);
        }
        Ok(words)
    }

    /// The state word of the breaker in a snapshot, if it can be read.
    pub fn breaker_word_of(bytes: &[u8]) -> Option<u64> {
        Self::words_of(bytes).ok().map(|words| words[0])
    }

    /// Puts back only what a standby takes from its primary: when breakers were reset last.
    pub fn restore_resets(&self, bytes: &[u8]) {
        if let Ok(words) = Self::words_of(bytes) {
            let resets = [0, 0, words[2]];
            self.breaker.restore(resets.into_iter());
        }
    }

    /// Puts back the statistics of a snapshot and nothing else: what a standby that is promoted takes over. Returns as
    /// [`Target::restore`].
    pub fn restore_statistics(&self, bytes: &[u8]) -> Result<Vec<(u64, u64, u64)>, SnapshotError> {
        // All of it into one that nobody uses, and from there what is wanted.
        let saved = Box::<Self>::default();
        let sums = saved.restore(bytes)?;
        let pairs = [
            (&self.last_success_us, &saved.last_success_us),
            (&self.last_failure_us, &saved.last_failure_us),
            (&self.last_latency_us, &saved.last_latency_us),
            (&self.updated_us, &saved.updated_us),
        ];
        for (place, word) in pairs.into_iter().chain(self.counts.iter().zip(&saved.counts)) {
            place.store(word.load(Relaxed), Relaxed);
        }
        Ok(sums)
    }

    /// The ejection in a snapshot, if it can be read.
    pub fn ejection_of(bytes: &[u8]) -> Option<Ejection> {
        let words = Self::words_of(bytes).ok()?;
        let ejection = Ejection::default();
        ejection.restore(std::array::from_fn(|word| words[Breaker::WORDS + word]));
        Some(ejection)
    }

    /// Puts a snapshot back. Only while nobody else uses the target. On an error the target is unchanged.
    ///
    /// Returns minute, sum and maximum (microseconds) of the minutes the snapshot knows.
    pub fn restore(&self, bytes: &[u8]) -> Result<Vec<(u64, u64, u64)>, SnapshotError> {
        let words = Self::words_of(bytes)?;
        let (words, minutes) = words.split_at(Self::WORDS);
        let (breaker, rest) = words.split_at(Breaker::WORDS);
        let (ejection, rest) = rest.split_at(Ejection::WORDS);
        let (own, counts) = rest.split_at(Self::OWN_WORDS);
        self.breaker.restore(breaker.iter().copied());
        self.ejection.restore(std::array::from_fn(|word| ejection[word]));
        let places = [
            &self.turns[0],
            &self.turns[1],
            &self.last_success_us,
            &self.last_failure_us,
            &self.last_latency_us,
            &self.updated_us,
            &self.ewma_us,
            &self.ewma_at_us,
        ];
        for (place, word) in places.into_iter().chain(&self.counts).zip(own.iter().chain(counts)) {
            place.store(*word, Relaxed);
        }
        Ok(minutes
            .chunks_exact(3)
            .filter(|minute| minute[0] > 0)
            .map(|minute| (minute[0], minute[1], minute[2]))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000_000_000;

    #[test]
    fn outcomes_are_counted_once_each() {
        let target = Target::default();
        for outcome in Outcome::ALL {
            target.record(outcome, 1500, 0, NOW);
        }
        target.record(Outcome::Success, u64::MAX, 2, NOW);
        target.record_refusal(NOW);
        assert_eq!(target.counts(), [2, 1, 1, 1, 1, 1, 1, 1, 2]);
        assert_eq!(target.last_latency_us(), Some(MAX_LATENCY_US));
        assert_eq!(target.last_success_us(), Some(NOW));
    }

    #[test]
    fn what_was_gathered_elsewhere_is_added() {
        let target = Target::default();
        target.record(Outcome::Success, 1000, 0, NOW);
        let elsewhere = Target::default();
        (0..3).for_each(|_| elsewhere.record(Outcome::Timeout, 5000, 1, NOW));
        let gathered = elsewhere.latency.minute_snapshot(minute(NOW));
        assert!(target.merge(minute(NOW), &gathered, NOW));
        assert!(
            !target.merge(minute(NOW) - 5, &gathered, NOW),
            "too old for the ring, but counted"
        );
        assert_eq!(target.counts()[Outcome::Timeout as usize], 6);
        assert_eq!(target.latency.minute_snapshot(minute(NOW)).samples(), 4);
        assert_eq!(target.breaker.state(), crate::breaker::State::Closed);
        target.reset_statistics();
        assert_eq!(target.counts(), [0; COUNTERS]);
        assert_eq!(target.latency.minute_snapshot(minute(NOW)).samples(), 0);
    }

    #[test]
    fn in_flight_never_goes_below_zero() {
        let target = Target::default();
        target.end();
        target.begin();
        assert_eq!(target.in_flight(), 1);
    }

    proptest! {
        #[test]
        fn a_snapshot_restores(outcomes in prop::collection::vec((0usize..7, 0u64..1_000_000), 0..50)) {
            let (target, copy) = (Target::default(), Target::default());
            for (outcome, latency) in outcomes {
                target.record(Outcome::ALL[outcome], latency, 1, NOW);
                target.take_turn(Turn::Whole);
            }
            let minutes = [(minute(NOW), target.latency.minute_snapshot(minute(NOW)))];
            let sums = copy.restore(&target.snapshot(&minutes)).unwrap();
            prop_assert_eq!(sums, vec![(minute(NOW), minutes[0].1.sum_us, minutes[0].1.max_us)]);
            prop_assert_eq!(copy.words().collect::<Vec<_>>(), target.words().collect::<Vec<_>>());
        }

        #[test]
        fn a_transition_is_written_over_older_statistics(before in 0u64..20, after in 0u64..20) {
            let target = Target::default();
            let succeed = |times| (0..times).for_each(|_| target.record(Outcome::Success, 1000, 0, NOW));
            succeed(before);
            let written = target.snapshot(&[(minute(NOW), target.latency.minute_snapshot(minute(NOW)))]);
            succeed(after);
            target.breaker.restore_open(NOW + 1_000_000, NOW);
            let copy = Target::default();
            let sums = copy.restore(&target.snapshot_over(Some(&written))).unwrap();
            prop_assert_eq!(copy.counts()[Outcome::Success as usize], before);
            prop_assert_eq!(sums, Target::default().restore(&written).unwrap());
            prop_assert_eq!(copy.breaker.words().collect::<Vec<_>>(), target.breaker.words().collect::<Vec<_>>());
            let fresh = Target::default();
            fresh.restore(&target.snapshot_over(None)).unwrap();
            prop_assert_eq!(fresh.counts(), [0; COUNTERS]);
            prop_assert_eq!(fresh.breaker.state(), target.breaker.state());
        }

        #[test]
        fn hostile_snapshots_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Target::default().restore(&bytes);
            if let Some(first) = bytes.first_mut() { *first = Target::FORMAT; }
            let _ = Target::default().restore(&bytes);
        }
    }
}
