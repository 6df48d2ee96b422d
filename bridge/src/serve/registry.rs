//! The registry as operators see it: the series that describe it, and the answers of admin operations.
//!
//! One connection of its own, used by nobody else. The bridge that holds an advisory lock shows the series, so that they
//! exist once however many bridges run. While Postgres does not answer each bridge shows its own view ([`super::views`]), if it
//! has one.
//!
//! Promises: a connection that is lost takes its series with it, since another bridge may show them by now; what only takes
//! long leaves them as they were for [`PATIENCE`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};
use tokio_postgres::Row;

use super::event_loop::{Control, Sources};
use super::leader::Lead;
use super::views::{self, Views};
use crate::config::{Settings, Source, registry_name};
use crate::image::Image;
use crate::machine::codes::Code;
use crate::machine::policies::PolicyKey;
use crate::metrics::Metrics;
use crate::pg::{self, Databases, Direct, PgError, describe};

/// Series are read again after this time.
const MAX_AGE: Duration = Duration::from_secs(1);
/// The whole registry is looked at this often.
const SYNC: Duration = Duration::from_mins(1);
/// The longest wait for Postgres. Older series are not shown.
const PATIENCE: Duration = Duration::from_secs(10);
/// The key of the advisory lock: `ext_brdg`.
const LOCK: i64 = 0x6578_745f_6272_6467;

struct Link {
    direct: Direct,
    lead: Lead,
}

#[derive(Default)]
struct Inner {
    link: Option<Link>,
    openings: Openings,
}

/// How far the openings of breakers are counted: not what was before the bridge started.
#[derive(Default)]
struct Openings {
    /// Which registry's.
    registry: String,
    /// Its last event that is counted.
    last: Option<i64>,
}

/// See the module.
pub struct Registry {
    databases: Databases,
    source: Source,
    metrics: Arc<Metrics>,
    inner: Mutex<Inner>,
    /// When the series were read; known also while somebody waits for Postgres.
    read_at: watch::Sender<Option<Instant>>,
    sources: Sources,
    loops: Vec<mpsc::UnboundedSender<Control>>,
    /// Told by Postgres of changes of the registry and moves of breakers; and when the connection has ended.
    changed: Arc<Notify>,
}

impl Registry {
    /// Over the database, or over fixtures.
    pub fn new(
        settings: &Settings,
        databases: Databases,
        sources: Sources,
        loops: Vec<mpsc::UnboundedSender<Control>>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let source = settings.source;
        let this = Arc::new(Self {
            databases,
            source,
            metrics,
            inner: Mutex::default(),
            read_at: watch::Sender::new(None),
            sources,
            loops,
            changed: Arc::default(),
        });
        if source == Source::Fixtures {
            this.show_fixtures();
        }
        this
    }

