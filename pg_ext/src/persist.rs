//! What was written down of a target: read when it gets a place in shared memory, by whichever session asks first.
//!
//! So nothing has to be loaded at server start, a decision never runs ahead of a loader, and a standby reads what its primary has written.

use ext_registry_core::ejection::Ejection;
use ext_registry_core::hdr::Hdr;
use ext_registry_core::histogram::{MinuteSnapshot, SUB_WINDOWS};
use ext_registry_core::target::{Target, minute};

use crate::clock;
use crate::load::{self, Key, Tables};
use crate::shmem::{INSTANCE, Identity, VERSION};

/// What was written down of one target.
#[derive(Default)]
pub struct Saved {
    snapshot: Option<Box<[u8]>>,
    minutes: Vec<(u64, MinuteSnapshot)>,
}

impl Saved {
    /// Reads it. `extension_id` is the id the extension has now.
    pub fn read(tables: &Tables, extension_id: &str, identity: &Identity<'_>) -> Self {
        let mut saved = Self::default();
        let key = [
            Key::Int8(identity.uid as i64),
            Key::Int2(identity.kind as i16),
            Key::Text(identity.name),
        ];
        load::scan(&tables.state, &key, |row| saved.snapshot = row.bytes(3));
        if saved.snapshot.is_none() {
            return saved;
        }
        let (version, instance) = if identity.kind == VERSION {
            (identity.name, "")
        } else {
            ("", identity.name)
        };
        let now = minute(clock::now_us());
        for minute in now.saturating_sub(SUB_WINDOWS as u64 - 1)..=now {
            let at = clock::to_timestamp(clock::wall_minute_us(minute));
            let key = [
                Key::Timestamp(at),
                Key::Text(extension_id),
                Key::Text(version),
                Key::Text(instance),
            ];
            load::scan(&tables.metrics, &key, |row| {
                saved.minutes.push((minute, minute_of(row)))
            });
        }
        saved
    }

    /// Whether nothing was written down.
    pub fn is_empty(&self) -> bool {
        self.snapshot.is_none()
    }

    /// Puts it back into a target nobody else uses yet. Calls nothing of Postgres.
    pub fn restore(&self, target: &Target) {
        let Some(bytes) = &self.snapshot else { return };
        // Written by this library; what cannot be read is as if it had not been written.
        let Ok(sums) = target.restore(bytes) else { return };
        for (minute, saved) in &self.minutes {
            let mut snapshot = saved.clone();
            if let Some((_, sum_us, max_us)) = sums.iter().find(|(known, _, _)| known == minute) {
                snapshot.sum_us = *sum_us;
                snapshot.max_us = *max_us;
            }
            target.latency.load_minute(*minute, &snapshot);
        }
    }
}

/// A row of the minute metrics as the live ring counts it.
fn minute_of(row: &load::Row<'_>) -> MinuteSnapshot {
    let latency = row.bytes(13).and_then(|bytes| Hdr::from_bytes(&bytes).ok());
    let mut snapshot = latency.unwrap_or_default().to_snapshot();
    for (which, place) in snapshot.outcomes.iter_mut().enumerate() {
        *place = row.big(4 + which).unwrap_or(0).max(0) as u64;
    }
    snapshot
}

/// The ejections of an extension's instances, as they were written down, by name.
pub fn saved_ejections(tables: &Tables, uid: u64) -> Vec<(String, Ejection)> {
    let mut saved = Vec::new();
    load::scan(
        &tables.state,
        &[Key::Int8(uid as i64), Key::Int2(INSTANCE as i16)],
        |row| {
            let ejection = row.bytes(3).and_then(|snapshot| Target::ejection_of(&snapshot));
            saved.extend(row.text(2).zip(ejection));
        },
    );
    saved
}

/// The number of the last batch of a bridge that was written down.
pub fn reporter_seq(tables: &Tables, uuid: [u8; 16]) -> u64 {
    let mut seq = 0;
    load::scan(&tables.reporters, &[Key::Uuid(uuid)], |row| {
        seq = row.big(1).unwrap_or(0).max(0) as u64
    });
    seq
}
