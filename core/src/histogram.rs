//! Latency histograms: the bucket layout, the live five-minute ring, and plain counts to ask for quantiles.
//!
//! Owns: how a latency becomes a bucket ([`index_of`]), how many threads or processes record at once without
//! locks ([`LatencyRing`]), how sub-windows are merged and read ([`Counts`], [`MinuteSnapshot`]).
//!
//! Values are integer microseconds, 0 to [`MAX_US`] (5 minutes; above counts as 5 minutes). The layout is
//! log-linear, as in HdrHistogram: exact below 128 us, then 64 buckets per octave, so that a bucket's midpoint is
//! at most 0.79 % off any value in it. Merging is addition: exact, associative, in any order.
//!
//! # The ring
//! [`SUB_WINDOWS`] slots; minute `m` lives in slot `m % 5`. Nothing is cleared when a slot moves on to another
//! minute: each movement gives the slot a new 8-bit tag, every word of the slot carries the tag it was written
//! under, and a word with another tag is worth 0 and replaced by whoever next adds to it. Tags are handed out by
//! the slot (one more per movement), not derived from the minute, so an idle day or a clock that steps back cannot
//! bring an old tag to life. A tag repeats after 256 movements; each movement renews 1/32 of the cells, so that no
//! cell lags by more than 32 tags.
//!
//! Exact, with any number of recorders, also across a change of minute: every sample is in one cell, every outcome
//! and retry counted once, sums and maxima exact. The limits:
//! - a cell saturates at 2^24 - 1 samples (a bucket of a minute), a sum or outcome at 2^56 - 1;
//! - a sample whose slot was moved on between the reading of the clock and the recording (four minutes or more) is
//!   counted in the newer minute, or lost if the movement falls into the recording itself;
//! - a movement costs about 60 atomic operations, once per slot and minute, for one of the recorders; the others
//!   do not wait for it. Everything else is one to three atomic operations, retried only when another recorder
//!   replaced the same word in between.
//! - a reader sees every sample that was recorded before it began, and some of those recorded meanwhile; its sum may
//!   be ahead of its counts by the recordings under way.
//!
//! All-zero bytes are a valid empty ring, so it may lie in fresh shared memory.

use std::array;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// The largest latency told apart, in microseconds (5 minutes); larger ones count as this.
pub const MAX_US: u64 = 300_000_000;

/// Number of buckets of the live layout.
pub const BUCKETS: usize = index_of(MAX_US) + 1;

/// One-minute sub-windows of a ring.
pub const SUB_WINDOWS: usize = 5;

/// Outcome counters per minute: success, error, timeout, no_responders, invalid_response, cancelled, caller_error,
/// circuit_open, retries. The ring gives them no meaning.
pub const OUTCOMES: usize = 9;

/// The largest count of one bucket in one minute; more saturates.
pub const MAX_CELL: u32 = Cell::MAX;

/// A log-linear layout: values below `2 << bits` have a bucket each, every octave above has `1 << bits` buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogLinear {
    pub(crate) bits: u32,
}

impl LogLinear {
    /// The bucket of a value.
    pub(crate) const fn index_of(self, value: u64) -> usize {
        let shift = 63 - self.bits - (value | (1 << self.bits)).leading_zeros();
        (value >> shift) as usize + ((shift as usize) << self.bits)
    }

    /// Log2 of the width of a bucket.
    pub(crate) const fn shift(self, index: usize) -> u32 {
        ((index >> self.bits) as u32).saturating_sub(1)
    }

    /// The lowest value of a bucket.
    pub(crate) const fn lowest(self, index: usize) -> u64 {
        let shift = self.shift(index);
        ((index - ((shift as usize) << self.bits)) as u64) << shift
    }

    /// The highest value of a bucket.
    pub(crate) const fn highest(self, index: usize) -> u64 {
        self.lowest(index) + (1 << self.shift(index)) - 1
    }
}

const LIVE: LogLinear = LogLinear { bits: 6 };

/// The bucket (0 to [`BUCKETS`] - 1) of a latency in microseconds; any value is allowed.
#[inline]
pub const fn index_of(us: u64) -> usize {
    LIVE.index_of(if us < MAX_US { us } else { MAX_US })
}

const fn last_at_most(index: usize) -> usize {
    if index < BUCKETS { index } else { BUCKETS - 1 }
}

