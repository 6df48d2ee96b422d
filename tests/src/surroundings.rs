//! What the processes of a cluster see of the machine: a small disk of their own, a clock that can be stepped.
//!
//! The disk is a tmpfs in a mount namespace that ends with them. The clock (`clock/stepped_clock.c`) is the wall clock alone, as an
//! administrator or NTP steps it; the monotonic one goes on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::places;
use crate::postgres::must_succeed;
use crate::process::{Directory, Unprivileged};

/// See the module. The default is the machine as it is.
#[derive(Debug, Default)]
pub struct Surroundings {
    small_disk_mb: Option<u32>,
    clock: Option<Clock>,
}

#[derive(Debug)]
struct Clock {
    directory: Directory,
}

impl Clock {
    fn library(&self) -> PathBuf {
        self.directory.path().join("stepped_clock.so")
    }

    fn seconds(&self) -> PathBuf {
        self.directory.path().join("seconds")
    }
}

impl Surroundings {
    /// A disk of so many MB at [`crate::Postgres::small_disk`]. To mount it, the test is run by root, or by somebody who may make
    /// user namespaces.
    #[must_use]
    pub fn with_small_disk(megabytes: u32) -> Self {
        Self {
            small_disk_mb: Some(megabytes),
            clock: None,
        }
    }

    /// A wall clock that [`Surroundings::step_clock`] moves.
    #[must_use]
    pub fn with_clock() -> Self {
        let directory = Directory::new("clock-", Unprivileged::needed());
        let clock = Clock { directory };
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]);
        compiler
            .arg(clock.library())
            .arg(places::root().join("tests/clock/stepped_clock.c"));
        must_succeed(&compiler.output().expect("the C compiler that Rust links with"));
        std::fs::write(clock.seconds(), 0_i64.to_ne_bytes()).expect("our own directory");
        Self {
            small_disk_mb: None,
            clock: Some(clock),
        }
    }

    /// Steps the wall clock to so many seconds before (or after) the true time.
    ///
    /// # Panics
    /// Where there is none of its own.
    pub fn step_clock(&self, seconds: i64) {
        let clock = self.clock.as_ref().expect("a clock of its own");
        // In place: the processes have mapped it. Eight bytes that are aligned are read whole.
        let file = File::options().write(true).open(clock.seconds()).expect("our own file");
        file.write_all_at(&seconds.to_ne_bytes(), 0).expect("our own file");
    }

    /// `program` as `user`, in these surroundings.
    pub(crate) fn command(&self, program: &Path, disk: &Path, user: Option<Unprivileged>) -> Command {
        let mut command = match self.small_disk_mb {
            None => Command::new(program),
            Some(megabytes) => with_disk(program, disk, megabytes, user),
        };
        if let (Some(user), None) = (user, self.small_disk_mb) {
            user.apply(&mut command);
        }
        if let Some(clock) = &self.clock {
            command
                .env("LD_PRELOAD", clock.library())
                .env("STEPPED_CLOCK", clock.seconds());
        }
        command
    }
}

/// Each program here becomes the next one, so the process that is started is `program` in the end.
fn with_disk(program: &Path, disk: &Path, megabytes: u32, user: Option<Unprivileged>) -> Command {
    const MOUNT: &str = r#"mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@""#;
    let mut command = Command::new("unshare");
    let size = format!("size={megabytes}m,mode=0700");
    let options = match user.map(Unprivileged::ids) {
        Some((uid, gid)) => format!("{size},uid={uid},gid={gid}"),
        None => size,
    };
    if user.is_none() {
        command.args(["--user", "--map-current-user", "--keep-caps"]);
    }
    command.args(["--mount", "--propagation", "private", "sh", "-c", MOUNT, "sh"]);
    command.arg(options).arg(disk);
    if let Some(user) = user {
        let (uid, gid) = user.ids();
        command.args([
            "setpriv",
            "--reuid",
            &uid.to_string(),
            "--regid",
            &gid.to_string(),
            "--clear-groups",
        ]);
    }
    command.arg(program);
    command
}
