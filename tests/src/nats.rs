//! A real nats-server on a port of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{Directory, Server};
use crate::{eventually, places, ports};

const DEADLINE: Duration = Duration::from_secs(10);

/// A running nats-server; stopped when dropped.
#[derive(Debug)]
pub struct Nats {
    server: Server,
    port: u16,
    directory: Directory,
    flags: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Nats {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more flags, such as a user and a password.
    pub fn start_with(flags: &[&str]) -> Self {
        let directory = Directory::new("nats-", None);
        let port = ports::free();
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        Self {
            server: spawn(port, &directory, &flags, &[]),
            port,
            directory,
            flags,
            variables: Vec::new(),
        }
    }

    /// A cluster of so many servers, each of which knows the others, also to its clients.
    pub async fn cluster(count: usize) -> Vec<Self> {
        let ports: Vec<u16> = (0..count).map(|_| ports::free()).collect();
        let routes: Vec<String> = ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let routes = routes.join(",");
        let nodes: Vec<Self> = ports
            .iter()
            .map(|port| {
                let own = format!("nats://127.0.0.1:{port}");
                Self::start_with(&["--cluster_name", "test", "--cluster", &own, "--routes", &routes])
            })
            .collect();
        for node in &nodes {
            eventually(DEADLINE, async || {
                let told = node.connect().await.server_info().connect_urls.len();
                if told == count { Ok(()) } else { Err(told) }
            })
            .await;
        }
        nodes
    }

    /// With this as its configuration file.
    pub fn start_configured(configuration: &str, variables: &[(&str, &str)]) -> Self {
        let directory = Directory::new("nats-", None);
        let file = directory.path().join("nats.conf");
        std::fs::write(&file, configuration).expect("our own directory");
        let port = ports::free();
        let flags = vec!["--config".to_owned(), file.display().to_string()];
        let variables: Vec<(String, String)> = variables
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Self {
            server: spawn(port, &directory, &flags, &variables),
            port,
            directory,
            flags,
            variables,
        }
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `nats://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// A client that is connected.
    pub async fn connect(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.expect("nats-server answers")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a pid"));
        kill(pid, signal).expect("nats-server runs");
    }

    /// All it has logged so far.
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// Ends the server; clients lose their connections.
    pub fn stop(&mut self) {
        self.server.stop(Signal::SIGKILL, DEADLINE);
    }

    /// Starts it again on the same port.
    pub fn start_again(&mut self) {
        assert!(self.server.ended().is_some(), "nats-server runs");
        self.server = spawn(self.port, &self.directory, &self.flags, &self.variables);
    }
}

fn spawn(port: u16, directory: &Directory, flags: &[String], variables: &[(String, String)]) -> Server {
    let log: PathBuf = directory.path().join("log");
    let before = crate::process::read_lossy(&log).matches("Server is ready").count();
    let mut command = Command::new(places::nats_server());
    command
        .args(["--addr", "127.0.0.1", "--port", &port.to_string()])
        .args(flags)
        .envs(variables.iter().map(|(name, value)| (name, value)));
    let mut server = Server::start("nats-server", &mut command, &log, Signal::SIGKILL);
    server.await_ready(DEADLINE, |server| {
        server.log().matches("Server is ready").count() > before
    });
    server
}
