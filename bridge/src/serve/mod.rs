//! `ext-bridge serve`: loops on their own threads; HTTP, gRPC, signals, admin operations and the keeping of the image on the
//! main one.

pub mod admin;
pub mod clock;
pub mod event_loop;
pub mod events;
pub mod fallback;
pub mod grpc;
pub mod health;
pub mod http;
pub mod keeper;
pub mod leader;
pub mod local;
pub mod micro;
pub mod queue;
pub mod registry;
pub mod reload;
pub mod spans;
pub mod systemd;
pub mod views;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::config::{Options, Settings, Source};
use crate::exit::{Exit, Kind};
use crate::image::{Image, Kept};
use crate::logging::Levels;
use crate::metrics::Metrics;
use crate::pg;
use event_loop::{Control, EventLoop, LoopState, Outlets, Sources};
use fallback::Decides;
use spans::Spans;

/// What the endpoints know of the process.
pub struct Status {
    /// The loops.
    pub loops: Vec<Arc<LoopState>>,
    /// Nothing new is taken.
    pub draining: AtomicBool,
    /// The last known good image, where one is kept.
    pub kept: Option<watch::Receiver<Option<Kept>>>,
}

impl Status {
    /// Which sources decide, by loop; one word where they agree.
    pub fn source(&self) -> String {
        let mut words: Vec<&str> = self.loops.iter().map(|state| state.decides().as_str()).collect();
        words.dedup();
        words.join(",")
    }

    /// How old the last known good image is, in seconds.
    pub fn image_age(&self) -> Option<f64> {
        let kept = self.kept.as_ref()?.borrow();
        kept.as_ref().map(|kept| kept.age_ms(clock::now_ms()) as f64 / 1000.0)
    }

    /// Why the process is not ready; empty where it is.
    pub fn reasons(&self) -> Vec<&'static str> {
        let all = |f: fn(&LoopState) -> &AtomicBool| self.loops.iter().all(|state| f(state).load(Ordering::Relaxed));
        let mut reasons = Vec::new();
        if self.draining.load(Ordering::Relaxed) {
            reasons.push("draining");
        }
        if !all(|s| &s.nats) {
            reasons.push("nats is not connected");
        }
        if !all(|s| &s.subscribed) {
            reasons.push("subscriptions are not known to the server");
        }
        if self.loops.iter().any(|state| state.decides() == Decides::Nobody) {
            reasons.push("the source does not decide");
        }
        reasons
    }
}

/// Whether Postgres answers, or is worth waiting for.
pub async fn postgres_answers(settings: &Settings) -> bool {
    let answer = tokio::time::timeout(
        Duration::from_secs(3),
        pg::connect(settings.decide.as_ref().unwrap_or(&settings.database)),
    )
    .await;
    match answer.unwrap_or(Err(pg::PgError::TimedOut)) {
        Ok((_, driver, _, version)) => {
            driver.abort();
            tracing::info!(extension_version = version, "Postgres answers");
            true
        }
        Err(error) => {
            tracing::warn!(%error, "Database unavailable");
            false
        }
    }
}

/// The fixtures as the settings name them, where the source has any. Those of source auto need not be there.
pub(super) fn fixtures(settings: &Settings) -> Result<Option<Arc<Image>>, Exit> {
    let there = match settings.source {
        Source::Database => false,
        Source::Fixtures => true,
        Source::Auto => settings.fixtures.join("extensions").is_dir(),
    };
    there.then(|| local::fixtures(&settings.fixtures)).transpose()
}

/// Who may decide for the loops of this process, and who keeps the image.
async fn sources(
    settings: &Settings,
    fixtures: &watch::Sender<Option<Arc<Image>>>,
) -> Result<(Sources, Option<keeper::Keeper>), Exit> {
    Ok(match settings.source {
        Source::Database => (Sources::database(), None),
        Source::Fixtures => {
            fixtures.send_replace(self::fixtures(settings)?);
            let sources = Sources {
                postgres: false,
                expected: false,
                kept: None,
                nearby: None,
                fixtures: fixtures.subscribe(),
            };
            (sources, None)
        }
        Source::Auto => {
            let (keeper, kept) = keeper::Keeper::open(settings);
            match self::fixtures(settings) {
                Ok(found) => drop(fixtures.send_replace(found)),
                Err(error) => tracing::warn!(%error, "the fixtures cannot be used"),
            }
            let sources = Sources {
                postgres: true,
                expected: postgres_answers(settings).await,
                kept: Some(kept),
                nearby: None,
                fixtures: fixtures.subscribe(),
            };
            (sources, Some(keeper))
        }
    })
}

