//! Somebody who keeps a number of calls in flight. Prints a line when it starts to measure, one when it has, and then what
//! came of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_nats::{Client, Subject};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::{REPLY, REQUEST, ROUTE, ROUTED};
use crate::Failure;
use crate::database::EXTENSIONS;

/// Connections, caches and images warm up.
const WARM_UP: Duration = Duration::from_millis(500);

/// The lines before the result.
pub const BEGIN: &str = "begin";
pub const END: &str = "end";

/// What came of it.
#[derive(Debug, Deserialize, Serialize)]
pub struct Outcome {
    /// Calls made in all.
    pub calls: u64,
    /// Those of them that were not answered, or not as the service answers.
    pub errors: u64,
    /// Calls that ended while it measured, per second.
    pub per_second: f64,
    /// Quantiles of their latency.
    pub p50_us: f64,
    pub p99_us: f64,
}

/// What one call is.
pub struct What {
    /// Where to, in turn.
    subjects: Vec<Subject>,
    /// So many requests, one after the other.
    steps: usize,
    body: &'static str,
    pipeline: bool,
}

impl What {
    /// Invocations of the extensions by `subject` and their id, or the pipeline at `subject`.
    pub fn new(subject: &str, steps: usize, pipeline: bool) -> Self {
        let (subjects, body) = if pipeline {
            (vec![subject.into()], ROUTE)
        } else {
            let subjects = (1..=EXTENSIONS).map(|id| format!("{subject}{id}").into());
            (subjects.collect(), REQUEST)
        };
        Self {
            subjects,
            steps,
            body,
            pipeline,
        }
    }

    fn is_good(&self, answer: &[u8]) -> bool {
        if self.pipeline {
            answer.starts_with(ROUTED.as_bytes())
        } else {
            answer == REPLY.as_bytes()
        }
    }
}

/// Keeps so many calls in flight for so long.
pub async fn run(client: Client, what: What, in_flight: usize, seconds: u64) -> Result<(), Failure> {
    let what = Arc::new(what);
    let turn = Arc::new(AtomicUsize::new(0));
    let from = Instant::now() + WARM_UP;
    let until = from + Duration::from_secs(seconds);

    let mut callers = JoinSet::new();
    for _ in 0..in_flight {
        callers.spawn(caller(
            client.clone(),
            Arc::clone(&what),
            Arc::clone(&turn),
            from,
            until,
        ));
    }
    sleep_until(from).await;
    println!("{BEGIN}");
    sleep_until(until).await;
    println!("{END}");

    let (mut calls, mut errors, mut latencies) = (0, 0, Vec::new());
    while let Some(done) = callers.join_next().await {
        let done = done?;
        calls += done.calls;
        errors += done.errors;
        latencies.extend(done.latencies_us);
    }
    if latencies.is_empty() {
        return Err(format!("no call to {} ended within {seconds} s", what.subjects[0]).into());
    }
    latencies.sort_by(f64::total_cmp);
    let quantile = |q: f64| latencies[((latencies.len() - 1) as f64 * q) as usize];
    let outcome = Outcome {
        calls,
        errors,
        per_second: latencies.len() as f64 / seconds as f64,
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

#[derive(Default)]
struct Tally {
    calls: u64,
    errors: u64,
    latencies_us: Vec<f64>,
}

/// One call after the other until it is time.
async fn caller(client: Client, what: Arc<What>, turn: Arc<AtomicUsize>, from: Instant, until: Instant) -> Tally {
    let mut done = Tally::default();
    loop {
        let sent = Instant::now();
        if sent >= until {
            return done;
        }
        let mut good = true;
        for _ in 0..what.steps {
            let subject = what.subjects[turn.fetch_add(1, Relaxed) % what.subjects.len()].clone();
            let reply = client.request(subject, what.body.into()).await;
            good &= reply.is_ok_and(|reply| what.is_good(&reply.payload));
        }
        done.calls += 1;
        done.errors += u64::from(!good);
        let ended = Instant::now();
        if ended >= from && ended < until {
            done.latencies_us.push((ended - sent).as_secs_f64() * 1e6);
        }
    }
}
