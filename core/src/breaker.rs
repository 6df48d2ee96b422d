//! The circuit breaker of one version.
//!
//! ```text
//!            threshold met                    open time over, next decision
//!   closed ----------------> open ------------------------------------------> half-open
//!     ^                        ^   any probe fails                                |
//!     |                        +--------------------------------------------------+
//!     +----------------------------------------- enough probes succeeded ---------+
//! ```
//!
//! The whole state is one atomic word: state, growth of the open time, generation, and the time until which it is open. Every
//! transition is one compare-and-swap on it and raises the generation; whoever wins reports the transition. Permission to probe is a
//! *lease*: a slot holding generation and deadline, taken by compare-and-swap, so that no number of sessions ever exceeds the probes, and
//! freed by its deadline when nobody reports. A slot whose probe succeeded stays taken (*done*) until the breaker moves on, so that
//! probes under way and successes together never exceed the number asked for.
//!
//! Nothing here reads a clock or draws a random number: time comes in microseconds since the Unix epoch, randomness as a word.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

pub use settings::{Mode, Settings, SharedSettings};
use word::{DONE, Slot, Word, word_ms};

use crate::outcome::Verdict;
use crate::window::{Tally, Window};

/// Most probes at once that can be asked for.
pub const MAX_PROBES: usize = 100;
/// The open time is doubled at most this often without a recovery: x 8.
const MAX_GROWTH: u64 = 3;

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Calls pass, outcomes are judged.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls probe.
    HalfOpen,
}

impl State {
    /// The name used in SQL and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Why a breaker moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// Enough failures within the window.
    FailureThreshold = 1,
    /// Error rate reached.
    ErrorRate,
    /// Share of slow calls reached.
    SlowCalls,
    /// The open time is over.
    OpenTimeOver,
    /// A probe failed.
    ProbeFailed,
    /// A probe succeeded too slowly.
    ProbeSlow,
    /// Enough probes succeeded.
    Recovered,
    /// An operator reset it.
    Reset,
    /// An operator took the decision over.
    Forced,
    /// The primary's breaker moved; on a standby only.
    Primary,
}

impl Reason {
    const ALL: [Self; 10] = [
        Self::FailureThreshold,
        Self::ErrorRate,
        Self::SlowCalls,
        Self::OpenTimeOver,
        Self::ProbeFailed,
        Self::ProbeSlow,
        Self::Recovered,
        Self::Reset,
        Self::Forced,
        Self::Primary,
    ];

    /// The name used in SQL and in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FailureThreshold => "failure_threshold",
            Self::ErrorRate => "error_rate",
            Self::SlowCalls => "slow_calls",
            Self::OpenTimeOver => "open_time_over",
            Self::ProbeFailed => "probe_failed",
            Self::ProbeSlow => "probe_slow",
            Self::Recovered => "recovered",
            Self::Reset => "reset",
            Self::Forced => "forced",
            Self::Primary => "primary",
        }
    }

    /// The reason with this discriminant.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == code)
    }
}

/// One move of a breaker, told to whoever caused it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transition {
    /// Where it stood.
    pub from: State,
    /// Where it stands.
    pub to: State,
    /// Why.
    pub reason: Reason,
    /// What the window held when it was judged.
    pub tally: Tally,
}

/// A probe permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Which slot.
    pub slot: u8,
    /// What the slot holds while the lease is live.
    pub word: u64,
}

/// Whether a call may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Pass,
    /// It may, as a probe.
    Probe(Lease),
    /// It may not; in this many microseconds it is worth asking again (`None`: not before an operator acts).
    Refused(Option<u64>),
}

/// Admission, the generation it was given in, and the transition it caused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Admitted {
    /// Whether the call may go.
    pub admission: Admission,
    /// The generation to report with.
    pub generation: u32,
    /// open -> half-open, caused by this decision.
    pub transition: Option<Transition>,
}

/// The breaker no longer stands where it was seen.
struct Moved;