async fn listen(what: &str, flag: &str, address: std::net::SocketAddr) -> Result<TcpListener, Exit> {
    TcpListener::bind(address).await.map_err(|e| {
        let message = format!("cannot listen on {address} for {what}: {e}; name another address by {flag}");
        Exit::new(Kind::Listen, message)
    })
}

/// Runs one loop on its own thread and runtime.
fn spawn_loop(
    settings: Settings,
    index: usize,
    databases: pg::Databases,
    sources: Sources,
    metrics: Arc<Metrics>,
    state: Arc<LoopState>,
    outlets: Outlets,
) -> (
    std::thread::JoinHandle<()>,
    oneshot::Receiver<Result<mpsc::UnboundedSender<Control>, Exit>>,
) {
    let (tell, started) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name(format!("loop-{index}"))
        .spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = tell.send(Err(Exit::new(
                        Kind::Internal,
                        format!("cannot start a runtime: {error}"),
                    )));
                    return;
                }
            };
            runtime.block_on(async move {
                match EventLoop::start(&settings, index, databases, sources, metrics, state, outlets).await {
                    Ok((event_loop, handle)) => {
                        let _ = tell.send(Ok(handle));
                        // A task of its own, so that the runtime's other tasks get their turns in order.
                        event_loop.run().await;
                    }
                    Err(error) => {
                        let _ = tell.send(Err(Exit::new(Kind::Nats, error.to_string())));
                    }
                }
            });
        });
    match thread {
        Ok(thread) => (thread, started),
        Err(error) => unreachable!("the system gives no thread: {error}"),
    }
}

/// Serves until SIGTERM or SIGINT.
pub async fn run(settings: Settings, flags: Options, levels: Levels) -> Result<(), Exit> {
    let mut signals = Signals::new()?;
    warn_of_plain_nats(&settings);
    let http_listener = listen("HTTP", "--http-addr", settings.http).await?;
    let grpc_listener = listen("gRPC", "--grpc-addr", settings.grpc).await?;
    let metrics = Metrics::new(settings.metrics_tenant_label);
    let senders = reload::Senders::new(&settings);
    let (live, databases) = (senders.live(), senders.databases());
    let (mut sources, keeper) = sources(&settings, &senders.fixtures).await?;
    sources.nearby = senders.nearby();
    let status = Arc::new(Status {
        loops: (0..settings.loops).map(|_| Arc::new(LoopState::default())).collect(),
        draining: AtomicBool::new(false),
        kept: sources.kept.clone(),
    });
    let (admin_sender, admin_requests) = mpsc::unbounded_channel();
    let otlp = settings.otlp_endpoint.as_deref();
    let spans = otlp.map(|at| Spans::start(at, Arc::clone(&metrics))).transpose()?;
    let outlets = Outlets {
        admin: admin_sender,
        spans: spans.as_ref().map(|spans| spans.queue.clone()),
    };
    let mut threads = Vec::new();
    let mut handles = Vec::new();
    for (index, state) in status.loops.iter().enumerate() {
        let (thread, started) = spawn_loop(
            settings.clone(),
            index,
            databases.clone(),
            sources.clone(),
            Arc::clone(&metrics),
            Arc::clone(state),
            outlets.clone(),
        );
        let handle = started
            .await
            .unwrap_or_else(|_| Err(Exit::new(Kind::Internal, "a loop ended at once")))?;
        threads.push(thread);
        handles.push(handle);
    }
    drop(outlets);
    let anew = Arc::new(Notify::new());
    let reloader = reload::Reloader::new(
        flags,
        levels,
        senders,
        handles.clone(),
        Arc::clone(&anew),
        Arc::clone(&metrics),
    );
    let reloader = Arc::new(reloader);
    let registry = registry::Registry::new(
        &settings,
        databases.clone(),
        sources,
        handles.clone(),
        Arc::clone(&metrics),
    );
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(Arc::clone(&registry).tend());
    if let Some(keeper) = keeper {
        tokio::spawn(keeper.run(Arc::clone(&registry), live.clone(), anew));
    }
    let admin = admin::serve(
        live.clone(),
        Arc::clone(&registry),
        Arc::clone(&reloader),
        admin_requests,
    );
    tokio::spawn(admin);
    tokio::spawn(http::serve(
        http_listener,
        Arc::clone(&metrics),
        Arc::clone(&status),
        Arc::clone(&registry),
        stopped.clone(),
    ));
    tokio::spawn(grpc::serve(
        grpc_listener,
        live.clone(),
        Arc::clone(&status),
        registry,
        stopped,
    ));
    let queue = queue::Queue::start(
        live.clone(),
        databases.clone(),
        settings.source,
        handles.clone(),
        Arc::clone(&metrics),
    );
    tokio::spawn(events::serve(live.clone(), databases.clone(), settings.source));
    tokio::spawn(health::serve(live.clone(), databases, Arc::clone(&metrics)));
    let systemd = systemd::Systemd::from_environment(Arc::clone(&status)).map(Arc::new);
    if let Some(systemd) = &systemd {
        tokio::spawn(Arc::clone(systemd).run());
    }
    tracing::info!(
        source = settings.source.as_str(),
        prefix = settings.prefix,
        nats = settings.nats.shown(),
        http = %settings.http,
        grpc = %settings.grpc,
        "started"
    );
    while signals.next().await == Signal::Hangup {
        if let Some(systemd) = &systemd {
            systemd.reloading();
        }
        let _ = reloader.reload().await; // it has been logged
        if let Some(systemd) = &systemd {
            systemd.reloaded();
        }
    }
    if let Some(systemd) = &systemd {
        systemd.stopping();
    }
    queue.stop();
    let drain_timeout = live.borrow().drain_timeout;
    drain(drain_timeout, &status, handles).await;
    queue.ended().await;
    let _ = stop.send(true);
    for thread in threads {
        if thread.join().is_err() {
            return Err(Exit::new(Kind::Internal, "a loop panicked"));
        }
    }
    if let Some(spans) = spans {
        spans.end().await;
    }
    tracing::info!("stopped");
    Ok(())
}

