//! The breaker against the words of its specification. Random lives under simulated time, with every setting, mode and way of
//! reporting, against a reference that knows nothing of words, slots and buckets; then, one by one, what such lives seldom meet.
//!
//! A failing life is run again by `SEED=... cargo test -p ext_registry_core --test breaker_model`.

mod random;

use std::collections::BTreeMap;

use ext_registry_core::breaker::{
    Admission, Admitted, Breaker, Lease, Mode, Reason, Report, Settings, State, Transition,
};
use ext_registry_core::decide::Reason as Why;
use ext_registry_core::engine::{Engine, EngineDecision};
use ext_registry_core::fixture::ExtensionDocument;
use ext_registry_core::outcome::{Outcome, Verdict};
use ext_registry_core::window::Tally;
use random::Random;
use serde_json::{Map, Value as Json, json};

const MS: u64 = 1000;
const SECOND: u64 = 1_000_000;
const START: u64 = 1_800_000_000 * SECOND;
/// Draws the middle: no jitter.
const MIDDLE: u64 = 1 << 63;

/// What a report says of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Fast,
    Slow,
    Failed,
    Nothing,
}

impl Said {
    const ALL: [Self; 4] = [Self::Fast, Self::Slow, Self::Failed, Self::Nothing];

    fn report(self, generation: Option<u32>, lease: Option<Lease>) -> Report {
        Report {
            verdict: match self {
                Self::Fast | Self::Slow => Verdict::Success,
                Self::Failed => Verdict::Failure,
                Self::Nothing => Verdict::Neutral,
            },
            slow: self == Self::Slow,
            generation,
            lease,
        }
    }
}

/// A call that may be reported.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: u64,
    admitted: Admitted,
}

impl Call {
    fn lease(&self) -> Option<Lease> {
        match self.admitted.admission {
            Admission::Probe(lease) => Some(lease),
            _ => None,
        }
    }
}

/// The reference: a list of outcomes, a list of probes.
#[derive(Debug)]
struct Reference {
    settings: Settings,
    state: State,
    generation: u32,
    /// Openings since it was last closed, beyond the first.
    growth: u32,
    until: u64,
    outcomes: Vec<(u64, Said)>,
    /// Probes under way: the number of the call and when its lease ends.
    probes: BTreeMap<u64, u64>,
    successes: u32,
    resets: u64,
}

impl Reference {
    fn moves(&mut self, to: State) {
        self.state = to;
        self.generation += 1;
        self.probes.clear();
        self.successes = 0;
        if to == State::Closed {
            self.growth = 0;
            self.outcomes.clear();
        }
    }

    fn opens(&mut self) {
        self.growth = if self.state == State::HalfOpen {
            (self.growth + 1).min(3)
        } else {
            0
        };
        self.moves(State::Open);
    }

    /// Outcomes that must count and those that may: between 11 and 12 twelfths of the window both is right.
    fn bounds(&self, now: u64) -> (Tally, Tally) {
        let tally = |age: u64| {
            let mut tally = Tally::default();
            for (at, said) in &self.outcomes {
                if now - at <= age {
                    match said {
                        Said::Fast => tally.successes += 1,
                        Said::Slow => (tally.successes, tally.slow) = (tally.successes + 1, tally.slow + 1),
                        Said::Failed => tally.failures += 1,
                        Said::Nothing => {}
                    }
                }
            }
            tally
        };
        (tally(self.settings.window_us / 12 * 11), tally(self.settings.window_us))
    }

    /// Which threshold these outcomes meet.
    fn judge(&self, tally: &Tally) -> Option<Reason> {
        let all = (tally.successes + tally.failures) as f64;
        let (errors, slow) = (tally.failures as f64 / all, tally.slow as f64 / all);
        let settings = &self.settings;
        let enough = all >= f64::from(settings.minimum_requests);
        let counted = settings
            .failure_threshold
            .is_some_and(|limit| tally.failures >= u64::from(limit));
        if counted && settings.failure_min_rate.is_none_or(|least| errors >= least) {
            Some(Reason::FailureThreshold)
        } else if enough && tally.failures > 0 && settings.error_rate_threshold.is_some_and(|limit| errors >= limit) {
            Some(Reason::ErrorRate)
        } else if enough && tally.slow > 0 && settings.slow_rate_threshold.is_some_and(|limit| slow >= limit) {
            Some(Reason::SlowCalls)
        } else {
            None
        }
    }