/// The lowest latency of a bucket, in microseconds. An index beyond the layout stands for the last bucket.
pub const fn lowest(index: usize) -> u64 {
    LIVE.lowest(last_at_most(index))
}

/// The highest latency of a bucket, in microseconds, at most [`MAX_US`].
pub const fn highest(index: usize) -> u64 {
    let highest = LIVE.highest(last_at_most(index));
    if highest < MAX_US { highest } else { MAX_US }
}

/// The midpoint of a bucket in microseconds: at most 0.79 % off any latency in it.
pub const fn representative(index: usize) -> f64 {
    (lowest(index) + highest(index)) as f64 / 2.0
}

/// Milliseconds as they are reported, to the nearest microsecond; above 5 minutes is 5 minutes.
/// `None` for NaN and negative numbers, which are no latencies.
pub fn us_from_ms(ms: f64) -> Option<u64> {
    (ms >= 0.0).then(|| ((ms * 1e3).round() as u64).min(MAX_US))
}

/// Microseconds as they are shown: milliseconds.
pub(crate) fn ms(us: f64) -> f64 {
    us / 1e3
}

/// Rank (1 to `n`) of the `q`-quantile of `n` samples: `ceil(q * n)`, with `q` taken within 0..=1.
/// One ulp is taken off `q` first, as HdrHistogram does, lest 0.07 * 100 = 7.000000000000001 become 8.
pub(crate) fn rank(q: f64, n: u64) -> u64 {
    // A double does not tell the last of many samples from the one before.
    if q >= 1.0 {
        return n.max(1);
    }
    ((q.clamp(0.0, 1.0).next_down() * n as f64).ceil() as u64).clamp(1, n.max(1))
}

/// The right to write to a slot: the tag it had when it was entered.
struct Turn<'a> {
    tag: u8,
    at: &'a AtomicU64,
}

impl Turn<'_> {
    /// Whether a word with the tag `held` may be replaced: unless that tag was handed out later than ours.
    /// Tags are compared on a circle, so "later" (1 to 127 movements) is only believed if the slot has in fact moved
    /// on; whoever has seen a word with a later tag sees that too.
    fn replaces(&self, held: u8) -> bool {
        held.wrapping_sub(self.tag) as i8 <= 0 || self.at.load(Ordering::Acquire) as u8 == self.tag
    }
}

/// An atomic word of a tag (the upper 8 bits) and a value that saturates.
macro_rules! tagged {
    ($(#[$doc:meta])* $name:ident, $atomic:ident, $int:ident, $bits:literal) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        #[repr(transparent)]
        struct $name($atomic);

        impl $name {
            const MAX: $int = (1 << $bits) - 1;
            /// Up to here a value may be added to blindly: 2^16 simultaneous steps do not reach the tag.
            const ROOMY: $int = Self::MAX / 2;
            const STEP: $int = Self::MAX >> 17;

            fn pack(tag: u8, value: $int) -> $int {
                (<$int>::from(tag) << $bits) | value.min(Self::MAX)
            }

            fn tag(word: $int) -> u8 {
                (word >> $bits) as u8
            }

            /// The value under this tag.
            fn get(&self, tag: u8) -> $int {
                let word = self.0.load(Ordering::Acquire);
                if Self::tag(word) == tag { word & Self::MAX } else { 0 }
            }

            /// Adds, saturating. False, and nothing done, if the slot has moved on.
            #[inline]
            fn add(&self, turn: &Turn<'_>, n: $int) -> bool {
                let word = self.0.load(Ordering::Acquire);
                if Self::tag(word) == turn.tag && word & Self::MAX <= Self::ROOMY && n <= Self::STEP {
                    self.0.fetch_add(n, Ordering::Release);
                    return true;
                }
                self.change(turn, |value| value.saturating_add(n))
            }

            /// Replaces the value under this turn's tag (0 if the word has an older one) by what `f` makes of it.
            /// False, and nothing done, if the slot has moved on.
            #[cold]
            fn change(&self, turn: &Turn<'_>, f: impl Fn($int) -> $int) -> bool {
                let mut word = self.0.load(Ordering::Acquire);
                loop {
                    let held = Self::tag(word);
                    if !turn.replaces(held) {
                        return false;
                    }
                    let value = if held == turn.tag { word & Self::MAX } else { 0 };
                    let next = Self::pack(turn.tag, f(value));
                    match self.0.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire) {
                        Ok(_) => return true,
                        Err(now) => word = now,
                    }
                }
            }

            /// Gives the word this turn's tag, unless the slot has moved on.
            fn renew(&self, turn: &Turn<'_>) {
                self.change(turn, |value| value);
            }
        }
    };
}

