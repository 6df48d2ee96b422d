//! Outcomes that Postgres did not see, on their way back to it.
//!
//! Owns what calls came to that were decided elsewhere, or whose ticket was forgotten by a restart: counts and a histogram per
//! target and minute, merged as they come, so that memory grows with targets and minutes and not with calls.
//!
//! Promises: everything taken is counted by Postgres once. What is handed over is put into documents with this gatherer's name
//! and a number; Postgres counts a number once. A document is kept until Postgres says that its number is on disk, and sent
//! again, in order, on a new connection. Where too much has gathered, minutes become hours; where that is not enough, the
//! oldest is given up and counted as lost.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use ext_registry_core::hdr::Hdr;
use ext_registry_core::outcome::{CIRCUIT_OPEN, Outcome, RETRIES};
use serde_json::{Map, Value as Json, json};

use crate::machine::{Report, Target};
use crate::metrics::Metrics;
use crate::pg::{Conn, Fault, RawJsonb, describe, fault};

/// Entries kept at most, those in documents included.
const MOST: usize = 20_000;
/// Entries of one document.
const IN_ONE: usize = 1_000;
/// Minutes of an hour, which is what older minutes become.
const HOUR: u64 = 60;
/// Minutes that stay minutes.
const FRESH: u64 = 10;
/// Documents are formed this often at most, and the flush is asked for this often, in microseconds.
const PAUSE_US: u64 = 1_000_000;
/// After an error it is tried again after this time, in microseconds.
const AGAIN_US: u64 = 2_000_000;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    minute: u64,
    target: Target,
}

#[derive(Default)]
struct Sums {
    outcomes: [u64; RETRIES],
    retries: u64,
    latency: Hdr,
}

impl Sums {
    fn merge(&mut self, other: &Self) {
        for (sum, more) in self.outcomes.iter_mut().zip(other.outcomes) {
            *sum += more;
        }
        self.retries += other.retries;
        self.latency.merge(&other.latency);
    }

    fn count(&self) -> u64 {
        self.outcomes.iter().sum()
    }
}

struct Document {
    seq: i64,
    text: Bytes,
    entries: usize,
    outcomes: u64,
    /// On which connection Postgres said that it has taken it.
    taken_on: u64,
}

enum Asked {
    Merge(i64),
    Flushed,
}

struct Answered {
    asked: Asked,
    conn: Arc<Conn>,
    /// Of a document: merged and skipped. Of the flush: 0 and the number.
    result: Result<(i64, i64), tokio_postgres::Error>,
}

type Pending = Pin<Box<dyn Future<Output = Answered>>>;

/// See the module.
pub struct Gatherer {
    name: String,
    open: HashMap<Key, Sums>,
    documents: VecDeque<Document>,
    in_documents: usize,
    next_seq: i64,
    pending: Option<Pending>,
    asked_us: u64,
    /// Not before this time is anything formed or asked.
    rest_until_us: u64,
    complained: bool,
    /// Everything goes this way, not only what Postgres did not see.
    always: bool,
    metrics: Arc<Metrics>,
}

impl Gatherer {
    /// A gatherer with a name of its own. `always` says that everything goes this way: it is nothing to speak of then.
    pub fn new(always: bool, metrics: Arc<Metrics>) -> Self {
        Self {
            name: uuid::Uuid::new_v4().to_string(),
            open: HashMap::new(),
            documents: VecDeque::new(),
            in_documents: 0,
            next_seq: 1,
            pending: None,
            asked_us: 0,
            rest_until_us: 0,
            complained: false,
            always,
            metrics,
        }
    }

    /// Takes an outcome of a minute since 1970.
    pub fn add(&mut self, report: &Report, minute: u64) {
        let sums = self.sums(&report.target, minute);
        sums.outcomes[report.outcome as usize] += 1;
        sums.retries += u64::from(report.retries);
        if report.outcome.has_latency() {
            sums.latency.record_us(report.latency_us);
        }
        self.fit(minute);
    }

    /// Takes a refusal by an open breaker.
    pub fn refused(&mut self, target: &Target, minute: u64) {
        self.sums(target, minute).outcomes[CIRCUIT_OPEN] += 1;
        self.fit(minute);
    }

    fn sums(&mut self, target: &Target, minute: u64) -> &mut Sums {
        let key = Key {
            minute,
            target: target.clone(),
        };
        self.open.entry(key).or_default()
    }

    /// Outcomes not yet known to be on disk.
    pub fn outcomes(&self) -> u64 {
        let kept: u64 = self.documents.iter().map(|document| document.outcomes).sum();
        kept + self.open.values().map(Sums::count).sum::<u64>()
    }

