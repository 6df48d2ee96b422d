//! Outlier ejection: an instance whose calls fail in a row is left out for a while, and comes back through a ramp.
//!
//! Modelled on Envoy's outlier detection (consecutive failures, a time that grows with each ejection, a cap on the share of the pool), with
//! one difference: an outcome only makes an instance *suspect*; whether it may go is decided where its whole pool is known, see
//! [`crate::fitness`].
//!
//! The state of one instance is two words of atomics. Calls that began before the instance came back say nothing new: they are not counted in
//! the row. Time comes in microseconds since the Unix epoch, randomness as a word.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use crate::breaker::jitter;
use crate::outcome::{Outcome, Verdict};

/// Length of a first ejection; the n-th in a row lasts n times as long.
const BASE_US: u64 = 30_000_000;
/// Longest ejection.
const LONGEST_US: u64 = 300_000_000;
/// How long the way back takes.
const RAMP_US: u64 = 10_000_000;
/// Steps of the way back: the weight rises by a tenth with each.
pub const RAMP_STEPS: u32 = 10;
/// An instance that has stayed this long is forgiven one of its ejections.
const FORGIVEN_US: u64 = 300_000_000;
/// So many no-responders answers in a row make an instance suspect, whatever the setting: nobody listens there.
const NO_RESPONDERS: u32 = 2;

/// The settings of ejection, per extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row that eject; `None` = off, the rule for no-responders too.
    pub after: Option<u32>,
    /// Never more than this share of a pool is out at once, in percent.
    pub max_percent: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            after: Some(5),
            max_percent: 50,
        }
    }
}

/// Where an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It gets its whole weight.
    Fit,
    /// It is left out until then.
    Ejected {
        /// When it may come back.
        until_us: u64,
    },
    /// It has come back and gets this many tenths of its weight, and more at `next_us`.
    Returning {
        /// 1 to 9.
        tenths: u32,
        /// When the next step begins.
        next_us: u64,
    },
}

/// Why an instance was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Failures in a row.
    ConsecutiveFailures,
    /// Nobody listened, twice in a row.
    NoResponders,
}

/// An ejection or a return, told to whoever caused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// It is left out.
    Ejected {
        /// Why.
        cause: Cause,
        /// Failures in a row.
        failures: u32,
        /// Until when.
        until_us: u64,
    },
    /// It may be chosen again.
    Returned,
}

/// The ejection of one instance. All zero bytes are an instance that has never failed.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Ejection {
    /// See [`Word`].
    word: AtomicU64,
    /// Failures in a row (high half) and no-responders answers in a row (low half).
    row: AtomicU64,
    /// [`Settings::after`] for reports, which know no configuration: [`OFF`], or the number; 0 = not told yet.
    after: AtomicU64,
}

const OFF: u64 = u64::MAX;

/// The state word taken apart: 1 bit out, 7 bits times, 56 bits until when in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word {
    /// Ejected, and nobody has seen it come back.
    out: bool,
    /// Ejections in a row.
    times: u32,
    /// End of the last ejection; 0 = never.
    until_us: u64,
}

const UNTIL_BITS: u32 = 56;

impl Word {
    fn unpack(word: u64) -> Self {
        Self {
            out: word >> 63 == 1,
            times: (word >> UNTIL_BITS) as u32 & 0x7f,
            until_us: word & ((1 << UNTIL_BITS) - 1),
        }
    }

    fn pack(self) -> u64 {
        u64::from(self.out) << 63
            | u64::from(self.times.min(0x7f)) << UNTIL_BITS
            | self.until_us & ((1 << UNTIL_BITS) - 1)
    }
}

impl Ejection {
    /// Tells reports the setting. Cheap where it is known already.
    pub fn set_after(&self, after: Option<u32>) {
        let after = after.map_or(OFF, u64::from);
        if self.after.load(Relaxed) != after {
            self.after.store(after, Relaxed);
        }
    }

    fn after(&self) -> Option<u32> {
        match self.after.load(Relaxed) {
            OFF => None,
            0 => Settings::default().after,
            after => Some(after as u32),
        }
    }