tagged! {
    /// Samples of one bucket.
    Cell, AtomicU32, u32, 24
}

tagged! {
    /// A sum, a maximum or an outcome counter.
    Word, AtomicU64, u64, 56
}

impl Word {
    /// Raises to at least `value`. False, and nothing done, if the slot has moved on.
    #[inline]
    fn raise(&self, turn: &Turn<'_>, value: u64) -> bool {
        let word = self.0.load(Ordering::Acquire);
        (Self::tag(word) == turn.tag && word & Self::MAX >= value) || self.change(turn, |max| max.max(value))
    }
}

/// Parts in which a slot's cells are renewed, one per movement.
const PARTS: usize = 32;

/// One minute.
#[derive(Debug)]
#[repr(C, align(64))]
struct Slot {
    /// (minute + 1) << 8 | tag; 0: never used.
    at: AtomicU64,
    sum_us: Word,
    max_us: Word,
    outcomes: [Word; OUTCOMES],
    cells: [Cell; BUCKETS],
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            at: AtomicU64::default(),
            sum_us: Word::default(),
            max_us: Word::default(),
            outcomes: array::from_fn(|_| Word::default()),
            cells: array::from_fn(|_| Cell::default()),
        }
    }
}

impl Slot {
    /// A turn to write for `minute`, moving the slot on to it if need be.
    #[inline]
    fn enter(&self, minute: u64) -> Turn<'_> {
        let at = self.at.load(Ordering::Acquire);
        if at >> 8 == minute + 1 {
            self.turn(at)
        } else {
            self.move_to(minute, at)
        }
    }

    fn turn(&self, at: u64) -> Turn<'_> {
        Turn {
            tag: at as u8,
            at: &self.at,
        }
    }

    /// A slot one lap ahead stays where it is: its minute also takes what comes late. Further ahead means that the
    /// clock was set back, and the slot follows it.
    #[cold]
    fn move_to(&self, minute: u64, mut at: u64) -> Turn<'_> {
        const FURTHER: u64 = 2 * SUB_WINDOWS as u64;
        while (at >> 8).wrapping_sub(minute + 1) >= FURTHER {
            match self.retag(at, minute + 1) {
                Ok(turn) => return turn,
                Err(now) => at = now,
            }
        }
        self.turn(at)
    }

    /// Puts a new tag on the slot, and so empties it.
    fn retag(&self, at: u64, minute_plus_one: u64) -> Result<Turn<'_>, u64> {
        let next = (minute_plus_one << 8) | u64::from((at as u8).wrapping_add(1));
        self.at
            .compare_exchange(at, next, Ordering::AcqRel, Ordering::Acquire)?;
        let turn = self.turn(next);
        let words = [&self.sum_us, &self.max_us].into_iter().chain(&self.outcomes);
        words.for_each(|word| word.renew(&turn));
        let part = usize::from(turn.tag) % PARTS;
        let cells = self.cells.chunks(BUCKETS.div_ceil(PARTS)).nth(part);
        cells.into_iter().flatten().for_each(|cell| cell.renew(&turn));
        Ok(turn)
    }

    /// Writes under one tag: what was written under an older one is void, so all of it again if the slot moves on.
    #[inline]
    fn write(&self, minute: u64, words: impl Fn(&Turn<'_>) -> bool) {
        while !words(&self.enter(minute)) {}
    }
}

/// Latencies and outcomes of one target over the last five minutes, for any number of concurrent recorders.
///
/// Minutes are counted from any fixed origin (the host uses the Unix epoch), below 2^55. About 30 KB; all-zero bytes
/// are an empty ring. What is exact is said at the head of this module.
#[derive(Debug, Default)]
#[repr(C)]
pub struct LatencyRing {
    slots: [Slot; SUB_WINDOWS],
}

impl LatencyRing {
    #[inline]
    fn slot(&self, minute: u64) -> &Slot {
        &self.slots[(minute % SUB_WINDOWS as u64) as usize]
    }

