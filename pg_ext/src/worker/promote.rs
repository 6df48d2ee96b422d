//! A standby becomes the primary: its history goes on from what the primary had written.
//!
//! What was counted on the standby is its own; whoever reports to a standby reports to the primary too, so it is not added. Breakers,
//! ejections and turns stay as they stand, which is stricter or as strict.

use std::collections::HashMap;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use pgrx::bgworkers::BackgroundWorker;
use pgrx::pg_sys;
use pgrx::spi::Spi;

use super::flush::Flusher;
use crate::persist::{self, Saved};
use crate::registry;
use crate::shmem::{Database, Identity, Reporter, Shared, Slot};

/// What the primary had written.
struct Written {
    targets: Vec<(&'static Slot, Saved)>,
    reporters: Vec<(&'static Reporter, u64)>,
}

impl Flusher {
    /// Takes over.
    pub fn promote(&mut self, shared: &Shared, database: &Database) {
        // Transitions of the standby are no history of the primary.
        shared.skip_events(database);
        let Some(written) = BackgroundWorker::transaction(|| self.written(shared)) else {
            return;
        };
        shared.copying(|| {
            for (slot, saved) in &written.targets {
                saved.replace_statistics(&slot.target);
            }
            for (reporter, seq) in &written.reporters {
                reporter.applied.store(*seq, Relaxed);
                reporter.flushed.store(*seq, Relaxed);
            }
        });
        pgrx::log!(
            "ext_registry: promoted; {} targets go on from what the primary had written",
            written.targets.len()
        );
    }

    fn written(&self, shared: &Shared) -> Option<Written> {
        let namespace = Spi::get_one_with_args::<pg_sys::Oid>(
            "select relnamespace from pg_catalog.pg_class where oid = $1",
            &[pg_sys::Oid::from(self.registry()).into()],
        );
        let tables = registry::tables_in(namespace.ok()??)?;
        let ids: HashMap<u64, String> = crate::load::ids(&tables)
            .into_iter()
            .map(|(id, uid)| (uid, id))
            .collect();
        let targets = shared
            .slots
            .iter()
            .filter(|slot| self.owns(slot))
            .filter_map(|slot| {
                let name = slot.name();
                let identity = Identity {
                    database: slot.database(),
                    registry: slot.registry(),
                    uid: slot.uid(),
                    kind: slot.kind(),
                    name: &name,
                };
                Some((slot, Saved::read(&tables, ids.get(&slot.uid())?, &identity)))
            })
            .collect();
        let reporters = shared
            .head
            .reporters
            .iter()
            .filter(|reporter| reporter.key.load(Acquire) != 0 && reporter.database.load(Relaxed) == self.database())
            .map(|reporter| {
                let words = [reporter.uuid[0].load(Relaxed), reporter.uuid[1].load(Relaxed)];
                let mut uuid = [0; 16];
                uuid[..8].copy_from_slice(&words[0].to_le_bytes());
                uuid[8..].copy_from_slice(&words[1].to_le_bytes());
                (reporter, persist::reporter_seq(&tables, uuid))
            })
            .collect();
        Some(Written { targets, reporters })
    }
}