    /// Whether Postgres has taken everything.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.documents.iter().all(|document| document.taken_on != 0)
    }

    /// Since when an answer has been waited for, in microseconds.
    pub fn unanswered_since(&self) -> Option<u64> {
        self.pending.as_ref().map(|_| self.asked_us)
    }

    /// Keeps the memory bounded.
    fn fit(&mut self, minute: u64) {
        if self.open.len() + self.in_documents <= MOST {
            return;
        }
        let mut coarse: HashMap<Key, Sums> = HashMap::with_capacity(self.open.len());
        for (mut key, sums) in self.open.drain() {
            if key.minute + FRESH < minute {
                key.minute -= key.minute % HOUR;
            }
            coarse.entry(key).or_default().merge(&sums);
        }
        self.open = coarse;
        // Room for more than one, so that this is not done for each.
        let most = (MOST - MOST / 10).saturating_sub(self.in_documents);
        if self.open.len() > most {
            let mut oldest: Vec<Key> = self.open.keys().cloned().collect();
            oldest.sort_unstable_by_key(|key| key.minute);
            oldest.truncate(self.open.len() - most);
            let lost = oldest.iter().filter_map(|key| self.open.remove(key));
            let lost = lost.map(|sums| sums.count()).sum();
            self.metrics.reports_lost.inc_by(lost);
        }
    }

    /// Puts everything open into documents.
    fn form(&mut self) {
        let mut entries: Vec<(Key, Sums)> = self.open.drain().collect();
        entries.sort_unstable_by_key(|(key, _)| key.minute);
        while !entries.is_empty() {
            let rest = entries.split_off(entries.len().min(IN_ONE));
            let targets: Vec<Json> = entries.iter().map(|(key, sums)| entry(key, sums)).collect();
            let text = json!({"reporter": self.name, "seq": self.next_seq, "targets": targets}).to_string();
            self.in_documents += entries.len();
            self.documents.push_back(Document {
                seq: self.next_seq,
                text: text.into(),
                entries: entries.len(),
                outcomes: entries.iter().map(|(_, sums)| sums.count()).sum(),
                taken_on: 0,
            });
            self.next_seq += 1;
            entries = rest;
        }
    }

    /// Hands over what there is, one document at a time. Returns whether something began. `now` is in microseconds.
    pub fn send(&mut self, conn: &Arc<Conn>, now: u64, hurry: bool) -> bool {
        if self.pending.is_some() || (now < self.rest_until_us && !hurry) {
            return false;
        }
        let Some(merge) = &conn.merge else {
            if !self.open.is_empty() && !std::mem::replace(&mut self.complained, true) {
                tracing::warn!("this version of the extension takes no outcomes that were gathered without it");
            }
            self.rest_until_us = now + AGAIN_US;
            return false;
        };
        let waiting = |document: &&Document| document.taken_on != conn.id;
        if !self.documents.iter().any(|document| waiting(&document)) && !self.open.is_empty() {
            self.form();
            self.rest_until_us = now + PAUSE_US;
        }
        if let Some(document) = self.documents.iter().find(waiting) {
            let (seq, text, merge, conn) = (document.seq, document.text.clone(), merge.clone(), Arc::clone(conn));
            self.asked_us = now;
            self.pending = Some(Box::pin(async move {
                let result = conn.client.query_one(&merge, &[&RawJsonb(text)]).await;
                let result = result.map(|row| (i64::from(row.get::<_, i32>(0)), i64::from(row.get::<_, i32>(1))));
                Answered {
                    asked: Asked::Merge(seq),
                    conn,
                    result,
                }
            }));
            return true;
        }
        if self.documents.is_empty() || now < self.rest_until_us {
            return false;
        }
        // All taken; what is on disk need not be kept.
        self.rest_until_us = now + PAUSE_US;
        self.asked_us = now;
        let (name, conn) = (self.name.clone(), Arc::clone(conn));
        self.pending = Some(Box::pin(async move {
            let (none, nothing, zero): ([i64; 0], [&str; 0], [f64; 0]) = ([], [], []);
            let retries: [i32; 0] = [];
            let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
                [&&none[..], &&nothing[..], &&zero[..], &&retries[..], &name, &0_i64];
            let result = conn.client.query_one(&conn.main, &parameters).await;
            Answered {
                asked: Asked::Flushed,
                result: result.map(|row| (0, row.get::<_, Option<i64>>(1).unwrap_or(0))),
                conn,
            }
        }));
        true
    }

    /// Takes an answer in. Ready when there was one.
    pub fn poll(&mut self, cx: &mut Context<'_>, now: u64) -> Poll<()> {
        let Some(pending) = &mut self.pending else {
            return Poll::Pending;
        };
        let Poll::Ready(answered) = pending.as_mut().poll(cx) else {
            return Poll::Pending;
        };
        self.pending = None;
        self.settle(answered, now);
        Poll::Ready(())
    }

    fn settle(&mut self, answered: Answered, now: u64) {
        match (answered.asked, answered.result) {
            (Asked::Merge(seq), Ok((merged, skipped))) => {
                if let Some(document) = self.documents.iter_mut().find(|document| document.seq == seq) {
                    document.taken_on = answered.conn.id;
                    let outcomes = document.outcomes;
                    if self.always {
                        tracing::debug!(outcomes, merged, skipped, "outcomes were handed over");
                    } else {
                        tracing::info!(
                            outcomes,
                            merged,
                            skipped,
                            "outcomes gathered without Postgres were handed over"
                        );
                    }
                }
            }
            (Asked::Flushed, Ok((_, flushed))) => {
                while self.documents.front().is_some_and(|document| document.seq <= flushed) {
                    self.drop_first();
                }
            }
            (Asked::Merge(seq), Err(error)) => {
                self.metrics.batch_failures.with_label_values(&["merge"]).inc();
                match fault(&error) {
                    Fault::Connection => {}
                    Fault::Data => {
                        tracing::error!(error = describe(&error), "gathered outcomes are refused");
                        if let Some(place) = self.documents.iter().position(|document| document.seq == seq)
                            && let Some(document) = self.documents.remove(place)
                        {
                            self.in_documents -= document.entries;
                            self.metrics.reports_lost.inc_by(document.outcomes);
                        }
                    }
                    Fault::Busy | Fault::Stale => self.complain(&error, now),
                }
            }
            (Asked::Flushed, Err(error)) => {
                if fault(&error) != Fault::Connection {
                    self.complain(&error, now);
                }
            }
        }
    }

    fn complain(&mut self, error: &tokio_postgres::Error, now: u64) {
        self.rest_until_us = now + AGAIN_US;
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(error = describe(error), "gathered outcomes cannot be handed over");
        }
    }

    fn drop_first(&mut self) {
        if let Some(document) = self.documents.pop_front() {
            self.in_documents -= document.entries;
        }
    }
}

