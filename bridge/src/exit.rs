//! How the program ends.

use std::fmt;
use std::process::ExitCode;

/// Why a command did not succeed; each has its own exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A call was refused or failed, or a check failed.
    Refused = 1,
    /// Settings that cannot be. Wrong flags exit with 2 too.
    Config = 2,
    /// NATS cannot be reached or refuses.
    Nats = 3,
    /// Postgres cannot be reached or refuses, or lacks the extension.
    Postgres = 4,
    /// An address cannot be listened on.
    Listen = 5,
    /// Fixtures that cannot be used.
    Fixtures = 6,
    /// Anything else.
    Internal = 70,
}

/// An error with its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The code.
    pub kind: Kind,
    /// One line.
    pub message: String,
}

impl Exit {
    /// An error with one line of text.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// The process's exit code.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Exit {}