/// One breaker. All zero bytes are a closed one that has seen nothing.
#[derive(Debug)]
#[repr(C)]
pub struct Breaker {
    word: AtomicU64,
    /// Last opening, microseconds since the Unix epoch; 0 = never.
    opened_us: AtomicU64,
    /// Generation (high half) and successes of its probes (low half).
    recovery: AtomicU64,
    /// The number of the last reset that has been applied.
    resets: AtomicU64,
    /// The last failure or slow success in the window, microseconds since the Unix epoch.
    bad_us: AtomicU64,
    /// The last judgement by enough outcomes, see [`Settings::judgement`].
    judged: AtomicU64,
    leases: [AtomicU64; MAX_PROBES],
    window: Window,
    /// See [`followed`].
    followed: followed::Followed,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            word: AtomicU64::new(0),
            opened_us: AtomicU64::new(0),
            recovery: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            bad_us: AtomicU64::new(0),
            judged: AtomicU64::new(0),
            leases: [const { AtomicU64::new(0) }; MAX_PROBES],
            window: Window::default(),
            followed: followed::Followed::default(),
        }
    }
}

/// What a report brings to a breaker.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// What the outcome means.
    pub verdict: Verdict,
    /// Whether it was a slow success.
    pub slow: bool,
    /// The generation the call was admitted in; `None` for a report without a ticket.
    pub generation: Option<u32>,
    /// The lease of a probe.
    pub lease: Option<Lease>,
}

/// What an observer sees of a breaker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Where it stands, the mode taken into account.
    pub state: State,
    /// Last opening in microseconds since the Unix epoch, while it is not closed.
    pub opened_us: Option<u64>,
    /// Probes under way.
    pub live_leases: u32,
    /// Probes that have succeeded in this half-open phase.
    pub probe_successes: u32,
    /// Microseconds until it is worth asking again; `None` while calls pass or an operator holds it open.
    pub retry_after_us: Option<u64>,
    /// What the window holds.
    pub tally: Tally,
    /// The generation.
    pub generation: u32,
}

impl Breaker {
    /// Whether a call may go now, taking a lease if it is a probe that ends at `lease_until_us`.
    ///
    /// An open breaker whose time is over becomes half-open here.
    #[inline]
    pub fn admit(&self, settings: &Settings, now_us: u64, lease_until_us: u64) -> Admitted {
        let word = Word::unpack(self.word.load(Acquire));
        // Nearly always.
        if word.state == State::Closed && settings.mode != Mode::ForcedOpen {
            return Admitted {
                admission: Admission::Pass,
                generation: word.generation,
                transition: None,
            };
        }
        self.admit_carefully(settings, now_us, lease_until_us)
    }

    #[cold]
    fn admit_carefully(&self, settings: &Settings, now_us: u64, lease_until_us: u64) -> Admitted {
        let mut transition = None;
        loop {
            let raw = self.word.load(Acquire);
            let word = Word::unpack(raw);
            let answer = |admission| Admitted {
                admission,
                generation: word.generation,
                transition,
            };
            match settings.mode {
                Mode::Auto => {}
                Mode::ForcedOpen => return answer(Admission::Refused(None)),
                Mode::ForcedClosed | Mode::MetricsOnly => return answer(Admission::Pass),
            }
            match word.state {
                State::Closed => return answer(Admission::Pass),
                State::Open => {
                    let now_ms = word_ms(now_us);
                    if now_ms < word.at_ms {
                        return answer(Admission::Refused(Some((word.at_ms - now_ms) * 1000)));
                    }
                    let next = word.next(State::HalfOpen, word.growth, now_ms);
                    if self.word.compare_exchange(raw, next.pack(), AcqRel, Relaxed).is_ok() {
                        let tally = Tally::default();
                        transition = Some(Transition {
                            from: State::Open,
                            to: State::HalfOpen,
                            reason: Reason::OpenTimeOver,
                            tally,
                        });
                    }
                }
                // Fewer probes may be asked for than when the last of them succeeded.
                State::HalfOpen if self.recoveries(word.generation) as usize >= settings.probes() => {
                    let tally = Tally {
                        successes: settings.probes() as u64,
                        ..Tally::default()
                    };
                    transition = self.close(raw, now_us, Reason::Recovered, tally).or(transition);
                }
                State::HalfOpen => {
                    let admission =
                        self.take_lease(settings, word.generation, word_ms(now_us), word_ms(lease_until_us));
                    // A lease taken for a generation that has just ended is void; look again.
                    if self.word.load(Acquire) == raw {
                        return answer(admission);
                    }
                    if let Admission::Probe(lease) = admission {
                        self.free(lease);
                    }
                }
            }
        }
    }

