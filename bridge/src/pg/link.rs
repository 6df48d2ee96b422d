//! A link: the connection of a role, kept up by a task of its own.
//!
//! Promises: a connection that is lost is made again, with growing, jittered waits. Where the settings change, a new connection
//! is made before the old one goes, so that no call fails for it, and one link of the process moves at a time; what was asked
//! on the old one is still answered there. Settings that do not let in change nothing while the old connection stands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::{Conn, Databases, Link, PgError, Role, open};
use crate::metrics::Metrics;

/// What was asked on a connection that has been replaced may take so long; longer than any statement timeout.
const LAST_ANSWERS: Duration = Duration::from_secs(15);

/// A connection that ends sooner than that was of no use.
const SHORT: Duration = Duration::from_secs(1);

/// Links move to new settings one after another.
static MOVING: Semaphore = Semaphore::const_new(1);

/// Keeps a connection up. `changed` is called when it comes and when it goes.
pub fn link(databases: Databases, role: Role, metrics: Arc<Metrics>, changed: impl Fn() + Send + 'static) -> Link {
    let (sender, receiver) = watch::channel(None);
    let keeper = Keeper {
        databases,
        role,
        metrics,
        sender,
        changed,
    };
    tokio::spawn(keeper.run());
    receiver
}

struct Keeper<F> {
    databases: Databases,
    role: Role,
    metrics: Arc<Metrics>,
    sender: watch::Sender<Option<Arc<Conn>>>,
    changed: F,
}

type Opened = (Arc<Conn>, JoinHandle<()>);

impl<F: Fn() + Send + 'static> Keeper<F> {
    async fn run(mut self) {
        let mut failures = 0_u32;
        loop {
            match self.open().await {
                Ok(opened) => {
                    if failures > 0 {
                        tracing::info!(role = self.role.as_str(), "Postgres connected");
                    }
                    let began = Instant::now();
                    self.metrics.postgres_connected.inc();
                    if !self.show(Some(&opened.0)) {
                        return;
                    }
                    self.keep(opened).await;
                    // One that is of no use is not made again and again without a wait.
                    failures = if began.elapsed() < SHORT { failures + 1 } else { 0 };
                    self.metrics.postgres_connected.dec();
                    self.metrics.reconnects.with_label_values(&["postgres"]).inc();
                    tracing::warn!(role = self.role.as_str(), "the connection to Postgres ended");
                    if !self.show(None) {
                        return;
                    }
                }
                Err(error) => {
                    self.complain(&error, failures);
                    failures += 1;
                }
            }
            if self.sender.is_closed() {
                return;
            }
            pause(failures).await;
        }
    }

    /// Until the connection ends, or the last one that took its place.
    async fn keep(&mut self, (mut conn, mut driver): Opened) {
        loop {
            tokio::select! {
                _ = &mut driver => return,
                () = conn.broken.notified() => {
                    driver.abort();
                    return;
                }
                new = self.replacement() => {
                    let Some((new, new_driver)) = new else {
                        // The settings do not change any more.
                        tokio::select! {
                            _ = &mut driver => {}
                            () = conn.broken.notified() => driver.abort(),
                        }
                        return;
                    };
                    let old = std::mem::replace(&mut driver, new_driver);
                    conn = new;
                    self.metrics.reconnects.with_label_values(&["postgres"]).inc();
                    tracing::info!(role = self.role.as_str(), "Postgres connected anew, as the settings say now");
                    self.show(Some(&conn)); // where nobody looks any more, the next loss ends the link
                    tokio::spawn(finish(old));
                }
            }
        }
    }

    /// A connection as the settings say, once they have changed; `None` where they no longer can.
    async fn replacement(&mut self) -> Option<Opened> {
        let mut failures = 0_u32;
        self.databases.changed().await.ok()?;
        loop {
            let opened = match MOVING.acquire().await {
                Ok(_permit) => self.open().await,
                Err(_) => return None,
            };
            match opened {
                Ok(opened) => return Some(opened),
                Err(error) => {
                    self.complain(&error, failures);
                    failures += 1;
                }
            }
            pause(failures + 4).await;
        }
    }

    async fn open(&mut self) -> Result<Opened, PgError> {
        let database = Arc::clone(&self.databases.borrow_and_update());
        let (conn, driver) = open(&database, self.role).await?;
        Ok((Arc::new(conn), driver))
    }

    fn show(&self, conn: Option<&Arc<Conn>>) -> bool {
        let seen = self.sender.send(conn.cloned()).is_ok();
        (self.changed)();
        seen
    }

    fn complain(&self, error: &PgError, failures: u32) {
        if failures.is_power_of_two() || failures == 0 {
            tracing::warn!(role = self.role.as_str(), %error, "no connection to Postgres");
        }
    }
}

/// Lets a connection end by itself: that is when the last of its answers has come.
async fn finish(mut driver: JoinHandle<()>) {
    if tokio::time::timeout(LAST_ANSWERS, &mut driver).await.is_err() {
        driver.abort();
    }
}

async fn pause(failures: u32) {
    let full = 20_u64 << failures.min(7);
    tokio::time::sleep(Duration::from_millis(full / 2 + fastrand::u64(0..=full / 2))).await;
}
