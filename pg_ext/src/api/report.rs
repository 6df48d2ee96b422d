//! `ext_report` and `ext_report_many`: outcomes.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use ext_registry_core::account::{self, Result as Report, Settled};
use ext_registry_core::histogram::us_from_ms;
use ext_registry_core::ident::shorten;
use ext_registry_core::outcome::{Outcome, UnknownOutcome};
use ext_registry_core::tickets::Call;
use pgrx::{IntoDatum, pg_sys};

use crate::datum::{self, Args, Element, elements};
use crate::image::Pins;
use crate::shmem::{self, Reporter, Shared, Slot};
use crate::{clock, errors, persist, registry, session, tuple};

/// Counts this session among those that may still report when the server stops: the worker waits for them with its last flush.
pub fn attach(shared: &Shared) {
    if session::with(|session| std::mem::replace(&mut session.attached, true)) {
        return;
    }
    // SAFETY: a global of this process.
    if let Some(database) = shared.announce(unsafe { pg_sys::MyDatabaseId }.to_u32(), true) {
        database.sessions.fetch_add(1, AcqRel);
    }
    // SAFETY: runs in this process while shared memory is still there.
    unsafe { pg_sys::before_shmem_exit(Some(detach), pg_sys::Datum::from(0usize)) };
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn detach(_code: i32, _argument: pg_sys::Datum) {
    let shared = shmem::get();
    // SAFETY: a global of this process.
    let oid = unsafe { pg_sys::MyDatabaseId }.to_u32();
    if let Some(database) = shared.database(oid) {
        let _ = database.sessions.fetch_update(AcqRel, Acquire, |n| n.checked_sub(1));
    }
    shared.wake_worker(oid);
}

/// Frees what a call holds that nobody will report in time: its lease, and its place among the calls under way.
pub fn release(shared: &Shared, call: &Call) {
    let version = &shared.slots[call.version as usize].target;
    if let Some(lease) = call.lease {
        version.breaker.abandon(lease);
    }
    account::release(version, call.instance.map(|place| &shared.slots[place as usize].target));
}

/// Settles the call behind a ticket. Counts a report that finds nothing.
fn settle(shared: &Shared, ticket: i64, report: Report, now_us: u64, random: u64) -> bool {
    let Some(taken) = u64::try_from(ticket)
        .ok()
        .and_then(|ticket| shared.tickets().take(ticket))
    else {
        shared.head.stale_reports.fetch_add(1, Relaxed);
        return false;
    };
    let (version, instance) = (taken.call.version, taken.call.instance);
    let slot = &shared.slots[version as usize];
    let instance = instance.map(|place| &shared.slots[place as usize].target);
    let settled = account::settle(&slot.target, instance, &taken, report, now_us, random);
    tell(shared, version, slot, settled, now_us);
    true
}

/// Tells of what a report caused: the worker of a transition, the sessions of a suspect.
fn tell(shared: &Shared, place: u32, slot: &Slot, settled: Settled, now_us: u64) {
    if let Some(transition) = settled.transition {
        shared.push_transition(place, now_us, &transition);
    }
    if settled.suspect {
        shared.suspect(slot.uid());
    }
}

fn outcome(name: Option<&str>) -> Outcome {
    let Some(name) = name else {
        errors::raise(errors::INVALID_PARAMETER_VALUE, "outcome is NULL", UnknownOutcome::HINT)
    };
    name.parse().unwrap_or_else(|unknown: UnknownOutcome| {
        errors::raise(
            errors::INVALID_PARAMETER_VALUE,
            unknown.to_string(),
            UnknownOutcome::HINT,
        )
    })
}

fn latency(ms: Option<f64>) -> u64 {
    ms.and_then(us_from_ms).unwrap_or_else(|| {
        let shown = ms.map_or_else(|| "NULL".to_owned(), |ms| ms.to_string());
        errors::raise(
            errors::INVALID_PARAMETER_VALUE,
            format!("latency_ms is {shown}"),
            "Pass the time the attempt took in milliseconds, 0 or more; for a timeout the time waited.",
        )
    })
}

fn retries(n: Option<i32>) -> u32 {
    n.unwrap_or(0).try_into().unwrap_or_else(|_| {
        errors::raise(
            errors::INVALID_PARAMETER_VALUE,
            format!("retries is {}", n.unwrap_or(0)),
            "Pass the number of retries of the whole call with its last report, 0 with the others.",
        )
    })
}

crate::pg_function! {
    /// `ext_report(ticket, outcome, latency_ms, retries)`.
    ext_report_ticket, pg_finfo_ext_report_ticket, |args| {
        let report = Report {
            outcome: outcome(args.text(1).as_deref()),
            latency_us: latency(args.get(2)),
            retries: retries(args.get(3)),
        };
        let shared = shmem::get();
        attach(&shared);
        // A NULL ticket is no ticket.
        let ticket: i64 = args.get(0).unwrap_or(0);
        settle(&shared, ticket, report, clock::now_us(), session::with(session::Session::random));
        pg_sys::Datum::from(0usize)
    }
}

crate::pg_function! {
    /// `ext_report(extension_id, outcome, latency_ms, version, instance_id, retries)`: by name.
    ext_report_target, pg_finfo_ext_report_target, |args| {
        let report = Report {
            outcome: outcome(args.text(1).as_deref()),
            latency_us: latency(args.get(2)),
            retries: retries(args.get(5)),
        };
        let id = args.text(0).unwrap_or_default();
        let Some(image) = registry::get(args.function(), &id) else { errors::unknown_extension(&id) };
        let compiled = &image.compiled;
        let target = match args.text(3) {
            None => compiled.versions[compiled.default_version()].target,
            Some(name) => compiled.targets.iter().position(|target| **target == *name).unwrap_or_else(|| {
                errors::raise(
                    errors::UNDEFINED_OBJECT,
                    format!("extension \"{id}\" has no version \"{}\"", shorten(&name)),
                    format!("Its versions are {}.", compiled.targets.join(", ")),
                )
            }),
        };
        let instance = args.text(4).map(|name| {
            compiled.instances.iter().position(|instance| *instance.id == *name).unwrap_or_else(|| {
                errors::raise(
                    errors::UNDEFINED_OBJECT,
                    format!("extension \"{id}\" has no instance \"{}\"", shorten(&name)),
                    "See extension_instances for the registered ones.",
                )
            })
        });
        let shared = shmem::get();
        attach(&shared);
        let now_us = clock::now_us();
        let pins = Pins::new(&image, shared);
        if ext_registry_core::decide::Live::version(&pins, target).is_some()
            && let Some((place, slot)) = pins.keep(Some(target))
        {
            let instance = instance.and_then(|instance| pins.pin_instance(instance));
            let random = session::with(session::Session::random);
            let settled = account::settle_unticketed(&slot.target, instance.map(|(_, slot)| &slot.target), report, now_us, random);
            tell(&shared, place, slot, settled, now_us);
            account::release(&slot.target, instance.map(|(_, slot)| &slot.target));
        }
        pg_sys::Datum::from(0usize)
    }
}

/// A bridge's batch numbers, as shared memory or else the tables have them.
pub fn known_reporter(args: Args, shared: &Shared, uuid: [u8; 16], now_us: u64) -> &'static Reporter {
    let halves = [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|i| uuid[at + i])));
    // SAFETY: a global of this process.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    shared.reporter(database, halves).unwrap_or_else(|| {
        let seq = persist::reporter_seq(&registry::tables(args.function()), uuid);
        shared.enlist_reporter(database, halves, seq, now_us)
    })
}

