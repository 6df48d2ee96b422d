//! What a worker writes: transitions, counts, minute metrics, the batches of bridges; and what it cleans up.
//!
//! Everything is written as it stands, not as a difference, so that writing it twice is writing it once. A copy of the counts and of the batch
//! numbers that belong to them is taken under the lock that batches are applied under, and written in one transaction.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use ext_registry_core::hdr::Hdr;
use ext_registry_core::histogram::{MinuteSnapshot, OUTCOMES, SUB_WINDOWS};
use ext_registry_core::target::minute;
use pgrx::bgworkers::BackgroundWorker;
use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::pg_sys::panic::CaughtError;
use pgrx::spi::{self, Spi, SpiClient};
use pgrx::{PgOid, PgTryBuilder, Uuid, pg_sys};

use super::triggers::Triggers;
use crate::shmem::{Database, Moved, Shared, Slot, VERSION};
use crate::{clock, guc, invalidate, session};

/// How long nothing is written after that has failed, in microseconds.
const REST_US: u64 = 1_000_000;
/// How often at most a failure is told, in microseconds.
const COMPLAINT_US: u64 = 60_000_000;

/// The state of writing down, of one database.
pub struct Flusher {
    database: u32,
    /// The oid of the table `extensions`.
    registry: u32,
    schema: String,
    /// The name of that table as a literal: what is written checks that it is still the same one, after it has waited for whoever drops it.
    extensions: String,
    /// By key of the target: the minutes whose metrics are written. An earlier minute than the last can still grow: by outcomes that
    /// were gathered elsewhere.
    minutes: HashMap<u64, Vec<Written>>,
    /// So many changes of the registry have been told.
    told: u64,
    triggers: Triggers,
    /// Nothing is written before this time: writing has just failed.
    rests_until_us: u64,
    /// When that was last complained of.
    complained_us: u64,
}

/// A minute of a target whose metrics are written.
#[derive(Clone, Copy)]
struct Written {
    minute: u64,
    /// Its outcomes at that time.
    outcomes: u64,
    /// The wall time that it is written under, in microseconds. It stays that of its first writing, so that a minute in which the clock is
    /// stepped is not in the history twice.
    at_us: u64,
}

/// A copy of one target.
struct Copied {
    uid: u64,
    kind: u32,
    name: String,
    snapshot: Vec<u8>,
    breaker_state: &'static str,
    /// By the wall time to write them under.
    minutes: Vec<(u64, MinuteSnapshot)>,
    /// What will have been written with these, as in [`Flusher`].
    written: Vec<Written>,
}

/// A copy of one bridge's batch number.
struct Batches {
    place: usize,
    uuid: [u64; 2],
    seq: u64,
}

impl Flusher {
    /// Looks for the extension in this database.
    pub fn new(database: u32) -> Option<Self> {
        let (schema, registry, extensions) = find()?;
        Some(Self {
            database,
            registry,
            schema,
            extensions,
            minutes: HashMap::new(),
            told: 0,
            triggers: Triggers::default(),
            rests_until_us: 0,
            complained_us: 0,
        })
    }

    /// Looks again: the extension may have been dropped, and created again elsewhere. Returns whether it is there.
    pub fn look_again(&mut self) -> bool {
        let Some((schema, registry, extensions)) = find() else {
            return false;
        };
        if registry != self.registry {
            self.minutes.clear();
        }
        (self.schema, self.registry, self.extensions) = (schema, registry, extensions);
        true
    }

    /// How long nothing is to be written, in microseconds, because writing has just failed.
    pub fn rest_us(&self, now_us: u64) -> u64 {
        self.rests_until_us.saturating_sub(now_us)
    }

