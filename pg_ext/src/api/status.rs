//! How the extension itself stands.

use std::sync::atomic::Ordering::Relaxed;

use ext_registry_core::compile::Compiled;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::{IntoDatum, pg_sys};

use crate::datum::nullable;
use crate::{clock, load, registry, shmem, tuple};

crate::pg_function! {
    /// `_ext_status()`.
    _ext_status, pg_finfo__ext_status, |args| {
        let shared = shmem::get();
        registry::announce();
        let now_us = clock::now_us();
        // SAFETY: a global of this process.
        let database = shared.database(unsafe { pg_sys::MyDatabaseId }.to_u32());
        let pid = database.map(|database| database.worker_pid.load(Relaxed)).filter(|pid| *pid != 0);
        let flushed = database.map(|database| database.flushed_us.load(Relaxed)).filter(|at| *at > 0);
        let at = flushed.and_then(|us| TimestampWithTimeZone::try_from(clock::to_timestamp(clock::to_wall_us(us))).ok());
        let tickets = shared.tickets();
        // SAFETY: reads the server's state.
        let standby = unsafe { pg_sys::RecoveryInProgress() };
        tuple::to_datum(&registry::row_type(args), &[
            nullable(pid),
            nullable(at),
            nullable(flushed.map(|us| now_us.saturating_sub(us) as f64 / 1000.0)),
            (shared.head.places.used.load(Relaxed) as i32).into_datum(),
            (shared.slots.len() as i32).into_datum(),
            (tickets.used() as i32).into_datum(),
            (tickets.len() as i32).into_datum(),
            (shared.head.stale_reports.load(Relaxed) as i64).into_datum(),
            (shared.head.untracked.load(Relaxed) as i64).into_datum(),
            (shared.head.lost_events.load(Relaxed) as i64).into_datum(),
            env!("CARGO_PKG_VERSION").into_datum(),
            standby.into_datum(),
            (shared.head.ticketless.load(Relaxed) as i64).into_datum(),
        ])
    }
}

crate::pg_function! {
    /// `_ext_epoch(id)`: the fingerprint of an extension's configuration.
    _ext_epoch, pg_finfo__ext_epoch, |args| {
        let id = args.text(0).unwrap_or_default();
        // Read anew: a commit is visible before its message comes, and whoever compares epochs must not overwrite it.
        match load::extension(&registry::tables(args.function()), &id) {
            Some((row, _)) => pg_sys::Datum::from(Compiled::new(row).epoch as i64),
            None => args.null(),
        }
    }
}

crate::pg_function! {
    /// `_ext_attach()`: tells the launcher of this database.
    _ext_attach, pg_finfo__ext_attach, |args| {
        let _ = args;
        registry::announce();
        pg_sys::Datum::from(0usize)
    }
}
