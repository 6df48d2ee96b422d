//! Figure 9: calls per second through the bridge beside a bare relay, with many in flight.

use crate::Failure;
use crate::bus::{Bus, Way};
use crate::figure::{Effort, Figure, ROUNDS};
use crate::results::{Line, Target};
use crate::rounds::interleave;

pub const FIGURE: Figure = Figure {
    number: 9,
    title: "bridge / bare relay, calls per second, 64 and 1,000 in flight",
    measure,
};

/// From so many cores on, several loops of the bridge can show what they are for.
const CORES_FOR_LOOPS: usize = 8;

fn measure(effort: &Effort) -> Result<Vec<Line>, Failure> {
    let rounds = effort.rounds_or(ROUNDS);
    let call = |way, in_flight| move |bus: &mut Bus| bus.call(way, in_flight, effort.seconds);
    let mut bus = Bus::start(&[])?;
    let taken = interleave(
        rounds,
        &mut bus,
        &[
            ("relay, 64 in flight", &call(Way::Relay, 64)),
            ("relay with headers, 64 in flight", &call(Way::RelayWithHeaders, 64)),
            ("bridge, 64 in flight", &call(Way::Bridge, 64)),
            ("relay, 1000 in flight", &call(Way::Relay, 1000)),
            ("bridge, 1000 in flight", &call(Way::Bridge, 1000)),
        ],
    )?;
    let line = |in_flight: usize, target| {
        let of = |way: &str| taken.of(&format!("{way}, {in_flight} in flight"));
        Line::rates(
            9,
            &format!("bridge / relay, {in_flight} in flight"),
            of("bridge"),
            of("relay"),
            Target::AtLeast(target),
        )
    };
    let dressed = taken.of("relay with headers, 64 in flight");
    let mut lines = vec![
        line(64, 0.70),
        Line::rates(
            9,
            "  bridge / relay with as many headers, 64 in flight",
            taken.of("bridge, 64 in flight"),
            dressed,
            Target::None,
        ),
        line(1000, 0.60),
    ];
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() >= CORES_FOR_LOOPS) {
        let mut both = (bus, Bus::start(&["--loops", "4"])?);
        let taken = interleave(
            rounds,
            &mut both,
            &[
                ("bridge, 1 loop", &|both: &mut (Bus, Bus)| {
                    both.0.call(Way::Bridge, 1000, effort.seconds)
                }),
                ("bridge, 4 loops", &|both: &mut (Bus, Bus)| {
                    both.1.call(Way::Bridge, 1000, effort.seconds)
                }),
            ],
        )?;
        let (four, one) = (taken.of("bridge, 4 loops"), taken.of("bridge, 1 loop"));
        lines.push(Line::rates(
            9,
            "  bridge with 4 loops / with 1, 1000 in flight",
            four,
            one,
            Target::None,
        ));
    }
    Ok(lines)
}
