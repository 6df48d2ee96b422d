//! Figure 8: how soon a change of a large registry is decided by, elsewhere.

use std::time::Instant;

use super::f02_size::LARGE;
use crate::Failure;
use crate::client::{Client, Format, Request};
use crate::cpu::Snapshot;
use crate::database::{CONTEXT, Database};
use crate::figure::{Effort, Figure};
use crate::results::{Compare, Line, Target, Unit};
use crate::rounds::median;

pub const FIGURE: Figure = Figure {
    number: 8,
    title: "after one UPDATE among 100,000 extensions, the next decision of another session",
    measure,
};

const ROUNDS: usize = 7;
const EDITS: usize = 100;
/// Extensions that the deciding session has in use.
const IN_USE: usize = 1000;
/// Room for their targets.
const MAX_TARGETS: &str = "ext_registry.max_targets = 8192";

fn measure(effort: &Effort) -> Result<Vec<Line>, Failure> {
    let database = Database::with_extensions(LARGE, &[MAX_TARGETS], 5000);
    let (mut decider, mut editor) = (Client::connect(&database)?, Client::connect(&database)?);
    decider.prepare("decide", "select timeout_ms from ext_select($1, $2)")?;
    editor.prepare(
        "edit",
        "update extension_versions set timeout_ms = $2::integer where id = $1 and version = 'v2'",
    )?;
    let decide = |n: usize| Request::new("decide", Format::Text, &[n.to_string().as_bytes(), CONTEXT.as_bytes()]);
    for n in 1..=IN_USE {
        decider.run(&decide(n), |_| ())?;
    }
    let (mut usual, mut after) = (Percentiles::default(), Percentiles::default());
    let mut timeout = 5000_u32;
    let begin = Snapshot::take();
    for _ in 0..effort.rounds_or(ROUNDS) {
        let (mut before_edit, mut after_edit) = (Vec::new(), Vec::new());
        for edit in 0..EDITS {
            let n = 1 + edit * IN_USE / EDITS;
            before_edit.push(decider.time(&decide(n))?.as_secs_f64() * 1e3);
            timeout += 1;
            let parameters = [n.to_string(), timeout.to_string()];
            let parameters: Vec<&[u8]> = parameters.iter().map(String::as_bytes).collect();
            editor.run(&Request::new("edit", Format::Text, &parameters), |_| ())?;
            let mut decided = 0.0;
            let start = Instant::now();
            decider.run(&decide(n), |row| decided = row.number(0).unwrap_or_default())?;
            after_edit.push(start.elapsed().as_secs_f64() * 1e3);
            if decided < f64::from(timeout) {
                return Err(format!("decided by timeout_ms {decided} after it was set to {timeout}").into());
            }
        }
        usual.add(before_edit);
        after.add(after_edit);
    }
    let foreign = begin.until(&Snapshot::take(), &[]).foreign;
    database.check_tracked()?;
    let line = |what, after: &[f64], usual: &[f64], target| {
        Line::compared(8, what, Unit::Ms, Compare::Difference, after, usual, target).disturbed_by(foreign)
    };
    Ok(vec![
        line(
            "decision after an edit over usual, p99 of 100",
            &after.p99,
            &usual.p99,
            Target::AtMost(1.0),
        ),
        line("  p50 of 100", &after.p50, &usual.p50, Target::None),
    ])
}

/// Of each round.
#[derive(Default)]
struct Percentiles {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Percentiles {
    fn add(&mut self, mut latencies: Vec<f64>) {
        latencies.sort_by(f64::total_cmp);
        self.p99.push(latencies[latencies.len() * 99 / 100 - 1]);
        self.p50.push(median(latencies));
    }
}
