//! SQL regress tests: each `regress/sql/NAME.sql` runs by psql in a fresh database with the extension, and what psql
//! prints must be `regress/expected/NAME.out`.
//!
//! `REGRESS=accept cargo test -p ext_registry_tests --test regress` writes the expected files anew; read the diff before
//! committing it.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use ext_registry_tests::{Postgres, places};
use similar::TextDiff;

#[test]
fn sql_files_print_what_is_expected() {
    let folder = places::root().join("tests/regress");
    let accept = std::env::var_os("REGRESS").is_some_and(|value| value == "accept");
    let mut files: Vec<PathBuf> = fs::read_dir(folder.join("sql"))
        .expect("tests/regress/sql")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no regress test in {}", folder.display());

    let mut failed = Vec::new();
    for file in &files {
        let name = file
            .file_stem()
            .expect("a file has a name")
            .to_string_lossy()
            .into_owned();
        let printed = run(file);
        let expected_file = folder.join("expected").join(format!("{name}.out"));
        if accept {
            fs::write(&expected_file, &printed).expect("the expected file can be written");
        }
        let expected = fs::read_to_string(&expected_file).unwrap_or_default();
        if printed != expected {
            let diff = TextDiff::from_lines(&expected, &printed);
            eprintln!(
                "{}",
                diff.unified_diff().header(&format!("expected/{name}.out"), "printed")
            );
            failed.push(name);
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {} differ: {}",
        failed.len(),
        files.len(),
        failed.join(", ")
    );
}

/// What psql prints for the file: statements, results and messages, in order, as pg_regress has it.
fn run(file: &Path) -> String {
    let database = Postgres::shared().database();
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
    // An error within the file is part of what is compared; one of the connection is not.
    assert!(status.success(), "{}: {text}", file.display());
    text
}
