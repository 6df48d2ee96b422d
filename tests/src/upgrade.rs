//! `pg_upgrade`: a cluster becomes one of a newer major.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use crate::ports;
use crate::postgres::{Postgres, Shutdown, initdb};
use crate::process::Directory;

impl Postgres {
    /// Stops this cluster, upgrades it to the major whose programs are in `bin`, and starts that one. The extension must have
    /// been installed there.
    #[must_use]
    pub fn upgrade(mut self, bin: &Path) -> Self {
        self.stop(Shutdown::Fast);
        let (directory, socket) = (Directory::new("pg-", self.user), Directory::short("xr-", self.user));
        let port = ports::free();
        // As the older one was made: from 18 on there are checksums unless one says otherwise.
        initdb(bin, directory.path(), self.user, &["--no-data-checksums"]);
        let (old, new) = (self.directory.path().join("data"), directory.path().join("data"));
        let conf = |data: &Path| std::fs::read_to_string(data.join("postgresql.conf")).expect("initdb made it");
        let ours = conf(&old);
        let ours = &ours[ours
            .find("listen_addresses = '127.0.0.1'\n")
            .expect("it was written by `start`")..];
        let conf = format!(
            "{}{ours}port = {port}\nunix_socket_directories = '{}'\n",
            conf(&new),
            socket.path().display()
        );
        std::fs::write(new.join("postgresql.conf"), conf).expect("postgresql.conf can be written");

        let mut command = Command::new(bin.join("pg_upgrade"));
        command
            .arg("--old-bindir")
            .arg(&self.bin)
            .arg("--new-bindir")
            .arg(bin)
            .arg("--old-datadir")
            .arg(&old)
            .arg("--new-datadir")
            .arg(&new)
            .arg("--socketdir")
            .arg(socket.path())
            .args(["--old-port", &self.port.to_string(), "--new-port", &port.to_string()])
            .args(["--username", "postgres"])
            .current_dir(directory.path());
        if let Some(user) = self.user {
            user.apply(&mut command);
        }
        let output = command.output().expect("pg_upgrade can be started");
        assert!(
            output.status.success(),
            "{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            logs(&new.join("pg_upgrade_output.d"))
        );
        Self::started(bin, self.user, port, directory, socket)
    }
}

/// The lines of pg_upgrade's logs that say why it failed.
fn logs(folder: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return String::new();
    };
    let mut all = String::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            all += &logs(&path);
            continue;
        }
        let log = std::fs::read_to_string(&path).unwrap_or_default();
        let telling = ["error", "fatal", "detail", "context", "command was"];
        let is_amiss = |line: &&str| telling.iter().any(|word| line.to_lowercase().contains(word));
        for line in log.lines().filter(is_amiss) {
            let _ = writeln!(all, "{}: {line}", path.display()); // a String takes anything
        }
    }
    all
}
