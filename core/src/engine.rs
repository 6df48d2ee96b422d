//! A registry without a database: the same decision over documents and state on the heap.
//!
//! The bridge decides with it where Postgres does not. One thread owns it; tickets, breakers, turns and statistics work as in Postgres,
//! but are this process's own.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use serde_json::{Map, Value as Json};

use crate::account::{self, Result as Report, Settled};
use crate::breaker::{self, Mode, Settings, Transition};
use crate::compile::Compiled;
use crate::decide::{Caller, Decision, Explainer, Finding, Live, Reason, Request, decide};
use crate::ejection;
use crate::fields::DocumentError;
use crate::fitness::{Effects, Fitness, Remembered};
use crate::fixture::{BreakerOverrides, ExtensionDocument, HealthDocument, InstanceDocument, VersionDocument};
use crate::model::{Balancing, ExtensionRow, Health, InstanceRow, Kind, Overrides, Tenants, VersionRow};
use crate::outcome::Outcome;
use crate::rules::RuleSet;
use crate::target::Target;
use crate::tickets::{Call, Entry, Table};

/// Registered extensions, their live state, and the calls under way.
pub struct Engine {
    extensions: HashMap<Box<str>, Registered>,
    targets: Vec<Target>,
    /// Which extension and which of its targets a place belongs to, for reports of transitions.
    owners: Vec<(Box<str>, Box<str>)>,
    entries: Vec<Entry>,
    boot: u64,
    cursor: u32,
    random: u64,
    stale_reports: u64,
    transitions: Vec<Moved>,
    ejections: RefCell<Vec<InstanceMoved>>,
}

struct Registered {
    compiled: Compiled,
    /// Where in [`Engine::targets`] its versions lie, then its instances.
    versions: usize,
    instances: usize,
    fitness: Remembered,
    /// What may have changed the fitness of its instances, counted.
    suspicions: Cell<u64>,
}

/// An instance that was ejected, or came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceMoved {
    /// Whose.
    pub extension_id: Box<str>,
    /// Which.
    pub instance_id: Box<str>,
    /// What happened.
    pub moved: ejection::Move,
}

/// A breaker that moved.
#[derive(Debug, Clone, PartialEq)]
pub struct Moved {
    /// Whose.
    pub extension_id: Box<str>,
    /// Which version's.
    pub version: Box<str>,
    /// From where to where, and why.
    pub transition: Transition,
}

/// One row of `ext_select`, owned.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineDecision {
    /// The extension asked for.
    pub extension_id: String,
    /// What it does; `None` if it is not registered.
    pub kind: Option<Kind>,
    /// The version that serves, or whose breaker refused.
    pub version: Option<String>,
    /// The instance chosen.
    pub instance_id: Option<String>,
    /// Where to send; `None` if refused.
    pub subject: Option<String>,
    /// Time one attempt may take, in milliseconds.
    pub timeout_ms: u32,
    /// Attempts after the first.
    pub retry: u32,
    /// The configuration to hand over, as JSON text.
    pub config: String,
    /// Whether to send.
    pub allowed: bool,
    /// Why.
    pub reason: Reason,
    /// When to ask again, in milliseconds.
    pub retry_after_ms: Option<u32>,
    /// To report with; 0 = nothing to report.
    pub ticket: u64,
    /// Fingerprint of the configuration.
    pub epoch: u64,
}

/// The targets of one extension, side by side.
struct Places<'a> {
    registered: &'a Registered,
    versions: &'a [Target],
    instances: &'a [Target],
    ejections: &'a RefCell<Vec<InstanceMoved>>,
}

impl Live for Places<'_> {
    fn version(&self, target: usize) -> Option<&Target> {
        self.versions.get(target)
    }

    fn instance(&self, place: usize) -> Option<&Target> {
        self.instances.get(place)
    }

    fn fitness(&self, now_us: u64, random: u64, effects: Effects) -> Option<Rc<Fitness>> {
        let Registered {
            compiled,
            fitness,
            suspicions,
            ..
        } = self.registered;
        if fitness.holds(suspicions.get(), now_us) {
            return fitness.get();
        }
        let tell = |instance: usize, moved| {
            self.ejections.borrow_mut().push(InstanceMoved {
                extension_id: compiled.id.clone(),
                instance_id: compiled.instances[instance].id.clone(),
                moved,
            });
        };
        let judged = Fitness::judge(compiled, |i| self.instances.get(i), now_us, random, effects, tell);
        match effects {
            Effects::Apply => fitness.keep(suspicions.get(), judged, now_us),
            Effects::Pretend => (!judged.is_calm()).then(|| Rc::new(judged)),
        }
    }
}

