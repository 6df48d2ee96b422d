//! The SQL regress tests: what psql prints for `regress/sql/NAME.sql` must be `regress/expected/NAME.out`.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use crate::postgres::Database;
use crate::{pages, places};

/// The files to run, by name.
///
/// # Panics
/// When there is none.
pub fn files() -> Vec<PathBuf> {
    let folder = places::root().join("tests/regress/sql");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("tests/regress/sql")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no regress test in {}", folder.display());
    files
}

/// Where what a file should print stands.
pub fn expected(file: &Path) -> PathBuf {
    let name = file.file_stem().expect("a file has a name");
    places::root()
        .join("tests/regress/expected")
        .join(name)
        .with_extension("out")
}

/// How what is printed differs from what is expected, as a unified diff; None if it does not.
pub fn difference(file: &Path, printed: &str) -> Option<String> {
    let file = expected(file);
    let expected = fs::read_to_string(&file).unwrap_or_default();
    pages::difference(&file.display().to_string(), &expected, printed)
}

/// What psql prints for the file: statements, results and messages, in order, as pg_regress has it.
///
/// # Panics
/// When psql cannot run it; an error within the file is part of what is printed.
pub fn print(file: &Path, database: &Database<'_>) -> String {
    let printed = tempfile::tempfile().expect("a temporary file");
    let handle = || printed.try_clone().expect("a second handle of the file");
    let status = database
        .cluster()
        .psql_command(database.name())
        .args(["-a", "-q"])
        .env("LC_ALL", "C")
        .env("PGTZ", "UTC")
        .env("PGDATESTYLE", "ISO, YMD")
        .stdin(File::open(file).expect("a readable file"))
        .stdout(handle())
        .stderr(handle())
        .status()
        .expect("psql can be started");
    let mut text = String::new();
    let mut printed = printed;
    printed.rewind().expect("a file");
    printed.read_to_string(&mut text).expect("the client encoding is UTF-8");
    assert!(status.success(), "{}: {text}", file.display());
    text
}
