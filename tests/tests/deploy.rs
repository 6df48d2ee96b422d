//! What is installed beside the binary: unit, default settings, manual page, completions.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use ext_registry_tests::process::Directory;
use ext_registry_tests::{bridge, places};

fn printed(arguments: &[&str]) -> String {
    let output = bridge::run_alone(arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The flags of `--help` that are settings.
fn flags() -> BTreeSet<String> {
    let help = printed(&["--help"]);
    let named = help.lines().filter_map(|line| line.trim_start().strip_prefix("--"));
    let flags: BTreeSet<String> = named
        .filter_map(|line| {
            line.split(|c: char| c != '-' && !c.is_ascii_alphanumeric())
                .next()
                .map(str::to_owned)
        })
        .filter(|flag| !["help", "version", "config", ""].contains(&flag.as_str()))
        .collect();
    assert!(flags.len() > 30, "{flags:?}");
    flags
}

#[test]
fn the_default_settings_name_every_flag_with_its_default() {
    let path = places::root().join("deploy/ext-bridge.toml");
    let text = std::fs::read_to_string(&path).expect("it is there");
    let active = text.lines().find(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(active, None, "as it is installed it sets nothing");
    let lines: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()) && line.contains(" = "))
        .collect();
    let keys: BTreeSet<String> = lines
        .iter()
        .filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()))
        .collect();
    assert_eq!(keys, flags());
    let directory = Directory::new("deploy-", None);
    let file = directory.path().join("all.toml");
    // Examples of logins exclude each other or name files that are not here; the rest stands together.
    let example = |line: &&&str| {
        let key = line.split(" = ").next().unwrap_or_default();
        !["nats-creds", "nats-nkey-seed", "db-url"].contains(&key) && !line.contains("/etc/")
    };
    let all: Vec<&str> = lines.iter().filter(example).copied().collect();
    std::fs::write(&file, all.join("\n")).expect("our own directory");
    let output = bridge::run_alone(&[
        "fixtures",
        "validate",
        "--config",
        file.to_str().expect("UTF-8"),
        "--fixtures",
        places::root().join("fixtures").to_str().expect("UTF-8"),
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Every key is known and every value of its type, those of the examples too.
    for line in &lines {
        std::fs::write(&file, line).expect("our own directory");
        let output = bridge::run_alone(&["fixtures", "validate", "--config", file.to_str().expect("UTF-8")]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("settings file"), "{line}: {said}");
    }
    // And the defaults are those of the help.
    let help = printed(&["--help"]).split_whitespace().collect::<Vec<_>>().join(" ");
    for line in lines {
        let (key, value) = line.split_once(" = ").expect("just found");
        let own = help.split(&format!(" --{key} ")).nth(1).unwrap_or_default();
        let own = own.split(" --").next().unwrap_or_default();
        let Some(default) = own.split("[default: ").nth(1).and_then(|rest| rest.split(']').next()) else {
            continue;
        };
        let told_apart = default.starts_with('~') || default.contains(' ');
        let value = value.trim_matches('"').trim_end_matches(".0");
        assert!(told_apart || value == default, "{key}: {value}, by the help {default}");
    }
}

#[test]
fn the_manual_page_says_everything() {
    let page = printed(&["man"]);
    assert!(page.contains(".TH ext-bridge 1"), "{}", &page[..page.len().min(300)]);
    let plain = page
        .replace("\\-", "-")
        .replace("\\fB", "")
        .replace("\\fR", "")
        .replace("\\fI", "");
    for flag in flags() {
        assert!(plain.contains(&format!("--{flag}")), "{flag}");
    }
    for command in [
        "serve",
        "invoke",
        "route",
        "check",
        "fixtures validate",
        "fixtures load",
        "fixtures dump",
    ] {
        assert!(plain.lines().any(|line| line.starts_with(command)), "{command}");
    }
    assert!(plain.contains("Exit codes") && plain.contains("EXT_BRIDGE_<FLAG>"));
    if there("groff") {
        let directory = Directory::new("man-", None);
        let file = directory.path().join("ext-bridge.1");
        std::fs::write(&file, &page).expect("our own directory");
        let output = Command::new("groff")
            .args(["-man", "-Tutf8", "-ww", "-z"])
            .arg(&file)
            .output()
            .expect("groff");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = printed(&["completions", shell]);
        for word in ["serve", "invoke", "route", "check", "fixtures", "nats-url"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        if there(shell) {
            let directory = Directory::new("completions-", None);
            let file = directory.path().join("script");
            std::fs::write(&file, &script).expect("our own directory");
            let output = Command::new(shell).arg("-n").arg(&file).output().expect("a shell");
            assert!(
                output.status.success(),
                "{shell}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    if there("bash") {
        let script = printed(&["completions", "bash"]);
        let ask = format!(
            "{script}\nCOMP_WORDS=(ext-bridge in); COMP_CWORD=1; _ext__bridge ext-bridge in ext-bridge; echo \"${{COMPREPLY[@]}}\""
        );
        let output = Command::new("bash").args(["-c", &ask]).output().expect("bash");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "invoke");
    }
}

#[test]
fn the_unit_is_one_that_systemd_takes() {
    let path = places::root().join("deploy/systemd/ext-bridge.service");
    let unit = std::fs::read_to_string(&path).expect("it is there");
    for line in [
        "Type=notify",
        "WatchdogSec=30",
        "User=ext-bridge",
        "StateDirectory=ext-bridge",
        "ProtectSystem=strict",
    ] {
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
    if !there("systemd-analyze") {
        return;
    }
    let directory = Directory::new("unit-", None);
    let file = directory.path().join("ext-bridge.service");
    // It wants to see the binary.
    let binary = places::built("ext-bridge", "bridge");
    std::fs::write(
        &file,
        unit.replace("/usr/bin/ext-bridge", &binary.display().to_string()),
    )
    .expect("our own directory");
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&file)
        .output()
        .expect("it is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

fn there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file())
}

#[test]
fn a_reader_that_goes_is_no_error() {
    let mut child = Command::new(places::built("ext-bridge", "bridge"))
        .arg("man")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be started");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("our own child");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What can be said without a container: they copy what `make deb` makes and what is in the repository, and set what there is.
#[test]
fn the_files_for_containers_name_what_is_there() {
    let folder = places::root().join("docker");
    let read =
        |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let packager = std::fs::read_to_string(places::root().join("scripts/deb.sh")).expect("scripts/deb.sh");
    let mut copied = 0;
    for dockerfile in ["Dockerfile.postgres", "Dockerfile.bridge"] {
        for source in read(dockerfile).lines().filter_map(|line| line.strip_prefix("COPY ")) {
            let source = source.split(' ').next().expect("a source");
            let is_there = match source.strip_prefix("target/deb/") {
                Some("postgresql-${PG_MAJOR}-ext-registry_*.deb") => {
                    packager.contains("postgresql-$major-ext-registry")
                }
                Some("ext-bridge_*.deb") => packager.contains("\"$stage\" ext-bridge "),
                Some(_) => false,
                None => places::root().join(source).is_file(),
            };
            assert!(is_there, "{dockerfile}: {source}");
            copied += 1;
        }
    }
    assert_eq!(copied, 3);
    let variables: BTreeSet<String> = flags()
        .iter()
        .map(|flag| format!("EXT_BRIDGE_{}", flag.to_uppercase().replace('-', "_")))
        .collect();
    let all = read("Dockerfile.bridge") + &read("compose.yml");
    let mut set = 0;
    for word in all.split(|c: char| c != '_' && !c.is_ascii_alphanumeric()) {
        if word.starts_with("EXT_BRIDGE_") {
            assert!(variables.contains(word), "{word}");
            set += 1;
        }
    }
    assert_eq!(set, 6);
}
