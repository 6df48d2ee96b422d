//! Figure 3: what a report costs beside the cheapest statement there is, spread over all extensions and on one.

use crate::Failure;
use crate::database::{Database, EXTENSIONS};
use crate::figure::{Effort, Figure, ROUNDS};
use crate::pgbench::{Run, Script};
use crate::results::{Line, Target};
use crate::rounds::{Sample, interleave};

pub const FIGURE: Figure = Figure {
    number: 3,
    title: "ext_report / select 1, spread and on one extension",
    measure,
};

/// Tickets issued before a run of reports: more than a run of a few seconds can use.
const TICKETS: i64 = 1 << 20;

fn measure(effort: &Effort) -> Result<Vec<Line>, Failure> {
    let seconds = effort.seconds;
    let settings = format!("ext_registry.max_in_flight = {TICKETS}");
    // No call may lapse before it is reported: the longest timeout there is.
    let mut database = Database::start(&[&settings], 300_000);
    database.run_file("tickets.sql", &[]);
    let one = |database: &mut Database| Ok(Script::new("select_1").run(database, seconds)?.sample);
    let by_ticket = |extensions| move |database: &mut Database| by_ticket(database, extensions, seconds);
    let counting =
        |script: Script| move |database: &mut Database| counted(database, |database| script.run(database, seconds));
    let rounds = interleave(
        effort.rounds_or(ROUNDS),
        &mut database,
        &[
            ("select 1", &one),
            ("ext_report by ticket, spread", &by_ticket(EXTENSIONS)),
            ("ext_report by ticket, one extension", &by_ticket(1)),
            ("ext_report by name, spread", &counting(Script::new("report_by_name"))),
            (
                "ext_report by name, one extension",
                &counting(Script::new("report_by_name").on_one()),
            ),
            (
                "ext_select and ext_report in one",
                &counting(Script::new("call_in_one")),
            ),
        ],
    )?;
    let line = |what: &str, target| {
        let (this, one) = (rounds.of(what.trim_start()), rounds.of("select 1"));
        Line::rates(3, &format!("{what} / select 1"), this, one, target)
    };
    Ok(vec![
        line("ext_report by ticket, spread", Target::AtLeast(0.90)),
        line("ext_report by ticket, one extension", Target::AtLeast(0.85)),
        line("  ext_report by name, spread", Target::None),
        line("  ext_report by name, one extension", Target::None),
        line("  ext_select and ext_report in one", Target::None),
    ])
}

/// A run of reports of calls that were decided before it, in turn for `extensions` extensions.
fn by_ticket(database: &mut Database, extensions: u32, seconds: u64) -> Result<Sample, Failure> {
    database.restart();
    let first = database.number(&format!("select issue_all_tickets({extensions})"))?;
    let script = Script::new("report_by_ticket")
        .with_variable("first_ticket", first)
        .with_variable("tickets_per_client", TICKETS / Script::clients())
        .with_variable("n", -1);
    counted(database, |database| script.run(database, seconds))
}

/// Checks that every report of a run was counted.
fn counted(database: &mut Database, run: impl Fn(&Database) -> Result<Run, Failure>) -> Result<Sample, Failure> {
    let before = database.successes()?;
    let run = run(database)?;
    let counted = database.successes()? - before;
    if counted != run.transactions {
        return Err(format!("{} reports, of which {counted} were counted", run.transactions).into());
    }
    database.check_health()?;
    Ok(run.sample)
}
