//! Percentiles of the registry beside exact ones, of the same latencies: really measured ones, of sessions that do different
//! things, in every mix of these sessions.

use std::time::{Duration, Instant};

use crate::Failure;
use crate::client::{Client, Format, Request};
use crate::database::Database;
use crate::figure::{Effort, Figure};
use crate::results::{Line, Target, Unit};

pub const FIGURE: Figure = Figure {
    number: 14,
    title: "percentiles / exact ones, real latencies, every mix of five sessions",
    measure,
};

/// What the sessions do, from microseconds to tens of milliseconds.
const STATEMENTS: [&str; 5] = [
    "select 1",
    "select * from ext_select('100', '{\"tenant_id\": \"t2\"}')",
    "select sum(n) from generate_series(1, (random() * 20000)::integer) n",
    "select pg_sleep(random() * random() * 0.05)",
    "update extension_instances set weight = 1 + (random() * 50)::integer where extension_id = '99' and instance_id = 'a'",
];
/// Mixes: the extension of this number hears of the sessions whose bits are set.
const MIXES: usize = (1 << STATEMENTS.len()) - 1;
/// Enough of one session.
const MOST: usize = 20_000;
const QUANTILES: [(&str, f64); 3] = [("p50", 0.50), ("p95", 0.95), ("p99", 0.99)];

fn measure(effort: &Effort) -> Result<Vec<Line>, Failure> {
    let database = Database::start(&[], 5000);
    let (shared, time) = (&database, Duration::from_secs(effort.seconds));
    let sessions: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = STATEMENTS
            .iter()
            .enumerate()
            .map(|(session, statement)| {
                scope.spawn(move || record(shared, session, statement, time).map_err(|failure| failure.to_string()))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("it does not panic"))
            .collect::<Result<_, _>>()
    })?;

    let mut client = Client::connect(&database)?;
    let mut errors = [const { Vec::new() }; 3];
    for mix in 1..=MIXES {
        let parts = sessions
            .iter()
            .enumerate()
            .filter(|(session, _)| mix >> session & 1 == 1);
        let mut exact: Vec<u64> = parts.flat_map(|(_, latencies)| latencies.iter().copied()).collect();
        exact.sort_unstable();
        let mut shown = [0.0; 4];
        client.query(
            "select latency_samples, p50_latency_ms, p95_latency_ms, p99_latency_ms
             from extension_health where extension_id = $1",
            &[&mix.to_string()],
            |row| shown = std::array::from_fn(|column| row.number(column).unwrap_or(f64::NAN)),
        )?;
        if shown[0] as usize != exact.len() {
            return Err(format!("{} latencies were reported, {} are counted", exact.len(), shown[0]).into());
        }
        for ((errors, shown), (_, quantile)) in errors.iter_mut().zip(&shown[1..]).zip(QUANTILES) {
            // Of rank ceil(q n), as it is defined there.
            let rank = ((quantile * exact.len() as f64).ceil() as usize).max(1);
            let exact_ms = exact[rank - 1] as f64 / 1e3;
            errors.push(100.0 * (shown / exact_ms - 1.0).abs());
        }
    }
    Ok(errors
        .iter()
        .zip(QUANTILES)
        .map(|(errors, (name, _))| {
            let worst = errors.iter().copied().fold(0.0, f64::max);
            let what = format!("{name} off the exact one, worst of {MIXES} mixes");
            Line::alone(14, &what, Unit::Percent, &[worst], Target::AtMost(1.0))
        })
        .collect())
}

/// Repeats a statement, and reports how long it took each time, in whole microseconds, to every mix of this session.
fn record(database: &Database, session: usize, statement: &str, time: Duration) -> Result<Vec<u64>, Failure> {
    let mut client = Client::connect(database)?;
    client.prepare("work", statement)?;
    let work = Request::new("work", Format::Text, &[]);
    let start = Instant::now();
    let mut latencies = Vec::new();
    while start.elapsed() < time && latencies.len() < MOST {
        latencies.push(client.time(&work)?.as_micros().max(1) as u64);
    }
    client.prepare(
        "report",
        "select count(ext_report($1, 'success', us / 1000.0)) from unnest($2::float8[]) us",
    )?;
    let list: Vec<String> = latencies.iter().map(u64::to_string).collect();
    let list = format!("{{{}}}", list.join(","));
    for mix in (1..=MIXES).filter(|mix| mix >> session & 1 == 1) {
        let request = Request::new("report", Format::Text, &[mix.to_string().as_bytes(), list.as_bytes()]);
        client.run(&request, |_| ())?;
    }
    Ok(latencies)
}