    /// Takes in how a call ended that began at `began_us`. True if it has just become suspect.
    pub fn note(&self, outcome: Outcome, began_us: u64) -> bool {
        match outcome.verdict() {
            Verdict::Neutral => return false,
            Verdict::Success => {
                // Nearly always there is nothing to forget, and the line stays shared.
                if self.row.load(Relaxed) != 0 {
                    self.row.store(0, Relaxed);
                }
                return false;
            }
            Verdict::Failure => {}
        }
        let Some(after) = self.after() else { return false };
        if began_us < Word::unpack(self.word.load(Relaxed)).until_us {
            return false;
        }
        let longer = |row: u64| {
            let silent = if outcome == Outcome::NoResponders {
                (row as u32).saturating_add(1)
            } else {
                0
            };
            u64::from(((row >> 32) as u32).saturating_add(1)) << 32 | u64::from(silent)
        };
        let before = self
            .row
            .fetch_update(Relaxed, Relaxed, |row| Some(longer(row)))
            .unwrap_or_default();
        !suspects(before, after) && suspects(longer(before), after)
    }

    /// Whether its last calls failed in a row, and nobody has judged that yet.
    pub fn is_suspect(&self) -> bool {
        self.after()
            .is_some_and(|after| suspects(self.row.load(Relaxed), after))
    }

    /// Failures in a row.
    pub fn failures_in_a_row(&self) -> u32 {
        (self.row.load(Relaxed) >> 32) as u32
    }

    /// Where it stands.
    pub fn standing(&self, now_us: u64) -> Standing {
        let word = Word::unpack(self.word.load(Acquire));
        if word.out && now_us < word.until_us {
            return Standing::Ejected {
                until_us: word.until_us,
            };
        }
        let step_us = RAMP_US / u64::from(RAMP_STEPS);
        let back_us = now_us.saturating_sub(word.until_us);
        // Never ejected, or long ago.
        if word.until_us == 0 || back_us >= RAMP_US - step_us {
            return Standing::Fit;
        }
        let step = back_us / step_us;
        Standing::Returning {
            tenths: step as u32 + 1,
            next_us: word.until_us + (step + 1) * step_us,
        }
    }

    /// Ejects it. `None` if it is out already.
    pub fn eject(&self, now_us: u64, random: u64) -> Option<Move> {
        let seen = self.word.load(Acquire);
        let word = Word::unpack(seen);
        if word.out && now_us < word.until_us {
            return None;
        }
        let forgiven = now_us.saturating_sub(word.until_us) / FORGIVEN_US;
        let times = word.times.saturating_sub(forgiven.min(u64::from(u32::MAX)) as u32) + 1;
        let until_us = now_us + jitter(BASE_US * u64::from(times), random).min(LONGEST_US);
        let next = Word {
            out: true,
            times,
            until_us,
        };
        self.word.compare_exchange(seen, next.pack(), AcqRel, Relaxed).ok()?;
        let row = self.row.swap(0, Relaxed);
        Some(Move::Ejected {
            cause: if row as u32 >= NO_RESPONDERS {
                Cause::NoResponders
            } else {
                Cause::ConsecutiveFailures
            },
            failures: (row >> 32) as u32,
            until_us,
        })
    }

    /// Notes that its time is over. For one caller, once.
    pub fn come_back(&self, now_us: u64) -> Option<Move> {
        let seen = self.word.load(Acquire);
        let word = Word::unpack(seen);
        if !word.out || now_us < word.until_us {
            return None;
        }
        let back = Word { out: false, ..word };
        let swapped = self.word.compare_exchange(seen, back.pack(), AcqRel, Relaxed);
        swapped.ok().map(|_| Move::Returned)
    }

    /// What survives a restart; see [`Ejection::restore`].
    pub fn words(&self) -> [u64; Self::WORDS] {
        [self.word.load(Relaxed), self.row.load(Relaxed)]
    }

    /// How many words that is.
    pub const WORDS: usize = 2;

    /// Puts back what [`Ejection::words`] gave. Only while nobody else uses it.
    pub fn restore(&self, words: [u64; Self::WORDS]) {
        self.word.store(words[0], Relaxed);
        self.row.store(words[1], Relaxed);
    }
}

