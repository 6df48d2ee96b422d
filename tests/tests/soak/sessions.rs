//! Load by SQL: sessions that report and know what was acknowledged, and one that edits the registry.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

use crate::random::Random;
use crate::world::DATABASE;

/// A crash costs the counts of the last flush interval, one second; and it takes the worker its time to write them.
const BOUND: Duration = Duration::from_millis(1_500);

/// What sessions know of the extension `sql`.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Reports that were acknowledged.
    acknowledged: AtomicU64,
    /// Reports whose session ended before it heard: counted or not.
    unknown: AtomicU64,
    /// So many acknowledged ones may have been lost in crashes.
    lost: AtomicU64,
    recent: Mutex<VecDeque<Instant>>,
}

impl Ledger {
    fn note(&self) {
        self.acknowledged.fetch_add(1, Relaxed);
        let now = Instant::now();
        let mut recent = self.recent.lock().expect("no panic");
        recent.push_back(now);
        while recent.front().is_some_and(|at| *at + Duration::from_secs(30) < now) {
            recent.pop_front();
        }
    }

    /// Postgres has crashed, some time since `began`.
    pub fn crashed(&self, began: Instant) {
        let recent = self.recent.lock().expect("no panic");
        let lost = recent.iter().filter(|at| **at + BOUND > began).count();
        self.lost.fetch_add(lost as u64, Relaxed);
    }

    /// Reports that were acknowledged.
    pub fn acknowledged(&self) -> i64 {
        self.acknowledged.load(Relaxed) as i64
    }

    /// The least and the most that Postgres may have counted.
    pub fn bounds(&self) -> (i64, i64) {
        let [acknowledged, unknown, lost] =
            [&self.acknowledged, &self.unknown, &self.lost].map(|count| count.load(Relaxed) as i64);
        (acknowledged - lost, acknowledged + unknown)
    }
}

/// Connects as often as it takes.
async fn connect(port: u16, over: &AtomicBool) -> Option<Client> {
    while !over.load(Relaxed) {
        let connected = tokio_postgres::Config::new()
            .host("127.0.0.1")
            .port(port)
            .user("postgres")
            .dbname(DATABASE)
            .connect(NoTls)
            .await;
        if let Ok((client, connection)) = connected {
            tokio::spawn(async move {
                let _ = connection.await; // the client is told
            });
            return Some(client);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}

/// Decides and reports, again and again.
pub async fn report(port: u16, ledger: Arc<Ledger>, over: Arc<AtomicBool>) {
    while let Some(client) = connect(port, &over).await {
        while !over.load(Relaxed) {
            let sql = "select ext_report(ticket, 'success', 3) from ext_select('sql')";
            match client.batch_execute(sql).await {
                Ok(()) => ledger.note(),
                Err(error) => {
                    ledger.unknown.fetch_add(1, Relaxed);
                    // The session has been ended, or everything has; nothing else may fail a report.
                    if let Some(error) = error.as_db_error() {
                        assert!(error.code().code().starts_with("57P"), "{error:?}");
                    }
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Changes that take nobody's service away.
const EDITS: [&str; 8] = [
    "update extension_instances set weight = 1 + (weight + 37) % 100 where extension_id = 'steady'",
    "insert into extension_instances (extension_id, instance_id, subject) values ('steady', 'c', 'soak.steady') on conflict do nothing",
    "delete from extension_instances where instance_id = 'c'",
    "update extension_versions set rollout_percent = 100 - rollout_percent where id = 'steady' and version = 'v2'",
    "insert into extensions (id, type, subject) values ('edited', 'post', 'soak.edited') on conflict do nothing; select ext_report('edited', 'error', 1)",
    "delete from extensions where id = 'edited'",
    "update extensions set config = jsonb_build_object('at', clock_timestamp()) where id = 'flaky'",
    "select ext_reload(); vacuum extension_target_state",
];

/// Edits the registry, again and again.
pub async fn edit(port: u16, seed: u64, over: Arc<AtomicBool>) {
    let mut random = Random::new(seed);
    while let Some(client) = connect(port, &over).await {
        while !over.load(Relaxed) {
            for statement in EDITS[random.below(EDITS.len() as u64) as usize].split("; ") {
                if let Err(error) = client.batch_execute(statement).await
                    && let Some(error) = error.as_db_error()
                {
                    assert!(error.code().code().starts_with("57P"), "{statement}: {error:?}");
                }
            }
            if client.is_closed() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
