//! Looking at services: health checks of instances ([`probe`]) and registration of services that speak NATS micro
//! ([`discover`]). Both are off unless asked for.
//!
//! One task with one connection to Postgres and one to NATS. Of all bridges on a database one does each of the two, the one
//! that holds its advisory lock. A round reads the registry, asks, and writes what has changed in one or two statements.
//!
//! Promises: what did not answer is held against it only when the way to NATS was good for the whole round
//! ([`line::Line::held`]), and not soon after a connection was made, when services may not be back yet. No answer of a
//! service, however long, many or malformed, stops a round or takes more than a bounded share of memory.

mod discover;
mod line;
mod probe;
mod roll_call;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use tokio::time::Instant;

use super::leader::{End, Lead, key_of};
use crate::config::{Settings, Source};
use crate::metrics::Metrics;
use crate::pg::{Databases, Direct, PgError};
use crate::serve::reload::Live;
use crate::transport::TransportError;
use discover::Discovery;
use line::Line;
use probe::Prober;
use roll_call::RollCall;

/// The longest wait for Postgres.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum HealthError {
    #[error(transparent)]
    Postgres(#[from] PgError),
    #[error(transparent)]
    Nats(#[from] TransportError),
}

impl From<tokio_postgres::Error> for HealthError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(PgError::Postgres(error))
    }
}

/// One of the two things done here: how often, and whether by this bridge.
struct Duty {
    what: &'static str,
    lead: Lead,
    leads: bool,
    every: Duration,
    at: Instant,
}

impl Duty {
    fn new(what: &'static str, every: Duration) -> Self {
        Self {
            what,
            lead: Lead::new(key_of(what)),
            leads: false,
            every,
            at: Instant::now(),
        }
    }

    /// Whether it is to be done now, by this bridge. What is nearly due goes along with the other one.
    async fn is_due(&mut self, direct: &Direct) -> Result<bool, HealthError> {
        let now = Instant::now();
        if self.at > now + self.every / 4 {
            return Ok(false);
        }
        self.at = now + self.every.mul_f64(0.9 + 0.2 * fastrand::f64());
        let leads = in_time(async { Ok(self.lead.try_to(&direct.client).await?) }).await?;
        if leads && !self.leads {
            tracing::info!("this bridge does the {}", self.what);
        }
        self.leads = leads;
        Ok(leads)
    }
}

/// What is remembered from one connection to Postgres to the next.
struct Memory {
    prober: Option<Prober>,
    discovery: Option<Discovery>,
    line: Option<Line>,
}

/// Looks at services while this bridge leads, for as long as the process runs.
pub async fn serve(live: Live, databases: Databases, metrics: Arc<Metrics>) {
    let settings = Arc::clone(&live.borrow());
    if settings.probe_interval.is_none() && settings.discover.is_none() {
        return;
    }
    if settings.source == Source::Fixtures {
        tracing::warn!("--probe-interval and --discover do nothing with source fixtures: they write into Postgres");
        return;
    }
    let mut memory = Memory {
        prober: settings.probe_interval.map(|_| Prober::new(Arc::clone(&metrics))),
        discovery: settings.discover.map(|_| Discovery::new(metrics)),
        line: None,
    };
    let mut failures = 0_u32;
    loop {
        let ended = follow_and_lead(&live, &databases, &mut memory, &mut failures).await;
        // The settings may name another server by now.
        memory.line = None;
        let error = match ended {
            Ok(End::Standby) => "the database is a standby".to_owned(),
            Ok(End::Moved) => continue,
            Err(error) => error.to_string(),
        };
        if failures == 0 {
            tracing::warn!(error, "services cannot be looked at");
        } else {
            tracing::debug!(error, "services cannot be looked at");
        }
        failures += 1;
        let full = 100_u64 << failures.min(7);
        tokio::time::sleep(Duration::from_millis(full / 2 + fastrand::u64(0..=full / 2))).await;
    }
}

/// On one connection, until an error.
async fn follow_and_lead(
    live: &Live,
    databases: &Databases,
    memory: &mut Memory,
    failures: &mut u32,
) -> Result<End, HealthError> {
    let settings = Arc::clone(&live.borrow());
    let direct = Direct::open(databases).await?;
    let standby = in_time(async {
        let sql = "select pg_catalog.pg_is_in_recovery()";
        Ok(direct.client.query_one(sql, &[]).await?.try_get(0)?)
    });
    if standby.await? {
        return Ok(End::Standby);
    }
    // Another may have led meanwhile.
    if let Some(prober) = &mut memory.prober {
        prober.forgive();
    }
    if let Some(discovery) = &mut memory.discovery {
        discovery.forgive();
    }
    let mut probes = settings.probe_interval.map(|every| Duty::new("health checks", every));
    let mut discovery = settings.discover.map(|every| Duty::new("discovery of services", every));
    loop {
        if direct.is_outdated(databases) || live.borrow().nats != settings.nats {
            return Ok(End::Moved);
        }
        let probing = match &mut probes {
            Some(duty) => duty.is_due(&direct).await?,
            None => false,
        };
        let discovering = match &mut discovery {
            Some(duty) => duty.is_due(&direct).await?,
            None => false,
        };
        if probing || discovering {
            let every = settings.probe_interval.into_iter().chain(settings.discover).min();
            round(
                &settings,
                memory,
                &direct,
                (probing, discovering),
                every.unwrap_or(PATIENCE),
            )
            .await?;
        }
        if *failures > 0 {
            tracing::info!("services are looked at");
        }
        *failures = 0;
        let next = [&probes, &discovery].into_iter().flatten().map(|duty| duty.at).min();
        tokio::time::sleep_until(next.unwrap_or_else(|| Instant::now() + PATIENCE)).await;
    }
}

/// Reads, asks, writes.
async fn round(
    settings: &Settings,
    memory: &mut Memory,
    direct: &Direct,
    (probing, discovering): (bool, bool),
    every: Duration,
) -> Result<(), HealthError> {
    let line = match &mut memory.line {
        Some(line) => line,
        none => none.insert(Line::open(&settings.nats).await?),
    };
    let prober = memory.prober.as_mut().filter(|_| probing);
    let discovery = memory.discovery.as_mut().filter(|_| discovering);
    let instances = match prober {
        Some(_) => in_time(probe::read(direct)).await?,
        None => Vec::new(),
    };
    let registered = match discovery {
        Some(_) => Some(in_time(discover::read(direct)).await?),
        None => None,
    };

    // How long an answer may take.
    let window = (every / 2).clamp(Duration::from_millis(500), Duration::from_secs(2));
    let watch = line.watch(every);
    let calls = discovery.is_some() || instances.iter().any(probe::Instance::speaks_micro);
    let roll_call = async {
        if calls {
            RollCall::take(&line.client, window).await
        } else {
            RollCall::default()
        }
    };
    let (roll_call, answers) = join(roll_call, probe::ask(line, &instances, window)).await;
    let held = line.held(&watch).await && !roll_call.cut_short;

    if let Some(prober) = prober {
        let verdicts = prober.judge(&instances, &answers, &roll_call, held);
        in_time(prober.write(direct, &verdicts)).await?;
    }
    if let (Some(discovery), Some(registered)) = (discovery, registered) {
        let plan = discovery.plan(&registered, &roll_call, held);
        in_time(discovery.write(direct, &plan)).await?;
    }
    Ok(())
}

async fn in_time<T>(work: impl Future<Output = Result<T, HealthError>>) -> Result<T, HealthError> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or(Err(HealthError::Postgres(PgError::TimedOut)))
}
