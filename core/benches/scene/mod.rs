//! What is measured of the core, for the benchmarks here and in `bench/`: calls of one extension with two versions, one of
//! them with a list rule that the context matches, and two weighted instances.
//!
//! Time goes on by 10 us a call and latencies vary, so that windows and minutes move as they do in service.

#![allow(dead_code, reason = "not every benchmark measures everything")]

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ext_registry_core::account::{self, Result as Ended};
use ext_registry_core::balance::Schedule;
use ext_registry_core::breaker::{Admission, Breaker, Report, Settings};
use ext_registry_core::compile::Compiled;
use ext_registry_core::decide::{Caller, Decision, Live, Request, decide};
use ext_registry_core::engine::Engine;
use ext_registry_core::fitness::{Effects, Fitness, Remembered};
use ext_registry_core::fixture::ExtensionDocument;
use ext_registry_core::histogram::LatencyRing;
use ext_registry_core::outcome::{Outcome, Verdict};
use ext_registry_core::target::{Target, Turn, minute};
use ext_registry_core::tickets::{Call, Entry, Table, Taken};
use serde_json::{Map, Value as Json, json};

/// The extension's id.
pub const ID: &str = "service";
/// The tenants of the rule.
const TENANTS: [&str; 3] = ["one", "t2", "third"];
/// Weights of its instances.
pub const WEIGHTS: [u32; 2] = [67, 33];
const NOW_US: u64 = 1_800_000_000_000_000;
const STEP_US: u64 = 10;

/// One extension under calls.
pub struct Scene {
    compiled: &'static Compiled,
    live: Places,
    context: Map<String, Json>,
    entries: Box<[Entry]>,
    cursor: u32,
    calls: u64,
    latencies: Box<[u64]>,
    /// Somewhere to record latencies alone.
    ring: Box<LatencyRing>,
    /// A breaker alone, with settings that judge each failure but do not open at one in ten.
    breaker: Box<Breaker>,
    settings: Settings,
    /// A weighted choice alone.
    schedule: Schedule,
    chooser: Box<Target>,
}

struct Places {
    versions: &'static [Target],
    instances: &'static [Target],
    suspicions: AtomicU64,
    fitness: Remembered,
}

impl Places {
    fn of(engine: &'static Engine, compiled: &Compiled) -> Self {
        let instances = engine.instance_targets(ID);
        let fitness = Remembered::default();
        let judged = Fitness::judge(compiled, |i| instances.get(i), NOW_US, 0, Effects::Apply, |_, _| ());
        assert!(fitness.keep(2, judged, NOW_US).is_none(), "all are fit");
        Self {
            versions: engine.version_targets(ID),
            instances,
            suspicions: AtomicU64::new(2),
            fitness,
        }
    }
}

impl Live for Places {
    fn version(&self, target: usize) -> Option<&Target> {
        self.versions.get(target)
    }

    fn instance(&self, place: usize) -> Option<&Target> {
        self.instances.get(place)
    }

    fn fitness(&self, now_us: u64, _random: u64, _effects: Effects) -> Option<Rc<Fitness>> {
        // As a session of Postgres: one count that all share, and what it remembers.
        if self.fitness.holds(self.suspicions.load(Relaxed), now_us) {
            return self.fitness.get();
        }
        unreachable!("nothing happens to the instances of the scene")
    }
}

