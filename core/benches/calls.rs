//! What the core does for a call, piece by piece: `cargo bench -p ext_registry_core`. What is compared with others, and what is
//! judged, is in `bench/`.

mod scene;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ext_registry_core::balance::Schedule;
use ext_registry_core::histogram::{Counts, LatencyRing};
use ext_registry_core::rules::RuleSet;
use scene::{Scene, WEIGHTS};
use serde_json::{Map, Value, json};

fn call(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("call");
    let mut scene = Scene::new();
    group.bench_function("decision", |bencher| bencher.iter(|| scene.decide()));
    group.bench_function("ticket", |bencher| bencher.iter(|| scene.ticket()));
    group.bench_function("report", |bencher| bencher.iter(|| scene.report()));
}

fn breaker(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("breaker, check and record");
    let mut scene = Scene::new();
    group.bench_function("successes", |bencher| bencher.iter(|| scene.breaker(false)));
    let mut n = 0_u32;
    group.bench_function("one failure in ten", |bencher| {
        bencher.iter(|| {
            n += 1;
            scene.breaker(n.is_multiple_of(10));
        });
    });
}

/// The cost of a rule stays flat: one with many tenants beside one with three.
fn rules(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rule with a list");
    let context: Map<String, Value> = Map::from_iter([("tenant_id".to_owned(), json!("t2"))]);
    for tenants in [3, 10_000] {
        let list: Vec<String> = (0..tenants).map(|n| format!("t{n}")).collect();
        let rules = RuleSet::parse(&json!({ "tenant_id": list })).expect("a valid rule");
        group.bench_function(format!("of {tenants}"), |bencher| {
            bencher.iter(|| rules.matches(black_box(&context)));
        });
    }
}

fn weighted_choice(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("weighted choice");
    let scene = Scene::new();
    group.bench_function("pick", |bencher| bencher.iter(|| scene.choose()));
    let many: Vec<u32> = (0..1000).map(|n| 1 + n * 37 % 100).collect();
    for (what, weights) in [("of 2", &WEIGHTS[..]), ("of 1000", &many)] {
        group.bench_function(format!("cycle {what}"), |bencher| {
            bencher.iter(|| Schedule::new(black_box(weights)));
        });
    }
}

/// A histogram's percentiles beside exact ones, of as many latencies.
fn histogram(criterion: &mut Criterion) {
    const MINUTE: u64 = 30_000_000;
    let mut group = criterion.benchmark_group("histogram");
    let mut scene = Scene::new();
    group.bench_function("record", |bencher| bencher.iter(|| scene.record()));
    group.throughput(Throughput::Elements(100_000));
    let latencies: Vec<u64> = scene.latencies().iter().copied().cycle().take(100_000).collect();
    let ring = Box::<LatencyRing>::default();
    for us in &latencies {
        ring.record(MINUTE, *us);
    }
    let mut counts = Counts::default();
    group.bench_function("p50, p95, p99", |bencher| {
        bencher.iter(|| {
            ring.summary(MINUTE, &mut counts);
            [0.5, 0.95, 0.99].map(|q| counts.quantile(q))
        });
    });
    group.bench_function("p50, p95, p99, exact", |bencher| {
        bencher.iter_batched_ref(
            || latencies.clone(),
            |latencies| {
                latencies.sort_unstable();
                [50, 95, 99].map(|percent| latencies[latencies.len() * percent / 100 - 1])
            },
            BatchSize::LargeInput,
        );
    });
}

criterion_group!(benches, call, breaker, rules, weighted_choice, histogram);
criterion_main!(benches);
