//! Python programs in a virtual environment with nats-py, a NATS client that shares no code with ours.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::places;
use crate::process::{Directory, Server};

/// The interpreter of the environment that `scripts/requirements/nats-py.txt` pins; made when it is missing.
pub fn interpreter() -> PathBuf {
    let output = Command::new(places::root().join("scripts/venv"))
        .arg("nats-py")
        .output()
        .expect("scripts/venv can be started");
    crate::postgres::must_succeed(&output);
    let venv = String::from_utf8(output.stdout).expect("a path in UTF-8");
    PathBuf::from(venv.trim()).join("bin/python")
}

/// A running Python program; ended when dropped.
#[derive(Debug)]
pub struct Program {
    server: Server,
    _directory: Directory,
}

impl Program {
    /// Runs the program text with `arguments`; returns when it has printed a line `ready`.
    pub fn start(text: &str, arguments: &[&str]) -> Self {
        let directory = Directory::new("python-", None);
        let file = directory.path().join("program.py");
        std::fs::write(&file, text).expect("our own directory");
        let mut command = Command::new(interpreter());
        command.arg("-u").arg(&file).args(arguments);
        let mut server = Server::start("python", &mut command, &directory.path().join("log"), Signal::SIGKILL);
        server.await_ready(Duration::from_secs(30), |server| {
            server.log().lines().any(|line| line == "ready")
        });
        Self {
            server,
            _directory: directory,
        }
    }

    pub fn log(&self) -> String {
        self.server.log()
    }
}