impl Engine {
    /// Registers documents. `capacity` is the number of calls under way at most; `seed` makes tickets and jitter of one engine its own.
    pub fn new(documents: &[ExtensionDocument], capacity: usize, seed: u64) -> Result<Self, DocumentError> {
        let mut engine = Self {
            extensions: HashMap::new(),
            targets: Vec::new(),
            owners: Vec::new(),
            entries: std::iter::repeat_with(Entry::default).take(capacity.max(1)).collect(),
            boot: seed,
            cursor: 0,
            random: seed | 1,
            stale_reports: 0,
            transitions: Vec::new(),
            ejections: RefCell::default(),
        };
        for document in documents {
            engine.add(document)?;
        }
        Ok(engine)
    }

    /// Registers one more document.
    pub fn add(&mut self, document: &ExtensionDocument) -> Result<(), DocumentError> {
        if self.extensions.contains_key(document.id.as_str()) {
            return Err(DocumentError::new(
                "id",
                format!("extension \"{}\" is there twice", document.id),
                "Keep one document for each id.",
            ));
        }
        self.register(Compiled::new(row(document)?));
        Ok(())
    }

    /// Takes over that a version's breaker is open elsewhere until then, before the extension's first call here.
    pub fn hold_open(&self, id: &str, version: &str, until_us: u64, now_us: u64) {
        let Some(registered) = self.extensions.get(id) else {
            return;
        };
        let names = &registered.compiled.targets;
        if let Some(place) = names.iter().position(|name| **name == *version) {
            let live = registered.live(&self.targets, &self.ejections);
            live.versions[place].breaker.restore_open(until_us, now_us);
        }
    }

    fn register(&mut self, compiled: Compiled) {
        let versions = self.targets.len();
        for (target, name) in compiled.targets.iter().enumerate() {
            let state = Target::default();
            let settings = compiled.settings_of(target);
            state
                .settings
                .store(settings, breaker::SharedSettings::stamp_of(settings));
            self.targets.push(state);
            self.owners.push((compiled.id.clone(), name.clone()));
        }
        let instances = self.targets.len();
        for instance in &compiled.instances {
            let state = Target::default();
            state.ejection.set_after(compiled.ejection.after);
            self.targets.push(state);
            self.owners.push((compiled.id.clone(), instance.id.clone()));
        }
        self.extensions.insert(
            compiled.id.clone(),
            Registered {
                compiled,
                versions,
                instances,
                fitness: Remembered::default(),
                suspicions: Cell::new(0),
            },
        );
    }

    /// Decides for one call at `now_us` (microseconds since the Unix epoch).
    pub fn select(&mut self, id: &str, context: &Map<String, Json>, avoid: &[&str], now_us: u64) -> EngineDecision {
        let random = self.draw();
        let Some(registered) = self.extensions.get(id) else {
            return EngineDecision::missing(id);
        };
        let compiled = &registered.compiled;
        let live = registered.live(&self.targets, &self.ejections);
        let request = Request {
            context,
            avoid,
            now_us,
            random,
        };
        let decision = decide(compiled, &request, &live, &mut Caller);
        let ticket = issue(
            &self.entries,
            self.boot,
            &mut self.cursor,
            registered,
            &self.targets,
            &decision,
            now_us,
        );
        if let Some((target, transition)) = decision.transition {
            self.transitions.push(Moved {
                extension_id: compiled.id.clone(),
                version: compiled.targets[target].clone(),
                transition,
            });
        }
        EngineDecision::new(compiled, &decision, ticket)
    }

    /// Why a call would be decided as it would: no effects.
    pub fn explain(&self, id: &str, context: &Map<String, Json>, now_us: u64) -> (EngineDecision, Vec<Finding>) {
        let Some(registered) = self.extensions.get(id) else {
            return (EngineDecision::missing(id), Vec::new());
        };
        let mut explainer = Explainer::default();
        let request = Request {
            context,
            avoid: &[],
            now_us,
            random: self.random,
        };
        let decision = decide(
            &registered.compiled,
            &request,
            &registered.live(&self.targets, &self.ejections),
            &mut explainer,
        );
        (EngineDecision::new(&registered.compiled, &decision, 0), explainer.0)
    }

    /// Takes the outcome of a call in; `false` if nothing is behind the ticket.
    pub fn report(&mut self, ticket: u64, outcome: Outcome, latency_us: u64, retries: u32, now_us: u64) -> bool {
        let random = self.draw();
        let Some(taken) = Table::new(&self.entries, self.boot).take(ticket) else {
            self.stale_reports += 1;
            return false;
        };
        let version = taken.call.version as usize;
        let instance = taken.call.instance.and_then(|place| self.targets.get(place as usize));
        let report = Report {
            outcome,
            latency_us,
            retries,
        };
        let Settled { transition, suspect } =
            account::settle(&self.targets[version], instance, &taken, report, now_us, random);
        if suspect && let Some(registered) = self.extensions.get(&self.owners[version].0) {
            registered.suspicions.set(registered.suspicions.get() + 1);
        }
        if let Some(transition) = transition {
            let (extension_id, version) = self.owners[version].clone();
            self.transitions.push(Moved {
                extension_id,
                version,
                transition,
            });
        }
        true
    }

