//! The settings `ext_registry.*`.

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

/// Versions and instances with live state, in all databases together.
pub static MAX_TARGETS: GucSetting<i32> = GucSetting::<i32>::new(1024);
/// Calls under way, in all databases together.
pub static MAX_IN_FLIGHT: GucSetting<i32> = GucSetting::<i32>::new(65_536);
/// How often the worker writes counts down, in ms.
pub static FLUSH_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(1000);
/// How long minute metrics are kept, in minutes.
pub static METRICS_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(7 * 24 * 60);
/// How long breaker events are kept, in minutes.
pub static EVENTS_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(90 * 24 * 60);
/// Whether workers run at all (for the time of an upgrade by hand).
pub static WORKER: GucSetting<bool> = GucSetting::<bool>::new(true);
/// How often the launcher looks around, in ms.
pub static LAUNCHER_NAPTIME: GucSetting<i32> = GucSetting::<i32>::new(10_000);

/// Defines all settings. Before anything reads one.
pub fn define() {
    GucRegistry::define_int_guc(
        c"ext_registry.max_targets",
        c"Versions and instances with live state, in all databases together.",
        c"Each takes about 32 kB of shared memory. Targets beyond it are called without breaker and statistics.",
        &MAX_TARGETS,
        16,
        1_000_000,
        GucContext::Postmaster,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"ext_registry.max_in_flight",
        c"Calls under way that are known by their ticket, in all databases together.",
        c"Each takes 64 bytes of shared memory.",
        &MAX_IN_FLIGHT,
        64,
        16_777_216,
        GucContext::Postmaster,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"ext_registry.flush_interval",
        c"How often the worker writes counts and metrics down.",
        c"A crash of Postgres loses at most this much of the counts. Breaker transitions do not wait for it.",
        &FLUSH_INTERVAL,
        50,
        60_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"ext_registry.metrics_retention",
        c"How long rows of extension_metrics are kept.",
        c"",
        &METRICS_RETENTION,
        10,
        5_256_000,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    GucRegistry::define_int_guc(
        c"ext_registry.events_retention",
        c"How long rows of extension_breaker_events are kept.",
        c"",
        &EVENTS_RETENTION,
        10,
        5_256_000,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    GucRegistry::define_int_guc(
        c"ext_registry.launcher_naptime",
        c"How often the launcher looks for databases that need a worker.",
        c"It is also woken by CREATE EXTENSION and by the first decision in a database.",
        &LAUNCHER_NAPTIME,
        100,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_bool_guc(
        c"ext_registry.worker",
        c"Whether workers run.",
        c"Without them nothing is written down: counts, metrics and breaker states end with the server.",
        &WORKER,
        GucContext::Postmaster,
        GucFlags::default(),
    );
    #[cfg(not(any(feature = "pg13", feature = "pg14")))]
    // SAFETY: a constant string; called once from _PG_init.
    unsafe {
        pgrx::pg_sys::MarkGUCPrefixReserved(c"ext_registry".as_ptr());
    }
}