    /// The answer [`Breaker::admit`] would give, without taking a lease or moving.
    pub fn peek(&self, settings: &Settings, now_us: u64) -> Admission {
        let word = Word::unpack(self.word.load(Acquire));
        let now_ms = word_ms(now_us);
        let probe = Admission::Probe(Lease { slot: 0, word: 0 });
        match (settings.mode, word.state) {
            (Mode::ForcedOpen, _) => Admission::Refused(None),
            (Mode::ForcedClosed | Mode::MetricsOnly, _) | (Mode::Auto, State::Closed) => Admission::Pass,
            (Mode::Auto, State::Open) if now_ms < word.at_ms => Admission::Refused(Some((word.at_ms - now_ms) * 1000)),
            (Mode::Auto, State::Open) => probe,
            (Mode::Auto, State::HalfOpen) => {
                if self.free_probes(settings, now_us) > 0 {
                    probe
                } else {
                    Admission::Refused(Some(self.earliest_end(word.generation, now_ms)))
                }
            }
        }
    }

    /// How many more probes would be let through now, where [`Breaker::peek`] says that calls probe.
    pub fn free_probes(&self, settings: &Settings, now_us: u64) -> usize {
        let word = Word::unpack(self.word.load(Acquire));
        let now_ms = word_ms(now_us);
        let is_free = |slot: &&AtomicU64| Slot(slot.load(Relaxed)).is_free(word.generation, now_ms);
        match word.state {
            State::HalfOpen => {
                let room = self.room(settings, word.generation, now_ms);
                self.leases[..room].iter().filter(is_free).count()
            }
            State::Open | State::Closed => settings.probes(),
        }
    }

    fn take_lease(&self, settings: &Settings, generation: u32, now_ms: u64, until_ms: u64) -> Admission {
        let taken = Slot::live(generation, until_ms.max(now_ms + 1));
        for (index, slot) in self.leases[..self.room(settings, generation, now_ms)]
            .iter()
            .enumerate()
        {
            let seen = slot.load(Relaxed);
            if Slot(seen).is_free(generation, now_ms) && slot.compare_exchange(seen, taken, AcqRel, Relaxed).is_ok() {
                return Admission::Probe(Lease {
                    slot: index as u8,
                    word: taken,
                });
            }
        }
        Admission::Refused(Some(self.earliest_end(generation, now_ms)))
    }

    /// How many slots may be taken: fewer, where more probes were asked for before and some of those are still under way.
    fn room(&self, settings: &Settings, generation: u32, now_ms: u64) -> usize {
        let is_taken = |slot: &&AtomicU64| !Slot(slot.load(Relaxed)).is_free(generation, now_ms);
        let beyond = self.leases[settings.probes()..].iter().filter(is_taken).count();
        settings.probes().saturating_sub(beyond)
    }

    /// Microseconds until the first live lease ends; a moment where all are done and the breaker is about to move.
    fn earliest_end(&self, generation: u32, now_ms: u64) -> u64 {
        let ends = self
            .leases
            .iter()
            .map(|slot| Slot(slot.load(Relaxed)))
            .filter(|slot| slot.is_of(generation) && !slot.is_done() && slot.deadline_ms() >= now_ms)
            .map(|slot| (slot.deadline_ms() + 1).saturating_sub(now_ms) * 1000);
        ends.min().unwrap_or(1000)
    }

    /// Gives a lease back unused.
    fn free(&self, lease: Lease) {
        if let Some(slot) = self.leases.get(usize::from(lease.slot)) {
            let _ = slot.compare_exchange(lease.word, 0, AcqRel, Relaxed);
        }
    }