    /// Looks at the registry from time to time.
    pub async fn tend(self: Arc<Self>) {
        if self.source == Source::Fixtures {
            let mut fixtures = self.sources.fixtures.clone();
            while fixtures.changed().await.is_ok() {
                self.show_fixtures();
            }
            return;
        }
        let mut failures = 0_u32;
        loop {
            let synced = {
                let mut inner = self.inner.lock().await;
                self.sync(&mut inner).await
            };
            match synced {
                Ok(_) => {
                    failures = 0;
                    // However much changes.
                    tokio::time::sleep(MAX_AGE).await;
                    let mut databases = self.databases.clone();
                    tokio::select! {
                        () = tokio::time::sleep(SYNC) => {}
                        () = self.changed.notified() => {}
                        Ok(()) = databases.changed() => {}
                    }
                }
                Err(error) => {
                    if failures == 0 || failures.is_power_of_two() {
                        tracing::warn!(%error, "the registry cannot be read");
                    }
                    failures += 1;
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
            }
        }
    }

    /// Looks at the registry now, whatever is known of it. Waits five seconds at most. Fixtures that were read are looked at
    /// anyway.
    pub async fn reload(&self) -> Result<(), PgError> {
        if self.source == Source::Fixtures {
            return Ok(());
        }
        let work = async {
            let mut inner = self.inner.lock().await;
            self.sync(&mut inner).await
        };
        let synced = tokio::time::timeout(Duration::from_secs(5), work).await;
        synced.unwrap_or(Err(PgError::TimedOut)).map(drop)
    }

    /// Reads the registry, and says so.
    async fn sync(&self, inner: &mut Inner) -> Result<i64, PgError> {
        let read = self.read(inner).await;
        match &read {
            Ok(count) => {
                self.metrics.syncs.with_label_values(&["success"]).inc();
                tracing::info!(source = "database", extensions = count, "Extension Registry synced");
            }
            Err(_) => self.metrics.syncs.with_label_values(&["error"]).inc(),
        }
        read
    }

    fn show_fixtures(&self) {
        let Some(image) = self.sources.fixtures.borrow().clone() else {
            return;
        };
        self.metrics.extensions.reset();
        for (kind, count) in image.counts() {
            let series = self.metrics.extensions.with_label_values(&["fixtures", kind]);
            series.set(count as i64);
        }
        self.metrics.syncs.with_label_values(&["success"]).inc();
        let count = image.extensions().count();
        tracing::info!(source = "fixtures", extensions = count, "Extension Registry synced");
    }

    fn is_older_than(&self, age: Duration) -> bool {
        self.read_at.borrow().is_none_or(|at| at.elapsed() > age)
    }

    /// Brings the series up to date, if they are older than a second. Waits four seconds at most; what takes longer goes on.
    pub async fn refresh(self: &Arc<Self>) {
        if self.source == Source::Fixtures {
            if let Some(views) = self.own_views().await {
                self.show_own(&views);
            }
            return;
        }
        let this = Arc::clone(self);
        let mut work = tokio::spawn(async move { this.bring_up_to_date().await });
        let done = tokio::time::timeout(Duration::from_secs(2), &mut work).await;
        if matches!(done, Ok(Ok(true))) {
            return;
        }
        if let Some(views) = self.own_views().await {
            self.show_own(&views);
            return;
        }
        // Postgres decides: a large registry takes its time.
        let done = match done {
            Ok(_) => done,
            Err(_) => tokio::time::timeout(Duration::from_secs(2), work).await,
        };
        if !matches!(done, Ok(Ok(true))) && self.is_older_than(PATIENCE) {
            self.metrics.hide_registry();
        }
    }

    /// Says whether it has.
    async fn bring_up_to_date(&self) -> bool {
        let mut inner = self.inner.lock().await;
        let stands = |link: &Link| !link.direct.client.is_closed();
        if !self.is_older_than(MAX_AGE) && inner.link.as_ref().is_some_and(stands) {
            return true;
        }
        let read = self.read(&mut inner).await;
        if let Err(error) = &read {
            tracing::debug!(%error, "the registry's series are old");
        }
        read.is_ok()
    }

    /// What the loops have seen themselves; `None` where Postgres decides, or nobody.
    pub async fn own_views(&self) -> Option<Views> {
        let mut all: Option<Views> = None;
        for event_loop in &self.loops {
            let (tell, told) = oneshot::channel();
            if event_loop.send(Control::Look(tell)).is_err() {
                continue;
            }
            let told = tokio::time::timeout(Duration::from_millis(500), told).await;
            if let Ok(Ok(Some(views))) = told {
                views::merge(all.get_or_insert_default(), views);
            }
        }
        all
    }

    fn show_own(&self, views: &Views) {
        let metrics = &self.metrics;
        let from = if self.image().is_some() { "image" } else { "fixtures" };
        self.read_at.send_replace(None);
        metrics.hide_registry();
        metrics.show_openings(views.keys().map(String::as_str));
        for (id, view) in views {
            metrics.extensions.with_label_values(&[from, &view.kind]).inc();
            let state = view.breaker;
            let series = metrics.breaker_state.with_label_values(&[id, state.as_str()]);
            series.set(views::rank(state));
            if let Some(rate) = view.success_rate() {
                metrics.success_rate.with_label_values(&[id]).set(rate);
            }
            if let Some(p95) = view.latency.quantile(0.95) {
                metrics.latency_p95.with_label_values(&[id]).set(p95);
            }
            for (instance, status) in &view.instances {
                let series = metrics.instance_health.with_label_values(&[id, instance, status]);
                series.set(1);
            }
        }
    }

    fn image(&self) -> Option<Arc<Image>> {
        let kept = self.sources.kept.as_ref()?.borrow();
        kept.as_ref().map(|kept| Arc::clone(&kept.image))
    }

    /// The document of a policy as the image, or else the fixtures, have it.
    pub fn own_policy(&self, key: &PolicyKey) -> Option<Json> {
        let image = self.image().or_else(|| self.sources.fixtures.borrow().clone())?;
        image.policy(key).cloned()
    }

    async fn link<'a>(&self, inner: &'a mut Inner) -> Result<&'a mut Link, PgError> {
        let usable = |link: &Link| !link.direct.client.is_closed() && !link.direct.is_outdated(&self.databases);
        if !inner.link.as_ref().is_some_and(usable) {
            inner.link = None;
            self.read_at.send_replace(None);
            let direct = Direct::open_told(&self.databases, Arc::clone(&self.changed)).await?;
            direct.client.batch_execute("listen ext_registry").await?;
            inner.link = Some(Link {
                direct,
                lead: Lead::new(LOCK),
            });
        }
        inner.link.as_mut().ok_or(PgError::NoExtension)
    }

    /// Rows of a statement in which `@extschema@` stands for the extension's schema.
    pub async fn query(
        &self,
        sql: &str,
        params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Vec<Row>, PgError> {
        let work = async {
            let mut inner = self.inner.lock().await;
            let link = self.link(&mut inner).await?;
            let patience = Duration::from_secs(5);
            let rows = tokio::time::timeout(patience, link.direct.client.query(&link.direct.sql(sql), params)).await;
            if rows.is_err() {
                // It may never answer again.
                self.lose(&mut inner);
            }
            rows.map_err(|_| PgError::TimedOut)?.map_err(PgError::from)
        };
        tokio::time::timeout(Duration::from_secs(10), work)
            .await
            .unwrap_or(Err(PgError::TimedOut))
    }

    /// Gives up the connection, and the lead with it.
    fn lose(&self, inner: &mut Inner) {
        inner.link = None;
        self.read_at.send_replace(None);
        self.metrics.hide_registry();
    }

    async fn read(&self, inner: &mut Inner) -> Result<i64, PgError> {
        let result = tokio::time::timeout(PATIENCE, self.read_series(inner)).await;
        let result = result.unwrap_or(Err(PgError::TimedOut));
        if let Err(error) = &result {
            if let PgError::Postgres(error) = error {
                tracing::debug!(error = describe(error), "reading the series failed");
            }
            self.lose(inner);
        }
        result
    }

    async fn read_series(&self, inner: &mut Inner) -> Result<i64, PgError> {
        let metrics = &self.metrics;
        self.link(inner).await?;
        let Inner {
            link: Some(link),
            openings,
        } = inner
        else {
            return Err(PgError::NoExtension);
        };
        let held = link.lead.try_to(&link.direct.client).await?;
        let link = &link.direct;
        let counts = link
            .client
            .query(&link.sql(include_str!("../queries/counts.sql")), &[])
            .await?;
        let total = counts.iter().map(|row| row.get::<_, i64>(1)).sum();
        // Also where they are not shown: the bridge that takes the lead goes on from its own count. A role without rights to
        // the history still shows the rest.
        if let Err(error) = self.count_openings(link, openings).await {
            tracing::debug!(error = describe(&error), "openings of breakers cannot be read");
        }
        if !held {
            metrics.hide_registry();
            self.read_at.send_replace(Some(Instant::now()));
            return Ok(total);
        }
        let health = link
            .client
            .query(&link.sql(include_str!("../queries/health.sql")), &[])
            .await?;
        let instances = link
            .client
            .query(&link.sql(include_str!("../queries/instances.sql")), &[])
            .await?;
        metrics.hide_registry();
        metrics.leader.set(1);
        metrics.show_openings(health.iter().map(|row| row.get(0)));
        for row in &counts {
            metrics
                .extensions
                .with_label_values(&["database", row.get::<_, &str>(0)])
                .set(row.get(1));
        }
        for row in &health {
            let id: &str = row.get(0);
            // An extension that is deleted while it is read has none.
            let Some(state) = row.get::<_, Option<&str>>(1) else {
                continue;
            };
            let value = match state {
                "open" => 2,
                "half_open" => 1,
                _ => 0,
            };
            metrics.breaker_state.with_label_values(&[id, state]).set(value);
            if let Some(rate) = row.get::<_, Option<f64>>(2) {
                metrics.success_rate.with_label_values(&[id]).set(rate);
            }
            if let Some(p95) = row.get::<_, Option<f64>>(3) {
                metrics.latency_p95.with_label_values(&[id]).set(p95);
            }
        }
        for row in &instances {
            let labels: [&str; 3] = [row.get(0), row.get(1), row.get(2)];
            metrics.instance_health.with_label_values(&labels).set(1);
        }
        self.read_at.send_replace(Some(Instant::now()));
        Ok(total)
    }

    async fn count_openings(&self, link: &Direct, counted: &mut Openings) -> Result<(), tokio_postgres::Error> {
        let sql = link.sql(include_str!("../queries/newest_event.sql"));
        let newest: i64 = link.client.query_one(&sql, &[]).await?.get(0);
        let registry = registry_name(&self.databases.borrow().config);
        // Another registry, or one that was restored, has events of its own.
        let last = counted
            .last
            .filter(|last| counted.registry == registry && *last <= newest);
        if let Some(last) = last
            && last < newest
        {
            let sql = link.sql(include_str!("../queries/openings.sql"));
            for row in link.client.query(&sql, &[&last, &newest]).await? {
                let times: i64 = row.get(1);
                self.metrics.opened(row.get(0), u64::try_from(times).unwrap_or(0));
            }
        }
        *counted = Openings {
            registry,
            last: Some(newest),
        };
        Ok(())
    }

    /// One JSON value of a statement that gives one row of `jsonb`.
    pub async fn json(
        &self,
        sql: &str,
        params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Json, PgError> {
        let rows = self.query(sql, params).await?;
        let raw: Option<pg::RawJsonb> = rows.first().and_then(|row| row.get(0));
        Ok(raw
            .and_then(|raw| serde_json::from_slice(&raw.0).ok())
            .unwrap_or(Json::Null))
    }

    /// Counts an operator whose key does not fit.
    pub fn unauthorized(&self) {
        self.metrics.refused(Code::Unauthorized.as_str());
    }

    /// Where decisions come from.
    pub fn source(&self) -> Source {
        self.source
    }
}
