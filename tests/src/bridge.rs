//! The `ext-bridge` binary as a running process, and as a command.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::postgres::BRIDGE_ROLE;
use crate::process::{Directory, Server};
use crate::wait::wait_until;
use crate::{Database, Nats, Postgres, Scrape, http, places, ports};

const DEADLINE: Duration = Duration::from_secs(30);

/// A running bridge; ended when dropped.
#[derive(Debug)]
pub struct Bridge {
    server: Server,
    http: SocketAddr,
    grpc: SocketAddr,
    _directory: Directory,
}

impl Bridge {
    /// `ext-bridge serve` between `nats` and a database; returns when it is ready. `flags` come last.
    pub fn start(nats: &Nats, database: &Database<'_>, flags: &[&str]) -> Self {
        Self::start_on(nats, database.cluster(), database.name(), flags)
    }

    /// The same for a database by name, where the cluster is stopped and started meanwhile.
    pub fn start_on(nats: &Nats, cluster: &Postgres, database: &str, flags: &[&str]) -> Self {
        let mut command = command_on(nats, cluster, database);
        command.env("EXTENSION_REGISTRY_SOURCE", "database");
        Self::serve(command, flags)
    }

    /// `ext-bridge serve` without Postgres, on the repository's fixtures.
    pub fn start_on_fixtures(nats: &Nats, flags: &[&str]) -> Self {
        let mut command = bare_command(nats);
        command.env("EXTENSION_REGISTRY_SOURCE", "fixtures");
        command.current_dir(places::root());
        Self::serve(command, flags)
    }

    /// `ext-bridge serve` with source `auto` and no fixtures; returns when it is ready. Its image is where `flags` say, else
    /// gone with it.
    pub fn start_auto(nats: &Nats, cluster: &Postgres, database: &str, flags: &[&str]) -> Self {
        let bridge = Self::launch_auto(nats, cluster, database, flags);
        bridge.await_ready()
    }

    /// The same, but returns at once: it may not become ready.
    pub fn launch_auto(nats: &Nats, cluster: &Postgres, database: &str, flags: &[&str]) -> Self {
        let mut command = command_on(nats, cluster, database);
        command.env("EXTENSION_REGISTRY_SOURCE", "auto");
        Self::launch(command, flags)
    }

    /// `ext-bridge serve` on the fixtures, to its end where it does not start: its exit code, and what it said.
    pub fn refuses_on_fixtures(nats: &Nats, flags: &[&str]) -> (Option<i32>, String) {
        let mut command = bare_command(nats);
        command.env("EXTENSION_REGISTRY_SOURCE", "fixtures");
        command.current_dir(places::root());
        Self::launch(command, flags).ends()
    }

    /// `ext-bridge serve` with a database by name and more variables; returns at once.
    pub fn launch_with(
        nats: &Nats,
        cluster: &Postgres,
        database: &str,
        flags: &[&str],
        variables: &[(&str, &OsStr)],
    ) -> Self {
        let mut command = command_on(nats, cluster, database);
        command.envs(variables.iter().copied());
        Self::launch(command, flags)
    }

    /// `ext-bridge serve` on the repository's fixtures, with more variables; returns at once.
    pub fn launch_on_fixtures(nats: &Nats, flags: &[&str], variables: &[(&str, &OsStr)]) -> Self {
        let mut command = bare_command(nats);
        command.env("EXTENSION_REGISTRY_SOURCE", "fixtures");
        command.envs(variables.iter().copied());
        command.current_dir(places::root());
        Self::launch(command, flags)
    }

    /// Returns when it is ready.
    #[must_use]
    pub fn ready(self) -> Self {
        self.await_ready()
    }

    /// Waits until it has ended; its exit code, and what it said.
    pub fn ends(&mut self) -> (Option<i32>, String) {
        wait_until("the bridge ends", DEADLINE, || self.server.ended().is_some());
        let status = self.server.ended().expect("it has ended");
        (status.code(), self.log())
    }

    fn serve(command: Command, flags: &[&str]) -> Self {
        Self::launch(command, flags).await_ready()
    }