    /// Frees a lease nobody will report: its call was given up.
    pub fn abandon(&self, lease: Lease) {
        self.free(lease);
    }

    /// Takes the outcome of a call in. `random` draws the jitter of an open time.
    pub fn report(&self, settings: &Settings, report: Report, now_us: u64, random: u64) -> Option<Transition> {
        let raw = self.word.load(Acquire);
        let word = Word::unpack(raw);
        if settings.mode != Mode::Auto {
            // Both sides keep counting, and nothing moves.
            if let Some(lease) = report.lease {
                self.free(lease);
            }
            self.count(settings, report, now_us);
            return None;
        }
        if let Some(lease) = report.lease {
            return self.report_probe(settings, report, lease, now_us, random);
        }
        if report
            .generation
            .is_some_and(|generation| generation != word.generation)
        {
            return None;
        }
        match word.state {
            State::Closed => {
                self.count(settings, report, now_us);
                if !self.may_tip(settings, report, now_us) {
                    return None;
                }
                let tally = self.window.tally(settings.window_us, now_us);
                let Some(reason) = settings.judge(&tally) else {
                    if tally.requests() >= u64::from(settings.minimum_requests) {
                        self.judged.store(settings.judgement(now_us), Relaxed);
                    }
                    return None;
                };
                self.open(settings, raw, now_us, random, reason, tally)
            }
            // Without a ticket it can only speak for a probe that is under way: the one that ends first.
            State::HalfOpen if report.generation.is_none() => {
                let lease = self.oldest_lease(word.generation, word_ms(now_us))?;
                self.report_probe(settings, report, lease, now_us, random)
            }
            State::Open | State::HalfOpen => None,
        }
    }

    /// Whether an outcome can bring the window to a threshold. A good one can where there is something bad in it: it may be the one that
    /// makes enough outcomes to judge, or older good ones have left the window with the last bucket. Once there are enough, one judgement a
    /// bucket will do.
    fn may_tip(&self, settings: &Settings, report: Report, now_us: u64) -> bool {
        match report.verdict {
            Verdict::Neutral => false,
            Verdict::Success if !report.slow => {
                self.bad_us.load(Relaxed) + settings.window_us > now_us
                    && self.judged.load(Relaxed) != settings.judgement(now_us)
            }
            Verdict::Success | Verdict::Failure => true,
        }
    }

    fn count(&self, settings: &Settings, report: Report, now_us: u64) {
        let failed = match report.verdict {
            Verdict::Neutral => return,
            Verdict::Success => false,
            Verdict::Failure => true,
        };
        if failed || report.slow {
            self.bad_us.store(now_us, Relaxed);
            self.judged.store(0, Relaxed);
        }
        self.window
            .record(settings.window_us, now_us, failed, !failed && report.slow);
    }

    fn oldest_lease(&self, generation: u32, now_ms: u64) -> Option<Lease> {
        self.leases
            .iter()
            .enumerate()
            .map(|(index, slot)| Lease {
                slot: index as u8,
                word: slot.load(Relaxed),
            })
            .filter(|lease| {
                let slot = Slot(lease.word);
                slot.is_of(generation) && !slot.is_done() && slot.deadline_ms() >= now_ms
            })
            .min_by_key(|lease| Slot(lease.word).deadline_ms())
    }

