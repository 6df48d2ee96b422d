//! The worker of one database: writes transitions down as they happen, counts and metrics every flush interval, and everything once more
//! when the server stops.
//!
//! Its last flush waits for the sessions that may still report, so that what was acknowledged is on disk. On a standby it only sweeps; when
//! that is promoted it goes on from what the primary had written ([`promote`](super::promote)).

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::time::{Duration, Instant};

use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::pg_sys;

use super::flush::Flusher;
use crate::api::release;
use crate::shmem::{self, Database, Shared};
use crate::{clock, guc};

/// How long a call that lapsed is kept for a late report, in microseconds.
const KEEP_LAPSED_US: u64 = 60_000_000;
/// How long the last flush waits for sessions to end.
const LAST_WAIT: Duration = Duration::from_secs(5);
/// How long a database that has been announced is given to commit its CREATE EXTENSION.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the worker of a standby looks whether it has been promoted, in microseconds.
const STANDBY_US: u64 = 100_000;
/// How often old rows and places are looked for, in microseconds.
const HOUSEKEEPING_US: u64 = 10_000_000;

/// Re-reads the configuration file if SIGHUP asked for it.
pub fn reload_settings() {
    if BackgroundWorker::sighup_received() {
        // SAFETY: between transactions, as any process does it.
        unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
    }
}

/// Entry point.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn ext_registry_worker_main(argument: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    let oid = argument.value() as u32;
    let shared = shmem::get();
    let Some(database) = shared.database(oid) else { return };
    // One worker a database, whoever asked for it.
    if database
        .worker_pid
        .compare_exchange(0, std::process::id() as i32, Acquire, Relaxed)
        .is_err()
    {
        return;
    }
    // SAFETY: runs when this process ends in whatever way, while shared memory is there; this process's latch lies in shared memory.
    unsafe {
        pg_sys::before_shmem_exit(Some(sign_off), argument);
        pg_sys::BackgroundWorkerInitializeConnectionByOid(pg_sys::Oid::from(oid), pg_sys::InvalidOid, 0);
        database.latch.store(pg_sys::MyLatch, Release);
        database.give_way.store(false, Relaxed);
    }
    let mut flusher = match find_extension(oid, database) {
        Search::Found(flusher) => flusher,
        // The launcher starts another one.
        Search::Ended => return,
        Search::Missing => {
            // No extension here: not again before somebody announces it, which may be now.
            let patient = database.announced.load(SeqCst);
            retire(database);
            if !patient && database.announced.load(SeqCst) {
                database.gone.store(false, SeqCst);
            }
            return;
        }
    };
    run(&shared, database, &mut flusher);
    // SAFETY: ends this process.
    unsafe { pg_sys::proc_exit(1) }
}

/// What looking for the extension came to.
enum Search {
    Found(Box<Flusher>),
    /// There is none.
    Missing,
    /// SIGTERM came first: it says nothing about the extension.
    Ended,
}

/// Looks for the extension; for a while if a session has announced it: CREATE EXTENSION does so before it commits.
fn find_extension(oid: u32, database: &Database) -> Search {
    let begun = Instant::now();
    loop {
        if let Some(found) = Flusher::new(oid) {
            return Search::Found(Box::new(found));
        }
        if !database.announced.load(Relaxed) || begun.elapsed() > PATIENCE {
            return Search::Missing;
        }
        if !BackgroundWorker::wait_latch(Some(Duration::from_millis(100))) {
            return Search::Ended;
        }
    }
}

/// Signs off for good: the database needs no worker.
fn retire(database: &Database) {
    database.gone.store(true, SeqCst);
    database.latch.store(std::ptr::null_mut(), Release);
    database.worker_pid.store(0, Release);
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn sign_off(_code: i32, argument: pg_sys::Datum) {
    if let Some(database) = shmem::get().database(argument.value() as u32) {
        database.latch.store(std::ptr::null_mut(), Release);
        database.worker_pid.store(0, Release);
    }
}

fn run(shared: &Shared, database: &Database, flusher: &mut Flusher) {
    let mut housekept_us = 0;
    loop {
        let interval_us = guc::FLUSH_INTERVAL.get() as u64 * 1000;
        let now_us = clock::now_us();
        shared
            .tickets()
            .sweep(now_us, KEEP_LAPSED_US, |call| release(shared, call));
        // SAFETY: reads the server's state.
        let is_standby = unsafe { pg_sys::RecoveryInProgress() };
        if database.standby.swap(is_standby, AcqRel) && !is_standby {
            flusher.promote(shared, database);
        }
        if !is_standby && flusher.rest_us(now_us) == 0 {
            let due = database.flushed_us.load(Relaxed) + interval_us <= now_us;
            if due && !flusher.look_again() {
                // The launcher frees what the extension leaves behind.
                retire(database);
                return;
            }
            flusher.events(shared, database);
            if due && flusher.rest_us(now_us) == 0 {
                flusher.counts(shared, database, now_us);
                flusher.tell();
            }
            if housekept_us + HOUSEKEEPING_US <= now_us {
                housekept_us = now_us;
                flusher.housekeeping(shared);
            }
        }
        let now_us = clock::now_us();
        let next_us = (database.flushed_us.load(Relaxed) + interval_us)
            .saturating_sub(now_us)
            .clamp(1000, if is_standby { STANDBY_US } else { interval_us })
            .max(flusher.rest_us(now_us));
        if !BackgroundWorker::wait_latch(Some(Duration::from_micros(next_us))) {
            break;
        }
        reload_settings();
    }
    last_flush(shared, database, flusher);
}

/// After SIGTERM: the sessions are being ended too, and each may still have reported.
fn last_flush(shared: &Shared, database: &Database, flusher: &mut Flusher) {
    // SAFETY: reads the server's state.
    if unsafe { pg_sys::RecoveryInProgress() } {
        return;
    }
    let flush = |flusher: &mut Flusher| {
        flusher.events(shared, database);
        flusher.counts(shared, database, clock::now_us());
    };
    flush(flusher);
    let begun = Instant::now();
    let waits = || database.sessions.load(Acquire) > 0 && !database.give_way.load(Relaxed);
    while waits() && begun.elapsed() < LAST_WAIT {
        // Where only this process was asked to end, transitions do not wait for the next worker.
        flusher.events(shared, database);
        // SAFETY: waits for a session to sign off, which sets the latch; wakes on its own in between.
        unsafe {
            pg_sys::WaitLatch(
                pg_sys::MyLatch,
                (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
                20,
                pg_sys::PG_WAIT_EXTENSION,
            );
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
    }
    flush(flusher);
}
