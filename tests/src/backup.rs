//! `pg_basebackup`, and clusters that are made of what it has copied: standbys, and recoveries up to some point.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use crate::ports;
use crate::postgres::{Postgres, must_succeed};
use crate::process::{Directory, Unprivileged};

/// A copy of a cluster; removed when dropped.
#[derive(Debug)]
pub struct Backup {
    directory: Directory,
    user: Option<Unprivileged>,
    bin: PathBuf,
}

impl Postgres {
    /// A base backup of this cluster, which runs on.
    #[must_use]
    pub fn back_up(&self, flags: &[&str]) -> Backup {
        let directory = Directory::new("pg-", self.user);
        let mut command = Command::new(self.bin.join("pg_basebackup"));
        command
            .arg("-D")
            .arg(directory.path().join("data"))
            .args(["--checkpoint=fast", "--no-sync", "-h", "127.0.0.1"])
            .args(["-U", "postgres", "-p", &self.port.to_string()])
            .args(flags)
            .current_dir(directory.path());
        if let Some(user) = self.user {
            user.apply(&mut command);
        }
        must_succeed(&command.output().expect("pg_basebackup can be started"));
        Backup {
            directory,
            user: self.user,
            bin: self.bin.clone(),
        }
    }
}

impl Backup {
    /// A cluster of these data. `settings` as in [`Postgres::start`], above those of the cluster that was copied.
    #[must_use]
    pub fn start(self, settings: &[&str]) -> Postgres {
        let socket = Directory::short("xr-", self.user);
        let port = ports::free();
        let mut conf = format!(
            "port = {port}\nunix_socket_directories = '{}'\n",
            socket.path().display()
        );
        for line in settings {
            writeln!(conf, "{line}").expect("writing to a string");
        }
        let path = self.directory.path().join("data/postgresql.conf");
        let copied = std::fs::read_to_string(&path).expect("pg_basebackup copied it");
        std::fs::write(&path, copied + &conf).expect("postgresql.conf can be written");
        Postgres::started(&self.bin, self.user, port, self.directory, socket)
    }

    /// A cluster that recovers from these data and the WAL in `archive`, up to the restore point of that name, and goes on from
    /// there; it may still be on its way.
    #[must_use]
    pub fn recover(self, archive: &Directory, restore_point: &str, settings: &[&str]) -> Postgres {
        let signal = self.directory.path().join("data/recovery.signal");
        std::fs::write(signal, "").expect("our own directory");
        let restore = format!("restore_command = 'cp {}/%f %p'", archive.path().display());
        let target = format!("recovery_target_name = '{restore_point}'");
        let recovery = [&*restore, &*target, "recovery_target_action = 'promote'"];
        self.start(&[&recovery[..], settings].concat())
    }
}