    fn report_probe(
        &self,
        settings: &Settings,
        report: Report,
        lease: Lease,
        now_us: u64,
        random: u64,
    ) -> Option<Transition> {
        let raw = self.word.load(Acquire);
        let word = Word::unpack(raw);
        let slot = self.leases.get(usize::from(lease.slot))?;
        let held = Slot(lease.word);
        if word.state != State::HalfOpen || !held.is_of(word.generation) || held.deadline_ms() < word_ms(now_us) {
            self.free(lease);
            return None;
        }
        if report.verdict == Verdict::Success && !report.slow {
            // Whoever turns the lease into a done one counts the success, once.
            slot.compare_exchange(lease.word, lease.word | DONE, AcqRel, Relaxed)
                .ok()?;
            if (self.count_recovery(word.generation) as usize) < settings.probes() {
                return None;
            }
            let tally = Tally {
                successes: settings.probes() as u64,
                ..Tally::default()
            };
            return self.close(raw, now_us, Reason::Recovered, tally);
        }
        slot.compare_exchange(lease.word, 0, AcqRel, Relaxed).ok()?;
        if report.verdict == Verdict::Neutral {
            return None;
        }
        let (reason, tally) = if report.slow {
            (
                Reason::ProbeSlow,
                Tally {
                    successes: 1,
                    slow: 1,
                    ..Tally::default()
                },
            )
        } else {
            (
                Reason::ProbeFailed,
                Tally {
                    failures: 1,
                    ..Tally::default()
                },
            )
        };
        self.open(settings, raw, now_us, random, reason, tally)
    }

    /// The successful probes of this generation.
    fn recoveries(&self, generation: u32) -> u32 {
        let seen = self.recovery.load(Acquire);
        if (seen >> 32) as u32 == generation {
            seen as u32
        } else {
            0
        }
    }

    /// Counts a successful probe of this generation and returns how many there are now.
    fn count_recovery(&self, generation: u32) -> u32 {
        let mut seen = self.recovery.load(Relaxed);
        loop {
            let count = if (seen >> 32) as u32 == generation {
                seen as u32 + 1
            } else {
                1
            };
            let next = u64::from(generation) << 32 | u64::from(count);
            match self.recovery.compare_exchange_weak(seen, next, AcqRel, Relaxed) {
                Ok(_) => return count,
                Err(now) => seen = now,
            }
        }
    }

    fn open(
        &self,
        settings: &Settings,
        raw: u64,
        now_us: u64,
        random: u64,
        reason: Reason,
        tally: Tally,
    ) -> Option<Transition> {
        let word = Word::unpack(raw);
        let growth = if word.state == State::HalfOpen {
            (word.growth + 1).min(MAX_GROWTH)
        } else {
            0
        };
        let open_us = jitter(settings.open_us << growth, random);
        let next = word.next(State::Open, growth, word_ms(now_us + open_us).max(word_ms(now_us) + 1));
        self.word.compare_exchange(raw, next.pack(), AcqRel, Relaxed).ok()?;
        self.opened_us.store(now_us, Relaxed);
        Some(Transition {
            from: word.state,
            to: State::Open,
            reason,
            tally,
        })
    }

    fn close(&self, raw: u64, now_us: u64, reason: Reason, tally: Tally) -> Option<Transition> {
        let word = Word::unpack(raw);
        let next = word.next(State::Closed, 0, word_ms(now_us));
        // Cleared first: an outcome of the new generation must not be lost. Late ones of the old are dropped by their generation.
        self.window.clear();
        self.word.compare_exchange(raw, next.pack(), AcqRel, Relaxed).ok()?;
        Some(Transition {
            from: word.state,
            to: State::Closed,
            reason,
            tally,
        })
    }

    /// Applies reset number `number` once, for all sessions: closed, window, leases and growth cleared.
    ///
    /// Returns whether this call applied it, and the transition if it was not closed.
    pub fn reset(&self, number: u64, now_us: u64) -> (bool, Option<Transition>) {
        loop {
            let raw = self.word.load(Acquire);
            let applied = self.resets.load(Acquire);
            if number <= applied {
                return (false, None);
            }
            // Closed first, the number moved afterwards: nobody may find it applied and be refused.
            let Ok(transition) = self.close_from(raw, now_us, Reason::Reset) else {
                continue;
            };
            let first = self.resets.compare_exchange(applied, number, AcqRel, Relaxed).is_ok();
            return (first, transition);
        }
    }

    /// Closes whatever the state, with a new generation, so that no call under way moves it.
    pub fn force_closed(&self, now_us: u64, reason: Reason) -> Option<Transition> {
        loop {
            if let Ok(transition) = self.close_from(self.word.load(Acquire), now_us, reason) {
                return transition;
            }
        }
    }

