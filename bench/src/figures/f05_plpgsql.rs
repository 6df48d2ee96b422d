//! Figure 5: a whole call, decision and report, beside a careful version of the registry in PL/pgSQL.

use super::f04_call;
use crate::Failure;
use crate::database::Database;
use crate::figure::{Effort, Figure, ROUNDS};
use crate::pgbench::Script;
use crate::results::{Line, Target};
use crate::rounds::interleave;

pub const FIGURE: Figure = Figure {
    number: 5,
    title: "whole call / a careful version in PL/pgSQL, spread and on one extension",
    measure,
};

const NO_WAIT: &str = "-c synchronous_commit=off";
const THEIRS: &str = "select sum(success_count)::bigint from plpgsql.health";

fn measure(effort: &Effort) -> Result<Vec<Line>, Failure> {
    let seconds = effort.seconds;
    let mut database = Database::start(&[], 5000);
    database.run_file("plpgsql.sql", &[]);
    database.run("vacuum analyze");
    let call = |script: Script| move |database: &mut Database| f04_call::ours(database, &script, seconds);
    let theirs = |script: Script| {
        move |database: &mut Database| {
            // Each run finds the table as small as the first.
            database.run("vacuum full analyze plpgsql.health");
            database.run("vacuum full analyze plpgsql.instance_health");
            database.run("checkpoint");
            f04_call::counted(database, &script.clone().with_options(NO_WAIT), THEIRS, seconds)
        }
    };
    let decide = |database: &mut Database| Ok(Script::new("plpgsql_decide").run(database, seconds)?.sample);
    let rounds = interleave(
        effort.rounds_or(ROUNDS),
        &mut database,
        &[
            ("call, spread", &call(Script::new("call"))),
            ("plpgsql, spread", &theirs(Script::new("plpgsql"))),
            ("call, one extension", &call(Script::new("call").on_one())),
            ("plpgsql, one extension", &theirs(Script::new("plpgsql").on_one())),
            (
                "plpgsql with instances, spread",
                &theirs(Script::new("plpgsql_instances")),
            ),
            (
                "plpgsql with instances, one extension",
                &theirs(Script::new("plpgsql_instances").on_one()),
            ),
            ("plpgsql, decision alone", &decide),
        ],
    )?;
    check_hot(&database)?;
    let line = |what: &str, theirs: &str, place: &str, target| {
        Line::rates(
            5,
            &format!("{what}, {place}"),
            rounds.of(&format!("call, {place}")),
            rounds.of(&format!("{theirs}, {place}")),
            target,
        )
    };
    let mut lines = Vec::new();
    for (place, target) in [("spread", 3.0), ("one extension", 8.0)] {
        let target = Target::AtLeast(target);
        lines.push(line("call / in PL/pgSQL", "plpgsql", place, target));
        lines.push(line(
            "  call / in PL/pgSQL, instances too",
            "plpgsql with instances",
            place,
            Target::None,
        ));
    }
    lines.push(Line::rates(
        5,
        "  call / decision alone in PL/pgSQL, spread",
        rounds.of("call, spread"),
        rounds.of("plpgsql, decision alone"),
        Target::None,
    ));
    Ok(lines)
}

/// The other side would not be a careful one if its updates wrote to indexes.
fn check_hot(database: &Database) -> Result<(), Failure> {
    for table in ["health", "instance_health"] {
        let percent = database.number(&format!(
            "select 100 * n_tup_hot_upd / n_tup_upd from pg_stat_user_tables
             where schemaname = 'plpgsql' and relname = '{table}'"
        ))?;
        if percent < 99 {
            return Err(format!("only {percent} % of the updates of plpgsql.{table} are HOT").into());
        }
    }
    Ok(())
}
