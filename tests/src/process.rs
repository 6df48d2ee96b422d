//! Child processes and directories that do not outlive their owner.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User, chown};

use crate::reaper;
use crate::wait::wait_until;

/// A user that is not root, for Postgres, which refuses to run as root.
#[derive(Clone, Copy, Debug)]
pub struct Unprivileged {
    uid: Uid,
    gid: Gid,
}

impl Unprivileged {
    /// `None` where the caller is not root already: then everything runs as the caller.
    pub fn needed() -> Option<Self> {
        if !Uid::effective().is_root() {
            return None;
        }
        let user = ["postgres", "nobody"]
            .iter()
            .find_map(|name| User::from_name(name).expect("the user database can be read"))
            .expect("root needs a user `postgres` or `nobody` to run Postgres as");
        Some(Self {
            uid: user.uid,
            gid: user.gid,
        })
    }

    /// Makes `command` run as this user.
    pub fn apply(self, command: &mut Command) {
        command.uid(self.uid.as_raw()).gid(self.gid.as_raw());
    }

    /// User and group.
    pub fn ids(self) -> (u32, u32) {
        (self.uid.as_raw(), self.gid.as_raw())
    }

    fn can_enter(self, path: &Path) -> bool {
        let mut command = Command::new("test");
        command.arg("-x").arg(path);
        self.apply(&mut command);
        command.status().is_ok_and(|status| status.success())
    }
}

/// A directory that is removed with this value.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// In `target/tests`, or in the system's directory for temporary files where `user` cannot reach that.
    pub fn new(prefix: &str, user: Option<Unprivileged>) -> Self {
        let preferred = crate::places::target().join("tests");
        std::fs::create_dir_all(&preferred).expect("target/tests can be made");
        let reachable = user.is_none_or(|user| user.can_enter(&preferred));
        let parent = if reachable { preferred } else { std::env::temp_dir() };
        Self::within(&parent, prefix, user)
    }

    /// In the system's directory for temporary files: its path is short enough for a unix socket.
    pub fn short(prefix: &str, user: Option<Unprivileged>) -> Self {
        Self::within(&std::env::temp_dir(), prefix, user)
    }

    fn within(parent: &Path, prefix: &str, user: Option<Unprivileged>) -> Self {
        let path = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(parent)
            .unwrap_or_else(|error| panic!("a directory in {}: {error}", parent.display()))
            .keep();
        reaper::watch_directory(&path);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("our own directory");
        if let Some(user) = user {
            chown(&path, Some(user.uid), Some(user.gid)).expect("root may give a directory away");
        }
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("{} could not be removed: {error}", self.path.display());
        }
        reaper::forget_directory(&self.path);
    }
}

/// A running server. Its output goes to a file, for messages of failed tests; it is ended when dropped.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    log: PathBuf,
    /// What ends it at once and in order, where there is such a signal.
    last_signal: Signal,
    ended: Option<ExitStatus>,
}

impl Server {
    /// Starts `command`, its output appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path, last_signal: Signal) -> Self {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("the log file can be made");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle of the log file"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {command:?}: {error}"));
        reaper::watch_process(child.id(), last_signal.as_str().trim_start_matches("SIG"));
        Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            last_signal,
            ended: None,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it has written so far.
    pub fn log(&self) -> String {
        read_lossy(&self.log)
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("our own child");
            if self.ended.is_some() {
                reaper::forget_process(self.child.id());
            }
        }
        self.ended
    }

    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            // ESRCH cannot be: the child has not been waited for.
            kill(Pid::from_raw(self.child.id() as i32), signal).expect("our own child");
        }
    }

    /// Sends `signal` and waits for the end.
    ///
    /// # Panics
    /// When it has not ended by `deadline`, with the end of its log.
    #[track_caller]
    pub fn stop(&mut self, signal: Signal, deadline: Duration) -> ExitStatus {
        self.signal(signal);
        wait_until(
            &format!("{} ends after {signal}\n{}", self.name, self.log_tail()),
            deadline,
            || self.ended().is_some(),
        );
        self.ended.expect("just waited for")
    }

    /// Waits until `ready`; fails early, with the log, when the server ends before that.
    #[track_caller]
    pub fn await_ready(&mut self, deadline: Duration, mut ready: impl FnMut(&Server) -> bool) {
        let start = std::time::Instant::now();
        loop {
            if ready(self) {
                return;
            }
            if let Some(status) = self.ended() {
                panic!(
                    "{} ended before it was ready ({status}):\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            assert!(
                start.elapsed() < deadline,
                "{} not ready within {deadline:?}:\n{}",
                self.name,
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The last 40 lines of its log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.ended().is_some() {
            return;
        }
        self.signal(self.last_signal);
        let start = std::time::Instant::now();
        while self.ended().is_none() {
            if start.elapsed() > Duration::from_secs(10) {
                eprintln!("{} does not end by {}, killing it", self.name, self.last_signal);
                self.signal(Signal::SIGKILL);
                let _: io::Result<ExitStatus> = self.child.wait();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A file that another process may be writing: what is there now, empty if it is not there.
pub fn read_lossy(path: &Path) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// Memory of a process that is its own alone, in kB.
pub fn anonymous_kb(pid: i32) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process of this machine");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("a line of it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