    /// Writes in a transaction of its own. `None` if that failed: one warning a minute tells why, and it is not tried again for a while.
    fn write<T>(&mut self, work: impl FnOnce(&mut SpiClient<'_>) -> spi::Result<T>) -> Option<T> {
        let error = match transaction(work) {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let now_us = clock::now_us();
        self.rests_until_us = now_us + REST_US;
        if self.complained_us == 0 || self.complained_us + COMPLAINT_US <= now_us {
            self.complained_us = now_us;
            pgrx::warning!(
                "ext_registry: cannot write live state down: {error}; it stays in shared memory, and is tried again every second"
            );
        }
        None
    }

    fn sql(&self, statement: &str) -> String {
        statement
            .replace("@schema@", &self.schema)
            .replace("@extensions@", &self.extensions)
            .replace("@registry@", &self.registry.to_string())
    }

    /// Writes the transitions that have happened since the last call, and logs them.
    ///
    /// How far they are written is kept in shared memory, so a worker that follows another goes on where that one stopped.
    pub fn events(&mut self, shared: &Shared, database: &Database) {
        let mut cursor = database.event_cursor.load(Relaxed);
        let moved = shared.events_since(&mut cursor);
        let mine: Vec<(Moved, &Slot)> = moved
            .into_iter()
            .filter_map(|moved| {
                let slot = &shared.slots[moved.place as usize];
                let known = slot.key() == moved.key && self.owns(slot);
                known.then_some((moved, slot))
            })
            .collect();
        if mine.is_empty() {
            database.event_cursor.store(cursor, Relaxed);
            return;
        }
        let sql = self.sql(include_str!("events.sql"));
        let states = self.sql(include_str!("state.sql"));
        let saved = self.sql(include_str!("saved.sql"));
        let places: HashSet<usize> = mine.iter().map(|(moved, _)| moved.place as usize).collect();
        let written = self.write(|client| {
            let (mut uids, mut names, mut ats, mut froms, mut tos, mut reasons) =
                (vec![], vec![], vec![], vec![], vec![], vec![]);
            let (mut kinds, mut failures, mut requests) = (vec![], vec![], vec![]);
            for (moved, slot) in &mine {
                uids.push(slot.uid() as i64);
                kinds.push(slot.kind() as i16);
                names.push(slot.name());
                ats.push(timestamp(clock::to_wall_us(moved.at_us)));
                froms.push(moved.from);
                tos.push(moved.to);
                reasons.push(moved.reason);
                failures.push(moved.failures as i64);
                requests.push(moved.requests as i64);
            }
            let rows = client.update(
                &sql,
                None,
                &[
                    array(uids, pg_sys::INT8ARRAYOID),
                    array(kinds, pg_sys::INT2ARRAYOID),
                    array(names, pg_sys::TEXTARRAYOID),
                    array(ats, pg_sys::TIMESTAMPTZARRAYOID),
                    array(froms, pg_sys::TEXTARRAYOID),
                    array(tos, pg_sys::TEXTARRAYOID),
                    array(reasons, pg_sys::TEXTARRAYOID),
                    array(failures, pg_sys::INT8ARRAYOID),
                    array(requests, pg_sys::INT8ARRAYOID),
                ],
            )?;
            let mut lines = Vec::new();
            for row in rows {
                lines.extend(row.get::<String>(1)?);
                // Standbys read what is written here when they load an extension: with this message they do so anew.
                if let Some(id) = row.get::<String>(2)? {
                    invalidate::announce(&id);
                }
            }
            let copies = transitions(client, &saved, shared, &places)?;
            write_states(client, &states, &copies)?;
            Ok(lines)
        });
        // Where that failed they are still in the ring.
        if let Some(lines) = written {
            database.event_cursor.store(cursor, Relaxed);
            lines.iter().for_each(|line| pgrx::log!("ext_registry: {line}"));
        }
    }

    /// Writes counts, breaker states, minute metrics and batch numbers down.
    pub fn counts(&mut self, shared: &Shared, database: &Database, now_us: u64) {
        let (copies, batches) = shared.copying(|| {
            let changed = shared
                .slots
                .iter()
                .enumerate()
                .filter(|(_, slot)| self.owns(slot) && slot.target.fingerprint() != slot.written.load(Relaxed));
            let copies: Vec<(usize, u64, Copied)> = changed
                .filter_map(|(place, slot)| {
                    let print = slot.target.fingerprint();
                    copy(shared, place, now_us, &self.minutes).map(|copied| (place, print, copied))
                })
                .collect();
            let batches: Vec<Batches> = shared
                .head
                .reporters
                .iter()
                .enumerate()
                .filter(|(_, r)| r.key.load(Acquire) != 0 && r.database.load(Relaxed) == self.database)
                .filter(|(_, r)| r.applied.load(Acquire) > r.flushed.load(Relaxed))
                .map(|(place, r)| Batches {
                    place,
                    uuid: [r.uuid[0].load(Relaxed), r.uuid[1].load(Relaxed)],
                    seq: r.applied.load(Acquire),
                })
                .collect();
            (copies, batches)
        });
        if copies.is_empty() && batches.is_empty() {
            database.flushed_us.store(now_us, Relaxed);
            return;
        }
        let (states, metrics, reporters) = (
            self.sql(include_str!("state.sql")),
            self.sql(include_str!("metrics.sql")),
            self.sql(include_str!("reporters.sql")),
        );
        let done = self.write(|client| {
            let rows: Vec<&Copied> = copies.iter().map(|(_, _, copied)| copied).collect();
            write_states(client, &states, rows.iter().copied())?;
            write_metrics(client, &metrics, &rows)?;
            if !batches.is_empty() {
                let uuids: Vec<Uuid> = batches.iter().map(|batch| uuid(batch.uuid)).collect();
                let seqs: Vec<i64> = batches.iter().map(|batch| batch.seq as i64).collect();
                client.update(
                    &reporters,
                    None,
                    &[array(uuids, pg_sys::UUIDARRAYOID), array(seqs, pg_sys::INT8ARRAYOID)],
                )?;
            }
            Ok(())
        });
        if done.is_none() {
            return;
        }
        for (place, print, copied) in &copies {
            let slot = &shared.slots[*place];
            slot.written.store(*print, Relaxed);
            self.minutes.insert(slot.key(), copied.written.clone());
        }
        for batch in &batches {
            shared.head.reporters[batch.place].flushed.store(batch.seq, Relaxed);
        }
        database.flushed_us.store(now_us, Relaxed);
    }

    /// Tells who listens on the channel `ext_registry` that the registry has changed or a breaker has moved. The triggers cannot:
    /// a transaction that notifies cannot be prepared.
    pub fn tell(&mut self) {
        let changes = session::with(|session| session.changes);
        if changes == self.told {
            return;
        }
        let sql = "select pg_catalog.pg_notify('ext_registry', '')";
        if self.write(|client| client.update(sql, None, &[]).map(drop)).is_some() {
            self.told = changes;
        }
    }

    /// The database.
    pub(super) fn database(&self) -> u32 {
        self.database
    }

    /// The oid of the table `extensions`.
    pub(super) fn registry(&self) -> u32 {
        self.registry
    }

    /// Whether a place holds a target of this registry.
    pub(super) fn owns(&self, slot: &Slot) -> bool {
        slot.is_used() && slot.database() == self.database && slot.registry() == self.registry
    }

    /// Frees the places of what is gone and deletes what is too old.
    pub fn housekeeping(&mut self, shared: &Shared) {
        self.triggers.look_at(&self.schema);
        let uids = self.sql("select uid from @schema@.extensions");
        let clean = self.sql(include_str!("housekeeping.sql"));
        // What was given out before the list was read and is not on it may be of a transaction that has not committed yet.
        let old_us = clock::now_us().saturating_sub(60_000_000);
        let known = self.write(|client| {
            let mut known = HashSet::new();
            for row in client.select(&uids, None, &[])? {
                known.extend(row.get::<i64>(1)?.map(|uid| uid as u64));
            }
            let retention = [guc::METRICS_RETENTION.get(), guc::EVENTS_RETENTION.get()];
            client.update(&clean, None, &[retention[0].into(), retention[1].into()])?;
            Ok(known)
        });
        if let Some(known) = known {
            shared.release_if(|slot| {
                slot.database() == self.database
                    && slot.touched_us() < old_us
                    && (slot.registry() != self.registry || !known.contains(&slot.uid()))
            });
            self.minutes.retain(|key, _| shared.find(*key).is_some());
        }
    }
}

/// The schema of the extension in this database, and the oid of its table `extensions`.
fn find() -> Option<(String, u32, String)> {
    // By a client that only reads: the others take a transaction id, which a standby has none of.
    let found = BackgroundWorker::transaction(|| Spi::connect(find_with));
    found.unwrap_or_else(|error| {
        pgrx::log!("ext_registry: cannot look for the extension: {error}");
        None
    })
}

fn find_with(client: &SpiClient<'_>) -> spi::Result<Option<(String, u32, String)>> {
    // Nothing of a worker waits for a synchronous standby, and nothing depends on a search_path.
    client.select(
        "select pg_catalog.set_config('synchronous_commit', 'local', false), \
         pg_catalog.set_config('search_path', 'pg_catalog', false)",
        None,
        &[],
    )?;
    let mut rows = client.select(
        "select pg_catalog.quote_ident(n.nspname), c.oid, \
         pg_catalog.quote_literal(pg_catalog.quote_ident(n.nspname) || '.extensions') from pg_catalog.pg_extension e \
         join pg_catalog.pg_namespace n on n.oid = e.extnamespace \
         join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = 'extensions' \
         where e.extname = 'ext_registry'",
        None,
        &[],
    )?;
    let Some(row) = rows.next() else { return Ok(None) };
    let columns = (row.get::<String>(1)?, row.get::<pg_sys::Oid>(2)?, row.get::<String>(3)?);
    let (Some(schema), Some(registry), Some(extensions)) = columns else {
        return Ok(None);
    };
    Ok(Some((schema, registry.to_u32(), extensions)))
}

/// Copies what is to be written of a place. Nothing in here calls Postgres.
fn copy(shared: &Shared, place: usize, now_us: u64, written: &HashMap<u64, Vec<Written>>) -> Option<Copied> {
    let slot = &shared.slots[place];
    if !slot.is_used() {
        return None;
    }
    let now = minute(now_us);
    let oldest = now.saturating_sub(SUB_WINDOWS as u64 - 1);
    let all: Vec<(u64, MinuteSnapshot)> = (oldest..=now)
        .map(|minute| (minute, slot.target.latency.minute_snapshot(minute)))
        .filter(|(_, snapshot)| !snapshot.is_empty())
        .collect();
    let snapshot = slot.target.snapshot(&all);
    let before = written.get(&slot.key()).map_or(&[][..], Vec::as_slice);
    let known = |minute: u64| before.iter().find(|written| written.minute == minute);
    let written: Vec<Written> = all
        .iter()
        .map(|(minute, snapshot)| Written {
            minute: *minute,
            outcomes: snapshot.outcomes.iter().sum(),
            at_us: known(*minute).map_or_else(|| clock::wall_minute_us(*minute), |written| written.at_us),
        })
        .collect();
    let last = before.last().map_or(0, |written| written.minute);
    Some(Copied {
        uid: slot.uid(),
        kind: slot.kind(),
        name: slot.name(),
        snapshot,
        breaker_state: slot.target.breaker.state().as_str(),
        // The last minute is written again in any case: its latencies may be behind its outcomes.
        minutes: all
            .into_iter()
            .zip(&written)
            .filter(|(_, now)| now.minute >= last || known(now.minute).is_none_or(|then| then.outcomes != now.outcomes))
            .map(|((_, snapshot), now)| (now.at_us, snapshot))
            .collect(),
        written,
    })
}

/// What is to be written of places whose breaker or ejection has moved: that alone. Their counts stay as they were written last, with the
/// batches of reports that they belong to; else a crash would have those counted twice.
fn transitions(
    client: &SpiClient<'_>,
    saved: &str,
    shared: &Shared,
    places: &HashSet<usize>,
) -> spi::Result<Vec<Copied>> {
    let mut copies = Vec::with_capacity(places.len());
    for slot in places.iter().map(|place| &shared.slots[*place]) {
        let (uid, kind, name) = (slot.uid(), slot.kind(), slot.name());
        let key = [(uid as i64).into(), (kind as i16).into(), name.as_str().into()];
        let mut rows = client.select(saved, None, &key)?;
        let written = rows.next().map(|row| row.get::<Vec<u8>>(1)).transpose()?.flatten();
        copies.push(Copied {
            snapshot: slot.target.snapshot_over(written.as_deref()),
            breaker_state: slot.target.breaker.state().as_str(),
            minutes: Vec::new(),
            written: Vec::new(),
            uid,
            kind,
            name,
        });
    }
    Ok(copies)
}

fn write_states<'a>(
    client: &mut SpiClient<'_>,
    sql: &str,
    rows: impl IntoIterator<Item = &'a Copied>,
) -> spi::Result<()> {
    let (mut uids, mut kinds, mut names, mut snapshots, mut states) = (vec![], vec![], vec![], vec![], vec![]);
    for row in rows {
        uids.push(row.uid as i64);
        kinds.push(row.kind as i16);
        names.push(row.name.clone());
        snapshots.push(row.snapshot.clone());
        states.push((row.kind == VERSION).then_some(row.breaker_state));
    }
    let arguments = [
        array(uids, pg_sys::INT8ARRAYOID),
        array(kinds, pg_sys::INT2ARRAYOID),
        array(names, pg_sys::TEXTARRAYOID),
        array(snapshots, pg_sys::BYTEAARRAYOID),
        array(states, pg_sys::TEXTARRAYOID),
    ];
    client.update(sql, None, &arguments)?;
    Ok(())
}

fn write_metrics(client: &mut SpiClient<'_>, sql: &str, rows: &[&Copied]) -> spi::Result<()> {
    let (mut uids, mut kinds, mut names, mut minutes, mut latencies) = (vec![], vec![], vec![], vec![], vec![]);
    let mut outcomes: Vec<Vec<i64>> = vec![Vec::new(); OUTCOMES];
    for row in rows {
        for (at_us, snapshot) in &row.minutes {
            uids.push(row.uid as i64);
            kinds.push(row.kind as i16);
            names.push(row.name.clone());
            minutes.push(timestamp(*at_us));
            latencies.push(Hdr::from_snapshot(snapshot).to_text());
            for (column, count) in outcomes.iter_mut().zip(snapshot.outcomes) {
                column.push(count as i64);
            }
        }
    }
    if uids.is_empty() {
        return Ok(());
    }
    let mut arguments = vec![
        array(uids, pg_sys::INT8ARRAYOID),
        array(kinds, pg_sys::INT2ARRAYOID),
        array(names, pg_sys::TEXTARRAYOID),
        array(minutes, pg_sys::TIMESTAMPTZARRAYOID),
        array(latencies, pg_sys::TEXTARRAYOID),
    ];
    arguments.extend(outcomes.into_iter().map(|column| array(column, pg_sys::INT8ARRAYOID)));
    client.update(sql, None, &arguments)?;
    Ok(())
}

/// Runs statements in a transaction of their own, whole or not at all. An error ends that transaction and nothing else, as in a session:
/// what is in shared memory outlives a full disk, and this process need not be started again for it.
fn transaction<T>(work: impl FnOnce(&mut SpiClient<'_>) -> spi::Result<T>) -> Result<T, String> {
    let attempt = || {
        // SAFETY: a transaction around statements, as any background worker opens and ends it.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        }
        let result = Spi::connect_mut(work).map_err(|error| error.to_string());
        // SAFETY: the same one.
        unsafe {
            if result.is_ok() {
                pg_sys::PopActiveSnapshot();
                pg_sys::CommitTransactionCommand();
            } else {
                pg_sys::AbortCurrentTransaction();
            }
        }
        result
    };
    PgTryBuilder::new(AssertUnwindSafe(attempt))
        .catch_others(|error| {
            // SAFETY: the error has been taken out of Postgres's hands; this frees what its transaction held.
            unsafe { pg_sys::AbortCurrentTransaction() };
            match error {
                CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => {
                    Err(report.message().to_owned())
                }
                panic @ CaughtError::RustPanic { .. } => panic.rethrow(),
            }
        })
        .execute()
}

fn array<T>(values: Vec<T>, oid: pg_sys::Oid) -> DatumWithOid<'static>
where
    Vec<T>: pgrx::IntoDatum,
{
    // SAFETY: each caller names the array type of its values.
    unsafe { DatumWithOid::new(values, PgOid::from(oid).value()) }
}

fn timestamp(wall_us: u64) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(clock::to_timestamp(wall_us)).ok()
}

fn uuid(halves: [u64; 2]) -> Uuid {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&halves[0].to_le_bytes());
    bytes[8..].copy_from_slice(&halves[1].to_le_bytes());
    Uuid::from_bytes(bytes)
}
