//! The breaker under simulated time: its rules one by one, and random events against a plain reference.

use super::*;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000;
const START: u64 = 1_800_000_000 * SECOND;

fn report(verdict: Verdict, admitted: Admitted) -> Report {
    let lease = match admitted.admission {
        Admission::Probe(lease) => Some(lease),
        _ => None,
    };
    Report {
        verdict,
        slow: false,
        generation: Some(admitted.generation),
        lease,
    }
}

fn without_ticket(verdict: Verdict) -> Report {
    Report {
        verdict,
        slow: false,
        generation: None,
        lease: None,
    }
}

fn admit(breaker: &Breaker, settings: &Settings, now: u64) -> Admitted {
    breaker.admit(settings, now, now + 5 * SECOND)
}

fn fail(breaker: &Breaker, settings: &Settings, now: u64, times: usize) {
    for _ in 0..times {
        breaker.report(settings, without_ticket(Verdict::Failure), now, 1 << 63);
    }
}

/// Opens a breaker with default settings at `START` and returns when it will be half-open (random in the middle: no jitter).
fn opened(settings: &Settings) -> (Breaker, u64) {
    let breaker = Breaker::default();
    fail(&breaker, settings, START, 5);
    assert_eq!(breaker.state(), State::Open);
    (breaker, START + settings.open_us + 1000)
}

#[test]
fn five_failures_open_it_and_time_half_opens_it() {
    let settings = Settings::default();
    let breaker = Breaker::default();
    fail(&breaker, &settings, START, 4);
    assert_eq!(admit(&breaker, &settings, START).admission, Admission::Pass);
    let moved = breaker
        .report(&settings, without_ticket(Verdict::Failure), START, 1 << 63)
        .unwrap();
    assert_eq!(
        (moved.to, moved.reason, moved.tally.failures),
        (State::Open, Reason::FailureThreshold, 5)
    );
    let Admission::Refused(Some(after)) = admit(&breaker, &settings, START + SECOND).admission else {
        panic!("not refused")
    };
    assert!((58 * SECOND..=60 * SECOND).contains(&after), "{after}");
    let probe = admit(&breaker, &settings, START + 61 * SECOND);
    assert!(matches!(probe.admission, Admission::Probe(_)));
    assert_eq!(probe.transition.unwrap().to, State::HalfOpen);
}

