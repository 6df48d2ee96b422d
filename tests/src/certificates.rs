//! Certificates by openssl, for servers and clients that speak TLS.

use std::path::PathBuf;
use std::process::Command;

use crate::postgres::must_succeed;
use crate::process::{Directory, Unprivileged};

/// Two authorities, `ca` and `other`; by `ca` a `server` called localhost and a client called `certified`; `own`, signed by
/// itself.
#[derive(Debug)]
pub struct Certificates {
    directory: Directory,
    user: Option<Unprivileged>,
}

impl Certificates {
    /// Makes them all.
    pub fn make() -> Self {
        let user = Unprivileged::needed();
        let this = Self {
            directory: Directory::new("tls-", user),
            user,
        };
        this.openssl("ca", &["-subj", "/CN=ca"]);
        this.openssl("other", &["-subj", "/CN=ca"]);
        this.openssl("own", &["-subj", "/CN=own", "-addext", "subjectAltName=DNS:localhost"]);
        let signed = [
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ];
        let server = ["-subj", "/CN=server", "-addext", "subjectAltName=DNS:localhost"];
        this.openssl("server", &[&signed[..], &server].concat());
        this.openssl("certified", &[&signed[..], &["-subj", "/CN=certified"]].concat());
        this
    }

    /// Makes one more, with these arguments of `openssl req`.
    pub fn openssl(&self, name: &str, more: &[&str]) {
        let mut command = Command::new("openssl");
        command
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ])
            .args([
                "-days",
                "2",
                "-keyout",
                &format!("{name}.key"),
                "-out",
                &format!("{name}.crt"),
            ])
            .args(more)
            .current_dir(self.directory.path());
        if let Some(user) = self.user {
            user.apply(&mut command);
        }
        must_succeed(&command.output().expect("openssl can be started"));
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// The same as text.
    pub fn file(&self, file: &str) -> String {
        self.path(file).display().to_string()
    }

    /// Writes a file beside them.
    pub fn write(&self, file: &str, text: &str) -> String {
        std::fs::write(self.path(file), text).expect("our own directory");
        self.file(file)
    }
}