fn list(args: Args, n: usize, name: &str, kind: Element) -> Vec<pg_sys::Datum> {
    let null = |what: &str| -> ! {
        errors::raise(
            errors::INVALID_PARAMETER_VALUE,
            format!("{name} {what}"),
            "Pass arrays of equal length without NULLs.",
        )
    };
    let Some(datum) = args.datum(n) else { null("is NULL") };
    // SAFETY: the SQL declaration says an array of this type.
    let found = unsafe { elements(datum, kind) };
    found
        .into_iter()
        .map(|element| element.unwrap_or_else(|| null("has a NULL")))
        .collect()
}

/// A batch, checked as a whole before anything of it is applied.
fn batch(args: Args) -> Vec<(i64, Report)> {
    let tickets = list(args, 0, "tickets", Element::Int8);
    let outcomes = list(args, 1, "outcomes", Element::Text);
    let latencies = list(args, 2, "latencies_ms", Element::Float8);
    let counts = list(args, 3, "retries", Element::Int4);
    let lengths = [tickets.len(), outcomes.len(), latencies.len(), counts.len()];
    if lengths.iter().any(|length| *length != lengths[0]) {
        errors::raise(
            errors::INVALID_PARAMETER_VALUE,
            format!(
                "arrays of different lengths: {} tickets, {} outcomes, {} latencies_ms, {} retries",
                lengths[0], lengths[1], lengths[2], lengths[3]
            ),
            "Pass one outcome, latency and number of retries for each ticket.",
        );
    }
    (0..lengths[0])
        .map(|i| {
            // SAFETY: elements of a text array.
            let name = unsafe { datum::text(outcomes[i]) };
            let report = Report {
                outcome: outcome(Some(&name)),
                latency_us: latency(Some(f64::from_bits(latencies[i].value() as u64))),
                retries: retries(Some(counts[i].value() as i32)),
            };
            (tickets[i].value() as i64, report)
        })
        .collect()
}

crate::pg_function! {
    /// `ext_report_many(tickets, outcomes, latencies_ms, retries, reporter, seq)`: all or nothing.
    ext_report_many, pg_finfo_ext_report_many, |args| {
        let batch = batch(args);
        let shared = shmem::get();
        attach(&shared);
        registry::announce();
        let reporter = args.get::<pgrx::Uuid>(4).zip(args.get::<i64>(5));
        let now_us = clock::now_us();
        let apply = || {
            let mut random = session::with(session::Session::random);
            batch.iter().filter(|(ticket, report)| {
                random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                settle(&shared, *ticket, *report, now_us, random)
            }).count()
        };
        let (applied, flushed) = match reporter {
            None => (apply(), None),
            Some((uuid, seq)) => {
                let (bytes, seq) = (*uuid.as_bytes(), seq.max(0) as u64);
                let known = known_reporter(args, &shared, bytes, now_us);
                known.seen_us.store(now_us, Relaxed);
                let applied = shared.applying(|| {
                    let last = known.applied.load(Acquire);
                    // Whoever moves the number on applies the batch: a batch sent again is a no-op.
                    if seq > last && known.applied.compare_exchange(last, seq, AcqRel, Acquire).is_ok() { apply() } else { 0 }
                });
                (applied, Some(known.flushed.load(Relaxed) as i64))
            }
        };
        let row_type = registry::row_type(args);
        tuple::to_datum(&row_type, &[(applied as i32).into_datum(), datum::nullable(flushed)])
    }
}
