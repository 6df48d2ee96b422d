//! A private Postgres cluster with `ext_registry` preloaded, and fresh databases in it.

use std::fmt::Write as _;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_postgres::error::DbError;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::places;
use crate::ports;
use crate::process::{Directory, Server, Unprivileged, read_lossy};
use crate::surroundings::Surroundings;

/// The role that bridges connect as: it has the level `bridge` in every database, and no other right.
pub const BRIDGE_ROLE: &str = "bridge";

const DEADLINE: Duration = Duration::from_mins(1);

/// How a cluster is stopped, in the words of `pg_ctl -m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Sessions are ended, everything is written down.
    Fast,
    /// As a crash: nothing is written down, the next start recovers.
    Immediate,
}

impl Shutdown {
    fn signal(self) -> Signal {
        match self {
            Self::Fast => Signal::SIGINT,
            Self::Immediate => Signal::SIGQUIT,
        }
    }
}

/// A running cluster; stopped and removed when dropped.
#[derive(Debug)]
pub struct Postgres {
    pub(crate) server: Server,
    pub(crate) port: u16,
    pub(crate) user: Option<Unprivileged>,
    pub(crate) directory: Directory,
    /// Unix sockets have short paths.
    pub(crate) socket: Directory,
    /// Its programs.
    pub(crate) bin: PathBuf,
    pub(crate) surroundings: Surroundings,
}

