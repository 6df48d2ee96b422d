//! How a loop begins: it connects, subscribes, and only then says that it is there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::super::clock;
use super::super::fallback::{Decides, Fallback};
use super::super::micro::{Micro, NAME};
use super::moving::{self, Moving};
use super::{Control, EventLoop, Links, LoopState, MESSAGES, Outlets};
use crate::batch::decide::Decider;
use crate::batch::gather::Gatherer;
use crate::batch::report::Reporter;
use crate::batch::side::Side;
use crate::config::Settings;
use crate::image::{Image, Kept};
use crate::machine::mux::Inbox;
use crate::machine::{Machine, MachineSettings};
use crate::metrics::Metrics;
use crate::pg::{self, Role};
use crate::transport::{Channel, Known, Transport, TransportError, Wanted};

/// Who may decide.
#[derive(Clone)]
pub struct Sources {
    /// Postgres.
    pub postgres: bool,
    /// It answered a moment ago: its connections are waited for.
    pub expected: bool,
    /// The last known good image, as it comes and changes.
    pub kept: Option<watch::Receiver<Option<Kept>>>,
    /// A standby that decides in the place of Postgres.
    pub nearby: Option<pg::Databases>,
    /// Fixtures, where there are any; they may be read again.
    pub fixtures: watch::Receiver<Option<Arc<Image>>>,
}

impl Sources {
    /// Postgres alone.
    pub fn database() -> Self {
        Self {
            postgres: true,
            expected: false,
            kept: None,
            nearby: None,
            fixtures: watch::channel(None).1,
        }
    }

    /// Fixtures alone.
    pub fn fixtures(image: Arc<Image>) -> Self {
        Self {
            postgres: false,
            expected: false,
            kept: None,
            nearby: None,
            fixtures: watch::channel(Some(image)).1,
        }
    }
}

/// What a loop subscribes to on each of its connections, beside its inbox.
fn wanted(prefix: &str, index: usize, micro: &Micro) -> Vec<Wanted> {
    let one = |channel, subject, group| Wanted {
        channel,
        subject,
        group,
    };
    let mut all: Vec<Wanted> = Vec::new();
    all.extend(
        micro
            .subjects()
            .into_iter()
            .map(|subject| one(Channel::Micro, subject, None)),
    );
    all.push(one(Channel::Invoke, format!("{prefix}.invoke.*"), Some(NAME)));
    all.push(one(Channel::Route, format!("{prefix}.route"), Some(NAME)));
    let ops = [
        "get_extension_health",
        "get_circuit_breaker_states",
        "dry_run_pipeline",
        "get_pipeline_complexity",
    ];
    all.extend(
        ops.iter()
            .map(|op| one(Channel::Admin, format!("{prefix}.admin.{op}"), Some(NAME))),
    );
    // One for the whole process.
    if index == 0 {
        all.push(one(Channel::Admin, format!("{prefix}.admin.reload"), None));
    }
    all
}

impl EventLoop {
    /// Connects and subscribes.
    pub async fn start(
        settings: &Settings,
        index: usize,
        databases: pg::Databases,
        sources: Sources,
        metrics: Arc<Metrics>,
        state: Arc<LoopState>,
        outlets: Outlets,
    ) -> Result<(Self, mpsc::UnboundedSender<Control>), TransportError> {
        let (handle, control) = mpsc::unbounded_channel();
        let mut transport = Transport::connect(&settings.nats, &Known::default()).await?;
        let inbox = Inbox::new(&transport.unique_inbox());
        let micro = Micro::new(&settings.prefix, clock::now_rfc3339());
        let links = sources.postgres.then(|| {
            let open = |role, databases: &pg::Databases| {
                let changed = handle.clone();
                pg::link(databases.clone(), role, Arc::clone(&metrics), move || {
                    let _ = changed.send(Control::Changed);
                })
            };
            let decides = sources.nearby.as_ref().unwrap_or(&databases);
            Links {
                decide: open(Role::Decide, decides),
                report: open(Role::Report, decides),
                side: open(Role::Side, decides),
                merge: sources.nearby.is_some().then(|| open(Role::Merge, &databases)),
            }
        });
        let fallback = (sources.kept.is_some() || sources.fixtures.borrow().is_some()).then(|| {
            let kept = sources.kept.clone().unwrap_or_else(|| watch::channel(None).1);
            let capacity = settings.machine.max_in_flight * 4;
            Fallback::new(kept, settings.image_max_age, sources.fixtures.clone(), capacity)
        });
        if let (Some(links), true) = (&links, sources.expected) {
            let mut decide = links.decide.clone();
            // Without it somebody else decides.
            let _ = tokio::time::timeout(Duration::from_secs(3), decide.wait_for(Option::is_some)).await;
        }
        let machine = MachineSettings {
            second_opinion: links.is_some() && fallback.is_some(),
            record: settings.machine.record.filter(|_| outlets.spans.is_some()),
            ..settings.machine.clone()
        };
        let mut machine = Machine::new(machine, inbox.clone(), Arc::clone(&metrics), fastrand::u64(..));
        machine.set_max_payload(transport.max_payload());
        let wanted = wanted(&settings.prefix, index, &micro);
        let known = moving::subscribe(&mut transport, wanted.clone(), &inbox).await?;
        state.subscribed.store(known, Ordering::Relaxed);
        let this = Self {
            machine,
            moving: Moving::new(settings.nats.clone(), wanted, inbox),
            links,
            fallback,
            decides: Decides::Nobody,
            changed_us: 0,
            told: Decides::Nobody,
            quiet_us: 0,
            busy_until_us: 0,
            declined: Vec::new(),
            gatherer: Gatherer::new(sources.nearby.is_some(), Arc::clone(&metrics)),
            decider: Decider::default(),
            reporter: Reporter::new(sources.nearby.is_some(), Arc::clone(&metrics)),
            side: Side::default(),
            micro,
            metrics,
            state,
            control,
            handle: handle.clone(),
            outlets,
            label: index.to_string(),
            batch: settings.batch,
            began: Instant::now(),
            inbound: Vec::with_capacity(MESSAGES),
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            draining: None,
            tended_us: 0,
            inside: HashMap::new(),
            inside_number: 0,
            transport,
        };
        Ok((this, handle))
    }
}
