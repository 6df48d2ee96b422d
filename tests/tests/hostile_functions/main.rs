//! What nobody would pass, and what should not be in the tables: the extension answers or says what is wrong, with an
//! SQLSTATE and a hint. It never panics, never takes the server down, and leaves nothing behind.

mod arguments;
mod data;
mod functions;

use std::time::{SystemTime, UNIX_EPOCH};

use ext_registry_tests::{Database, Session};
use tokio_postgres::error::DbError;

/// `xorshift64*`, seeded by the clock or by `HOSTILE_SEED`; the seed is printed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let clock = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .expect("after 1970")
                .as_nanos() as u64
        };
        let seed = std::env::var("HOSTILE_SEED").map_or_else(|_| clock(), |text| text.parse().expect("a number"));
        println!("HOSTILE_SEED={seed}");
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn of<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.below(values.len())]
    }
}

/// What is wrong with an error, if anything is.
fn complaint(function: &str, error: &DbError) -> Option<&'static str> {
    let mut text = error.message().to_owned();
    for part in [error.detail(), error.hint(), error.where_()].into_iter().flatten() {
        text += "\n";
        text += part;
    }
    let ours = matches!(error.routine(), Some("ext_registry" | "exec_stmt_raise"));
    let rust = [
        "panicked",
        "internal error",
        "backtrace",
        "Option::unwrap",
        ".rs:",
        "rust_begin_unwind",
    ];
    if rust.iter().any(|trace| text.contains(trace)) {
        Some("shows the inside of the program")
    } else if error.code().code() == "XX000" {
        Some("has no SQLSTATE of its own")
    } else if error.code().code() == "57014" {
        Some("takes too long")
    } else if ours && error.hint().is_none_or(str::is_empty) {
        Some("has no hint")
    } else if ours && text.len() > 5_000 && !function.starts_with('_') {
        // (The inner ones are given what to say by their callers.)
        Some("is longer than anybody reads")
    } else {
        None
    }
}

/// A session of a database with an extension x of two versions and two instances.
async fn prepared(database: &Database<'_>) -> Session {
    let session = database.connect().await;
    session
        .run(
            r#"insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1');
               insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
               values ('x', 'v2', 'x.v2', 100, 0, '{"tenant_id": ["t"]}');
               insert into extension_instances (extension_id, instance_id, subject) values ('x', 'a', 'x.v1'), ('x', 'b', 'x.v1')"#,
        )
        .await;
    session
}