    /// Records one latency in microseconds (above [`MAX_US`] counts as [`MAX_US`]).
    #[inline]
    pub fn record(&self, minute: u64, us: u64) {
        let us = us.min(MAX_US);
        let slot = self.slot(minute);
        let cell = &slot.cells[index_of(us)];
        // The cell comes last: whoever sees the sample there also sees the maximum and the sum it belongs to.
        slot.write(minute, |turn| {
            slot.max_us.raise(turn, us) && slot.sum_us.add(turn, us) && cell.add(turn, 1)
        });
    }

    /// Adds `n` to an outcome counter (0 to [`OUTCOMES`] - 1; panics beyond).
    #[inline]
    pub fn count_outcome(&self, minute: u64, which: usize, n: u32) {
        let slot = self.slot(minute);
        slot.write(minute, |turn| slot.outcomes[which].add(turn, n.into()));
    }

    /// The outcome counters of a minute; zeros if its slot holds another.
    pub fn outcomes(&self, minute: u64) -> [u64; OUTCOMES] {
        let slot = self.slot(minute);
        let at = slot.at.load(Ordering::Acquire);
        if at >> 8 != minute + 1 {
            return [0; OUTCOMES];
        }
        array::from_fn(|which| slot.outcomes[which].get(at as u8))
    }

    /// What a minute holds so far; empty if its slot holds another minute (also when it moves on during the reading).
    pub fn minute_snapshot(&self, minute: u64) -> MinuteSnapshot {
        let slot = self.slot(minute);
        let at = slot.at.load(Ordering::Acquire);
        if at >> 8 != minute + 1 {
            return MinuteSnapshot::default();
        }
        let tag = at as u8;
        let cells = slot.cells.iter().enumerate();
        let buckets = cells.filter_map(|(index, cell)| match cell.get(tag) {
            0 => None,
            count => Some((index as u16, count)),
        });
        let snapshot = MinuteSnapshot {
            buckets: buckets.collect(),
            sum_us: slot.sum_us.get(tag),
            max_us: slot.max_us.get(tag),
            outcomes: array::from_fn(|which| slot.outcomes[which].get(tag)),
        };
        fence(Ordering::Acquire);
        if slot.at.load(Ordering::Relaxed) == at {
            snapshot
        } else {
            MinuteSnapshot::default()
        }
    }

    /// Adds a snapshot to a minute, as after a restart. False, and nothing added, if the slot already holds a later
    /// minute. Buckets beyond the layout are left out. `minute` must not lie in the future: what is recorded before
    /// it comes would be counted in it.
    pub fn load_minute(&self, minute: u64, snapshot: &MinuteSnapshot) -> bool {
        let slot = self.slot(minute);
        if slot.at.load(Ordering::Acquire) >> 8 > minute + 1 {
            return false;
        }
        slot.write(minute, |turn| {
            let outcomes = slot.outcomes.iter().zip(snapshot.outcomes);
            let cells = snapshot
                .buckets
                .iter()
                .filter_map(|&(index, n)| Some((slot.cells.get(usize::from(index))?, n)));
            slot.max_us.raise(turn, snapshot.max_us.min(MAX_US))
                && slot.sum_us.add(turn, snapshot.sum_us)
                && outcomes.into_iter().all(|(word, n)| word.add(turn, n))
                && cells.into_iter().all(|(cell, n)| cell.add(turn, n))
        });
        true
    }

    /// Fills `counts` (what it held is forgotten) with the latencies of the last five minutes: `now_minute` and the
    /// four before it. Minutes after `now_minute` are left out.
    pub fn summary(&self, now_minute: u64, counts: &mut Counts) {
        counts.clear();
        for minute in now_minute.saturating_sub(SUB_WINDOWS as u64 - 1)..=now_minute {
            counts.add_minute(minute, &self.minute_snapshot(minute));
        }
    }

    /// Forgets everything. What is being recorded meanwhile falls before or after it.
    pub fn reset(&self) {
        for slot in &self.slots {
            let mut at = slot.at.load(Ordering::Acquire);
            while at != 0 {
                match slot.retag(at, at >> 8) {
                    Ok(_) => break,
                    Err(now) => at = now,
                }
            }
        }
    }
}

/// One minute of a ring as plain data: to store, and to load again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MinuteSnapshot {
    /// (bucket, samples), ascending, without empty ones.
    pub buckets: Vec<(u16, u32)>,
    /// Sum of the latencies, in microseconds.
    pub sum_us: u64,
    /// The largest latency, in microseconds.
    pub max_us: u64,
    /// Outcome counters.
    pub outcomes: [u64; OUTCOMES],
}

