//! `make deb`: packages that install into a clean root, run there, and leave nothing behind; the same commit gives the same bytes.

use std::path::{Path, PathBuf};
use std::process::Command;

use ext_registry_tests::places;

/// Runs to success, or says all of what was printed.
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{command:?}\n{printed}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    printed.into_owned()
}

/// As root, which mounting takes.
fn as_root(program: &str) -> Command {
    if nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", program]);
    command
}

fn build() -> Vec<(PathBuf, Vec<u8>)> {
    let printed = succeed(&mut Command::new(places::root().join("scripts/deb.sh")));
    let read = |line: &str| {
        (
            PathBuf::from(line),
            std::fs::read(line).expect("the script has built it"),
        )
    };
    printed.lines().map(read).collect()
}

#[test]
fn packages_install_run_and_leave_nothing() {
    let packages = build();
    assert_eq!(packages.len(), 2, "one for the extension, one for the bridge");
    assert!(packages == build(), "built twice, and not the same");

    let version = env!("CARGO_PKG_VERSION");
    for (package, _) in &packages {
        let field = |name: &str| succeed(Command::new("dpkg-deb").arg("--field").arg(package).arg(name));
        assert_eq!(field("Version").trim(), version);
        assert!(field("Description").lines().count() > 2);
    }

    let folder = packages[0].0.parent().expect("a file is in a folder");
    let script: &Path = &places::root().join("tests/packages/clean_root.sh");
    let mut command = as_root("unshare");
    command
        .args(["--mount", "--pid", "--fork"])
        .arg(script)
        .arg(folder)
        .arg(places::pg_config());
    let printed = succeed(&mut command);
    assert!(printed.ends_with("installed, run, removed\n"), "{printed}");
    assert!(printed.contains(&format!("ext-bridge {version}")), "{printed}");
}

#[test]
fn metadata_for_pgxn_is_of_this_version_and_names_what_is_there() {
    let text = std::fs::read_to_string(places::root().join("META.json")).expect("META.json");
    let meta: serde_json::Value = serde_json::from_str(&text).expect("META.json is JSON");
    for key in [
        "name",
        "abstract",
        "version",
        "maintainer",
        "license",
        "provides",
        "meta-spec",
    ] {
        assert!(!meta[key].is_null(), "META.json lacks {key}");
    }
    let provided = &meta["provides"]["ext_registry"];
    for version in [&meta["version"], &provided["version"]] {
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
    }
    for key in ["file", "docfile"] {
        let file = provided[key].as_str().expect("a path");
        assert!(places::root().join(file).is_file(), "{file}");
    }
}
