//! Calls queued in SQL (`ext_invoke`): taken up by a lease, made as if they had come by NATS, their results written back.
//!
//! Promises: a call is made at least once, while it is in the table. Whoever takes it up has it for longer than a call may
//! take; if he is gone by then, another takes it over, and what the first one would still write is refused. What was never
//! sent, because this bridge is busy, ending, or without its registry, is given back rather than failed. One connection of
//! its own, which also listens for new calls; it looks by itself once a second.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use super::event_loop::Control;
use super::reload::Live;
use crate::config::Source;
use crate::machine::codes::{Code, Failure};
use crate::machine::json::Members;
use crate::machine::limits::check_jsonb;
use crate::machine::request::Asked;
use crate::machine::{InsideAnswer, InsideRequest};
use crate::metrics::Metrics;
use crate::pg::{Databases, Direct, Fault, PgError, RawJsonb, describe, fault};

/// Most calls under way; those of NATS have the rest of the bridge.
const MOST: usize = 64;
/// Most calls taken up at once.
const BATCH: usize = 32;
/// How often to look without being told.
const LOOK: Duration = Duration::from_secs(1);
/// How long nobody takes up again what was given back, in seconds.
const PAUSE_SECONDS: f64 = 0.5;
/// How long a lease lasts beyond the longest call: time to write the result.
const SPARE: Duration = Duration::from_secs(5);
/// The longest wait for Postgres.
const PATIENCE: Duration = Duration::from_secs(10);

/// The running queue of a process.
pub struct Queue {
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl Queue {
    /// Begins to take up calls for the loops. Without Postgres there are none.
    pub fn start(
        live: Live,
        databases: Databases,
        source: Source,
        loops: Vec<mpsc::UnboundedSender<Control>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let worker = Worker {
            live,
            databases,
            name: uuid::Uuid::new_v4().to_string(),
            loops,
            next_loop: 0,
            metrics,
            stopped,
            calls: FuturesUnordered::new(),
            ended: Vec::new(),
        };
        let task = (source != Source::Fixtures).then(|| tokio::spawn(worker.run()));
        Self { stop, task }
    }

    /// From now on no call is taken up.
    pub fn stop(&self) {
        let _ = self.stop.send(true); // the task may have ended
    }

    /// Waits until the results of what was under way are written, or cannot be.
    pub async fn ended(self) {
        let Some(task) = self.task else { return };
        if tokio::time::timeout(PATIENCE, task).await.is_err() {
            tracing::warn!("results of queued calls are not written; others make these calls again");
        }
    }
}

/// A call that this bridge has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Taken {
    id: i64,
    attempt: i32,
}

/// What is to be written of a call.
#[derive(Debug, Clone, PartialEq)]
enum End {
    Done(Bytes),
    Failed(Bytes),
    Back,
}

type Call = Pin<Box<dyn Future<Output = (Taken, End)> + Send>>;

struct Link {
    direct: Direct,
    name: String,
    metrics: Arc<Metrics>,
    claim: Statement,
    finish: Statement,
    give_back: Statement,
}

struct Worker {
    live: Live,
    databases: Databases,
    name: String,
    loops: Vec<mpsc::UnboundedSender<Control>>,
    next_loop: usize,
    metrics: Arc<Metrics>,
    stopped: watch::Receiver<bool>,
    calls: FuturesUnordered<Call>,
    /// What is not written yet.
    ended: Vec<(Taken, End)>,
}

impl Worker {
    async fn run(mut self) {
        let mut failures = 0_u32;
        loop {
            match self.serve(&mut failures).await {
                Ok(()) => return,
                // The settings have changed; what has ended is written by the next connection.
                Err(PgError::Outdated) => continue,
                Err(error) if failures == 0 => tracing::warn!(%error, "queued calls cannot be taken up"),
                Err(error) => tracing::debug!(%error, "queued calls cannot be taken up"),
            }
            if self.idle_at_end() {
                return;
            }
            failures += 1;
            let full = 100_u64 << failures.min(8);
            tokio::time::sleep(Duration::from_millis(full / 2 + fastrand::u64(0..=full / 2))).await;
        }
    }

    fn idle_at_end(&self) -> bool {
        *self.stopped.borrow() && self.calls.is_empty() && self.ended.is_empty()
    }

