//! From rows to something that decides fast: [`Compiled`].
//!
//! Versions lie in the order in which they are tried, instances are bound to the versions they serve, schedules of weighted round robin are
//! worked out at first use, and everything is fingerprinted into an epoch. A compiled extension never changes; a changed registry is
//! compiled anew.

use std::cmp::Ordering;
use std::sync::OnceLock;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::balance::Schedule;
use crate::breaker::Settings;
use crate::ejection::{self, RAMP_STEPS};
use crate::levels::{self, Level};
use crate::model::{Balancing, ExtensionRow, Health, InstanceRow, Kind, Tenants, VersionRow};
use crate::natural;
use crate::rendezvous;
use crate::rules::{RuleError, RuleSet};

/// An extension ready to decide.
#[derive(Debug)]
pub struct Compiled {
    /// Its id.
    pub id: Box<str>,
    /// The identity its live state is kept under.
    pub uid: u64,
    /// What it does.
    pub kind: Kind,
    /// Whether it may be called at all.
    pub enabled: bool,
    /// Who may call.
    pub tenants: Tenants,
    /// How an instance is chosen.
    pub balancing: Balancing,
    /// The context key for consistent hashing.
    pub hash_key: Option<Box<str>>,
    /// When instances are ejected.
    pub ejection: ejection::Settings,
    /// Fingerprint of the configuration: equal where the configuration is.
    pub epoch: u64,
    /// The versions in the order in which they are tried; the last one is the extension's own row.
    pub versions: Box<[Version]>,
    /// The rows of `extension_versions` among them, by specificity.
    pub(crate) levels: Box<[Level]>,
    /// The names of the versions with a breaker of their own; versions refer to them by position.
    pub targets: Box<[Box<str>]>,
    /// All instances, by id.
    pub instances: Box<[Instance]>,
    /// What is wrong with rows that got in unchecked.
    pub warnings: Vec<String>,
    /// Roughly what its rules take in memory.
    rules_bytes: usize,
}

/// One version ready to be chosen.
#[derive(Debug)]
pub struct Version {
    /// Its name.
    pub name: Box<str>,
    /// Its place in [`Compiled::targets`].
    pub target: usize,
    /// Its own subject.
    pub subject: Box<str>,
    /// Time one attempt may take, in milliseconds.
    pub timeout_ms: u32,
    /// Attempts after the first.
    pub retry: u32,
    /// Handed to the service.
    pub config: Box<[u8]>,
    /// Whether it may be chosen.
    pub enabled: bool,
    /// Which requests it serves; an error never matches.
    pub rules: Result<RuleSet, RuleError>,
    /// A hash of its rules as they are written: equal for equal ones.
    pub rules_print: u64,
    /// Its share in hundredths of a percent.
    pub rollout: u32,
    /// The context key its share sticks to.
    pub rollout_key: Option<Box<str>>,
    /// Its breaker's settings.
    pub settings: Settings,
    /// The instances that serve it.
    pub pool: Pool,
}

/// One instance.
#[derive(Debug)]
pub struct Instance {
    /// Its id.
    pub id: Box<str>,
    /// Where it listens.
    pub subject: Box<str>,
    /// Twice its weight, halved where it is degraded: 0-200.
    pub weight: u32,
    /// Enabled and not draining.
    pub available: bool,
    /// Why it is not eligible, by what is declared.
    pub ineligible: Option<&'static str>,
    /// What it is known by in consistent hashing.
    pub seed: u64,
}

/// The instances that serve one version, as positions in [`Compiled::instances`].
#[derive(Debug, Default)]
pub struct Pool {
    /// All with a row.
    pub members: Box<[u32]>,
    /// Those that may be chosen, by what is declared; ascending.
    pub eligible: Box<[u32]>,
    /// Those that may be chosen where none is eligible.
    pub reserve: Box<[u32]>,
    schedule: OnceLock<Option<Schedule>>,
    reserve_schedule: OnceLock<Option<Schedule>>,
}

