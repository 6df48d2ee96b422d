//! Figure 7: the core in one process, beside crates of the same kind. `bench/peers` measures; criterion benchmarks of the core
//! alone are in `core/benches`.

use std::collections::HashMap;
use std::process::{Command, Stdio};

use ext_registry_tests::places;

use crate::Failure;
use crate::cpu::Snapshot;
use crate::figure::{Effort, Figure, ROUNDS};
use crate::results::{Compare, Line, Target, Unit};

pub const FIGURE: Figure = Figure {
    number: 7,
    title: "the core alone: decision, report, histogram; breaker / recloser, weighted choice / pingora",
    measure,
};

fn measure(effort: &Effort) -> Result<Vec<Line>, Failure> {
    let peers = |rounds: usize| {
        Command::new(places::root().join("bench/peers/run"))
            .arg(rounds.to_string())
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
    };
    // Builds it, which shall not count as load.
    peers(0)?;
    let before = Snapshot::take();
    let output = peers(effort.rounds_or(ROUNDS))?;
    let foreign = before.until(&Snapshot::take(), &[]).foreign;
    if !output.status.success() {
        return Err("bench/peers/run failed".into());
    }
    let rounds: HashMap<String, Vec<f64>> = serde_json::from_slice(&output.stdout)?;
    let of = |case: &str| rounds.get(case).ok_or_else(|| format!("no case \"{case}\""));
    let alone = |what: &str, case, target| {
        let line = Line::alone(7, what, Unit::Ns, of(case)?, target);
        Ok::<_, Failure>(line.disturbed_by(foreign))
    };
    let beside = |what: &str, case, other, target| {
        let line = Line::compared(7, what, Unit::Ns, Compare::Ratio, of(case)?, of(other)?, target);
        Ok::<_, Failure>(line.disturbed_by(foreign))
    };
    Ok(vec![
        alone(
            "decision: 2 versions, 2 instances, one list rule",
            "decision",
            Target::AtMost(100.0),
        )?,
        alone("  ticket issued and taken back", "ticket", Target::None)?,
        alone("  report: version and instance", "report", Target::None)?,
        alone("histogram record", "histogram", Target::AtMost(20.0))?,
        beside(
            "breaker, check and record / recloser",
            "breaker",
            "recloser",
            Target::AtMost(1.0),
        )?,
        beside(
            "  the same where one in ten fails",
            "breaker, failures",
            "recloser, failures",
            Target::None,
        )?,
        beside(
            "weighted choice / pingora-load-balancing",
            "weighted choice",
            "pingora",
            Target::AtMost(1.0),
        )?,
        beside(
            "  the same / its balancer around it",
            "weighted choice",
            "pingora balancer",
            Target::None,
        )?,
        alone("  of each: the loop that repeats it", "empty loop", Target::None)?,
    ])
}