#[test]
fn a_first_failure_is_not_a_hundred_per_cent() {
    let settings = Settings {
        failure_threshold: None,
        ..Settings::default()
    };
    let breaker = Breaker::default();
    fail(&breaker, &settings, START, 4);
    assert_eq!(breaker.state(), State::Closed);
    fail(&breaker, &settings, START, 1);
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn few_failures_among_many_calls_are_none() {
    let settings = Settings::default();
    let breaker = Breaker::default();
    for _ in 0..1000 {
        breaker.report(&settings, without_ticket(Verdict::Success), START, 0);
    }
    fail(&breaker, &settings, START, 9);
    assert_eq!(breaker.state(), State::Closed);
    fail(&breaker, &settings, START, 2);
    assert_eq!(breaker.state(), State::Open, "at 1 % the count opens");
    let literal = Settings {
        failure_min_rate: None,
        error_rate_threshold: None,
        ..settings
    };
    let breaker = Breaker::default();
    (0..1000).for_each(|_| {
        assert_eq!(
            breaker.report(&literal, without_ticket(Verdict::Success), START, 0),
            None
        );
    });
    fail(&breaker, &literal, START, 5);
    assert_eq!(breaker.state(), State::Open, "the literal rule of old");
}

#[test]
fn old_failures_do_not_count() {
    let settings = Settings::default();
    let breaker = Breaker::default();
    for step in 0..100 {
        fail(&breaker, &settings, START + step * 16 * SECOND, 1);
        assert_eq!(breaker.state(), State::Closed, "at most four within a minute");
    }
}

#[test]
fn three_successes_close_it_not_one() {
    let settings = Settings::default();
    let (breaker, now) = opened(&settings);
    let probes: Vec<_> = (0..3).map(|_| admit(&breaker, &settings, now)).collect();
    assert!(matches!(
        admit(&breaker, &settings, now).admission,
        Admission::Refused(Some(_))
    ));
    for (n, probe) in probes.iter().enumerate() {
        let moved = breaker.report(&settings, report(Verdict::Success, *probe), now + SECOND, 0);
        assert_eq!(moved.is_some(), n == 2);
    }
    assert_eq!(breaker.state(), State::Closed);
    fail(&breaker, &settings, now + SECOND, 4);
    assert_eq!(breaker.state(), State::Closed, "the window was cleared");
}

#[test]
fn lost_probes_never_wedge_it() {
    let settings = Settings::default();
    let (breaker, mut now) = opened(&settings);
    for round in 0..1000 {
        let probes = (0..64)
            .filter(|_| matches!(admit(&breaker, &settings, now).admission, Admission::Probe(_)))
            .count();
        assert_eq!(probes, 3, "round {round}");
        now += 6 * SECOND;
    }
}

#[test]
fn a_late_probe_changes_nothing() {
    let settings = Settings::default();
    let (breaker, now) = opened(&settings);
    let probe = admit(&breaker, &settings, now);
    assert_eq!(
        breaker.report(&settings, report(Verdict::Failure, probe), now + 6 * SECOND, 0),
        None
    );
    assert_eq!(breaker.state(), State::HalfOpen);
}

#[test]
fn a_failed_probe_reopens_for_twice_as_long() {
    let settings = Settings::default();
    let (breaker, mut now) = opened(&settings);
    for expected in [120, 240, 480, 480] {
        let probe = admit(&breaker, &settings, now);
        breaker
            .report(&settings, report(Verdict::Failure, probe), now, 1 << 63)
            .unwrap();
        let Admission::Refused(Some(after)) = admit(&breaker, &settings, now).admission else {
            panic!("not refused")
        };
        assert!(
            after.abs_diff(expected * SECOND) <= SECOND / 10,
            "{after} for {expected}"
        );
        now += after + 1000;
    }
}

#[test]
fn jitter_is_ten_per_cent() {
    assert_eq!(jitter(1000, 0), 900);
    assert_eq!(jitter(1000, u64::MAX), 1100);
    assert_eq!(jitter(1000, 1 << 63), 1000);
}

#[test]
fn results_of_calls_from_before_the_transition_do_not_count() {
    let settings = Settings::default();
    let breaker = Breaker::default();
    let early = admit(&breaker, &settings, START);
    fail(&breaker, &settings, START, 5);
    let now = START + settings.open_us + 1000;
    let probe = admit(&breaker, &settings, now);
    assert_eq!(breaker.report(&settings, report(Verdict::Failure, early), now, 0), None);
    assert_eq!(breaker.report(&settings, report(Verdict::Success, early), now, 0), None);
    assert_eq!(breaker.view(&settings, now).live_leases, 1);
    breaker.report(&settings, report(Verdict::Success, probe), now, 0);
    assert_eq!(breaker.state(), State::HalfOpen);
}

#[test]
fn neutral_outcomes_free_the_lease_and_count_nowhere() {
    let settings = Settings {
        half_open_max: 1,
        ..Settings::default()
    };
    let (breaker, now) = opened(&settings);
    for _ in 0..10 {
        let probe = admit(&breaker, &settings, now);
        assert!(matches!(probe.admission, Admission::Probe(_)));
        assert_eq!(breaker.report(&settings, report(Verdict::Neutral, probe), now, 0), None);
    }
    let breaker = Breaker::default();
    (0..100).for_each(|_| {
        assert_eq!(
            breaker.report(&settings, without_ticket(Verdict::Neutral), START, 0),
            None
        );
    });
    assert_eq!(breaker.view(&settings, START).tally, Tally::default());
}

#[test]
fn slow_successes_open_it_by_rate_and_a_slow_probe_fails() {
    let settings = Settings {
        slow_call_us: Some(100),
        slow_rate_threshold: Some(0.5),
        ..Settings::default()
    };
    let breaker = Breaker::default();
    let slow = Report {
        slow: settings.is_slow(101),
        ..without_ticket(Verdict::Success)
    };
    let moved: Vec<_> = (0..5)
        .filter_map(|_| breaker.report(&settings, slow, START, 0))
        .collect();
    assert_eq!(moved.len(), 1);
    assert_eq!(moved[0].reason, Reason::SlowCalls);
    let now = START + 70 * SECOND;
    let probe = admit(&breaker, &settings, now);
    let moved = breaker
        .report(
            &settings,
            Report {
                slow: true,
                ..report(Verdict::Success, probe)
            },
            now,
            0,
        )
        .unwrap();
    assert_eq!((moved.to, moved.reason), (State::Open, Reason::ProbeSlow));
}

#[test]
fn a_reset_is_applied_once() {
    let settings = Settings::default();
    let (breaker, _) = opened(&settings);
    let (applied, moved) = breaker.reset(1, START);
    assert!(applied && moved.unwrap().reason == Reason::Reset);
    assert_eq!(breaker.reset(1, START), (false, None));
    fail(&breaker, &settings, START, 5);
    assert_eq!(breaker.reset(1, START), (false, None));
    assert_eq!(breaker.state(), State::Open);
    assert!(breaker.reset(2, START).0);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn modes_override() {
    let settings = Settings::default();
    let (breaker, _) = opened(&settings);
    let closed = Settings {
        mode: Mode::ForcedClosed,
        ..settings
    };
    let open = Settings {
        mode: Mode::ForcedOpen,
        ..settings
    };
    assert_eq!(admit(&breaker, &closed, START).admission, Admission::Pass);
    assert_eq!(
        admit(&Breaker::default(), &open, START).admission,
        Admission::Refused(None)
    );
    let fresh = Breaker::default();
    let watching = Settings {
        mode: Mode::MetricsOnly,
        ..settings
    };
    fail(&fresh, &watching, START, 50);
    assert_eq!(fresh.state(), State::Closed);
    assert_eq!(fresh.view(&watching, START).tally.failures, 50);
}

#[test]
fn it_survives_a_restart() {
    let settings = Settings::default();
    let (breaker, later) = opened(&settings);
    breaker.reset(0, START);
    let copy = Breaker::default();
    let words: Vec<u64> = breaker.words().collect();
    assert_eq!(words.len(), Breaker::WORDS);
    copy.restore(words.into_iter());
    assert_eq!(copy.view(&settings, START), breaker.view(&settings, START));
    assert!(matches!(admit(&copy, &settings, later).admission, Admission::Probe(_)));
}

#[test]
fn sixty_four_sessions_never_exceed_the_probes() {
    let settings = Settings {
        half_open_max: 3,
        ..Settings::default()
    };
    for round in 0..50 {
        let (breaker, now) = opened(&settings);
        let live = std::sync::atomic::AtomicUsize::new(0);
        let passed = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for session in 0..64 {
                let (breaker, settings, live, passed) = (&breaker, &settings, &live, &passed);
                scope.spawn(move || {
                    for _ in 0..20 {
                        let admitted = admit(breaker, settings, now);
                        match admitted.admission {
                            Admission::Probe(_) => {
                                let now_live = live.fetch_add(1, AcqRel) + 1;
                                assert!(now_live <= 3, "{now_live} probes in round {round}");
                                std::thread::yield_now();
                                live.fetch_sub(1, AcqRel);
                                let verdict = if session % 2 == 0 {
                                    Verdict::Neutral
                                } else {
                                    Verdict::Success
                                };
                                if verdict == Verdict::Success {
                                    passed.fetch_add(1, AcqRel);
                                }
                                breaker.report(settings, report(verdict, admitted), now, 0);
                            }
                            Admission::Pass => return,
                            Admission::Refused(_) => std::thread::yield_now(),
                        }
                    }
                });
            }
        });
        if breaker.state() == State::Closed {
            assert_eq!(passed.load(Relaxed), 3, "exactly the successes needed were probed for");
        }
    }
}

