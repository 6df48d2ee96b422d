//! Figure 1: what a decision costs beside the cheapest statement there is, and beside one that returns such a row.

use crate::Failure;
use crate::database::Database;
use crate::figure::{Effort, Figure, ROUNDS};
use crate::pgbench::Script;
use crate::results::{Line, Target};
use crate::rounds::{Sample, interleave};

pub const FIGURE: Figure = Figure {
    number: 1,
    title: "select * from ext_select(...) / select 1, / 13 constants",
    measure,
};

fn measure(effort: &Effort) -> Result<Vec<Line>, Failure> {
    // Nobody reports these calls, so each keeps its ticket: there must be one for every decision of a run.
    let tickets = "ext_registry.max_in_flight = 1048576";
    let mut database = Database::start(&[tickets], 5000);
    let plain = |file| move |database: &mut Database| Ok(Script::new(file).run(database, effort.seconds)?.sample);
    let decide = |file| move |database: &mut Database| decide(database, file, effort.seconds);
    let rounds = interleave(
        effort.rounds_or(ROUNDS),
        &mut database,
        &[
            ("select 1", &plain("select_1")),
            ("13 constants", &plain("constants")),
            ("ext_select", &decide("select")),
            ("ext_select, six columns", &decide("select_six")),
        ],
    )?;
    let (one, constants) = (rounds.of("select 1"), rounds.of("13 constants"));
    let (select, six) = (rounds.of("ext_select"), rounds.of("ext_select, six columns"));
    Ok(vec![
        Line::rates(
            1,
            "select * from ext_select / select 1",
            select,
            one,
            Target::AtLeast(0.80),
        ),
        Line::rates(
            1,
            "select * from ext_select / 13 constants",
            select,
            constants,
            Target::AtLeast(0.90),
        ),
        Line::rates(1, "  six columns of ext_select / select 1", six, one, Target::None),
        Line::rates(1, "  13 constants / select 1", constants, one, Target::None),
    ])
}

/// A run of decisions, from an empty table of calls under way.
fn decide(database: &mut Database, file: &'static str, seconds: u64) -> Result<Sample, Failure> {
    let sample = allowed(database, &Script::new(file), seconds)?;
    database.check_health()?;
    Ok(sample)
}

/// The same, and every decision of it was allowed.
pub(super) fn allowed(database: &mut Database, script: &Script, seconds: u64) -> Result<Sample, Failure> {
    database.restart();
    let run = script.run(database, seconds)?;
    // Only a decision that allows the call takes a ticket.
    let tickets = database.in_flight()?;
    if tickets != run.transactions {
        return Err(format!(
            "{} decisions, but {tickets} tickets: some were refused, or there were not enough tickets (then measure fewer seconds)",
            run.transactions
        )
        .into());
    }
    Ok(run.sample)
}
