//! SIGHUP: settings and credentials are read again, and what can change while the process runs does.
//!
//! Owns the settings as they are now; everybody else sees them through [`Live`], `Databases` or an order to the loops.
//!
//! Promises: flags and the environment stay as they were, the file and all files it names are read again. Where something is
//! wrong nothing changes, but for fixtures, which are judged by themselves. What needs a restart stays as it is and is named in
//! a line of its own, at every reading until the restart. No call fails because of a reading.

use std::sync::Arc;

use tokio::sync::{Mutex, Notify, mpsc, watch};
use xxhash_rust::xxh3::Xxh3;

use super::event_loop::{Applied, Control, move_all};
use crate::config::{Options, Settings, Source};
use crate::exit::{Exit, Kind};
use crate::image::Image;
use crate::logging::Levels;
use crate::metrics::Metrics;
use crate::pg::{Database, Databases};
use crate::tls::{Roots, Tls};
use crate::transport::NatsSettings;

/// The settings as they are now.
pub type Live = watch::Receiver<Arc<Settings>>;

/// Where those that go by the settings look for them.
pub struct Senders {
    live: watch::Sender<Arc<Settings>>,
    databases: watch::Sender<Arc<Database>>,
    nearby: Option<watch::Sender<Arc<Database>>>,
    /// The fixtures, once they have been read.
    pub fixtures: watch::Sender<Option<Arc<Image>>>,
}

impl Senders {
    /// With the settings of the start.
    pub fn new(settings: &Settings) -> Self {
        Self {
            live: watch::Sender::new(Arc::new(settings.clone())),
            databases: watch::Sender::new(Arc::new(settings.database.clone())),
            nearby: settings
                .decide
                .clone()
                .map(|nearby| watch::Sender::new(Arc::new(nearby))),
            fixtures: watch::Sender::new(None),
        }
    }

    /// The settings.
    pub fn live(&self) -> Live {
        self.live.subscribe()
    }

    /// How to reach Postgres.
    pub fn databases(&self) -> Databases {
        self.databases.subscribe()
    }

    /// How to reach the standby that decides, where there is one.
    pub fn nearby(&self) -> Option<Databases> {
        self.nearby.as_ref().map(watch::Sender::subscribe)
    }
}

/// See the module.
pub struct Reloader {
    flags: Options,
    levels: Levels,
    senders: Senders,
    loops: Vec<mpsc::UnboundedSender<Control>>,
    /// What the files held that the settings of Postgres name, as a hash: a new certificate may have the old name.
    files: Mutex<u64>,
    /// Told when the image of the registry shall be read anew.
    keeper: Arc<Notify>,
    metrics: Arc<Metrics>,
}

impl Reloader {
    /// For a process that was started with these flags.
    pub fn new(
        flags: Options,
        levels: Levels,
        senders: Senders,
        loops: Vec<mpsc::UnboundedSender<Control>>,
        keeper: Arc<Notify>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let files = Mutex::new(files_of(&senders.live.borrow()));
        Self {
            flags,
            levels,
            senders,
            loops,
            files,
            keeper,
            metrics,
        }
    }

    /// The registry could not be read, where it is a folder.
    fn count_failure(&self, source: Source) {
        if source == Source::Fixtures {
            self.metrics.syncs.with_label_values(&["error"]).inc();
        }
    }

    /// Forgets what is known of the registry: policies, the image and the fixtures are read again. Settings stay.
    pub async fn reload_registry(&self) -> Result<(), Exit> {
        self.keeper.notify_one();
        for event_loop in &self.loops {
            let _ = event_loop.send(Control::Reload); // a loop that has ended knows nothing
        }
        let settings = Arc::clone(&self.senders.live.borrow());
        let source = settings.source;
        let read = tokio::task::spawn_blocking(move || super::fixtures(&settings)).await;
        let read = read.unwrap_or_else(|e| Err(Exit::new(Kind::Internal, e.to_string())));
        let read = read.inspect_err(|_| self.count_failure(source))?;
        if source != Source::Database {
            self.senders.fixtures.send_replace(read);
        }
        Ok(())
    }

