//! Databases that have the extension, and the bridges that report to them.

use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use pgrx::pg_sys;
use xxhash_rust::xxh3::Xxh3;

use super::{Held, Shared, set_latch};

/// A database that has, or may have, the extension.
#[repr(C)]
pub struct Database {
    /// Its oid; 0 = free.
    pub oid: AtomicU32,
    /// Its worker's process id; 0 = none.
    pub worker_pid: AtomicI32,
    /// Its worker's latch.
    pub latch: AtomicPtr<pg_sys::Latch>,
    /// When the worker last wrote everything down, registry time.
    pub flushed_us: AtomicU64,
    /// When a worker was last asked for, registry time.
    pub asked_us: AtomicU64,
    /// Sessions in it that may still report.
    pub sessions: AtomicU32,
    /// Whether a command wants it for itself: its worker ends without waiting for sessions.
    pub give_way: AtomicBool,
    /// Whether a session announced it, rather than the launcher on its round.
    pub announced: AtomicBool,
    /// Whether it, or the extension in it, is gone: it keeps this entry until the last of its places is free.
    pub gone: AtomicBool,
    /// The first transition its worker has not written down.
    pub event_cursor: AtomicU64,
}

/// The batches of one bridge.
#[repr(C)]
pub struct Reporter {
    /// Hash of (database, reporter); 0 = free.
    pub key: AtomicU64,
    /// The reporter's uuid.
    pub uuid: [AtomicU64; 2],
    /// The database.
    pub database: AtomicU32,
    /// The last batch applied.
    pub applied: AtomicU64,
    /// The last batch written down.
    pub flushed: AtomicU64,
    /// When it last reported, registry time.
    pub seen_us: AtomicU64,
}

impl Shared {
    /// A database that has announced itself.
    pub fn database(&self, oid: u32) -> Option<&'static Database> {
        self.head
            .databases
            .iter()
            .find(|database| database.oid.load(Relaxed) == oid)
    }

    /// Announces a database, so that the launcher gives it a worker. `None` if there are too many.
    pub fn announce(&self, oid: u32, by_session: bool) -> Option<&'static Database> {
        if let Some(database) = self.database(oid) {
            if by_session && (database.gone.load(Relaxed) || !database.announced.load(Relaxed)) {
                // In this order: a worker that is just giving up looks at `announced` after it has set `gone`.
                database.announced.store(true, SeqCst);
                database.gone.store(false, SeqCst);
                // A worker that found nothing here a moment ago is no reason to wait.
                database.asked_us.store(0, Relaxed);
                set_latch(&self.head.launcher);
            }
            return Some(database);
        }
        let _held = Held::new(self.locks[0], pg_sys::LWLockMode::LW_EXCLUSIVE);
        let known = self.database(oid).or_else(|| {
            let free = self
                .head
                .databases
                .iter()
                .find(|database| database.oid.load(Relaxed) == 0)?;
            free.event_cursor.store(self.head.event_next.load(Acquire), Relaxed);
            free.flushed_us.store(0, Relaxed);
            free.asked_us.store(0, Relaxed);
            free.announced.store(by_session, Relaxed);
            free.gone.store(false, Relaxed);
            free.give_way.store(false, Relaxed);
            free.sessions.store(0, Relaxed);
            free.oid.store(oid, Release);
            Some(free)
        });
        set_latch(&self.head.launcher);
        known
    }

    /// The batches of a bridge in a database, if it is known.
    pub fn reporter(&self, database: u32, uuid: [u64; 2]) -> Option<&'static Reporter> {
        let key = reporter_key(database, uuid);
        self.head
            .reporters
            .iter()
            .find(|reporter| reporter.key.load(Acquire) == key)
    }

    /// Makes a bridge known whose last batch written down is `seq`. Where there are too many, the one silent for longest gives way.
    pub fn enlist_reporter(&self, database: u32, uuid: [u64; 2], seq: u64, now_us: u64) -> &'static Reporter {
        let key = reporter_key(database, uuid);
        let find = || {
            self.head
                .reporters
                .iter()
                .find(|reporter| reporter.key.load(Acquire) == key)
        };
        let reporter = find().unwrap_or_else(|| {
            let _held = Held::new(self.locks[0], pg_sys::LWLockMode::LW_EXCLUSIVE);
            find().unwrap_or_else(|| {
                let oldest = self
                    .head
                    .reporters
                    .iter()
                    .min_by_key(|reporter| reporter.seen_us.load(Relaxed));
                let place = oldest.unwrap_or(&self.head.reporters[0]);
                place.key.store(0, Release);
                place.applied.store(seq, Relaxed);
                place.flushed.store(seq, Relaxed);
                place.uuid[0].store(uuid[0], Relaxed);
                place.uuid[1].store(uuid[1], Relaxed);
                place.database.store(database, Relaxed);
                place.seen_us.store(now_us, Relaxed);
                place.key.store(key, Release);
                place
            })
        });
        reporter.seen_us.store(now_us, Relaxed);
        reporter
    }

    /// Wakes the worker of a database.
    pub fn wake_worker(&self, oid: u32) {
        if let Some(database) = self.database(oid) {
            set_latch(&database.latch);
        }
    }
}

fn reporter_key(database: u32, uuid: [u64; 2]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&database.to_le_bytes());
    hasher.update(&uuid[0].to_le_bytes());
    hasher.update(&uuid[1].to_le_bytes());
    hasher.digest().max(1)
}
