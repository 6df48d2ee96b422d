//! A Postgres of its own with the registry to be measured.

use std::path::PathBuf;

use ext_registry_tests::postgres::{Shutdown, must_succeed};
use ext_registry_tests::{Postgres, places};

use crate::Failure;

/// Extensions where calls are spread; ids are the numbers from 1.
pub const EXTENSIONS: u32 = 100;
/// A context that version v2 is for.
pub const CONTEXT: &str = r#"{"tenant_id": "t2"}"#;

const NAME: &str = "bench";

/// A cluster with the database `bench`, in it the registry of `bench/registry.sql`.
pub struct Database {
    cluster: Postgres,
}

impl Database {
    /// `settings` are lines for `postgresql.conf`; without any it is as Postgres comes, durable commits included.
    /// `timeout_ms` is that of every extension.
    pub fn start(settings: &[&str], timeout_ms: u32) -> Self {
        Self::with_extensions(EXTENSIONS, settings, timeout_ms)
    }

    /// The same with so many extensions.
    pub fn with_extensions(extensions: u32, settings: &[&str], timeout_ms: u32) -> Self {
        let durable = ["fsync = on", "full_page_writes = on", "shared_buffers = 128MB"];
        let database = Self {
            cluster: Postgres::start(&[&durable, settings].concat()),
        };
        database.cluster.make_database(NAME);
        database.run_file(
            "registry.sql",
            &[("extensions", extensions), ("timeout_ms", timeout_ms)],
        );
        database.run("vacuum analyze");
        database
    }

    pub fn cluster(&self) -> &Postgres {
        &self.cluster
    }

    #[allow(clippy::unused_self, reason = "there is none without a database")]
    pub fn name(&self) -> &'static str {
        NAME
    }

    /// Runs a file of `bench/` with psql; `extensions` is among its variables, 100 unless they say otherwise.
    pub fn run_file(&self, file: &str, variables: &[(&str, u32)]) {
        let mut command = self.cluster.psql_command(NAME);
        command.args(["-v", "ON_ERROR_STOP=1", "-q", "-v", &format!("extensions={EXTENSIONS}")]);
        for (name, value) in variables {
            command.arg("-v").arg(format!("{name}={value}"));
        }
        command.arg("-f").arg(path(file));
        must_succeed(&command.output().expect("psql can be started"));
    }

    /// Runs one statement.
    pub fn run(&self, statement: &str) {
        must_succeed(&self.cluster.psql(NAME, statement));
    }

    /// The whole number, of at most 64 bits, that a query returns.
    pub fn number(&self, query: &str) -> Result<i64, Failure> {
        let output = self.cluster.psql(NAME, query);
        must_succeed(&output);
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        text.parse()
            .map_err(|_| format!("{query}: {text:?} is no number").into())
    }

    /// Successes that the registry has counted so far.
    pub fn successes(&self) -> Result<i64, Failure> {
        self.number("select sum(success_count)::bigint from extension_health")
    }

    /// Fails unless the registry is as well after a run as it must be for its figure to mean anything: nothing refused,
    /// nothing failed, nothing that it had no room for.
    pub fn check_health(&self) -> Result<(), Failure> {
        let amiss = self.number(
            "select (select sum(failure_count + circuit_open_count) from extension_version_health)
                + (select stale_reports + untracked_targets from ext_registry_status())",
        )?;
        if amiss != 0 {
            return Err(format!("{amiss} calls were refused, failed, untracked or reported in vain").into());
        }
        Ok(())
    }

    /// The part of [`Database::check_health`] that is to be had at once where there are many extensions.
    pub fn check_tracked(&self) -> Result<(), Failure> {
        match self.number("select stale_reports + untracked_targets from ext_registry_status()")? {
            0 => Ok(()),
            amiss => Err(format!("{amiss} calls were untracked or reported in vain").into()),
        }
    }

    /// Calls under way: decisions that allowed a call and that nobody has reported.
    pub fn in_flight(&self) -> Result<i64, Failure> {
        self.number("select in_flight_used from ext_registry_status()")
    }

    /// Starts Postgres again: live state of the registry is read back, calls under way are forgotten.
    pub fn restart(&mut self) {
        self.cluster.restart(Shutdown::Fast);
    }
}

/// A file of `bench/`.
pub fn path(file: &str) -> PathBuf {
    places::root().join("bench").join(file)
}