impl Pool {
    /// The cycle over [`Pool::eligible`].
    pub fn schedule(&self, extension: &Compiled) -> Option<&Schedule> {
        self.schedule
            .get_or_init(|| extension.schedule_of(&self.eligible, |_| RAMP_STEPS))
            .as_ref()
    }

    /// The cycle over [`Pool::reserve`].
    pub fn reserve_schedule(&self, extension: &Compiled) -> Option<&Schedule> {
        self.reserve_schedule
            .get_or_init(|| extension.schedule_of(&self.reserve, |_| RAMP_STEPS))
            .as_ref()
    }
}

impl Version {
    /// How long the lease of a probe lasts, in microseconds: timeout x attempts + backoff + 1 s.
    pub fn lease_us(&self) -> u64 {
        let attempts = u64::from(self.retry) + 1;
        let backoff_ms = 100 * ((1u64 << self.retry.min(20)) - 1);
        (u64::from(self.timeout_ms) * attempts + backoff_ms + backoff_ms / 10 + 1000) * 1000
    }

    /// Whether its rules match no request at all.
    pub fn never_matches(&self) -> bool {
        self.rules
            .as_ref()
            .map_or(true, |rules| rules.never_matches().is_some())
    }

    /// Whether no request can reach it: disabled, rules that nothing satisfies, or a share of nothing.
    pub fn serves_nobody(&self) -> bool {
        !self.enabled || self.rollout == 0 || self.never_matches()
    }
}

impl Compiled {
    /// Compiles an extension. Rows that got in unchecked are left out of every decision and named in [`Compiled::warnings`].
    pub fn new(row: ExtensionRow) -> Self {
        let epoch = fingerprint(&row);
        let mut warnings = Vec::new();
        for version in &row.versions {
            if let Err(error) = &version.rules {
                warnings.push(format!(
                    "version \"{}\" of \"{}\" never matches: {error}",
                    version.version, row.id
                ));
            }
        }
        // A string of a list takes some four times its text: twice in sets, with its hash and its length.
        let rules_bytes = row.versions.iter().map(|version| 4 * version.rules_text.len()).sum();
        let mut instances = row.instances;
        instances.sort_unstable_by(|a, b| a.instance_id.cmp(&b.instance_id));
        let subjects: Vec<&str> = row
            .versions
            .iter()
            .map(|v| v.subject.as_str())
            .chain([row.subject.as_str()])
            .collect();
        let bound = |name: &str, subject: &str| -> Vec<u32> {
            let serves = |instance: &InstanceRow| match &instance.version {
                Some(version) => version == name,
                None => instance.subject == subject || !subjects.contains(&instance.subject.as_str()),
            };
            (0u32..)
                .zip(&instances)
                .filter(|(_, instance)| serves(instance))
                .map(|(place, _)| place)
                .collect()
        };
        let compiled_instances: Box<[Instance]> = instances
            .iter()
            .map(|instance| Instance::new(&row.id, instance))
            .collect();
        let pool = |name: &str, subject: &str| Pool::new(bound(name, subject), &compiled_instances);

        let mut targets: Vec<Box<str>> = row.versions.iter().map(|v| v.version.as_str().into()).collect();
        let namesake = row.versions.iter().position(|v| v.version == row.version);
        let own_target = namesake.unwrap_or_else(|| {
            targets.push(row.version.as_str().into());
            targets.len() - 1
        });
        let own = Version {
            pool: pool(&row.version, &row.subject),
            name: row.version.into(),
            target: own_target,
            subject: row.subject.as_str().into(),
            timeout_ms: row.timeout_ms,
            retry: row.retry,
            config: row.config,
            enabled: namesake.is_none_or(|place| row.versions[place].enabled),
            rules: Ok(RuleSet::default()),
            rules_print: 0,
            rollout: 10_000,
            rollout_key: None,
            settings: namesake.map_or(row.settings, |place| row.versions[place].overrides.over(row.settings)),
        };
        let pools: Vec<Pool> = row.versions.iter().map(|v| pool(&v.version, &v.subject)).collect();
        let mut versions: Vec<Version> = row
            .versions
            .into_iter()
            .zip(pools)
            .enumerate()
            .map(|(target, (version, pool))| Version::new(version, target, pool, row.settings))
            .collect();
        versions.sort_by(Version::order);
        let rules: Vec<_> = versions.iter().map(|version| &version.rules).collect();
        let levels = Level::of(&rules);
        versions.push(own);
        Self {
            id: row.id.into(),
            uid: row.uid,
            kind: row.kind,
            enabled: row.enabled,
            tenants: row.tenants,
            balancing: row.balancing,
            hash_key: row.hash_key.map(Into::into),
            ejection: row.ejection,
            epoch,
            versions: versions.into(),
            levels,
            targets: targets.into(),
            instances: compiled_instances,
            warnings,
            rules_bytes,
        }
    }

