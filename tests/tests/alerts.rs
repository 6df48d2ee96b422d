//! `deploy/prometheus/rules.yml`: promtool takes it, each alert fires and does not fire, and all series are ones that there are.

use std::collections::BTreeSet;
use std::process::Command;

use ext_registry_tests::places;

fn text(file: &str) -> String {
    std::fs::read_to_string(places::root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[track_caller]
fn promtool(arguments: &[&str]) {
    let output = Command::new(places::tool("promtool"))
        .args(arguments)
        .current_dir(places::root().join("deploy/prometheus"))
        .output()
        .expect("promtool can be started");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_rules_are_rules_and_fire_when_they_should() {
    promtool(&["check", "rules", "rules.yml"]);
    promtool(&["test", "rules", "rules_test.yml"]);
}

#[test]
fn each_alert_is_seen_to_fire_and_not_to_fire() {
    let (rules, tests) = (
        text("deploy/prometheus/rules.yml"),
        text("deploy/prometheus/rules_test.yml"),
    );
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() >= 11, "{alerts:?}");
    for alert in alerts {
        let cases: Vec<&str> = tests
            .split("alertname: ")
            .skip(1)
            .filter(|case| case.split([',', '\n', ' ']).next() == Some(alert))
            .collect();
        assert!(
            cases.iter().any(|case| case.contains("exp_labels")),
            "{alert} never fires"
        );
        // In a case that names whom it fires for, it does not for the other series; promtool sees to that.
        let names = |case: &&str| {
            ["exp_alerts: []", "extension_id: ", "instance: "]
                .iter()
                .any(|part| case.contains(part))
        };
        assert!(cases.iter().any(names), "{alert} always fires");
    }
}

#[test]
fn all_series_are_ones_that_there_are() {
    let (rules, page) = (text("deploy/prometheus/rules.yml"), text("docs/metrics.md"));
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let series: BTreeSet<&str> = words
        .filter(|word| word.starts_with("router_extension_") || (word.starts_with("ext_bridge_") && word.len() > 11))
        .collect();
    assert!(series.len() >= 8, "{series:?}");
    for name in series.into_iter().filter(|name| !name.ends_with("s_more")) {
        let name = name.strip_suffix("_bucket").unwrap_or(name);
        assert!(
            page.contains(&format!("| `{name}` |")),
            "{name} is not in docs/metrics.md"
        );
    }
}