    fn counts(&mut self, now: u64, said: Said) {
        if said != Said::Nothing {
            self.outcomes.push((now, said));
        }
    }

    /// A report of a probe whose lease is live.
    fn probed(&mut self, number: u64, said: Said) -> Option<Reason> {
        self.probes.remove(&number);
        match said {
            Said::Nothing => None,
            Said::Fast => {
                self.successes += 1;
                (self.successes >= self.settings.half_open_max).then(|| {
                    self.moves(State::Closed);
                    Reason::Recovered
                })
            }
            Said::Slow | Said::Failed => {
                self.opens();
                Some(if said == Said::Slow {
                    Reason::ProbeSlow
                } else {
                    Reason::ProbeFailed
                })
            }
        }
    }
}

/// One breaker and its reference, and what has been done to them.
struct Life {
    breaker: Breaker,
    model: Reference,
    now: u64,
    calls: Vec<Call>,
    last: u64,
    done: Vec<String>,
    met: BTreeMap<&'static str, usize>,
}

impl Life {
    fn new(random: &mut Random) -> Self {
        let rate = |random: &mut Random| [None, Some(0.01), Some(0.2), Some(0.5), Some(1.0)][random.below(5) as usize];
        let settings = Settings {
            failure_threshold: random.chance(3, 4).then(|| random.within(1, 8) as u32),
            failure_min_rate: rate(random),
            error_rate_threshold: rate(random),
            minimum_requests: random.within(1, 10) as u32,
            window_us: random.within(1, 60) * SECOND,
            open_us: random.within(1, 60) * SECOND,
            slow_call_us: Some(1000),
            slow_rate_threshold: rate(random),
            half_open_max: [1, 2, 3, 5, 100][random.below(5) as usize],
            mode: Mode::Auto,
        };
        let model = Reference {
            settings,
            state: State::Closed,
            generation: 0,
            growth: 0,
            until: 0,
            outcomes: Vec::new(),
            probes: BTreeMap::new(),
            successes: 0,
            resets: 0,
        };
        Self {
            breaker: Breaker::default(),
            model,
            // All times are whole milliseconds, as the breaker keeps them.
            now: START + random.below(100_000) * MS,
            calls: Vec::new(),
            last: 0,
            done: Vec::new(),
            met: BTreeMap::new(),
        }
    }

