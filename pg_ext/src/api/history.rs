//! The last minutes of live state as rows, for those who ask about spans of time; statistics reset; outcomes gathered elsewhere.

use ext_registry_core::hdr::Hdr;
use ext_registry_core::histogram::SUB_WINDOWS;
use ext_registry_core::ident::shorten;
use ext_registry_core::merge::{Entry, Gathered};
use ext_registry_core::target::{Target, minute};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::{IntoDatum, pg_sys};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::hdr::{read, write};
use super::report::{attach, known_reporter};
use crate::datum::Args;
use crate::image::Image;
use crate::shmem::{self, Slot};
use crate::tuple::{self, Value};
use crate::{clock, errors, load, registry};

/// The beginning of a minute of registry time, as people know it.
fn minute_datum(minute: u64) -> Value {
    let at = clock::to_timestamp(clock::wall_minute_us(minute));
    TimestampWithTimeZone::try_from(at).ok()?.into_datum()
}

/// The position of a version among the targets.
pub fn version_named(image: &Image, name: &str) -> Option<usize> {
    image.compiled.targets.iter().position(|target| **target == *name)
}

/// The position of an instance.
pub fn instance_named(image: &Image, name: &str) -> Option<usize> {
    // They lie by id.
    let found = image
        .compiled
        .instances
        .binary_search_by(|instance| (*instance.id).cmp(name));
    found.ok()
}

/// The rows of the minutes that a target still holds.
fn push_minutes(rows: &tuple::Rows, target: &Target, now: u64) {
    for minute in now.saturating_sub(SUB_WINDOWS as u64 - 1)..=now {
        let snapshot = target.latency.minute_snapshot(minute);
        if snapshot.is_empty() {
            continue;
        }
        let mut values = vec![minute_datum(minute)];
        values.extend(snapshot.outcomes.iter().map(|count| (*count as i64).into_datum()));
        values.push(Some(write(&Hdr::from_snapshot(&snapshot))));
        rows.push(&values);
    }
}

crate::pg_function! {
    /// `_ext_live_minutes(id, version, instance_id)`: what extension_metrics will hold of the last minutes. Of an instance if one is
    /// named, of a version if one is named, else of all versions.
    _ext_live_minutes, pg_finfo__ext_live_minutes, |args| {
        let rows = tuple::Rows::new(args, registry::row_type(args));
        let id = args.text(0).unwrap_or_default();
        let Some(image) = registry::get(args.function(), &id) else { return rows.finish(args) };
        let (shared, now) = (shmem::get(), minute(clock::now_us()));
        match (args.text(1), args.text(2)) {
            (_, Some(name)) => {
                if let Some(instance) = instance_named(&image, &name) {
                    push_minutes(&rows, &image.instance_seen(instance, &shared), now);
                }
            }
            (Some(name), None) => {
                if let Some(version) = version_named(&image, &name) {
                    push_minutes(&rows, &image.version_seen(version, &shared), now);
                }
            }
            (None, None) => {
                for version in 0..image.compiled.targets.len() {
                    push_minutes(&rows, &image.version_seen(version, &shared), now);
                }
            }
        }
        rows.finish(args)
    }
}

crate::pg_function! {
    /// `_ext_live_since()`: the first minute that live state speaks for; what is older is in extension_metrics alone.
    _ext_live_since, pg_finfo__ext_live_since, |args| {
        minute_datum(minute(clock::now_us()).saturating_sub(SUB_WINDOWS as u64 - 1)).unwrap_or_else(|| args.null())
    }
}

crate::pg_function! {
    /// `hdr_buckets(h)`: the buckets that hold latencies, in ms.
    hdr_buckets, pg_finfo_hdr_buckets, |args| {
        let rows = tuple::Rows::new(args, registry::row_type(args));
        for bucket in read(args, 0).buckets() {
            rows.push(&[
                (bucket.lowest_us as f64 / 1000.0).into_datum(),
                ((bucket.highest_us + 1) as f64 / 1000.0).into_datum(),
                (bucket.count as i64).into_datum(),
            ]);
        }
        rows.finish(args)
    }
}

crate::pg_function! {
    /// `_ext_stats_reset(id)`: at once, for everybody. NULL: all extensions of this database. Returns how many targets.
    _ext_stats_reset, pg_finfo__ext_stats_reset, |args| {
        let ids: Vec<String> = match args.text(0) {
            Some(id) => vec![id.into_owned()],
            None => load::ids(&registry::tables(args.function())).into_iter().map(|(id, _)| id).collect(),
        };
        let shared = shmem::get();
        let mut targets = 0i64;
        for id in ids {
            let Some(image) = registry::get(args.function(), &id) else {
                if args.datum(0).is_some() {
                    errors::unknown_extension(&id);
                }
                continue;
            };
            targets += image.reset_statistics(&shared);
        }
        pg_sys::Datum::from(targets)
    }
}

/// What became of an entry of a gathered document.
const LIVE: &str = "live";
const HISTORY: &str = "history";
const UNKNOWN: &str = "unknown";
const REPEATED: &str = "repeated";

/// Where an entry is to be counted.
struct Place {
    /// What it is called in the history.
    names: Names,
    slot: Option<&'static Slot>,
}

/// Version and instance, '' for none.
type Names = (String, String);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            slot.target.end();
        }
    }
}