    /// On one connection, until the end or an error.
    async fn serve(&mut self, failures: &mut u32) -> Result<(), PgError> {
        let link = in_time(self.open()).await?;
        let mut stopped = self.stopped.clone();
        let mut look_at = Instant::now();
        loop {
            self.write(&link).await?;
            if self.idle_at_end() {
                return Ok(());
            }
            if link.direct.is_outdated(&self.databases) {
                return Err(PgError::Outdated);
            }
            let most = self.most();
            let room = most.saturating_sub(self.calls.len()).min(BATCH);
            if !*self.stopped.borrow() && room > 0 && Instant::now() >= look_at {
                let taken = self.claim(&link, room).await?;
                if *failures > 0 {
                    tracing::info!("queued calls are taken up");
                }
                *failures = 0;
                // Where there were as many as were asked for, there may be more.
                look_at = Instant::now() + if taken < room { LOOK } else { Duration::ZERO };
            }
            let waits = *self.stopped.borrow() || self.calls.len() >= most;
            tokio::select! {
                Some(ended) = self.calls.next(), if !self.calls.is_empty() => {
                    self.ended.push(ended);
                    while let Some(Some(ended)) = self.calls.next().now_or_never() {
                        self.ended.push(ended);
                    }
                }
                () = link.direct.notified.notified() => look_at = Instant::now(),
                () = tokio::time::sleep_until(look_at), if !waits => {}
                Ok(()) = stopped.changed() => {}
            }
        }
    }

    /// Most calls under way, as the settings are now.
    fn most(&self) -> usize {
        MOST.min(self.live.borrow().machine.max_in_flight)
    }

    async fn open(&mut self) -> Result<Link, PgError> {
        let direct = Direct::open(&self.databases).await?;
        let client = &direct.client;
        client.batch_execute("listen ext_registry_invocations").await?;
        let claim = client
            .prepare(&direct.sql(include_str!("../queries/claim.sql")))
            .await?;
        let finish = client
            .prepare(&direct.sql(include_str!("../queries/finish.sql")))
            .await?;
        let give_back = client
            .prepare(&direct.sql(include_str!("../queries/give_back.sql")))
            .await?;
        Ok(Link {
            name: self.name.clone(),
            metrics: Arc::clone(&self.metrics),
            claim,
            finish,
            give_back,
            direct,
        })
    }

    /// Takes up calls and hands them to the loops; says how many.
    async fn claim(&mut self, link: &Link, most: usize) -> Result<usize, PgError> {
        let longest = {
            let machine = &self.live.borrow().machine;
            Duration::from_micros(machine.max_call_us + machine.decide_timeout_us)
        };
        let lease = (longest + SPARE).as_secs_f64();
        let params: [&(dyn ToSql + Sync); 3] = [&link.name, &lease, &(most as i64)];
        let rows = in_time(async { Ok(link.direct.client.query(&link.claim, &params).await?) }).await?;
        for row in &rows {
            let taken = Taken {
                id: row.try_get(0)?,
                attempt: row.try_get(1)?,
            };
            let (payload, context): (RawJsonb, RawJsonb) = (row.try_get(3)?, row.try_get(4)?);
            let request = InsideRequest {
                asked: Asked::Invoke,
                extension_id: row.try_get(2)?,
                body: body(&payload.0, &context.0),
            };
            let call = self.hand_over(taken, request);
            self.calls.push(call);
        }
        Ok(rows.len())
    }

    fn hand_over(&mut self, taken: Taken, request: InsideRequest) -> Call {
        let (tell, told) = oneshot::channel();
        self.next_loop = (self.next_loop + 1) % self.loops.len().max(1);
        if let Some(handle) = self.loops.get(self.next_loop) {
            let _ = handle.send(Control::Inside(request, tell)); // a loop that has ended answers nothing
        }
        Box::pin(async move { (taken, told.await.map_or(End::Back, end_of)) })
    }