    fn meets(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    fn told(&self) -> String {
        let tail = &self.done[self.done.len().saturating_sub(12)..];
        format!("{:#?}\nlast of {} steps: {tail:#?}", self.model, self.done.len())
    }

    fn decide(&mut self, lease_us: u64) {
        let model = &mut self.model;
        let until = self.now + lease_us;
        let admitted = self.breaker.admit(&model.settings, self.now, until);
        self.last += 1;
        let call = Call {
            number: self.last,
            admitted,
        };
        match model.settings.mode {
            Mode::ForcedOpen => {
                assert_eq!(admitted.admission, Admission::Refused(None), "{}", self.told());
                return;
            }
            Mode::ForcedClosed | Mode::MetricsOnly => {
                assert_eq!(admitted.admission, Admission::Pass, "{}", self.told());
                self.calls.push(call);
                return;
            }
            Mode::Auto => {}
        }
        let half_opens = model.state == State::Open && self.now >= model.until;
        if half_opens {
            model.moves(State::HalfOpen);
        }
        model.probes.retain(|_, end| *end >= self.now);
        let wanted = match model.state {
            State::Closed => Some(false),
            State::HalfOpen if (model.probes.len() as u32) + model.successes < model.settings.half_open_max => {
                Some(true)
            }
            State::Open | State::HalfOpen => None,
        };
        let moved = admitted.transition.map(|moved| (moved.from, moved.to, moved.reason));
        assert_eq!(
            moved,
            half_opens.then_some((State::Open, State::HalfOpen, Reason::OpenTimeOver)),
            "{}",
            self.told()
        );
        match (wanted, admitted.admission) {
            (Some(false), Admission::Pass) => self.calls.push(call),
            (Some(true), Admission::Probe(_)) => {
                self.model.probes.insert(call.number, until);
                self.calls.push(call);
                self.meets("probe");
            }
            (None, Admission::Refused(Some(after))) => {
                assert!(after >= 1, "{}", self.told());
                let ends = self.model.probes.values().min().copied();
                match (self.model.state, ends) {
                    (State::Open, _) => assert_eq!(self.now + after, self.model.until, "{}", self.told()),
                    // Worth asking again when the first lease has ended, not before.
                    (_, Some(end)) => assert!(
                        (end..=end + MS).contains(&(self.now + after)),
                        "{after} {}",
                        self.told()
                    ),
                    (_, None) => panic!("nobody probes, and it refuses: {}", self.told()),
                }
                self.meets("refusal");
            }
            (wanted, got) => panic!("{got:?}, a probe or not should be {wanted:?}: {}", self.told()),
        }
    }

    fn report(&mut self, call: Option<Call>, said: Said, random: u64) {
        let report = said.report(
            call.map(|call| call.admitted.generation),
            call.and_then(|call| call.lease()),
        );
        let moved = self.breaker.report(&self.model.settings, report, self.now, random);
        let tally = self.breaker.view(&self.model.settings, self.now).tally;
        let now = self.now;
        let model = &mut self.model;
        let mut expected = None;
        if model.settings.mode != Mode::Auto {
            model.counts(now, said);
            self.meets("counted by force");
        } else if let Some(call) = call.filter(|call| call.lease().is_some()) {
            // Late, or of a half-open time that is over: nothing.
            if model.probes.get(&call.number).is_some_and(|end| *end >= now) {
                expected = model.probed(call.number, said);
            } else {
                model.probes.remove(&call.number);
                self.meets("late probe");
            }
        } else if call.is_some_and(|call| call.admitted.generation != model.generation) {
            self.meets("late report");
        } else if model.state == State::Closed {
            model.counts(now, said);
            if said != Said::Nothing {
                expected = model.judge(&tally);
                if expected.is_some() {
                    assert_eq!(moved.map(|moved| moved.tally), Some(tally), "{}", self.told());
                    self.model.opens();
                }
            }
        } else if call.is_none() && model.state == State::HalfOpen {
            // Without a ticket it speaks for the probe whose lease ends first.
            let first = model
                .probes
                .iter()
                .filter(|probe| *probe.1 >= now)
                .min_by_key(|probe| probe.1);
            if let Some(number) = first.map(|probe| *probe.0) {
                expected = model.probed(number, said);
                self.meets("unticketed probe");
            }
        }
        assert_eq!(moved.map(|moved| moved.reason), expected, "{}", self.told());
        if let Some(moved) = moved {
            self.take(moved);
        }
    }

    /// Follows a transition: how long it is open is drawn, within bounds.
    fn take(&mut self, moved: Transition) {
        assert_eq!(moved.to, self.model.state, "{}", self.told());
        self.meets(moved.reason.as_str());
        if moved.to == State::Open {
            let view = self.breaker.view(&self.model.settings, self.now);
            let after = view.retry_after_us.expect("it is open");
            let plain = self.model.settings.open_us << self.model.growth;
            assert!(
                (plain / 10 * 9 - MS..=plain / 10 * 11).contains(&after),
                "{after} us open instead of {plain} within a tenth: {}",
                self.told()
            );
            assert_eq!(view.opened_us, Some(self.now));
            self.model.until = self.now + after;
            if self.model.growth == 3 {
                self.meets("open for eight times as long");
            }
        }
    }

    fn check(&self) {
        let (breaker, model) = (&self.breaker, &self.model);
        assert_eq!(
            (breaker.state(), breaker.generation()),
            (model.state, model.generation),
            "{}",
            self.told()
        );
        let view = breaker.view(&model.settings, self.now);
        let shown = match model.settings.mode {
            Mode::Auto => model.state,
            Mode::ForcedOpen => State::Open,
            Mode::ForcedClosed | Mode::MetricsOnly => State::Closed,
        };
        assert_eq!(view.state, shown, "{}", self.told());
        let live = model.probes.values().filter(|end| **end >= self.now).count();
        assert_eq!(
            (view.live_leases as usize, view.probe_successes),
            (live, model.successes),
            "{}",
            self.told()
        );
        let (least, most) = model.bounds(self.now);
        let within = |some: u64, least: u64, most: u64| (least..=most).contains(&some);
        let tally = view.tally;
        assert!(
            within(tally.successes, least.successes, most.successes)
                && within(tally.failures, least.failures, most.failures)
                && within(tally.slow, least.slow, most.slow),
            "{tally:?} is not between {least:?} and {most:?}: {}",
            self.told()
        );
    }

    fn step(&mut self, random: &mut Random) {
        let event = random.below(100);
        let some_call = |life: &mut Self, random: &mut Random| {
            let which = random.below(life.calls.len() as u64) as usize;
            life.calls.swap_remove(which)
        };
        match event {
            0..30 => {
                let lease = random.within(1, 8000) * MS;
                self.done.push(format!("{}: decide", self.now));
                self.decide(lease);
            }
            30..60 if !self.calls.is_empty() => {
                let call = some_call(self, random);
                // Good and bad times, so that it opens and recovers.
                let good = (self.now / (200 * SECOND)).is_multiple_of(2);
                let said = if random.chance(if good { 9 } else { 4 }, 10) {
                    Said::Fast
                } else {
                    Said::ALL[random.below(4) as usize]
                };
                self.done.push(format!("{}: {said:?} of {call:?}", self.now));
                self.report(Some(call), said, random.next());
            }
            60..65 => {
                let said = Said::ALL[random.below(4) as usize];
                self.done.push(format!("{}: {said:?} without a ticket", self.now));
                self.report(None, said, random.next());
            }
            65..69 if !self.calls.is_empty() => {
                // Nobody will report it. Now and then the host finds that out and frees what it held.
                let call = some_call(self, random);
                self.done.push(format!("{}: lost {call:?}", self.now));
                if let Some(lease) = call.lease().filter(|_| random.chance(1, 2)) {
                    self.breaker.abandon(lease);
                    self.model.probes.remove(&call.number);
                    self.meets("abandoned lease");
                }
            }
            69..70 => {
                self.model.resets += random.below(2);
                let number = self.model.resets;
                self.done.push(format!("{}: reset {number}", self.now));
                let known = self.breaker.resets_applied() == number;
                let (applied, moved) = self.breaker.reset(number, self.now);
                assert_eq!(applied, !known, "once each");
                if applied {
                    assert_eq!(moved.is_some(), self.model.state != State::Closed);
                    assert!(moved.is_none_or(|moved| (moved.to, moved.reason) == (State::Closed, Reason::Reset)));
                    self.model.moves(State::Closed);
                    self.meets("reset");
                }
            }
            70..72 => {
                let modes = [Mode::ForcedOpen, Mode::ForcedClosed, Mode::MetricsOnly];
                let mode = if random.chance(1, 4) {
                    modes[random.below(3) as usize]
                } else {
                    Mode::Auto
                };
                self.done.push(format!("{}: {mode:?}", self.now));
                self.model.settings.mode = mode;
                // What the host does when it sees a mode that takes the decision over.
                if mode != Mode::Auto && self.breaker.state() != State::Closed {
                    let moved = self
                        .breaker
                        .force_closed(self.now, Reason::Forced)
                        .expect("it was not closed");
                    assert_eq!((moved.to, moved.reason), (State::Closed, Reason::Forced));
                    self.model.moves(State::Closed);
                    self.meets("forced");
                }
            }
            72..74 => self.now += random.within(1, 600) * SECOND,
            _ => self.now += random.within(1, 1500) * MS,
        }
        self.check();
    }
}

#[test]
fn random_lives_follow_the_words() {
    const LIVES: usize = 3000;
    const STEPS: usize = 600;
    let mut random = Random::new();
    let mut met: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..LIVES {
        let mut life = Life::new(&mut random);
        for _ in 0..STEPS {
            life.step(&mut random);
        }
        for (what, times) in life.met {
            *met.entry(what).or_default() += times;
        }
    }
    println!("{met:#?}");
    let all = [
        "failure_threshold",
        "error_rate",
        "slow_calls",
        "probe_failed",
        "probe_slow",
        "recovered",
        "reset",
        "forced",
        "probe",
        "refusal",
        "late probe",
        "late report",
        "unticketed probe",
        "abandoned lease",
        "counted by force",
        "open for eight times as long",
    ];
    for what in all {
        assert!(
            met.get(what).is_some_and(|times| *times > 100),
            "{what} was hardly met: {met:?}"
        );
    }
}

fn fail(breaker: &Breaker, settings: &Settings, now: u64, times: usize) -> Option<Transition> {
    (0..times)
        .filter_map(|_| breaker.report(settings, Said::Failed.report(None, None), now, MIDDLE))
        .last()
}

fn probe(breaker: &Breaker, settings: &Settings, now: u64) -> Admitted {
    let admitted = breaker.admit(settings, now, now + 5 * SECOND);
    assert!(matches!(admitted.admission, Admission::Probe(_)), "{admitted:?}");
    admitted
}

fn answer(admitted: Admitted, said: Said) -> Report {
    let call = Call { number: 0, admitted };
    said.report(Some(admitted.generation), call.lease())
}

fn open_for(breaker: &Breaker, settings: &Settings, now: u64) -> u64 {
    breaker.view(settings, now).retry_after_us.expect("it is open")
}

#[test]
fn the_open_time_grows_to_eight_times_and_falls_back_with_a_recovery_or_a_reset() {
    let settings = Settings {
        half_open_max: 1,
        ..Settings::default()
    };
    let mut random = Random::new();
    for draw in [0, u64::MAX, MIDDLE].into_iter().chain((0..500).map(|_| random.next())) {
        let breaker = Breaker::default();
        let mut now = START;
        for round in 0..3 {
            (0..5).for_each(|_| {
                breaker.report(&settings, Said::Failed.report(None, None), now, draw);
            });
            for growth in [1, 2, 4, 8, 8, 8] {
                let (after, plain) = (open_for(&breaker, &settings, now), growth * settings.open_us);
                assert!(
                    (plain / 10 * 9 - MS..=plain / 10 * 11).contains(&after),
                    "x {growth} by {draw}: {after}"
                );
                if draw == MIDDLE {
                    assert!(after.abs_diff(plain) <= MS, "x {growth}: {after}");
                }
                // Not one moment earlier, and by a decision only.
                now += after - MS;
                assert!(matches!(
                    breaker.admit(&settings, now, now).admission,
                    Admission::Refused(Some(MS))
                ));
                now += MS;
                assert_eq!(breaker.state(), State::Open, "time alone moves nothing");
                let failed = answer(probe(&breaker, &settings, now), Said::Failed);
                assert_eq!(
                    breaker.report(&settings, failed, now, draw).map(|moved| moved.reason),
                    Some(Reason::ProbeFailed)
                );
            }
            // A recovery, or a reset, and it is open for the plain time again.
            if round == 0 {
                now += open_for(&breaker, &settings, now);
                let good = answer(probe(&breaker, &settings, now), Said::Fast);
                breaker.report(&settings, good, now, draw);
            } else {
                breaker.reset(round, now);
            }
            assert_eq!(breaker.state(), State::Closed);
        }
    }
}

#[test]
fn as_many_successes_as_probes_at_once_close_it() {
    for most in [1, 2, 3, 10, 100] {
        let settings = Settings {
            half_open_max: most,
            ..Settings::default()
        };
        let breaker = Breaker::default();
        fail(&breaker, &settings, START, 5);
        let now = START + 70 * SECOND;
        let mut probes: Vec<Admitted> = (0..most).map(|_| probe(&breaker, &settings, now)).collect();
        assert!(
            matches!(
                breaker.admit(&settings, now, now).admission,
                Admission::Refused(Some(_))
            ),
            "one more of {most}"
        );
        let last = probes.pop().expect("at least one");
        for probe in probes {
            assert_eq!(breaker.report(&settings, answer(probe, Said::Fast), now, 0), None);
            assert!(
                matches!(
                    breaker.admit(&settings, now, now).admission,
                    Admission::Refused(Some(_))
                ),
                "a success frees no place"
            );
        }
        let moved = breaker
            .report(&settings, answer(last, Said::Fast), now, 0)
            .expect("the last of them");
        assert_eq!(
            (moved.to, moved.reason, moved.tally.successes),
            (State::Closed, Reason::Recovered, u64::from(most))
        );
    }
}

#[test]
fn the_least_rate_holds_the_count_back_until_it_is_reached() {
    let settings = Settings {
        error_rate_threshold: None,
        ..Settings::default()
    };
    for least in [Some(0.01), Some(0.2), None] {
        let settings = Settings {
            failure_min_rate: least,
            ..settings
        };
        let breaker = Breaker::default();
        for _ in 0..95 {
            breaker.report(&settings, Said::Fast.report(None, None), START, 0);
        }
        fail(&breaker, &settings, START, 4);
        assert_eq!(breaker.state(), State::Closed);
        // Five of a hundred: 5 %.
        fail(&breaker, &settings, START, 1);
        assert_eq!(breaker.state() == State::Open, least != Some(0.2), "{least:?}");
        if least == Some(0.2) {
            // 23 of 118 are below a fifth, 24 of 119 are not.
            fail(&breaker, &settings, START, 18);
            assert_eq!(breaker.state(), State::Closed);
            let moved = fail(&breaker, &settings, START, 1).expect("a fifth");
            assert_eq!((moved.reason, moved.tally.failures), (Reason::FailureThreshold, 24));
        }
    }
}

#[test]
fn with_all_thresholds_off_nothing_opens_it() {
    let settings = Settings {
        failure_threshold: None,
        error_rate_threshold: None,
        slow_call_us: Some(1),
        slow_rate_threshold: None,
        ..Settings::default()
    };
    let breaker = Breaker::default();
    for said in [Said::Failed, Said::Slow].repeat(500) {
        assert_eq!(breaker.report(&settings, said.report(None, None), START, 0), None);
    }
    assert_eq!(
        breaker.view(&settings, START).tally,
        Tally {
            successes: 500,
            failures: 500,
            slow: 500
        }
    );
}

#[test]
fn forced_modes_keep_counting_and_go_back_to_auto_as_closed() {
    for mode in [Mode::ForcedClosed, Mode::MetricsOnly] {
        let auto = Settings::default();
        let forced = Settings { mode, ..auto };
        let breaker = Breaker::default();
        fail(&breaker, &auto, START, 5);
        let now = START + 70 * SECOND;
        let lost = probe(&breaker, &auto, now);
        // Taken over while a probe is under way.
        assert!(breaker.force_closed(now, Reason::Forced).is_some());
        assert_eq!(breaker.admit(&forced, now, now).admission, Admission::Pass);
        assert_eq!(fail(&breaker, &forced, now, 3), None);
        assert_eq!(breaker.view(&forced, now).tally.failures, 3, "{mode:?} keeps counting");
        assert_eq!(
            breaker.report(&auto, answer(lost, Said::Failed), now, 0),
            None,
            "a probe from before"
        );
        // Back: closed, and what was counted meanwhile counts.
        assert_eq!(breaker.admit(&auto, now, now).admission, Admission::Pass, "{mode:?}");
        assert_eq!(fail(&breaker, &auto, now, 1), None);
        assert_eq!(
            fail(&breaker, &auto, now, 1).map(|moved| moved.reason),
            Some(Reason::FailureThreshold)
        );
    }
}

#[test]
fn forced_open_refuses_everybody_for_no_time_that_is_known() {
    let settings = Settings {
        mode: Mode::ForcedOpen,
        ..Settings::default()
    };
    let breaker = Breaker::default();
    for days in 0..100 {
        let now = START + days * 86_400 * SECOND;
        assert_eq!(breaker.admit(&settings, now, now).admission, Admission::Refused(None));
        assert_eq!(breaker.view(&settings, now).retry_after_us, None);
        assert_eq!(breaker.view(&settings, now).state, State::Open);
        fail(&breaker, &settings, now, 10);
    }
    assert_eq!(breaker.generation(), 0, "it has not moved");
}

/// An operator may ask for fewer probes while some are under way: those count until they end.
#[test]
fn fewer_probes_asked_for_while_some_are_under_way() {
    let (five, two) = (
        Settings {
            half_open_max: 5,
            ..Settings::default()
        },
        Settings {
            half_open_max: 2,
            ..Settings::default()
        },
    );
    let breaker = Breaker::default();
    fail(&breaker, &five, START, 5);
    let now = START + 70 * SECOND;
    let probes: Vec<Admitted> = (0..5).map(|_| probe(&breaker, &five, now)).collect();
    for given_up in &probes[..2] {
        breaker.report(&two, answer(*given_up, Said::Nothing), now, 0);
    }
    assert_eq!(breaker.view(&two, now).live_leases, 3);
    assert!(
        matches!(breaker.admit(&two, now, now + SECOND).admission, Admission::Refused(_)),
        "three of two are under way"
    );
}

/// `closed -> open when a threshold is met`: with 4 failures, the fifth outcome makes five to judge by, whatever it is.
#[test]
fn a_success_may_complete_what_is_judged() {
    let settings = Settings::default();
    let breaker = Breaker::default();
    fail(&breaker, &settings, START, 4);
    let moved = breaker.report(&settings, Said::Fast.report(None, None), START, MIDDLE);
    assert_eq!(
        moved.map(|moved| moved.reason),
        Some(Reason::ErrorRate),
        "4 of 5 failed"
    );
}

// The same through tickets: what a host makes of it.

fn engine(more: &Json) -> Engine {
    let mut document = json!({"id": "x", "type": "pre", "subject": "s", "timeout_ms": 200, "retry": 2});
    document
        .as_object_mut()
        .expect("an object")
        .extend(more.as_object().expect("an object").clone());
    let document = ExtensionDocument::parse(&document).unwrap_or_else(|error| panic!("{error}: {document}"));
    Engine::new(&[document], 1000, 1).expect("one document")
}

fn select(engine: &mut Engine, now: u64) -> EngineDecision {
    engine.select("x", &Map::new(), &[], now)
}

fn call(engine: &mut Engine, outcome: Outcome, now: u64) -> bool {
    let decision = select(engine, now);
    decision.allowed && engine.report(decision.ticket, outcome, 1000, 0, now)
}

/// Timeout x attempts + backoff + 1 s: 3 x 200 ms, 100 + 200 ms and a tenth of those, 1 s.
const LEASE: u64 = (600 + 330 + 1000) * MS;

#[test]
fn a_lease_lasts_as_long_as_its_call_may() {
    let mut e = engine(&json!({"health": {"half_open_max_requests": 1}}));
    assert_eq!(e.extension("x").expect("registered").versions[0].lease_us(), LEASE);
    assert_eq!((0..5).filter(|_| call(&mut e, Outcome::Timeout, START)).count(), 5);
    let mut now = START + 70 * SECOND;
    for _ in 0..20 {
        let probe = select(&mut e, now);
        assert_eq!(probe.reason, Why::Probe);
        assert_eq!(e.version_targets("x")[0].in_flight(), 1);
        // Live until its deadline.
        let refused = select(&mut e, now + LEASE);
        assert_eq!(
            (refused.reason, refused.retry_after_ms),
            (Why::ExtensionCircuitOpen, Some(1))
        );
        now += LEASE + 2 * MS;
        e.sweep(now);
        assert_eq!(
            e.version_targets("x")[0].in_flight(),
            0,
            "what it counted as in flight is free again"
        );
        // Late: it counts in the statistics, moves nothing, and does not take the next one's place.
        let next = select(&mut e, now);
        assert_eq!(next.reason, Why::Probe, "a lost probe wedges nothing");
        let failures = e.version_targets("x")[0].counts()[Outcome::Error as usize];
        e.report(probe.ticket, Outcome::Error, 1000, 0, now);
        assert_eq!(
            e.version_targets("x")[0].counts()[Outcome::Error as usize],
            failures + 1
        );
        assert_eq!(e.version_targets("x")[0].breaker.state(), State::HalfOpen);
        assert_eq!(select(&mut e, now).reason, Why::ExtensionCircuitOpen);
        e.report(next.ticket, Outcome::Cancelled, 0, 0, now);
    }
    // In time, to the millisecond.
    let probe = select(&mut e, now);
    assert!(e.report(probe.ticket, Outcome::Success, 1000, 0, now + LEASE));
    assert_eq!(e.version_targets("x")[0].breaker.state(), State::Closed);
}

#[test]
fn results_of_before_count_in_the_statistics_only() {
    let mut e = engine(&json!({}));
    let early: Vec<EngineDecision> = (0..20).map(|_| select(&mut e, START)).collect();
    assert_eq!((0..5).filter(|_| call(&mut e, Outcome::Error, START)).count(), 5);
    for (number, decision) in early.iter().enumerate() {
        let outcome = if number < 10 { Outcome::Success } else { Outcome::Error };
        assert!(e.report(decision.ticket, outcome, 1000, 0, START + SECOND));
    }
    let target = &e.version_targets("x")[0];
    assert_eq!(target.counts()[..2], [10, 15]);
    assert_eq!(target.breaker.state(), State::Open);
    assert_eq!(target.breaker.view(&target.settings.load(), START).tally.requests(), 5);
    let moves: Vec<&str> = e
        .take_transitions()
        .iter()
        .map(|moved| moved.transition.reason.as_str())
        .collect();
    assert_eq!(moves, ["failure_threshold"]);
}

#[test]
fn a_reset_clears_window_leases_and_growth_but_no_counts() {
    let mut e = engine(&json!({"health": {"half_open_max_requests": 2}}));
    let mut now = START;
    assert_eq!((0..5).filter(|_| call(&mut e, Outcome::Error, now)).count(), 5);
    for _ in 0..3 {
        now += 500 * SECOND;
        assert!(call(&mut e, Outcome::Error, now), "a probe that fails");
    }
    now += 500 * SECOND;
    let probe = select(&mut e, now);
    assert_eq!(probe.reason, Why::Probe);
    let target = &e.version_targets("x")[0];
    let (counts, latency) = (target.counts(), target.last_latency_us());
    assert!(target.breaker.reset(1, now).0);
    let view = target.breaker.view(&target.settings.load(), now);
    assert_eq!(
        (view.state, view.live_leases, view.tally),
        (State::Closed, 0, Tally::default())
    );
    assert_eq!((target.counts(), target.last_latency_us()), (counts, latency));
    assert_eq!(target.in_flight(), 1, "its call is still under way");
    assert!(e.report(probe.ticket, Outcome::Error, 1000, 0, now));
    assert_eq!(
        e.version_targets("x")[0]
            .breaker
            .view(&Settings::default(), now)
            .tally
            .requests(),
        0,
        "it began before"
    );
    assert_eq!(
        (0..9).filter(|_| call(&mut e, Outcome::Error, now)).count(),
        5,
        "five open it again"
    );
    let after = select(&mut e, now).retry_after_ms.expect("it is open");
    assert!(
        (54_000..=66_000).contains(&after),
        "{after} ms: the growth is forgotten"
    );
}

#[test]
fn slow_calls_and_modes_by_the_document() {
    // By the rate of slow calls, among enough; failures are not slow.
    let mut e = engine(
        &json!({"health": {"slow_call_ms": 10, "slow_call_rate_threshold": 0.6, "circuit_breaker_failure_threshold": null,
        "circuit_breaker_error_rate_threshold": null, "circuit_breaker_minimum_requests": 10}}),
    );
    let slow = |e: &mut Engine, outcome: Outcome, us: u64, now: u64| {
        let decision = select(e, now);
        assert!(decision.allowed);
        e.report(decision.ticket, outcome, us, 0, now);
        e.version_targets("x")[0].breaker.state()
    };
    for _ in 0..4 {
        assert_eq!(slow(&mut e, Outcome::Error, 50_000, START), State::Closed);
    }
    for _ in 0..5 {
        assert_eq!(slow(&mut e, Outcome::Success, 10_001, START), State::Closed);
    }
    assert_eq!(slow(&mut e, Outcome::Success, 10_001, START), State::Open, "6 of 10");
    let now = START + 70 * SECOND;
    assert_eq!(
        slow(&mut e, Outcome::Success, 10_001, now),
        State::Open,
        "a slow probe fails"
    );
    assert_eq!(
        e.take_transitions().last().expect("moved").transition.reason,
        Reason::ProbeSlow
    );
    let now = now + 140 * SECOND;
    for state in [State::HalfOpen, State::HalfOpen, State::Closed] {
        assert_eq!(
            slow(&mut e, Outcome::Success, 10_000, now),
            state,
            "as fast as the limit is not slow"
        );
    }

    for (mode, allowed) in [("forced_open", false), ("forced_closed", true), ("metrics_only", true)] {
        let mut e = engine(&json!({"health": {"breaker_mode": mode}}));
        for _ in 0..100 {
            assert_eq!(call(&mut e, Outcome::Error, START), allowed, "{mode}");
        }
        assert_eq!(e.take_transitions(), [], "{mode}");
        let counts = e.version_targets("x")[0].counts();
        assert_eq!(counts[Outcome::Error as usize], if allowed { 100 } else { 0 }, "{mode}");
        assert_eq!(select(&mut e, START).retry_after_ms, None, "{mode}");
    }
}