impl MinuteSnapshot {
    /// Number of latencies.
    pub fn samples(&self) -> u64 {
        self.buckets.iter().map(|&(_, count)| u64::from(count)).sum()
    }

    /// Whether nothing at all was recorded.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty() && self.outcomes == [0; OUTCOMES]
    }
}

/// A merged histogram of the live layout, for one reader. Latencies out are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    buckets: Box<[u64; BUCKETS]>,
    total: u64,
    sum_us: u64,
    max_us: u64,
    oldest_minute: Option<u64>,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            buckets: Box::new([0; BUCKETS]),
            total: 0,
            sum_us: 0,
            max_us: 0,
            oldest_minute: None,
        }
    }
}

impl Counts {
    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.buckets.fill(0);
        (self.total, self.sum_us, self.max_us, self.oldest_minute) = (0, 0, 0, None);
    }

    /// Adds a minute of a ring. Buckets beyond the layout are left out.
    pub fn add_minute(&mut self, minute: u64, snapshot: &MinuteSnapshot) {
        if snapshot.buckets.is_empty() {
            return;
        }
        for &(index, count) in &snapshot.buckets {
            if let Some(sum) = self.buckets.get_mut(usize::from(index)) {
                *sum = sum.saturating_add(count.into());
                self.total = self.total.saturating_add(count.into());
            }
        }
        self.sum_us = self.sum_us.saturating_add(snapshot.sum_us);
        self.max_us = self.max_us.max(snapshot.max_us);
        self.oldest_minute = Some(self.oldest_minute.map_or(minute, |oldest| oldest.min(minute)));
    }

    /// Adds another histogram (of another target, say). Saturates at 2^64 - 1.
    pub fn merge(&mut self, other: &Self) {
        for (sum, count) in self.buckets.iter_mut().zip(other.buckets.iter()) {
            *sum = sum.saturating_add(*count);
        }
        self.total = self.total.saturating_add(other.total);
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        self.max_us = self.max_us.max(other.max_us);
        self.oldest_minute = match (self.oldest_minute, other.oldest_minute) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    /// Number of samples.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Sum of all latencies in milliseconds.
    pub fn sum_ms(&self) -> f64 {
        ms(self.sum_us as f64)
    }

    /// Mean latency in milliseconds, from the exact sum; `None` when empty.
    pub fn mean_ms(&self) -> Option<f64> {
        (self.total > 0).then(|| self.sum_ms() / self.total as f64)
    }

    /// The largest latency in milliseconds, exact; `None` when empty.
    pub fn max_ms(&self) -> Option<f64> {
        (self.total > 0).then(|| ms(self.max_us as f64))
    }

    /// The oldest minute that contributed samples.
    pub fn oldest_minute(&self) -> Option<u64> {
        self.oldest_minute
    }

    /// The latency in milliseconds of the sample of rank `ceil(q * n)` (at least 1), `q` within 0..=1; at most
    /// 0.79 % off, the last rank exact. `None` when empty or `q` is NaN.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        if self.total == 0 || q.is_nan() {
            return None;
        }
        let rank = rank(q, self.total);
        if rank == self.total {
            return self.max_ms();
        }
        let mut seen = 0_u64;
        let index = self.buckets.iter().position(|&count| {
            seen = seen.saturating_add(count);
            seen >= rank
        })?;
        Some(ms(representative(index).min(self.max_us as f64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words so far behind that their tag looks later than the slot's: not to be had from outside, and they must not
    /// block a recorder for ever.
    #[test]
    fn a_later_tag_is_believed_only_if_the_slot_has_moved_on() {
        let at = AtomicU64::new(10);
        for held in 0..=u8::MAX {
            let cell = Cell(AtomicU32::new(Cell::pack(held, 7)));
            assert!(cell.add(&Turn { tag: 10, at: &at }, 3));
            assert_eq!(cell.get(10), if held == 10 { 10 } else { 3 }, "tag {held}");

            let cell = Cell(AtomicU32::new(Cell::pack(held, 7)));
            let overtaken = Turn { tag: 9, at: &at };
            assert_eq!(cell.add(&overtaken, 3), !(10..=9 + 127).contains(&held), "tag {held}");
        }
    }
}