    /// Writes what has ended. After an error of the connection it is kept for the next one.
    async fn write(&mut self, link: &Link) -> Result<(), PgError> {
        if self.ended.is_empty() {
            return Ok(());
        }
        match link.write(&self.ended).await {
            Err(PgError::Postgres(error)) if fault(&error) == Fault::Data => {
                // One of them is to blame. A result that Postgres does not take is a failure.
                while let Some((taken, end)) = self.ended.pop() {
                    let one = [(taken, end)];
                    match link.write(&one).await {
                        Ok(()) => {}
                        Err(PgError::Postgres(error)) if fault(&error) == Fault::Data => {
                            let why = describe(&error);
                            link.write(&[(taken, unstorable(&why))]).await?;
                        }
                        Err(error) => {
                            self.ended.extend(one);
                            return Err(error);
                        }
                    }
                }
                Ok(())
            }
            Ok(()) => {
                self.ended.clear();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

impl Link {
    /// Writes a batch, or nothing of it.
    async fn write(&self, ended: &[(Taken, End)]) -> Result<(), PgError> {
        let (mut ids, mut attempts, mut results, mut errors) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut back_ids, mut back_attempts) = (Vec::new(), Vec::new());
        let mut failed = 0;
        for (taken, end) in ended {
            let (result, error) = match end {
                End::Done(body) => (Some(RawJsonb(body.clone())), None),
                End::Failed(body) => {
                    failed += 1;
                    (None, Some(RawJsonb(body.clone())))
                }
                End::Back => {
                    back_ids.push(taken.id);
                    back_attempts.push(taken.attempt);
                    continue;
                }
            };
            ids.push(taken.id);
            attempts.push(taken.attempt);
            results.push(result);
            errors.push(error);
        }
        let client = &self.direct.client;
        let count = |state: &str, n: u64| self.metrics.queued.with_label_values(&[state]).inc_by(n);
        if !ids.is_empty() {
            let params: [&(dyn ToSql + Sync); 5] = [&self.name, &ids, &attempts, &results, &errors];
            let written = in_time(async { Ok(client.execute(&self.finish, &params).await?) }).await?;
            count("failed", failed);
            count("done", ids.len() as u64 - failed);
            count("lost", (ids.len() as u64).saturating_sub(written));
        }
        if !back_ids.is_empty() {
            let params: [&(dyn ToSql + Sync); 4] = [&self.name, &back_ids, &back_attempts, &PAUSE_SECONDS];
            in_time(async { Ok(client.execute(&self.give_back, &params).await?) }).await?;
            count("given_back", back_ids.len() as u64);
        }
        Ok(())
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, PgError>>) -> Result<T, PgError> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or(Err(PgError::TimedOut))
}

/// The request as it would come by NATS. What names the call in its context names it here, too; numbers stay as written.
fn body(payload: &Bytes, context: &Bytes) -> Bytes {
    let mut request = Members::default();
    request.set("payload", payload.clone());
    request.set("context", context.clone());
    let named = Members::of(context);
    for key in ["tenant_id", "policy_id", "trace_id", "request_id"] {
        if let Some(value) = named.get(key).filter(|value| value.starts_with(b"\"")) {
            request.set(key, value.clone());
        }
    }
    request.render()
}

fn end_of(answer: InsideAnswer) -> End {
    match answer {
        Ok(body) => match std::str::from_utf8(&body)
            .map_err(|_| "it is not UTF-8")
            .and_then(|_| check_jsonb(&body))
        {
            Ok(()) => End::Done(body),
            Err(why) => unstorable(why),
        },
        Err(failure) => {
            let busy = matches!(failure.code, Code::Overloaded | Code::RegistryUnavailable);
            if busy && !failure.details.contains_key("attempts") {
                End::Back
            } else {
                End::Failed(error_of(&failure))
            }
        }
    }
}

fn unstorable(why: &str) -> End {
    let failure = Failure::new(
        Code::ExtensionError,
        format!("the reply cannot be stored as jsonb: {why}"),
    );
    End::Failed(error_of(&failure.with("reason", "invalid_response")))
}

/// What callers on NATS find under `error`.
fn error_of(failure: &Failure) -> Bytes {
    failure.error().to_string().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_what_its_context_names() {
        let text = |payload: &str, context: &str| {
            let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
            String::from_utf8(body(&bytes(payload), &bytes(context)).to_vec()).unwrap()
        };
        assert_eq!(text(r#"{"n":1e400}"#, "{}"), r#"{"payload":{"n":1e400},"context":{}}"#);
        assert_eq!(
            text("{}", r#"{"tenant_id": "t", "request_id": 5, "a": 1e400}"#),
            r#"{"payload":{},"context":{"tenant_id": "t", "request_id": 5, "a": 1e400},"tenant_id":"t"}"#
        );
    }

    #[test]
    fn what_was_not_sent_is_given_back() {
        let busy = Failure::new(Code::Overloaded, "full");
        assert_eq!(end_of(Err(busy.clone())), End::Back);
        assert!(matches!(end_of(Err(busy.with("attempts", 1))), End::Failed(_)));
        let down = Failure::new(Code::RegistryUnavailable, "away");
        assert_eq!(end_of(Err(down)), End::Back);
        let End::Failed(error) = end_of(Err(Failure::new(Code::ExtensionTimeout, "slow"))) else {
            panic!("it failed")
        };
        let error: serde_json::Value = serde_json::from_slice(&error).unwrap();
        assert_eq!(
            error,
            serde_json::json!({"code": "extension_timeout", "message": "slow", "details": {}})
        );
    }

    #[test]
    fn what_jsonb_does_not_hold_is_a_failure() {
        let end = |text: &'static [u8]| end_of(Ok(Bytes::from_static(text)));
        assert!(matches!(end(br#"{"a":1}"#), End::Done(_)));
        for bad in [&br#"{"a":"\u0000"}"#[..], b"{\"a\":\"\xff\"}"] {
            assert!(matches!(end(bad), End::Failed(_)));
        }
    }
}