impl Postgres {
    /// The cluster that the tests of this binary share where they need no cluster of their own: starting one takes
    /// longer than most tests.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[]))
    }

    /// A new cluster. `settings` are lines for `postgresql.conf`, after and above the defaults here: `fsync` is off
    /// unless they say otherwise, and there is room for the targets of many tests at once.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_of(places::pg_bin(), settings)
    }

    /// The same with the programs in `bin`, where the extension must have been installed.
    pub fn start_of(bin: &Path, settings: &[&str]) -> Self {
        Self::start_within(Surroundings::default(), bin, settings)
    }

    /// A new cluster in surroundings of its own.
    pub fn start_in(surroundings: Surroundings, settings: &[&str]) -> Self {
        Self::start_within(surroundings, places::pg_bin(), settings)
    }

    fn start_within(surroundings: Surroundings, bin: &Path, settings: &[&str]) -> Self {
        let user = Unprivileged::needed();
        let directory = Directory::new("pg-", user);
        let socket = Directory::short("xr-", user);
        let port = ports::free();
        initdb(bin, directory.path(), user, &[]);

        let mut conf = format!(
            "listen_addresses = '127.0.0.1'\n\
             port = {port}\n\
             unix_socket_directories = '{socket}'\n\
             shared_preload_libraries = 'ext_registry'\n\
             fsync = off\n\
             full_page_writes = off\n\
             shared_buffers = 32MB\n\
             max_connections = 200\n\
             max_worker_processes = 64\n\
             max_prepared_transactions = 16\n\
             ext_registry.max_targets = 4096\n\
             log_line_prefix = '%m [%p] %q%d %a: '\n",
            socket = socket.path().display(),
        );
        for line in settings {
            writeln!(conf, "{line}").expect("writing to a string");
        }
        // Appended: the last setting of a name counts.
        let path = directory.path().join("data/postgresql.conf");
        let initial = std::fs::read_to_string(&path).expect("initdb made it");
        std::fs::write(&path, initial + &conf).expect("postgresql.conf can be written");

        let cluster = Self {
            server: spawn(bin, directory.path(), user, &surroundings),
            port,
            user,
            directory,
            socket,
            bin: bin.to_owned(),
            surroundings,
        };
        must_succeed(&cluster.psql("postgres", &format!("create role {BRIDGE_ROLE} login")));
        cluster
    }

    /// A hot standby of this cluster that streams from it: `pg_basebackup`, then started. `settings` as in
    /// [`Postgres::start`], above those of this cluster.
    #[must_use]
    pub fn standby(&self, settings: &[&str]) -> Self {
        self.back_up(&["--write-recovery-conf"])
            .start(&[&["hot_standby = on"], settings].concat())
    }

    /// A cluster whose data are in `directory` already.
    pub(crate) fn started(
        bin: &Path,
        user: Option<Unprivileged>,
        port: u16,
        directory: Directory,
        socket: Directory,
    ) -> Self {
        let surroundings = Surroundings::default();
        Self {
            server: spawn(bin, directory.path(), user, &surroundings),
            port,
            user,
            directory,
            socket,
            bin: bin.to_owned(),
            surroundings,
        }
    }

    /// Where its small disk is, if its surroundings have one.
    pub fn small_disk(&self) -> PathBuf {
        disk(self.directory.path())
    }

    /// What its processes see of the machine.
    pub fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its unix socket is, for `host=`.
    pub fn socket_directory(&self) -> &Path {
        self.socket.path()
    }

    /// All it has logged so far.
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// The process ids of the postmaster's children: sessions and its own workers.
    pub fn backends(&self) -> Vec<u32> {
        let parent = self.pid().to_string();
        let process = |entry: std::io::Result<std::fs::DirEntry>| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // proc(5): after the name in parentheses the state, then the parent.
            let is_child = stat.rsplit_once(") ")?.1.split(' ').nth(1)? == parent;
            is_child.then_some(pid)
        };
        std::fs::read_dir("/proc").expect("Linux").filter_map(process).collect()
    }

    /// A new database with the extension in its schema `public`. Dropped with the value.
    pub fn database(&self) -> Database<'_> {
        let database = self.database_without_extension();
        database.run(&install());
        database
    }

    /// A new database with the extension as a former release had it. Dropped with the value.
    pub fn database_of_release(&self, version: &str) -> Database<'_> {
        let database = self.database_without_extension();
        database.run(&format!(
            "create extension ext_registry version '{version}'; select ext_grant('{BRIDGE_ROLE}', 'bridge')"
        ));
        database
    }

    /// A new database. Dropped with the value.
    pub fn database_without_extension(&self) -> Database<'_> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        must_succeed(&self.psql("postgres", &format!("create database {name}")));
        Database { cluster: self, name }
    }

    /// A database that outlives stops and starts of the cluster, which borrow it mutably: by name.
    pub fn make_database(&self, name: &str) {
        must_succeed(&self.psql("postgres", &format!("create database {name}")));
        must_succeed(&self.psql(name, &install()));
    }

    /// Runs `script` by psql and returns what it did. The first error ends it.
    pub fn psql(&self, database: &str, script: &str) -> Output {
        let mut command = self.psql_command(database);
        command.args(["-v", "ON_ERROR_STOP=1", "-q", "-A", "-t", "-c", script]);
        command.output().expect("psql can be started")
    }

    /// psql as superuser on `database`, without the caller's own settings. The environment names the connection too.
    pub fn psql_command(&self, database: &str) -> Command {
        let mut command = Command::new(places::pg_program("psql"));
        command
            .arg("-X")
            .stdin(Stdio::null())
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", database)
            .env("PGCLIENTENCODING", "UTF8")
            .env_remove("PGOPTIONS");
        command
    }

    /// A superuser's session.
    pub async fn connect(&self, database: &str) -> Session {
        self.try_connect(database)
            .await
            .unwrap_or_else(|error| panic!("no connection to {database}: {error}"))
    }

    pub async fn try_connect(&self, database: &str) -> Result<Session, tokio_postgres::Error> {
        self.try_connect_as("postgres", database).await
    }

    /// A session of `role`, which must be allowed to log in.
    pub async fn try_connect_as(&self, role: &str, database: &str) -> Result<Session, tokio_postgres::Error> {
        let (client, mut connection) = tokio_postgres::Config::new()
            .host("127.0.0.1")
            .port(self.port)
            .user(role)
            .dbname(database)
            .application_name("ext_registry_tests")
            .connect(NoTls)
            .await?;
        let notices = Arc::new(Mutex::new(Vec::new()));
        let received = Arc::clone(&notices);
        tokio::spawn(async move {
            // Ends with the client, or when the server goes away; the client's calls then fail, which says it all.
            while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notice(notice) = message {
                    received.lock().expect("nobody panics with it").push(notice);
                }
            }
        });
        Ok(Session { client, notices })
    }

    /// Stops the cluster.
    pub fn stop(&mut self, how: Shutdown) {
        self.server.stop(how.signal(), DEADLINE);
    }

    /// Kills the postmaster, as nothing should; returns when its children have seen it, and ended.
    pub fn kill(&mut self) {
        let children = self.backends();
        self.server.stop(Signal::SIGKILL, DEADLINE);
        crate::wait::wait_until("the postmaster's children end", DEADLINE, || {
            // A zombie is nobody's that holds anything.
            let lives = |pid: &u32| {
                std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
            };
            !children.iter().any(lives)
        });
    }

    /// Starts it again after [`Postgres::stop`] or [`Postgres::kill`], same port, same data.
    pub fn start_again(&mut self) {
        assert!(self.server.ended().is_some(), "Postgres runs");
        self.server = spawn(&self.bin, self.directory.path(), self.user, &self.surroundings);
    }

    /// `pg_ctl restart -m ...`
    pub fn restart(&mut self, how: Shutdown) {
        self.stop(how);
        self.start_again();
    }

    /// Kills one backend with SIGKILL, as the kernel out of memory does. The postmaster then ends all others and starts
    /// afresh; returns when it accepts connections again.
    pub async fn kill_backend(&self, pid: i32) {
        let recoveries = || {
            self.log()
                .matches("all server processes terminated; reinitializing")
                .count()
        };
        let before = recoveries();
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a backend of ours");
        crate::wait::eventually(DEADLINE, async || {
            if recoveries() == before {
                return Err("no reinitialization yet".to_owned());
            }
            self.try_connect("postgres")
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        })
        .await;
    }
}