/// The breaker as a paragraph of prose: no atomics, no packing.
struct Reference {
    state: State,
    until: u64,
    growth: u32,
    generation: u32,
    outcomes: Vec<(u64, bool)>,
    leases: Vec<(u32, u64)>,
    successes: u32,
}

#[derive(Debug, Clone)]
enum Event {
    Wait(u64),
    Decide,
    /// Report the n-th call under way.
    Report(usize, bool),
    Reset,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(
        prop_oneof![
            3 => (1u64..20_000).prop_map(Event::Wait),
            6 => Just(Event::Decide),
            6 => (any::<prop::sample::Index>(), prop::bool::weighted(0.6)).prop_map(|(i, ok)| Event::Report(i.index(64), ok)),
            1 => Just(Event::Reset),
        ],
        1..400,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_lives_follow_the_reference(events in events()) {
        // One bucket = one second, and the model drops outcomes by bucket, so that both forget alike.
        let settings = Settings { window_us: 30 * SECOND, open_us: 10 * SECOND, error_rate_threshold: None, failure_min_rate: None, ..Settings::default() };
        let breaker = Breaker::default();
        let mut model = Reference { state: State::Closed, until: 0, growth: 0, generation: 0, outcomes: vec![], leases: vec![], successes: 0 };
        let mut now = START;
        let mut resets = 0;
        let mut calls: Vec<(Admitted, u32, Option<u64>)> = vec![];
        for event in events {
            match event {
                Event::Wait(ms) => now += ms * 1000,
                Event::Reset => {
                    resets += 1;
                    breaker.reset(resets, now);
                    model = Reference { state: State::Closed, until: 0, growth: 0, generation: model.generation + 1, outcomes: vec![], leases: vec![], successes: 0 };
                }
                Event::Decide => {
                    let deadline = now + 5 * SECOND;
                    let admitted = breaker.admit(&settings, now, deadline);
                    if model.state == State::Open && now / 1000 >= model.until / 1000 {
                        model.state = State::HalfOpen;
                        model.generation += 1;
                        model.leases.clear();
                        model.successes = 0;
                    }
                    match model.state {
                        State::Closed => {
                            prop_assert_eq!(admitted.admission, Admission::Pass);
                            calls.push((admitted, model.generation, None));
                        }
                        State::Open => prop_assert!(matches!(admitted.admission, Admission::Refused(Some(_)))),
                        State::HalfOpen => {
                            model.leases.retain(|lease| lease.1 / 1000 >= now / 1000);
                            if model.leases.len() as u32 + model.successes < 3 {
                                prop_assert!(matches!(admitted.admission, Admission::Probe(_)), "{:?}", admitted);
                                model.leases.push((calls.len() as u32, deadline));
                                calls.push((admitted, model.generation, Some(deadline)));
                            } else {
                                prop_assert!(matches!(admitted.admission, Admission::Refused(_)));
                            }
                        }
                    }
                }
                Event::Report(index, ok) => {
                    if calls.is_empty() { continue; }
                    let (admitted, generation, lease) = calls.remove(index % calls.len());
                    let verdict = if ok { Verdict::Success } else { Verdict::Failure };
                    breaker.report(&settings, report(verdict, admitted), now, 1 << 63);
                    if generation != model.generation { continue; }
                    match (model.state, lease) {
                        (State::Closed, None) => {
                            model.outcomes.push((now, !ok));
                            let failures = model.outcomes.iter().filter(|o| o.1 && o.0 / SECOND + 29 >= now / SECOND).count();
                            if !ok && failures >= 5 {
                                model.state = State::Open;
                                model.until = now + ((10 * SECOND) << model.growth);
                                model.generation += 1;
                            }
                        }
                        (State::HalfOpen, Some(deadline)) if deadline / 1000 >= now / 1000 => {
                            let Some(at) = model.leases.iter().position(|l| l.1 == deadline) else { continue };
                            model.leases.remove(at);
                            if ok {
                                model.successes += 1;
                                if model.successes == 3 {
                                    model.state = State::Closed;
                                    model.growth = 0;
                                    model.generation += 1;
                                    model.outcomes.clear();
                                }
                            } else {
                                model.state = State::Open;
                                model.growth = (model.growth + 1).min(3);
                                model.until = now + ((10 * SECOND) << model.growth);
                                model.generation += 1;
                            }
                        }
                        _ => {}
                    }
                }
            }
            prop_assert_eq!(breaker.state(), model.state);
            prop_assert_eq!(breaker.generation(), model.generation);
        }
    }
}