    /// Roughly what it takes in memory, its schedules included.
    pub fn bytes(&self) -> usize {
        // Beside what they hold: boxes of an allocator, and the cycle of a pool.
        let version =
            |v: &Version| size_of::<Version>() + 160 + v.config.len() + v.subject.len() + 64 * v.pool.members.len();
        let instance = |i: &Instance| size_of::<Instance>() + 64 + i.subject.len() + i.id.len();
        size_of::<Self>()
            + self.rules_bytes
            + self.versions.iter().map(version).sum::<usize>()
            + self.instances.iter().map(instance).sum::<usize>()
    }

    /// The place of the extension's own row among the versions.
    pub fn own(&self) -> usize {
        self.versions.len() - 1
    }

    /// The cycle over these instances by this extension's way of balancing, each with so many `tenths` of its weight; instances without
    /// any weight count alike.
    pub fn schedule_of(&self, places: &[u32], tenths: impl Fn(u32) -> u32) -> Option<Schedule> {
        let weight = |place: &u32| match self.balancing {
            Balancing::RoundRobin => tenths(*place),
            _ => self.instances[*place as usize].weight * tenths(*place),
        };
        let weights: Vec<u32> = places.iter().map(weight).collect();
        Schedule::new(&weights).or_else(|| Schedule::new(&vec![1; places.len()]))
    }

    /// The settings of the breaker of a target.
    pub fn settings_of(&self, target: usize) -> &Settings {
        let version = self.versions.iter().find(|version| version.target == target);
        &version.unwrap_or(&self.versions[self.own()]).settings
    }

    /// The version that an empty context gets by rules alone: the one a report without ticket and version belongs to.
    pub fn default_version(&self) -> usize {
        let matches = |version: &Version| {
            version.enabled
                && version.rollout == 10_000
                && version
                    .rules
                    .as_ref()
                    .is_ok_and(|rules| rules.matches(&crate::context::Empty))
        };
        self.versions[..self.own()]
            .iter()
            .position(matches)
            .unwrap_or(self.own())
    }
}

impl Version {
    fn new(row: VersionRow, target: usize, pool: Pool, settings: Settings) -> Self {
        Self {
            name: row.version.into(),
            target,
            subject: row.subject.into(),
            timeout_ms: row.timeout_ms,
            retry: row.retry,
            config: row.config,
            enabled: row.enabled,
            rules_print: xxh3_64(&row.rules_text),
            rules: row.rules,
            rollout: row.rollout.min(10_000),
            rollout_key: row.rollout_key.map(Into::into),
            settings: row.overrides.over(settings),
            pool,
        }
    }

    /// The number of keys of its rules.
    pub fn specificity(&self) -> usize {
        levels::specificity(&self.rules)
    }

    /// More keys first, then the higher version.
    fn order(&self, other: &Self) -> Ordering {
        other
            .specificity()
            .cmp(&self.specificity())
            .then_with(|| natural::compare(&other.name, &self.name))
    }
}