/// The extension, and what a bridge needs.
fn install() -> String {
    format!("create extension ext_registry; select ext_grant('{BRIDGE_ROLE}', 'bridge')")
}

pub(crate) fn initdb(bin: &Path, directory: &Path, user: Option<Unprivileged>, more: &[&str]) {
    let mut command = Command::new(bin.join("initdb"));
    command
        .arg("-D")
        .arg(directory.join("data"))
        .args([
            "--auth=trust",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ])
        .args(more)
        .current_dir(directory);
    if let Some(user) = user {
        user.apply(&mut command);
    }
    must_succeed(&command.output().expect("initdb can be started"));
}

fn disk(directory: &Path) -> PathBuf {
    directory.join("disk")
}

fn spawn(bin: &Path, directory: &Path, user: Option<Unprivileged>, surroundings: &Surroundings) -> Server {
    let data = directory.join("data");
    let disk = disk(directory);
    std::fs::create_dir_all(&disk).expect("our own directory");
    let mut command = surroundings.command(&bin.join("postgres"), &disk, user);
    command.arg("-D").arg(&data).current_dir(directory);
    // An immediate shutdown ends all children and keeps nothing: right for a cluster that is thrown away.
    let mut server = Server::start("postgres", &mut command, &directory.join("log"), Signal::SIGQUIT);
    let pid = server.pid().to_string();
    server.await_ready(DEADLINE, |_| {
        // As pg_ctl does it: first line the postmaster's pid, eighth line its state.
        let file = read_lossy(&data.join("postmaster.pid"));
        let mut lines = file.lines().map(str::trim);
        lines.next() == Some(pid.as_str()) && lines.nth(6) == Some("ready")
    });
    server
}

/// # Panics
/// When the program failed, with what it wrote.
#[track_caller]
pub fn must_succeed(output: &Output) {
    assert!(
        output.status.success(),
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A database of its own for one test; dropped with the value.
#[derive(Debug)]
pub struct Database<'a> {
    cluster: &'a Postgres,
    name: String,
}

impl Database<'_> {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn cluster(&self) -> &Postgres {
        self.cluster
    }

    /// A superuser's session.
    pub async fn connect(&self) -> Session {
        self.cluster.connect(&self.name).await
    }

    /// A session of `role`.
    pub async fn connect_as(&self, role: &str) -> Session {
        self.cluster
            .try_connect_as(role, &self.name)
            .await
            .unwrap_or_else(|error| panic!("no connection as {role}: {error}"))
    }

    /// Runs `script` by psql as superuser; returns its output, unaligned and without headers.
    ///
    /// # Panics
    /// When a statement fails.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let output = self.cluster.psql(&self.name, script);
        must_succeed(&output);
        String::from_utf8(output.stdout)
            .expect("the client encoding is UTF-8")
            .trim_end()
            .to_owned()
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        let output = self
            .cluster
            .psql("postgres", &format!("drop database {} with (force)", self.name));
        if !output.status.success() {
            eprintln!(
                "database {} stays: {}",
                self.name,
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}

/// A session: a [`Client`] that also keeps the notices it was sent.
#[derive(Debug)]
pub struct Session {
    client: Client,
    notices: Arc<Mutex<Vec<DbError>>>,
}

impl Session {
    /// The notices since the last call.
    pub fn take_notices(&self) -> Vec<DbError> {
        std::mem::take(&mut *self.notices.lock().expect("nobody panics with it"))
    }

    /// The process id of its backend.
    pub async fn backend_pid(&self) -> i32 {
        self.one("select pg_backend_pid()::text", &[])
            .await
            .parse()
            .expect("a number")
    }

    /// Waits until `standby`, a session of a standby, has replayed all that this one's cluster has written so far.
    pub async fn await_replay(&self, standby: &Self) {
        let written = self.one("select pg_current_wal_insert_lsn()::text", &[]).await;
        // What was committed without waiting for the disk is sent when it is on it.
        let replayed =
            format!("select (pg_last_wal_replay_lsn() >= '{written}')::text || ' ' || pg_last_wal_replay_lsn()");
        crate::wait::eventually(DEADLINE, async || {
            let answer = standby.one(&replayed, &[]).await;
            if answer.starts_with("true") {
                Ok(())
            } else {
                Err(answer)
            }
        })
        .await;
    }

    /// The first column, of type text, of the only row of a query; NULL is the string `NULL`.
    pub async fn one(&self, sql: &str, parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)]) -> String {
        let row = self
            .client
            .query_one(sql, parameters)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        row.get::<_, Option<String>>(0).unwrap_or_else(|| "NULL".to_owned())
    }

    /// Runs statements without parameters.
    ///
    /// # Panics
    /// When one fails.
    pub async fn run(&self, sql: &str) {
        self.client
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Runs statements of which one must fail; returns that error.
    pub async fn error_of(&self, sql: &str) -> DbError {
        match self.client.batch_execute(sql).await {
            Ok(()) => panic!("accepted: {sql}"),
            Err(error) => error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}")).clone(),
        }
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}