    fn await_ready(mut self) -> Self {
        let http = self.http;
        self.server.await_ready(DEADLINE, |_| {
            http::get(http, "/readyz").is_ok_and(|(status, _)| status == 200)
        });
        self
    }

    fn launch(mut command: Command, flags: &[&str]) -> Self {
        let directory = Directory::new("bridge-", None);
        command.env("STATE_DIRECTORY", directory.path());
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (http, grpc) = (local(ports::free()), local(ports::free()));
        command
            .arg("serve")
            .args(["--http-addr", &http.to_string(), "--grpc-addr", &grpc.to_string()])
            .args(flags);
        let server = Server::start(
            "ext-bridge",
            &mut command,
            &directory.path().join("log"),
            Signal::SIGKILL,
        );
        Self {
            server,
            http,
            grpc,
            _directory: directory,
        }
    }

    /// Where `/metrics`, `/healthz` and `/readyz` are.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where the gRPC services are.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Status of `/readyz`; 0 when nobody listens.
    pub fn readiness(&self) -> u16 {
        http::get(self.http, "/readyz").map_or(0, |(status, _)| status)
    }

    /// The body of `/readyz`; null when nobody listens.
    pub fn readyz(&self) -> serde_json::Value {
        let Ok((_, body)) = http::get(self.http, "/readyz") else {
            return serde_json::Value::Null;
        };
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> String {
        let (status, body) = http::get(self.http, "/metrics").expect("the bridge listens");
        assert_eq!(status, 200, "{body}");
        body
    }

    /// `/metrics`, taken apart.
    pub fn scrape(&self) -> Scrape {
        Scrape::of(&self.metrics())
    }

    /// The value of a series of `/metrics`, named as there, labels included; `None` when there is none.
    pub fn metric(&self, series: &str) -> Option<f64> {
        self.metrics()
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    /// All it has logged so far.
    pub fn log(&self) -> String {
        self.server.log()
    }

    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// SIGHUP; returns at once.
    pub fn hang_up(&self) {
        self.server.signal(Signal::SIGHUP);
    }

    /// SIGTERM; returns when it has drained and ended.
    pub fn terminate(&mut self) -> ExitStatus {
        self.server.stop(Signal::SIGTERM, DEADLINE)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.server.stop(Signal::SIGKILL, DEADLINE);
    }
}

/// Runs `ext-bridge` with `arguments` against `nats` and a database, to its end.
pub fn run(nats: &Nats, database: &Database<'_>, arguments: &[&str], stdin: &str) -> Output {
    run_on(nats, database.cluster(), database.name(), arguments, stdin)
}

/// The same for a database by name.
pub fn run_on(nats: &Nats, cluster: &Postgres, database: &str, arguments: &[&str], stdin: &str) -> Output {
    use std::io::Write as _;

    let mut child = command_on(nats, cluster, database)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ext-bridge can be started");
    // A command that does not read its input closes it; that is its right.
    let _: std::io::Result<()> = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
    child.wait_with_output().expect("our own child")
}

/// Runs `ext-bridge` with `arguments` and nothing else, to its end.
pub fn run_alone(arguments: &[&str]) -> Output {
    Command::new(places::built("ext-bridge", "bridge"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("ext-bridge can be started")
}

fn command_on(nats: &Nats, cluster: &Postgres, database: &str) -> Command {
    let mut command = bare_command(nats);
    command
        .env("EXTENSION_REGISTRY_DB_HOST", "127.0.0.1")
        .env("EXTENSION_REGISTRY_DB_PORT", cluster.port().to_string())
        .env("EXTENSION_REGISTRY_DB_NAME", database)
        .env("EXTENSION_REGISTRY_DB_USER", BRIDGE_ROLE);
    command
}

/// The binary, with no setting but NATS: what the caller's environment says must not reach a test.
fn bare_command(nats: &Nats) -> Command {
    let mut command = Command::new(places::built("ext-bridge", "bridge"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if ["EXT_BRIDGE_", "EXTENSION_REGISTRY_", "PG"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            command.env_remove(name.as_ref());
        }
    }
    command.env("NATS_URL", nats.url());
    command
}
