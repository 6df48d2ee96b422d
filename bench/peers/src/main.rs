//! Times the core in this process, beside crates of the same kind, in rounds that take turns. Prints ns a call as JSON:
//! for each case the least of each round.
//!
//! The peers do the same work: `recloser` asks and records a success or a failure; `pingora-load-balancing` makes a weighted
//! choice in turn, by its algorithm alone, and by the balancer around it. Time is an argument of the core; neither peer reads a
//! clock on these ways either.

#[path = "../../../core/benches/scene/mod.rs"]
mod scene;

use std::collections::BTreeSet;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora_load_balancing::selection::{BackendIter, BackendSelection, RoundRobin};
use pingora_load_balancing::{Backend, LoadBalancer};
use recloser::Recloser;
use scene::{Scene, WEIGHTS};

/// One sample; the least of many is taken.
const SAMPLE: Duration = Duration::from_millis(2);
const SAMPLES: usize = 20;
/// One failure in so many calls, where there are any.
const FAILURE_IN: u64 = 10;

fn main() {
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(5);
    let mut cases = cases();
    let mut results: Vec<Vec<f64>> = vec![Vec::new(); cases.len()];
    for round in 0..rounds {
        for turn in 0..cases.len() {
            let case = (round + turn) % cases.len();
            results[case].push(least_ns(&mut cases[case].1));
        }
    }
    let json: serde_json::Map<_, _> = cases
        .iter()
        .zip(results)
        .map(|((name, _), values)| ((*name).to_owned(), values.into()))
        .collect();
    println!("{}", serde_json::Value::Object(json));
}

/// Runs what is measured so many times.
type Case = Box<dyn FnMut(u64)>;

/// Repeats a call; what it returns is looked at.
fn repeat<T>(mut call: impl FnMut(u64) -> T + 'static) -> Case {
    Box::new(move |calls| {
        for n in 0..calls {
            black_box(call(black_box(n)));
        }
    })
}

/// A case of the core, on a scene of its own.
fn core<T>(mut call: impl FnMut(&mut Scene, u64) -> T + 'static) -> Case {
    let mut scene = Scene::new();
    repeat(move |n| call(&mut scene, n))
}

fn cases() -> Vec<(&'static str, Case)> {
    let (steady, failing) = (Recloser::custom().build(), Recloser::custom().build());
    let ask = |breaker: &Recloser, failed: bool| {
        breaker
            .call(|| if failed { Err(()) } else { Ok(()) })
            .is_ok_and(|()| true)
    };
    let (algorithm, balancer) = (Arc::new(RoundRobin::build(&backends())), balancer());
    vec![
        ("empty loop", repeat(|n| n)),
        ("decision", core(|scene, _| scene.decide())),
        ("ticket", core(|scene, _| scene.ticket())),
        ("report", core(|scene, _| scene.report())),
        ("histogram", core(|scene, _| scene.record())),
        ("breaker", core(|scene, _| scene.breaker(false))),
        ("breaker, failures", core(|scene, n| scene.breaker(n % FAILURE_IN == 0))),
        ("recloser", repeat(move |_| ask(&steady, false))),
        (
            "recloser, failures",
            repeat(move |n| ask(&failing, n % FAILURE_IN == 0)),
        ),
        ("weighted choice", core(|scene, _| scene.choose())),
        (
            "pingora",
            repeat(move |_| algorithm.iter(b"").next().map(|backend| backend.weight)),
        ),
        (
            "pingora balancer",
            repeat(move |_| balancer.select(b"", 8).expect("all are healthy")),
        ),
    ]
}

fn backends() -> BTreeSet<Backend> {
    let backend = |(n, weight): (usize, &u32)| {
        Backend::new_with_weight(&format!("127.0.0.{}:80", n + 1), *weight as usize).expect("an address")
    };
    WEIGHTS.iter().enumerate().map(backend).collect()
}

fn balancer() -> LoadBalancer<RoundRobin> {
    use pingora_load_balancing::{Backends, discovery};
    let balancer = LoadBalancer::from_backends(Backends::new(discovery::Static::new(backends())));
    {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let update = std::pin::pin!(balancer.update());
        assert!(update.poll(&mut context).is_ready(), "what is static is there at once");
    }
    balancer
}

/// ns of a call: the least of many samples, each long enough for the clock.
fn least_ns(case: &mut Case) -> f64 {
    let mut calls = 1000;
    while time(case, calls) < SAMPLE {
        calls *= 2;
    }
    let sample = |_| time(case, calls).as_nanos() as f64 / calls as f64;
    (0..SAMPLES).map(sample).fold(f64::INFINITY, f64::min)
}

fn time(case: &mut Case, calls: u64) -> Duration {
    let start = Instant::now();
    case(calls);
    start.elapsed()
}
