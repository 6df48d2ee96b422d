//! The launcher: finds the databases that have the extension and keeps a worker running in each.
//!
//! At server start it asks every database once (its worker looks for the extension and ends if there is none); afterwards CREATE EXTENSION and
//! the first decision in a database announce it. It connects to no database itself, only to the shared catalogs.

use std::ffi::CStr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags};
use pgrx::pg_sys;

use crate::api::release;
use crate::shmem::{Shared, Slot};
use crate::{clock, guc, shmem};

/// A worker that has not appeared after this long is asked for again.
const PATIENCE_US: u64 = 5_000_000;

/// Has the postmaster start the launcher.
pub fn register() {
    // SAFETY: a flag of the postmaster.
    if !guc::WORKER.get() || unsafe { pg_sys::IsBinaryUpgrade } {
        return;
    }
    BackgroundWorkerBuilder::new("ext_registry launcher")
        .set_type("ext_registry launcher")
        .set_library("ext_registry")
        .set_function("ext_registry_launcher_main")
        .enable_shmem_access(None)
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::ConsistentState)
        .set_restart_time(Some(Duration::from_secs(1)))
        .load();
}

/// Entry point.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn ext_registry_launcher_main(_argument: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    // SAFETY: without a database: shared catalogs only.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0) };
    let shared = shmem::get();
    // SAFETY: this process's latch lies in shared memory.
    shared.head.launcher.store(unsafe { pg_sys::MyLatch }, Release);
    for oid in databases() {
        shared.announce(oid, false);
    }
    loop {
        let now_us = clock::now_us();
        if missing(&shared) {
            forget_gone(&shared);
        }
        for database in &shared.head.databases {
            let oid = database.oid.load(Acquire);
            let asked_us = database.asked_us.load(Relaxed);
            if oid != 0
                && !database.gone.load(Relaxed)
                && database.worker_pid.load(Relaxed) == 0
                && asked_us + PATIENCE_US < now_us
            {
                database.asked_us.store(now_us, Relaxed);
                start(oid);
            }
        }
        let missing = shared
            .head
            .databases
            .iter()
            .any(|d| d.oid.load(Relaxed) != 0 && d.worker_pid.load(Relaxed) == 0);
        let nap = if missing {
            PATIENCE_US / 1000 / 5
        } else {
            guc::LAUNCHER_NAPTIME.get() as u64
        };
        if !BackgroundWorker::wait_latch(Some(Duration::from_millis(nap))) {
            break;
        }
        super::main::reload_settings();
    }
    // SAFETY: ends this process; with 1 the postmaster starts it again unless the server stops.
    unsafe { pg_sys::proc_exit(1) }
}

/// Whether some database waits for its worker.
fn missing(shared: &Shared) -> bool {
    shared
        .head
        .databases
        .iter()
        .any(|database| database.oid.load(Relaxed) != 0 && database.worker_pid.load(Relaxed) == 0)
}

/// Notes which databases are no longer there, and frees what belongs to those that are gone.
///
/// A place that calls under way still hold is freed when they have lapsed; until then the database keeps its entry.
fn forget_gone(shared: &Shared) {
    let there = databases();
    let mut swept = false;
    for database in &shared.head.databases {
        let oid = database.oid.load(Acquire);
        if oid == 0 {
            continue;
        }
        if !there.contains(&oid) {
            database.gone.store(true, Relaxed);
        }
        if !database.gone.load(Relaxed) || database.worker_pid.load(Relaxed) != 0 {
            continue;
        }
        if !std::mem::replace(&mut swept, true) {
            shared.tickets().sweep(clock::now_us(), 0, |call| release(shared, call));
        }
        let mine = |slot: &Slot| slot.is_used() && slot.database() == oid;
        shared.release_if(mine);
        if !shared.slots.iter().any(mine) {
            database.oid.store(0, Release);
        }
    }
}

/// Starts a worker in a database.
fn start(oid: u32) {
    // SAFETY: the struct is filled as RegisterDynamicBackgroundWorker asks for: strings end with a zero and fit.
    unsafe {
        let mut worker: pg_sys::BackgroundWorker = std::mem::zeroed();
        let put = |place: &mut [std::ffi::c_char], text: &CStr| {
            for (to, from) in place.iter_mut().zip(text.to_bytes_with_nul()) {
                *to = *from as std::ffi::c_char;
            }
        };
        put(&mut worker.bgw_name[..], c"ext_registry worker");
        put(&mut worker.bgw_type[..], c"ext_registry worker");
        put(&mut worker.bgw_library_name[..], c"ext_registry");
        put(&mut worker.bgw_function_name[..], c"ext_registry_worker_main");
        worker.bgw_flags = (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as i32;
        worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState;
        // The launcher starts it again: it knows whether the database is still there.
        worker.bgw_restart_time = pg_sys::BGW_NEVER_RESTART;
        worker.bgw_main_arg = pg_sys::Datum::from(oid);
        worker.bgw_notify_pid = 0;
        if !pg_sys::RegisterDynamicBackgroundWorker(&mut worker, std::ptr::null_mut()) {
            pgrx::log!("ext_registry: no free background worker for database {oid}; raise max_worker_processes");
        }
    }
}

/// The databases one can connect to.
fn databases() -> Vec<u32> {
    let mut found = Vec::new();
    // SAFETY: a scan of pg_database inside a transaction, as the autovacuum launcher does it.
    unsafe {
        pg_sys::StartTransactionCommand();
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::InvalidOid,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let form = &*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_database>(tuple);
            if form.datallowconn && !form.datistemplate {
                found.push(form.oid.to_u32());
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        pg_sys::CommitTransactionCommand();
    }
    found
}
