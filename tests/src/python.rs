//! Python programs in virtual environments, with clients that share no code with ours.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::places;
use crate::process::{Directory, Server};

/// The interpreter of the environment that `scripts/requirements/<environment>.txt` pins; made when it is missing.
pub fn interpreter(environment: &str) -> PathBuf {
    let output = Command::new(places::root().join("scripts/venv"))
        .arg(environment)
        .output()
        .expect("scripts/venv can be started");
    crate::postgres::must_succeed(&output);
    let venv = String::from_utf8(output.stdout).expect("a path in UTF-8");
    PathBuf::from(venv.trim()).join("bin/python")
}

/// Runs a program text in that environment to its end; what it printed.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn run(environment: &str, text: &str, arguments: &[&str]) -> String {
    let output = Command::new(interpreter(environment))
        .arg("-c")
        .arg(text)
        .args(arguments)
        .output()
        .expect("Python can be started");
    crate::postgres::must_succeed(&output);
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A running Python program; ended when dropped.
#[derive(Debug)]
pub struct Program {
    server: Server,
    _directory: Directory,
}

impl Program {
    /// Runs the program text, which may use nats-py, with `arguments`; returns when it has printed a line `ready`.
    pub fn start(text: &str, arguments: &[&str]) -> Self {
        Self::start_in("nats-py", text, arguments)
    }

    /// The same in another environment.
    pub fn start_in(environment: &str, text: &str, arguments: &[&str]) -> Self {
        let directory = Directory::new("python-", None);
        let file = directory.path().join("program.py");
        std::fs::write(&file, text).expect("our own directory");
        let mut command = Command::new(interpreter(environment));
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

    /// It stands still: connections stay, nothing is answered.
    pub fn freeze(&self) {
        self.server.signal(Signal::SIGSTOP);
    }

    /// It goes on.
    pub fn thaw(&self) {
        self.server.signal(Signal::SIGCONT);
    }
}