impl Scene {
    /// The extension as it is after a first call.
    pub fn new() -> Self {
        let document = ExtensionDocument::parse(&json!({
            "id": ID, "type": "pre", "subject": "service", "timeout_ms": 5000,
            "versions": [
                {"version": "v1", "subject": "service.v1"},
                {"version": "v2", "subject": "service.v2", "routing_rules": {"tenant_id": TENANTS}},
            ],
            "instances": [
                {"instance_id": "a", "subject": "service.a", "weight": WEIGHTS[0]},
                {"instance_id": "b", "subject": "service.b", "weight": WEIGHTS[1]},
            ],
        }))
        .expect("a valid document");
        // Leaked, so that looking it up by name is not measured with each call: sessions have it at hand.
        let engine: &Engine = Box::leak(Box::new(Engine::new(&[document], 1, 7).expect("a valid registry")));
        let mut scene = Self {
            compiled: engine.extension(ID).expect("it is registered"),
            live: Places::of(engine, engine.extension(ID).expect("it is registered")),
            context: Map::from_iter([("tenant_id".to_owned(), json!("t2"))]),
            entries: std::iter::repeat_with(Entry::default).take(65_536).collect(),
            cursor: 0,
            calls: 0,
            latencies: latencies(1024),
            ring: Box::default(),
            breaker: Box::default(),
            settings: Settings {
                failure_threshold: None,
                ..Settings::default()
            },
            schedule: Schedule::new(&WEIGHTS).expect("weights above zero"),
            chooser: Box::default(),
        };
        let decision = scene.decide();
        assert!(decision.reason.is_allowed() && scene.compiled.versions[0].name.as_ref() == "v2");
        assert_eq!((decision.version, decision.instance.is_some()), (Some(0), true));
        scene.ticket();
        scene.report();
        scene
    }

    /// The time of the next call, and its latency.
    fn next(&mut self) -> (u64, u64) {
        self.calls += 1;
        let latency = self.latencies[self.calls as usize % self.latencies.len()];
        (NOW_US + self.calls * STEP_US, latency)
    }

    /// One decision, without a ticket.
    pub fn decide(&mut self) -> Decision {
        let (now_us, _) = self.next();
        let request = Request {
            context: &self.context,
            avoid: &[],
            now_us,
            random: self.calls,
        };
        decide(self.compiled, &request, &self.live, &mut Caller)
    }

    /// A ticket issued and given back.
    pub fn ticket(&mut self) -> Option<Taken> {
        let (now_us, _) = self.next();
        let table = Table::new(&self.entries, 1);
        let ticket = table.issue(&mut self.cursor, &call(now_us), now_us, |_| ());
        table.take(ticket)
    }

    /// One successful report: counters, window, histogram and breaker of the version, counters and histogram of the instance.
    pub fn report(&mut self) {
        let (now_us, latency_us) = self.next();
        let (version, instance) = (&self.live.versions[1], &self.live.instances[0]);
        let taken = Taken {
            call: call(now_us),
            lapsed: false,
        };
        let result = Ended {
            outcome: Outcome::Success,
            latency_us,
            retries: 0,
        };
        let moved = account::settle(version, Some(instance), &taken, result, now_us, self.calls);
        assert!(moved.transition.is_none() && !moved.suspect, "a success opens nothing");
    }

    /// One latency recorded.
    pub fn record(&mut self) {
        let (now_us, latency_us) = self.next();
        self.ring.record(minute(now_us), latency_us);
    }

    /// May it pass? It may; and how it went. A failure must not be more often than one in ten.
    pub fn breaker(&mut self, failed: bool) {
        let (now_us, _) = self.next();
        let admitted = self.breaker.admit(&self.settings, now_us, now_us);
        assert!(admitted.admission == Admission::Pass, "it is closed");
        let report = Report {
            verdict: if failed { Verdict::Failure } else { Verdict::Success },
            slow: false,
            generation: Some(admitted.generation),
            lease: None,
        };
        self.breaker.report(&self.settings, report, now_us, self.calls);
    }

    /// One weighted choice among the instances, all sessions together.
    pub fn choose(&self) -> usize {
        self.schedule.pick(self.chooser.take_turn(Turn::Whole))
    }

    /// The latencies that calls have, in us.
    pub fn latencies(&self) -> &[u64] {
        &self.latencies
    }
}

fn call(now_us: u64) -> Call {
    Call {
        version: 1,
        instance: Some(2),
        started_us: now_us,
        deadline_us: now_us + 6_000_000,
        generation: 0,
        lease: None,
    }
}

/// Latencies from 1 to 64 ms, the short ones more often; the same each time.
fn latencies(n: u64) -> Box<[u64]> {
    let draw = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64 / f64::from(1 << 24);
    (1..=n).map(|i| (1000.0 * (6.0 * draw(i)).exp2()) as u64).collect()
}
