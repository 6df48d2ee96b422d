//! Figure 10: what the bridge adds to the latency of a call beside a bare relay, with one in flight.

use crate::Failure;
use crate::bus::{Bus, Way};
use crate::figure::{Effort, Figure};
use crate::results::{Line, Target};
use crate::rounds::{Sample, interleave};

pub const FIGURE: Figure = Figure {
    number: 10,
    title: "latency that the bridge adds to a bare relay, 1 in flight",
    measure,
};

/// Latencies of single calls vary with how the processes fall on the cores.
const ROUNDS: usize = 7;

fn measure(effort: &Effort) -> Result<Vec<Line>, Failure> {
    let call = |way| move |bus: &mut Bus| bus.call(way, 1, effort.seconds);
    let mut bus = Bus::start(&[])?;
    let rounds = interleave(
        effort.rounds_or(ROUNDS),
        &mut bus,
        &[
            ("relay, 1 in flight", &call(Way::Relay)),
            ("bridge, 1 in flight", &call(Way::Bridge)),
        ],
    )?;
    let (bridge, relay) = (rounds.of("bridge, 1 in flight"), rounds.of("relay, 1 in flight"));
    let (p50, p99) = (|sample: &Sample| sample.p50_us, |sample: &Sample| sample.p99_us);
    Ok(vec![
        Line::added(10, "p50, bridge over relay", bridge, relay, p50, Target::AtMost(150.0)),
        Line::added(10, "  p99, bridge over relay", bridge, relay, p99, Target::None),
    ])
}
