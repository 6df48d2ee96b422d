//! A real nats-server on a port of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::process::{Directory, Server};
use crate::{places, ports};

const DEADLINE: Duration = Duration::from_secs(10);

/// A running nats-server; stopped when dropped.
#[derive(Debug)]
pub struct Nats {
    server: Server,
    port: u16,
    directory: Directory,
    flags: Vec<String>,
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
            server: spawn(port, &directory, &flags),
            port,
            directory,
            flags,
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

    /// Ends the server; clients lose their connections.
    pub fn stop(&mut self) {
        self.server.stop(Signal::SIGKILL, DEADLINE);
    }

    /// Starts it again on the same port.
    pub fn start_again(&mut self) {
        assert!(self.server.ended().is_some(), "nats-server runs");
        self.server = spawn(self.port, &self.directory, &self.flags);
    }
}

fn spawn(port: u16, directory: &Directory, flags: &[String]) -> Server {
    let log: PathBuf = directory.path().join("log");
    let before = crate::process::read_lossy(&log).matches("Server is ready").count();
    let mut command = Command::new(places::nats_server());
    command
        .args(["--addr", "127.0.0.1", "--port", &port.to_string()])
        .args(flags);
    let mut server = Server::start("nats-server", &mut command, &log, Signal::SIGKILL);
    server.await_ready(DEADLINE, |server| {
        server.log().matches("Server is ready").count() > before
    });
    server
}