fn entry(key: &Key, sums: &Sums) -> Json {
    let names = Outcome::ALL.iter().map(|outcome| outcome.as_str());
    let counts: Map<String, Json> = names
        .chain(["circuit_open"])
        .zip(sums.outcomes)
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| (name.to_owned(), count.into()))
        .collect();
    let mut entry = json!({
        "extension_id": &*key.target.extension_id, "at": key.minute * 60, "outcomes": counts, "retries": sums.retries,
    });
    if !key.target.version.is_empty() {
        entry["version"] = (&*key.target.version).into();
    }
    if let Some(instance) = &key.target.instance_id {
        entry["instance_id"] = Rc::as_ref(instance).into();
    }
    if !sums.latency.is_empty() {
        entry["latency"] = sums.latency.to_text().into();
    }
    entry
}

#[cfg(test)]
mod tests {
    use ext_registry_core::merge::Gathered;

    use super::*;

    fn target(id: &str) -> Target {
        Target {
            extension_id: Rc::from(id),
            version: Rc::from("v1"),
            instance_id: Some(Rc::from("a")),
        }
    }

    fn report(id: &str, outcome: Outcome) -> Report {
        Report {
            ticket: 0,
            outcome,
            latency_us: 1500,
            retries: 1,
            lapses_us: u64::MAX,
            local: true,
            target: target(id),
        }
    }

    #[test]
    fn a_document_is_what_postgres_reads() {
        let mut gatherer = Gatherer::new(false, Metrics::new(false));
        assert!(gatherer.is_empty());
        for _ in 0..3 {
            gatherer.add(&report("x", Outcome::Success), 7);
        }
        gatherer.add(&report("x", Outcome::NoResponders), 7);
        gatherer.refused(&target("x"), 8);
        assert_eq!(gatherer.outcomes(), 5);
        gatherer.form();
        assert!(!gatherer.is_empty(), "formed is not taken");
        let document: Json = serde_json::from_slice(&gatherer.documents[0].text).unwrap();
        let read = Gathered::parse(&document).unwrap();
        assert_eq!(read.reporter, Some((gatherer.name.clone(), 1)));
        let [first, second] = &read.targets[..] else {
            panic!("{document}")
        };
        assert_eq!((first.minute, second.minute), (7, 8));
        assert_eq!(first.outcomes, [3, 0, 0, 1, 0, 0, 0, 0, 4]);
        assert_eq!(first.latency.count(), 3, "no responders have no latency");
        assert_eq!(second.outcomes[CIRCUIT_OPEN], 1);
        assert_eq!(
            (first.version.as_deref(), first.instance_id.as_deref()),
            (Some("v1"), Some("a"))
        );
    }

    #[test]
    fn a_long_absence_needs_bounded_memory_and_loses_nothing() {
        let metrics = Metrics::new(false);
        let mut gatherer = Gatherer::new(false, Arc::clone(&metrics));
        // A week of ten targets: more minutes than are kept.
        let calls = 7 * 24 * 60;
        for minute in 0..calls {
            for id in 0..10 {
                gatherer.add(&report(&format!("x{id}"), Outcome::Success), minute);
            }
            assert!(gatherer.open.len() <= MOST);
        }
        assert_eq!(gatherer.outcomes(), calls * 10);
        assert_eq!(metrics.reports_lost.get(), 0);
    }

    #[test]
    fn too_many_targets_give_up_the_oldest_and_count_them() {
        let metrics = Metrics::new(false);
        let mut gatherer = Gatherer::new(false, Arc::clone(&metrics));
        let calls = MOST as u64 + 5_000;
        for n in 0..calls {
            gatherer.add(&report(&format!("x{n}"), Outcome::Success), n / 100);
        }
        assert!(gatherer.open.len() <= MOST);
        assert_eq!(gatherer.outcomes() + metrics.reports_lost.get(), calls);
    }
}