    /// Closes it if it still stands where it was seen. The transition is `None` if it was closed already.
    fn close_from(&self, raw: u64, now_us: u64, reason: Reason) -> Result<Option<Transition>, Moved> {
        let word = Word::unpack(raw);
        self.window.clear();
        let next = word.next(State::Closed, 0, word_ms(now_us));
        self.word
            .compare_exchange(raw, next.pack(), AcqRel, Relaxed)
            .map_err(|_| Moved)?;
        let tally = Tally::default();
        Ok((word.state != State::Closed).then_some(Transition {
            from: word.state,
            to: State::Closed,
            reason,
            tally,
        }))
    }

    /// The number of the last reset applied.
    pub fn resets_applied(&self) -> u64 {
        self.resets.load(Acquire)
    }

    /// Where it stands, the mode not taken into account.
    pub fn state(&self) -> State {
        Word::unpack(self.word.load(Acquire)).state
    }

    /// The generation calls are admitted in now.
    pub fn generation(&self) -> u32 {
        Word::unpack(self.word.load(Acquire)).generation
    }

    /// What an observer sees.
    pub fn view(&self, settings: &Settings, now_us: u64) -> View {
        let word = Word::unpack(self.word.load(Acquire));
        let now_ms = word_ms(now_us);
        let state = match settings.mode {
            Mode::Auto => word.state,
            Mode::ForcedOpen => State::Open,
            Mode::ForcedClosed | Mode::MetricsOnly => State::Closed,
        };
        let live = |slot: &&AtomicU64| {
            let slot = Slot(slot.load(Relaxed));
            slot.is_of(word.generation) && !slot.is_done() && slot.deadline_ms() >= now_ms
        };
        let half_open = word.state == State::HalfOpen;
        View {
            state,
            opened_us: (state != State::Closed)
                .then(|| self.opened_us.load(Relaxed))
                .filter(|at| *at > 0),
            live_leases: if half_open {
                self.leases.iter().filter(live).count() as u32
            } else {
                0
            },
            probe_successes: if half_open { self.recoveries(word.generation) } else { 0 },
            retry_after_us: match self.peek(settings, now_us) {
                Admission::Refused(after) => after,
                Admission::Pass | Admission::Probe(_) => None,
            },
            tally: self.window.tally(settings.window_us, now_us),
            generation: word.generation,
        }
    }

    /// The words that survive a restart: state, last opening, resets, and the window. Leases do not: their calls are gone.
    pub fn words(&self) -> impl Iterator<Item = u64> {
        let word = self.word.load(Acquire);
        [
            word,
            self.opened_us.load(Relaxed),
            self.resets.load(Relaxed),
            self.bad_us.load(Relaxed),
        ]
        .into_iter()
        .chain(self.window.words())
    }

    /// Takes over that elsewhere it is open until then. Only while nobody else uses it.
    pub fn restore_open(&self, until_us: u64, now_us: u64) {
        let next = Word::unpack(self.word.load(Acquire)).next(State::Open, 0, word_ms(until_us));
        self.opened_us.store(now_us, Relaxed);
        self.word.store(next.pack(), Release);
    }

    /// How many words [`Breaker::words`] gives.
    pub const WORDS: usize = 4 + Window::WORDS;

    /// Puts back what [`Breaker::words`] gave. Only while nobody else uses it.
    pub fn restore(&self, mut words: impl Iterator<Item = u64>) {
        let mut next = || words.next().unwrap_or(0);
        let word = next();
        self.opened_us.store(next(), Relaxed);
        self.resets.store(next(), Relaxed);
        self.bad_us.store(next(), Relaxed);
        self.window.restore(words);
        self.word.store(word, Release);
    }
}

/// `us` +- 10 %, drawn by `random`.
pub(crate) fn jitter(us: u64, random: u64) -> u64 {
    let tenth = us / 10;
    let span = 2 * tenth + 1;
    us - tenth + ((u128::from(random) * u128::from(span)) >> 64) as u64
}

mod followed;
mod settings;
#[cfg(test)]
mod tests;
mod word;
