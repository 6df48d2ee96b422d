//! What the health views show: live state, read from shared memory.

use std::rc::Rc;

use ext_registry_core::breaker::{Mode, State};
use ext_registry_core::compile::Version;
use ext_registry_core::ejection::{RAMP_STEPS, Standing};
use ext_registry_core::fitness::Effects;
use ext_registry_core::histogram::Counts;
use ext_registry_core::outcome::{CIRCUIT_OPEN, Outcome};
use ext_registry_core::reach::Shortfall;
use ext_registry_core::target::{COUNTERS, Target, minute};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::{IntoDatum, pg_sys};

use super::history;
use crate::datum::{Args, nullable};
use crate::image::Image;
use crate::tuple::{self, Value};
use crate::{clock, load, registry, session, shmem};

fn timestamp(registry_us: Option<u64>) -> Value {
    let at = registry_us.map(|us| clock::to_timestamp(clock::to_wall_us(us)))?;
    TimestampWithTimeZone::try_from(at).ok()?.into_datum()
}

fn ms(us: Option<u64>) -> Value {
    nullable(us.map(|us| us as f64 / 1000.0))
}

fn percent(hundredths: u32) -> Value {
    (f64::from(hundredths) / 100.0).into_datum()
}

fn big(n: u64) -> Value {
    (n as i64).into_datum()
}

/// Successes and failures out of the counters.
fn verdicts(counts: &[u64; COUNTERS]) -> (u64, u64) {
    let failures = [
        Outcome::Error,
        Outcome::Timeout,
        Outcome::NoResponders,
        Outcome::InvalidResponse,
    ];
    (
        counts[Outcome::Success as usize],
        failures.iter().map(|outcome| counts[*outcome as usize]).sum(),
    )
}

/// The last five minutes of a target.
#[derive(Default)]
struct Recent {
    latency: Counts,
    successes: u64,
    failures: u64,
    oldest_minute: Option<u64>,
}

impl Recent {
    fn add(&mut self, target: &Target, now_us: u64) {
        let now = minute(now_us);
        let mut counts = Counts::default();
        target.latency.summary(now, &mut counts);
        self.oldest_minute = [self.oldest_minute, counts.oldest_minute()].into_iter().flatten().min();
        self.latency.merge(&counts);
        for back in 0..ext_registry_core::histogram::SUB_WINDOWS as u64 {
            let outcomes = target.latency.outcomes(now.saturating_sub(back));
            let (successes, failures) = verdicts(&outcomes);
            self.successes += successes;
            self.failures += failures;
        }
    }

    fn success_rate(&self) -> Value {
        let total = self.successes + self.failures;
        nullable((total > 0).then(|| self.successes as f64 / total as f64))
    }

    /// avg, p50, p95, p99.
    fn percentiles(&self) -> [Value; 4] {
        let latency = &self.latency;
        [
            latency.mean_ms(),
            latency.quantile(0.5),
            latency.quantile(0.95),
            latency.quantile(0.99),
        ]
        .map(nullable)
    }
}

fn image(args: Args) -> Option<Rc<Image>> {
    registry::get(args.function(), &args.text(0)?)
}