impl Instance {
    fn new(extension_id: &str, row: &InstanceRow) -> Self {
        let ineligible = if !row.enabled {
            Some("disabled")
        } else if row.draining {
            Some("draining")
        } else if row.weight == 0 {
            Some("weight is 0")
        } else if row.health == Health::Unhealthy {
            Some("declared unhealthy")
        } else {
            None
        };
        Self {
            id: row.instance_id.as_str().into(),
            subject: row.subject.as_str().into(),
            weight: if row.health == Health::Degraded {
                row.weight
            } else {
                row.weight * 2
            },
            available: row.enabled && !row.draining,
            ineligible,
            seed: rendezvous::hash(extension_id, &row.instance_id, ""),
        }
    }
}

impl Pool {
    fn new(members: Vec<u32>, instances: &[Instance]) -> Self {
        let select = |wanted: fn(&Instance) -> bool| -> Box<[u32]> {
            members
                .iter()
                .copied()
                .filter(|place| wanted(&instances[*place as usize]))
                .collect()
        };
        Self {
            eligible: select(|instance| instance.ineligible.is_none()),
            reserve: select(|instance| instance.available),
            members: members.into(),
            schedule: OnceLock::new(),
            reserve_schedule: OnceLock::new(),
        }
    }
}

/// A hash over everything an operator can configure, each part framed by its length.
struct Fingerprint(Xxh3);

impl Fingerprint {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
        self
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.0.update(&number.to_le_bytes());
        self
    }

    fn text(&mut self, text: Option<&str>) -> &mut Self {
        self.number(u64::from(text.is_some()));
        self.bytes(text.unwrap_or_default().as_bytes())
    }

    fn settings(&mut self, settings: &Settings) -> &mut Self {
        let rate = |rate: Option<f64>| rate.map_or(u64::MAX, f64::to_bits);
        self.number(settings.failure_threshold.map_or(u64::MAX, u64::from))
            .number(rate(settings.failure_min_rate))
            .number(rate(settings.error_rate_threshold))
            .number(u64::from(settings.minimum_requests))
            .number(settings.window_us)
            .number(settings.open_us)
            .number(settings.slow_call_us.unwrap_or(u64::MAX))
            .number(rate(settings.slow_rate_threshold))
            .number(u64::from(settings.half_open_max))
            .text(Some(settings.mode.as_str()))
    }
}

fn fingerprint(row: &ExtensionRow) -> u64 {
    let mut print = Fingerprint(Xxh3::new());
    print
        .text(Some(&row.id))
        .text(Some(row.kind.as_str()))
        .text(Some(&row.subject))
        .number(u64::from(row.timeout_ms))
        .number(u64::from(row.retry))
        .number(u64::from(row.enabled))
        .text(Some(&row.version))
        .bytes(&row.config)
        .bytes(&row.metadata)
        .text(Some(row.balancing.as_str()))
        .text(row.hash_key.as_deref())
        .settings(&row.settings)
        .number(row.ejection.after.map_or(u64::MAX, u64::from))
        .number(u64::from(row.ejection.max_percent));
    // Rows have no order of their own.
    let mut versions: Vec<&VersionRow> = row.versions.iter().collect();
    versions.sort_unstable_by(|a, b| a.version.cmp(&b.version));
    for version in versions {
        print
            .text(Some(&version.version))
            .text(Some(&version.subject))
            .number(u64::from(version.timeout_ms))
            .number(u64::from(version.retry))
            .bytes(&version.config)
            .bytes(&version.metadata)
            .bytes(&version.rules_text)
            .number(u64::from(version.rollout))
            .text(version.rollout_key.as_deref())
            .number(u64::from(version.enabled))
            .settings(&version.overrides.over(row.settings));
    }
    let mut instances: Vec<&InstanceRow> = row.instances.iter().collect();
    instances.sort_unstable_by(|a, b| a.instance_id.cmp(&b.instance_id));
    for instance in instances {
        print
            .text(Some(&instance.instance_id))
            .text(Some(&instance.subject))
            .number(u64::from(instance.weight))
            .number(u64::from(instance.enabled) * 2 + u64::from(instance.draining))
            .text(Some(instance.health.as_str()))
            .text(instance.version.as_deref())
            .bytes(&instance.metadata);
    }
    print.0.digest()
}