fn warn_of_plain_nats(settings: &Settings) {
    if settings.nats_is_exposed() {
        tracing::warn!(
            nats = settings.nats.shown(),
            "NATS beyond this machine without TLS: requests can be read on the way"
        );
    }
}

/// What the process is told by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    /// SIGHUP: read the settings again.
    Hangup,
    /// SIGTERM or SIGINT: drain and end.
    End,
}

struct Signals {
    term: Option<unix::Signal>,
    int: unix::Signal,
    hup: unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, Exit> {
        let handler =
            |kind| unix::signal(kind).map_err(|e| Exit::new(Kind::Internal, format!("cannot handle signals: {e}")));
        Ok(Self {
            term: Some(handler(SignalKind::terminate())?),
            int: handler(SignalKind::interrupt())?,
            hup: handler(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one. After the end has been asked for, a second SIGTERM ends at once.
    async fn next(&mut self) -> Signal {
        let Some(term) = &mut self.term else { return Signal::End };
        tokio::select! {
            _ = term.recv() => {}
            _ = self.int.recv() => {}
            _ = self.hup.recv() => return Signal::Hangup,
        }
        if let Some(mut term) = self.term.take() {
            tokio::spawn(async move {
                term.recv().await;
                tracing::warn!("second signal: ending at once");
                std::process::exit(143);
            });
        }
        Signal::End
    }
}

async fn drain(patience: Duration, status: &Status, handles: Vec<mpsc::UnboundedSender<Control>>) {
    tracing::info!("draining");
    status.draining.store(true, Ordering::Relaxed);
    let mut done = Vec::new();
    for handle in handles {
        let (tell, told) = oneshot::channel();
        if handle.send(Control::Drain(patience, tell)).is_ok() {
            done.push(told);
        }
    }
    let all = async {
        for told in done {
            let _ = told.await;
        }
    };
    let most = patience + Duration::from_secs(10);
    if tokio::time::timeout(most, all).await.is_err() {
        tracing::error!("the drain did not end in time");
    }
}