/// What an entry names, in the words of the history: a version, and an instance if there was one. Each is pinned if it is registered; one
/// that has gone since takes nothing from the other.
fn places(image: Option<&Image>, entry: &Entry) -> Vec<Result<Place, Names>> {
    let shared = shmem::get();
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    let version = image.and_then(|image| {
        let target = match &entry.version {
            Some(name) => version_named(image, name)?,
            None => image.compiled.versions[image.compiled.default_version()].target,
        };
        Some(Place {
            names: (image.compiled.targets[target].to_string(), String::new()),
            slot: image.pin_version(target, &shared),
        })
    });
    let mut places = vec![version.ok_or_else(|| (name(&entry.version), String::new()))];
    if let Some(id) = &entry.instance_id {
        let instance = image.and_then(|image| {
            let instance = instance_named(image, id)?;
            Some(Place {
                names: (String::new(), id.clone()),
                slot: image.pin_instance(instance, &shared).map(|(_, slot)| slot),
            })
        });
        places.push(instance.ok_or_else(|| (String::new(), id.clone())));
    }
    places
}

/// The document in argument 0.
fn gathered(args: Args) -> Gathered {
    let refuse = |message: String, hint: &str| -> ! { errors::raise(errors::INVALID_PARAMETER_VALUE, message, hint) };
    let hint = "Pass an object with targets, such as '{\"targets\": [{\"extension_id\": \"x\", \"at\": 1795648740, \"outcomes\": {\"success\": 1}}]}'.";
    match args.json(0) {
        None => refuse("the document is NULL".to_owned(), hint),
        Some(Err(why)) => refuse(format!("the document {why}"), hint),
        Some(Ok(document)) => {
            Gathered::parse(&document).unwrap_or_else(|error| refuse(error.to_string(), error.hint()))
        }
    }
}

crate::pg_function! {
    /// `_ext_merge(doc)`: counts what was gathered elsewhere into live state, and returns a row for each target and minute: what became of
    /// it. Those with status `history` are too old for live state; the caller writes them into extension_metrics.
    _ext_merge, pg_finfo__ext_merge, |args| {
        let gathered = gathered(args);
        let reporter = gathered.reporter.as_ref().map(|(uuid, seq)| {
            let parsed = parse_uuid(uuid).unwrap_or_else(|| errors::raise(
                errors::INVALID_PARAMETER_VALUE,
                format!("reporter: \"{}\" is no uuid", shorten(uuid)),
                "Write a uuid of the one who gathered the document, such as 6f1c9a52-7d7e-4c34-9a53-0d8a6b1f2c3e.",
            ));
            (parsed, *seq)
        });
        let rows = tuple::Rows::new(args, registry::row_type(args));
        let shared = shmem::get();
        attach(&shared);
        registry::announce();
        let now_us = clock::now_us();
        // Looked up before anything is counted: a look-up may raise an error, counting may not.
        let entries: Vec<(&Entry, Vec<Result<Place, Names>>)> = gathered
            .targets
            .iter()
            .map(|entry| {
                let image = registry::get(args.function(), &entry.extension_id);
                (entry, places(image.as_deref(), entry))
            })
            .collect();
        let known = reporter.map(|(uuid, seq)| (known_reporter(args, &shared, uuid, now_us), seq));
        // The wall clock's minute, as registry time counts it.
        let shift = minute(clock::wall_us()) as i64 - minute(now_us) as i64;
        let statuses: Vec<Vec<&str>> = shared.applying(|| {
            let fresh = known.is_none_or(|(known, seq)| {
                let last = known.applied.load(Acquire);
                seq > last && known.applied.compare_exchange(last, seq, AcqRel, Acquire).is_ok()
            });
            entries.iter().map(|(entry, places)| {
                let mut snapshot = entry.latency.to_snapshot();
                snapshot.outcomes = entry.outcomes;
                let minute = entry.minute.saturating_add_signed(-shift).min(minute(now_us));
                places.iter().map(|place| match place {
                    Err(_) => UNKNOWN,
                    Ok(_) if !fresh => REPEATED,
                    Ok(Place { slot: Some(slot), .. }) if slot.target.merge(minute, &snapshot, now_us) => LIVE,
                    Ok(_) => HISTORY,
                }).collect()
            }).collect()
        });
        if let Some((known, _)) = known {
            known.seen_us.store(now_us, Relaxed);
        }
        for ((entry, places), statuses) in entries.iter().zip(statuses) {
            let row = |status: &str, names: &Names| {
                let mut values: Vec<Value> = vec![
                    status.into_datum(),
                    TimestampWithTimeZone::try_from(clock::to_timestamp(entry.minute * 60_000_000)).ok().and_then(IntoDatum::into_datum),
                    entry.extension_id.as_str().into_datum(),
                    names.0.as_str().into_datum(),
                    names.1.as_str().into_datum(),
                ];
                values.extend(entry.outcomes.iter().map(|count| (*count as i64).into_datum()));
                values.push(Some(write(&entry.latency)));
                rows.push(&values);
            };
            for (place, status) in places.iter().zip(statuses) {
                let names = match place {
                    Ok(place) => &place.names,
                    Err(names) => names,
                };
                row(status, names);
            }
        }
        rows.finish(args)
    }
}

/// The bytes of a uuid in its usual form.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 16];
    for (number, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * number..2 * number + 2], 16).ok()?;
    }
    Some(bytes)
}
