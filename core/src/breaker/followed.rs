//! A breaker that follows another one: on a standby, the primary's as it was last written down.
//!
//! It is the stricter of the two. What the other one decides is taken over where this one is less strict, once for each of its moves; from
//! there on this one goes its own way, by its own probes. When the other one closes, this one closes too if it has stood where it was put.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use super::word::{Word, word_ms};
use super::{Breaker, Reason, State, Transition};
use crate::window::Tally;

/// What has been taken over.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Followed {
    /// The other's state word seen last.
    seen: AtomicU64,
    /// This one's state word after it was put there; 0 = it was not.
    put: AtomicU64,
}

impl Breaker {
    /// The state word, to be followed by another breaker.
    pub fn word(&self) -> u64 {
        self.word.load(Acquire)
    }

    /// Follows another breaker, whose state word this is.
    pub fn follow(&self, other: u64, now_us: u64) -> Option<Transition> {
        let seen = self.followed.seen.load(Acquire);
        // One session takes a move over; for the others it is done.
        if seen == other
            || self
                .followed
                .seen
                .compare_exchange(seen, other, AcqRel, Relaxed)
                .is_err()
        {
            return None;
        }
        let theirs = Word::unpack(other);
        loop {
            let raw = self.word.load(Acquire);
            let ours = Word::unpack(raw);
            let was_put = raw != 0 && self.followed.put.load(Acquire) == raw;
            let next = match (theirs.state, ours.state) {
                (State::Open, State::Open) if ours.at_ms >= theirs.at_ms => return None,
                (State::Open, _) => ours.next(State::Open, theirs.growth.max(ours.growth), theirs.at_ms),
                (State::HalfOpen, State::Closed) => ours.next(State::HalfOpen, theirs.growth, word_ms(now_us)),
                (State::HalfOpen, State::Open) if was_put => ours.next(State::HalfOpen, theirs.growth, word_ms(now_us)),
                (State::Closed, State::Open | State::HalfOpen) if was_put => {
                    ours.next(State::Closed, 0, word_ms(now_us))
                }
                _ => return None,
            };
            if next.state == State::Closed {
                self.window.clear();
            }
            if self.word.compare_exchange(raw, next.pack(), AcqRel, Relaxed).is_err() {
                continue;
            }
            let stays = next.state != State::Closed;
            self.followed.put.store(if stays { next.pack() } else { 0 }, Release);
            if next.state == State::Open {
                self.opened_us.store(now_us, Relaxed);
            }
            return Some(Transition {
                from: ours.state,
                to: next.state,
                reason: Reason::Primary,
                tally: Tally::default(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Admission, Report, Settings};
    use super::*;
    use crate::outcome::Verdict;

    const SECOND: u64 = 1_000_000;
    const NOW: u64 = 1_800_000_000 * SECOND;

    fn settings() -> Settings {
        Settings {
            half_open_max: 1,
            ..Settings::default()
        }
    }

    fn fail(breaker: &Breaker, now: u64) {
        for _ in 0..5 {
            let report = Report {
                verdict: Verdict::Failure,
                slow: false,
                generation: None,
                lease: None,
            };
            breaker.report(&settings(), report, now, 1 << 63);
        }
    }

    fn admit(breaker: &Breaker, now: u64) -> Admission {
        breaker.admit(&settings(), now, now + SECOND).admission
    }

    #[test]
    fn it_opens_and_closes_with_the_other() {
        let (primary, standby) = (Breaker::default(), Breaker::default());
        assert_eq!(standby.follow(primary.word(), NOW), None);
        fail(&primary, NOW);
        let moved = standby.follow(primary.word(), NOW).unwrap();
        assert_eq!((moved.to, moved.reason), (State::Open, Reason::Primary));
        assert_eq!(standby.follow(primary.word(), NOW), None, "once");
        assert!(matches!(admit(&standby, NOW + SECOND), Admission::Refused(Some(_))));
        primary.force_closed(NOW + SECOND, Reason::Reset);
        assert_eq!(standby.follow(primary.word(), NOW + SECOND).unwrap().to, State::Closed);
        assert_eq!(admit(&standby, NOW + SECOND), Admission::Pass);
    }

    #[test]
    fn what_it_knows_by_itself_is_not_taken_back() {
        let (primary, standby) = (Breaker::default(), Breaker::default());
        fail(&standby, NOW);
        primary.force_closed(NOW, Reason::Reset);
        assert_eq!(standby.follow(primary.word(), NOW), None);
        assert_eq!(standby.state(), State::Open);
        // The other opens later and for longer: the stricter counts.
        fail(&primary, NOW + 30 * SECOND);
        standby.follow(primary.word(), NOW + 30 * SECOND);
        assert!(matches!(
            admit(&standby, NOW + 80 * SECOND),
            Admission::Refused(Some(_))
        ));
    }

    #[test]
    fn it_probes_for_itself_when_the_time_is_over() {
        let (primary, standby) = (Breaker::default(), Breaker::default());
        fail(&primary, NOW);
        standby.follow(primary.word(), NOW);
        let later = NOW + 70 * SECOND;
        assert!(matches!(admit(&standby, later), Admission::Probe(_)));
        assert!(
            matches!(admit(&standby, later), Admission::Refused(_)),
            "one probe at once"
        );
        // Nobody calls through the primary; when it closes, the standby is no longer where it was put and needs its own probe.
        primary.force_closed(later, Reason::Recovered);
        assert_eq!(standby.follow(primary.word(), later), None);
        assert_eq!(standby.state(), State::HalfOpen);
    }

    #[test]
    fn a_half_open_primary_makes_a_standby_probe() {
        let (primary, standby) = (Breaker::default(), Breaker::default());
        fail(&primary, NOW);
        admit(&primary, NOW + 61 * SECOND);
        standby.follow(primary.word(), NOW + 61 * SECOND);
        assert!(matches!(admit(&standby, NOW + 61 * SECOND), Admission::Probe(_)));
    }
}
