//! Figure 4: a whole call, decision and report, beside the eleven statements that the replaced system made of one.
//!
//! Judged is what it really did, each statement parsed and planned each time, but without waiting for the disk at its four
//! commits, which says more of the disk than of the design. The lines beneath are kinder (statements prepared) and as it came
//! (commits wait).

use crate::Failure;
use crate::database::Database;
use crate::figure::{Effort, Figure, ROUNDS};
use crate::pgbench::Script;
use crate::results::{Line, Target};
use crate::rounds::{Sample, interleave};

pub const FIGURE: Figure = Figure {
    number: 4,
    title: "whole call / the 11 statements of the replaced system, spread and on one extension",
    measure,
};

const NO_WAIT: &str = "-c synchronous_commit=off";
const OURS: &str = "select sum(success_count)::bigint from extension_health";
const THEIRS: &str = "select sum(success_count)::bigint from eleven.extension_health";

fn measure(effort: &Effort) -> Result<Vec<Line>, Failure> {
    let seconds = effort.seconds;
    let mut database = Database::start(&[], 5000);
    database.run_file("eleven.sql", &[]);
    let call = |script: Script| move |database: &mut Database| ours(database, &script, seconds);
    let eleven = |script: Script| {
        move |database: &mut Database| {
            // Each run finds the table as small as the first.
            database.run("vacuum full analyze eleven.extension_health");
            database.run("checkpoint");
            counted(database, &script, THEIRS, seconds)
        }
    };
    let statements = || Script::new("eleven");
    let rounds = interleave(
        effort.rounds_or(ROUNDS),
        &mut database,
        &[
            ("call, spread", &call(Script::new("call"))),
            (
                "eleven, spread",
                &eleven(statements().unprepared().with_options(NO_WAIT)),
            ),
            ("eleven prepared, spread", &eleven(statements().with_options(NO_WAIT))),
            ("eleven waiting for commits, spread", &eleven(statements().unprepared())),
            ("call, one extension", &call(Script::new("call").on_one())),
            (
                "eleven, one extension",
                &eleven(statements().unprepared().with_options(NO_WAIT).on_one()),
            ),
            (
                "eleven prepared, one extension",
                &eleven(statements().with_options(NO_WAIT).on_one()),
            ),
            (
                "eleven waiting for commits, one extension",
                &eleven(statements().unprepared().on_one()),
            ),
        ],
    )?;
    let line = |what: &str, place: &str, target| {
        let (this, other) = (
            rounds.of(&format!("call, {place}")),
            rounds.of(&format!("eleven{what}, {place}")),
        );
        let indent = if what.is_empty() { "" } else { "  " };
        Line::rates(
            4,
            &format!("{indent}call / the 11 statements{what}, {place}"),
            this,
            other,
            target,
        )
    };
    let mut lines = Vec::new();
    for (place, target) in [("spread", 12.0), ("one extension", 20.0)] {
        lines.push(line("", place, Target::AtLeast(target)));
        lines.push(line(" prepared", place, Target::None));
        lines.push(line(" waiting for commits", place, Target::None));
    }
    Ok(lines)
}

/// A run of whole calls.
pub(super) fn ours(database: &mut Database, script: &Script, seconds: u64) -> Result<Sample, Failure> {
    let sample = counted(database, script, OURS, seconds)?;
    database.check_health()?;
    Ok(sample)
}

/// A run after which `counter` must have grown by as many as there were transactions.
pub(super) fn counted(database: &Database, script: &Script, counter: &str, seconds: u64) -> Result<Sample, Failure> {
    let before = database.number(counter)?;
    let run = script.run(database, seconds)?;
    let counted = database.number(counter)? - before;
    if counted != run.transactions {
        return Err(format!("{} calls, of which {counted} were counted", run.transactions).into());
    }
    Ok(run.sample)
}