crate::pg_function! {
    /// `_ext_live_extension(id)`: one row over all versions.
    _ext_live_extension, pg_finfo__ext_live_extension, |args| {
        let Some(image) = image(args) else { return args.null() };
        let (shared, now_us, compiled) = (shmem::get(), clock::now_us(), &image.compiled);
        let mut recent = Recent::default();
        let (mut successes, mut failures, mut live_leases) = (0, 0, 0);
        let (mut last_success, mut last_failure, mut updated) = (None, None, None);
        let mut last_latency: Option<(u64, u64)> = None;
        let mut worst = (State::Closed, None);
        let mut open: Vec<String> = Vec::new();
        for (number, name) in compiled.targets.iter().enumerate() {
            let seen = image.version_seen(number, &shared);
            let target: &Target = &seen;
            let (good, bad) = verdicts(&target.counts());
            successes += good;
            failures += bad;
            recent.add(target, now_us);
            last_success = last_success.max(target.last_success_us());
            last_failure = last_failure.max(target.last_failure_us());
            updated = updated.max(target.updated_us());
            if let (Some(at), Some(us)) = (target.updated_us(), target.last_latency_us())
                && last_latency.is_none_or(|(known, _)| at >= known)
            {
                last_latency = Some((at, us));
            }
            // A version that can serve nobody does not count for the state of the whole.
            let serves = compiled.versions.iter().enumerate().any(|(place, version)| {
                version.target == number && if place == compiled.own() { version.enabled && own_can_serve(&image) } else { !version.serves_nobody() }
            });
            if !serves {
                continue;
            }
            let view = image.breaker_view(number, target, now_us);
            live_leases += view.live_leases;
            if view.state == State::Open {
                open.push(name.to_string());
            }
            if rank(view.state) > rank(worst.0) {
                worst = (view.state, view.opened_us);
            }
        }
        open.sort_unstable_by(|a, b| ext_registry_core::natural::compare(a, b));
        let [avg, p50, p95, p99] = recent.percentiles();
        let samples = recent.latency.total();
        tuple::to_datum(&registry::row_type(args), &[
            timestamp(last_success),
            timestamp(last_failure),
            big(successes),
            big(failures),
            recent.success_rate(),
            avg,
            p50,
            p95,
            p99,
            ms(last_latency.map(|(_, us)| us)),
            big(samples),
            nullable((samples > 0).then(|| recent.latency.sum_ms())),
            timestamp(recent.oldest_minute.map(|minute| minute * 60_000_000)),
            worst.0.as_str().into_datum(),
            timestamp(worst.1),
            (live_leases as i32).into_datum(),
            open.into_datum(),
            timestamp(updated),
        ])
    }
}

/// Whether the extension's own row can serve anybody: not if a version without rules takes everything.
fn own_can_serve(image: &Image) -> bool {
    let compiled = &image.compiled;
    !compiled.versions[..compiled.own()].iter().any(|version| {
        version.enabled
            && version.rollout == 10_000
            && version.rules.as_ref().is_ok_and(|rules| rules.specificity() == 0)
    })
}

fn rank(state: State) -> u8 {
    match state {
        State::Closed => 0,
        State::HalfOpen => 1,
        State::Open => 2,
    }
}

crate::pg_function! {
    /// `_ext_live_versions(id)`.
    _ext_live_versions, pg_finfo__ext_live_versions, |args| {
        let rows = tuple::Rows::new(args, registry::row_type(args));
        let Some(image) = image(args) else { return rows.finish(args) };
        let (shared, now_us, compiled) = (shmem::get(), clock::now_us(), &image.compiled);
        for (number, name) in compiled.targets.iter().enumerate() {
            let Some(version) = compiled.versions.iter().find(|version| version.target == number) else { continue };
            let settings = compiled.settings_of(number);
            let seen = image.version_seen(number, &shared);
            let target: &Target = &seen;
            let counts = target.counts();
            let (successes, failures) = verdicts(&counts);
            let mut recent = Recent::default();
            recent.add(target, now_us);
            let view = image.breaker_view(number, target, now_us);
            let [avg, p50, p95, p99] = recent.percentiles();
            let mut values = vec![(**name).into_datum(), version.enabled.into_datum(), (*version.subject).into_datum(), big(successes), big(failures)];
            values.extend(counts[Outcome::Error as usize..=CIRCUIT_OPEN].iter().map(|n| big(*n)));
            values.extend([recent.success_rate(), avg, p50, p95, p99, ms(target.last_latency_us()), big(recent.latency.total())]);
            values.extend([timestamp(target.last_success_us()), timestamp(target.last_failure_us())]);
            values.extend([
                view.state.as_str().into_datum(),
                timestamp(view.opened_us),
                (view.live_leases as i32).into_datum(),
                settings.mode.as_str().into_datum(),
                big(view.tally.requests()),
                big(view.tally.failures),
                big(view.tally.slow),
                nullable(view.retry_after_us.filter(|_| settings.mode == Mode::Auto).map(|us| us.div_ceil(1000).max(1).min(i32::MAX as u64) as i32)),
                big(target.in_flight()),
                timestamp(target.updated_us()),
            ]);
            rows.push(&values);
        }
        rows.finish(args)
    }
}

