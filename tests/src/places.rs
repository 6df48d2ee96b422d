//! Where things are: the work tree, what was built, the tools of `make setup`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The root of the work tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the work tree")
}

/// Cargo's target directory, the one of this build.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A program that `make` leaves in `target/release`.
///
/// # Panics
/// When it has not been built; the message says by what it is.
pub fn built(program: &str, make_target: &str) -> PathBuf {
    let path = target().join("release").join(program);
    assert!(
        path.is_file(),
        "{} is missing: run `make {make_target}` first",
        path.display()
    );
    path
}

/// The pg_config of the Postgres under test, as `make install` chose it.
pub fn pg_config() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| PathBuf::from(output(&mut Command::new(root().join("scripts/pg-config")))))
}

/// A program of the Postgres under test, such as `initdb`.
pub fn pg_program(name: &str) -> PathBuf {
    pg_bin().join(name)
}

/// Where the programs of the Postgres under test are.
pub fn pg_bin() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| bin_of(pg_config()))
}

/// Where the programs of a Postgres of that major are, as `make install PG=<major>` has chosen it.
pub fn pg_bin_of(major: u32) -> PathBuf {
    let pg_config = output(Command::new(root().join("scripts/postgres")).arg(major.to_string()));
    bin_of(Path::new(&pg_config))
}

fn bin_of(pg_config: &Path) -> PathBuf {
    PathBuf::from(output(Command::new(pg_config).arg("--bindir")))
}

/// The nats-server of `make setup`.
pub fn nats_server() -> PathBuf {
    tool("nats-server")
}

/// A program that `make setup` leaves in `target/tools/bin`.
///
/// # Panics
/// When it is not there.
pub fn tool(name: &str) -> PathBuf {
    let path = root().join("target/tools/bin").join(name);
    assert!(path.exists(), "{} is missing: run `make setup` first", path.display());
    path
}

/// The first line a command prints; panics when it fails.
fn output(command: &mut Command) -> String {
    let result = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        result.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&result.stderr)
    );
    String::from_utf8(result.stdout)
        .expect("a path in UTF-8")
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}