    /// Reads everything again. What is wrong has been logged when this returns.
    pub async fn reload(&self) -> Result<(), Exit> {
        // One at a time.
        let mut files = self.files.lock().await;
        let old = Arc::clone(&self.senders.live.borrow());
        let flags = self.flags.clone();
        let read = tokio::task::spawn_blocking(move || read(flags, &old)).await;
        let read = read.unwrap_or_else(|e| Err(Exit::new(Kind::Internal, e.to_string())));
        let mut read = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%error, "the settings cannot be used, and stay as they were");
                return Err(error);
            }
        };
        let old = Arc::clone(&self.senders.live.borrow());
        for key in &read.needs_restart {
            tracing::warn!("{key}: needs a restart");
        }
        let mut moved = Ok(());
        if old.nats != read.nats {
            match move_all(&self.loops, &read.nats).await {
                Ok(()) => read.settings.nats = read.nats,
                Err(error) => {
                    tracing::error!(%error, "the way to NATS stays as it was");
                    moved = Err(Exit::new(Kind::Nats, error.to_string()));
                }
            }
            super::warn_of_plain_nats(&read.settings);
        }
        let new = Arc::new(read.settings);
        if new.logging != old.logging {
            self.levels.change(&new.logging)?;
        }
        if new.database != old.database || *files != read.files {
            self.senders.databases.send_replace(Arc::new(new.database.clone()));
        }
        if let (Some(sender), Some(nearby)) = (&self.senders.nearby, &new.decide)
            && (new.decide != old.decide || *files != read.files)
        {
            sender.send_replace(Arc::new(nearby.clone()));
        }
        *files = read.files;
        let changed = new.options.differing(&old.options).join(", ").replace('_', "-");
        self.senders.live.send_replace(Arc::clone(&new));
        for event_loop in &self.loops {
            let _ = event_loop.send(Control::Apply(Box::new(Applied::of(&new)))); // a loop that has ended needs none
        }
        let fixtures = match read.fixtures {
            Ok(found) => {
                if new.source != Source::Database {
                    self.senders.fixtures.send_replace(found);
                }
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "the fixtures cannot be used, and stay as they were");
                self.count_failure(new.source);
                Err(error)
            }
        };
        tracing::info!(changed, "the settings were read again");
        fixtures.and(moved)
    }
}

struct Read {
    /// What is to count from now on.
    settings: Settings,
    /// NATS as it is asked for; `settings` has it as it is until the loops have moved.
    nats: NatsSettings,
    needs_restart: Vec<&'static str>,
    fixtures: Result<Option<Arc<Image>>, Exit>,
    files: u64,
}

fn read(flags: Options, old: &Settings) -> Result<Read, Exit> {
    let mut asked = Settings::resolve(flags.clone())?;
    let differs = [
        ("source", asked.source != old.source),
        ("prefix", asked.prefix != old.prefix),
        ("nats-inbox-prefix", asked.nats.inbox_prefix != old.nats.inbox_prefix),
        ("log-format", asked.logging.format != old.logging.format),
        ("http-addr", asked.http != old.http),
        ("grpc-addr", asked.grpc != old.grpc),
        ("loops", asked.loops != old.loops),
        ("decide-url", asked.decide.is_some() != old.decide.is_some()),
        ("probe-interval", asked.probe_interval != old.probe_interval),
        ("discover", asked.discover != old.discover),
        ("otlp-endpoint", asked.otlp_endpoint != old.otlp_endpoint),
        (
            "metrics-tenant-label",
            asked.metrics_tenant_label != old.metrics_tenant_label,
        ),
    ];
    let needs_restart = differs
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| key)
        .collect();
    asked.nats.inbox_prefix.clone_from(&old.nats.inbox_prefix);
    // Caps and budgets are shares: of the loops that there are.
    let mut settings = Settings::resolve(Options {
        loops: Some(old.loops),
        ..flags
    })?;
    settings.source = old.source;
    settings.prefix.clone_from(&old.prefix);
    settings.logging.format = old.logging.format;
    (settings.http, settings.grpc) = (old.http, old.grpc);
    settings.metrics_tenant_label = old.metrics_tenant_label;
    settings.nats = old.nats.clone();
    if settings.decide.is_some() != old.decide.is_some() {
        settings.decide.clone_from(&old.decide);
    }
    (settings.probe_interval, settings.discover) = (old.probe_interval, old.discover);
    if asked.otlp_endpoint != old.otlp_endpoint {
        settings.otlp_endpoint.clone_from(&old.otlp_endpoint);
        settings.machine.record = old.machine.record;
    }
    settings.options.clone_from(&asked.options);
    Ok(Read {
        fixtures: super::fixtures(&settings),
        files: files_of(&asked),
        nats: asked.nats,
        settings,
        needs_restart,
    })
}

fn files_of(settings: &Settings) -> u64 {
    let Tls { roots, identity, .. } = &settings.database.tls;
    let roots = match roots {
        Some(Roots::File(path)) => Some(path.as_path()),
        _ => None,
    };
    let identity = identity.as_ref();
    let files = [
        roots,
        identity.map(|(certificate, _)| certificate.as_path()),
        identity.map(|(_, key)| key.as_path()),
    ];
    let mut hash = Xxh3::new();
    for path in files {
        let content = path.and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
        hash.update(&content.len().to_le_bytes());
        hash.update(&content);
    }
    hash.digest()
}