fn suspects(row: u64, after: u32) -> bool {
    (row >> 32) as u32 >= after || row as u32 >= NO_RESPONDERS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000;
    const NOW: u64 = 1_800_000_000 * SECOND;
    /// No jitter.
    const MIDDLE: u64 = 1 << 63;

    fn fail(ejection: &Ejection, outcome: Outcome, times: usize) -> Vec<bool> {
        (0..times).map(|_| ejection.note(outcome, NOW)).collect()
    }

    #[test]
    fn the_fifth_failure_in_a_row_makes_a_suspect_once() {
        let ejection = Ejection::default();
        assert_eq!(
            fail(&ejection, Outcome::Timeout, 6),
            [false, false, false, false, true, false]
        );
        assert!(ejection.is_suspect());
        ejection.note(Outcome::Success, NOW);
        assert!(!ejection.is_suspect());
        fail(&ejection, Outcome::Error, 4);
        ejection.note(Outcome::Cancelled, NOW);
        assert!(ejection.note(Outcome::Error, NOW), "neutral outcomes do not end a row");
    }

    #[test]
    fn nobody_listening_twice_is_enough() {
        let ejection = Ejection::default();
        assert_eq!(fail(&ejection, Outcome::NoResponders, 2), [false, true]);
        let ejection = Ejection::default();
        for outcome in [Outcome::NoResponders, Outcome::Error, Outcome::NoResponders] {
            assert!(!ejection.note(outcome, NOW), "not in a row");
        }
        assert!(matches!(
            Ejection::default().eject(NOW, MIDDLE),
            Some(Move::Ejected {
                cause: Cause::ConsecutiveFailures,
                ..
            })
        ));
    }

    #[test]
    fn it_can_be_switched_off() {
        let ejection = Ejection::default();
        ejection.set_after(None);
        assert!(!fail(&ejection, Outcome::NoResponders, 10).contains(&true));
        assert!(!ejection.is_suspect());
        ejection.set_after(Some(1));
        assert!(ejection.note(Outcome::Error, NOW));
    }

    #[test]
    fn its_time_grows_and_is_forgiven() {
        let ejection = Ejection::default();
        let mut now = NOW;
        let mut last = |ejection: &Ejection, wait: u64| {
            now += wait;
            let Some(Move::Ejected { until_us, .. }) = ejection.eject(now, MIDDLE) else {
                panic!("it is out")
            };
            let length = until_us - now;
            now = until_us;
            length / SECOND
        };
        let lengths: Vec<u64> = (0..12).map(|_| last(&ejection, SECOND)).collect();
        assert_eq!(lengths[..4], [30, 60, 90, 120]);
        assert_eq!(lengths[9..], [300, 300, 300]);
        assert_eq!(last(&ejection, 9 * 300 * SECOND), 120, "nine of twelve forgiven");
        assert_eq!(last(&ejection, 100 * 300 * SECOND), 30);
    }

    #[test]
    fn it_comes_back_step_by_step_and_says_so_once() {
        let ejection = Ejection::default();
        assert_eq!(ejection.standing(NOW), Standing::Fit);
        fail(&ejection, Outcome::Error, 5);
        let Some(Move::Ejected { until_us, failures, .. }) = ejection.eject(NOW, MIDDLE) else {
            panic!("it is out")
        };
        assert_eq!((until_us, failures), (NOW + 30 * SECOND, 5));
        assert_eq!(ejection.eject(NOW + 1, MIDDLE), None);
        assert_eq!(ejection.standing(until_us - 1), Standing::Ejected { until_us });
        assert_eq!(ejection.come_back(until_us - 1), None);
        assert!(
            fail(&ejection, Outcome::Error, 9).iter().all(|s| !s),
            "calls of before say nothing new"
        );
        assert_eq!(ejection.come_back(until_us), Some(Move::Returned));
        assert_eq!(ejection.come_back(until_us), None);
        let tenths = |seconds: u64| match ejection.standing(until_us + seconds * SECOND) {
            Standing::Returning { tenths, next_us } => {
                assert_eq!(next_us, until_us + (seconds + 1) * SECOND);
                tenths
            }
            standing => {
                assert_eq!(standing, Standing::Fit);
                RAMP_STEPS
            }
        };
        assert_eq!(
            (0..12).map(tenths).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10]
        );
    }

    proptest! {
        #[test]
        fn never_longer_than_five_minutes_nor_shorter_than_27_s(times in 0u32..40, random: u64) {
            let ejection = Ejection::default();
            let mut now = NOW;
            for _ in 0..=times {
                let Some(Move::Ejected { until_us, .. }) = ejection.eject(now, random) else { panic!("it is out") };
                prop_assert!((27 * SECOND..=300 * SECOND).contains(&(until_us - now)));
                now = until_us;
            }
        }

        #[test]
        fn what_is_saved_is_restored(outcomes in prop::collection::vec(0usize..7, 0..20), eject: bool) {
            let (ejection, copy) = (Ejection::default(), Ejection::default());
            for outcome in outcomes {
                ejection.note(Outcome::ALL[outcome], NOW);
            }
            if eject {
                ejection.eject(NOW, MIDDLE);
            }
            copy.restore(ejection.words());
            prop_assert_eq!(copy.words(), ejection.words());
            prop_assert_eq!(copy.standing(NOW), ejection.standing(NOW));
        }
    }
}
