//! Properties of the live histogram ring and of the mergeable `hdr` value, on latencies as they come.
//!
//! A failing case prints its smallest input; its seed is kept in a file `*.regressions` here and tried again first.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use ext_registry_core::histogram::{Counts, LatencyRing, MAX_US};

mod hdr;
mod ring;

fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

/// A minute of the year 2026.
const NOW: u64 = 29_700_000;

/// What a quantile may be off: 0.79 %.
const TOLERANCE: f64 = 0.0079;

const QUANTILES: [f64; 9] = [0.001, 0.07, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0];

fn ring() -> Box<LatencyRing> {
    Box::default()
}

fn summary(ring: &LatencyRing, now: u64) -> Counts {
    let mut counts = Counts::default();
    ring.summary(now, &mut counts);
    counts
}

/// The sample of rank ceil(q * n), in milliseconds; `q` in thousandths, so that no rounding is involved.
fn exact(sorted: &[u64], q: f64) -> f64 {
    let thousandths = (q * 1000.0).round() as usize;
    let rank = (thousandths * sorted.len()).div_ceil(1000).max(1);
    sorted[rank - 1] as f64 / 1e3
}

fn close(estimate: f64, exact: f64, tolerance: f64) -> bool {
    (estimate - exact).abs() <= exact * tolerance + 1e-9
}

/// Latencies as they come: one service, two speeds, a long tail, anything, all the same.
fn samples() -> impl Strategy<Value = Vec<u64>> {
    let tail = (0.0..1.0_f64).prop_map(|u| ((200.0 * (1.0 - u).powf(-1.5)) as u64).min(MAX_US));
    let log_uniform = (0.0..=19.6_f64).prop_map(|log| (log.exp() as u64).min(MAX_US));
    prop_oneof![
        vec(800..1200_u64, 1..400),
        vec(prop_oneof![9 => 300..600_u64, 1 => 40_000..90_000_u64], 1..400),
        vec(tail, 1..400),
        vec(log_uniform, 1..400),
        vec(0..=MAX_US, 1..100),
        (0..=MAX_US, 1..400_usize).prop_map(|(us, n)| vec![us; n]),
    ]
}