crate::pg_function! {
    /// `_ext_shortfalls(id)`.
    _ext_shortfalls, pg_finfo__ext_shortfalls, |args| {
        let rows = tuple::Rows::new(args, registry::row_type(args));
        let Some(image) = image(args) else { return rows.finish(args) };
        let versions = &image.compiled.versions;
        for (place, shortfall) in image.compiled.shortfalls() {
            let name = (*versions[place].name).into_datum();
            match shortfall {
                Shortfall::Never { key } => rows.push(&[name, key.into_datum(), None, None, None]),
                Shortfall::Share { gets, taken_by, taken } => {
                    rows.push(&[name, None, percent(gets), (*versions[taken_by].name).into_datum(), percent(taken)]);
                }
            }
        }
        rows.finish(args)
    }
}

crate::pg_function! {
    /// `_ext_live_instance(extension_id, instance_id)`.
    _ext_live_instance, pg_finfo__ext_live_instance, |args| {
        let Some(image) = image(args) else { return args.null() };
        let Some(place) = args.text(1).and_then(|name| history::instance_named(&image, &name)) else { return args.null() };
        let (shared, now_us, compiled) = (shmem::get(), clock::now_us(), &image.compiled);
        let instance = &compiled.instances[place];
        // Suspects are judged first, as the next decision would: what is shown is what it would meet.
        let _ = image.fitness(&shared, now_us, session::with(session::Session::random), Effects::Apply);
        let seen = image.instance_seen(place, &shared);
        let target: &Target = &seen;
        let (tenths, out_until_us) = match image.standing(target, now_us) {
            Standing::Fit => (RAMP_STEPS, None),
            Standing::Returning { tenths, .. } => (tenths, None),
            Standing::Ejected { until_us } => (0, Some(until_us)),
        };
        let serves = |version: &&Version| version.pool.members.binary_search(&(place as u32)).is_ok();
        let mut versions: Vec<String> = compiled.versions.iter().filter(serves).map(|version| version.name.to_string()).collect();
        versions.sort_unstable_by(|a, b| ext_registry_core::natural::compare(a, b));
        versions.dedup();
        let (successes, failures) = verdicts(&target.counts());
        let mut recent = Recent::default();
        recent.add(target, now_us);
        let [avg, p50, p95, p99] = recent.percentiles();
        tuple::to_datum(&registry::row_type(args), &[
            (*instance.id).into_datum(),
            versions.into_datum(),
            (instance.ineligible.is_none() && tenths > 0).into_datum(),
            (f64::from(instance.weight) / 2.0 * f64::from(tenths) / f64::from(RAMP_STEPS)).into_datum(),
            big(successes),
            big(failures),
            recent.success_rate(),
            avg,
            p50,
            p95,
            p99,
            ms(target.last_latency_us()),
            big(recent.latency.total()),
            timestamp(target.last_success_us()),
            timestamp(target.last_failure_us()),
            big(target.in_flight()),
            timestamp(out_until_us),
            timestamp(target.updated_us()),
        ])
    }
}

crate::pg_function! {
    /// `_ext_merged_latency()`: the histograms of all extensions merged.
    _ext_merged_latency, pg_finfo__ext_merged_latency, |args| {
        let tables = registry::tables(args.function());
        let (shared, now_us) = (shmem::get(), clock::now_us());
        let uids: std::collections::HashSet<u64> = load::ids(&tables).into_iter().map(|(_, uid)| uid).collect();
        // SAFETY: a global of this process.
        let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
        let mut recent = Recent::default();
        for slot in shared.slots.iter().filter(|slot| slot.is_used() && slot.kind() == shmem::VERSION && slot.database() == database && slot.registry() == tables.registry()) {
            if uids.contains(&slot.uid()) {
                recent.add(&slot.target, now_us);
            }
        }
        let [avg, p50, p95, p99] = recent.percentiles();
        tuple::to_datum(&registry::row_type(args), &[big(recent.latency.total()), avg, p50, p95, p99])
    }
}
