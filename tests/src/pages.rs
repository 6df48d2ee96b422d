//! Pages whose SQL is run, or which are generated: what psql prints as one types, and how a page differs from what it should be.

use std::io::{Seek, Write as _};

use similar::TextDiff;

use crate::postgres::Database;

/// What psql prints for a script, statement by statement as one would type it in one session. `options` are psql's.
///
/// # Panics
/// When a statement fails, or anything is printed on stderr.
pub fn typed(database: &Database<'_>, script: &str, options: &[&str]) -> String {
    let mut input = tempfile::tempfile().expect("a temporary file");
    input
        .write_all(script.as_bytes())
        .and_then(|()| input.rewind())
        .expect("a temporary file can be written");
    let output = database
        .cluster()
        .psql_command(database.name())
        .args(["-v", "ON_ERROR_STOP=1"])
        .args(options)
        .stdin(input)
        .output()
        .expect("psql can be started");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && complaints.is_empty(),
        "{complaints}\nof {script}"
    );
    String::from_utf8(output.stdout).expect("the client encoding is UTF-8")
}

/// How `actual` differs from what is `expected` under that name, as a unified diff; None if it does not.
pub fn difference(name: &str, expected: &str, actual: &str) -> Option<String> {
    let diff = TextDiff::from_lines(expected, actual);
    (expected != actual).then(|| diff.unified_diff().header(name, "now").to_string())
}