    /// Frees what calls held that nobody reported in time. Call it every second or so.
    pub fn sweep(&self, now_us: u64) {
        Table::new(&self.entries, self.boot).sweep(now_us, 60_000_000, |call| release(&self.targets, call));
    }

    /// The breakers that moved since the last call.
    pub fn take_transitions(&mut self) -> Vec<Moved> {
        std::mem::take(&mut self.transitions)
    }

    /// The instances that were ejected or came back since the last call.
    pub fn take_ejections(&mut self) -> Vec<InstanceMoved> {
        self.ejections.take()
    }

    /// Reports that found nothing behind their ticket.
    pub fn stale_reports(&self) -> u64 {
        self.stale_reports
    }

    /// The compiled extension of this id.
    pub fn extension(&self, id: &str) -> Option<&Compiled> {
        self.extensions.get(id).map(|registered| &registered.compiled)
    }

    /// The registered ids.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.extensions.keys().map(|id| &**id)
    }

    /// The live state of an extension's versions, in the order of [`Compiled::targets`].
    pub fn version_targets(&self, id: &str) -> &[Target] {
        self.extensions.get(id).map_or(&[], |registered| {
            registered.live(&self.targets, &self.ejections).versions
        })
    }

    /// The live state of an extension's instances, in the order of [`Compiled::instances`].
    pub fn instance_targets(&self, id: &str) -> &[Target] {
        self.extensions.get(id).map_or(&[], |registered| {
            registered.live(&self.targets, &self.ejections).instances
        })
    }

    /// `SplitMix64` (Steele, Lea, Flood 2014): enough for jitter and keyless spreading.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

impl Registered {
    fn live<'a>(&'a self, targets: &'a [Target], ejections: &'a RefCell<Vec<InstanceMoved>>) -> Places<'a> {
        Places {
            registered: self,
            ejections,
            versions: &targets[self.versions..self.versions + self.compiled.targets.len()],
            instances: &targets[self.instances..self.instances + self.compiled.instances.len()],
        }
    }
}

fn release(targets: &[Target], call: &Call) {
    let version = &targets[call.version as usize];
    if let Some(lease) = call.lease {
        version.breaker.abandon(lease);
    }
    account::release(version, call.instance.and_then(|place| targets.get(place as usize)));
}

fn issue(
    entries: &[Entry],
    boot: u64,
    cursor: &mut u32,
    registered: &Registered,
    targets: &[Target],
    decision: &Decision,
    now_us: u64,
) -> u64 {
    let compiled = &registered.compiled;
    let Some(place) = decision.version else { return 0 };
    let version = &compiled.versions[place];
    let target = registered.versions + version.target;
    if !decision.reason.is_allowed() {
        targets[target].record_refusal(now_us);
        return 0;
    }
    let call = Call {
        version: target as u32,
        instance: decision
            .instance
            .map(|instance| (registered.instances + instance) as u32),
        started_us: now_us,
        deadline_us: now_us + version.lease_us(),
        generation: decision.generation,
        lease: decision.lease,
    };
    targets[target].begin();
    if let Some(instance) = call.instance {
        targets[instance as usize].begin();
    }
    let ticket = Table::new(entries, boot).issue(cursor, &call, now_us, |call| release(targets, call));
    if ticket == 0 {
        // A probe keeps its lease: nobody can report it, but no more of them go than are asked for.
        release(targets, &Call { lease: None, ..call });
    }
    ticket
}

impl EngineDecision {
    fn missing(id: &str) -> Self {
        Self {
            extension_id: id.to_owned(),
            kind: None,
            version: None,
            instance_id: None,
            subject: None,
            timeout_ms: 0,
            retry: 0,
            config: "{}".to_owned(),
            allowed: false,
            reason: Reason::ExtensionNotFound,
            retry_after_ms: None,
            ticket: 0,
            epoch: 0,
        }
    }

    fn new(compiled: &Compiled, decision: &Decision, ticket: u64) -> Self {
        let version = decision.version.map(|place| &compiled.versions[place]);
        let instance = decision.instance.map(|place| &compiled.instances[place]);
        let allowed = decision.reason.is_allowed();
        let subject = instance
            .map(|i| &i.subject)
            .or(version.map(|v| &v.subject))
            .filter(|_| allowed);
        Self {
            extension_id: compiled.id.to_string(),
            kind: Some(compiled.kind),
            version: version.map(|v| v.name.to_string()),
            instance_id: instance.map(|i| i.id.to_string()),
            subject: subject.map(ToString::to_string),
            timeout_ms: version.map_or(0, |v| v.timeout_ms),
            retry: version.map_or(0, |v| v.retry),
            config: version.map_or_else(|| "{}".to_owned(), |v| String::from_utf8_lossy(&v.config).into_owned()),
            allowed,
            reason: decision.reason,
            retry_after_ms: decision.retry_after_ms,
            ticket,
            epoch: compiled.epoch,
        }
    }
}

