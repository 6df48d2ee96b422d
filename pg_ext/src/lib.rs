//! `ext_registry`: puts the core next to the tables. The only crate with `unsafe`.
//!
//! | module | owns |
//! |---|---|
//! | [`shmem`] | live state in shared memory: targets, calls under way, transitions, bridges' batches |
//! | [`registry`], [`session`] | what one session knows of the registry, and remembers |
//! | [`invalidate`] | how a session learns that the registry changed |
//! | [`load`], [`image`] | from rows to a compiled extension with its places in shared memory |
//! | [`jsonb`], [`datum`], [`tuple`] | raw Postgres values, read and written without copies where calls pass |
//! | [`api`], [`review`] | the functions of the SQL surface |
//! | [`worker`] | what writes live state down: launcher, one worker a database |
//! | [`surface`] | the SQL files, in the order they are installed |
//!
//! Nothing that can raise an error runs while a lock is held; what calls change is atomics.
#![allow(clippy::missing_safety_doc)]

mod api;
mod clock;
mod datum;
mod errors;
mod guc;
mod image;
mod invalidate;
mod jsonb;
mod load;
mod persist;
mod registry;
mod review;
mod session;
mod shmem;
mod small_map;
mod surface;
mod tags;
mod tuple;
mod worker;

pgrx::pg_module_magic!();

/// Runs in the postmaster, once. Everything a session needs is inherited from there.
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // SAFETY: a flag of the postmaster, read in the only thread there is.
    if !unsafe { pgrx::pg_sys::process_shared_preload_libraries_in_progress } {
        errors::raise(
            errors::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "ext_registry must be loaded via shared_preload_libraries",
            "Add ext_registry to shared_preload_libraries in postgresql.conf and restart Postgres.",
        );
    }
    // Errors of users carry no backtraces, whatever the server's environment says.
    // SAFETY: the postmaster has one thread here.
    unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
    guc::define();
    shmem::install_hooks();
    invalidate::register_callbacks();
    worker::install_giveway();
    worker::register_launcher();
}
