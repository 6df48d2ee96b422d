//! Figure 2: what it costs that there are many extensions: rate, a session's first decision, its memory.

use std::time::{Duration, Instant};

use super::f01_select;
use crate::client::Client;
use crate::cpu::{Snapshot, own_memory};
use crate::database::{CONTEXT, Database, EXTENSIONS};
use crate::figure::{Effort, Figure, ROUNDS};
use crate::pgbench::Script;
use crate::results::{Compare, Line, Target, Unit};
use crate::rounds::{interleave, median};
use crate::{Failure, client};

pub const FIGURE: Figure = Figure {
    number: 2,
    title: "100,000 extensions, 1,000 of them in use, / figure 1; first decision and memory of a session",
    measure,
};

pub(super) const LARGE: u32 = 100_000;
const IN_USE: u32 = 1000;
/// Targets: room for two versions and two instances of each extension in use, and for those of the first decisions.
const MAX_TARGETS: u32 = 8192;
/// Sessions that take a first decision, in each round.
const SESSIONS: u32 = 20;

const FEW: &str = "100 extensions";
const FEW_OF_MANY: &str = "100 of 100,000 extensions";
const MANY: &str = "1,000 of 100,000 extensions";

struct Bed {
    small: Database,
    large: Database,
}

fn measure(effort: &Effort) -> Result<Vec<Line>, Failure> {
    let rounds = effort.rounds_or(ROUNDS);
    let settings = [
        // As in figure 1.
        "ext_registry.max_in_flight = 1048576",
        &format!("ext_registry.max_targets = {MAX_TARGETS}"),
    ];
    let mut bed = Bed {
        small: Database::start(&settings, 5000),
        large: Database::with_extensions(LARGE, &settings, 5000),
    };
    // Each session compiles all it uses while it warms up.
    let decide = |extensions| {
        let script = Script::new("select").spread_over(extensions).with_warm_up(2);
        move |database: &mut Database| {
            let sample = f01_select::allowed(database, &script, effort.seconds)?;
            database.check_tracked()?;
            Ok(sample)
        }
    };
    let (hundred, thousand) = (decide(EXTENSIONS), decide(IN_USE));
    let taken = interleave(
        rounds,
        &mut bed,
        &[
            (FEW, &|bed: &mut Bed| hundred(&mut bed.small)),
            (FEW_OF_MANY, &|bed: &mut Bed| hundred(&mut bed.large)),
            (MANY, &|bed: &mut Bed| thousand(&mut bed.large)),
        ],
    )?;
    let rate = |case, target| {
        let indent = if matches!(target, Target::None) { "  " } else { "" };
        let what = format!("{indent}ext_select, {case} / {FEW}");
        Line::rates(2, &what, taken.of(case), taken.of(FEW), target)
    };
    let mut lines = vec![rate(MANY, Target::AtLeast(0.95)), rate(FEW_OF_MANY, Target::None)];
    lines.push(first_decision(&bed.large, rounds)?);
    lines.extend(memory(&bed.large)?);
    Ok(lines)
}

/// New sessions, each with one decision for an extension that nobody has used before, beside new sessions with `select 1`.
fn first_decision(database: &Database, rounds: usize) -> Result<Line, Failure> {
    database.check_tracked()?;
    let (mut decision, mut one) = (Vec::new(), Vec::new());
    let mut next = IN_USE;
    let begin = Snapshot::take();
    for _ in 0..rounds {
        let (mut decisions, mut ones) = (Vec::new(), Vec::new());
        for _ in 0..SESSIONS {
            next += 1;
            let took = in_new_session(
                database,
                "select allowed::int from ext_select($1, $2)",
                &[&next.to_string(), CONTEXT],
            )?;
            decisions.push(took.as_secs_f64() * 1e3);
            ones.push(in_new_session(database, "select 1", &[])?.as_secs_f64() * 1e3);
        }
        decision.push(median(decisions));
        one.push(median(ones));
    }
    let foreign = begin.until(&Snapshot::take(), &[]).foreign;
    database.check_tracked()?;
    Ok(Line::compared(
        2,
        "a session's first decision, beside its first select 1",
        Unit::Ms,
        Compare::Alone,
        &decision,
        &one,
        Target::AtMost(5.0),
    )
    .disturbed_by(foreign))
}

/// How long a session's first statement, which answers 1, takes: parse, plan, run; the connection is there already.
fn in_new_session(database: &Database, statement: &str, parameters: &[&str]) -> Result<Duration, Failure> {
    let mut client = Client::connect(database)?;
    let start = Instant::now();
    let mut answer = 0.0;
    client.query(statement, parameters, |row| answer = row.number(0).unwrap_or_default())?;
    let took = start.elapsed();
    if answer < 1.0 {
        return Err(format!("{statement}: refused").into());
    }
    Ok(took)
}

/// RssAnon of one session: new, after 1,000 extensions, and at its most while it uses all of them. For the last there are not
/// enough targets; what a session keeps is the same with and without them.
fn memory(database: &Database) -> Result<Vec<Line>, Failure> {
    const STEP: u32 = 1000;
    let mut client = Client::connect(database)?;
    client.query("select 1", &[], |_| ())?;
    let backend = client.backend();
    let now = || own_memory(backend).ok_or("/proc tells nothing of a session");
    let new = now()?;
    let (mut in_use, mut most) = (0.0, new);
    client.prepare(
        "use",
        "select count(*) filter (where d.allowed)
         from generate_series($1::integer, $2::integer) n cross join generate_series(1, 4)
         cross join lateral ext_select(n::text, $3::jsonb) d",
    )?;
    for first in (1..=LARGE).step_by(STEP as usize) {
        let parameters = [first.to_string(), (first + STEP - 1).to_string(), CONTEXT.to_owned()];
        let parameters: Vec<&[u8]> = parameters.iter().map(String::as_bytes).collect();
        let mut allowed = 0.0;
        client.run(&client::Request::new("use", client::Format::Text, &parameters), |row| {
            allowed = row.number(0).unwrap_or_default();
        })?;
        if allowed < f64::from(4 * STEP) {
            return Err(format!("only {allowed} of {} decisions were allowed", 4 * STEP).into());
        }
        most = now()?.max(most);
        if first == 1 {
            database.check_tracked()?;
            in_use = most;
        }
    }
    let line = |what: &str, value: f64| {
        let what = format!("a session's memory, {what}, beside a new one's");
        Line::compared(
            2,
            &what,
            Unit::MiB,
            Compare::Alone,
            &[value],
            &[new],
            Target::AtMost(64.0),
        )
    };
    Ok(vec![
        line("1,000 extensions used", in_use),
        line("100,000 in turn, at most", most),
    ])
}
