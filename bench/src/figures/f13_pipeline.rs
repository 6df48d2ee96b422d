//! Figure 13: pipelines of four stages through the bridge beside four calls in sequence through a bare relay.

use crate::Failure;
use crate::bus::{Bus, Way};
use crate::figure::{Effort, Figure, ROUNDS};
use crate::results::{Line, Target};
use crate::rounds::interleave;

pub const FIGURE: Figure = Figure {
    number: 13,
    title: "pipeline of 4 stages through the bridge / 4 bare relays in sequence, 64 in flight",
    measure,
};

const IN_FLIGHT: usize = 64;

fn measure(effort: &Effort) -> Result<Vec<Line>, Failure> {
    let call = |way| move |bus: &mut Bus| bus.call(way, IN_FLIGHT, effort.seconds);
    let mut bus = Bus::start(&[])?;
    let rounds = interleave(
        effort.rounds_or(ROUNDS),
        &mut bus,
        &[
            ("4 relays in sequence", &call(Way::RelaysInSequence)),
            ("pipeline", &call(Way::Pipeline)),
        ],
    )?;
    Ok(vec![Line::rates(
        13,
        "pipeline of 4 stages / 4 relays in sequence, 64 in flight",
        rounds.of("pipeline"),
        rounds.of("4 relays in sequence"),
        Target::AtLeast(0.60),
    )])
}