fn json(map: &Map<String, Json>) -> Box<[u8]> {
    Json::Object(map.clone()).to_string().into_bytes().into()
}

/// A document as rows.
fn row(document: &ExtensionDocument) -> Result<ExtensionRow, DocumentError> {
    let versions = document.versions.iter().map(version_row).collect::<Result<_, _>>()?;
    Ok(ExtensionRow {
        id: document.id.clone(),
        uid: 0,
        kind: Kind::from_name(&document.kind).ok_or_else(|| {
            DocumentError::new(
                "type",
                format!("unknown type \"{}\"", document.kind),
                "Types are pre, validator, provider and post.",
            )
        })?,
        subject: document.subject.clone(),
        timeout_ms: document.timeout_ms,
        retry: document.retry,
        enabled: document.enabled,
        version: document.version.clone(),
        config: json(&document.config),
        metadata: json(&document.metadata),
        tenants: Tenants::from_metadata(&Json::Object(document.metadata.clone())),
        balancing: Balancing::from_name(&document.balancing).unwrap_or_default(),
        hash_key: document.hash_key.clone(),
        settings: settings(&document.health),
        ejection: ejection::Settings {
            after: document.health.ejection_consecutive_failures,
            max_percent: document.health.max_ejection_percent,
        },
        versions,
        instances: document.instances.iter().map(instance_row).collect(),
    })
}

fn version_row(version: &VersionDocument) -> Result<VersionRow, DocumentError> {
    let rules = &version.routing_rules;
    let parsed = RuleSet::parse(rules).map_err(|error| DocumentError::rule("routing_rules", &error))?;
    Ok(VersionRow {
        version: version.version.clone(),
        subject: version.subject.clone(),
        timeout_ms: version.timeout_ms,
        retry: version.retry,
        config: json(&version.config),
        metadata: json(&version.metadata),
        rules: Ok(parsed),
        rules_text: rules.to_string().into_bytes().into(),
        rollout: (version.rollout_percent * 100.0).round() as u32,
        rollout_key: Some(version.rollout_key.clone()),
        enabled: version.enabled,
        overrides: overrides(&version.breaker),
    })
}

fn instance_row(instance: &InstanceDocument) -> InstanceRow {
    InstanceRow {
        instance_id: instance.instance_id.clone(),
        subject: instance.subject.clone(),
        weight: instance.weight,
        enabled: instance.enabled,
        health: Health::from_name(&instance.health_status),
        version: instance.version.clone(),
        draining: instance.draining,
        metadata: json(&instance.metadata),
    }
}

fn seconds(seconds: u32) -> u64 {
    u64::from(seconds) * 1_000_000
}

fn settings(health: &HealthDocument) -> Settings {
    Settings {
        failure_threshold: health.circuit_breaker_failure_threshold,
        failure_min_rate: health.circuit_breaker_failure_min_rate,
        error_rate_threshold: health.circuit_breaker_error_rate_threshold,
        minimum_requests: health.circuit_breaker_minimum_requests,
        window_us: seconds(health.circuit_breaker_window_seconds),
        open_us: seconds(health.circuit_breaker_timeout_seconds),
        slow_call_us: health.slow_call_ms.map(|ms| (ms * 1000.0) as u64),
        slow_rate_threshold: health.slow_call_rate_threshold,
        half_open_max: health.half_open_max_requests,
        mode: Mode::from_name(&health.breaker_mode).unwrap_or_default(),
    }
}

fn overrides(own: &BreakerOverrides) -> Overrides {
    Overrides {
        failure_threshold: own.circuit_breaker_failure_threshold,
        failure_min_rate: own.circuit_breaker_failure_min_rate,
        error_rate_threshold: own.circuit_breaker_error_rate_threshold,
        minimum_requests: own.circuit_breaker_minimum_requests,
        window_us: own.circuit_breaker_window_seconds.map(seconds),
        open_us: own.circuit_breaker_timeout_seconds.map(seconds),
        slow_call_us: own.slow_call_ms.map(|ms| (ms * 1000.0) as u64),
        slow_rate_threshold: own.slow_call_rate_threshold,
        half_open_max: own.half_open_max_requests,
        mode: own.breaker_mode.as_deref().and_then(Mode::from_name),
    }
}
